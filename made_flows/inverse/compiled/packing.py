"""Packing: the arrays of the kernels, from the symbolic phase (the layout) and the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows.inverse.compiled.gathering import Sources, found_in, pieces_of
from made_flows.inverse.compiled.layout import (
    ACTIVATION,
    ACTIVATION_CODES,
    BASE,
    BIAS,
    COLUMNS,
    DELTA,
    DTYPES,
    GATE,
    NORM,
    SCRATCH,
    SLOPE,
    SOURCE,
    STREAM,
    STREAM_INDEX,
    STREAM_SUM,
    SUM,
    UNITS,
    A,
    Integers,
    Kept,
    Ranks,
    Z,
)
from made_flows.inverse.symbolic import Symbolic
from made_flows.nn.spec import LayerSpec, NetworkSpec, Structure

_PANEL_UNITS = 24
"""Units of the widest layer in a panel, about: two blocks of registers."""

_STEP_ROWS = SCRATCH + 3
"""Rows of the workspace for a step: its scratch space, the value, two parts of noise."""


class BlockPlaces(NamedTuple):
    """Where numbers are found in one array: blocks of weights, then biases and norms.

    Args:
        blocks, direct: as :class:`Layout` has them.
        table: of the adjoint.
        vectors: where biases begin.
    """

    blocks: Integers
    direct: Integers
    table: Integers
    vectors: int


@dataclass(frozen=True)
class Layout:
    """What does not depend on the weights.

    Weights lie in blocks, one for each layer and panel of ranks. A block is input-major: the
    weights of all units of the panel for one input, then for the next, so that the inner loop
    reads it in one stream.

    Args:
        ranks: which features and units come when.
        blocks: place of the block of each layer and panel, (layers, panels).
        direct_blocks: place of direct connections' blocks, (panels,), or empty.
        size: numbers in all blocks.
        back_blocks, direct_back, back_size: the same for the transposed weights.
        streams: places of the units that units add to.
        constants: of the activations, and a zero.
        table: layers' places in the workspace and elsewhere, for solving.
        rows, scratch: rows that the workspace needs, and where the step's begin.
        adjoint_table, adjoint_rows, lambda_place: the same for the adjoint.
    """

    ranks: Ranks
    blocks: Integers
    direct_blocks: Integers
    size: int
    back_blocks: Integers
    direct_back: Integers
    back_size: int
    streams: Integers
    constants: NDArray[np.float64]
    table: Integers
    rows: int
    scratch: int
    adjoint_table: Integers
    adjoint_rows: int
    lambda_place: int

    @cached_property
    def kept_blocks(self) -> Kept:
        """Where blocks, and biases after them, begin."""
        return Kept(BlockPlaces(self.blocks, self.direct_blocks, self.adjoint_table, self.size))

    @cached_property
    def kept_ranks(self) -> Kept:
        """The ranks, as kernels take them again and again."""
        return Kept(self.ranks)


@dataclass(frozen=True)
class Weights:
    """What depends on the weights.

    Args:
        weights: all blocks, one after the other.
        vectors: biases and norms.
    """

    weights: NDArray[Any]
    vectors: NDArray[Any]


def knows(network: NetworkSpec) -> bool:
    """Tell whether the kernels know a network's dtype and activations."""
    return network.tensors[1].dtype in DTYPES and activations_of(network.structure) is not None


