"""Compile the kernels for CUDA, which needs no GPU; prints registers' and memories' use.

    python -m tools.compile_gpu_kernels [compute capability, 90 by default]

A process of its own, since Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from made_flows.inverse.gpu.adjoint import adjoint_kernel
from made_flows.inverse.gpu.pack import pack_kernel
from made_flows.inverse.gpu.solve import solve_kernel

NUMBERS = {
    "rows", "context_rows", "prefix", "levels", "panel_count", "depth", "size", "dimension",
    "widest", "lambdas", "count", "kept", "every", "pitch", "weight_step", "weight_inner",
    "mask_step", "mask_inner", "flag_place", "flag_count",
}  # fmt: skip
REAL = {
    "noise", "known", "values", "x", "gradient", "slopes", "solution", "work", "weights", "vectors",
    "constants", "context", "packed", "biases", "norms", "weight", "mask", "bias", "norm_scale",
    "norm_shift", "flags",
}  # fmt: skip

TILES = {"fp32": {"ROWS": 32, "INPUTS": 32}, "fp64": {"ROWS": 16, "INPUTS": 16}}
SWEEP = {"CODE": 1, "DIRECT": False, "PRECISION": "ieee", "BLOCK": 32, "STEP": 16}
AFFINE = {"KIND": "affine", "NUMBERS": (0, 0, 2.0, 0.0, 1.0, 0.0), "WIDTH": 2}
SPLINE = {
    "KIND": "rational_spline",
    "NUMBERS": (1, 0, 0.0, 0.0, 8, -3.0, 6.0, 1.0, 0.0, 1.0, math.inf, 1e-3, 1e-3, 1e-3, 0.0, 0.5,
                0, 1.0, 0.0),
    "WIDTH": 8,
}  # fmt: skip
SOLVE = {**SWEEP, "PARTS": 1, "ONE_HOT": False}
PACK = {
    "HAS_BIAS": True, "HAS_NORM": True, "OUTPUT": True, "VECTORS": True, "BLOCK": 16, "INPUTS": 16,
}  # fmt: skip

CASES: list[tuple[Any, str, dict[str, Any]]] = [
    (pack_kernel, "fp32", PACK),
    (solve_kernel, "fp32", {**SOLVE, **AFFINE, **TILES["fp32"]}),
    (solve_kernel, "fp64", {**SOLVE, **SPLINE, **TILES["fp64"], "CODE": -1, "DIRECT": True}),
    (adjoint_kernel, "fp32", {**SWEEP, **TILES["fp32"]}),
]


def build(kernel: Any, dtype: str, constants: dict[str, Any], capability: int) -> Any:
    """The compiled kernel."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "i32"
        else:
            signature[name] = f"*{dtype}" if name in REAL else "*i32"
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main() -> None:
    capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    for kernel, dtype, constants in CASES:
        built = build(kernel, dtype, constants, capability)
        assembly = built.asm["ptx"]
        # The scratch space is shared: without barriers its readers would race its writers.
        barriers = assembly.count("bar.sync")
        if not built.asm["cubin"] or (barriers < 10 and kernel is not pack_kernel):
            raise SystemExit(f"{kernel.__name__}, {dtype}: no machine code, or too few barriers")
        print(f"{kernel.__name__}, {dtype}: {barriers} barriers, "
              f"{built.metadata.shared} bytes of shared memory")  # fmt: skip


if __name__ == "__main__":
    main()
