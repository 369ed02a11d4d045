"""Fitting guides from start to verdict: what fit_guide comes to, and whether it knows.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.fit_guide [--budget best]

On ten posteriors, of which two need no data, and on those that no setting was chosen by. It can be
interrupted and repeated: every fit and every reference is kept in a file of its own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from benchmarks._posterior_models import Posterior, posteriors
from benchmarks._reference import Reference, reference
from benchmarks._untuned_models import Untuned, untuned
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page
from benchmarks.posteriors import Found
from made_flows.pyro import AutoIAF, fit_guide

TEXT = """`fit_guide(AutoIAF(model), *data, budget=...)`, without further arguments but for `modes`
where they are named, from seeds {seeds}, as far as they were run. **gap** is the logarithm of the
evidence less the ELBO, both of 8000 samples of the fitted guide (the evidence by smoothed weights).
**means** and **sds** are how far those of the guide's draws, as they are and weighted, are from
those of the reference draws, in standard deviations of the posterior: the largest over all
quantities, which noise of the draws alone makes about 0.03. **bound** is what the diagnosis says of
the error of unweighted means; **moved** how far weights move a mean, in standard deviations, and a
standard deviation, in its own size, at most; **probe** how far short chains from the weighted draws
moved a mean, in standard deviations, and the share of them that ended beyond all draws; **unseen**
the share of the posterior in a mode that climbs found and no draw fell into.
**seconds** are wall time, on a machine that may have had other work.

