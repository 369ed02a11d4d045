"""Tables of mixed columns: held-out log-likelihood and held-out cells, beside simpler models.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.mixed

Reads mixed/NAME.csv. What is finished is kept, one line a result, and a call goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import made_flows as mf
from benchmarks._density_data import data_folder
from benchmarks._mixed_measures import IMPUTERS, MEASURES, errors, guesses, quality
from benchmarks._mixed_models import DRAWS, BayesianNetwork, Copula, Margins
from benchmarks._results import ResultsFile
from benchmarks.harness import markdown_table, parse_resumable, write_page
from made_flows.tables.columns import CategoryColumn
from made_flows.tables.schema import Schema

TRAINED, TESTED = 15_000, 2000

LIKELIHOOD = """Mean log-likelihood of a test row in nats, higher is better; missing values are left
out. All models of a table have the same schema, so that densities are per unit of the data and
masses of the same cells. *Independent columns* are the same heads without a network: of numbers,
mixtures of up to eight normals behind the same maps, by BIC. The *Gaussian copula* has these as its
margins and the correlations of normal scores; a discrete value's score is drawn in its cell, and
its mass is the mean of {draws} such draws. The *Bayesian network* is pgmpy's, of categories and of
numbers in ten bins that hold about as many rows, within which they have the margin's density; its
graph is found by hill climbing (BIC, three parents at most), its tables have the BDeu prior, and
missing values are summed out (for learning, they are drawn from their column). *TableMADE*
is `fit_table` at its defaults, but for `max_seconds={limit:g}` of a core: where training took as
long, it was cut short. The last column mixes
eight orders. Of large tables {most} rows are trained on, drawn at random.{missing}"""

CELLS = """A fifth of the cells of the test rows is hidden, and guessed: by `fill`; by
scikit-learn's IterativeImputer (its default, a ridge regression for each column) and KNNImputer
(its default, five neighbours) on standardised numbers and one-hot categories; and by
HistGradientBoosting, a model of each column given the others. Of number columns, the root mean
squared error in standard deviations of the column; of categories, the share guessed right; each a
mean over the columns."""

SYNTHETIC = """As many rows as were trained on are drawn, and compared with the test rows: the mean
Kolmogorov-Smirnov distance of a number column, the mean total variation distance of a category
column, the mean difference of Spearman's rank correlations of two number columns and of Cramér's V
(corrected for bias, Bergsma 2013) of two category columns, all better when lower; and the share of
test rows whose target a classifier (HistGradientBoosting) tells that was trained on the drawn rows:
{target}. CTGAN is at its defaults (numbers
clipped to the range of the training rows, missing ones drawn from their column). *Real rows* are
the training rows themselves: what a perfect sampler would reach. (A
column of titanic repeats the target: its classifier is told the answer if rows are consistent.)"""

TARGETS = {
    "adult": "income", "diamonds": "cut", "mpg": "origin", "penguins": "species", "tips": "sex",
    "titanic": "survived",
}  # fmt: skip
"""The column that is classified, of each table."""


# ---------------------------------------------------------------------- data


def load(names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The tables at hand, by name: columns of numbers, text and holes; small ones first."""
    folder = data_folder()
    found = {}
    for path in sorted((folder / "mixed").glob("*.csv*")) if folder else []:
        name = path.name.partition(".")[0]
        if names is None or name in names:
            found[name] = read_csv(path)
    return dict(sorted(found.items(), key=lambda each: len(next(iter(each[1].values())))))


def read_csv(path: Path) -> dict[str, Any]:
    """Columns of a CSV file: numbers where all values are, else text; nothing is a hole."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    names, *rows = list(csv.reader(text.decode().splitlines()))
    each = zip(names, zip(*rows, strict=True), strict=True)
    return {name: _column(values) for name, values in each}


def _column(values: Sequence[str]) -> Any:
    try:
        numbers = np.array([float(value) if value else math.nan for value in values])
    except ValueError:
        return np.array([value or None for value in values], dtype=object)
    whole = not np.isnan(numbers).any() and bool((numbers == np.round(numbers)).all())
    return numbers.astype(np.int64) if whole else numbers


def take(table: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {name: values[rows] for name, values in table.items()}


# ---------------------------------------------------------------------- runs and page


def split(table: dict[str, Any], rng: Any, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows to train on and to test."""
    count = len(next(iter(table.values())))
    order = rng.permutation(count)
    cut = int(0.8 * count)
    return take(table, order[:cut][:most]), take(table, order[cut:][:TESTED])


