"""Fitting guides from start to verdict: what fit_guide comes to on ten posteriors, and if it knows.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.fit_guide [--budget best]

It can be interrupted and repeated: every fit is kept in a file of its own. Two posteriors need no
data.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyro
import torch
from torch import Tensor

from benchmarks._posterior_models import Posterior, posteriors
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page
from benchmarks.posteriors import Found
from made_flows.pyro import AutoIAF, fit_guide

TEXT = """`fit_guide(AutoIAF(model), budget="{budget}")`, without further arguments, from seeds
{seeds}, as far as they were run. **gap** is the logarithm of the evidence less the ELBO, both of
8000 samples of the fitted guide (the evidence by smoothed weights). **means** and **sds** are how
far those of the guide's draws, as they are and weighted, are from those of the reference draws, in
standard deviations of the posterior: the largest over all quantities, which noise of the draws
alone makes about 0.03.
**bound** is what the diagnosis says of the error of unweighted means; **probe** how far short
chains from the weighted draws moved a mean, in standard deviations, and the share of them that
ended beyond all draws. Reference draws are posteriordb's, and exact ones for the funnel (whose
tails are so heavy that means and sds of samples hardly say anything). **seconds** are wall
time, on a machine that may have had other work.

The verdict is wrong where draws graded *as drawn* have a mean more than half a standard deviation
off, or weighted ones graded *weighted*. The rule that even weights (draws
worth 95 %) need no k-hat below its threshold was made after garch's fit, by argument: what it
says of garch is no test of it. So were the step size and the rule to stop early, on the Gaussian
process, the funnel, eight schools and diamonds."""

OFF = 0.5


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
    grade: str = ""
    seconds: float = math.nan
    steps: int = 0
    means: float | None = None
    sds: float | None = None
    weighted_means: float | None = None
    weighted_sds: float | None = None

    @property
    def wrong(self) -> bool:
        """Whether the verdict trusted what is off."""
        off = {"as drawn": self.means, "weighted": self.weighted_means}.get(self.grade)
        return off is not None and off > OFF


def run(posterior: Posterior, budget: str, seed: int) -> Result:
    """Fit a guide and hold it against the reference."""
    pyro.clear_param_store()
    try:
        fit = fit_guide(AutoIAF(posterior.model), budget=budget, seed=seed)  # type: ignore[arg-type]
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
        grade=found.grade,
        seconds=fit.seconds,
        steps=len(fit.elbo),
    )
    if posterior.reference is not None:
        drawn = posterior.quantities(found.samples)
        even = torch.ones(len(drawn)) / len(drawn)
        result.means, result.sds = _off(drawn, even, posterior.reference)
        result.weighted_means, result.weighted_sds = _off(drawn, found.weights, posterior.reference)
    return result


def _off(drawn: Tensor, weights: Tensor, reference: Tensor) -> tuple[float, float]:
    """Largest errors of weighted means and standard deviations, in those of the reference."""
    drawn, weights = drawn.double(), weights.double().to(drawn.device)
    mean, deviation = reference.double().mean(dim=0), reference.double().std(dim=0)
    found = weights @ drawn
    spread = (weights @ (drawn - found).square()).sqrt()
    means, sds = (found - mean) / deviation, spread / deviation - 1
    return float(means.abs().max()), float(sds.abs().max())


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def row(name: str, seed: int, result: Result) -> list[str]:
    """A line of the table."""
    if result.failed:
        return [name, str(seed), f"failed: {result.failed}", *["-"] * 9]
    return [
        name,
        str(seed),
        f"{result.grade}{' (wrong)' if result.wrong else ''}",
        _number(result.k_hat),
        _number(result.bound),
        f"{_number(result.moved)} / {_number(result.beyond)}",
        _number(result.log_evidence - result.elbo, 3),
        f"{_number(result.means)} / {_number(result.weighted_means)}",
        f"{_number(result.sds)} / {_number(result.weighted_sds)}",
        _number(result.elbo, 3),
        str(result.steps),
        _number(result.seconds, 0),
    ]


HEADINGS = [
    "posterior", "seed", "verdict", "k-hat", "bound", "probe", "gap", "means, as drawn / weighted",
    "sds, as drawn / weighted", "ELBO", "steps", "seconds",
]  # fmt: skip


def summary(results: Mapping[tuple[str, int], Result]) -> str:
    """How often verdicts were right."""
    grades = ("as drawn", "weighted", "not yet", "no")
    rows = []
    for grade in grades:
        graded = [result for result in results.values() if result.grade == grade]
        known = [result for result in graded if result.means is not None]
        close = sum(1 for result in known if result.means is not None and result.means <= OFF)
        wrong = sum(result.wrong for result in known)
        trusted = grade in ("as drawn", "weighted")
        rows.append(
            [grade, str(len(graded)), str(len(known)), str(close), str(wrong) if trusted else "-"]
        )
    headings = ["verdict", "fits", "with a reference", "means as drawn within 0.5 sd", "wrong"]
    return markdown_table(headings, rows)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posteriors", nargs="+", help="by name; default: all whose data is there")
    parser.add_argument("--budget", choices=("fast", "good", "best"), help="default: good")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1")
    parser.add_argument("--write", action="store_true", help="only write the page")
    given, settings = parse_resumable(parser, "fit_guide", arguments, threads=1)
    given.budget = given.budget or ("fast" if given.quick else "good")
    given.seeds = given.seeds or ([0] if given.quick else [0, 1])
    return given, settings


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    chosen = posteriors()
    if given.posteriors is not None:
        chosen = [posterior for posterior in chosen if posterior.name in given.posteriors]
    elif given.quick:
        chosen = chosen[:1]
    if not chosen:
        raise SystemExit(f"Expected posteriors of {[p.name for p in posteriors()]}")
    found = Found(given.runs, given.write)
    results: dict[tuple[str, int], Result] = {}
    for seed in given.seeds:
        for posterior in chosen:
            result = found(
                f"{posterior.name}--{given.budget}--{seed}",
                lambda: asdict(run(posterior, given.budget, seed)),  # noqa: B023
            )
            if result is not None:
                results[posterior.name, seed] = Result(**result)
    rows = [row(name, seed, results[name, seed]) for name, seed in sorted(results)]
    text = TEXT.format(budget=given.budget, seeds=", ".join(map(str, given.seeds)))
    page = [text, summary(results), "## Every fit", markdown_table(HEADINGS, rows)]
    write_page("fit_guide", "Fitting guides, and their verdicts", page, settings)


if __name__ == "__main__":
    main()
