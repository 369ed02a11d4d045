"""Gradients of the parallel pass for tensors: the kernels of training, and products for weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from made_flows.inverse.compiled import backend, packing, placement
from made_flows.inverse.compiled.backend import Ready
from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.layout import BASE, DELTA, Written
from made_flows.inverse.compiled.placement import STEP_ROWS, Context
from made_flows.inverse.compiled.simd import VECTOR_BYTES
from made_flows.inverse.compiled.steps import has_step
from made_flows.inverse.compiled.training import Recorded, pull_tiles, record_tiles
from made_flows.inverse.compiled.weights import Recordings, Targets, fill_weights
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.nn.spec import NetworkSpec, Structure
from made_flows.univariate.step_kernel import StepKernel

_RECORD, _PULL = Kernel(record_tiles), Kernel(pull_tiles)


class Record(NamedTuple):
    """What the gradient of a pass needs, besides the tensors of the network.

    Args:
        ready: the network as the kernels take it.
        units, context: the same, with what a context contributes.
        kind, numbers: of the step, and what it is told.
        rows: of the batch.
        spaces: workspaces of all tiles, (tiles, rows of a workspace, lanes). The last tile may have
            fewer lanes; its rows are one after the other as well.
    """

    ready: Ready
    units: Written
    context: Context | None
    kind: str
    numbers: tuple[float, ...]
    rows: int
    spaces: Tensor

    @property
    def scratch(self) -> int:
        """The row of a workspace where those begin that a step may use."""
        return self.ready.layout.adjoint_rows + self.ready.layout.outputs

    @property
    def inputs(self) -> int:
        """The row where what the network reads is kept for the gradients of weights."""
        return self.scratch + STEP_ROWS

    @property
    def last(self) -> int:
        """Rows of the last tile: whole vectors, but no more of them than it needs."""
        tiles, _, lanes = self.spaces.shape
        vector = VECTOR_BYTES // self.spaces.itemsize
        return -(-(self.rows - (tiles - 1) * lanes) // vector) * vector

    def run(
        self, kernel: Kernel, function: str, places: tuple[Any, ...], blocks: Written, *more: Any
    ) -> None:
        """Call a kernel, which calls a function of the step, for all rows.

        ``places`` are the number of rows and addresses, those of :class:`Recorded`.
        """
        layout, spaces = self.ready.layout, self.spaces
        single = spaces.dtype == torch.float32
        call = backend.call_of(self.kind, self.numbers, 1, False, single, function)
        rows = Recorded(*(*places, layout.adjoint_rows, self.scratch, self.inputs))
        arguments = rows, self.units, layout.written("ranks"), blocks, call, *more
        backend.over_spaces(kernel, places[0], layout.size, spaces, arguments)

    def lines(self, start: int, count: int) -> Tensor:
        """Return rows of all workspaces as a matrix, (count, lanes of all tiles)."""
        full = self.spaces[:-1, start : start + count].transpose(0, 1).reshape(count, -1)
        last = self.spaces[-1].flatten()[start * self.last : (start + count) * self.last]
        return torch.cat([full, last.reshape(count, -1)], dim=1)


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
    ready, dtype = backend.packed(network), network.tensors[1].dtype
    layout, context = ready.layout, placement.context_of(ready.symbolic, network)
    lanes = backend.lanes_of(max(len(x), 2), dtype, torch.get_num_threads())  # a vector, at least
    # A row more than there are inputs, since of the last ones whole vectors are read.
    height = layout.adjoint_rows + layout.outputs + STEP_ROWS + len(ready.symbolic.columns) + 1
    spaces = torch.empty(-(-len(x) // lanes), height, lanes, dtype=dtype, device="cpu")
    units = backend.units_in(ready, context, "adjoint_table")
    recorded = Record(ready, units, context, kernel.kind, kernel.numbers, len(x), spaces)
    images = None if kernel.head else torch.empty(x.shape, dtype=dtype, device="cpu")
    density = torch.empty(len(x), dtype=dtype, device="cpu")
    place = 0 if images is None else images.data_ptr()
    places = len(x), x.data_ptr(), place, density.data_ptr(), 0
    recorded.run(_RECORD, "score", places, ready.blocks())
    return images, density, recorded


def pull(
    recorded: Record, x: Tensor, images: Tensor | None, density: Tensor, wants_x: bool
) -> Tensor | None:
    """Take gradients of images and densities back to all units' deltas; that of x is returned."""
    ready = recorded.ready
    gradient = torch.empty(x.shape, dtype=density.dtype, device="cpu") if wants_x else None
    given = (0 if part is None else part.data_ptr() for part in (images, density, gradient))
    places = len(x), x.data_ptr(), *given
    back = ready.blocks(transposed=True)
    recorded.run(_PULL, "pull", places, back, ready.layout.lambda_place)
    return gradient


@lru_cache(maxsize=256)
def _weight_places(structure: Structure) -> tuple[list[Any], list[Any], list[Any]]:
    """Return where weights, biases and those of the direct connection are among the tensors."""
    numbers: Any = count()
    _, layers, direct = structure.unpack(numbers)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return weights, biases, [] if direct is None else [direct.weight]


def of_weights(recorded: Record, tensors: Sequence[Tensor], wanted: set[int]) -> dict[int, Tensor]:
    """Return the gradients of those weights and biases whose places in the network are wanted."""
    symbolic, layout, spaces = recorded.ready.symbolic, recorded.ready.layout, recorded.spaces
    found = {n: torch.zeros(tensors[n].shape, dtype=spaces.dtype, device="cpu") for n in wanted}
    places = _weight_places(symbolic.structure)
    addresses = ([found[n].data_ptr() if n in found else 0 for n in of] for of in places)
    gather = packing.gather_of(symbolic, layout, tensors)
    threads = backend.threads_for(recorded.rows, layout.size, spaces.dtype)
    targets = Targets(*(np.array(each, np.int64) for each in addresses))
    tiles, height, lanes = spaces.shape
    held = Recordings(tiles, lanes, recorded.last, height * lanes, recorded.inputs)
    fill_weights(spaces, held, layout, gather.found, targets, threads)
    if gather.factors is not None:  # masks of other numbers than zero and one
        for n in found.keys() & {*places[0], *places[2]}:
            found[n] *= tensors[n + 1]
    return found


def of_bases(recorded: Record, rows: int, size: int, widths: Sequence[int]) -> list[Tensor]:
    """Return the gradients of the context's contributions, each (rows, units)."""
    table = recorded.ready.layout.adjoint_table
    found: list[Tensor] = []
    for index, place in enumerate(recorded.ready.symbolic.layers):
        if table[index, BASE] >= 0:
            deltas = recorded.lines(table[index, DELTA], len(place.units))[:, :size]
            summed = deltas.sum(dim=1, keepdim=True) if rows == 1 else deltas
            summed = summed.reshape(len(place.units), -1, rows).sum(dim=1)
            full = summed.new_zeros(widths[len(found)], rows)
            found.append(full.index_copy_(0, place.units, summed).t())
    return found
