"""Both directions of one layer on a GPU, in ten minutes: kernels, other libraries, other ways.

    python -m benchmarks.gpu [--quick] [--device cuda]

Without a GPU only ``--quick --device cpu`` runs, which tries the script out at tiny sizes; under
``TRITON_INTERPRET=1`` and ``MADE_FLOWS_INVERSE=triton`` Triton's interpreter runs the kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import forward, inverse
from benchmarks._peers import Dense, Jacobi, Layer, Zuko, installed_peers
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

MINUTES = 9.0
"""After which no further case is begun."""

SIZES = [*inverse.SIZES, (784, 1024, 4096), (784, 1024, 65536)]
GRADIENT_SIZES = [*inverse.GRADIENT_SIZES, (784, 1024, 4096)]
FORWARD_SIZES = [*forward.SIZES, (784, 1024, 4096)]
MOST_OF_PEERS = 784 * 1024
"""Features times rows up to which D passes take part: one call of theirs takes seconds."""
MOST_TO_COMPILE = 21
"""Features up to which zuko is compiled: it unrolls its passes, which takes minutes for more."""

TEXT = """One affine autoregressive layer of D features with two hidden layers of H units, in
float32 (products in full precision), for B rows. Median milliseconds, all contenders by turns in
one run; the device is waited for before and after what is timed. *made_flows* is the kernel in
Triton, *eager* the same sweep in torch operations; a CUDA graph replays what one call launched.
*Jacobi* applies the layer to all features at once, D times, or until nothing changes (early
stop)."""

MEMORY_TEXT = """By how many MiB the mean square of the inverse and its gradient raise the memory
that tensors take on the device, at its peak."""

PARTS: dict[str, tuple[str, list[str], str]] = {
    "inverse": ("The slow direction", [], Dense.name),
    "gradient": ("Its gradient", [inverse.GRADIENT_TEXT], f"{inverse.OURS}, fast direction"),
    "forward": ("The fast direction", [], Dense.name),
    "training step": ("Training step", [], Dense.name),
}
"""Titles, texts, and whose time ours is divided by."""


class Compiled(Zuko):
    """zuko's layer under torch.compile."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(features, hidden)
        self.name = "zuko, compiled"
        self.compiled = torch.compile(super().slow)

    def slow(self, z: Tensor) -> Tensor:
        return self.compiled(z)


def layers_for(size: inverse.Size) -> list[Callable[[int, int], Layer]]:
    """The contenders besides ours."""
    features, _, rows = size
    kinds: list[Callable[[int, int], Layer]] = [partial(Jacobi, early_stop=True)]
    if features * rows <= MOST_OF_PEERS:
        peers = installed_peers()
        kinds += [partial(Jacobi, early_stop=False), *peers]
        kinds += [Compiled] if Zuko in peers and features <= MOST_TO_COMPILE else []
    return kinds


def peak(call: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that a call takes on a GPU beyond what is there before it."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def failure_of(contender: Contender) -> str | None:
    """Call a contender, which compiles outside of what the harness takes for work; how it fails."""
    try:
        if contender.before is not None:
            contender.before()
        contender.call()
    except Exception as error:  # out of memory, say: the others go on
        return f"{type(error).__name__}, {(str(error).splitlines() or [''])[0]}"
    return None


class _Page:
    """The page, written anew after every case: a run may be cut off."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.start = settings, time.monotonic()
        self.cases: dict[str, dict[str, dict[str, Timing]]] = {}
        self.memory: list[list[str]] = []
        self.left_out: list[str] = []

    def measure(self, what: str, size: inverse.Size, make: Callable[[], list[Contender]]) -> None:
        """Time the contenders of a case, if there is time for it; what fails is left out."""
        case = ", ".join(map(str, size))
        if time.monotonic() - self.start > MINUTES * 60:
            self.left_out.append(f"{what}, {case}: no time left")
            return
        contenders = make()
        failures = {each.name: failure_of(each) for each in contenders}
        working = [each for each in contenders if failures[each.name] is None]
        for name, failure in failures.items():
            if failure is not None:
                self.left_out.append(f"{what}, {case}, {name}: {failure}")
                print(self.left_out[-1], flush=True)
        if what == "gradient":
            peaks = {each.name: peak(each.call, self.settings.device) for each in working}
            self.memory += [[case, n, f"{mib:.1f}"] for n, mib in peaks.items() if mib is not None]
        timings = run_contenders(working, self.settings, f"{what}, {case}")
        self.cases.setdefault(what, {})[case] = timings
        self.write(finished=False)

    def write(self, *, finished: bool) -> None:
        sections = [TEXT]
        for what, (title, text, yardstick) in PARTS.items():
            if what in self.cases:
                sections += [f"## {title}", *text, table(self.cases[what], yardstick)]
        if self.memory:
            peaks = markdown_table(["D, H, B", "contender", "MiB"], self.memory)
            sections += ["## Memory of the gradient", MEMORY_TEXT, peaks]
        if self.left_out:
            sections += ["## Left out", *(f"* {line}" for line in self.left_out)]
        every = {f"{w}, {c}": t for w, cases in self.cases.items() for c, t in cases.items()}
        sections += ["## Spread", "Median (quartiles), repetitions.", details(every)]
        write_page("gpu", "On a GPU", sections, self.settings, finished=finished)


def table(cases: dict[str, dict[str, Timing]], yardstick: str) -> str:
    """Milliseconds, and ratios where there is what they compare."""
    names = list(dict.fromkeys(name for timings in cases.values() for name in timings))
    rows = []
    for case, timings in cases.items():
        ours, base = timings.get(inverse.OURS), timings.get(yardstick)
        peer = inverse.fastest(timings)
        cells = [milliseconds(timings[name].median) if name in timings else "-" for name in names]
        cells.append("-" if ours is None or base is None else str(ratio(ours, base)))
        cells.append("-" if ours is None or peer is None else f"{ratio(peer, ours)} {peer.name}")
        rows.append([case, *cells])
    last = [f"made_flows / {yardstick}", "fastest peer / made_flows"]
    return markdown_table(["D, H, B", *names, *last], rows)


def measure(settings: Settings) -> None:
    """Measure and write, what matters most first."""
    page, quick, device = _Page(settings), settings.quick, settings.device
    for size in inverse.QUICK_SIZES if quick else SIZES:
        kinds = layers_for(size)
        page.measure("inverse", size, partial(inverse.value_contenders, size, device, kinds))
    for size in inverse.QUICK_SIZES if quick else GRADIENT_SIZES:
        page.measure("gradient", size, partial(inverse.gradient_contenders, size, device))
    for size in inverse.QUICK_SIZES if quick else FORWARD_SIZES:
        for place, what in enumerate(("forward", "training step")):
            page.measure(what, size, lambda: forward.contenders(size, device)[place])  # noqa: B023
    page.write(finished=True)


def main() -> None:
    settings = parse_settings(__doc__)
    if not settings.quick:
        if not torch.cuda.is_available():
            print("No CUDA device, nothing written")
            return
        settings = replace(
            settings, device=torch.device("cuda"), seconds=min(settings.seconds, 1.0)
        )
    measure(settings)


if __name__ == "__main__":
    main()
