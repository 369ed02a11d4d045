"""Gradients of weights, from the deltas of units and the activations that these read.

A weight's gradient is a sum over all rows of the batch. Activations are turned for it, a few inputs
at a time, so that those of one row of the batch are neighbours: then the sums of a few units times
some vectors of inputs stay in registers while a loop runs over the rows of all tiles, and none of
them has to be summed over its lanes at the end. Only blocks that the other kernels multiply by are
gone through, and every sum goes where its weight was found.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.layout import BIAS, DELTA, SOURCE, Integers
from made_flows.inverse.compiled.simd import (
    ACCUMULATORS,
    VECTOR_BYTES,
    VECTORS,
    keep_apart,
    like,
    line,
    lines,
    long,
    matrix,
    plus_product,
    room,
    row_products,
)
from made_flows.inverse.compiled.threads import next_tile
from made_flows.inverse.compiled.translation import independent

_INPUTS = 3
"""Vectors of inputs in a block."""

_UNITS = tuple(size for size in (8, 4, 2, 1) if size * _INPUTS <= ACCUMULATORS)
_BLOCKS = tuple(
    (vectors, tuple((units, row_products(units, vectors, _INPUTS)) for units in _UNITS))
    for vectors in range(1, _INPUTS + 1)
)
"""For each number of vectors, and of units, what multiplies them."""

_GROUP, _ROWS = 24, 96
"""Units that a sum is kept for at once, and rows that they go through together: both, and what they
are multiplied with, fit in the nearest cache."""


class Recordings(NamedTuple):
    """The workspaces that the kernels of training have left behind.

    Args:
        tiles: how many there are.
        lanes, last: lanes of a tile, and of the last one.
        rows: of the batch, in the last one: the lanes after them count for nothing.
        size: numbers in the workspace of a tile.
        inputs: where the network's inputs were turned to.
    """

    tiles: int
    lanes: int
    last: int
    rows: int
    size: int
    inputs: int


class BlockRows(NamedTuple):
    """Where the gradients of a block's weights go, if its units and inputs are neighbours.

    Args:
        units: how many the block has.
        first: the row of the first of them, -1 if they, or their inputs, are not neighbours.
        columns: of a row.
        straight: of so many inputs no unit's weight is masked.
        whole: 1 where all columns are to be written, with zeros where weights are masked; 0 where
            they are zero already.
    """

    units: int
    first: int
    columns: int
    straight: int
    whole: int


class Targets(NamedTuple):
    """Where gradients go: addresses, 0 for none.

    Args:
        weights: of the gradients of layers' weights, (layers,).
        biases, direct: the same for biases, and for the direct connection.
    """

    weights: Integers
    biases: Integers
    direct: Integers


def turn(tile: Any, source: int, target: int, count: int) -> None:
    """Write rows of a workspace, as many as a block has inputs at a time, so that lanes are rows.

    They may be written where they stand.
    """
    keep_apart()
    work, _, lanes = tile
    vector = VECTOR_BYTES // work.itemsize
    before = room(work, _INPUTS * vector * VECTORS * vector)
    for k in range(0, count, _INPUTS * vector):
        here = min(_INPUTS * vector, count - k)
        given = lines(work, source + k, source + k + here, lanes)
        turned = lines(work, target + k, target + k + here, lanes)
        for i in range(len(given)):
            before[i] = given[i]
        for j in range(lanes):
            for i in range(here):
                turned[j * here + i] = before[i * lanes + j]


def _put(target: Any, place: int, total: Any) -> None:
    if place >= 0:
        target[0, place] = total


def _put_units(
    target: Any, u: int, units: int, k: int, inputs: int, found: Any, rows: Any, places: Any
) -> None:
    """Write the gradients of some units' weights of some inputs, from the u-th and the k-th on.

    ``places`` are those of these weights, of one input after the other as the block has them.
    """
    keep_apart()
    width = _INPUTS * (VECTOR_BYTES // found.itemsize)
    straight = max(0, min(inputs, rows.straight - k))
    for i in range(units):
        row, own = (rows.first + u + i) * rows.columns + k, i * width
        for j in independent(straight):
            target[0, row + j] = found[own + j]
        for j in range(straight, inputs):
            place = long(places[j * rows.units + i])
            if place >= 0:
                target[0, place] = found[own + j]
            elif rows.whole > 0:
                target[0, row + j] = like(found[0], 0.0)


def _clear_units(target: Any, rows: Any, inputs: int) -> None:
    """Write the gradients, zeros, of the weights of inputs that no unit of a block reads."""
    keep_apart()
    zero = like(target[0, 0], 0.0)
    for i in range(rows.units):
        row = (rows.first + i) * rows.columns
        for j in independent(rows.columns - inputs):
            target[0, row + inputs + j] = zero


def _fill_block(
    spaces: Any, recorded: Any, delta: int, source: int, total: int, inputs: int, address: int,
    places: Any, block: int, rows: Any,
) -> None:  # fmt: skip
    """Write the gradients of the weights of a block, if there is an address for them.

    ``inputs`` are read, of ``total`` rows that were turned from ``source`` on.
    """
    keep_apart()
    if address == 0:
        return
    target, count = matrix(address, spaces, 1, 1), rows.units
    width = _INPUTS * (VECTOR_BYTES // spaces.itemsize)
    found = room(spaces, _GROUP * width)
    for u in range(0, count, _GROUP):
        units = min(_GROUP, count - u)
        for k in range(0, inputs, width):
            here = min(width, inputs - k)
            found[:] = like(spaces[0], 0.0)
            _sum_block(
                spaces, recorded, delta + u, units, source + k, min(width, total - k), here, found
            )
            first = places[block + k * count + u : block + inputs * count]
            _put_units(target, u, units, k, here, found, rows, first)
    if rows.whole > 0:
        _clear_units(target, rows, inputs)


def _sum_block(
    spaces: Any, recorded: Any, delta: int, count: int, source: int, turned: int, inputs: int,
    found: Any,
) -> None:  # fmt: skip
    """Add up what units and inputs of a block make, of ``turned`` inputs that lie together."""
    keep_apart()
    tiles, lanes, size = recorded.tiles, recorded.lanes, recorded.size
    vector = VECTOR_BYTES // spaces.itemsize
    width = _INPUTS * vector
    full, step, tile = tiles - 1, max(1, _ROWS // lanes), 0
    while tile < tiles:
        some, wide, rows = min(step, full - tile), lanes, lanes
        if tile == full:
            some, wide, rows = 1, recorded.last, recorded.rows
        work = spaces[tile * size : tiles * size]
        for part in _BLOCKS:
            if inputs <= part[0] * vector and inputs > (part[0] - 1) * vector:
                u = 0
                for inner in part[1]:
                    while count - u >= inner[0]:
                        sums = found[u * width : count * width]
                        c0, a0 = (delta + u) * wide, source * wide
                        inner[1](work, c0, a0, turned, wide, rows, size, some, sums)
                        u += inner[0]
        tile += some


def _fill_biases(
    spaces: Any, recorded: Any, delta: int, count: int, address: int, places: Any, first: int
) -> None:
    """Write the gradients of the biases of some units, if there is an address for them."""
    keep_apart()
    if address == 0:
        return
    tiles, size = recorded.tiles, recorded.size
    target = matrix(address, spaces, 1, 1)
    for u in range(count):
        total = like(spaces[0], 0.0)
        for tile in range(tiles):
            wide = recorded.lanes if tile < tiles - 1 else recorded.last
            deltas = line(spaces[tile * size : (tile + 1) * size], delta + u, wide)
            for j in range(wide):
                total = plus_product(total, deltas[j], like(total, 1.0))
        _put(target, long(places[first + u]), total)


def _rows_of(table: Any, block: int) -> Any:
    return BlockRows(
        table[block, 0], table[block, 1], table[block, 2], table[block, 3], table[block, 4]
    )


def fill_weights(
    slot: int, tiles: Any, spaces: Any, recorded: Any, ranks: Any, blocks: Any, found: Any,
    rows: Any, targets: Any,
) -> None:  # fmt: skip
    """Write the gradients of all weights and biases, from the workspaces of all tiles.

    Args:
        slot, tiles: of blocks, one of which is fetched at a time.
        spaces, recorded: the workspaces, and what they hold.
        ranks: which units come when.
        blocks: where numbers are in what was packed.
        found: the :class:`~made_flows.inverse.compiled.gathering.Places` of these.
        rows: the :class:`BlockRows` of all blocks, layer by layer, of the direct connection last.
        targets: addresses of the gradients.
    """
    keep_apart()
    table, places = blocks.table, found.places
    panels, depth = len(ranks.panels) - 1, len(table) - 1
    levels = ranks.panels[panels]
    read = ranks.column_starts[levels - 1]
    while True:
        job, here, _ = next_tile(tiles, spaces)
        if here <= 0:
            return
        # The last panels of the last layers have the most to do, and come first.
        layer, p = depth - job // panels, panels - 1 - job % panels
        r0, r1 = ranks.panels[p], ranks.panels[p + 1]
        u0, count = ranks.starts[layer, r0], ranks.starts[layer, r1] - ranks.starts[layer, r0]
        delta, columns = table[layer, DELTA] + u0, ranks.column_starts[r1 - 1]
        source = table[layer, SOURCE] if layer > 0 else recorded.inputs
        total = ranks.starts[layer - 1, levels] if layer > 0 else read
        inputs = ranks.starts[layer - 1, r1] if layer > 0 else columns
        _fill_block(
            spaces, recorded, delta, source, total, inputs, targets.weights[layer], places,
            blocks.blocks[layer, p], _rows_of(rows, layer * panels + p),
        )  # fmt: skip
        if layer == depth and len(blocks.direct) > 0:
            _fill_block(
                spaces, recorded, delta, recorded.inputs, read, columns, targets.direct[0],
                places, blocks.direct[p], _rows_of(rows, (depth + 1) * panels + p),
            )  # fmt: skip
        first = blocks.vectors + table[layer, BIAS] + u0
        _fill_biases(spaces, recorded, delta, count, targets.biases[layer], places, first)
