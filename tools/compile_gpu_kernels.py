"""Compile the kernels for CUDA, which needs no GPU; prints registers' and memories' use.

    python -m tools.compile_gpu_kernels [compute capabilities, 90 by default] [--all]

With ``--all`` in every way in which the sweeps may be cut up, and in tf32.

A process of its own, since Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton._utils import find_paths_if
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from made_flows.inverse.gpu.adjoint import Gradients, adjoint_kernel
from made_flows.inverse.gpu.autotuning import Config, configs
from made_flows.inverse.gpu.pack import Order, Own, Packed, pack_kernel
from made_flows.inverse.gpu.solve import Values, solve_kernel
from made_flows.inverse.gpu.steps import StepMeta
from made_flows.inverse.gpu.tile import Meta, Net

NUMBERS = {"rows", "context_rows", "prefix", "widest", "count", "kept", "every", "pitch"}
INDICES = {
    "matrices", "table", "streams", "panels", "starts", "features", "feature_starts",
    "column_starts", "output_starts", "input_starts", "units", "limits", "inputs", "row_features",
    "row_ranks", "ranks", "sizes",
}  # fmt: skip
STRIDES = {"weight_strides", "mask_strides"}
GROUPS = {
    "net": Net, "packed": Packed, "own": Own, "order": Order, "batch": Values,
    "gradients": Gradients,
}  # fmt: skip

AFFINE = StepMeta("affine", (0, 0, 2.0, 0.0, 1.0, 0.0), 2, 1, False)
SPLINE = StepMeta(
    "rational_spline",
    (1, 0, 0.0, 0.0, 8, -3.0, 6.0, 1.0, 0.0, 1.0, math.inf, 1e-3, 1e-3, 1e-3, 0.0, 0.5, 0, 1.0,
     0.0), 8, 1, False,
)  # fmt: skip
PACK = {"OUTPUT": True, "VECTORS": True, "BLOCK": 16}

SHARED, REGISTERS = 99 * 1024, 65536
"""Bytes of shared memory that a program may have on any device (163 and 227 KiB on the larger
ones), and registers of all its threads."""

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
TANH, ANY = (1, False), (-1, True)  # activations, and whether inputs contribute directly
CASES: list[tuple[Any, str, StepMeta | None, tuple[int, bool], str]] = [
    (solve_kernel, "fp32", AFFINE, TANH, "ieee"),
    (solve_kernel, "fp64", SPLINE, ANY, "ieee"),
    (adjoint_kernel, "fp32", None, TANH, "ieee"),
]
MORE: list[tuple[Any, str, StepMeta | None, tuple[int, bool], str]] = [
    (solve_kernel, "fp32", AFFINE, TANH, "tf32"),
    (solve_kernel, "fp32", SPLINE, TANH, "ieee"),
    (adjoint_kernel, "fp32", None, TANH, "tf32"),
    (adjoint_kernel, "fp64", None, TANH, "ieee"),
]


def configs_of(dtype: str, every: bool) -> list[Config]:
    """The ways to cut work up: for tiles of 32 rows the usual one, or all for any tile."""
    like = torch.zeros(1, dtype=DTYPES[dtype])
    found = [way for rows in (16, 32, 64) for way in configs(rows, like)]
    return list(dict.fromkeys(found)) if every else configs(32, like)[:1]


def build(
    kernel: Any, dtype: str, constants: dict[str, Any], capability: int, warps: int = 4
) -> Any:
    """The compiled kernel."""

    def kind(name: str) -> Any:
        if name in GROUPS:
            return GROUPS[name](*map(kind, GROUPS[name]._fields))
        if name in constants:
            return "constexpr"
        if name in STRIDES:
            return ("i32", "i32")
        return "i32" if name in NUMBERS else "*i32" if name in INDICES else f"*{dtype}"

    signature = {name: kind(name) for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    # Memory of torch's is aligned.
    pointers = find_paths_if([*signature.values()], lambda _, kind: str(kind).startswith("*"))
    aligned = {path: [["tt.divisibility", 16]] for path in pointers}
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    options = {"num_warps": warps}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def use_of(built: Any) -> tuple[int, int]:
    """What machine code takes: registers of a thread, bytes of its stack (spills among them)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return int(found["REG"]), int(found["STACK"])


def main() -> None:
    every = "--all" in sys.argv
    for capability in [int(word) for word in sys.argv[1:] if word.isdigit()] or [90]:
        print(f"compute capability {capability / 10}", flush=True)
        check(capability, every)


def check(capability: int, every: bool) -> None:
    """Compile for a device, and stop at what could not be launched there."""
    cases = [(pack_kernel, "fp32", PACK, "", 4)]
    for kernel, dtype, step, network, precision in CASES + (MORE if every else []):
        for way in configs_of(dtype, every):
            constants = {"META": Meta(*network, precision, *way)} | ({"STEP": step} if step else {})
            name = f"{step.kind if step else ''} {precision} {tuple(way)}"
            cases.append((kernel, dtype, constants, name, way.warps))
    for kernel, dtype, constants, name, warps in cases:
        built = build(kernel, dtype, constants, capability, warps)
        assembly = built.asm["ptx"]
        # The scratch space is shared: without barriers its readers would race its writers.
        barriers = assembly.count("bar.sync")
        if not built.asm["cubin"] or (barriers < 10 and kernel is not pack_kernel):
            raise SystemExit(f"{kernel.__name__}, {dtype}: no machine code, or too few barriers")
        (registers, stack), shared = use_of(built), built.metadata.shared
        print(f"{kernel.__name__}, {dtype} {name}: {registers} registers, {stack} bytes of stack, "
              f"{barriers} barriers, {shared} bytes of shared memory", flush=True)  # fmt: skip
        if shared > SHARED or registers * 32 * warps > REGISTERS:
            raise SystemExit(f"{kernel.__name__}, {dtype} {name}: cannot be launched")


if __name__ == "__main__":
    main()
