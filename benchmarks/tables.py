"""Density estimation on continuous tables: this library's defaults beside what others give.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.tables --splits 3

What is finished is kept, one line a result, and a call goes on from there; the page is written
anew from all results. With ``--splits 0`` it is only written.
"""

from __future__ import annotations

import argparse
import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn

import made_flows as mf
from benchmarks._results import ResultsFile
from benchmarks._tables_data import SMALLEST, Array, Split, cut, load_tables
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page

TEXT = """Mean log-likelihood of test rows in nats, higher is better, in units of the mean and
standard deviation of the training rows. {runs}

Rows that repeat are left out, and so are columns of fewer than twenty values, with a fifth of the
rows at one value, or linear in others: they have no density, and who notices wins by any margin. A
random fifth of the rows (two thousand at most) is tested; of the others at most ten thousand train
(fewer where the table says so).
All flows are trained by the same loop, `mf.fit` at its defaults: Adam, a tenth of the training rows
held out for early stopping. Flows of zuko and nflows have their own libraries' default sizes. The
Gaussian mixture is scikit-learn's of full covariances, its number of components (1 to 10) chosen by
BIC; the kernel density's bandwidth by cross-validation in five folds.

{estimate}

The defaults were chosen by the trials at the end of this page: the first of them on other splits
of iris, wine, diabetes, Stamps, WDBC (which is a part of breast_cancer), concrete,
Cardiotocography and kin8nm, so that of these tables the rows tested here are not untouched; the
later ones on the training rows of the first split of these and of vertebral, Hepatitis, Pima,
yeast, SpamBase, skin, mammography, power_plant, PageBlocks, satimage-2 and campaign, whose rows
tested in that split took no part. The other tables took no part."""

OURS = ("MAF", "spline MAF", "mixture MADE")
FLOWS = ("zuko MAF", "zuko NSF", "nflows MAF")
VERDICTS = ("ahead", "tied", "behind")
TIED = 0.05
"""Nats within which two contenders are tied, whatever the error of their difference."""


# ---------------------------------------------------------------------- contenders


def _normal(split: Split, seed: int) -> Array:
    from sklearn.covariance import LedoitWolf

    found = LedoitWolf().fit(split.train)
    rows, normal = torch.from_numpy(split.test), torch.distributions.MultivariateNormal
    mean, covariance = torch.from_numpy(found.location_), torch.from_numpy(found.covariance_)
    return np.asarray(normal(mean, covariance).log_prob(rows))


def _normal_mixture(split: Split, seed: int) -> Array:
    from sklearn.mixture import GaussianMixture

    best: tuple[float, Any] = (math.inf, None)
    for components in range(1, 11):
        if components > len(split.train) // 2:
            break
        found = GaussianMixture(components, random_state=seed, max_iter=300).fit(split.train)
        best = min(best, (float(found.bic(split.train)), found), key=lambda each: each[0])
    return np.asarray(best[1].score_samples(split.test))


def _kernels(split: Split, seed: int) -> Array:
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    widths = {"bandwidth": np.geomspace(0.05, 2.0, 12)}
    search = GridSearchCV(KernelDensity(), widths, cv=5).fit(split.train[:3000])
    best = KernelDensity(bandwidth=search.best_params_["bandwidth"]).fit(split.train)
    return np.asarray(best.score_samples(split.test))


def _trained(make: Callable[[int], nn.Module]) -> Callable[[Split, int], Array]:
    def run(split: Split, seed: int) -> Array:
        torch.manual_seed(seed)
        model = make(split.train.shape[1])
        mf.fit(model, split.train.astype(np.float32), progress=False, seed=seed)
        return _scores(model, split.test)

    return run


def _estimated(budget: Any) -> Callable[..., Array]:
    def run(split: Split, seed: int, limit: float | None = None) -> Array:
        train = split.train.astype(np.float32)
        # Seconds of a core: those of the clock are others' as well, where a machine is busy.
        with mock.patch("time.perf_counter", time.process_time):
            model = mf.estimate(train, budget=budget, max_seconds=limit, seed=seed, progress=False)
        return _scores(model, split.test)

    return run


@torch.no_grad()
def _scores(model: nn.Module, test: Array) -> Array:
    pieces = torch.from_numpy(test.astype(np.float32)).split(1000)
    return np.asarray(torch.cat([model().log_prob(piece).double() for piece in pieces]))


