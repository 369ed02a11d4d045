"""The compiled parallel pass with its gradient: a recorded pass, and the same blocks backwards.

Every tile has a workspace of its own, which lives from the one kernel to the other: activations,
their derivatives, and the parameters. The gradient's kernel adds the deltas, from which gradients
of weights are products of large matrices (:mod:`made_flows.inverse.compiled.gradients`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.adjoint import (
    clear_deltas,
    fill_panel,
    finish_deltas,
    send_to_inputs,
    send_to_units,
)
from made_flows.inverse.compiled.layout import DELTA, SCRATCH, SLOPE, A, Integers, Tile
from made_flows.inverse.compiled.parallel import fill_block, fill_inputs, find_known
from made_flows.inverse.compiled.simd import call, keep_apart, like, line, matrix
from made_flows.inverse.compiled.threads import next_tile
from made_flows.inverse.compiled.translation import independent
from made_flows.inverse.compiled.units import copy_rows, gather, scatter
from made_flows.inverse.compiled.weights import turn


class Recorded(NamedTuple):
    """The batch, by addresses of contiguous arrays.

    Args:
        size: number of rows N.
        x: of the values that the network reads, (N, D).
        images: of their images, or the gradients of these, (N, D); 0 for none.
        density: of sums over the features, or their gradients, (N,).
        gradient: of the gradients of x, (N, D), for the way back.
        parameters: the row of a workspace where parameters begin.
        scratch: the row where those begin that a step may use.
        inputs: the row where what the network reads is kept for the gradients of weights.
    """

    size: int
    x: int
    images: int
    density: int
    gradient: int
    parameters: int
    scratch: int
    inputs: int


class Dropped(NamedTuple):
    """What hidden units are multiplied by: in another number of rows, zero or one over a share.

    Args:
        factors: addresses of the factors of layers, (rows of the batch, units), 0 for none; of no
            layers where nothing is dropped.
        widths: units of each.
        starts, units: where a layer's units begin, and which of the network's they are.
    """

    factors: Integers
    widths: Integers
    starts: Integers
    units: Integers


def next_recorded(tiles: Any, spaces: Any) -> Any:
    """Fetch a tile as :func:`~made_flows.inverse.compiled.threads.next_tile` does, with its space.

    Of no rows, there is none, and it is not to be touched.
    """
    row, here, lanes = next_tile(tiles, spaces)
    begin = row // tiles.lanes * tiles.size
    return row, here, lanes, spaces[begin : begin + tiles.size]


def drop_units(
    tile: Any, layer: int, first: int, last: int, count: int, units: Any, dropped: Any, place: int
) -> None:
    """Multiply units [first, last) by their factors, and their slopes: what comes back is, too.

    Args:
        tile: a tile of the ``count`` rows of the batch.
        layer, first, last: which units.
        count: rows of the batch.
        units, dropped: what they are made of, and multiplied by.
        place: a row of the workspace that may be used.
    """
    keep_apart()
    if len(dropped.factors) == 0 or dropped.factors[layer] == 0:
        return
    work, row, lanes = tile
    factors = matrix(dropped.factors[layer], work, count, dropped.widths[layer])
    factor = line(work, place, lanes)
    for u in range(first, last):
        gather(factors, dropped.units[dropped.starts[layer] + u], row, lanes, factor)
        own = line(work, units.table[layer, A] + u, lanes)
        slope = line(work, units.table[layer, SLOPE] + u, lanes)
        for j in independent(lanes):
            own[j] *= factor[j]
            slope[j] *= factor[j]


def record_tiles(
    slot: int, tiles: Any, spaces: Any, rows: Any, units: Any, ranks: Any, blocks: Any, step: Any,
    dropped: Any,
) -> None:  # fmt: skip
    """Score a batch as ``score_tiles`` does, and keep what its gradient needs."""
    keep_apart()
    features, depth = ranks.features, len(units.table) - 1
    count, outputs = len(features), units.table[depth, DELTA]
    x = matrix(rows.x, spaces, rows.size, count)
    images = matrix(rows.images, spaces, rows.size, count)
    density = matrix(rows.density, spaces, rows.size, 1)
    x0 = rows.scratch + SCRATCH
    levels = len(ranks.feature_starts) - 1
    while True:
        row, here, lanes, work = next_recorded(tiles, spaces)
        if here <= 0:
            return
        tile = Tile(work, row, lanes)
        image = line(work, x0, lanes)
        total = line(work, x0 + 1, lanes)
        total[:] = like(work[0], 0.0)
        fill_inputs(tile, x, ranks, step, x0)
        for p in range(len(ranks.panels) - 1):
            for layer in range(depth):
                u0 = ranks.starts[layer, ranks.panels[p]]
                u1 = ranks.starts[layer, ranks.panels[p + 1]]
                fill_panel(tile, layer, p, units, ranks, blocks)
                drop_units(tile, layer, u0, u1, rows.size, units, dropped, x0)
            place = rows.parameters + ranks.starts[depth, ranks.panels[p]]
            fill_block(tile, depth, p, place, units, ranks, blocks)
        # The step may overwrite them: it has the rows where their gradients will stand.
        copy_rows(tile, rows.parameters, outputs, ranks.output_starts[count])
        for i in range(count):
            first, last = ranks.output_starts[i], ranks.output_starts[i + 1]
            known = find_known(tile, x, i, ranks, step, x0)
            places = (lanes, outputs + first, last - first, known, rows.scratch, x0)
            call(step.address, work, step.numbers, places)
            if rows.images != 0:
                scatter(image, images, features[i], row, here)
        scatter(total, density, 0, row, here)
        # The way back needs slopes, and x for the step, but activations for weights alone.
        for layer in range(depth):
            place = units.table[layer, A]
            turn(tile, place, place, ranks.starts[layer, levels])
        turn(tile, 0, rows.inputs, ranks.column_starts[levels - 1])


def pull_tiles(
    slot: int, tiles: Any, spaces: Any, rows: Any, units: Any, ranks: Any, back: Any, step: Any,
    place: int,
) -> None:  # fmt: skip
    """Take the gradients of images and densities back to the deltas of all units, and to x.

    ``back`` has the transposed product, and ``place`` is where the gradient of x begins.
    """
    keep_apart()
    table, starts, features, panels = units.table, ranks.starts, ranks.features, ranks.panels
    depth, count, levels = len(table) - 1, len(features), len(ranks.feature_starts) - 1
    x = matrix(rows.x, spaces, rows.size, count)
    images = matrix(rows.images, spaces, rows.size, count)
    density = matrix(rows.density, spaces, rows.size, 1)
    gradient = matrix(rows.gradient, spaces, rows.size, count)
    outputs, x0 = table[depth, DELTA], rows.scratch + SCRATCH
    zero = like(spaces[0], 0.0)
    while True:
        row, here, lanes, work = next_recorded(tiles, spaces)
        if here <= 0:
            return
        tile = Tile(work, row, lanes)
        image = line(work, x0, lanes)
        total = line(work, x0 + 1, lanes)
        gather(density, 0, row, lanes, total)
        total[here:] = zero  # lanes past the last row have no part in the gradients of weights
        copy_rows(tile, rows.parameters, outputs, ranks.output_starts[count])
        for i in range(count):
            image[:] = zero
            if rows.images != 0:
                gather(images, features[i], row, lanes, image)
                image[here:] = zero
            first, last = ranks.output_starts[i], ranks.output_starts[i + 1]
            known = find_known(tile, x, i, ranks, step, x0)
            places = (lanes, outputs + first, last - first, known, rows.scratch, x0)
            call(step.address, work, step.numbers, places)
            copy_rows(tile, x0, place + i, 1)
        clear_deltas(tile, units, ranks)
        for layer in range(depth - 1, -1, -1):
            for p in range(len(panels) - 1):
                own = (0, starts[layer, panels[p + 1]])
                send_to_units(tile, layer, p, own, panels[p], units, ranks, back)
            finish_deltas(tile, layer, 0, starts[layer, levels], units)
        if rows.gradient == 0:
            continue
        for p in range(len(panels) - 1):
            own = (0, ranks.column_starts[panels[p + 1] - 1])
            send_to_inputs(tile, place, p, own, panels[p], units, ranks, back)
        for i in range(count):
            scatter(line(work, place + i, lanes), gradient, features[i], row, here)


def spread_tiles(
    slot: int, tiles: Any, spaces: Any, size: int, table: Any, starts: Any, units: Any,
    targets: Any, widths: Any,
) -> None:  # fmt: skip
    """Write the deltas of layers' units where the network has these, row by row of the batch.

    ``units`` from ``starts[layer]`` on are a layer's, ``targets`` the addresses of matrices
    (``size``, ``widths[layer]``), 0 for none.
    """
    keep_apart()
    while True:
        row, here, lanes, work = next_recorded(tiles, spaces)
        if here <= 0:
            return
        for layer in range(len(targets)):
            if targets[layer] != 0:
                target = matrix(targets[layer], spaces, size, widths[layer])
                for u in range(starts[layer + 1] - starts[layer]):
                    deltas = line(work, table[layer, DELTA] + u, lanes)
                    scatter(deltas, target, units[starts[layer] + u], row, here)
