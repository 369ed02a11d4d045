"""The sweeps on a GPU: plans, packed weights and the launches of the kernels.

A call launches one kernel for every weight matrix, which packs it, and one for the sweep, on the
current stream of the weights' device, and waits for nothing. Only a first call waits: for its plan,
and to time some configurations. The functions of ``made_flows.inverse.compiled.backend``
have the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from made_flows._torch import is_recorded
from made_flows.inverse.compiled.layout import BIAS, NORM, Ranks
from made_flows.inverse.compiled.placement import (
    Layout,
    activations_of,
    context_of,
    knows,
    layout_of,
)
from made_flows.inverse.gpu.adjoint import Gradients, adjoint_kernel
from made_flows.inverse.gpu.autotuning import Config, configs, fastest, launching, processors
from made_flows.inverse.gpu.pack import Order, Own, Packed, pack_kernel
from made_flows.inverse.gpu.solve import Values, solve_kernel
from made_flows.inverse.gpu.steps import KINDS, StepMeta
from made_flows.inverse.gpu.tile import Meta, Net, Sizes
from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.inverse.steps import Step
from made_flows.inverse.symbolic import Symbolic, symbolic_for
from made_flows.nn.spec import NetworkSpec
from made_flows.univariate.step_kernel import StepKernel

FAILURES = (triton.errors.TritonError,)
"""Errors after which torch operations are to take over: a kernel that could not be built."""

INTERPRETED = not isinstance(solve_kernel, triton.JITFunction)
"""Whether ``TRITON_INTERPRET`` was set when this module was imported."""

_PANEL_UNITS = 60
"""Units of the widest layer in a panel, about: in whole ranks seldom more than 64, which are two
blocks; a few units more would take a third."""

_PITCH = 16
"""Weights of a unit begin at a multiple of so many numbers."""

_MOST_NUMBERS = 2**31
"""Numbers in all weights and masks, which kernels count in 32 bits."""

_PACKED = 16
"""Units and inputs of a block that the packing kernel takes."""


class Matrix(NamedTuple):
    """What the packing of one weight matrix is told: see ``pack_kernel``."""

    order: Order
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
        layout: places in the workspace, see ``compiled.placement``.
        matrices: of every layer, then the direct connection.
        net, adjoint_net: what the kernels read, but for what each call brings.
        size: numbers in all packed weights.
        vectors: numbers in all biases and norms.
        flags: numbers after them, by which each program of the packing says that no weight that
            it saw was infinite or NaN.
        code: the activation of all hidden layers, -1 where they differ.
        stream: that it was made on.
    """

    symbolic: Symbolic
    layout: Layout
    matrices: tuple[Matrix, ...]
    net: Net
    adjoint_net: Net
    size: int
    vectors: int
    flags: int
    code: int
    stream: int

    def tensors(self) -> Iterator[Tensor]:
        """List what the kernels read."""
        yield self.adjoint_net.table
        yield self.adjoint_net.sizes
        yield from (array for array in self.net if array is not None)
        for matrix in self.matrices:
            yield from matrix.order
        for layer in self.symbolic.layers:
            yield layer.units


@dataclass(frozen=True)
class Ready:
    """A network ready for the sweeps: its plan, and its weights packed."""

    plan: Plan
    weights: Tensor
    vectors: Tensor


# What a plan says of masks and ranks is proved by every packing.
_PLANS: TensorCache[Plan] = TensorCache(proves=True)

# Why no weights can be packed on a device: what is missing there is missing in every call.
_BROKEN: dict[torch.device, triton.errors.TritonError] = {}

# Plans that a CUDA graph reads whenever it is replayed, by their ids: for good.
_RECORDED: dict[int, Plan] = {}


