"""The compiled parallel pass: all layers of a tile of rows, whose inputs are known.

The blocks are those of the sweep (:mod:`made_flows.inverse.compiled.solve`), and so are products,
units and steps; only the order differs: layer by layer, each block as one product. What lies above
the diagonal is never read, and the parameters of a panel's features are used where they were
computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.layout import SCRATCH, SOURCE, Tile, Z
from made_flows.inverse.compiled.simd import call, keep_apart, like, line, matrix
from made_flows.inverse.compiled.solve import multiply, put_inputs
from made_flows.inverse.compiled.threads import next_tile
from made_flows.inverse.compiled.translation import independent
from made_flows.inverse.compiled.units import finish_units, gather, scatter, start_units


class Scores(NamedTuple):
    """The batch, by addresses of contiguous arrays.

    Args:
        size: number of rows N.
        x: of the values that the network reads, (N, D).
        images: of their images under the elementwise map, (N, D), or 0 where nobody wants them.
        density: of sums over the features, (N,).
        adds: whether they are added to what stands there.
    """

    size: int
    x: int
    images: int
    density: int
    adds: bool


def fill_inputs(tile: Any, x: Any, ranks: Any, step: Any, place: int) -> None:
    """Write what the network reads of a tile's rows; ``place`` is a row that may be used."""
    keep_apart()
    work, row, lanes = tile
    values = line(work, place, lanes)
    for i in range(len(ranks.features)):
        gather(x, ranks.features[i], row, lanes, values)
        first, last = ranks.input_starts[i], ranks.input_starts[i + 1]
        put_inputs(work, first, last, lanes, values, step.one_hot)


def find_known(tile: Any, x: Any, i: int, ranks: Any, step: Any, place: int) -> Any:
    """Return the row with a sorted feature's values; two after ``place`` where inputs encode it."""
    keep_apart()
    known = ranks.input_starts[i]
    if step.one_hot:
        known = place + 2
        values = line(tile.work, known, tile.lanes)
        gather(x, ranks.features[i], tile.row, tile.lanes, values)
    return known


def fill_block(
    tile: Any, layer: int, p: int, place: int, units: Any, ranks: Any, blocks: Any
) -> None:
    """Compute the weighted sums of a panel's units, or outputs, from ``place`` on."""
    keep_apart()
    starts, r0, r1 = ranks.starts[layer], ranks.panels[p], ranks.panels[p + 1]
    u0, count = starts[r0], starts[r1] - starts[r0]
    start_units(tile, place - u0, layer, u0, u0 + count, units)
    inputs = ranks.column_starts[r1 - 1]
    read = ranks.starts[layer - 1, r1] if layer > 0 else inputs
    source, block = units.table[layer, SOURCE], blocks.places[layer, p]
    multiply(tile, place, source, blocks, block, count, read, count)
    if layer == len(units.table) - 1 and len(blocks.direct) > 0:
        multiply(tile, place, 0, blocks, blocks.direct[p], count, inputs, count)


def score_tiles(slot: int, tiles: Any, spaces: Any, rows: Any, sweep: Any) -> None:
    """Score a batch, a tile of rows after the other.

    ``rows`` is a :class:`Scores`; the other arguments are those of
    :func:`~made_flows.inverse.compiled.solve.solve_tiles`.
    """
    keep_apart()
    units, ranks, blocks, step, scratch = sweep
    work = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    table, starts, features = units.table, ranks.starts, ranks.features
    depth, count, panels = len(table) - 1, len(features), len(ranks.panels) - 1
    x = matrix(rows.x, work, rows.size, count)
    images = matrix(rows.images, work, rows.size, count)
    density = matrix(rows.density, work, rows.size, 1)
    out, x0 = table[depth, Z], scratch + SCRATCH
    while True:
        row, here, lanes = next_tile(tiles, work)
        if here <= 0:
            return
        tile = Tile(work, row, lanes)
        image = line(work, x0, lanes)
        total = line(work, x0 + 1, lanes)
        fill_inputs(tile, x, ranks, step, x0)
        total[:] = like(work[0], 0.0)
        for layer in range(depth):
            for p in range(panels):
                u0, u1 = starts[layer, ranks.panels[p]], starts[layer, ranks.panels[p + 1]]
                fill_block(tile, layer, p, table[layer, Z] + u0, units, ranks, blocks)
                finish_units(tile, layer, u0, u1, units)
        for p in range(panels):
            fill_block(tile, depth, p, out, units, ranks, blocks)
            i0 = ranks.feature_starts[ranks.panels[p]]
            for i in range(i0, ranks.feature_starts[ranks.panels[p + 1]]):
                parameters = out + ranks.output_starts[i] - ranks.output_starts[i0]
                outputs = ranks.output_starts[i + 1] - ranks.output_starts[i]
                known = find_known(tile, x, i, ranks, step, x0)
                places = (lanes, parameters, outputs, known, scratch, x0)
                call(step.address, work, step.numbers, places)
                if rows.images != 0:
                    scatter(image, images, features[i], row, here)
        if rows.adds:
            gather(density, 0, row, lanes, image)
            for j in independent(lanes):
                total[j] = image[j] + total[j]
        scatter(total, density, 0, row, here)
