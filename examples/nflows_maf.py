"""nflows' own interface with layers that sample as fast as they score.

Only imports differ from plain nflows. Two moons and a medical table (both come
with scikit-learn) are fitted; the trained weights then go back into plain nflows, which gives the
same scores, and its sampling is timed beside ours. With MADE_FLOWS_QUICK=1 everything is trained
for a moment only, to see that it runs.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import nflows.distributions
import nflows.flows
import nflows.transforms
import torch
from nflows.transforms import CompositeTransform, RandomPermutation
from sklearn.datasets import load_breast_cancer, make_moons
from torch import Tensor

import made_flows.nflows as fast

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
OUTPUT = Path("example_output")
STEPS = 20 if QUICK else 1500
DRAWN = 200 if QUICK else 5000


class Plain:
    """nflows' own classes, under the names that ``made_flows.nflows`` has them by."""

    Flow = nflows.flows.Flow
    StandardNormal = nflows.distributions.StandardNormal
    MaskedAffineAutoregressiveTransform = nflows.transforms.MaskedAffineAutoregressiveTransform
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform = (
        nflows.transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    )


def moons_flow(library: Any) -> Any:
    """Four spline layers."""
    parts: list[Any] = []
    for _ in range(4):
        parts += [
            RandomPermutation(2),
            library.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features=2, hidden_features=64, num_bins=8, tails="linear", tail_bound=4.0
            ),
        ]
    return library.Flow(CompositeTransform(parts), library.StandardNormal([2]))


def cells_flow(library: Any) -> Any:
    """Five affine layers of thirty features."""
    parts: list[Any] = []
    for _ in range(5):
        parts += [
            RandomPermutation(30),
            library.MaskedAffineAutoregressiveTransform(
                features=30,
                hidden_features=64,
                num_blocks=1,
                use_residual_blocks=False,
                activation=torch.tanh,
                dropout_probability=0.2,
            ),
        ]
    return library.Flow(CompositeTransform(parts), library.StandardNormal([30]))


@dataclass
class Run:
    """What a data set showed."""

    name: str
    flow: Any
    losses: list[float]
    test_score: float
    difference: float
    seconds: dict[str, float] = field(default_factory=dict)


def train(flow: Any, x: Tensor) -> list[float]:
    """Maximum likelihood; the loss of every step."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    flow.train()
    for _ in range(STEPS):
        batch = x[torch.randint(len(x), (min(256, len(x)),))]
        loss = -flow.log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    flow.eval()
    return losses


def seconds_of(call: Callable[[], Any], repetitions: int = 5) -> float:
    """The median time of a call, after one that is not counted (it may compile)."""
    times = []
    with torch.no_grad():
        call()
        for _ in range(1 if QUICK else repetitions):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return median(times)


def run(name: str, make: Callable[[Any], Any], x: Tensor, test: Tensor) -> Run:
    """Train with our layers, load the weights into plain nflows, compare the two."""
    torch.manual_seed(0)
    flow = make(fast)
    losses = train(flow, x)
    theirs = make(Plain)
    theirs.load_state_dict(flow.state_dict())
    theirs.eval()
    with torch.no_grad():
        scores, expected = flow.log_prob(test), theirs.log_prob(test)
    difference = float((scores - expected).abs().max())
    result = Run(name, flow, losses, float(scores.mean()), difference)
    result.seconds["plain nflows"] = seconds_of(lambda: theirs.sample(DRAWN), repetitions=3)
    result.seconds["made_flows.nflows"] = seconds_of(lambda: flow.sample(DRAWN))
    return result


def moons(rows: int, seed: int) -> Tensor:
    points, _ = make_moons(rows, noise=0.06, random_state=seed)
    return torch.from_numpy(points).float() * 1.5 - torch.tensor([0.75, 0.375])


def cells() -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(load_breast_cancer().data)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    train_rows, test_rows = rows[114:], rows[:114]
    mean, scale = train_rows.mean(dim=0), train_rows.std(dim=0)
    return ((train_rows - mean) / scale).float(), ((test_rows - mean) / scale).float()


def draw(runs: list[Run], path: Path) -> None:
    """Training, the density of the moons with samples, and sampling times."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.4), dpi=110, layout="constrained")
    curve, density, times = figure.subplots(1, 3)
    width = max(1, STEPS // 40)
    for run_, colour in zip(runs, ("#1f5a96", "#d9741a"), strict=True):
        losses = torch.tensor(run_.losses)
        smooth = losses.unfold(0, width, 1).mean(dim=1) - losses.min()
        curve.plot(range(width - 1, STEPS), smooth, color=colour, lw=1.5, label=run_.name)
    curve.set(title="training", xlabel="step", ylabel="loss above its lowest", yscale="log")
    curve.legend(frameon=False)

    axis = torch.linspace(-3, 3, 60 if QUICK else 200)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        heights = runs[0].flow.log_prob(grid).exp().reshape(len(axis), -1).T
        samples = runs[0].flow.sample(500)
    density.imshow(heights, origin="lower", extent=(-3, 3, -3, 3), cmap="Blues", vmax=0.6)
    density.scatter(*samples.T, s=3, color="#d9741a", lw=0)
    density.set(title="two moons: density, samples", xlim=(-3, 3), ylim=(-3, 3))

    places = range(len(runs))
    for i, (name, colour) in enumerate(
        (("plain nflows", "#8a8f98"), ("made_flows.nflows", "#1f5a96"))
    ):
        bars = times.bar(
            [place + 0.4 * i - 0.2 for place in places],
            [1e3 * run_.seconds[name] for run_ in runs],
            width=0.38,
            color=colour,
            label=name,
        )
        times.bar_label(bars, fmt="%.0f")
    times.set_xticks(places, [f"{run_.name}" for run_ in runs])
    times.set(title=f"{DRAWN} samples, ms", yscale="log", ylim=(1, None))
    times.margins(y=0.3)
    times.legend(frameon=False, fontsize=8)
    for ax in (curve, density, times):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    cells_train, cells_test = cells()
    runs = [
        run("two moons", moons_flow, moons(2000, 0), moons(1000, 1)),
        run("cell nuclei", cells_flow, cells_train, cells_test),
    ]
    print(f"{'':14}{'test score':>12}{'difference':>12}{'plain nflows':>15}{'ours':>12}{'':>8}")
    for each in runs:
        before, after = each.seconds["plain nflows"], each.seconds["made_flows.nflows"]
        print(
            f"{each.name:14}{each.test_score:12.2f}{each.difference:12.0e}"
            f"{1e3 * before:12.1f} ms{1e3 * after:9.1f} ms{before / after:7.1f}x"
        )
    print(
        f"(test score: log-density in nats; difference: of the same weights in plain nflows;\n"
        f" times of {DRAWN} samples)"
    )
    picture = OUTPUT / "nflows_maf.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw(runs, picture)
    trained = "trained for a moment only (MADE_FLOWS_QUICK)" if QUICK else "trained and compared"
    print(f"nflows_maf: {trained} in {time.perf_counter() - start:.0f} s. Picture: {picture}")


if __name__ == "__main__":
    main()
