"""How a plan lies in memory for the compiled sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from made_flows.inverse.elementwise import ACTIVATION_CODES
from made_flows.inverse.plan import Integers, Plan
from made_flows.inverse.sweeps import (
    A,
    ACTIVATION,
    BASE,
    BIAS,
    DELTA,
    GATE,
    NORM,
    SLOPE,
    SOURCE,
    STREAM,
    STREAM_INDEX,
    STREAM_SUM,
    SUM,
    UNITS,
    Z,
)

__all__ = ["Packed", "covers_activations", "pack"]

_PANEL_UNITS = 24
"""Units of the widest layer in a panel, at least, where ranks are single: two blocks of registers."""

_SCRATCH_ROWS = 6
"""Rows of the workspace that a step may use: three of its own, the value, two parts of noise."""


def covers_activations(plan: Plan) -> bool:
    """Whether the compiled sweeps know all activations of a plan."""
    return all(word.split(":")[0] in ACTIVATION_CODES for word in plan.structure.activations)


@dataclass
class Packed:
    """The arrays of one plan. Weights lie in blocks, one for each layer and panel of ranks.

    A block is input-major: the weights of all units of the panel for one input, then for the
    next, so that the inner loop reads it in one stream.

    Args:
        panels: ranks at which panels start, and the number of ranks.
        weights: all blocks, one after the other; then those of direct connections.
        blocks: place of the block of each layer and panel, (layers, panels).
        direct_blocks: place of direct connections' blocks, (panels,), or empty.
        transposed: blocks of the transposed weights, for the adjoint; None until needed.
        back_blocks, direct_back: their places.
        vectors: biases and norms.
        constants: constants of the activations.
        starts: (layers, ranks + 1), units of lower degree.
        feature_starts, column_starts: likewise of features and input columns.
        output_starts, input_starts: places of a feature's outputs and columns, by sorted feature.
        streams: places of the units that units add to.
        layout: table of layers for solving, and rows that the workspace needs.
        adjoint_layout: likewise for the adjoint, with the place of lambda.
    """

    panels: Integers
    weights: NDArray[Any]
    blocks: Integers
    direct_blocks: Integers
    vectors: NDArray[Any]
    constants: NDArray[np.float64]
    starts: Integers
    features: Integers
    feature_starts: Integers
    column_starts: Integers
    output_starts: Integers
    input_starts: Integers
    streams: Integers
    table: Integers
    rows: int
    scratch: int
    adjoint_table: Integers
    adjoint_rows: int
    lambda_place: int
    work: float
    transposed: NDArray[Any] | None = None
    back_blocks: Integers | None = None
    direct_back: Integers | None = None


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().numpy()
    return array


def _panels(plan: Plan) -> Integers:
    widest = max(len(layer.units) for layer in plan.layers)
    size = max(1, round(_PANEL_UNITS * plan.levels / max(widest, 1)))
    return np.append(np.arange(0, plan.levels, size), plan.levels).astype(np.int64)


def pack(plan: Plan) -> Packed:
    """The arrays of a plan for the sweeps."""
    depth, levels = plan.structure.depth, plan.levels
    panels = _panels(plan)
    starts = np.stack([layer.starts for layer in plan.layers])
    dtype = _numpy(plan.output.weight).dtype

    parts: list[NDArray[Any]] = []
    place = 0

    def store(block: NDArray[Any]) -> int:
        nonlocal place
        start = place
        parts.append(block.ravel())
        place += block.size
        return start

    blocks = np.zeros((depth + 1, len(panels) - 1), dtype=np.int64)
    direct_blocks = np.zeros(0 if plan.direct is None else len(panels) - 1, dtype=np.int64)
    for p, (r0, r1) in enumerate(zip(panels, panels[1:], strict=False)):
        for index, layer in enumerate(plan.layers):
            u0, u1 = starts[index, r0], starts[index, r1]
            read = starts[index - 1, r1] if index else plan.column_starts[r1 - 1]
            blocks[index, p] = store(_numpy(layer.weight)[u0:u1, :read].T)
        if plan.direct is not None:
            o0, o1 = starts[depth, r0], starts[depth, r1]
            block = _numpy(plan.direct)[o0:o1, : plan.column_starts[r1 - 1]].T
            direct_blocks[p] = store(block)
    weights = np.concatenate([*parts, np.zeros(1, dtype)])

    vectors, vector_places, norm_places = _vectors(plan, dtype)
    streams = [np.zeros(0, np.int64)]
    table = np.full((depth + 1, 15), -1, dtype=np.int64)
    targets = set(plan.structure.adds_to)
    for index, layer in enumerate(plan.layers):
        table[index, BIAS] = vector_places[index]
        table[index, NORM] = norm_places[index]
        table[index, UNITS] = len(layer.units)
        if index < depth:
            word = plan.structure.activations[index].split(":")[0]
            table[index, ACTIVATION] = ACTIVATION_CODES.get(word, -1)
        if layer.stream is not None:
            table[index, STREAM_INDEX] = sum(map(len, streams))
            streams.append(_numpy(layer.stream))
    _place_contexts(plan, table)
    features = _numpy(plan.features)
    counts = np.array(plan.structure.parameters)[features]
    inputs = np.array(plan.structure.inputs)[features]

    adjoint = table.copy()
    outputs_at_once = int(np.diff(starts[depth][panels]).max())
    rows = _place(plan, table, targets, len(plan.columns))
    table[depth, Z] = rows
    scratch = rows + outputs_at_once
    adjoint_rows = _place(plan, adjoint, targets, len(plan.columns))
    for index, layer in enumerate(plan.layers):
        units = len(layer.units)
        for column in (SLOPE, DELTA, SUM):
            if column == DELTA or (index < depth and (column == SLOPE or index in targets)):
                adjoint[index, column] = adjoint_rows
                adjoint_rows += units
    for index, earlier in enumerate(plan.structure.adds_to):
        if earlier >= 0:
            adjoint[index, STREAM_SUM] = adjoint[earlier, SUM]
    lambda_place = adjoint_rows
    adjoint_rows += len(features)
    return Packed(
        panels=panels,
        weights=weights,
        blocks=blocks,
        direct_blocks=direct_blocks,
        vectors=vectors,
        constants=np.array([float(w.split(":")[1]) for w in plan.structure.activations] + [0.0]),
        starts=starts,
        features=features,
        feature_starts=plan.feature_starts,
        column_starts=plan.column_starts,
        output_starts=np.append(0, np.cumsum(counts)).astype(np.int64),
        input_starts=np.append(0, np.cumsum(inputs)).astype(np.int64),
        streams=np.concatenate(streams),
        table=table,
        rows=scratch + _SCRATCH_ROWS,
        scratch=scratch,
        adjoint_table=adjoint,
        adjoint_rows=adjoint_rows,
        lambda_place=lambda_place,
        work=float(weights.size),
    )


def _place(plan: Plan, table: Integers, targets: set[int], first: int) -> int:
    """Give layers their rows of the workspace, after the inputs; the next free row is returned."""
    row, source = first, 0
    for index, layer in enumerate(plan.hidden):
        table[index, SOURCE] = source
        table[index, Z] = table[index, A] = row
        row += len(layer.units)
        if index in targets:  # its z is needed later: its a gets rows of its own
            table[index, A] = row
            row += len(layer.units)
        source = table[index, A]
        earlier = plan.structure.adds_to[index]
        if earlier >= 0:
            table[index, STREAM] = table[earlier, Z]
    table[plan.structure.depth, SOURCE] = source
    return row


def _place_contexts(plan: Plan, table: Integers) -> None:
    """Where the context's contributions to each layer stand, in the order of the network's bases."""
    row = 0
    for index, letters in enumerate(plan.structure.flags):
        for letter, column in (("c", BASE), ("g", GATE)):
            if letter in letters:
                table[index, column] = row
                row += len(plan.layers[index].units)


def _vectors(plan: Plan, dtype: np.dtype[Any]) -> tuple[NDArray[Any], list[int], list[int]]:
    """Biases and norms of all layers in one array, and where each layer's begin."""
    parts: list[NDArray[Any]] = []
    biases, norms = [], []
    place = 0

    def store(values: NDArray[Any]) -> int:
        nonlocal place
        start = place
        parts.append(values)
        place += len(values)
        return start

    for layer in plan.layers:
        none = np.zeros(len(layer.units), dtype)
        biases.append(store(none if layer.bias is None else _numpy(layer.bias)))
        if layer.norm_scale is None or layer.norm_shift is None:
            norms.append(-1)
        else:
            norms.append(store(_numpy(layer.norm_scale)))
            store(_numpy(layer.norm_shift))
    return np.concatenate([*parts, np.zeros(1, dtype)]), biases, norms