@lru_cache(maxsize=1024)
def activations_of(structure: Structure) -> list[tuple[int, float]] | None:
    """Return code and constant of the activations, None where the kernels do not know one."""
    words = [word.split(":") for word in structure.activations]
    if any(name not in ACTIVATION_CODES for name, _ in words):
        return None
    return [(ACTIVATION_CODES[name], float(constant)) for name, constant in words]


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """View a tensor that nobody else has as an array: sharing pins a storage to its size."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _panels(symbolic: Symbolic, units: int) -> Integers:
    levels = symbolic.levels
    widest = max(len(layer.units) for layer in symbolic.layers)
    size = max(1, round(units * levels / max(widest, 1)))
    return np.append(np.arange(0, levels, size), levels).astype(np.int64)


def layout_of(symbolic: Symbolic, panel_units: int = _PANEL_UNITS) -> Layout:
    """Lay a network out in panels with about so many units of its widest layer."""
    depth, levels = symbolic.structure.depth, symbolic.levels
    panels = _panels(symbolic, panel_units)
    starts = np.stack([layer.starts for layer in symbolic.layers])
    count = len(panels) - 1
    blocks, back_blocks = np.zeros((2, depth + 1, count), dtype=np.int64)
    direct_blocks, direct_back = np.zeros((2, count * symbolic.structure.direct), dtype=np.int64)
    size = back_size = 0
    for p, (r0, r1) in enumerate(pairwise(panels)):
        features = symbolic.feature_starts[r1] - symbolic.feature_starts[r0]
        units = starts[:, r1] - starts[:, r0]
        for index in range(depth + 1):
            blocks[index, p] = size
            size += units[index] * inputs_read(symbolic, index, r1)
            back_blocks[index, p] = back_size
            above = starts[index, levels] - starts[index, r0 if index else r0 + 1]
            back_size += above * (units[index - 1] if index else features)
        if symbolic.structure.direct:
            direct_blocks[p] = size
            size += units[depth] * inputs_read(symbolic, 0, r1)
            direct_back[p] = back_size
            back_size += (starts[depth, levels] - starts[depth, r0 + 1]) * features

    streams = [np.zeros(0, np.int64)]
    table = np.full((depth + 1, COLUMNS), -1, dtype=np.int64)
    targets = set(symbolic.structure.adds_to)
    for index, layer in enumerate(symbolic.layers):
        table[index, UNITS] = len(layer.units)
        if layer.stream is not None:
            table[index, STREAM_INDEX] = sum(map(len, streams))
            streams.append(_numpy(layer.stream))
    activations = activations_of(symbolic.structure) or []
    table[:depth, ACTIVATION] = [code for code, _ in activations]
    _place_vectors(symbolic, table)
    _place_contexts(symbolic, table)

    adjoint = table.copy()
    outputs_at_once = int(np.diff(starts[depth][panels]).max())
    rows = _place(symbolic, table, targets, len(symbolic.columns))
    table[depth, Z] = rows
    scratch = rows + outputs_at_once
    adjoint_rows = _place(symbolic, adjoint, targets, len(symbolic.columns))
    for index, layer in enumerate(symbolic.layers):
        for column in (SLOPE, DELTA, SUM):
            if column == DELTA or (index < depth and (column == SLOPE or index in targets)):
                adjoint[index, column] = adjoint_rows
                adjoint_rows += len(layer.units)
    for index, earlier in enumerate(symbolic.structure.adds_to):
        if earlier >= 0:
            adjoint[index, STREAM_SUM] = adjoint[earlier, SUM]
    lambda_place = adjoint_rows
    features = _numpy(symbolic.features)
    counts = np.array(symbolic.structure.parameters)[features]
    inputs = np.array(symbolic.structure.inputs)[features]
    ranks = Ranks(
        panels=panels,
        starts=starts,
        features=features,
        feature_starts=symbolic.feature_starts,
        column_starts=symbolic.column_starts,
        output_starts=np.append(0, np.cumsum(counts)).astype(np.int64),
        input_starts=np.append(0, np.cumsum(inputs)).astype(np.int64),
    )
    return Layout(
        ranks=ranks,
        blocks=blocks,
        direct_blocks=direct_blocks,
        size=int(size),
        back_blocks=back_blocks,
        direct_back=direct_back,
        back_size=int(back_size),
        streams=np.concatenate(streams),
        constants=np.array([*(constant for _, constant in activations), 0.0]),
        table=table,
        rows=scratch + _STEP_ROWS,
        scratch=scratch,
        adjoint_table=adjoint,
        adjoint_rows=lambda_place + len(features),
        lambda_place=lambda_place,
    )


def inputs_read(symbolic: Symbolic, layer: int, stop: int) -> int:
    """Return how many inputs of a layer its units of degree (outputs: rank) below ``stop`` read."""
    if layer:
        return int(symbolic.layers[layer - 1].starts[stop])
    return int(symbolic.column_starts[stop - 1])


def _place(symbolic: Symbolic, table: Integers, targets: set[int], first: int) -> int:
    """Give layers their rows of the workspace, after the inputs; the next free row is returned."""
    row, source = first, 0
    depth = symbolic.structure.depth
    for index in range(depth):
        units = len(symbolic.layers[index].units)
        table[index, SOURCE] = source
        table[index, Z] = table[index, A] = row
        row += units
        if index in targets:  # its z is needed later: its a gets rows of its own
            table[index, A] = row
            row += units
        source = table[index, A]
        earlier = symbolic.structure.adds_to[index]
        if earlier >= 0:
            table[index, STREAM] = table[earlier, Z]
    table[depth, SOURCE] = source
    return row


def _place_vectors(symbolic: Symbolic, table: Integers) -> None:
    """Return where each layer's bias, and its norm's scale and shift, stand in the vectors."""
    place = 0
    for index, letters in enumerate(symbolic.structure.flags):
        units = len(symbolic.layers[index].units)
        table[index, BIAS] = place
        place += units
        if "n" in letters:
            table[index, NORM] = place
            place += 2 * units


def _place_contexts(symbolic: Symbolic, table: Integers) -> None:
    """Place the context's contributions, in units, in the order of the network's bases."""
    row = 0
    for index, letters in enumerate(symbolic.structure.flags):
        for letter, column in (("c", BASE), ("g", GATE)):
            if letter in letters:
                table[index, column] = row
                row += len(symbolic.layers[index].units)


# ---------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Gather:
    """Where every number of an array is found among a network's tensors.

    The symbolic phase of packing, since masks and weights' places do not change: the numeric phase
    is one gather. Masked weights are found at a zero, so that a NaN there changes nothing.

    Args:
        found: the :class:`~made_flows.inverse.compiled.gathering.Places` of the numbers.
        factors: of the masks, where they are not all one.
    """

    found: Kept
    factors: NDArray[np.float64] | None

    def of(self, sources: Sources, room: Room) -> NDArray[Any]:
        """Write the array of these tensors where there is room for it."""
        target = room(len(self.found.value.places), sources.dtype)
        sources.gather(self.found, target)
        if self.factors is not None:
            target *= self.factors.astype(target.dtype)
        return target


@dataclass(frozen=True)
class Gathers:
    """Where the arrays of a network are found.

    Args:
        weights: in blocks, then biases and norms.
        transposed: the transposed weights in blocks.
        tainting: pieces of what is to be finite.
    """

    weights: Gather
    transposed: Gather
    tainting: Kept


class _Places:
    """The layers of a network, with places among its tensors in place of numbers."""

    def __init__(self, symbolic: Symbolic, tensors: Sequence[Tensor]) -> None:
        self.symbolic, depth = symbolic, symbolic.structure.depth
        _, layers, direct = symbolic.structure.unpack(tensors)
        self.sizes = [tensor.numel() for tensor in _weights_of(symbolic, tensors)]
        self.zero = sum(self.sizes)
        self.factors: NDArray[np.float64] | None = None  # of masks, should they not be 0 or 1
        self.vectors: list[Integers] = []
        self.matrices: list[tuple[int, bool, Integers]] = []
        """Of each layer, and the direct connection: its index, whether it reads inputs, places."""
        at = 0
        for index, layer in enumerate(layers):
            at = self._add_matrix(layer, index, symbolic.inputs_of(index), at, index == 0)
            units = _numpy(symbolic.layers[index].units)
            vectors = (layer.bias, layer.norm_scale, layer.norm_shift)
            for vector in vectors if layer.norm_scale is not None else vectors[:1]:
                known = vector is not None
                self.vectors.append(at + units if known else np.full(len(units), self.zero))
                at += len(vector) if vector is not None else 0
        if direct is not None:
            self._add_matrix(direct, depth, symbolic.columns, at, True)

    def _add_matrix(
        self, layer: LayerSpec, index: int, inputs: Tensor, at: int, of_inputs: bool
    ) -> int:
        mask = layer.mask.detach().expand(layer.weight.shape)
        seen = mask.ne(0)
        if not bool((mask == seen).all()):
            if self.factors is None:
                self.factors = np.ones(self.zero + 1)
            self.factors[at : at + mask.numel()] = _numpy(mask.double().reshape(-1).clone())
        places = torch.arange(at, at + mask.numel(), device="cpu")
        places = places.reshape(mask.shape)
        places = places.masked_fill_(~seen, self.zero)
        places = places.index_select(0, self.symbolic.layers[index].units).index_select(1, inputs)
        self.matrices.append((index, of_inputs, _numpy(places)))
        return at + mask.numel()

    def tainting(self, tensors: Sequence[Tensor]) -> Integers:
        """Return the pieces of what is to be finite."""
        numbers, left_out = range(len(tensors)), self.symbolic.structure.mask_places
        packed = [number for number in numbers if number not in left_out]
        found = self.symbolic.structure.tainting(numbers)
        return pieces_of(self.sizes, [packed.index(number) for number in found])

    def gather(self, places: Sequence[Integers]) -> Gather:
        """Return how to find the numbers at some places."""
        every = np.concatenate(places)
        factors = None if self.factors is None else self.factors[every]
        return Gather(Kept(found_in(every, self.sizes)), factors)


def _weights_of(symbolic: Symbolic, tensors: Sequence[Tensor]) -> list[Tensor]:
    """List the tensors that are packed: all but ranks and masks."""
    left_out = set(symbolic.structure.mask_places)
    return [tensor for place, tensor in enumerate(tensors) if place not in left_out]


def gathers_of(symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor]) -> Gathers:
    """Return where the arrays of a network are found, kept with its symbolic phase."""
    found: Gathers | None = symbolic.prepared.get("cpu gathers")
    if found is None:
        network = _Places(symbolic, tensors)
        found = symbolic.prepared["cpu gathers"] = Gathers(
            _gather(layout, network, transposed=False),
            _gather(layout, network, transposed=True),
            Kept(network.tainting(tensors)),
        )
    return found


def _sources_of(symbolic: Symbolic, tensors: Sequence[Tensor]) -> Sources:
    dtype = tensors[1].dtype
    return Sources([tensor.detach().to(dtype) for tensor in _weights_of(symbolic, tensors)])


Room = Callable[[int, Any], NDArray[Any]]
"""Makes an array of so many numbers of a type."""


def pack(
    symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor], room: Room = np.empty
) -> Weights:
    """Write the weights of a network in blocks, for which there is room."""
    gathers, sources = gathers_of(symbolic, layout, tensors), _sources_of(symbolic, tensors)
    packed, depth = gathers.weights.of(sources, room), symbolic.structure.depth
    vectors, first = packed[layout.size :].copy(), layout.table[depth, BIAS]
    nothing = sources.nothing(gathers.tainting)
    vectors[first : first + len(symbolic.layers[depth].units)] += nothing
    return Weights(packed[: layout.size], vectors)


def pack_transposed(
    symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor], room: Room = np.empty
) -> NDArray[Any]:
    """Write the transposed weights of a network in blocks, for the adjoint."""
    gather = gathers_of(symbolic, layout, tensors).transposed
    return gather.of(_sources_of(symbolic, tensors), room)


Context = tuple[Tensor, int]
"""A context's contributions, unit by unit, and how many rows there are of them."""