class _Nflows(nn.Module):
    """nflows' flow, called as the others are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        from nflows.flows import MaskedAutoregressiveFlow

        self.features, self.flow = features, MaskedAutoregressiveFlow(features, 64, 5, 2)

    def forward(self) -> Any:
        return self.flow


def _zuko(kind: str) -> Callable[[int], nn.Module]:
    def make(features: int) -> nn.Module:
        import zuko

        flow: nn.Module = getattr(zuko.flows, kind)(features)
        return flow

    return make


CONTENDERS: dict[str, Callable[..., Array]] = {
    "normal": _normal,
    "normal mixture": _normal_mixture,
    "kernel density": _kernels,
    "zuko MAF": _trained(_zuko("MAF")),
    "zuko NSF": _trained(_zuko("NSF")),
    "nflows MAF": _trained(_Nflows),
    "MAF": _trained(mf.MAF),
    "spline MAF": _trained(lambda features: mf.MAF(features, bijection="spline")),
    "mixture MADE": _trained(mf.GaussianMixtureMADE),
    "estimate, fast": _estimated("fast"),
    "estimate, good": _estimated("good"),
    "estimate, best": _estimated("best"),
}
"""From a split and a seed to the log-likelihoods of the test rows."""


# ---------------------------------------------------------------------- runs


def _run(
    table: str, name: str, split: Split, seed: int, limit: float | None = None
) -> dict[str, Any]:
    start, used = time.perf_counter(), time.process_time()
    options = {"limit": limit} if name.startswith("estimate") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scores = CONTENDERS[name](split, seed, **options)
            score, worst = float(scores.mean()), float(scores.min())
            each = [round(float(one), 4) for one in scores]
        except (RuntimeError, ValueError) as error:
            print(f"{table}, {name}: {error}", flush=True)
            score = worst = -math.inf
            each = []
    seconds = time.perf_counter() - start
    print(f"{table}, split {seed}, {name}: {score:.3f}, {seconds:.1f} s", flush=True)
    return {
        "limit": limit, "limit_of": "a core",
        "table": table, "split": seed, "name": name, "score": score, "worst": worst, "each": each,
        "seconds": seconds, "cpu": time.process_time() - used,
        "rows": len(split.train), "features": split.train.shape[1],
    }  # fmt: skip


# ---------------------------------------------------------------------- the page


class Score(NamedTuple):
    """Log-likelihoods of the test rows of a split: their mean, and each (none where it failed)."""

    mean: float
    each: Sequence[float]


Results = dict[str, dict[str, dict[int, Score]]]
"""Scores by table, contender and split."""


def by_table(lines: Sequence[dict[str, Any]]) -> Results:
    results: Results = {}
    for line in lines:
        of_table = results.setdefault(line["table"], {})
        of_table.setdefault(line["name"], {})[line["split"]] = Score(line["score"], line["each"])
    return results


def paired(first: dict[int, Score], second: dict[int, Score]) -> tuple[float, float]:
    """The mean difference over common splits and its standard error: of one split, over its rows.

    The error is NaN where one of them failed.
    """
    both = sorted(set(first) & set(second))
    differences = np.array([first[s].mean - second[s].mean for s in both])
    mean = float(differences.mean())
    if len(both) == 1:
        rows = [each[both[0]].each for each in (first, second)]
        differences = np.subtract(*rows) if all(map(len, rows)) else differences
    if len(differences) < 2:
        return mean, math.nan
    with np.errstate(invalid="ignore"):  # infinite ones, of failures
        return mean, float(differences.std(ddof=1) / math.sqrt(len(differences)))


def verdict(difference: float, error: float) -> str:
    """Say how a contender stands by its mean difference to another and the error of that."""
    tie = TIED if math.isnan(error) else max(TIED, error)
    return "ahead" if difference > tie else "behind" if difference < -tie else "tied"


def _common(results: Results, names: Sequence[str]) -> dict[str, list[int]]:
    """The splits of every table that all these contenders have finished."""
    found = {}
    for table, of_table in results.items():
        splits = [set(of_table.get(name, {})) for name in names]
        common = set.intersection(*splits) if splits else set()
        if common:
            found[table] = sorted(common)
    return found


def summary(results: Results) -> str:
    """Mean ranks, and how this library stands against each contender."""
    names = [n for n in CONTENDERS if any(n in of_table for of_table in results.values())]
    broad = [n for n in names if sum(n in t for t in results.values()) >= 0.7 * len(results)]
    common = _common(results, broad)
    if not common:
        return "Nothing finished yet."
    means = {
        table: {n: _mean(results[table][n], splits) for n in broad}
        for table, splits in common.items()
    }
    ranks = {
        n: np.mean([1 + sum(row[o] > row[n] for o in broad if o != n) for row in means.values()])
        for n in broad
    }
    ours = [n for n in ("estimate, good", "estimate, fast", "spline MAF", "MAF") if n in broad]
    rows = []
    for name in sorted(broad, key=lambda each: ranks[each]):
        cells = [name, f"{ranks[name]:.2f}"]
        cells += ["-" if m == name else _tally(results, common, m, name) for m in ours]
        rows.append(cells)
    headings = ["contender", "mean rank", *(f"{mine} against it" for mine in ours)]
    text = (
        f"## Summary\n\nOver the {len(common)} tables that all of these have finished: mean rank, "
        "and wins / ties / losses of this library's against each (a tie: within one standard error "
        "of the paired difference, over splits, or over the rows of the one split there is, or "
        f"{TIED} nats)."
    )
    behind = ""
    if "estimate, good" in broad or "estimate, fast" in broad:
        mine = "estimate, good" if "estimate, good" in broad else "estimate, fast"
        gaps = {t: max(row.values()) - row[mine] for t, row in means.items()}
        worst = max(gaps, key=lambda each: gaps[each])
        first = sum(gap <= TIED for gap in gaps.values())
        behind = (
            f"\n\n`{mine}` is first or within {TIED} nats of it on {first} of {len(gaps)} tables; "
            f"the most that it is behind the best contender is {gaps[worst]:.2f} nats ({worst})."
        )
    return f"{text}\n\n{markdown_table(headings, rows)}{behind}"


def _tally(results: Results, common: dict[str, list[int]], mine: str, other: str) -> str:
    found = [verdict(*paired(results[table][mine], results[table][other])) for table in common]
    return " / ".join(str(found.count(word)) for word in VERDICTS)


def _mean(scores: dict[int, Score], splits: Iterable[int]) -> float:
    return float(np.mean([scores[s].mean for s in splits]))


def _best(of_table: dict[str, dict[int, Score]], names: Sequence[str], splits: set[int]) -> str:
    """The contender with the best mean over some splits, among those that finished all of them."""
    there = [n for n in names if splits and splits <= set(of_table.get(n, {}))]
    return max(there, key=lambda n: _mean(of_table[n], splits), default="")


def _difference(first: dict[int, Score], second: dict[int, Score]) -> str:
    mean, error = paired(first, second)
    return f"{mean:+.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def estimates_section(results: Results) -> str | None:
    """`estimate` against the best of all others, table by table."""
    rows = []
    for table, of_table in results.items():
        others = [n for n in of_table if not n.startswith("estimate")]
        for budget in ("estimate, fast", "estimate, good", "estimate, best"):
            best = _best(of_table, others, set(of_table.get(budget, {})))
            if best:
                rows.append([table, budget, best, _difference(of_table[budget], of_table[best])])
    if not rows:
        return None
    text = (
        "## estimate\n\nAgainst the best of all other contenders on the same splits, which is "
        "another one from table to table and known from the test rows alone: the mean difference "
        "and its standard error, as in the summary."
    )
    headings = ["table", "budget", "best of the others", "difference"]
    return f"{text}\n\n{markdown_table(headings, rows)}"


def scores_section(results: Results, sizes: dict[str, tuple[int, int]]) -> str:
    """The mean scores on every table, over splits that all contenders of a row have finished."""
    names = [n for n in CONTENDERS if any(n in of_table for of_table in results.values())]
    rows = []
    for table, of_table in results.items():
        for splits in sorted({tuple(sorted(scores)) for scores in of_table.values()}, key=len):
            means = {
                n: _mean(of_table[n], splits)
                for n in names
                if set(splits) <= set(of_table.get(n, {}))
            }
            size, best = sizes[table], max(means.values())
            cells = [f"{table} ({size[0]} x {size[1]}; {len(splits)})"]
            for n in names:
                shown = f"{means[n]:.2f}" if n in means else "-"
                cells.append(f"**{shown}**" if n in means and means[n] == best else shown)
            rows.append(cells)
    headings = ["table (training rows x columns; splits)", *names]
    text = (
        "## Scores\n\nMeans over splits. A table has a row for each number of splits that "
        "contenders have finished, so that a row compares the same rows of the table."
    )
    return f"{text}\n\n{markdown_table(headings, rows)}"


def differences_section(results: Results) -> str:
    """The best flow of ours at its defaults, against the best of the others'."""
    rows = []
    for table, of_table in results.items():
        each = [set(of_table[n]) for n in (*OURS[:2], *FLOWS) if n in of_table]
        splits = set.intersection(*each) if each else set()
        mine, other = (_best(of_table, group, splits) for group in (OURS[:2], FLOWS))
        if mine and other:
            pair = ({s: of_table[n][s] for s in splits} for n in (mine, other))
            rows.append([table, mine, other, _difference(*pair)])
    text = (
        "## Flows at their defaults\n\nThe better of this library's affine and spline MAF against "
        "the best of zuko's and nflows' flows: the mean difference over the splits that all of "
        "them have finished, and its standard error, as in the summary."
    )
    headings = ["table", "ours", "theirs", "difference"]
    return f"{text}\n\n{markdown_table(headings, rows)}"


