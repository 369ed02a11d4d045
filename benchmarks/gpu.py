"""Both directions of one layer on a GPU, in ten minutes: kernels, other libraries, other ways.

    python -m benchmarks.gpu [--quick] [--device cuda]

Without a GPU only ``--quick --device cpu`` runs, which tries the script out at tiny sizes; under
``TRITON_INTERPRET=1`` and ``MADE_FLOWS_INVERSE=triton`` Triton's interpreter runs the kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import forward, inverse
from benchmarks._peers import Dense, Layer, Ours, Zuko, installed_peers
from benchmarks.harness import (
    Contender,
    Settings,
    Timing,
    details,
    markdown_table,
    parse_settings,
    run_contenders,
    write_page,
)

MINUTES = 9.0
"""After which no further case is begun."""

SIZES = [*inverse.SIZES, (784, 1024, 4096), (784, 1024, 65536)]
GRADIENT_SIZES = [*inverse.GRADIENT_SIZES, (784, 1024, 4096)]
FORWARD_SIZES = [*forward.SIZES, (784, 1024, 4096)]
MOST_OF_PEERS = 784 * 1024
"""Features times rows up to which other libraries take part: one call of theirs takes seconds."""
MOST_TO_COMPILE = 21
"""Features up to which zuko is compiled: it unrolls its passes, which takes minutes for more."""

TEXT = """One affine autoregressive layer of D features with two hidden layers of H units, in
float32 (products in full precision), for B rows. Median milliseconds, all contenders by turns in
one run; the device is waited for before and after what is timed. *made_flows* is the kernel in
Triton, *eager* the same sweep in torch operations; a CUDA graph replays what one call launched.
*Jacobi* applies the layer to all features at once until nothing changes, D times at most. Cases
that did not fit into the run's time are missing."""

MEMORY_TEXT = """By how many MiB the mean square of the inverse and its gradient raise the memory
that tensors take on the device, at its peak."""


class Compiled(Zuko):
    """zuko's layer under torch.compile."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(features, hidden)
        self.name = "zuko, compiled"
        self.compiled = torch.compile(super().slow)

    def slow(self, z: Tensor) -> Tensor:
        return self.compiled(z)


class Jacobi(Ours):
    """The fixed point of the layer's own map: exact after D steps, often nearly so before."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(features, hidden)
        self.name = "Jacobi"

    def slow(self, z: Tensor) -> Tensor:
        x, noise = torch.zeros_like(z), z.unsqueeze(-1)
        for done in range(self.features):
            new = self.step(noise, self.model.made(x))
            # To look is to wait for the device, so that it is done now and then.
            if done % 8 == 7 and torch.allclose(new, x, rtol=0, atol=1e-6):
                return new
            x = new
        return x


def layers_for(size: inverse.Size) -> list[type[Layer]]:
    """The contenders besides ours."""
    features, _, rows = size
    kinds: list[type[Layer]] = [Jacobi]
    if features * rows <= MOST_OF_PEERS:
        kinds += installed_peers()
        kinds += [Compiled] if Zuko in kinds and features <= MOST_TO_COMPILE else []
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


def measure(settings: Settings) -> list[str]:
    """The sections of the page."""
    quick, device, start = settings.quick, settings.device, time.monotonic()
    every: dict[str, dict[str, Timing]] = {}

    def over(what: str, sizes: list[inverse.Size], make: Callable[..., list[Contender]]) -> Any:
        """Time the cases that there is time for."""
        found = {}
        for size in inverse.QUICK_SIZES if quick else sizes:
            case = ", ".join(map(str, size))
            if time.monotonic() - start > MINUTES * 60:
                print(f"{what}, {case}: no time left", flush=True)
                continue
            contenders = make(size)
            for contender in contenders:  # compile, outside of what the harness takes for work
                contender.call()
            found[case] = every[f"{what}, {case}"] = run_contenders(contenders, settings, what)
        return found

    values = over("inverse", SIZES, lambda s: inverse.value_contenders(s, device, layers_for(s)))
    memory: list[list[str]] = []

    def gradients(size: inverse.Size) -> list[Contender]:
        found = inverse.gradient_contenders(size, device)
        if size[0] * size[2] > MOST_OF_PEERS:
            peers = tuple(kind.name for kind in installed_peers())
            found = [contender for contender in found if not contender.name.startswith(peers)]
        peaks = {contender.name: peak(contender.call, device) for contender in found}
        case = ", ".join(map(str, size))
        memory.extend([case, n, f"{mib:.1f}"] for n, mib in peaks.items() if mib is not None)
        return found

    of_gradients = over("gradient", GRADIENT_SIZES, gradients)
    passes = over("forward", FORWARD_SIZES, lambda s: forward.contenders(s, device)[0])
    steps = over("training step", FORWARD_SIZES, lambda s: forward.contenders(s, device)[1])
    names = [Dense.name, "made_flows", *(kind.name for kind in installed_peers())]
    headings = ["D, H, B", *names, "made_flows / dense", "fastest peer / made_flows"]
    sections = [TEXT, "## The slow direction", inverse.value_table(values)]
    sections += ["## Its gradient", inverse.GRADIENT_TEXT, inverse.gradient_table(of_gradients)]
    if memory:
        table = markdown_table(["D, H, B", "contender", "MiB"], memory)
        sections += ["## Memory of the gradient", MEMORY_TEXT, table]
    for title, cases in (("The fast direction", passes), ("Training step", steps)):
        rows = [forward.row(case, timings) for case, timings in cases.items()]
        sections += [f"## {title}", markdown_table(headings, rows)]
    return [*sections, "## Spread", "Median (quartiles), repetitions.", details(every)]


def main() -> None:
    settings = parse_settings(__doc__)
    if not settings.quick:
        if not torch.cuda.is_available():
            print("No CUDA device, nothing written")
            return
        settings = replace(
            settings, device=torch.device("cuda"), seconds=min(settings.seconds, 1.0)
        )
    write_page("gpu", "On a GPU", measure(settings), settings)


if __name__ == "__main__":
    main()
