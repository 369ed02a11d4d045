"""End to end: seconds of training until a flow reaches a fixed validation loss.

    python -m benchmarks.end_to_end [--quick]

Every library builds three affine autoregressive layers with two hidden layers each, relu, the order
reversed from layer to layer. The loop is the same for all: batches in the same order, Adam.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import made_flows as mf
from benchmarks.harness import Settings, markdown_table, parse_settings, write_page

TARGETS = {"digits": 65.0, "breast_cancer": 12.0}
"""Mean negative log-density of validation rows, in nats: what every library reached in a first run
of sixty and thirty epochs."""

LAYERS, HIDDEN, BATCH, RATE, MOST_EPOCHS = 3, 256, 128, 5e-4, 100
SEEDS = (0, 1, 2)

TEXT = f"""Seconds of training until the mean negative log-density of validation rows (a fifth of
all) is at most the target, which a first run chose, in which all had reached it: the median of
{len(SEEDS)} seeds, their range, and the median of epochs; "-" where {MOST_EPOCHS} epochs were not
enough. Every flow has {LAYERS} affine autoregressive layers with two hidden layers of {HIDDEN}
units (relu), its library's own initial weights and scale, and is trained by Adam (learning rate
{RATE}) on the same batches of {BATCH} rows, in the same order. The validation loss, looked at after
every epoch, is counted. Digits are dequantised; all columns are standardised by the training
rows. "Its own noise, shifts" is this library's flow with two more of its defaults, which the others
do not have: noise of heavy tails, and shifts that are linear but for what the layers add."""


class Table(NamedTuple):
    """Rows (N, D) to train on, and to validate with."""

    train: Tensor
    valid: Tensor


def load(name: str, rows: int | None = None) -> Table:
    """Load a table of scikit-learn's, shuffled, dequantised where it counts, standardised."""
    source = getattr(sklearn.datasets, f"load_{name}")()
    x = np.asarray(source.data, dtype=np.float64)
    draw = np.random.default_rng(0)
    if name == "digits":
        x = x + draw.random(x.shape)
    x = x[draw.permutation(len(x))[:rows]]
    few = len(x) // 5
    mean, scale = x[few:].mean(0), x[few:].std(0)
    table = torch.from_numpy((x - mean) / scale).float()
    return Table(table[few:], table[:few])


Flow = tuple[nn.Module, Callable[[Tensor], Tensor]]


def _ours(features: int, hidden: int, **options: Any) -> Flow:
    flow = mf.MAF(
        features, transforms=LAYERS, hidden_features=(hidden, hidden), activation="relu", **options
    )
    return flow, lambda x: flow().log_prob(x)


def _nflows(features: int, hidden: int) -> Flow:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as NFlow
    from nflows.transforms import (
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        ReversePermutation,
    )

    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers.append(ReversePermutation(features))
        layers.append(
            MaskedAffineAutoregressiveTransform(
                features, hidden, num_blocks=1, use_residual_blocks=False
            )
        )
    flow = NFlow(CompositeTransform(layers), StandardNormal([features]))
    return flow, flow.log_prob


def _zuko(features: int, hidden: int) -> Flow:
    import zuko

    Distribution.set_default_validate_args(True)  # which the import switches off for all
    flow = zuko.flows.MAF(
        features, transforms=LAYERS, hidden_features=(hidden, hidden), activation=nn.ReLU
    )
    return flow, lambda x: flow().log_prob(x)


FLOWS: dict[str, Callable[[int, int], Flow]] = {
    "made_flows": partial(_ours, base=None, direct=False),
    "its own noise, shifts": _ours,
    **({"nflows": _nflows} if find_spec("nflows") else {}),
    **({"zuko": _zuko} if find_spec("zuko") else {}),
}


class Run(NamedTuple):
    """Seconds and epochs until the target, None where it was not reached; the least loss."""

    seconds: float | None
    epochs: int
    least: float


def train(
    make: Callable[[int, int], Flow], data: Table, target: float, seed: int, hidden: int, most: int
) -> Run:
    """Train a flow until its validation loss is at most the target."""
    torch.manual_seed(seed)
    flow, log_prob = make(data.train.shape[1], hidden)
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    log_prob(data.train[:BATCH]).mean().backward()  # what only the first call does
    with torch.no_grad():
        log_prob(data.valid)
    least = float("inf")
    start = time.perf_counter()
    for epoch in range(1, most + 1):
        for rows in torch.randperm(len(data.train), generator=order).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            (-log_prob(data.train[rows]).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(-log_prob(data.valid).mean())
        least = min(least, loss)
        if loss <= target:
            return Run(time.perf_counter() - start, epoch, least)
    return Run(None, most, least)


def _cell(runs: list[Run]) -> str:
    """Median and range of the seconds, and the epochs."""
    seconds = [run.seconds for run in runs if run.seconds is not None]
    if len(seconds) < len(runs):
        return f"- (least {min(run.least for run in runs):.2f})"
    epochs = round(median(run.epochs for run in runs))
    return f"{median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f}), {epochs} epochs"


def measure(settings: Settings) -> list[str]:
    """The sections of the page."""
    cells: list[list[str]] = []
    for name, target in TARGETS.items():
        data = load(name, 60 if settings.quick else None)
        hidden, most, seeds = (16, 2, SEEDS[:1]) if settings.quick else (HIDDEN, MOST_EPOCHS, SEEDS)
        runs: dict[str, list[Run]] = {flow: [] for flow in FLOWS}
        for seed in seeds:  # by turns: a busy minute hits all
            for flow, make in FLOWS.items():
                runs[flow].append(train(make, data, target, seed, hidden, most))
                print(f"{name}, {flow}, seed {seed}: {runs[flow][-1]}", flush=True)
        size = f"{name} ({len(data.train)} x {data.train.shape[1]})"
        cells.append([size, f"{target}", *(_cell(found) for found in runs.values())])
    return [TEXT, markdown_table(["table", "target NLL", *FLOWS], cells)]


def main() -> None:
    settings = parse_settings(__doc__)
    write_page("end_to_end", "End to end", measure(settings), settings)


if __name__ == "__main__":
    main()
