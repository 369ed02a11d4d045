"""Gradients of the parallel pass for tensors: the kernels of training, and products for weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from made_flows.inverse.compiled import backend, packing, placement
from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.layout import BASE, DELTA, SCRATCH, Integers, Kept, Units
from made_flows.inverse.compiled.placement import Layout
from made_flows.inverse.compiled.steps import has_step
from made_flows.inverse.compiled.training import Recorded, pull_tiles, record_tiles
from made_flows.inverse.compiled.weights import Targets, fill_weights
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.inverse.symbolic import Symbolic, symbolic_for
from made_flows.nn.spec import NetworkSpec
from made_flows.univariate.step_kernel import StepKernel

_RECORD, _PULL = Kernel(record_tiles), Kernel(pull_tiles)


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
    packed, dtype = packing.pack(symbolic, layout, tensors, backend.room), tensors[1].dtype
    context = placement.context_of(symbolic, network)
    units = backend.units_of(symbolic, layout, packed, context, layout.adjoint_table)
    lanes = backend.lanes_of(max(len(x), 2), dtype, torch.get_num_threads())  # a vector, at least
    height = layout.adjoint_rows + int(layout.ranks.output_starts[-1]) + SCRATCH + 3
    spaces = torch.empty(-(-len(x) // lanes), height, lanes, dtype=dtype, device="cpu")
    kept = Record(symbolic, layout, units, kernel.kind, kernel.numbers, spaces)
    images, density = backend.results_of(kernel, x.shape, dtype)
    blocks = backend.blocks_of(packed.weights, layout.blocks, layout.direct_blocks)
    ranks, rows = layout.kept_ranks, kept.rows(x, images, density, None)
    arguments = rows, units, ranks, blocks, kept.call("score")
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
    transposed = packing.pack_transposed(kept.symbolic, layout, tensors, backend.room)
    back = backend.blocks_of(transposed, layout.back_blocks, layout.direct_back)
    gradient = torch.empty(x.shape, dtype=density.dtype, device="cpu") if wants_x else None
    rows = kept.rows(x, images, density, gradient)
    arguments = rows, kept.units, layout.kept_ranks, back, kept.call("pull"), layout.lambda_place
    backend.over_kept(_PULL, len(x), layout.back_size, kept.spaces, arguments)
    return gradient


def of_weights(kept: Record, tensors: Sequence[Tensor], wanted: set[int]) -> dict[int, Tensor]:
    """Return the gradients of those weights and biases whose places in the network are wanted."""
    structure, layout, dtype = kept.symbolic.structure, kept.layout, kept.spaces.dtype
    numbers: Any = range(len(tensors))
    _, layers, direct = structure.unpack(numbers)
    found: dict[Any, Tensor] = {}

    def addresses(places: Iterable[Any]) -> Integers:
        given = np.zeros(len(layers), np.int64)
        for index, place in enumerate(places):
            if place in wanted:
                found[place] = torch.zeros(tensors[place].shape, dtype=dtype, device="cpu")
                given[index] = found[place].data_ptr()
        return given

    every = layers if direct is None else [*layers, direct]
    gather = packing.gathers_of(kept.symbolic, layout, tensors).weights
    targets = Targets(
        addresses(layer.weight for layer in layers),
        addresses(layer.bias for layer in layers),
        addresses([] if direct is None else [direct.weight]),
    )
    threads = backend.threads_for(len(kept.spaces) * kept.spaces.shape[-1], layout.size, dtype)
    fill_weights(kept.spaces, layout, gather.found, targets, threads)
    if gather.factors is not None:  # masks of other numbers than zero and one
        for layer in every:
            place: Any = layer
            if place.weight in found:
                found[place.weight] *= tensors[place.mask]
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