def pack_transposed(plan: Plan, packed: Packed) -> None:
    """Lay out the transposed weights, which only the adjoint needs."""
    if packed.transposed is not None:
        return
    depth, levels, starts, panels = plan.structure.depth, plan.levels, packed.starts, packed.panels
    dtype = packed.weights.dtype
    parts: list[NDArray[Any]] = []
    place = 0

    def store(block: NDArray[Any]) -> int:
        nonlocal place
        start = place
        parts.append(block.ravel())
        place += block.size
        return start

    back = np.zeros((depth + 1, len(panels) - 1), dtype=np.int64)
    direct_back = np.zeros(len(packed.direct_blocks), dtype=np.int64)
    for p, (r0, r1) in enumerate(zip(panels, panels[1:], strict=False)):
        f0, f1 = plan.feature_starts[r0], plan.feature_starts[r1]
        above = starts[0, min(r0 + 1, levels)]
        back[0, p] = store(_numpy(plan.layers[0].weight)[above:, f0:f1])
        for index in range(1, depth + 1):
            u0, u1 = starts[index - 1, r0], starts[index - 1, r1]
            back[index, p] = store(_numpy(plan.layers[index].weight)[starts[index, r0] :, u0:u1])
        if plan.direct is not None:
            above = starts[depth, min(r0 + 1, levels)]
            direct_back[p] = store(_numpy(plan.direct)[above:, f0:f1])
    packed.back_blocks, packed.direct_back = back, direct_back
    packed.transposed = np.concatenate([*parts, np.zeros(1, dtype)])