@lru_cache(maxsize=64)
def runs_on(device: torch.device) -> bool:
    """Tell whether the kernels run on a device: on what they were compiled for, in tests."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        return False
    if device.type == "cpu":
        return INTERPRETED
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def ready_for(network: NetworkSpec) -> Ready | None:
    """Pack a network, None where the kernels do not know its activations, dtype or size."""
    structure, tensors = network.structure, network.tensors
    if not knows(network) or sum(map(Tensor.numel, tensors)) >= _MOST_NUMBERS:
        return None
    if tensors[1].device in _BROKEN:
        raise _BROKEN[tensors[1].device].with_traceback(None)
    masks = [tensors[place] for place in structure.mask_places]
    key = (structure.key, tensors[1].dtype)
    plan = _PLANS.get(key, masks, lambda: _plan(network))
    if is_recorded(tensors[1]):
        _RECORDED[id(plan)] = plan
    elif _stream_of(tensors[1]) != plan.stream:
        # Should the plan be dropped, its memory is not another's before this call is done.
        for tensor in plan.tensors():
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
    try:
        return _pack(plan, network)
    except FAILURES as failure:
        if not is_recorded(tensors[1]):
            _BROKEN[tensors[1].device] = failure
        raise


def kernel_of(step: Step) -> StepKernel | None:
    """Return what the sweep should do for a step, None if it does not know how."""
    kernel = step.kernel()
    if kernel is None or not kernel.gives_values or kernel.kind not in KINDS:
        return None
    return kernel


# ---------------------------------------------------------------------- packing


def _plan(network: NetworkSpec) -> Plan:
    """Lay a network out on its device."""
    if is_recorded(network.tensors[1]):
        raise RuntimeError(
            "Expected a network whose sequential inverse was called before a CUDA graph records "
            "it, with the masks that it has; got one whose masks are still to be read"
        )
    symbolic, structure = symbolic_for(network), network.structure
    layout = layout_of(symbolic, _PANEL_UNITS)
    depth, levels, device = structure.depth, symbolic.levels, network.tensors[1].device

    def put(array: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array, dtype=np.int32)).to(device)

    _, layers, direct = structure.unpack(network.tensors)
    starts, ranks = layout.ranks.starts, layout.ranks
    row_features = put(np.repeat(ranks.features, np.diff(ranks.output_starts)))
    row_ranks = put(np.repeat(np.arange(levels), np.diff(starts[depth])))
    matrices: list[Matrix] = []
    place = flags = 0
    for index, layer in enumerate(layers if direct is None else [*layers, direct]):
        at = min(index, depth)
        reads_inputs = index in (0, depth + 1)
        degrees = np.repeat(np.arange(levels), np.diff(starts[at]))
        sorted_inputs = symbolic.columns if reads_inputs else symbolic.layers[index - 1].units
        below = symbolic.column_starts if reads_inputs else starts[index - 1][1:]
        kept = sorted_inputs.cpu().numpy()
        others = np.setdiff1d(np.arange(layer.weight.shape[1]), kept)
        pitch = -(-max(len(kept), 1) // _PITCH) * _PITCH
        table = layout.table[at]
        order = Order(
            put(symbolic.layers[at].units.cpu().numpy()), put(below[degrees]),
            put(np.concatenate([kept, others])), row_features, row_ranks,
        )  # fmt: skip
        vectors = int(table[BIAS]), int(table[NORM])
        matrices.append(Matrix(order, len(kept), place, pitch, *vectors, flags))
        place += pitch * len(degrees)
        flags += triton.cdiv(len(degrees), _PACKED)
    last = matrices[-1]
    norms = [m.norms + 2 * len(m.order.units) for m in matrices if m.norms >= 0]
    codes = {*(activations_of(structure) or ())}
    vector_count = int(max([last.biases + starts[depth, levels], *norms]))
    sizes = Sizes(
        levels, len(ranks.panels) - 1, depth, len(structure.parameters), layout.rows, vector_count,
        flags, layout.lambda_place,
    )  # fmt: skip
    net = Net(
        weights=None,
        vectors=None,
        context=None,
        matrices=put([(m.place, m.pitch) for m in matrices]),
        constants=torch.from_numpy(layout.constants).to(network.tensors[1]),
        table=put(layout.table),
        streams=put(layout.streams),
        sizes=put(sizes),
        **{name: put(getattr(ranks, name)) for name in Ranks._fields},
    )
    adjoint_sizes = put(sizes._replace(lines=layout.adjoint_rows))
    return Plan(
        symbolic,
        layout,
        tuple(matrices),
        net,
        net._replace(table=put(layout.adjoint_table), sizes=adjoint_sizes),
        place,
        vector_count,
        flags,
        codes.pop()[0] if len(codes) == 1 else -1 if codes else 0,
        _stream_of(network.tensors[1]),
    )


def _pack(plan: Plan, network: NetworkSpec) -> Ready:
    """Pack the weights as they are now."""
    ranks, layers, direct = network.structure.unpack(network.tensors)
    like, depth = layers[0].weight.detach(), network.structure.depth
    weights, vectors = like.new_empty(plan.size), like.new_empty(plan.vectors + plan.flags)
    every = layers if direct is None else [*layers, direct]
    with _on(like), launching():
        for index, (matrix, layer) in enumerate(zip(plan.matrices, every, strict=True)):
            order, count = matrix.order, len(matrix.order.units)
            if not count:
                continue
            weight, mask = layer.weight.detach(), layer.mask.detach()
            bias, scale, shift = (
                None if tensor is None else tensor.detach().contiguous()
                for tensor in (layer.bias, layer.norm_scale, layer.norm_shift)
            )
            own = Own(weight, weight.stride(), mask, mask.stride(), bias, scale, shift, ranks)
            packed = Packed(
                weights[matrix.place :], vectors[matrix.biases :], vectors[max(matrix.norms, 0) :],
                vectors[plan.vectors + matrix.flags :],
            )  # fmt: skip
            pack_kernel[(triton.cdiv(count, _PACKED),)](
                packed, own, order, count, matrix.kept, len(order.inputs), matrix.pitch,
                OUTPUT=index >= depth, VECTORS=index <= depth, BLOCK=_PACKED,
            )  # fmt: skip
    return Ready(plan, weights, vectors)


# ---------------------------------------------------------------------- sweeps


def solve(ready: Ready, kernel: StepKernel, problem: Problem) -> Tensor:
    """Solve as :func:`made_flows.inverse.eager.solve` does, in the network's dtype."""
    network, _, noise, known, prefix = problem
    rows, dimension, parts = noise.shape
    values = ready.weights.new_empty(rows, dimension)
    noise = noise.detach().to(values.dtype).contiguous()
    known = values if known is None else known.detach().to(values.dtype).contiguous()
    width = _width(kernel, max(network.structure.parameters))
    step = StepMeta(kernel.kind, _numbers(kernel), width, parts, kernel.one_hot)
    # Ranks that are known cost next to nothing, so that the kind does not depend on them.
    _launch(
        solve_kernel, ready, network, ready.plan.net, ready.plan.layout.rows, rows,
        ("solve", kernel.kind, width), Values(noise, known, values), prefix=prefix, STEP=step,
    )  # fmt: skip
    return values


