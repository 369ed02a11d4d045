"""The slow direction: the inverse of one affine autoregressive layer, and its gradient.

    python -m benchmarks.inverse [--quick] [--device cuda]

On a GPU: the kernel, torch operations, and both captured in CUDA graphs. ``benchmarks.gpu`` is the
short one for a GPU, with more contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks._memory import CONTENDERS, FAST, measure_peak
from benchmarks._peers import TOLERANCE, Dense, Jacobi, Layer, Ours, Zuko, installed_peers
from benchmarks._plots import growth_plot
from benchmarks.forward import training_step
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

Size = tuple[int, int, int]

SIZES: list[Size] = [
    (6, 128, 256),
    (21, 256, 512),
    (63, 512, 1024),
    (63, 512, 1),
    (256, 1024, 256),
    (784, 1024, 100),
]
GRADIENT_SIZES: list[Size] = [(6, 128, 256), (21, 256, 512), (63, 512, 256)]
MEMORY_SIZES: list[Size] = [(16, 512, 256), (64, 512, 256), (256, 512, 256)]
FEATURES = [16, 32, 64, 128, 256, 512, 1024]
ROWS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536]
MOST_OF_PEERS = (128, 1024)
"""Features and rows up to which the growth of other libraries' time is followed: it goes on in
proportion, to minutes a call."""

QUICK_SIZES: list[Size] = [(4, 16, 8), (8, 32, 16)]

SECONDS = 1.2
"""Of measuring for each contender of a case: all of it takes eight minutes on two cores."""

OURS = "made_flows"

TEXT = f"""One affine autoregressive layer of D features with two hidden layers of H units, in
float32, for B rows: noise becomes data, the direction in which other libraries make D passes of the
network. Median milliseconds, all contenders by turns in one run. The dense MLP has the same widths
and no masks; one forward pass of it is the yardstick. Ratios are medians over neighbouring turns,
with their quartiles. The number of repetitions of each is in the last section.

Jacobi iteration (Song et al. 2021) passes all features through our network at once, again and
again: D passes are exact; "early stop" ends when no value moves by more than {TOLERANCE}. How many
passes that takes depends on the weights: these are initial ones, which couple features weakly."""

GRADIENT_TEXT = """The mean square of the inverse, and its gradient with respect to noise and
weights. "New weights" are changed before every call, as in training, so that everything made from
them is made again. The fast direction is log-density and backward pass of a training step."""

MEMORY_TEXT = """By how many MiB one such gradient raises the resident memory of a fresh process at
its peak; imports, compilation and weights do not count."""


def value_contenders(
    size: Size, device: torch.device, kinds: Sequence[Callable[[int, int], Layer]]
) -> list[Contender]:
    """The inverse, without gradients."""
    features, hidden, rows = size
    torch.manual_seed(0)
    z = torch.randn(rows, features, device=device)
    dense = Dense(features, hidden)
    dense.module.to(device)
    found = [Contender(Dense.name, torch.no_grad()(lambda: dense(z)))]
    for layer in [
        Ours(features, hidden),
        Ours(features, hidden, "eager"),
        *(kind(features, hidden) for kind in kinds),
    ]:
        layer.module.to(device)
        call = torch.no_grad()(lambda layer=layer: layer.slow(z))
        found.append(Contender(layer.name, call))
        # An iteration that stops early looks at values, for which a graph cannot wait.
        records = isinstance(layer, Ours) and not getattr(layer, "early_stop", False)
        if device.type == "cuda" and records:
            replay = captured(call)
            found += [] if replay is None else [Contender(f"{layer.name}, CUDA graph", replay)]
    return found


def jacobi_contenders(size: Size, device: torch.device) -> list[Contender]:
    """The inverse by iteration, with as many passes as features, and with those that it needs."""
    features, hidden, rows = size
    torch.manual_seed(0)
    z = torch.randn(rows, features, device=device)
    layers = [Jacobi(features, hidden, early_stop=early) for early in (False, True)]
    for layer in layers:
        layer.module.to(device)
    return [
        Contender(layer.name, torch.no_grad()(lambda layer=layer: layer.slow(z)))
        for layer in layers
    ]


def captured(call: Callable[[], Any]) -> Callable[[], None] | None:
    """The work of a call as a CUDA graph, to be replayed; None where it cannot be captured."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # plans, workspaces: what only the first calls do
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"The sweep cannot be captured in a CUDA graph: {error}", flush=True)
        return None
    return graph.replay


