"""The compiled inverse on the CPU: packs plans, and runs the sweeps over threads.

Rows are shared out over a plain pool of Python threads whose kernels hold no interpreter lock.
Numba's own parallel backends are not safe in forked processes, nor when several threads call.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from made_flows._cache import TensorCache
from made_flows.inverse.compiled import adjoint as adjoint_sweep
from made_flows.inverse.compiled import elementwise, packing, products, simd, steps, units
from made_flows.inverse.compiled import solve as solve_sweep
from made_flows.inverse.compiled.packing import Layout, Weights
from made_flows.inverse.numeric import symbolic_for
from made_flows.inverse.steps import Step
from made_flows.inverse.symbolic import Symbolic
from made_flows.nn.spec import parse, unpack
from made_flows.univariate.step_kernel import StepKernel

__all__ = ["Ready", "adjoint", "kernel_of", "ready_for", "solve"]

_KINDS = {
    "affine": 0,
    "affine_inverse": 1,
    "gated": 2,
    "gated_inverse": 3,
    "bernoulli": 4,
    "categorical": 5,
    "mixture": 6,
}
_DTYPES = (torch.float32, torch.float64)
_NOTHING = {dtype: torch.empty(0, 0, dtype=dtype).numpy() for dtype in _DTYPES}

_ROWS_ALONE = 6_000_000
"""Multiplications below which one thread does everything: handing work to another takes about
0.1 ms, in which one does some 5 million."""


# ---------------------------------------------------------------------- compilation


def _sources() -> str:
    """A digest of everything the kernels are made of: Numba itself looks at one file only."""
    digest = hashlib.sha256()
    for module in (simd, elementwise, products, units, steps, solve_sweep, adjoint_sweep):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


class _Compiled:
    """A kernel, compiled at its first call and kept on disk where a folder can be written."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.call: Callable[..., None] = self._with_cache()

    def _with_cache(self) -> Callable[..., None]:
        try:
            compiled = njit(nogil=True, error_model="numpy", cache=True)(self.function)
            compiled._cache._cache_file._source_stamp = _sources()
        except (RuntimeError, OSError, AttributeError):
            return self._without_cache()
        return compiled  # type: ignore[no-any-return]

    def _without_cache(self) -> Callable[..., None]:
        compiled: Callable[..., None] = njit(nogil=True, error_model="numpy")(self.function)
        return compiled

    def __call__(self, *arguments: Any) -> None:
        try:
            self.call(*arguments)
        except OSError:  # the cache could not be written after all
            self.call = self._without_cache()
            self.call(*arguments)


_SOLVE = _Compiled(solve_sweep.solve_tiles.py_func)
_ADJOINT = _Compiled(adjoint_sweep.adjoint_tiles.py_func)


# ---------------------------------------------------------------------- threads

_POOL: ThreadPoolExecutor | None = None
_POOL_LOCK = threading.Lock()
_LOCAL = threading.local()


def _forget_pool() -> None:
    """Threads do not survive a fork: the child makes its own when it needs them."""
    global _POOL, _POOL_LOCK
    _POOL, _POOL_LOCK = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _pool() -> ThreadPoolExecutor:
    global _POOL  # noqa: PLW0603
    with _POOL_LOCK:
        if _POOL is None:
            # As many as the machine has; how many are used is decided call by call.
            _POOL = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="made_flows")
        return _POOL


def _workspace(size: int, dtype: torch.dtype) -> NDArray[Any]:
    """This thread's workspace: aligned to cache lines, kept from call to call, never shrunk."""
    spaces: dict[torch.dtype, NDArray[Any]] = _LOCAL.__dict__.setdefault("spaces", {})
    space = spaces.get(dtype)
    if space is None or len(space) < size:
        space = spaces[dtype] = torch.empty(size, dtype=dtype).numpy()
    return space


