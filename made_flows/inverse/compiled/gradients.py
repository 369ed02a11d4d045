"""Gradients of the parallel pass for tensors: the kernels of training, and products for weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from made_flows.inverse.compiled import backend, packing
from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.layout import BASE, DELTA, SCRATCH, SOURCE, Kept, Units
from made_flows.inverse.compiled.packing import Layout
from made_flows.inverse.compiled.steps import has_step
from made_flows.inverse.compiled.training import Recorded, pull_tiles, record_tiles
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.inverse.symbolic import Symbolic, symbolic_for
from made_flows.nn.spec import LayerSpec, NetworkSpec
from made_flows.univariate.step_kernel import StepKernel

_RECORD, _PULL = Kernel(record_tiles), Kernel(pull_tiles)

_PARTS = 8
"""Parts in which gradients of large weights are computed, to leave out what is zero."""

_LARGE = 100_000
"""Weights from which on a layer's gradient is computed in parts."""


class Record(NamedTuple):
    """What the gradient of a pass needs, besides the tensors of the network.

    Args:
        symbolic, layout: of the network.
        units: as the kernels take them.
        kind, numbers: of the step, and what it is told.
        spaces: workspaces of all tiles, (tiles, rows of a workspace, lanes).
    """

    symbolic: Symbolic
    layout: Layout
    units: Units
    kind: str
    numbers: tuple[float, ...]
    spaces: Tensor

    def call(self, function: str) -> Kept:
        """Return how the kernels call the step."""
        single = self.spaces.dtype == torch.float32
        return backend.call_of(self.kind, self.numbers, 1, False, single, function)

    def rows(self, x: Tensor, images: Tensor | None, density: Tensor, gradient: Any) -> Recorded:
        """Return the batch as the kernels take it."""
        parameters = self.layout.adjoint_rows
        return Recorded(
            len(x),
            x.data_ptr(),
            0 if images is None else images.data_ptr(),
            density.data_ptr(),
            0 if gradient is None else gradient.data_ptr(),
            parameters,
            parameters + int(self.layout.ranks.output_starts[-1]),
        )

    def lines(self, start: int, count: int) -> Tensor:
        """Return rows of all workspaces as a matrix, (count, tiles * lanes)."""
        part = self.spaces[:, start : start + count]
        return part.transpose(0, 1).reshape(count, -1)


def kernel_of(step: HeadStep | BijectionStep) -> StepKernel | None:
    """Return what the kernels should do for a step, None if they do not know its gradient."""
    kernel = backend.score_kernel_of(step)
    if kernel is None or kernel.one_hot or not has_step(kernel.kind, "pull"):
        return None
    return kernel


