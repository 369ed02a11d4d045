"""The compiled inverse on the CPU: packs networks, and runs the sweeps over threads."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows._cache import Proof, TensorCache
from made_flows.inverse.compiled import packing, placement, simd
from made_flows.inverse.compiled.activations import ActivationRows, function_of
from made_flows.inverse.compiled.adjoint import Gradients, adjoint_tiles
from made_flows.inverse.compiled.compilation import Kernel, address_of
from made_flows.inverse.compiled.layout import Blocks, StepCall, Sweep, Units, Written
from made_flows.inverse.compiled.parallel import Scores, score_tiles
from made_flows.inverse.compiled.placement import Context, Layout
from made_flows.inverse.compiled.products import SPARE, ProductRows, add_product, add_transposed
from made_flows.inverse.compiled.solve import Rows, solve_tiles
from made_flows.inverse.compiled.steps import find_step, has_step
from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.inverse.steps import BijectionStep, HeadStep, Step
from made_flows.inverse.symbolic import Symbolic, symbolic_for
from made_flows.nn.spec import NetworkSpec, Structure
from made_flows.univariate.step_kernel import StepKernel

FAILURES: tuple[type[Exception], ...] = ()
"""Errors after which torch operations are to take over: none."""

_ROWS_ALONE = 2_000_000
"""Multiplications below which one thread does everything: a thread that sleeps takes up to 0.05 ms
to wake, in which another does some 2 million."""

_ROWS_EACH = 1
"""Rows up to which each is a tile of its own: vectors of one row's units, not of a unit's rows."""

_ADJOINT = Kernel(adjoint_tiles)
_SWEEPS = {"step": Kernel(solve_tiles), "score": Kernel(score_tiles)}
"""The kernels that call a step, by the function of its module that they call."""


_LOCAL = threading.local()


def _workspace(size: int, dtype: torch.dtype) -> Written:
    """Return this thread's workspace: aligned to cache lines, kept, never shrunk."""
    spaces: dict[torch.dtype, Written] = _LOCAL.__dict__.setdefault("spaces", {})
    space = spaces.get(dtype)
    if space is None or len(space.value) < size + SPARE:
        room = torch.empty(size + SPARE, dtype=dtype, device="cpu")
        space = spaces[dtype] = Written(room.numpy())
    return space


def _over_rows(
    kernel: Kernel,
    rows: int,
    work: float,
    lines: int,
    dtype: torch.dtype,
    arguments: Any,
    proof: Proof | None = None,
) -> None:
    """Call a kernel for all rows, on as many threads as torch.

    Args:
        kernel: takes a slot, tiles, workspaces and the arguments.
        rows: number of rows.
        work: multiplications for a row.
        lines: rows of a tile's workspace.
        dtype: of the workspace.
        arguments: the others.
        proof: what threads read that have no rows.
    """
    threads = threads_for(rows, work, dtype)
    lanes = lanes_of(rows, dtype, threads)
    size, afterwards = lines * lanes, (0, 0)
    if proof is not None:
        threads, afterwards = torch.get_num_threads(), proof.call
    spaces = _workspace(threads * size, dtype)
    kernel(rows, lanes, size, threads, spaces, *arguments, afterwards=afterwards)


