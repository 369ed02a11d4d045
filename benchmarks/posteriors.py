"""Variational posteriors: AutoIAF's default beside Pyro's guides, at equal steps.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.posteriors

It can be interrupted and repeated: every guide that was trained on a posterior is kept in a file of
its own, and the page is written from all of them; with ``--write`` it is only written, from what is
there. Two posteriors need no data.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions.transforms as transforms
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormalizingFlow
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks._posterior_models import Posterior, posteriors
from benchmarks.harness import (
    Contender,
    Settings,
    markdown_table,
    milliseconds,
    parse_resumable,
    ratio,
    run_contenders,
    write_page,
)
from made_flows.diagnostics.pareto import pareto_smooth
from made_flows.pyro import AutoIAF

RATE, DECAY = 5e-3, 0.1 ** (1 / 3000)
PARTICLES, EVALUATED = 16, 5000
NESTING = 1  # of plates, in all models
OURS, SAME_SHAPE = "AutoIAF", "AutoIAFNormal, 3 of [64, 64]"

TEXT = f"""Every guide is trained from seed 0 by {{steps}} steps of Adam, whose rate of {RATE:g}
decays tenfold over 3000 steps, with {PARTICLES} particles a step. **ELBO** (higher is better, with
its standard error) and **k-hat** (below 0.7: importance weights can be relied on) are of
{EVALUATED} samples of the trained guide. The largest possible ELBO, the logarithm of the evidence,
is estimated by the weighted samples of the guide with the highest one. **Means** and **sds** are
how far those of the guide's samples are from those of the reference draws, in standard deviations
of the posterior: root mean square over all quantities (noise of the samples: about 0.015).
Reference draws are posteriordb's, and exact ones for the funnel (whose tails are so heavy that sds
of samples hardly say anything).

**ms/step** is one step of training, forward and backward, with Pyro's optimiser, in time of the
processor: the median over turns that the guides take one after the other; **ratio** is the median,
within these turns, of the time over that of {SAME_SHAPE}. AutoIAF is
`made_flows.pyro.AutoIAF(model)`, without further arguments; the other guides are Pyro's."""

SEEDS = (1, 2, 3, 4)
SEEDED = ("eight schools, centred", "funnel")
SEEDED_GUIDES = (OURS, SAME_SHAPE, "AutoNormalizingFlow, 3 affine")
SEEDS_TEXT = "How much of a lead is chance: the same training from other seeds."
TURNS, TURN = 60, 6
"""Turns in which steps are timed, at most, and how many in each."""


def _flow(repeats: int, transform: Callable[..., Any]) -> Callable[[Any], Any]:
    made = partial(transforms.iterated, repeats, transform)
    return lambda model: AutoNormalizingFlow(model, made)


GUIDES: dict[str, Callable[[Any], Any]] = {
    OURS: AutoIAF,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
    SAME_SHAPE: lambda m: AutoIAFNormal(m, hidden_dim=[64, 64], num_transforms=3),
    "AutoNormalizingFlow, 3 affine": _flow(3, transforms.affine_autoregressive),
    "AutoNormalizingFlow, 1 spline": _flow(1, transforms.spline_autoregressive),
    "AutoNormalizingFlow, 1 block": _flow(1, transforms.block_autoregressive),
}


@dataclass
class Result:
    """What training a guide came to; with a reason where it came to nothing."""

    failed: str = ""
    elbo: float = math.nan
    error: float = math.nan
    k_hat: float = math.nan
    log_evidence: float = math.nan
    means: float | None = None
    sds: float | None = None


# ---------------------------------------------------------------------- training


