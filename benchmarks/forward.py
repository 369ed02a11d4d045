"""The fast direction: log-density and training step of one affine autoregressive layer.

python -m benchmarks.forward [--quick] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._peers import Dense, Layer, Ours, installed_peers
from benchmarks.harness import (
    Contender,
    Settings,
    Timing,
    details,
    markdown_table,
    milliseconds,
    parse_settings,
    ratio,
    run_contenders,
    write_page,
)

SIZES = [(6, 128, 256), (63, 512, 1024), (256, 1024, 256), (784, 1024, 100)]
QUICK_SIZES = [(6, 32, 16), (12, 64, 32)]

TEXT = """One affine autoregressive layer of D features with two hidden layers of H ReLU units, in
float32, for B rows: median milliseconds, all contenders by turns in one run. The dense MLP has the
same widths and no masks, and nothing is done with its output.

*Forward* is the log-density of B rows under a standard normal base, without gradients; of the
dense MLP, one pass. A *training step* is that with gradients, and the backward pass of its mean; of
the dense MLP, of the mean square of its output. The optimiser's update is left out: it is the same
for all. Ratios are medians over neighbouring turns, with their quartiles."""


def training_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Any]:
    """Loss and gradients of all weights, from none."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        loss().backward()

    return step


def contenders(
    size: tuple[int, int, int], device: torch.device
) -> tuple[list[Contender], list[Contender]]:
    """Those of the forward pass and those of the training step."""
    features, hidden, rows = size
    torch.manual_seed(0)
    x = torch.randn(rows, features, device=device)
    dense = Dense(features, hidden)
    dense.module.to(device)
    layers: list[Layer] = [kind(features, hidden) for kind in (Ours, *installed_peers())]
    for layer in layers:
        layer.module.to(device)

    forward = [Contender(dense.name, torch.no_grad()(lambda: dense(x)))]
    step = [Contender(dense.name, training_step(dense.module, lambda: dense(x).square().mean()))]
    for layer in layers:
        score = torch.no_grad()(lambda layer=layer: layer.log_density(x))
        forward.append(Contender(layer.name, score))
        loss = lambda layer=layer: -layer.log_density(x).mean()  # noqa: E731
        step.append(Contender(layer.name, training_step(layer.module, loss)))
    return forward, step


def row(case: str, timings: dict[str, Timing]) -> list[str]:
    """A line of the table."""
    ours, dense = timings["made_flows"], timings[Dense.name]
    peers = [timings[kind.name] for kind in installed_peers()]
    cells = [case, *(milliseconds(timing.median) for timing in timings.values())]
    cells.append(str(ratio(ours, dense)))
    fastest = min(peers, key=lambda timing: timing.median, default=None)
    cells.append("-" if fastest is None else f"{ratio(fastest, ours)} {fastest.name}")
    return cells


def measure(settings: Settings) -> list[str]:
    """The sections of the page."""
    names = [Dense.name, "made_flows", *(kind.name for kind in installed_peers())]
    headings = ["D, H, B", *names, "made_flows / dense", "fastest peer / made_flows"]
    tables: dict[str, list[list[str]]] = {"Forward": [], "Training step": []}
    measured: dict[str, dict[str, Timing]] = {}
    for size in QUICK_SIZES if settings.quick else SIZES:
        case = ", ".join(map(str, size))
        for (title, rows), group in zip(
            tables.items(), contenders(size, settings.device), strict=True
        ):
            label = f"{title.lower()}, {case}"
            timings = measured[label] = run_contenders(group, settings, label)
            rows.append(row(case, timings))
    sections = [TEXT]
    for title, rows in tables.items():
        sections += [f"## {title}", markdown_table(headings, rows)]
    return [*sections, "## Spread", "Median (quartiles), repetitions.", details(measured)]


def main() -> None:
    settings = parse_settings(__doc__)
    write_page("forward", "The fast direction", measure(settings), settings)


if __name__ == "__main__":
    main()