The verdict is wrong where draws graded *as drawn* have a mean more than half a standard deviation
off, or weighted ones graded *weighted*. Standard deviations are counted where they are more than
10 % and 20 % off, of the draws as they are graded, and not said where the diagnosis names no
variable whose standard deviation so many draws cannot show."""

UNTUNED = """None of the settings of `fit_guide` and `diagnose` was chosen by these: regressions of
data in natural units with flat priors, hierarchies, series and shapes, simulated or written down
for this page (`benchmarks/_untuned_models.py`), at `budget="fast"`. Where the verdict is no trust,
the same seed is fitted again as a user would: with `modes=2` where the diagnosis speaks of an
unseen mode, else at `budget="good"`. References are exact draws, or of 64 chains in float64, of
Hamiltonian Monte Carlo (200 draws each) or by Gibbs sampling (2000), in another form of the model
where it mixes better; their largest R-hat and smallest effective sample size are given. Scales with
heavy tails are compared by their logarithms."""

TUNED = """Reference draws are posteriordb's, and exact ones for the funnel (whose tails are so
heavy that means and sds of samples hardly say anything). The rule that even weights (draws worth
95 %) need no k-hat below its threshold was made after garch's fit, by argument: what it says of
garch is no test of it. So were the step size and the rule to stop early, on the Gaussian process,
the funnel, eight schools and diamonds."""

OFF, OFF_SDS = 0.5, 0.1


@dataclass
class Result:
    """What a fit came to; with a reason where it came to nothing."""

    failed: str = ""
    start: str = ""
    start_elbo: float = math.nan
    elbo: float = math.nan
    log_evidence: float = math.nan
    k_hat: float = math.nan
    effective: float = math.nan
    bound: float = math.nan
    moved: float = math.nan
    beyond: float = math.nan
    unseen: float = math.nan
    grade: str = ""
    seconds: float = math.nan
    steps: int = 0
    means: float | None = None
    sds: float | None = None
    weighted_means: float | None = None
    weighted_sds: float | None = None
    moved_means: float = math.nan
    moved_sds: float = math.nan
    without_sd: str = ""

    @property
    def used_sds(self) -> float | None:
        """The error of the standard deviations that a user of the verdict takes."""
        return self.weighted_sds if self.grade == "weighted" else self.sds

    @property
    def wrong(self) -> bool:
        """Whether the verdict trusted what is off."""
        off = {"as drawn": self.means, "weighted": self.weighted_means}.get(self.grade)
        return off is not None and off > OFF


def run(
    posterior: Posterior, known: Reference | None, budget: str, seed: int, modes: int = 1
) -> Result:
    """Fit a guide and hold it against the reference."""
    pyro.clear_param_store()
    args = posterior.args if isinstance(posterior, Untuned) else ()
    options: Any = {"budget": budget, "seed": seed, "modes": modes}
    try:
        fit = fit_guide(AutoIAF(posterior.model), *args, **options)
    except (RuntimeError, ValueError) as error:
        return Result(failed=str(error).strip().splitlines()[0][:100] or "diverged")
    found = fit.diagnosis
    result = Result(
        start=fit.start,
        start_elbo=fit.start_elbo,
        elbo=found.elbo,
        log_evidence=found.log_evidence,
        k_hat=found.k_hat,
        effective=found.effective_sample_size,
        bound=found.bias_bound,
        moved=math.nan if found.probe is None else found.probe.moved,
        beyond=math.nan if found.probe is None else found.probe.beyond,
        unseen=math.nan if found.unseen is None else found.unseen,
        grade=found.grade,
        seconds=fit.seconds,
        steps=len(fit.elbo),
        moved_means=found.moved.means,
        moved_sds=found.moved.deviations,
        without_sd=", ".join(found.without_deviation),
    )
    if known is not None:
        drawn = posterior.quantities(dict(found.samples))
        even = torch.ones(len(drawn)) / len(drawn)
        result.means, result.sds = _off(drawn, even, known)
        result.weighted_means, result.weighted_sds = _off(drawn, found.weights, known)
    return result


def _off(drawn: Tensor, weights: Tensor, known: Reference) -> tuple[float, float]:
    """Largest errors of weighted means and standard deviations, in those of the reference."""
    drawn, weights = drawn.double(), weights.double().to(drawn.device)
    mean, deviation = (torch.tensor(v, dtype=torch.float64) for v in (known.mean, known.sd))
    found = weights @ drawn
    spread = (weights @ (drawn - found).square()).sqrt()
    means, sds = (found - mean) / deviation, spread / deviation - 1
    return float(means.abs().max()), float(sds.abs().max())


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def row(name: str, seed: int, how: str, result: Result) -> list[str]:
    """A line of the table."""
    if result.failed:
        return [name, str(seed), how, f"failed: {result.failed}", *["-"] * 11]
    return [
        name,
        str(seed),
        how,
        f"{result.grade}{' (wrong)' if result.wrong else ''}"
        f"{f', no sd of {result.without_sd}' if result.without_sd else ''}",
        _number(result.k_hat),
        _number(result.bound),
        f"{_number(result.moved_means)} / {_number(result.moved_sds)}",
        f"{_number(result.moved)} / {_number(result.beyond)}",
        "-" if math.isnan(result.unseen) else f"{result.unseen:.0%}",
        _number(result.log_evidence - result.elbo, 3),
        f"{_number(result.means)} / {_number(result.weighted_means)}",
        f"{_number(result.sds)} / {_number(result.weighted_sds)}",
        _number(result.elbo, 3),
        str(result.steps),
        _number(result.seconds, 0),
    ]


HEADINGS = [
    "posterior", "seed", "budget", "verdict", "k-hat", "bound", "moved", "probe", "unseen", "gap",
    "means, as drawn / weighted", "sds, as drawn / weighted", "ELBO", "steps", "seconds",
]  # fmt: skip


def summary(results: Iterable[Result]) -> str:
    """How often verdicts were right."""
    grades, fits = ("as drawn", "weighted", "not yet", "no"), list(results)
    rows = []
    for grade in grades:
        graded = [result for result in fits if result.grade == grade]
        known = [result for result in graded if result.means is not None]
        close = sum(1 for result in known if result.means is not None and result.means <= OFF)
        wrong = sum(result.wrong for result in known)
        trusted = grade in ("as drawn", "weighted")
        apart = [result for result in known if (result.used_sds or 0) > OFF_SDS]
        far = sum((result.used_sds or 0) > 2 * OFF_SDS for result in apart)
        unsaid = sum(not result.without_sd for result in apart)
        counts = [len(graded), len(known), close, *([wrong] if trusted else [])]
        more = [len(apart), far, *([unsaid] if trusted else [])]
        dash = [] if trusted else ["-"]
        rows.append([grade, *map(str, counts), *dash, *map(str, more), *dash])
    headings = [
        "verdict", "fits", "with a reference", "means as drawn within 0.5 sd", "wrong",
        "sds off by 10 %", "by 20 %", "off and not said",
    ]  # fmt: skip
    return markdown_table(headings, rows)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posteriors", nargs="+", help="by name; default: all whose data is there")
    parser.add_argument("--budget", choices=("fast", "good", "best"), help="of the ten; good")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1")
    parser.add_argument("--write", action="store_true", help="only write the page")
    given, settings = parse_resumable(parser, "fit_guide", arguments, threads=1)
    given.budget = given.budget or ("fast" if given.quick else "good")
    given.seeds = given.seeds or ([0] if given.quick else [0, 1])
    return given, settings


class Fits:
    """Fits and references, each made once."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.rows: list[list[str]] = []
        self.results: list[Result] = []

    def known(self, posterior: Posterior) -> Reference | None:
        """The reference of a posterior."""
        if not isinstance(posterior, Untuned):
            draws = posterior.reference
            return None if draws is None else Reference.of(draws)
        found = self._found(f"{posterior.name}--reference", lambda: asdict(reference(posterior)))
        return None if found is None else Reference(**found)

    def __call__(self, posterior: Posterior, budget: str, seed: int, modes: int = 1) -> Result:
        """Fit; a result without a grade if it may only be looked up and was not made."""
        more = f"--{modes}-modes" if modes > 1 else ""
        result = self._found(
            f"{posterior.name}--{budget}--{seed}{more}",
            lambda: asdict(run(posterior, self.known(posterior), budget, seed, modes)),
        )
        if result is None:
            return Result()
        self.results.append(Result(**result))
        how = f"{budget}, modes={modes}" if modes > 1 else budget
        self.rows.append(row(posterior.name, seed, how, self.results[-1]))
        return self.results[-1]

    def as_advised(self, posterior: Untuned, seed: int) -> None:
        """Fit by the small budget, and where that is not to be trusted as the diagnosis says."""
        first = self(posterior, "fast", seed)
        if first.unseen > 0 and posterior.modes > 1:
            self(posterior, "fast", seed, posterior.modes)
        elif first.grade in ("not yet", "no"):
            self(posterior, "good", seed)


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    ten, others = posteriors(), untuned()
    if given.posteriors is not None:
        ten = [posterior for posterior in ten if posterior.name in given.posteriors]
        others = [posterior for posterior in others if posterior.name in given.posteriors]
    elif given.quick:
        ten, others = ten[:1], []
    if not ten and not others:
        names = [posterior.name for posterior in (*posteriors(), *untuned())]
        raise SystemExit(f"Expected posteriors of {names}")
    found = Found(given.runs, given.write)
    tuned, new = Fits(found), Fits(found)
    for seed in given.seeds:
        for posterior in others:
            new.as_advised(posterior, seed)
        for one in ten:
            tuned(one, given.budget, seed)
    headings = ["posterior", "form", "quantities", "largest R-hat", "effective draws"]
    sources = []
    for posterior in others:
        if (known := new.known(posterior)) is not None:
            gibbs = "exact" if known.r_hat == 1 else "Gibbs' chains"
            form = "Hamiltonian chains" if posterior.exact is None else gibbs
            size = f"{known.effective:.0f}"
            sources.append([posterior.name, form, str(len(known.mean)), f"{known.r_hat:.3f}", size])
    text = TEXT.format(seeds=", ".join(map(str, given.seeds)))
    page = [text, summary((*new.results, *tuned.results))]
    page += ["## Posteriors that no setting was chosen by", UNTUNED]
    page += [markdown_table(HEADINGS, sorted(new.rows)), markdown_table(headings, sources)]
    page += ["## Posteriors that some settings were chosen by", TUNED]
    page += [markdown_table(HEADINGS, sorted(tuned.rows))]
    write_page("fit_guide", "Fitting guides, and their verdicts", page, settings)


if __name__ == "__main__":
    main()
