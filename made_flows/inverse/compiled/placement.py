"""Placement: where weights, units and steps of a network stand in the arrays of the kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows._checks import expect
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
    Ranks,
    Written,
    Z,
)
from made_flows.inverse.symbolic import Symbolic
from made_flows.nn.spec import NetworkSpec, Structure

_PANEL_UNITS = 24
"""Units of the widest layer in a panel, about: two blocks of registers."""

STEP_ROWS = SCRATCH + 3
"""Rows of the workspace for a step: its scratch space, the value, two more of noise or of sums."""


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
    streams: Integers
    constants: NDArray[np.float64]
    table: Integers
    rows: int
    scratch: int
    adjoint_table: Integers
    adjoint_rows: int
    lambda_place: int
    arguments: dict[str, Written] = field(default_factory=dict)

    @cached_property
    def written_blocks(self) -> Written:
        """Where blocks, and biases after them, begin."""
        return Written(BlockPlaces(self.blocks, self.direct_blocks, self.adjoint_table, self.size))

    @cached_property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.ranks.output_starts[-1])

    def written(self, name: str) -> Written:
        """Return one of the above, as kernels take it again and again."""
        found = self.arguments.get(name)
        if found is None:
            found = self.arguments[name] = Written(getattr(self, name))
        return found


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


def array_of(tensor: Tensor) -> NDArray[Any]:
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
    depth = symbolic.structure.depth
    panels = _panels(symbolic, panel_units)
    starts = np.stack([layer.starts for layer in symbolic.layers])
    count = len(panels) - 1
    blocks = np.zeros((depth + 1, count), dtype=np.int64)
    direct_blocks = np.zeros(count * symbolic.structure.direct, dtype=np.int64)
    size = 0
    for p, (r0, r1) in enumerate(pairwise(panels)):
        units = starts[:, r1] - starts[:, r0]
        for index in range(depth + 1):
            blocks[index, p] = size
            size += units[index] * inputs_read(symbolic, index, r1)
        if symbolic.structure.direct:
            direct_blocks[p] = size
            size += units[depth] * inputs_read(symbolic, 0, r1)

    streams = [np.zeros(0, np.int64)]
    table = np.full((depth + 1, COLUMNS), -1, dtype=np.int64)
    targets = set(symbolic.structure.adds_to)
    for index, layer in enumerate(symbolic.layers):
        table[index, UNITS] = len(layer.units)
        if layer.stream is not None:
            table[index, STREAM_INDEX] = sum(map(len, streams))
            streams.append(array_of(layer.stream))
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
    features = array_of(symbolic.features)
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
        streams=np.concatenate(streams),
        constants=np.array([*(constant for _, constant in activations), 0.0]),
        table=table,
        rows=scratch + STEP_ROWS,
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
    """Place each layer's bias, and its norm's scale and shift, in the vectors."""
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


Context = tuple[Tensor, int]
"""A context's contributions, unit by unit, and how many rows there are of them."""


def context_words(context: Context) -> tuple[int, int, int]:
    """Write down what a context contributes, as units of kernels begin with it."""
    values, rows = context
    return values.data_ptr(), values.numel(), rows


def context_of(symbolic: Symbolic, network: NetworkSpec) -> Context | None:
    """Return the context's contributions, unit by unit, and how many rows there are of them."""
    if not network.bases:
        return None
    flags, dtype = symbolic.structure.flags, network.tensors[1].dtype
    units = [place.units for place, letters in zip(symbolic.layers, flags, strict=True)
             for letter in letters if letter in "cg"]  # fmt: skip
    # Unit by unit: the rows of a unit, which are lanes, are neighbours.
    parts = [
        values.detach().to(dtype).t().index_select(0, own).reshape(-1)
        for values, own in zip(network.bases, units, strict=True)
    ]
    values, device = torch.cat(parts), network.tensors[1].device
    if values.device != device:  # kernels read memory, where it has some
        expect(False, "context", f"on the device of the weights, {device}", values.device)
    return values, len(network.bases[0])