def of_pgmpy(
    name: str, table: dict[str, Any], seed: int, limit: float, most: int
) -> dict[str, Any]:
    """The log-likelihood of the Bayesian network."""
    train, test = split(table, np.random.default_rng(seed), most)
    schema = Schema.of(train)
    x = schema.encode(train)[0]
    network = BayesianNetwork(Margins(schema, x), x, seed)
    return {"Bayesian network": float(network.log_prob(schema.encode(test)[0]).mean())}


def of_ctgan(
    name: str, table: dict[str, Any], seed: int, limit: float, most: int
) -> dict[str, Any]:
    """The quality of CTGAN's rows."""
    import pandas
    from ctgan import CTGAN

    rng = np.random.default_rng(seed)
    train, test = split(table, rng, most)
    schema = Schema.of(train)
    x = schema.encode(train)[0].numpy()
    values, categories = {}, []
    for column, codes in zip(schema.columns, x.T, strict=True):
        missing = np.isnan(codes)  # it takes none: from the column's own
        codes[missing] = rng.choice(codes[~missing], missing.sum())
        values[column.name] = column.values(codes)
        if isinstance(column, CategoryColumn):
            categories.append(column.name)
            values[column.name] = codes.astype(int).astype(str)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what it draws from
    maker = CTGAN(enable_gpu=False)
    maker.fit(pandas.DataFrame(values), categories)
    drawn = maker.sample(len(x))
    found = {
        column.name: column.values(drawn[column.name].to_numpy().astype(float))
        if column.name in categories
        else drawn[column.name]
        .clip(values[column.name].min(), values[column.name].max())
        .to_numpy()
        for column in schema.columns
    }
    made, held_out = (schema.encode(rows)[0] for rows in (found, test))
    return {"rows of CTGAN": quality(schema, made, held_out, TARGETS[name])}


def run(
    name: str, table: dict[str, Any], seed: int, limit: float, most: int = TRAINED
) -> dict[str, Any]:
    """Everything of one table and one split."""
    rng = np.random.default_rng(seed)
    train, test = split(table, rng, most)
    start = time.process_time()
    # A limit of a core's time, which no other work takes, in place of the clock's.
    with mock.patch("time.perf_counter", time.process_time):
        model = mf.fit_table(train, max_seconds=limit, progress=False, seed=seed)
    seconds = time.process_time() - start
    x, held_out = (model.schema.encode(rows)[0] for rows in (train, test))
    margins = Margins(model.schema, x)
    copula = Copula(margins, x, seed)
    with torch.no_grad():
        line: dict[str, Any] = {
            "rows": len(x), "columns": x.shape[1], "limit": limit,
            "seconds": seconds,
            "independent columns": float(margins.log_prob(held_out).sum(1).mean()),
            "Gaussian copula": float(copula.log_prob(held_out).mean()),
            "TableMADE": float(model.score_samples(test).mean()),
            "TableMADE, eight orders": float(model.score_samples(test, orders=8).mean()),
        }  # fmt: skip
        hidden = (rng.random(held_out.shape) < 0.2) & ~held_out.isnan().numpy()
        for imputer in IMPUTERS:
            found = guesses(imputer, model, train, test, hidden)
            line[imputer] = errors(model.schema, found, test, hidden)
        torch.manual_seed(seed)
        for maker, drawn in (
            ("real rows", x),
            ("Gaussian copula", copula.sample(len(x))),
            ("TableMADE", model.schema.encode(model.sample(len(x), seed=seed))[0]),
        ):
            line[f"rows of {maker}"] = quality(model.schema, drawn, held_out, TARGETS[name])
    return line


JOBS = {"made_flows": run, "pgmpy": of_pgmpy, "ctgan": of_ctgan}
"""What is done with a table, each giving a line of results of its own."""

MAKERS = ("real rows", "Gaussian copula", "CTGAN", "TableMADE")
MODELS = ("independent columns", "Gaussian copula", "Bayesian network", "TableMADE",
          "TableMADE, eight orders")  # fmt: skip


Line = dict[str, Any]