def threads_for(rows: int, work: float, dtype: torch.dtype) -> int:
    """Return how many threads some rows are worth, with so many multiplications in each."""
    if rows * work < _ROWS_ALONE:
        return 1
    vector = simd.VECTOR_BYTES // dtype.itemsize  # a vector of rows for each
    return max(1, min(torch.get_num_threads(), -(-rows // vector)))


@lru_cache(maxsize=256)
def lanes_of(rows: int, dtype: torch.dtype, threads: int) -> int:
    """Return how many rows a tile has: about as many in each, as many tiles for every thread."""
    if rows <= _ROWS_EACH:
        return 1
    vector = simd.VECTOR_BYTES // dtype.itemsize
    vectors = -(-rows // vector)
    count = -(-vectors // simd.VECTORS)  # every broadcast weight is used for all vectors
    if count < 4 * threads:
        count = min(-(-count // threads) * threads, vectors)
    return -(-vectors // count) * vector


# ---------------------------------------------------------------------- entries


class Call(NamedTuple):
    """A network and a step as a kernel takes them: all but the rows.

    Args:
        sequential: whether values are solved for, not known.
        alone: whether densities come without images, as those of heads do.
        sweep: all that the kernel is told besides the rows, a :class:`Sweep`.
        lines: rows of a tile's workspace.
        work: multiplications for a row.
        dtype: of the network.
    """

    sequential: bool
    alone: bool
    sweep: Written
    lines: int
    work: int
    dtype: torch.dtype

    def run(
        self, batch: Rows | Scores, context: Context | None, proof: Proof | None = None
    ) -> None:
        """Call the kernel for a batch, and see to it that a proof is read."""
        sweep = self.sweep if context is None else _in_context(self.sweep, context)
        kernel = _SWEEPS["step" if self.sequential else "score"]
        _over_rows(kernel, batch.size, self.work, self.lines, self.dtype, (batch, sweep), proof)


@dataclass
class Ready:
    """A network ready for the compiled sweeps, and arguments of theirs once they were needed.

    Args:
        symbolic, layout: what its masks say.
        numbers: what :func:`~made_flows.inverse.compiled.packing.pack` made of its weights.
    """

    symbolic: Symbolic
    layout: Layout
    numbers: NDArray[Any]
    arguments: dict[Any, Written] = field(default_factory=dict)
    calls: dict[Any, Call] = field(default_factory=dict)

    def written(self, name: Any, make: Callable[[], Any]) -> Written:
        """Return an argument that is the same in every call with these weights."""
        found = self.arguments.get(name)
        if found is None:
            found = self.arguments[name] = Written(make())
        return found

    def blocks(self, *, transposed: bool = False) -> Written:
        """Return the weights in blocks."""
        name = "blocks", transposed
        make = partial(blocks_of, self.numbers, self.layout, transposed=transposed)
        return self.written(name, make)

    def units(self, table: str, context: Context | None = None) -> Written:
        """Return what units are made of: the same in every call, but for what a context brings.

        ``table`` is that of the layout's which says where they stand.
        """
        make = partial(units_of, self.symbolic.structure, self.layout, self.numbers, table)
        written = self.written(table, make)
        return written if context is None else _in_context(written, context)

    def call(self, function: str, kernel: StepKernel, parts: int = 1) -> Call:
        """Return all that a kernel is told besides the rows, with a step's function."""
        # The numbers and not the rule, whose constants may be changed.
        key = function, kernel.kind, kernel.numbers, parts, kernel.one_hot
        found = self.calls.get(key)
        if found is None:
            single, layout = self.numbers.dtype == np.float32, self.layout
            units: Any = self.units("table")
            step: Any = call_of(*key[1:], single, function)
            ranks: Any = layout.written("ranks")
            blocks: Any = self.blocks()
            sweep = Written(Sweep(units, ranks, blocks, step, layout.scratch))
            # The layout has room for two parts of noise, which are the last rows of the workspace.
            lines = layout.rows + max(parts - 2, 0)
            dtype = torch.float32 if single else torch.float64
            place = function == "step", function == "score" and kernel.head
            found = self.calls[key] = Call(*place, sweep, lines, layout.size, dtype)
        return found


_READY: TensorCache[Ready] = TensorCache()


def layout_of(symbolic: Symbolic) -> Layout:
    """Return the layout of a network, kept with its symbolic phase."""
    layout: Layout | None = symbolic.prepared.get("cpu")
    if layout is None:
        layout = symbolic.prepared["cpu"] = placement.layout_of(symbolic)
    return layout


def ready_for(network: NetworkSpec) -> Ready | None:
    """Pack a network, None where the compiled sweeps do not know its activations or dtype."""
    structure, tensors = network.structure, network.tensors
    if not placement.knows(network):
        return None

    def make() -> Ready:
        symbolic = symbolic_for(network)
        layout = layout_of(symbolic)
        return Ready(symbolic, layout, placement.array_of(packing.pack(symbolic, layout, tensors)))

    return _READY.get(structure.key, tensors, make)


def kernel_of(step: Step) -> StepKernel | None:
    """Return what the compiled sweep should do for a step, None if it does not know how."""
    kernel = step.kernel()
    known = kernel is not None and kernel.gives_values and has_step(kernel.kind, "step")
    return kernel if known else None


def score_kernel_of(step: HeadStep | BijectionStep) -> StepKernel | None:
    """Return what the compiled parallel pass should do for a step, None if it does not know how."""
    kernel = step.score_kernel()
    known = kernel is not None and kernel.follows_rule and has_step(kernel.kind, "score")
    return kernel if known else None


@lru_cache(maxsize=256)
def call_of(
    kind: str,
    numbers: tuple[float, ...],
    parts: int,
    one_hot: bool,
    single: bool,
    function: str,
) -> Written:
    """Return how the kernels call a step, a :class:`StepCall`."""
    address = address_of(find_step(kind, function), single)
    return Written(StepCall(address, np.array(numbers), parts, one_hot))


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in one piece; without the calls that a plain tensor does not need."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def blocks_of(numbers: NDArray[Any], layout: Layout, *, transposed: bool = False) -> Blocks:
    """Return weights in blocks, of what was packed, and the function that multiplies by them."""
    single, function = numbers.dtype == np.float32, add_transposed if transposed else add_product
    product = address_of(function, single, ProductRows, weights=True)
    where = layout.written("blocks"), layout.written("direct_blocks")
    parts: Any = numbers[: layout.size], *where, product
    return Blocks(*parts)


def _in_context(written: Written, context: Context) -> Written:
    """Return units, or what begins with them, with what a context contributes to this call."""
    own = array("q", placement.context_words(context))
    return Written(written.value, own + written.words[len(own) :])


def units_of(structure: Structure, layout: Layout, numbers: NDArray[Any], table: str) -> Units:
    """Return what units are made of, of what was packed, without what a context contributes."""
    functions: Any = _functions(structure, numbers.dtype == np.float32, table == "adjoint_table")
    where = (layout.written(name) for name in (table, "streams", "constants"))
    parts: Any = numbers[:0], 1, numbers[layout.size :], *where, functions
    return Units(*parts)


@lru_cache(maxsize=256)
def _functions(structure: Structure, single: bool, slopes: bool) -> Written:
    """Return where the functions are that activate, and where those of their slopes."""
    codes = [code for code, _ in placement.activations_of(structure) or ()]
    found = np.zeros((2, len(codes)), np.int64)
    for row in range(1 + slopes):
        for layer, code in enumerate(codes):
            function = function_of(code, slope=row == 1)
            found[row, layer] = (function and address_of(function, single, ActivationRows)) or 0
    return Written(found)


def solve(ready: Ready, kernel: StepKernel, problem: Problem) -> Tensor:
    """Solve as :func:`made_flows.inverse.eager.solve` does, in the network's dtype."""
    network, _, noise, known, prefix = problem
    rows, dimension, parts = noise.shape
    dtype = network.tensors[1].dtype
    values = torch.empty(rows, dimension, dtype=dtype, device="cpu")
    if rows:
        noise = _plain(noise, dtype)
        known = noise if known is None else _plain(known, dtype)
        # By address; the names above keep the tensors alive.
        batch = Rows(rows, noise.data_ptr(), known.data_ptr(), values.data_ptr(), prefix)
        context = placement.context_of(ready.symbolic, network)
        ready.call("step", kernel, parts).run(batch, context)
    return values


def run(
    calls: Sequence[Call],
    x: Tensor,
    contexts: Sequence[Context | None],
    proof: Proof | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Map values (N, D), or noise (N, D, P), by networks and steps in turn.

    A proof of the weights is read on the way, by threads that have no rows.

    Returns:
        The last's images (N, D), None for the score of a head, and the sum of the densities (N,)
        of those whose values are known, None without one.
    """
    (rows, features, *_), dtype, images, density = x.shape, calls[-1].dtype, None, None
    x = _plain(x, dtype)
    source, target = x.data_ptr(), 0
    if not calls[-1].alone:
        images = torch.empty(rows, features, dtype=dtype, device="cpu")
        target = images.data_ptr()
    for call, context in zip(calls, contexts, strict=True):
        batch: Rows | Scores
        if call.sequential:
            batch = Rows(rows, source, source, target, 0)
        else:
            adds = density is not None
            density = torch.empty(rows, dtype=dtype, device="cpu") if density is None else density
            batch = Scores(rows, source, target, density.data_ptr(), adds)
        if rows:
            call.run(batch, context, proof)
        source = target  # a tile's values are read before they are overwritten
    return images, density


def adjoint(ready: Ready, problem: TransposedProblem) -> Tensor:
    """Solve the transposed system as ``made_flows.inverse.eager.adjoint`` does."""
    network, gradient, slopes, x = problem
    rows, dimension = gradient.shape
    dtype = network.tensors[1].dtype
    layout = ready.layout
    solution = torch.empty(rows, dimension, dtype=dtype, device="cpu")
    if rows:
        gradient, slopes, x = (_plain(tensor, dtype) for tensor in (gradient, slopes, x))
        batch = Gradients(
            rows, x.data_ptr(), gradient.data_ptr(), slopes.data_ptr(), solution.data_ptr(),
            slopes.shape[-1],
        )  # fmt: skip
        context = placement.context_of(ready.symbolic, network)
        units = ready.units("adjoint_table", context)
        blocks, back = ready.blocks(), ready.blocks(transposed=True)
        arguments = batch, units, layout.written("ranks"), blocks, back, layout.lambda_place
        _over_rows(_ADJOINT, rows, 2 * layout.size, layout.adjoint_rows, dtype, arguments)
    return solution
