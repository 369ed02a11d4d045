"""Binarized MNIST for longer than beside the other binary tables: by dropout, decay and orders.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.binarized_mnist

What is finished is kept, so that an interrupted run goes on where it was. With ``--write`` the page
is written of what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from benchmarks._binary_data import PUBLISHED, load_table
from benchmarks._binary_runs import Candidate, Scores, average, run
from benchmarks.binary import WIDE, estimate, selected
from benchmarks.harness import markdown_table, parse_resumable, write_page

TABLE = "Binarized MNIST"
TEXT = """Mean negative log-likelihood of rows in nats, lower is better, with its standard error.
Each candidate is one network with one wide hidden layer and direct connections, trained in one
order, the images' own unless it says another, for 20 epochs, by the settings that
[binary tables](binary.md) calls *wide* otherwise. *Decay* is that of the hidden and last layers'
weights, as AdamW's, in units of the learning rate. The weights of the epoch with the best
validation score are kept. The last row has the mixture of all candidates, weighted by EM on the
validation rows. Nothing is chosen by a look at the test rows."""


_STEPS = 1000
"""Of which a candidate's own are a multiple."""


def _wide(
    dropout: float, steps: int, *, decay: float = 0.0, order: str = "natural", seed: int = 0
) -> Candidate:
    wide = replace(WIDE, orders=None, dropout=dropout, decay=decay, order=order, seed=seed)
    return replace(wide, effort=steps / _STEPS)


CANDIDATES: dict[str, Candidate] = {
    "dropout 0.25": _wide(0.25, 10_000),
    "dropout 0.5": _wide(0.5, 10_000),
    "dropout 0.25, decay 0.2": _wide(0.25, 10_000, decay=0.2),
    **{
        f"dropout 0.25, decay 0.2, random order {seed}": _wide(
            0.25, 10_000, decay=0.2, order="random", seed=seed
        )
        for seed in (1, 2)
    },
}


def table_of(results: dict[str, Scores]) -> str:
    """What every candidate gave, and all of them together."""
    rows = []
    for name, scores in results.items():
        parts = (estimate(average(part)) for part in (scores.valid, scores.test))
        rows.append([name, *parts, str(scores.steps), f"{scores.seconds / 60:.0f}"])
    scored, _ = selected(results)["all candidates"]
    rows.append(["all candidates", "-", estimate(scored), "-", "-"])
    return markdown_table(["candidate", "validation", "test", "steps", "minutes"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--write", action="store_true", help="only write the page")
    given, settings = parse_resumable(parser, "binarized_mnist", arguments)
    table, results = load_table(TABLE), dict[str, Scores]()
    if table is None:
        print("benchmarks.binarized_mnist: no data, nothing written", flush=True)
        return
    table = table.first(100) if given.quick else table
    for name in given.candidates:
        candidate = CANDIDATES[name]
        if given.quick:
            candidate = replace(candidate, hidden=(10,), effort=0.003)
        scores = run(name, candidate, table, _STEPS, 1, given.runs, train=not given.write)
        if scores is not None:
            results[name] = scores
    published = ", ".join(f"{n} {row[TABLE]:g}" for n, row in PUBLISHED.items() if TABLE in row)
    page = [TEXT, table_of(results), f"Published: {published}."]
    write_page("binarized_mnist", "Binarized MNIST, longer", page, settings)


if __name__ == "__main__":
    main()