def page(results: Sequence[Line]) -> list[str]:
    """The sections of the page."""
    whole: dict[Any, Line] = {}
    for line in results:
        whole.setdefault((line["table"], line["seed"]), {}).update(line)
    lines = [line for line in whole.values() if "TableMADE" in line]
    by_table: dict[str, list[Line]] = {}
    for line in lines:
        by_table.setdefault(line["table"], []).append(line)
    lacking = [name for name in load() if name not in by_table]
    text = LIKELIHOOD.format(
        draws=DRAWS,
        limit=max(line["limit"] for line in lines),
        missing=f" **Not run yet:** {', '.join(lacking)}." if lacking else "",
        most=max(line["rows"] for line in lines),
    )
    target = ", ".join(f"{t} ({name})" for name, t in TARGETS.items())
    return [
        f"## Log-likelihood\n\n{text}\n\n" + _likelihoods(by_table),
        f"## Hidden cells\n\n{CELLS}\n\n" + _cells(by_table),
        f"## Synthetic rows\n\n{SYNTHETIC.format(target=target)}\n\n" + _rows(by_table),
    ]


def _likelihoods(by_table: dict[str, list[Line]]) -> str:
    rows = []
    for name, lines in by_table.items():
        size = f"{name} ({lines[0]['rows']} x {lines[0]['columns']}; {len(lines)})"
        values = [float(np.mean([line.get(m, math.nan) for line in lines])) for m in MODELS]
        shown = [
            f"**{v:.2f}**" if v == np.nanmax(values) else "-" if math.isnan(v) else f"{v:.2f}"
            for v in values
        ]
        rows.append([size, *shown, f"{np.mean([line['seconds'] for line in lines]):.0f}"])
    headings = ["table (training rows x columns; splits)", *MODELS, "seconds of training"]
    return markdown_table(headings, rows)


def _cells(by_table: dict[str, list[Line]]) -> str:
    rows = []
    for name, lines in by_table.items():
        for place, word in enumerate(("error of numbers", "categories right")):
            each = [[line[m][place] for line in lines] for m in IMPUTERS]
            if any(value is None for row in each for value in row):
                continue
            means = [float(np.mean(row)) for row in each]
            best = min(means) if place == 0 else max(means)
            shown = [f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in means]
            rows.append([name, word, *shown])
    return markdown_table(["table", "", *IMPUTERS], rows)


def _rows(by_table: dict[str, list[Line]]) -> str:
    rows, nothing = [], [math.nan] * len(MEASURES)
    for name, of_table in by_table.items():
        lines = [line for line in of_table if "rows of TableMADE" in line]
        for k, measure in enumerate(MEASURES) if lines else ():
            values = [
                float(np.mean([line.get(f"rows of {m}", nothing)[k] for line in lines]))
                for m in MAKERS
            ]
            if math.isnan(values[0]):  # there are no such columns, or one
                continue
            best = (np.nanmax if measure == "classifier" else np.nanmin)(values[1:])
            shown = [
                f"**{v:.3f}**" if v == best and m != MAKERS[0]
                else "-" if math.isnan(v) else f"{v:.3f}"
                for m, v in zip(MAKERS, values, strict=True)
            ]  # fmt: skip
            rows.append([name, measure, *shown])
    return markdown_table(["table", "", *MAKERS], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="*", help="names; all by default")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS))
    parser.add_argument("--seeds", type=int, default=1, help="0 writes the page alone")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of training, of a core")
    parser.add_argument("--rows", type=int, default=TRAINED, help="to train on, at most")
    given, settings = parse_resumable(parser, "mixed", arguments)
    tables = load(given.tables)
    if given.quick:
        tables, given.limit = dict(list(tables.items())[:1]), 2.0
    results = ResultsFile(given.runs)
    done = results.done("table", "seed", "job")
    for name, seed, job in product(tables, range(given.seeds), given.jobs):
        if (name, seed, job) in done:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = JOBS[job](name, tables[name], seed, given.limit, given.rows)
            except ImportError:
                continue  # it is not installed
        results.add({"table": name, "seed": seed, "job": job, **found})
        print(json.dumps(results.lines[-1]), flush=True)
    if not results.lines:
        print("benchmarks.mixed: no data, nothing written", flush=True)
        return
    write_page("mixed", "Tables of mixed columns", page(results.lines), settings)


if __name__ == "__main__":
    main()