class Training:
    """A guide and its optimiser, with parameters of their own."""

    def __init__(self, posterior: Posterior, guide: str, seed: int = 0) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.model = posterior.model
        self.guide = GUIDES[guide](posterior.model)
        # Clipped at infinity, it is Adam with a rate that decays.
        optimizer = pyro.optim.ClippedAdam({"lr": RATE, "lrd": DECAY, "clip_norm": math.inf})
        elbo = Trace_ELBO(PARTICLES, max_plate_nesting=NESTING, vectorize_particles=True)
        self._svi = SVI(self.model, self.guide, optimizer, elbo)
        self._store: Any = {"params": {}, "constraints": {}}

    def step(self, steps: int = 1) -> None:
        """Take one step of training, or several."""
        for _ in range(steps):
            with pyro.get_param_store().scope(self._store) as self._store:
                self._svi.step()

    def sample(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-weights (count,) of samples of the guide, and the samples by site."""
        with torch.no_grad(), pyro.get_param_store().scope(self._store):
            weights, _, trace = vectorized_importance_weights(
                self.model, self.guide, num_samples=count, max_plate_nesting=NESTING
            )
        sites = {
            name: site["value"]
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["infer"].get("is_auxiliary")
        }
        return weights.double(), sites


def train(posterior: Posterior, guide: str, steps: int, evaluated: int, seed: int = 0) -> Result:
    """Train a guide and look at what came of it."""
    try:
        training = Training(posterior, guide, seed)
        for _ in tqdm(range(steps), desc=f"{posterior.name}, {guide}", unit="step"):
            training.step()
        log_weights, sites = training.sample(evaluated)
        smoothed = pareto_smooth(log_weights)
    except (RuntimeError, ValueError) as error:  # what a guide that diverged ends in
        return Result(failed=str(error).strip().splitlines()[0][:100] or "diverged")
    result = Result(
        elbo=float(log_weights.mean()),
        error=float(log_weights.std()) / math.sqrt(evaluated),
        k_hat=smoothed.k_hat,
        log_evidence=smoothed.log_evidence,
    )
    if posterior.reference is not None:
        drawn, reference = posterior.quantities(sites), posterior.reference
        sd = reference.std(dim=0)
        result.means = _root_mean_square((drawn.mean(dim=0) - reference.mean(dim=0)) / sd)
        result.sds = _root_mean_square((drawn.std(dim=0) - sd) / sd)
    return result


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def step_times(
    posterior: Posterior, guides: Sequence[str], settings: Settings
) -> dict[str, tuple[float, float]]:
    """Seconds of a step of each guide, and how many times as long as that of the same shape.

    Of the processor's time, in turns of a few steps each: other work of the machine, and changes of
    its speed, are the same for all.
    """
    contenders = [
        Contender(guide, partial(Training(posterior, guide).step, TURN)) for guide in guides
    ]
    few = replace(settings, repetitions=min(settings.repetitions, TURNS))
    timings = run_contenders(contenders, few, f"{posterior.name}, times", time.process_time)
    base = timings.get(SAME_SHAPE)
    return {
        guide: (each.median / TURN, math.nan if base is None else ratio(each, base).middle)
        for guide, each in timings.items()
    }


# ---------------------------------------------------------------------- what was found


class Found:
    """Results in a folder, a file for each."""

    def __init__(self, folder: Path, only_look: bool = False) -> None:
        self._folder = folder
        self._only_look = only_look

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """What was found under a name, or is computed now; None if it may only be looked up."""
        path = self._folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
        if not path.exists():
            if self._only_look:
                return None
            found = compute()
            self._folder.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
            path.with_suffix(".part").replace(path)
        return json.loads(path.read_text(encoding="utf-8"))


def _number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"


def section(
    name: str, results: dict[str, Result], times: dict[str, tuple[float, float]]
) -> tuple[str, list[str]]:
    """The table of one posterior, and its line of the summary."""
    done = {guide: result for guide, result in results.items() if not result.failed}
    peers = {guide: result for guide, result in done.items() if guide != OURS}
    best = max((result.elbo for result in done.values()), default=math.nan)
    rows = []
    for guide, result in results.items():
        seconds, relative = times.get(guide, (math.nan, math.nan))
        elbo = f"{_number(result.elbo, 3)} ± {_number(result.error, 3)}"
        elbo = "diverged" if result.failed else elbo
        rows.append(
            [
                f"**{guide}**" if guide == OURS else guide,
                f"**{elbo}**" if result.elbo == best else elbo,
                _number(result.k_hat, 2),
                _number(result.means, 3),
                _number(result.sds, 3),
                "-" if math.isnan(seconds) else milliseconds(seconds),
                _number(relative, 2),
            ]
        )
    headings = ["guide", "ELBO", "k-hat", "means", "sds", "ms/step", "ratio"]
    sure = max(done.values(), key=lambda result: result.elbo, default=Result())
    evidence = f"Logarithm of the evidence: about {_number(sure.log_evidence, 2)}."
    table = f"## {name}\n\n{evidence}\n\n{markdown_table(headings, rows)}"

    rival = max(peers, key=lambda guide: peers[guide].elbo, default="-")
    ours = done.get(OURS, Result())
    lead = ours.elbo - peers[rival].elbo if rival in peers else math.nan
    line = [name, _number(ours.elbo, 3), rival, _number(peers.get(rival, Result()).elbo, 3)]
    return table, [*line, f"{lead:+.3f}", _number(times.get(OURS, (0, math.nan))[1], 2)]


def over_seeds(name: str, guide: str, results: Sequence[Result]) -> list[str]:
    """A line of the table over seeds; a guide that diverged has the lowest ELBO there is."""
    each = [-math.inf if result.failed else result.elbo for result in results]
    mean = sum(each) / len(each)
    cells = [_number(value, 3) for value in (mean, min(each), max(each))]
    return [name, f"**{guide}**" if guide == OURS else guide, *cells, str(len(each))]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posteriors", nargs="+", help="by name; default: all whose data is there")
    parser.add_argument("--guides", nargs="+", choices=GUIDES, default=list(GUIDES))
    parser.add_argument("--steps", type=int, help="of training; default 1500")
    parser.add_argument("--write", action="store_true", help="only write the page")
    given, settings = parse_resumable(parser, "posteriors", arguments, threads=1, seconds=10.0)
    given.steps = given.steps or (10 if given.quick else 1500)
    return given, settings


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    chosen = posteriors()
    if given.posteriors is not None:
        chosen = [posterior for posterior in chosen if posterior.name in given.posteriors]
    elif given.quick:
        chosen = chosen[:2]
    if not chosen:
        raise SystemExit(f"Expected posteriors of {[p.name for p in posteriors()]}")
    found, evaluated = Found(given.runs, given.write), 200 if given.quick else EVALUATED
    tables: list[str] = []
    lines: list[list[str]] = []
    seeds: list[list[str]] = []
    for posterior in chosen:
        results = {}
        for guide in given.guides:
            result = found(
                f"{posterior.name}--{guide}",
                lambda: asdict(train(posterior, guide, given.steps, evaluated)),  # noqa: B023
            )
            if result is not None:
                results[guide] = Result(**result)
        for guide in results:
            again = [
                found(
                    f"{posterior.name}--{guide}--seed-{seed}",
                    lambda: asdict(train(posterior, guide, given.steps, evaluated, seed)),  # noqa: B023
                )
                for seed in ((1,) if given.quick else SEEDS)
                if guide == OURS or (posterior.name in SEEDED and guide in SEEDED_GUIDES)
            ]
            several = [results[guide], *(Result(**result) for result in again if result)]
            if len(several) > 1:
                seeds.append(over_seeds(posterior.name, guide, several))
        able = [guide for guide in results if not results[guide].failed]
        times = found(
            f"{posterior.name}--times",
            lambda: step_times(posterior, able, settings),  # noqa: B023
        )
        table, line = section(posterior.name, results, times or {})
        tables.append(table)
        lines.append(line)
    headings = ["posterior", "AutoIAF", "best of Pyro's", "its ELBO", "ahead by", "ratio"]
    summary = markdown_table(headings, lines)
    page = [TEXT.format(steps=given.steps), summary]
    if seeds:
        headings = ["posterior", "guide", "mean ELBO", "lowest", "highest", "seeds"]
        page += ["## Over seeds", SEEDS_TEXT, markdown_table(headings, seeds)]
    write_page("posteriors", "Variational posteriors", [*page, *tables], settings)


if __name__ == "__main__":
    main()
