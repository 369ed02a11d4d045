"""sbi's posteriors as they are, accelerated, and of this library's builders.

Samples of a posterior, steps of training, and how well posteriors of three simulators are found:

    python -m benchmarks.clients [--parts posteriors] [--runs FOLDER]

Everything that is finished is kept in the folder, and the page is written anew after every case.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import made_flows as mf
from benchmarks._simulators import TASKS
from benchmarks.harness import (
    Contender,
    Settings,
    Timing,
    markdown_table,
    milliseconds,
    parse_resumable,
    ratio,
    run_contenders,
    write_page,
)
from benchmarks.posteriors import Found

OURS = {"maf": "maf", "maf_rqs": "spline", "made": "made", "zuko_maf": None, "zuko_nsf": None}
"""sbi's builders, and which of this library's has such a model (of deeper networks)."""
TRAINED = ("nsf", "maf", "zuko_nsf", "ours, maf", "ours, spline", "ours, estimate")

SAMPLING_TEXT = """\
Milliseconds for {samples} samples under one observation, without gradients; networks are sbi's
defaults: five transforms, 50 hidden units. "times less": than the plain one,
median and quartiles."""
TRAINING_TEXT = """\
Milliseconds of one step of Adam on rows of {features} parameters. Acceleration leaves training as
it is, but for the layer's class."""
POSTERIORS_TEXT = """\
`NPE` with {simulations} simulations, sbi's defaults and one thread; "ours, estimate" is
`made_flows.sbi.estimate`, for {limit:.0f} seconds at most. Seeds {seeds}, as far as they were run.
**C2ST** is the accuracy with which a classifier tells {samples} samples from as many of the true
posterior, averaged over {observations} observations, the same for all: 0.5 is the best, 1 the
worst. **held out** is the mean log-density of the parameters of 4000 further simulations, in nats;
**outside** the share of raw samples outside the prior, which sbi rejects; **seconds** those of
training, beside other work on the other core."""


def posterior_nn(name: str, prior: Any = None) -> Callable[..., Any]:
    """A builder of sbi's by its name, or of ours by "ours, " and its name."""
    from sbi.neural_nets import posterior_nn as theirs

    import made_flows.sbi as ms

    if name.startswith("ours"):
        builder: Callable[..., Any] = getattr(ms, name.split(", ")[1])(support=prior)
        return builder
    made: Callable[..., Any] = theirs(name)
    return made


def estimators(features: int) -> dict[str, Any]:
    """Every builder's estimator: plain, accelerated, and ours."""
    torch.manual_seed(0)
    theta = torch.randn(500, features)
    x = theta + torch.randn(500, features)
    found = {}
    for name, ours in OURS.items():
        found[name] = posterior_nn(name)(theta, x).eval()
        found[f"{name}, accelerated"] = mf.accelerate(copy.deepcopy(found[name]))
        if ours:
            found[f"{name}, ours"] = posterior_nn(f"ours, {ours}")(theta, x).eval()
    return found


def times(cases: dict[str, dict[str, Timing]]) -> str:
    rows = []
    for case, timings in cases.items():
        for name in OURS:
            plain, cells = timings[name], [f"{case}, {name}", milliseconds(timings[name].median)]
            for way in ("accelerated", "ours"):
                timing = timings.get(f"{name}, {way}")
                cells += ["-", "-"] if timing is None else [
                    milliseconds(timing.median), str(ratio(plain, timing))]  # fmt: skip
            rows.append(cells)
    return markdown_table(
        ["case, builder", "sbi", "accelerated", "times less", "ours", "times less, ours"], rows
    )


def sampling(features: int, samples: int) -> list[Contender]:
    x = torch.ones(1, features)

    def contender(name: str, estimator: Any) -> Contender:
        return Contender(name, torch.no_grad()(lambda: estimator.sample((samples,), x)))

    return [contender(name, each) for name, each in estimators(features).items()]


def training(features: int, rows: int) -> list[Contender]:
    theta, x = torch.randn(rows, features), torch.randn(rows, features)

    def contender(name: str, estimator: Any) -> Contender:
        optimizer = torch.optim.Adam(estimator.train().parameters(), lr=1e-6)

        def step() -> None:
            optimizer.zero_grad()
            estimator.loss(theta, x).mean().backward()
            optimizer.step()

        return Contender(name, step)

    return [contender(name, each) for name, each in estimators(features).items()]


# ---------------------------------------------------------------------- posteriors


@functools.cache
def references(name: str, observations: int, samples: int) -> list[tuple[Tensor, Tensor]]:
    """Observations of a simulator, and samples of their true posteriors."""
    task = TASKS[name]
    torch.manual_seed(1)
    observed = task.simulate(task.prior.sample((observations,)))
    return [(x[None], task.reference(x, samples)) for x in observed]