def seconds_section(lines: Sequence[dict[str, Any]], of: str = "seconds") -> str:
    """How long training took: of the clock, or of a core (``cpu``)."""
    names = [n for n in CONTENDERS if any(line["name"] == n for line in lines)]
    tables = list(dict.fromkeys(line["table"] for line in lines))
    rows = []
    for table in tables:
        cells = [table]
        for n in names:
            taken = [line[of] for line in lines if (line["table"], line["name"]) == (table, n)]
            cells.append(f"{np.median(taken):.1f}" if taken else "-")
        rows.append(cells)
    what = "of the clock" if of == "seconds" else "of a core"
    return (
        f"## Seconds\n\nMedian time {what} of training and scoring, on a machine that did other "
        f"work at the same time.\n\n{markdown_table(['table', *names], rows)}"
    )


def about_estimate(lines: Sequence[dict[str, Any]]) -> str:
    """What time `estimate` took, of the clock and of a core that others used too."""
    mine = [line for line in lines if line["name"].startswith("estimate")]
    if not mine:
        return "`estimate` was not run."
    cpu, clock = (np.median([line[name] for line in mine]) for name in ("cpu", "seconds"))
    ends: dict[str, list[str]] = {}
    for line in mine:
        limit = f"{line['limit']:g} seconds" if line["limit"] else "the seconds of its budget"
        ends.setdefault(f"{limit} of {line.get('limit_of', 'the clock')}", []).append(line["table"])
    said = "; ".join(f"{end} ({', '.join(dict.fromkeys(ends[end]))})" for end in sorted(ends))
    text = (
        f"`estimate` ends by a limit, whatever is trained by then: {said}. It took {clock:.0f} "
        f"seconds of the clock, in which the machine gave it {cpu:.0f} of a core (medians)."
    )
    return textwrap.fill(text, 100)