def record(
    kernel: StepKernel, network: NetworkSpec, x: Tensor
) -> tuple[Tensor | None, Tensor, Record]:
    """Compute images (N, D), None for a head, densities (N,), and what their gradient needs."""
    symbolic, tensors = symbolic_for(network), network.tensors
    layout = backend.layout_of(symbolic)
    packed, dtype = packing.pack(symbolic, layout, tensors), tensors[1].dtype
    context = packing.context_of(symbolic, network)
    units = backend.units_of(symbolic, layout, packed, context, layout.adjoint_table)
    lanes = backend.lanes_of(len(x), dtype, torch.get_num_threads())
    height = layout.adjoint_rows + int(layout.ranks.output_starts[-1]) + SCRATCH + 3
    spaces = torch.empty(-(-len(x) // lanes), height, lanes, dtype=dtype, device="cpu")
    kept = Record(symbolic, layout, units, kernel.kind, kernel.numbers, spaces)
    images, density = backend.results_of(kernel, x.shape, dtype)
    blocks = backend.blocks_of(packed.weights, layout.blocks, layout.direct_blocks)
    arguments = kept.rows(x, images, density, None), units, layout.ranks, blocks, kept.call("score")
    backend.over_kept(_RECORD, len(x), layout.size, spaces, arguments)
    return images, density, kept


def pull(
    kept: Record,
    tensors: Sequence[Tensor],
    x: Tensor,
    images: Tensor | None,
    density: Tensor,
    wants_x: bool,
) -> Tensor | None:
    """Take gradients of images and densities back to all units' deltas; that of x is returned."""
    layout = kept.layout
    transposed = packing.write_blocks(kept.symbolic, layout, tensors, transposed=True)
    back = backend.blocks_of(transposed, layout.back_blocks, layout.direct_back)
    gradient = torch.empty(x.shape, dtype=density.dtype, device="cpu") if wants_x else None
    rows = kept.rows(x, images, density, gradient)
    arguments = rows, kept.units, layout.ranks, back, kept.call("pull"), layout.lambda_place
    backend.over_kept(_PULL, len(x), layout.back_size, kept.spaces, arguments)
    return gradient


def of_weights(kept: Record, tensors: Sequence[Tensor], wanted: set[int]) -> dict[int, Tensor]:
    """Return the gradients of those weights and biases whose places in the network are wanted."""
    structure, table = kept.symbolic.structure, kept.layout.adjoint_table
    _, layers, direct = structure.unpack(tensors)
    numbers: Any = range(len(tensors))
    _, places, direct_place = structure.unpack(numbers)
    found = {}
    for index, (layer, at) in enumerate(zip(layers, places, strict=True)):
        own: Any = at
        units = kept.symbolic.layers[index].units
        deltas = kept.lines(table[index, DELTA], len(units))
        if own.weight in wanted:
            source = int(table[index, SOURCE])
            found[own.weight] = _product(kept, layer, index, deltas, source, index == 0)
        if layer.bias is not None and own.bias in wanted:
            found[own.bias] = torch.zeros_like(layer.bias).index_copy_(0, units, deltas.sum(dim=1))
        if index == structure.depth and direct is not None and direct_place is not None:
            own = direct_place
            if own.weight in wanted:
                found[own.weight] = _product(kept, direct, index, deltas, 0, True)
    return found


def of_bases(kept: Record, rows: int, count: int, widths: Sequence[int]) -> list[Tensor]:
    """Return the gradients of the context's contributions, each (rows, units)."""
    table = kept.layout.adjoint_table
    found: list[Tensor] = []
    for index, place in enumerate(kept.symbolic.layers):
        if table[index, BASE] >= 0:
            deltas = kept.lines(table[index, DELTA], len(place.units))[:, :count]
            summed = deltas.sum(dim=1, keepdim=True) if rows == 1 else deltas
            summed = summed.reshape(len(place.units), -1, rows).sum(dim=1)
            full = summed.new_zeros(widths[len(found)], rows)
            found.append(full.index_copy_(0, place.units, summed).t())
    return found


def _product(
    kept: Record, layer: LayerSpec, index: int, deltas: Tensor, source: int, of_inputs: bool
) -> Tensor:
    """Return the gradient of a layer's weights, in parts that end where their inputs do."""
    symbolic, place = kept.symbolic, kept.symbolic.layers[index]
    inputs = symbolic.columns if of_inputs else symbolic.inputs_of(index)
    activations = kept.lines(source, len(inputs))
    parts = _PARTS if layer.weight.numel() >= _LARGE else 1
    product = deltas.new_zeros(len(place.units), len(inputs))
    for r0, r1 in pairwise(symbolic.levels * part // parts for part in range(parts + 1)):
        u0, u1 = int(place.starts[r0]), int(place.starts[r1])
        if u0 < u1:
            read = packing.inputs_read(symbolic, 0 if of_inputs else index, r1)
            torch.mm(deltas[u0:u1], activations[:read].t(), out=product[u0:u1, :read])
    shape = layer.weight.shape
    if product.shape == shape and _in_order(place.units) and _in_order(inputs):
        return product.mul_(layer.mask)
    rows = product.new_zeros(shape[0], len(inputs)).index_copy_(0, place.units, product)
    return product.new_zeros(shape).index_copy_(1, inputs, rows).mul_(layer.mask)


def _in_order(places: Tensor) -> bool:
    return bool((places[1:] > places[:-1]).all())
