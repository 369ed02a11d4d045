"""sbi's posteriors as they are, accelerated, and of this library's builders.

Samples of a posterior, steps of training, and how well posteriors of three simulators are found.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import made_flows as mf
from benchmarks._simulators import TASKS, Task
from benchmarks.harness import (
    Contender,
    Settings,
    Timing,
    markdown_table,
    milliseconds,
    parse_settings,
    ratio,
    run_contenders,
    write_page,
)

OURS = {"maf": "maf", "maf_rqs": "spline", "made": "made", "zuko_maf": None, "zuko_nsf": None}
"""sbi's builders, and which of this library's has the same model."""

SAMPLING_TEXT = """\
Milliseconds for {samples} samples under one observation, without gradients; networks are sbi's
defaults: five transforms, 50 hidden units. "times": of the plain one, median and quartiles."""
TRAINING_TEXT = """\
Milliseconds of one step of Adam on 200 rows, {features} parameters. Acceleration leaves training as
it is, but for the layer's class."""
QUALITY_TEXT = """\
`NPE` with {simulations} simulations and at most {epochs} epochs, sbi's defaults otherwise. C2ST is
the accuracy with which a classifier tells {samples} samples from as many of the true posterior,
averaged over {observations} observations: 0.5 is the best, 1 the worst. "outside": the share of raw
samples outside the prior, which sbi rejects."""


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
    return markdown_table(["D, builder", "sbi", "accelerated", "times", "ours", "times"], rows)


def sampling(features: int, samples: int) -> list[Contender]:
    x = torch.ones(1, features)

    def contender(name: str, estimator: Any) -> Contender:
        return Contender(name, torch.no_grad()(lambda: estimator.sample((samples,), x)))

    return [contender(name, each) for name, each in estimators(features).items()]


def training(features: int) -> list[Contender]:
    theta, x = torch.randn(200, features), torch.randn(200, features)

    def contender(name: str, estimator: Any) -> Contender:
        optimizer = torch.optim.Adam(estimator.train().parameters(), lr=1e-6)

        def step() -> None:
            optimizer.zero_grad()
            estimator.loss(theta, x).mean().backward()
            optimizer.step()

        return Contender(name, step)

    return [contender(name, each) for name, each in estimators(features).items()]


def quality(
    task: Task, name: str, simulations: int, epochs: int, observations: int, samples: int
) -> list[str]:
    """Train one posterior; C2ST, the share outside, and the seconds of training and sampling."""
    from sbi.inference import NPE
    from sbi.utils.metrics import c2st

    torch.manual_seed(0)
    theta = task.prior.sample((simulations,))
    x = task.simulate(theta)
    start = time.perf_counter()
    trainer = NPE(
        task.prior, density_estimator=posterior_nn(name, task.prior), show_progress_bars=False
    )
    estimator = trainer.append_simulations(theta, x).train(max_num_epochs=epochs)
    trained, accuracy, outside = time.perf_counter() - start, 0.0, 0.0
    posterior = trainer.build_posterior()
    torch.manual_seed(1)
    for _ in range(observations):
        observed = task.simulate(task.prior.sample((1,)))
        truth = task.reference(observed[0], samples)
        drawn = posterior.sample((samples,), x=observed, show_progress_bars=False)
        raw = estimator.sample((samples,), observed)[:, 0]
        accuracy += float(c2st(truth, drawn)) / observations
        outside += float((~task.prior.support.check(raw)).float().mean()) / observations
    return [f"{accuracy:.3f}", f"{outside:.2%}", f"{trained:.0f}"]


def measure(settings: Settings) -> list[str]:
    """The sections of the page."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sizes, samples = ((3,), 50) if settings.quick else ((5, 10, 20), 10_000)
    drawn = {
        str(size): run_contenders(sampling(size, samples), settings, f"sampling, {size}")
        for size in sizes
    }
    size = sizes[len(sizes) // 2]
    trained = {str(size): run_contenders(training(size), settings, "training")}
    numbers = dict(zip(
        ("simulations", "epochs", "observations", "samples"),
        (300, 2, 1, 100) if settings.quick else (10_000, 100, 5, 1000), strict=True,
    ))  # fmt: skip
    names = ["nsf", "maf", "zuko_nsf", "ours, maf", "ours, spline"]
    rows = []
    for task in ["two moons"] if settings.quick else TASKS:
        for name in names:
            rows.append([f"{task}, {name}", *quality(TASKS[task], name, **numbers)])
            print(*rows[-1], flush=True)
    return [
        "## Sampling", SAMPLING_TEXT.format(samples=samples), times(drawn),
        "## Training", TRAINING_TEXT.format(features=size), times(trained),
        "## Posteriors", QUALITY_TEXT.format(**numbers),
        markdown_table(["task, builder", "C2ST", "outside", "seconds of training"], rows),
    ]  # fmt: skip


def main() -> None:
    settings = parse_settings(__doc__)
    write_page("clients", "sbi's posteriors", measure(settings), settings)


if __name__ == "__main__":
    main()