def gradient_contenders(size: Size, device: torch.device) -> list[Contender]:
    """The inverse with the gradient of its mean square; last, the fast direction's."""
    features, hidden, rows = size
    torch.manual_seed(0)
    z = torch.randn(rows, features, device=device)

    def through(layer: Layer) -> Callable[[], Any]:
        step = training_step(
            layer.module, lambda: layer.slow(z.detach().requires_grad_()).square().mean()
        )

        def chosen() -> None:  # the backward sweep too is the one that the name says
            with layer.chosen() if isinstance(layer, Ours) else nullcontext():
                step()

        return chosen

    def fast(layer: Layer) -> Callable[[], Any]:
        return training_step(
            layer.module, lambda: -layer.log_density(z.detach().requires_grad_()).mean()
        )

    ours = [Ours(features, hidden), Ours(features, hidden, "eager")]
    peers = [kind(features, hidden) for kind in installed_peers()]
    for layer in [*ours, *peers]:
        layer.module.to(device)
    found = [Contender(layer.name, through(layer)) for layer in ours]
    changing = Ours(features, hidden)
    changing.module.to(device)
    found.append(Contender(f"{OURS}, new weights", through(changing), lambda: change(changing)))
    found += [Contender(layer.name, through(layer)) for layer in peers]
    found += [
        Contender(f"{layer.name}, fast direction", fast(layer))
        for layer in (ours[0], *peers)
        if isinstance(layer, (Ours, Zuko))
    ]
    return found


@torch.no_grad()
def change(layer: Layer) -> None:
    """Weights that differ a little, as a step of training leaves them."""
    for weight in layer.module.parameters():
        weight.mul_(1 - 1e-6)


def fastest(timings: dict[str, Timing]) -> Timing | None:
    """The fastest of the other libraries' slow directions."""
    peers = [timings[kind.name] for kind in installed_peers() if kind.name in timings]
    return min(peers, key=lambda timing: timing.median, default=None)


def value_table(cases: dict[str, dict[str, Timing]]) -> str:
    names = list(dict.fromkeys(name for timings in cases.values() for name in timings))
    headings = ["D, H, B", *names, "made_flows / dense", "fastest peer / made_flows"]
    rows = []
    for case, timings in cases.items():
        ours, peer = timings[OURS], fastest(timings)
        cells = [milliseconds(timings[name].median) if name in timings else "-" for name in names]
        against = "-" if peer is None else f"{ratio(peer, ours)} {peer.name}"
        rows.append([case, *cells, str(ratio(ours, timings[Dense.name])), against])
    return markdown_table(headings, rows)


def gradient_table(cases: dict[str, dict[str, Timing]]) -> str:
    names = list(dict.fromkeys(name for timings in cases.values() for name in timings))
    headings = ["D, H, B", *names, "slow / fast direction", "fastest peer / made_flows"]
    rows = []
    for case, timings in cases.items():
        ours, peer = timings[OURS], fastest(timings)
        fast = next(timings[name] for name in names if name.endswith("fast direction"))
        against = "-" if peer is None else f"{ratio(peer, ours)} {peer.name}"
        cells = [milliseconds(timings[name].median) for name in names]
        rows.append([case, *cells, str(ratio(ours, fast)), against])
    return markdown_table(headings, rows)


def memory_table(settings: Settings) -> str:
    """Peak memory of the gradient, measured in processes of their own."""
    peers = {kind.name for kind in installed_peers()}
    names = [name for name in CONTENDERS if name.startswith(OURS) or name in peers]
    names.append(FAST)
    rows = []
    for size in QUICK_SIZES if settings.quick else MEMORY_SIZES:
        case = ", ".join(map(str, size))
        print(f"memory, {case} ...", flush=True)
        peaks = [measure_peak(name, size, settings.threads) / 2**20 for name in names]
        rows.append([case, *(f"{peak:.1f}" for peak in peaks)])
    return markdown_table(["D, H, B", *names], rows)