def context_of(symbolic: Symbolic, network: NetworkSpec) -> Context | None:
    """Return the context's contributions, unit by unit, and how many rows there are of them."""
    if not network.bases:
        return None
    flags, dtype = symbolic.structure.flags, network.tensors[1].dtype
    units = [place.units for place, letters in zip(symbolic.layers, flags, strict=True)
             for letter in letters if letter in "cg"]  # fmt: skip
    # Unit by unit: the rows of a unit, which are lanes, are neighbours.
    parts = [
        values.detach().to(dtype).index_select(1, own).t().reshape(-1)
        for values, own in zip(network.bases, units, strict=True)
    ]
    return torch.cat(parts), len(network.bases[0])


def _gather(layout: Layout, network: _Places, *, transposed: bool) -> Gather:
    """Find weights in blocks, then biases and norms; or transposed weights in theirs."""
    ranks, symbolic = layout.ranks, network.symbolic
    found = np.full(layout.back_size + 1 if transposed else layout.size, network.zero)
    chains = (*layout.blocks, layout.direct_blocks)
    if transposed:
        chains = (*layout.back_blocks, layout.direct_back)
    for (index, of_inputs, matrix), places in zip(network.matrices, chains, strict=False):
        starts = ranks.starts[index]
        below = symbolic.feature_starts if of_inputs else ranks.starts[index - 1]
        for p, (r0, r1) in enumerate(pairwise(ranks.panels)):
            if transposed:
                # An input of rank r is read by units of degree r + 1 and more.
                first = starts[r0 + 1 if of_inputs else r0]
                block = matrix[first:, below[r0] : below[r1]]
            else:
                read = inputs_read(symbolic, 0 if of_inputs else index, r1)
                block = matrix[starts[r0] : starts[r1], :read].T
            found[places[p] : places[p] + block.size] = block.reshape(-1)
    others = [] if transposed else [*network.vectors, np.array([network.zero])]
    return network.gather([found, *others])
