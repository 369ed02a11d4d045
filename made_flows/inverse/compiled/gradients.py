"""Gradients of the parallel pass for tensors: the kernels of training, and products for weights.

Weights are others in every step, and all else is the same: of a network of few features, what a
step takes besides its kernels is as much as these. What they are told is therefore written down
once, with the symbolic phase, and a step puts in what is its own: addresses, and numbers of rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from made_flows.inverse.compiled import backend, packing, placement
from made_flows.inverse.compiled.compilation import Kernel, Prepared
from made_flows.inverse.compiled.layout import BASE, Integers, Written
from made_flows.inverse.compiled.placement import (
    STEP_ROWS,
    Context,
    array_of,
    context_words,
    inputs_read,
)
from made_flows.inverse.compiled.simd import VECTOR_BYTES
from made_flows.inverse.compiled.steps import find_step, has_step
from made_flows.inverse.compiled.training import (
    Dropped,
    Recorded,
    pull_tiles,
    record_tiles,
    spread_tiles,
)
from made_flows.inverse.compiled.weights import BlockRows, Recordings, Targets, fill_weights
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.inverse.symbolic import Symbolic, symbolic_for
from made_flows.nn.spec import NetworkSpec
from made_flows.univariate.step_kernel import StepKernel

_RECORD, _PULL, _FILL = Kernel(record_tiles), Kernel(pull_tiles), Kernel(fill_weights)
_SPREAD = Kernel(spread_tiles)
_NONE = (np.empty(0, np.int64),) * 3
_KEPT = 4
"""Steps, or constants of one, that are kept with a network."""


def kernel_of(step: HeadStep | BijectionStep) -> StepKernel | None:
    """Return what the kernels should do for a step, None if they do not know its gradient."""
    kernel = backend.score_kernel_of(step)
    if kernel is None or not has_step(kernel.kind, "pull"):
        return None
    if has_step(kernel.kind, "pulls") and not find_step(kernel.kind, "pulls")(kernel.constants):
        return None
    return kernel


class Training:
    """The pass of networks of one structure with the same masks, and of a step, with its gradient.

    Args:
        network: one of them.
        symbolic: what their masks say.
        kernel: the step.
    """

    def __init__(self, network: NetworkSpec, symbolic: Symbolic, kernel: StepKernel) -> None:
        dtype, layout = network.tensors[1].dtype, backend.layout_of(symbolic)
        self.layout, self.dtype = layout, dtype
        numbers = array_of(torch.empty(0, dtype=dtype, device="cpu"))  # each call has its own
        units = backend.units_of(symbolic.structure, layout, numbers, "adjoint_table")
        scratch = layout.adjoint_rows + layout.outputs
        self.inputs = scratch + STEP_ROWS
        # A row more than there are inputs, since of the last ones whole vectors are read.
        self.height = self.inputs + len(symbolic.columns) + 1
        self.bytes_to_vectors = layout.size * dtype.itemsize
        rows = Recorded(0, 0, 0, 0, 0, layout.adjoint_rows, scratch, self.inputs)

        empty, ranks = Written(numbers), layout.written("ranks")

        def prepared(of: Kernel, function: str, *more: Any) -> Prepared:
            single, transposed = dtype == torch.float32, function == "pull"
            told = kernel.kind, kernel.numbers, 1, kernel.one_hot
            call = backend.call_of(*told, single, function)
            blocks = backend.blocks_of(numbers, layout, transposed=transposed)
            return Prepared(of, empty, rows, Written(units), ranks, Written(blocks), call, *more)

        units_of = [array_of(layer.units) for layer in symbolic.layers]
        starts = np.cumsum([0, *map(len, units_of)])
        places_of: Any = Written(starts), Written(np.concatenate(units_of))
        self.depth = len(units_of) - 1
        self.records = prepared(_RECORD, "score", Dropped(*_NONE[:2], *places_of))
        self.pulls = prepared(_PULL, "pull", layout.lambda_place)

        self.gather, none = packing.gather_of(symbolic, layout, network.tensors), Targets(*_NONE)
        found = self.gather.numbers.places
        recordings = Recordings(0, 0, 0, 0, 0, 0)
        rows_of, self.whole = _rows_of_blocks(symbolic, self.gather, network)
        told: Any = layout.written_blocks, found, Written(rows_of)
        self.fills = Prepared(_FILL, empty, recordings, ranks, *told, none)
        table = layout.written("adjoint_table")
        self.spreads = Prepared(_SPREAD, empty, 0, table, *places_of, *_NONE[:2])

        places: Any = count()
        _, layers, direct = symbolic.structure.unpack(places)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        self.targets: Any = weights, biases, [] if direct is None else [direct.weight]

    def run(
        self,
        call: Prepared,
        record: Record,
        spaces: Tensor,
        places: Sequence[Tensor | None],
        more: Iterable[tuple[int, Sequence[int]]] = (),
    ) -> None:
        """Call a kernel for all rows; ``places`` are the tensors of :class:`Recorded`.

        ``more`` are further changes of what is written down.
        """
        _, height, lanes = spaces.shape
        numbers, context = record.numbers.data_ptr(), record.context
        vectors = numbers + self.bytes_to_vectors, record.numbers.numel() - self.layout.size
        of_context = (0, 0, 1) if context is None else context_words(context)
        of_spaces, of_rows, of_units, _, of_blocks, *_ = call.places
        changes = (
            (of_spaces, (spaces.data_ptr(), spaces.numel())),
            (of_rows, (record.rows, *(0 if t is None else t.data_ptr() for t in places))),
            (of_units, (*of_context, *vectors)),
            (of_blocks, (numbers, self.layout.size)),
            *more,
        )
        threads = backend.threads_for(record.rows, self.layout.size, self.dtype)
        call.run(record.rows, lanes, height * lanes, threads, changes)


class Record(NamedTuple):
    """What the gradient of a pass needs, besides the network's tensors, values and workspaces.

    The workspaces of all tiles are (tiles, rows of a workspace, lanes). The last tile may have
    fewer lanes; its rows are one after the other as well.

    Args:
        training: what the kernels are told.
        numbers: the packed weights.
        context: what a context contributes.
        rows: of the batch.
    """

    training: Training
    numbers: Tensor
    context: Context | None
    rows: int

    def pull(
        self, spaces: Tensor, x: Tensor, images: Tensor | None, density: Tensor, wants_x: bool
    ) -> Tensor | None:
        """Take gradients of images and densities back to all units' deltas; that of x is returned.

        Args:
            spaces: the workspaces.
            x: what the pass was given, (N, D).
            images, density: the gradients, (N, D) or None, and (N,).
            wants_x: whether anybody wants that of x.
        """
        gradient = torch.empty(x.shape, dtype=density.dtype, device="cpu") if wants_x else None
        self.training.run(self.training.pulls, self, spaces, (x, images, density, gradient))
        return gradient

    def of_weights(
        self, spaces: Tensor, tensors: Sequence[Tensor], wanted: Iterable[int]
    ) -> dict[int, Tensor]:
        """Return the gradients of those weights and biases whose places in the network are wanted.

        Of workspaces that :meth:`pull` has been through.
        """
        training, (tiles, height, lanes) = self.training, spaces.shape
        dtype, layout = spaces.dtype, training.layout
        found = {}
        for n in wanted:
            make = torch.empty if n in training.whole else torch.zeros
            found[n] = make(tensors[n].shape, dtype=dtype, device="cpu")
        addresses = array("q")
        of_spaces, of_rows, *_, of_targets = training.fills.places
        targets: list[int] = []
        for places in training.targets:
            targets += addresses.itemsize * len(addresses), len(places)
            addresses.extend([found[n].data_ptr() if n in found else 0 for n in places])
        start = addresses.buffer_info()[0]
        targets[::2] = [start + at for at in targets[::2]]
        last = self.rows - (tiles - 1) * lanes
        vector = VECTOR_BYTES // spaces.itemsize  # a tile has whole ones, but no more than it needs
        of_tiles = tiles, lanes, -(-last // vector) * vector, last
        recordings = *of_tiles, height * lanes, training.inputs
        changes = (
            (of_spaces, (spaces.data_ptr(), spaces.numel())),
            (of_rows, recordings),
            (of_targets, targets),
        )
        threads = backend.threads_for(self.rows, layout.size, dtype)
        training.fills.run(layout.blocks.size, 1, 0, threads, changes)
        if training.gather.factors is not None:  # masks of other numbers than zero and one
            weights, _, direct = training.targets
            for n in found.keys() & {*weights, *direct}:
                found[n] *= tensors[n + 1]
        return found

    def of_bases(self, spaces: Tensor, rows: int, widths: Sequence[int]) -> list[Tensor]:
        """Return the gradients of the context's contributions, each (rows, units).

        Args:
            spaces: the workspaces, which :meth:`pull` has been through.
            rows: those of the contributions.
            widths: units of each.
        """
        layout, (_, height, lanes) = self.training.layout, spaces.shape
        layers = (layout.adjoint_table[:, BASE] >= 0).tolist()
        found = [torch.zeros(self.rows, w, dtype=spaces.dtype, device="cpu") for w in widths]
        each = iter(found)
        targets = array("q", [next(each).data_ptr() if based else 0 for based in layers])
        each_width = iter(widths)
        sizes = array("q", [next(each_width) if based else 0 for based in layers])
        of_spaces, of_size, _, _, _, of_targets, of_sizes = self.training.spreads.places
        changes = (
            (of_spaces, (spaces.data_ptr(), spaces.numel())),
            (of_size, (self.rows,)),
            (of_targets, targets.buffer_info()),
            (of_sizes, sizes.buffer_info()),
        )
        self.training.spreads.run(self.rows, lanes, height * lanes, 1, changes)
        if rows == self.rows:
            return found
        return [each.reshape(-1, rows, each.shape[-1]).sum(dim=0) for each in found]


def _rows_of_blocks(
    symbolic: Symbolic, gather: packing.Gather, network: NetworkSpec
) -> tuple[Integers, frozenset[int]]:
    """Return where gradients of blocks' weights go: :class:`BlockRows`, layer by layer.

    Also which of the network's tensors all of whose gradients are written, zeros included.
    """
    layout, depth = backend.layout_of(symbolic), symbolic.structure.depth
    ranks, places = layout.ranks, gather.numbers.places.value.places
    numbers: Any = range(len(network.tensors))
    _, layers, direct = symbolic.structure.unpack(numbers)
    every = [(n, n, layer.weight, symbolic.inputs_of(n)) for n, layer in enumerate(layers)]
    if direct is not None:
        every.append((depth, 0, direct.weight, symbolic.columns))
    found: list[BlockRows] = []
    whole: list[int] = []
    begins_of = (*layout.blocks, layout.direct_blocks)
    for (layer, reads, weight, of_inputs), begins in zip(every, begins_of, strict=False):
        number: Any = weight
        height, columns = network.tensors[number].shape
        units, inputs = array_of(symbolic.layers[layer].units), array_of(of_inputs)
        own = []
        for begin, (r0, r1) in zip(begins, pairwise(ranks.panels), strict=True):
            here = units[ranks.starts[layer, r0] : ranks.starts[layer, r1]]
            read = inputs_read(symbolic, reads, r1)
            known = places[begin : begin + read * len(here)].reshape(read, len(here)) >= 0
            adjoin = (np.diff(here) == 1).all() and (inputs[:read] == np.arange(read)).all()
            straight = int(np.logical_and.accumulate(known.all(axis=1)).sum()) if adjoin else 0
            first = int(here[0]) if adjoin and len(here) else -1
            own.append(BlockRows(len(here), first, columns, straight, 0))
        if len(units) == height and all(rows.first >= 0 for rows in own if rows.units):
            own = [rows._replace(whole=1) for rows in own]
            whole.append(number)
        found += own
    return np.array(found, np.int64), frozenset(whole)


def record(
    kernel: StepKernel, network: NetworkSpec, x: Tensor, factors: Mapping[int, Tensor]
) -> tuple[Tensor | None, Tensor, Tensor, Record]:
    """Compute images (N, D), None for a head, densities (N,), and what their gradient needs.

    Args:
        kernel: the step.
        network: the network.
        x: what it reads, (N, D).
        factors: what the units of hidden layers are multiplied by, (N, units), by layer.

    Returns:
        Images, densities, the workspaces, and the record.
    """
    symbolic, dtype, rows = symbolic_for(network), network.tensors[1].dtype, len(x)
    training = _training(network, symbolic, kernel)
    lanes = backend.lanes_of(max(rows, 2), dtype, torch.get_num_threads())  # a vector, at least
    spaces = torch.empty(-(-rows // lanes), training.height, lanes, dtype=dtype, device="cpu")
    images = None if kernel.head else torch.empty(x.shape, dtype=dtype, device="cpu")
    density = torch.empty(rows, dtype=dtype, device="cpu")
    numbers = packing.pack(symbolic, training.layout, network.tensors)
    recorded = Record(training, numbers, placement.context_of(symbolic, network), rows)
    drops: list[tuple[int, Sequence[int]]] = []
    if factors:
        layers = range(training.depth)
        at = array("q", [factors[n].data_ptr() if n in factors else 0 for n in layers])
        widths = array("q", [factors[n].shape[1] if n in factors else 0 for n in layers])
        drops = [(training.records.places[-1], (*at.buffer_info(), *widths.buffer_info()))]
    training.run(training.records, recorded, spaces, (x, images, density), drops)
    return images, density, spaces, recorded


def _training(network: NetworkSpec, symbolic: Symbolic, kernel: StepKernel) -> Training:
    """Return what the kernels are told, kept with the symbolic phase."""
    kept: dict[Any, Training] = symbolic.prepared.setdefault("cpu training", {})
    key = kernel.kind, kernel.numbers, kernel.one_hot, network.tensors[1].dtype
    found = kept.get(key)
    if found is None:
        if len(kept) >= _KEPT:
            kept.clear()
        found = kept[key] = Training(network, symbolic, kernel)
    return found
