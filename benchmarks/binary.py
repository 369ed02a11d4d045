"""Density estimation on seven binary tables, beside the rows of the MADE paper.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.binary --data DNA Adult

Every candidate is trained once for every table; what is finished is kept, so that an interrupted
run goes on where it was. With ``--write`` the page is written of what is there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks._binary_data import PUBLISHED, TABLES, Table, load_table
from benchmarks._binary_runs import Candidate, Scores, average, run
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page
from made_flows.models.mixture_weights import mixture_weights

TEXT = """Mean negative log-likelihood of the test rows in nats, lower is better, with its standard
error. Every candidate below is one network, trained over all orders, over four random ones, or in
one alone (the table's or a random one), with the same settings on every table; the number of steps
goes by the size of the table. The weights of the epoch with the best validation score are kept.

- *One order*: the mean over the orders of the candidate that is best by this on the validation
  rows. *Mixture of 16, of 32*: the average probability under as many orders of one network (under
  those that it was trained in, if they are fewer). *Fitted*: the same, weighted by EM on the
  validation rows.
- *All candidates*: the candidates' mixtures, weighted by EM on the validation rows, one weight a
  candidate. The distance to the best published value is that of this column.

Nothing is chosen by a look at the test rows. The candidates come from trials that were judged by
the validation rows of DNA, NIPS-0-12 and OCR-letters: where rows are many, one wide hidden layer
at a high learning rate; where they are few, direct connections with a threshold, and dropout.
Residual blocks, a third layer and weight decay were tried as well and gave nothing."""


def _in_orders(name: str, candidate: Candidate, *seeds: int) -> dict[str, Candidate]:
    """A candidate in the table's own order and in random ones, by their seeds."""
    alone = replace(candidate, orders=None)
    return {
        f"{name}own order": alone,
        **{f"{name}random order {seed}": replace(alone, order="random", seed=seed)
           for seed in seeds},
    }  # fmt: skip


DEEP = Candidate(rate=2e-3, direct_rate=0.02)
WIDE = Candidate(
    hidden=(2000,), dropout=0.25, rate=4e-3, direct_rate=0.01, sparsity=0.03, effort=1.5
)
SPARSE = Candidate(hidden=(2000,), rate=4e-3, direct_rate=0.02, sparsity=0.3)
CANDIDATES: dict[str, Candidate] = {
    "all orders": Candidate(dropout=0.8),
    "four orders": replace(DEEP, orders=4, orders_per_batch=1),
    **_in_orders("", DEEP, 1, 2, 3),
    **_in_orders("wide, ", WIDE, 1, 2),
    **_in_orders("wide, sparser, ", SPARSE, 1, 2),
}
STEPS: dict[str, int] = {
    "Adult": 3000,
    "Connect4": 6000,
    "DNA": 3000,
    "Mushrooms": 3000,
    "NIPS-0-12": 800,
    "OCR-letters": 6000,
    "Binarized MNIST": 5000,
}
ORDERS = 32
COLUMNS = ("one order", "mixture of 16", "mixture of 32", "fitted", "all candidates")


def best_published(table: str) -> tuple[float, str]:
    """The lowest published NLL of a table, and whose it is."""
    return min((row[table], name) for name, row in PUBLISHED.items() if table in row)


def estimate(scores: Tensor) -> str:
    """Mean and standard error of the NLL of rows (N,)."""
    return f"{-scores.mean():.2f} ± {scores.std() / math.sqrt(len(scores)):.2f}"


def selected(results: Mapping[str, Scores]) -> dict[str, tuple[Tensor, str]]:
    """Log-probabilities of the test rows under every way to use the candidates, and which."""

    def best(column: int | None) -> str:
        def valid(name: str) -> float:
            scores = results[name].valid
            if column is None:
                return float(scores.mean())
            return float(average(scores[:, :column]).mean())

        return max(results, key=valid)

    ways: dict[str, tuple[Tensor, str]] = {}
    name = best(None)
    ways["one order"] = (results[name].test.double().mean(dim=1), name)
    for count in (16, 32):
        name = best(count)
        ways[f"mixture of {count}"] = (average(results[name].test[:, :count]), name)
    weights = mixture_weights(results[name].valid)
    ways["fitted"] = (average(results[name].test, weights), name)
    valid, test = (
        torch.stack([average(getattr(scores, part)) for scores in results.values()], dim=1)
        for part in ("valid", "test")
    )
    weights = mixture_weights(valid)
    shown = ", ".join(f"{w:.2f} {name}" for w, name in zip(weights, results, strict=True))
    ways["all candidates"] = (average(test, weights), shown)
    return ways


def summary(results: Mapping[str, Mapping[str, Scores]]) -> str:
    """One row a table: every way to use the candidates, and the distance to the best."""
    rows = []
    for table, of_table in results.items():
        ways = selected(of_table)
        value, name = best_published(table)
        final = -float(ways["all candidates"][0].mean())
        cells = [estimate(ways[column][0]) for column in COLUMNS]
        rows.append([table, f"{value:.2f} ({name})", *cells, f"{final - value:+.2f}"])
    return markdown_table(["table", "best published", *COLUMNS, "distance"], rows)


def section(table: Table, results: Mapping[str, Scores]) -> str:
    """What every candidate gave on a table."""
    rows = []
    for name, scores in results.items():
        rows.append(
            [
                name,
                f"{-scores.valid.mean():.2f}",
                f"{-average(scores.valid).mean():.2f}",
                f"{-scores.test.mean():.2f}",
                estimate(average(scores.test)),
                str(scores.steps),
                f"{scores.seconds / 60:.1f}",
                str(scores.parameters),
            ]
        )
    headings = [
        "candidate", "valid, one order", "valid, mixture", "test, one order", "test, mixture",
        "steps", "minutes", "parameters",
    ]  # fmt: skip
    sizes = ", ".join(str(len(part)) for part in (table.train, table.valid, table.test))
    weights = selected(results)["all candidates"][1]
    about = (
        f"{table.features} columns; rows to train, validate and test: {sizes}. Weights of the "
        f"candidates: {weights}."
    )
    published = ", ".join(
        f"{n} {row[table.name]:g}" for n, row in PUBLISHED.items() if table.name in row
    )
    return (
        f"## {table.name}\n\n{about}\n\n{markdown_table(headings, rows)}\n\nPublished: {published}."
    )


def settings_table() -> str:
    """The candidates' settings."""
    rows = []
    for name, c in CANDIDATES.items():
        hidden = " x ".join(map(str, c.hidden))
        own = "the table's" if c.order == "natural" else "a random one"
        orders = own if c.orders is None else f"{c.orders}, {c.orders_per_batch} a batch"
        rows.append(
            [name, orders, hidden, f"{c.dropout:g}", str(c.batch_size), f"{c.rate:g}",
             f"{c.direct_rate:g}", f"{c.sparsity:g}", f"{c.effort:g}"]
        )  # fmt: skip
    headings = [
        "candidate", "orders", "hidden units", "dropout", "batch", "rate", "rate of direct",
        "sparsity of direct", "share of steps",
    ]  # fmt: skip
    return markdown_table(headings, rows)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--steps", type=int, help="of training, instead of the table's own")
    parser.add_argument("--write", action="store_true", help="only write the page")
    return parse_resumable(parser, "binary", arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    results: dict[str, dict[str, Scores]] = {}
    sections = []
    for name in given.data:
        table = load_table(name)
        if table is None:
            continue
        steps, orders = given.steps or STEPS[name], ORDERS
        table, steps = (table.first(100), 3) if given.quick else (table, steps)
        of_table = {}
        for which in given.candidates:
            candidate = CANDIDATES[which]
            if given.quick:
                small = tuple(10 for _ in candidate.hidden)
                candidate, orders = replace(candidate, hidden=small), 2
            scores = run(which, candidate, table, steps, orders, given.runs, train=not given.write)
            if scores is not None:
                of_table[which] = scores
        if of_table:
            results[name] = of_table
            sections.append(section(table, of_table))
    if not sections:
        print("benchmarks.binary: no data, nothing written", flush=True)
        return
    page = [TEXT, summary(results), "## Candidates", settings_table(), *sections]
    write_page("binary", "Binary tables", page, settings)


if __name__ == "__main__":
    main()