def growth(
    what: str, sizes: dict[int, Size], settings: Settings, measured: dict[str, dict[str, Timing]]
) -> dict[str, dict[int, float]]:
    """Median seconds by contender and size."""
    lines: dict[str, dict[int, float]] = {}
    for at, size in sizes.items():
        small = size[0] <= MOST_OF_PEERS[0] and size[2] <= MOST_OF_PEERS[1]
        kinds = installed_peers() if small else []
        label = f"growth with {what}: " + ", ".join(map(str, size))
        contenders = value_contenders(size, settings.device, kinds)
        timings = measured[label] = run_contenders(contenders, settings, label)
        for name, timing in timings.items():
            lines.setdefault(name, {})[at] = timing.median
    return lines


def growth_table(axis: str, lines: dict[str, dict[int, float]]) -> str:
    sizes = sorted({size for line in lines.values() for size in line})
    rows = [
        [str(size), *(milliseconds(line[size]) if size in line else "-" for line in lines.values())]
        for size in sizes
    ]
    return markdown_table([axis, *lines], rows)


class _Page:
    """The page, written anew after every case that was measured: a run may be cut off."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.values: dict[str, dict[str, Timing]] = {}
        self.gradients: dict[str, dict[str, Timing]] = {}
        self.growth: dict[str, dict[str, Timing]] = {}
        self.others: list[str] = []
        """Sections that are finished."""

    def write(self, *, finished: bool = False) -> None:
        sections = [TEXT, "## Value", value_table(self.values)]
        if self.gradients:
            sections += ["## Gradient", GRADIENT_TEXT, gradient_table(self.gradients)]
        sections += self.others
        every = {f"inverse, {case}": timings for case, timings in self.values.items()}
        sections += ["## Spread", "Median (quartiles), repetitions.", details(every | self.growth)]
        if self.gradients:
            sections.append(details({f"gradient, {c}": t for c, t in self.gradients.items()}))
        write_page("inverse", "The slow direction", sections, self.settings, finished=finished)


def measure(settings: Settings) -> None:
    """Measure and write, what matters most first."""
    page, quick, device = _Page(settings), settings.quick, settings.device
    for size in QUICK_SIZES if quick else SIZES:
        case = ", ".join(map(str, size))
        contenders = value_contenders(size, device, installed_peers())
        contenders += jacobi_contenders(size, device)
        page.values[case] = run_contenders(contenders, settings, f"inverse, {case}")
        page.write()
    for size in QUICK_SIZES if quick else GRADIENT_SIZES:
        case = ", ".join(map(str, size))
        contenders = gradient_contenders(size, device)
        page.gradients[case] = run_contenders(contenders, settings, f"gradient, {case}")
        page.write()

    hidden, rows = (32, 8) if quick else (1024, 256)
    by_features = {d: (d, hidden, rows) for d in ([4, 8, 16] if quick else FEATURES)}
    features, width = (8, 32) if quick else (63, 512)
    by_rows = {b: (features, width, b) for b in ([1, 4, 16] if quick else ROWS)}
    suffix = "" if device.type == "cpu" else f"-{device.type}"
    settings.output.mkdir(parents=True, exist_ok=True)
    for what, sizes, axis, fixed in (
        ("features", by_features, "features D", f"H = {hidden}, B = {rows}"),
        ("rows", by_rows, "rows B", f"D = {features}, H = {width}"),
    ):
        lines = growth(what, sizes, settings, page.growth)
        picture = f"inverse{suffix}-{what}.png"
        growth_plot(settings.output / picture, f"Inverse of one layer, {fixed}", axis, lines)
        page.others += [f"## Growth with {axis}", f"{fixed}.", f"![Times by {axis}]({picture})"]
        page.others.append(growth_table(axis, lines))
        page.write()
    if device.type == "cpu":
        page.others += ["## Memory of the gradient", MEMORY_TEXT, memory_table(settings)]
    page.write(finished=True)


def main() -> None:
    measure(parse_settings(__doc__, seconds=SECONDS))


if __name__ == "__main__":
    main()