def ablations_section(path: Path) -> str | None:
    """The ablations behind the defaults, as they were written down."""
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def add_arguments(parser: argparse.ArgumentParser, splits: int) -> None:
    """What is run, and for how long."""
    parser.add_argument("--tables", nargs="+", help="all that are there by default")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS)[:-1]
    )
    parser.add_argument("--splits", type=int, default=splits)
    parser.add_argument("--rows", type=int, default=10_000, help="to train on, at most")
    parser.add_argument("--limit", type=float, help="seconds of estimate, instead of its budget's")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, about")


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, splits=3)
    return parse_resumable(parser, "tables", arguments)


def run_all(tables: dict[str, Array], file: ResultsFile, given: argparse.Namespace) -> None:
    """Run what is not finished, a result a line."""
    if given.quick:
        tables = {name: rows[:100] for name, rows in list(tables.items())[:1]}
        given.contenders, given.splits = ["normal", "MAF"], 1
    done = file.done("table", "split", "name")
    end = time.perf_counter() + 60 * given.minutes
    # Split by split, so that what is there at any time is of all tables.
    for seed in range(given.splits):
        for table, rows in sorted(tables.items(), key=lambda each: each[1].size):
            split = cut(rows, seed, given.rows)
            for name in given.contenders:
                if (table, seed, name) in done or time.perf_counter() > end:
                    continue
                file.add(_run(table, name, split, seed, given.limit))


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    file = ResultsFile(given.runs)
    run_all(load_tables(given.tables), file, given)
    lines = file.lines
    if not lines:
        print("benchmarks.tables: no data, nothing written", flush=True)
        return
    results = by_table(lines)
    sizes = {line["table"]: (line["rows"], line["features"]) for line in lines}
    most = max(len(splits) for of_table in results.values() for splits in of_table.values())
    missing = [table for table in load_tables() if table not in results]
    runs = f"{len(results)} tables of {SMALLEST} columns or more, up to {most} splits each."
    if missing:
        runs += f" **Not run yet:** {', '.join(missing)}."
    text = TEXT.format(runs=runs, estimate=about_estimate(lines))
    sections: list[str | None] = [text, summary(results)]
    sections += [differences_section(results)]
    sections += [estimates_section(results), scores_section(results, sizes), seconds_section(lines)]
    sections += [ablations_section(Path(__file__).with_name("tables_ablations.md"))]
    write_page("tables", "Continuous tables", [s for s in sections if s], settings)


if __name__ == "__main__":
    main()
