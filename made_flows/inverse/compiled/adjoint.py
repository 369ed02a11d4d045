"""The compiled sweep run backwards: the transposed system, for tiles of rows.

The delta of a hidden unit of degree m is complete once all ranks from m on are done. See
:mod:`made_flows.inverse.compiled.solve` for how a tile lies in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.layout import (
    DELTA,
    GATE,
    SLOPE,
    STREAM_INDEX,
    STREAM_SUM,
    SUM,
    Tile,
    Z,
)
from made_flows.inverse.compiled.parallel import fill_block
from made_flows.inverse.compiled.simd import keep_apart, like, line, lines, matrix
from made_flows.inverse.compiled.solve import multiply
from made_flows.inverse.compiled.threads import next_tile
from made_flows.inverse.compiled.translation import independent
from made_flows.inverse.compiled.units import finish_with_slopes, gather, multiply_gate, scatter


class Gradients(NamedTuple):
    """The batch, by addresses of contiguous arrays.

    Args:
        size: number of rows N.
        x: of the values that were solved for, (N, D).
        gradient: of the loss's gradients with respect to each of them alone, (N, D).
        slopes: of derivatives of each with respect to its parameters, (N, D * widest).
        solution: of the result, (N, D).
        widest: parameters of a feature that has most of them.
    """

    size: int
    x: int
    gradient: int
    slopes: int
    solution: int
    widest: int


def finish_deltas(tile: Any, layer: int, first: int, last: int, units: Any) -> None:
    """Turn what came back to hidden units into the deltas of their weighted sums."""
    keep_apart()
    work, _, lanes = tile
    table = units.table
    delta0, slope0 = table[layer, DELTA], table[layer, SLOPE]
    delta = lines(work, delta0 + first, delta0 + last, lanes)
    slopes = lines(work, slope0 + first, slope0 + last, lanes)
    for j in independent(len(delta)):
        delta[j] *= slopes[j]
    if table[layer, SUM] >= 0:  # later blocks add to this layer's z
        sums = lines(work, table[layer, SUM] + first, table[layer, SUM] + last, lanes)
        for j in independent(len(delta)):
            delta[j] += sums[j]
    earlier = table[layer, STREAM_SUM]
    if earlier >= 0:
        for u in range(first, last):
            place = earlier + units.streams[table[layer, STREAM_INDEX] + u]
            earlier_sum = line(work, place, lanes)
            own = line(work, delta0 + u, lanes)
            for j in independent(lanes):
                earlier_sum[j] += own[j]
    if table[layer, GATE] >= 0:
        multiply_gate(tile, delta0, layer, first, last, units)


def fill_activations(tile: Any, units: Any, ranks: Any, blocks: Any) -> None:
    """Compute all hidden units of a tile whose inputs are all known."""
    for p in range(len(ranks.panels) - 1):
        for layer in range(len(units.table) - 1):
            fill_panel(tile, layer, p, units, ranks, blocks)


def fill_panel(tile: Any, layer: int, p: int, units: Any, ranks: Any, blocks: Any) -> None:
    """Compute the hidden units of a panel, and their slopes, from layers that are there."""
    starts, r0, r1 = ranks.starts[layer], ranks.panels[p], ranks.panels[p + 1]
    fill_block(tile, layer, p, units.table[layer, Z] + starts[r0], units, ranks, blocks)
    finish_with_slopes(tile, layer, starts[r0], starts[r1], units)


def clear_deltas(tile: Any, units: Any, ranks: Any) -> None:
    """Set the deltas of hidden units to zero."""
    table, levels = units.table, len(ranks.feature_starts) - 1
    for layer in range(len(table) - 1):
        for start in (table[layer, DELTA], table[layer, SUM]):
            if start >= 0:
                deltas = lines(tile.work, start, start + ranks.starts[layer, levels], tile.lanes)
                deltas[:] = like(tile.work[0], 0.0)


def send(
    tile: Any, layer: int, p: int, target: int, own: Any, first: int, units: Any, ranks: Any,
    back: Any, block: int,
) -> None:  # fmt: skip
    """Add to inputs ``own`` of a layer what its units of a panel, from ``first`` on, send back.

    ``own`` is a range, counted from ``target`` on; ``block`` is that of the panel.
    """
    starts = ranks.starts[layer]
    u0, u1 = starts[ranks.panels[p]], starts[ranks.panels[p + 1]]
    place, source = block + own[0] * (u1 - u0) + first - u0, units.table[layer, DELTA] + first
    multiply(tile, target + own[0], source, back, place, u1 - u0, u1 - first, own[1] - own[0])


def send_to_units(
    tile: Any, layer: int, p: int, own: Any, r: int, units: Any, ranks: Any, back: Any
) -> None:
    """Add to units ``own`` what those of ranks from r on, in a panel of the next layer, send."""
    first, target = ranks.starts[layer + 1, r], units.table[layer, DELTA]
    block = back.places[layer + 1, p]
    send(tile, layer + 1, p, target, own, first, units, ranks, back, block)


def send_to_inputs(
    tile: Any, place: int, p: int, own: Any, r: int, units: Any, ranks: Any, back: Any
) -> None:
    """Add to lambda of features ``own`` what units of ranks from r on, in a panel, send back.

    Units of the first layer do, and outputs where there are direct connections.
    """
    starts, depth = ranks.starts, len(units.table) - 1
    send(tile, 0, p, place, own, starts[0, r], units, ranks, back, back.places[0, p])
    if len(back.direct) > 0:
        send(tile, depth, p, place, own, starts[depth, r], units, ranks, back, back.direct[p])


def adjoint_tiles(
    slot: int, tiles: Any, spaces: Any, rows: Any, units: Any, ranks: Any, blocks: Any, back: Any,
    place: int,
) -> None:  # fmt: skip
    """Solve the transposed system for a batch; see ``eager.adjoint``.

    Activations come first, all their inputs known; then the sweep runs from the last rank to
    the first. ``rows`` is a :class:`Gradients`; ``units``, ``ranks``, ``blocks`` and ``back`` (the
    same blocks, with the transposed product) are the tuples of
    :mod:`made_flows.inverse.compiled.layout`; ``place`` is where lambda begins in the workspace.
    """
    keep_apart()
    work = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    table, starts, features = units.table, ranks.starts, ranks.features
    depth, widest = len(table) - 1, rows.widest
    x = matrix(rows.x, work, rows.size, len(features))
    gradient = matrix(rows.gradient, work, rows.size, len(features))
    slopes = matrix(rows.slopes, work, rows.size, len(features) * widest)
    solution = matrix(rows.solution, work, rows.size, len(features))
    outputs = table[depth, DELTA]
    while True:
        row, here, lanes = next_tile(tiles, work)
        if here <= 0:
            return
        tile = Tile(work, row, lanes)
        for i in range(len(features)):
            gather(x, features[i], row, lanes, line(work, i, lanes))
            own = line(work, place + i, lanes)
            gather(gradient, features[i], row, lanes, own)
        fill_activations(tile, units, ranks, blocks)
        clear_deltas(tile, units, ranks)
        for p in range(len(ranks.panels) - 2, -1, -1):
            r0, r1 = ranks.panels[p], ranks.panels[p + 1]
            for r in range(r1 - 1, r0 - 1, -1):
                i0, i1 = ranks.feature_starts[r], ranks.feature_starts[r + 1]
                # Inputs of rank r are read by units of degree r + 1 and more, units of degree r
                # by those of degree r and more.
                send_to_inputs(tile, place, p, (i0, i1), r + 1, units, ranks, back)
                for i in range(i0, i1):
                    own = line(work, place + i, lanes)
                    f = features[i]
                    for k in range(ranks.output_starts[i + 1] - ranks.output_starts[i]):
                        at = outputs + ranks.output_starts[i] + k
                        sent = line(work, at, lanes)
                        gather(slopes, f * widest + k, row, lanes, sent)
                        for j in independent(lanes):
                            sent[j] *= own[j]
                    scatter(own, solution, f, row, here)
                # Units of degree r read inputs of lower ranks only: all they fed is done.
                for layer in range(depth - 1, -1, -1):
                    v0, v1 = starts[layer, r], starts[layer, r + 1]
                    if v0 == v1:
                        continue
                    send_to_units(tile, layer, p, (v0, v1), r, units, ranks, back)
                    finish_deltas(tile, layer, v0, v1, units)
            # What the panel sends to earlier ones, in one product per layer.
            for layer in range(depth):
                send_to_units(tile, layer, p, (0, starts[layer, r0]), r0, units, ranks, back)
            earlier = (0, ranks.feature_starts[r0])
            send_to_inputs(tile, place, p, earlier, r0, units, ranks, back)