def quality(
    name: str,
    builder: str,
    seed: int,
    simulations: int,
    epochs: int | None,
    limit: float,
    observations: int,
    samples: int,
) -> dict[str, float]:
    """Train one posterior, and hold it against the true one."""
    from sbi.utils.metrics import c2st

    task, found = TASKS[name], references(name, observations, samples)
    torch.manual_seed(100 + seed)
    (theta, x), (other, of_other) = (
        (theta, task.simulate(theta))
        for theta in (task.prior.sample((simulations,)), task.prior.sample((4000,)))
    )
    torch.manual_seed(seed)
    started = time.perf_counter()
    estimator, posterior = trained(builder, task.prior, theta, x, epochs, limit)
    seconds = time.perf_counter() - started
    drawn = [posterior.sample((samples,), x=x, show_progress_bars=False) for x, _ in found]
    with torch.no_grad():
        raw = estimator.sample((samples,), torch.cat([x for x, _ in found]))
        held_out = float(estimator.log_prob(other[None], of_other).mean())
    accuracy = [float(c2st(truth, mine)) for (_, truth), mine in zip(found, drawn, strict=True)]
    return {
        "c2st": sum(accuracy) / len(accuracy),
        "held_out": held_out,
        "outside": float((~task.prior.support.check(raw)).float().mean()),
        "seconds": seconds,
    }


def trained(
    builder: str, prior: Any, theta: Tensor, x: Tensor, epochs: int | None, limit: float
) -> tuple[Any, Any]:
    """Train an estimator, by sbi's own loop where there is a choice of a network."""
    from sbi.inference import NPE
    from sbi.inference.posteriors import DirectPosterior

    import made_flows.sbi as ms

    if builder == "ours, estimate":
        estimator = ms.estimate(theta, x, support=prior, max_seconds=limit, progress=False)
        return estimator, DirectPosterior(estimator, prior)
    trainer = NPE(prior, density_estimator=posterior_nn(builder, prior), show_progress_bars=False)
    trainer.append_simulations(theta, x)
    longest = {} if epochs is None else {"max_num_epochs": epochs}
    return trainer.train(**longest), trainer.build_posterior()


def quality_table(results: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    rows = []
    for (task, builder), runs in results.items():
        mean = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
        cells = [f"{mean['c2st']:.3f}", f"{mean['held_out']:.3f}", f"{mean['outside']:.2%}"]
        rows.append([f"{task}, {builder}", *cells, f"{mean['seconds']:.0f}", str(len(runs))])
    header = ["task, builder", "C2ST", "held out", "outside", "seconds", "seeds"]
    return markdown_table(header, rows)


# ---------------------------------------------------------------------- the page


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ["sampling", "training", "posteriors"]
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts, help="to be computed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of posteriors")
    return parse_resumable(parser, "clients", arguments, seconds=3.0)


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    quick = settings.quick
    sizes, samples = ((3,), 50) if quick else ((5, 10, 20), 5000)
    batches, middle = ((20,), 3) if quick else ((50, 200), 10)
    numbers = dict(zip(
        ("simulations", "epochs", "limit", "observations", "samples"),
        (300, 2, 2.0, 1, 100) if quick else (2000, None, 180.0, 5, 500), strict=True,
    ))  # fmt: skip
    drawn: dict[str, dict[str, Timing]] = {}
    trained: dict[str, dict[str, Timing]] = {}
    posteriors: dict[tuple[str, str], list[dict[str, float]]] = {}

    def write() -> None:
        complete = bool(posteriors) and (len(drawn), len(trained)) == (len(sizes), len(batches))
        seeds = ", ".join(map(str, given.seeds))
        parts = [
            (drawn, "Sampling", SAMPLING_TEXT.format(samples=samples), times(drawn)),
            (trained, "Training", TRAINING_TEXT.format(features=middle), times(trained)),
            (posteriors, "Posteriors", POSTERIORS_TEXT.format(seeds=seeds, **numbers),
             quality_table(posteriors)),
        ]  # fmt: skip
        sections = [
            line for known, title, *text in parts if known for line in (f"## {title}", *text)
        ]
        write_page("clients", "sbi's posteriors", sections, settings, finished=complete)

    def timed(title: str, make: Callable[[], list[Contender]], part: str) -> dict[str, Timing]:
        def compute() -> list[dict[str, Any]]:
            return [asdict(each) for each in run_contenders(make(), settings, title).values()]

        found = Found(given.runs, part not in given.parts)(title, compute)
        return {each["name"]: Timing(**each) for each in found or []}

    found = Found(given.runs, "posteriors" not in given.parts)
    for task in ["two moons"] if quick else TASKS:
        for builder in TRAINED[-1:] if quick else TRAINED:
            for seed in given.seeds:
                name, compute = f"{task}--{builder}--{seed}", functools.partial(quality, task)
                result = found(name, functools.partial(compute, builder, seed, **numbers))
                if result is not None:
                    posteriors.setdefault((task, builder), []).append(result)
                    print(name, result, flush=True)
    for size in sizes:
        case = timed(f"sampling D {size}", functools.partial(sampling, size, samples), "sampling")
        drawn |= {f"D = {size}": case} if case else {}
        write()
    for rows in batches:
        case = timed(f"training {rows} rows", functools.partial(training, middle, rows), "training")
        trained |= {f"{rows} rows": case} if case else {}
        write()


if __name__ == "__main__":
    main()
