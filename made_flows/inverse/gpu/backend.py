"""The sweeps on a GPU: plans, packed weights and the launches of the kernels.

A call launches one kernel for every weight matrix, which packs it, and one for the sweep, and
waits for nothing. It has the functions of ``made_flows.inverse.compiled.backend``, under the same
names.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.errors
from torch import Tensor

from made_flows._cache import TensorCache
from made_flows.inverse.compiled.layout import BIAS, NORM
from made_flows.inverse.compiled.packing import Layout, activations_of, context_of, knows, layout_of
from made_flows.inverse.gpu.adjoint import adjoint_kernel
from made_flows.inverse.gpu.pack import pack_kernel
from made_flows.inverse.gpu.solve import solve_kernel
from made_flows.inverse.gpu.steps import KINDS
from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.inverse.steps import Step
from made_flows.inverse.symbolic import Symbolic, symbolic_for
from made_flows.nn.spec import LayerSpec, NetworkSpec
from made_flows.univariate.step_kernel import StepKernel

FAILURES = (triton.errors.TritonError,)
"""Errors after which torch operations are to take over: a kernel that could not be built."""

INTERPRETED = not isinstance(solve_kernel, triton.JITFunction)
"""Whether ``TRITON_INTERPRET`` was set when this module was imported."""

_PANEL_UNITS = 64
"""Units of the widest layer in a panel, about."""

_PITCH = 16
"""Weights of a unit begin at a multiple of so many numbers."""

_PACKED = 16
"""Units and inputs of a block that the packing kernel takes."""


class Tiles(NamedTuple):
    """How the work is cut up; every number is a power of two, and 16 at least.

    Args:
        rows: rows of a tile.
        block: units of a block before a panel.
        step: units of a block inside a panel.
        inputs: inputs of a product.
        warps: of 32 threads each, that a program has.
    """

    rows: int
    block: int
    step: int
    inputs: int
    warps: int


class Matrix(NamedTuple):
    """What the packing of one weight matrix is told: see ``pack_kernel``."""

    units: Tensor
    limits: Tensor
    inputs: Tensor
    kept: int
    place: int
    pitch: int
    biases: int
    norms: int
    flags: int


@dataclass(frozen=True)
class Plan:
    """What does not depend on the weights: the layout, on the device.

    Args:
        layout: places in the workspace, see ``compiled.packing``.
        matrices: of every layer, then the direct connection.
        matrix_table: place and pitch of each, on the device.
        row_features, row_ranks: feature of every output, sorted, and its rank.
        arrays: other arrays of the layout, on the device, by their names.
        size: numbers in all packed weights.
        vectors: numbers in all biases and norms.
        flags: numbers after them, by which each program of the packing says that no weight that
            it saw was infinite or NaN.
        code: the activation of all hidden layers, -1 where they differ.
        constants: of the activations.
    """

    symbolic: Symbolic
    layout: Layout
    matrices: tuple[Matrix, ...]
    matrix_table: Tensor
    row_features: Tensor
    row_ranks: Tensor
    arrays: dict[str, Tensor]
    size: int
    vectors: int
    flags: int
    code: int
    constants: Tensor


@dataclass(frozen=True)
class Ready:
    """A network ready for the sweeps: its plan, and its weights packed."""

    plan: Plan
    weights: Tensor
    vectors: Tensor


# What a plan says of masks and ranks is proved by every packing.
_PLANS: TensorCache[Plan] = TensorCache(proves=True)


@lru_cache(maxsize=64)
def runs_on(device: torch.device) -> bool:
    """Tell whether the kernels run on a device: on what they were compiled for, in tests."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        return False
    if device.type == "cpu":
        return INTERPRETED
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def ready_for(network: NetworkSpec) -> Ready | None:
    """Pack a network, None where the kernels do not know its activations or dtype."""
    structure, tensors = network.structure, network.tensors
    if not knows(network):
        return None
    masks = [tensors[place] for place in structure.mask_places]
    key = (structure.key, tensors[1].dtype)
    plan = _PLANS.get(key, masks, lambda: _plan(network))
    return _pack(plan, network)


def kernel_of(step: Step) -> StepKernel | None:
    """Return what the sweep should do for a step, None if it does not know how."""
    kernel = step.kernel()
    if kernel is None or not kernel.follows_rule or kernel.kind not in KINDS:
        return None
    return kernel


# ---------------------------------------------------------------------- packing


