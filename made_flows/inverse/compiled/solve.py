"""The compiled sweep: all steps of the sequential inverse for tiles of rows.

Activations of a tile stand feature by feature, the rows of the tile side by side, so that rows
are the lanes of vectors. Ranks are taken in panels, as in a blocked triangular solve: before a
panel one product per layer brings in everything earlier, in large blocks that run at the speed of
a matrix product; inside it small products do the rest.

Weights above the diagonal, which a masked network does not have, are never read: a block ends
where its units' inputs do. The arrays are laid out by :mod:`made_flows.inverse.compiled.placement`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.layout import SCRATCH, SOURCE, Tile, Z
from made_flows.inverse.compiled.simd import call, keep_apart, like, line, matrix
from made_flows.inverse.compiled.threads import next_tile
from made_flows.inverse.compiled.translation import independent
from made_flows.inverse.compiled.units import finish_units, gather, scatter, start_units


class Rows(NamedTuple):
    """The batch, by addresses of contiguous arrays.

    Args:
        size: number of rows N.
        noise: of u, (N, D * P).
        known: of values (N, D) of which the first ``prefix`` ranks are kept.
        values: of the result, (N, D).
        prefix: how many ranks are known.
    """

    size: int
    noise: int
    known: int
    values: int
    prefix: int


def put_inputs(work: Any, first: int, last: int, lanes: int, x: Any, one_hot: bool) -> None:
    """Write what the network reads for a feature's values: the values, or one-hot columns."""
    keep_apart()
    if not one_hot:
        column = line(work, first, lanes)
        for j in independent(lanes):
            column[j] = x[j]
        return
    one, zero = like(x[0], 1.0), like(x[0], 0.0)
    for c in range(first, last):
        column = line(work, c, lanes)
        category = like(x[0], c - first)
        for j in independent(lanes):
            column[j] = one if x[j] == category else zero


def multiply(
    tile: Any,
    target: int,
    source: int,
    blocks: Any,
    block: int,
    stride: int,
    inputs: int,
    units: int,
) -> None:
    """Call ``add_product`` for rows of a tile."""
    places = (tile.lanes, target, source, block, stride, inputs, units)
    call(blocks.product, tile.work, blocks.weights, places)


def keep_known(
    tile: Any, r0: int, r1: int, here: int, known: Any, values: Any, x0: int, ranks: Any, one: bool
) -> None:
    """Take the values of ranks [r0, r1) from those that are known."""
    keep_apart()
    work, row, lanes = tile
    x = line(work, x0, lanes)
    for i in range(ranks.feature_starts[r0], ranks.feature_starts[r1]):
        f = ranks.features[i]
        gather(known, f, row, lanes, x)
        scatter(x, values, f, row, here)
        put_inputs(work, ranks.input_starts[i], ranks.input_starts[i + 1], lanes, x, one)


def take_steps(
    tile: Any, r: int, here: int, noise: Any, values: Any, place: int, scratch: int, ranks: Any,
    step: Any,
) -> None:  # fmt: skip
    """Find the values of a rank's features, whose parameters stand from ``place`` on."""
    keep_apart()
    work, row, lanes = tile
    x0 = scratch + SCRATCH
    x = line(work, x0, lanes)
    i0, i1 = ranks.feature_starts[r], ranks.feature_starts[r + 1]
    for i in range(i0, i1):
        f = ranks.features[i]
        for part in range(step.parts):
            u = line(work, x0 + 1 + part, lanes)
            gather(noise, f * step.parts + part, row, lanes, u)
        parameters = place + ranks.output_starts[i] - ranks.output_starts[i0]
        count = ranks.output_starts[i + 1] - ranks.output_starts[i]
        rows = (lanes, parameters, count, x0 + 1, scratch, x0)
        call(step.address, work, step.numbers, rows)
        scatter(x, values, f, row, here)
        put_inputs(work, ranks.input_starts[i], ranks.input_starts[i + 1], lanes, x, step.one_hot)