def _over_rows(rows: int, work: float, itemsize: int, run: Callable[[int, int, int], None]) -> None:
    """Call run(first row, last row, lanes) for shares of the rows, on as many threads as torch."""
    vector = simd.VECTOR_BYTES // itemsize
    threads = max(1, min(torch.get_num_threads(), -(-rows // vector)))
    if rows * work < _ROWS_ALONE:
        threads = 1
    share = -(-rows // threads)
    lanes = next((vector * n for n in (1, 2) if vector * n >= share), vector * 4)
    share = -(-share // lanes) * lanes
    shares = [(first, min(first + share, rows)) for first in range(0, rows, share)]
    others = [_pool().submit(run, first, last, lanes) for first, last in shares[1:]]
    run(*shares[0], lanes)
    for other in others:
        other.result()


# ---------------------------------------------------------------------- entries


@dataclass
class Ready:
    """A network ready for the compiled sweeps; transposed weights once an adjoint needed them."""

    symbolic: Symbolic
    layout: Layout
    weights: Weights
    transposed: NDArray[Any] | None = None


_READY: TensorCache[Ready] = TensorCache()


def ready_for(text: str, tensors: Sequence[Tensor]) -> Ready | None:
    """The network packed, None where the compiled sweeps do not know its activations or dtype."""
    if tensors[1].dtype not in _DTYPES or not _knows_activations(text):
        return None

    def make() -> Ready:
        symbolic = symbolic_for(text, tensors)
        layout = symbolic.prepared.get("cpu")
        if layout is None:
            layout = symbolic.prepared["cpu"] = packing.layout_of(symbolic)
        return Ready(symbolic, layout, packing.pack(symbolic, layout, tensors))

    return _READY.get(text, tensors, make)


@lru_cache(maxsize=1024)
def _knows_activations(text: str) -> bool:
    names = (word.split(":")[0] for word in parse(text).activations)
    return all(name in elementwise.ACTIVATION_CODES for name in names)


def kernel_of(step: Step) -> StepKernel | None:
    """What the compiled sweep should do for a step, None if it does not know how."""
    kernel = step.kernel()
    return kernel if kernel is not None and kernel.kind in _KINDS else None


def _instructions(kernel: StepKernel, parts: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A step in numbers: kind, rule, whether swapped, parts of noise, one-hot; its constants."""
    rule = kernel.rule
    name, constants = (None, (0.0, 0.0)) if rule is None else (rule.rule, rule.constants)
    return _in_numbers(kernel.kind, name, constants, kernel.swapped, parts)


@lru_cache(maxsize=256)
def _in_numbers(
    kind: str, rule: str | None, constants: tuple[float, float], swapped: bool, parts: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # By their values: the constants of a rule may be changed.
    code = 0 if rule is None else elementwise.RULE_CODES[rule]
    numbers = [_KINDS[kind], code, swapped, parts, kind == "categorical"]
    return np.array(numbers, dtype=np.int64), np.array(constants)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values in one piece; without the calls that a plain tensor does not need."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    array: NDArray[Any] = (tensor if tensor.is_contiguous() else tensor.contiguous()).numpy()
    return array


def _bases(
    symbolic: Symbolic, tensors: Sequence[Tensor], bases: Sequence[Tensor], dtype: Any
) -> tuple[NDArray[Any], int]:
    """The context's contributions, unit by unit, and how many rows there are of them."""
    if not bases:
        return np.zeros(0, dtype), 1
    _, layers, _ = unpack(symbolic.structure, tensors, bases)
    parts = [
        values.detach().index_select(1, place.units).t().reshape(-1)
        for place, layer in zip(symbolic.layers, layers, strict=True)
        for values in (layer.base, layer.gate)
        if values is not None
    ]
    return torch.cat(parts).numpy(), len(bases[0])


def solve(
    ready: Ready,
    kernel: StepKernel,
    noise: Tensor,
    tensors: Sequence[Tensor],
    bases: Sequence[Tensor],
    known: Tensor | None = None,
    prefix: int = 0,
) -> Tensor:
    """The values, as :func:`made_flows.inverse.eager.solve` gives them, in the noise's dtype."""
    rows, dimension, parts = noise.shape
    dtype = noise.dtype
    symbolic, layout, packed = ready.symbolic, ready.layout, ready.weights
    values = torch.empty(rows, dimension, dtype=dtype)
    if rows:
        instructions, constants = _instructions(kernel, parts)
        context_term, base_rows = _bases(symbolic, tensors, bases, packed.weights.dtype)
        flat = _numpy(noise).reshape(rows, dimension * parts)
        given = _NOTHING[dtype] if known is None else _numpy(known.to(dtype))
        filled = values.numpy()

        def run(first: int, last: int, lanes: int) -> None:
            _SOLVE(
                first,
                last,
                lanes,
                flat,
                given,
                prefix,
                filled,
                _workspace(layout.rows * lanes, dtype),
                packed.weights,
                packed.vectors,
                packed.constants,
                context_term,
                base_rows,
                layout.table,
                layout.starts,
                layout.streams,
                layout.features,
                layout.feature_starts,
                layout.column_starts,
                layout.output_starts,
                layout.input_starts,
                layout.panels,
                layout.blocks,
                layout.direct_blocks,
                instructions,
                constants,
                layout.scratch,
            )

        _over_rows(rows, layout.size, values.element_size(), run)
    return values


def adjoint(
    ready: Ready,
    gradient: Tensor,
    slopes: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    bases: Sequence[Tensor],
) -> Tensor:
    """The solution of the transposed system, as ``made_flows.inverse.eager.adjoint`` gives it."""
    rows, dimension = gradient.shape
    dtype = gradient.dtype
    symbolic, layout, packed = ready.symbolic, ready.layout, ready.weights
    transposed = ready.transposed
    if transposed is None:
        # Of the same weights: what is ready was compared with them when it was fetched.
        transposed = ready.transposed = packing.pack_transposed(symbolic, layout, tensors)
    solution = torch.empty(rows, dimension, dtype=dtype)
    if rows:
        context_term, base_rows = _bases(symbolic, tensors, bases, packed.weights.dtype)
        widest = slopes.shape[-1]
        at = _numpy(x)
        own = _numpy(gradient)
        derivatives = _numpy(slopes).reshape(rows, dimension * widest)
        filled = solution.numpy()

        def run(first: int, last: int, lanes: int) -> None:
            _ADJOINT(
                first,
                last,
                lanes,
                at,
                own,
                derivatives,
                filled,
                _workspace(layout.adjoint_rows * lanes, dtype),
                packed.weights,
                packed.vectors,
                packed.constants,
                context_term,
                base_rows,
                layout.adjoint_table,
                layout.starts,
                layout.streams,
                layout.features,
                layout.feature_starts,
                layout.output_starts,
                layout.panels,
                layout.blocks,
                transposed,
                layout.back_blocks,
                layout.direct_back,
                layout.lambda_place,
                widest,
            )

        _over_rows(rows, 2 * layout.size, solution.element_size(), run)
    return solution