def _plan(network: NetworkSpec) -> Plan:
    """Lay a network out on its device."""
    symbolic, structure = symbolic_for(network), network.structure
    layout = layout_of(symbolic, _PANEL_UNITS)
    depth, levels, device = structure.depth, symbolic.levels, network.tensors[1].device

    def put(array: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array, dtype=np.int32)).to(device)

    _, layers, direct = structure.unpack(network.tensors)
    starts, ranks = layout.ranks.starts, layout.ranks
    matrices: list[Matrix] = []
    place = flags = 0
    for index in range(depth + 1 + (direct is not None)):
        at = min(index, depth)
        reads_inputs = index in (0, depth + 1)
        degrees = np.repeat(np.arange(levels), np.diff(starts[at]))
        sorted_inputs = symbolic.columns if reads_inputs else symbolic.layers[index - 1].units
        below = symbolic.column_starts if reads_inputs else starts[index - 1][1:]
        kept = sorted_inputs.cpu().numpy()
        layer = direct if index > depth and direct is not None else layers[at]
        others = np.setdiff1d(np.arange(layer.weight.shape[1]), kept)
        pitch = -(-max(len(kept), 1) // _PITCH) * _PITCH
        table = layout.table[at]
        matrices.append(
            Matrix(
                put(symbolic.layers[at].units.cpu().numpy()), put(below[degrees]),
                put(np.concatenate([kept, others])), len(kept), place, pitch,
                int(table[BIAS]), int(table[NORM]), flags,
            )
        )  # fmt: skip
        place += pitch * len(degrees)
        flags += triton.cdiv(len(degrees), _PACKED)
    last = matrices[-1]
    norms = [m.norms + 2 * len(m.units) for m in matrices if m.norms >= 0]
    codes = {*(activations_of(structure) or ())}
    of_rows = np.repeat(ranks.features, np.diff(ranks.output_starts))
    names = ("features", "feature_starts", "column_starts", "output_starts", "input_starts")
    return Plan(
        symbolic,
        layout,
        tuple(matrices),
        put([(m.place, m.pitch) for m in matrices]),
        put(of_rows),
        put(np.repeat(np.arange(levels), np.diff(starts[depth]))),
        {name: put(getattr(ranks, name)) for name in (*names, "panels", "starts")}
        | {"streams": put(layout.streams), "table": put(layout.table)}
        | {"adjoint_table": put(layout.adjoint_table)},
        place,
        int(max([last.biases + starts[depth, levels], *norms])),
        flags,
        codes.pop()[0] if len(codes) == 1 else -1 if codes else 0,
        torch.from_numpy(layout.constants).to(network.tensors[1]),
    )


def _pack(plan: Plan, network: NetworkSpec) -> Ready:
    """Pack the weights as they are now."""
    ranks, layers, direct = network.structure.unpack(network.tensors)
    depth = network.structure.depth
    like = layers[0].weight.detach()
    weights, vectors = like.new_empty(plan.size), like.new_empty(plan.vectors + plan.flags)
    with _on(like):
        for index, matrix in enumerate(plan.matrices):
            layer = direct if index > depth else layers[index]
            if layer is not None and len(matrix.units):
                _pack_one(plan, matrix, layer, ranks, weights, vectors, index - depth)
    return Ready(plan, weights, vectors)


def _pack_one(
    plan: Plan,
    matrix: Matrix,
    layer: LayerSpec,
    ranks: Tensor,
    weights: Tensor,
    vectors: Tensor,
    kind: int,
) -> None:
    """Launch the packing of a matrix: of a hidden layer, the output (0) or the direct one (1)."""
    weight, mask = layer.weight.detach(), layer.mask.detach()
    bias, scale, shift = (
        vectors if tensor is None else tensor.detach().contiguous()
        for tensor in (layer.bias, layer.norm_scale, layer.norm_shift)
    )
    count = len(matrix.units)
    pack_kernel[(triton.cdiv(count, _PACKED),)](
        weights[matrix.place :], vectors[matrix.biases :], vectors[max(matrix.norms, 0) :],
        vectors[plan.vectors + matrix.flags :], weight, mask, bias, scale, shift, ranks,
        matrix.units, matrix.limits, matrix.inputs, plan.row_features, plan.row_ranks, count,
        matrix.kept, len(matrix.inputs), matrix.pitch,
        *weight.stride(), *mask.stride(),
        HAS_BIAS=layer.bias is not None, HAS_NORM=layer.norm_scale is not None, OUTPUT=kind >= 0,
        VECTORS=kind < 1, BLOCK=_PACKED, INPUTS=_PACKED,
    )  # fmt: skip


# ---------------------------------------------------------------------- sweeps


def solve(ready: Ready, kernel: StepKernel, problem: Problem) -> Tensor:
    """Solve as :func:`made_flows.inverse.eager.solve` does, in the network's dtype."""
    network, _, noise, known, prefix = problem
    rows, dimension, parts = noise.shape
    plan, like = ready.plan, ready.weights
    values = like.new_empty(rows, dimension)
    if rows:
        noise = noise.detach().to(like.dtype).contiguous()
        known = values if known is None else known.detach().to(like.dtype).contiguous()
        context, context_rows = context_of(plan.symbolic, network) or (like, 1)
        tiles, programs = tiles_for(rows, like)
        size, arrays = plan.layout.rows * tiles.rows, plan.arrays
        work = like.new_empty(programs * size)
        widest = max(network.structure.parameters)
        with _on(like):
            solve_kernel[(programs,)](
                noise, known, values, work, ready.weights, ready.vectors, plan.constants, context,
                arrays["table"], plan.matrix_table, arrays["streams"], arrays["panels"],
                arrays["starts"], arrays["features"], arrays["feature_starts"],
                arrays["column_starts"], arrays["output_starts"], arrays["input_starts"],
                rows, context_rows, prefix, plan.symbolic.levels, len(arrays["panels"]) - 1,
                network.structure.depth, size, dimension, plan.vectors, plan.flags,
                PARTS=parts, DIRECT=network.structure.direct, ONE_HOT=kernel.one_hot,
                KIND=kernel.kind, NUMBERS=_numbers(kernel), WIDTH=_width(kernel, widest),
                CODE=plan.code, PRECISION=_precision(like), ROWS=tiles.rows, BLOCK=tiles.block,
                STEP=tiles.step, INPUTS=tiles.inputs, num_warps=tiles.warps,
            )  # fmt: skip
    return values


def adjoint(ready: Ready, problem: TransposedProblem) -> Tensor:
    """Solve the transposed system as ``made_flows.inverse.eager.adjoint`` does."""
    network, gradient, slopes, x = problem
    rows, dimension = gradient.shape
    plan, like = ready.plan, ready.weights
    solution = like.new_empty(rows, dimension)
    if rows:
        gradient, slopes, x = (
            tensor.detach().to(like.dtype).contiguous() for tensor in (gradient, slopes, x)
        )
        context, context_rows = context_of(plan.symbolic, network) or (like, 1)
        tiles, programs = tiles_for(rows, like)
        size, arrays = plan.layout.adjoint_rows * tiles.rows, plan.arrays
        work = like.new_empty(programs * size)
        with _on(like):
            adjoint_kernel[(programs,)](
                x, gradient, slopes, solution, work, ready.weights, ready.vectors, plan.constants,
                context, arrays["adjoint_table"], plan.matrix_table, arrays["streams"],
                arrays["panels"], arrays["starts"], arrays["features"], arrays["feature_starts"],
                arrays["output_starts"], rows, context_rows, plan.symbolic.levels,
                len(arrays["panels"]) - 1, network.structure.depth, slopes.shape[-1],
                plan.layout.lambda_place, size, dimension,
                DIRECT=network.structure.direct, CODE=plan.code, PRECISION=_precision(like),
                ROWS=tiles.rows, BLOCK=tiles.block, STEP=tiles.step, INPUTS=tiles.inputs,
                num_warps=tiles.warps,
            )  # fmt: skip
    return solution


def tiles_for(rows: int, like: Tensor) -> tuple[Tiles, int]:
    """Choose tiles for so many rows, and how many programs share them.

    Every multiprocessor should have a tile before tiles grow: a large one reuses every weight that
    it reads more often.
    """
    processors = _processors(like.device) if like.is_cuda else 1
    most = 16 if like.dtype == torch.float64 else 64
    height = 16
    while height < most and rows >= 2 * height * processors:
        height *= 2
    tiles = Tiles(height, 32, 16, 32 if like.dtype == torch.float32 else 16, 4)
    return tiles, min(triton.cdiv(rows, height), 4 * processors if like.is_cuda else 2)


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _precision(like: Tensor) -> str:
    """Return how products are computed: in full, unless torch was told that tf32 will do."""
    fast = like.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if fast else "ieee"


def _numbers(kernel: StepKernel) -> tuple[float, ...]:
    """Return what a step is told; what counts or chooses is an integer."""
    whole = (0, 1, 4, 16) if kernel.kind == "rational_spline" else (0, 1)
    return tuple(int(n) if i in whole else n for i, n in enumerate(kernel.numbers))


def _width(kernel: StepKernel, parameters: int) -> int:
    """Return a power of two that parameters of one kind fit in."""
    if kernel.kind == "rational_spline":
        parameters = int(kernel.numbers[4])
    return 1 << (parameters - 1).bit_length()


def _on(tensor: Tensor) -> Any:
    """Return a context in which launches go to a tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