def adjoint(ready: Ready, problem: TransposedProblem) -> Tensor:
    """Solve the transposed system as ``made_flows.inverse.eager.adjoint`` does."""
    network, *given = problem
    solution = ready.weights.new_empty(given[0].shape)
    gradient, slopes, x = (each.detach().to(solution.dtype).contiguous() for each in given)
    _launch(
        adjoint_kernel, ready, network, ready.plan.adjoint_net, ready.plan.layout.adjoint_rows,
        len(x), ("adjoint",), Gradients(x, gradient, slopes, solution), widest=slopes.shape[-1],
    )  # fmt: skip
    return solution


def _launch(
    kernel: Any,
    ready: Ready,
    network: NetworkSpec,
    net: Net,
    lines: int,
    rows: int,
    kind: tuple[object, ...],
    batch: Values | Gradients,
    **more: Any,
) -> None:
    """Launch a sweep by the configuration that is fastest for such a problem.

    Args:
        kernel: takes a workspace, net, batch, rows of it and of contexts.
        ready, network: packed, and as it is.
        net: the plan's, for this kernel.
        lines: rows of a tile's workspace.
        rows: of the batch.
        kind: what, besides its size and precision, says which is fastest.
        more: arguments that only this kernel has.
    """
    if not rows:
        return
    plan, like = ready.plan, ready.weights
    context, context_rows = context_of(plan.symbolic, network) or (like, 1)
    net = net._replace(weights=like, vectors=ready.vectors, context=context)
    precision = _precision(like)

    def launch(config: Config) -> None:
        most = 4 * processors(like.device) if like.is_cuda else 2
        programs, size = min(triton.cdiv(rows, config.rows), most), lines * config.rows
        kernel[(programs,)](
            like.new_empty(programs * size), net, batch, rows, context_rows, **more,
            META=Meta(plan.code, network.structure.direct, precision, *config),
            num_warps=config.warps,
        )  # fmt: skip

    with _on(like), launching():
        source = getattr(kernel, "cache_key", "")  # the interpreter's have none
        kind = (*kind, source, precision, *_size_of(plan, rows, like))
        launch(fastest(kind, configs(rows, like), like, launch))


def _size_of(plan: Plan, rows: int, like: Tensor) -> tuple[object, ...]:
    """Say how large a problem is, to a factor of two: problems alike share a configuration."""
    structure, widest = plan.symbolic.structure, max(len(m.order.units) for m in plan.matrices)
    sizes = (rows, plan.symbolic.levels, widest)
    return (str(like.dtype), structure.depth, *(n.bit_length() for n in sizes))


def _precision(like: Tensor) -> str:
    """Return how products are computed: in full, unless torch was told that tf32 will do."""
    # Older switches set this one too, and refuse to be read once it was set.
    fast = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if fast and like.dtype == torch.float32 else "ieee"


def _numbers(kernel: StepKernel) -> tuple[float, ...]:
    """Return what a step is told; what counts or chooses is an integer."""
    whole = (0, 1, 4, 16) if kernel.kind == "rational_spline" else (0, 1)
    return tuple(int(n) if i in whole else n for i, n in enumerate(kernel.numbers))


def _width(kernel: StepKernel, parameters: int) -> int:
    """Return a power of two that parameters of one kind fit in."""
    if kernel.kind == "rational_spline":
        parameters = int(kernel.numbers[4])
    return 1 << (parameters - 1).bit_length()


def _stream_of(tensor: Tensor) -> int:
    """Return the current stream of a tensor's device."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0


def _on(tensor: Tensor) -> Any:
    """Return a context in which launches go to a tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