def solve_tiles(slot: int, tiles: Any, spaces: Any, rows: Any, sweep: Any) -> None:
    """Solve a batch, a tile of rows after the other.

    ``slot`` says which of the workspaces is this thread's. ``tiles`` is a
    :class:`~made_flows.inverse.compiled.threads.Tiles`, ``rows`` a :class:`Rows`, ``sweep`` a
    :class:`~made_flows.inverse.compiled.layout.Sweep`.
    """
    keep_apart()
    units, ranks, blocks, step, scratch = sweep
    work = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    table, starts, column_starts = units.table, ranks.starts, ranks.column_starts
    depth, count = len(table) - 1, len(ranks.features)
    noise = matrix(rows.noise, work, rows.size, count * step.parts)
    known = matrix(rows.known, work, rows.size, count)
    values = matrix(rows.values, work, rows.size, count)
    out, prefix = table[depth, Z], rows.prefix
    direct = len(blocks.direct) > 0
    while True:
        row, here, lanes = next_tile(tiles, work)
        if here <= 0:
            return
        tile = Tile(work, row, lanes)
        for p in range(len(ranks.panels) - 1):
            r0, r1 = ranks.panels[p], ranks.panels[p + 1]
            given = r1 <= prefix  # all ranks of the panel are known
            o0, o1 = starts[depth, r0], starts[depth, r1]
            if given:
                keep_known(
                    tile, r0, r1, here, known, values, scratch + SCRATCH, ranks, step.one_hot
                )
            # Everything that earlier panels computed, in one product per layer. Where the panel
            # is known, its own inputs come in too, and its outputs are not needed.
            for layer in range(depth + 1):
                u0, u1 = starts[layer, r0], starts[layer, r1]
                if layer == depth:
                    if given:
                        continue
                    start_units(tile, out - o0, layer, o0, o1, units)
                    place = out
                else:
                    start_units(tile, table[layer, Z], layer, u0, u1, units)
                    place = table[layer, Z] + u0
                until = r1 if given else r0
                if layer > 0:
                    read = starts[layer - 1, until]
                else:
                    read = column_starts[r1 - 1 if given else r0]
                block = blocks.places[layer, p]
                source = table[layer, SOURCE]
                multiply(tile, place, source, blocks, block, u1 - u0, read, u1 - u0)
                if given:
                    finish_units(tile, layer, u0, u1, units)
            if given:
                continue
            if direct:
                block = blocks.direct[p]
                multiply(tile, out, 0, blocks, block, o1 - o0, column_starts[r0], o1 - o0)
            for r in range(r0, r1):
                # The units of degree r, layer by layer; they read only what is already there.
                for layer in range(depth + 1):
                    u0, u1 = starts[layer, r0], starts[layer, r1]
                    v0, v1 = starts[layer, r], starts[layer, r + 1]
                    if layer > 0:
                        done, read = starts[layer - 1, r0], starts[layer - 1, r + 1]
                    else:
                        done, read = column_starts[r0], column_starts[r]
                    place = out + v0 - o0 if layer == depth else table[layer, Z] + v0
                    block = blocks.places[layer, p] + done * (u1 - u0) + v0 - u0
                    source = table[layer, SOURCE] + done
                    multiply(tile, place, source, blocks, block, u1 - u0, read - done, v1 - v0)
                    if layer < depth:
                        finish_units(tile, layer, v0, v1, units)
                v0, v1 = starts[depth, r], starts[depth, r + 1]
                if direct:
                    done = column_starts[r0]
                    block = blocks.direct[p] + done * (o1 - o0) + v0 - o0
                    read = column_starts[r] - done
                    multiply(tile, out + v0 - o0, done, blocks, block, o1 - o0, read, v1 - v0)
                if r < prefix:
                    x0 = scratch + SCRATCH
                    keep_known(tile, r, r + 1, here, known, values, x0, ranks, step.one_hot)
                else:
                    take_steps(tile, r, here, noise, values, out + v0 - o0, scratch, ranks, step)
