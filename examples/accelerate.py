"""Trained flows of nflows, Pyro and zuko, made fast in place.

Each library's own masked autoregressive flow is trained on a medical table that comes with
scikit-learn (30 measurements of cell nuclei), and sampled before and after ``mf.accelerate``: the
same samples and scores, to rounding, in a fraction of the time. With MADE_FLOWS_QUICK=1 everything
is trained for a moment only, to see that it runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import made_flows as mf

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
OUTPUT = Path("example_output")
STEPS = 10 if QUICK else 400
DRAWN = 100 if QUICK else 5000
LAYERS, WIDTH = 3, 64


class NFlows(nn.Module):
    """nflows' MaskedAutoregressiveFlow."""

    name = "nflows"

    def __init__(self, features: int) -> None:
        super().__init__()
        from nflows.flows import MaskedAutoregressiveFlow

        self.flow = MaskedAutoregressiveFlow(features, WIDTH, LAYERS, num_blocks_per_layer=1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, number: int) -> Tensor:
        return self.flow.sample(number)


class Pyro(nn.Module):
    """Pyro's affine autoregressive transforms, inverted: Pyro's own direction is noise to data."""

    name = "Pyro"

    def __init__(self, features: int) -> None:
        super().__init__()
        import pyro.distributions as dist
        from pyro.distributions.transforms import affine_autoregressive

        layers = [affine_autoregressive(features, [WIDTH, WIDTH]) for _ in range(LAYERS)]
        self.layers = nn.ModuleList(layers)
        base = dist.Normal(torch.zeros(features), torch.ones(features)).to_event(1)
        self.distribution = dist.TransformedDistribution(base, [layer.inv for layer in layers])

    def log_prob(self, x: Tensor) -> Tensor:
        # Pyro keeps results by tensor; after a step of the optimiser they are those of before.
        self.distribution.clear_cache()
        return self.distribution.log_prob(x)

    def sample(self, number: int) -> Tensor:
        self.distribution.clear_cache()
        return self.distribution.sample((number,))


class Zuko(nn.Module):
    """zuko's MAF."""

    name = "zuko"

    def __init__(self, features: int) -> None:
        super().__init__()
        import zuko

        self.flow = zuko.flows.MAF(features, transforms=LAYERS, hidden_features=(WIDTH, WIDTH))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)

    def sample(self, number: int) -> Tensor:
        return self.flow().sample((number,))


@dataclass(frozen=True)
class Result:
    """One library's flow before and after."""

    name: str
    score: float
    difference: float
    before: float
    after: float


def table(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standardised rows to train on, and to test on."""
    rows = torch.from_numpy(load_breast_cancer().data)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    train, test = rows[114:], rows[:114]
    mean, scale = train.mean(dim=0), train.std(dim=0)
    return ((train - mean) / scale).float(), ((test - mean) / scale).float()


def train(model: nn.Module, x: Tensor) -> None:
    """Maximum likelihood, with noise against learning rows by heart."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(STEPS):
        batch = x[torch.randint(len(x), (128,))]
        loss = -model.log_prob(batch + 0.1 * torch.randn_like(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()


def timed(draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Samples of one seed, and the median seconds of drawing them."""
    times = []
    with torch.no_grad():
        torch.manual_seed(1)
        drawn = draw()  # not counted: it may compile
        for _ in range(1 if QUICK else 3):
            start = time.perf_counter()
            draw()
            times.append(time.perf_counter() - start)
    return drawn, median(times)


def results(x: Tensor, test: Tensor) -> Iterator[Result]:
    for kind in (NFlows, Pyro, Zuko):
        torch.manual_seed(0)
        model: Any = kind(x.shape[1])
        train(model, x)
        with torch.no_grad():
            score = model.log_prob(test).mean()
        expected, before = timed(lambda: model.sample(DRAWN))  # noqa: B023
        mf.accelerate(model)
        print(f"{kind.name}: {mf.acceleration(model)}")
        actual, after = timed(lambda: model.sample(DRAWN))  # noqa: B023
        error = (actual - expected).abs() / (1 + expected.abs())
        yield Result(kind.name, float(score), float(error.max()), before, after)


def draw_picture(found: list[Result], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), dpi=110, layout="constrained")
    ax = figure.add_subplot()
    for shift, what, colour in ((-0.2, "before", "#8a8f98"), (0.2, "after", "#1f5a96")):
        heights = [1e3 * getattr(result, what) for result in found]
        places = [place + shift for place in range(len(found))]
        bars = ax.bar(places, heights, width=0.38, color=colour, label=f"{what} mf.accelerate")
        ax.bar_label(bars, fmt="%.0f")
    ax.set_xticks(range(len(found)), [result.name for result in found])
    ax.set(title=f"{DRAWN} samples of 30 features, milliseconds", yscale="log", ylim=(1, None))
    ax.margins(y=0.25)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    found = list(results(*table()))
    print(f"\n{'':8}{'test score':>12}{'difference':>12}{'before':>12}{'after':>12}")
    for result in found:
        print(
            f"{result.name:8}{result.score:12.2f}{result.difference:12.0e}"
            f"{1e3 * result.before:9.1f} ms{1e3 * result.after:9.1f} ms"
            f"{result.before / result.after:8.1f}x"
        )
    print(
        f"(test score: log-density in nats; difference: largest of the samples, relative; times of "
        f"{DRAWN} samples)"
    )
    picture = OUTPUT / "accelerate.png"
    draw_picture(found, picture)
    trained = "trained for a moment only (MADE_FLOWS_QUICK)" if QUICK else "trained and accelerated"
    seconds = time.perf_counter() - start
    print(f"accelerate: three flows {trained} in {seconds:.0f} s. Picture: {picture}")


if __name__ == "__main__":
    main()
