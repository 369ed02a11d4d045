"""Hidden units of a tile: start with biases, finish with activations."""

from __future__ import annotations

from typing import Any

from made_flows.inverse.compiled.layout import (
    BASE,
    BIAS,
    GATE,
    NORM,
    SLOPE,
    STREAM,
    STREAM_INDEX,
    UNITS,
    A,
    Z,
)
from made_flows.inverse.compiled.simd import call, fill_rows, keep_apart, line, lines
from made_flows.inverse.compiled.translation import independent


def start_units(tile: Any, place: int, layer: int, first: int, last: int, units: Any) -> None:
    """Set z of units [first, last) to their biases and the context's contributions."""
    keep_apart()
    work, _, lanes = tile
    bias = units.table[layer, BIAS]
    if lanes == 1:
        for u in range(first, last):
            work[place + u] = units.vectors[bias + u]
    else:
        fill_rows(work, (place + first) * lanes, units.vectors, bias + first, last - first, lanes)
    if units.table[layer, BASE] >= 0:
        meet_context(tile, place, units.table[layer, BASE], first, last, units, False)


def multiply_gate(tile: Any, place: int, layer: int, first: int, last: int, units: Any) -> None:
    """Multiply rows of the workspace, one for each unit in [first, last), by the units' gates."""
    meet_context(tile, place, units.table[layer, GATE], first, last, units, True)


def meet_context(
    tile: Any, place: int, source: int, first: int, last: int, units: Any, multiplies: bool
) -> None:
    """Add what the context contributes to each row of a unit in [first, last), or multiply by it.

    A context of fewer rows than the batch is read again and again.
    """
    keep_apart()
    work, row, lanes = tile
    context, rows = units.context, units.context_rows
    begin = row % rows
    for u in range(first, last):
        own = line(work, place + u, lanes)
        values = context[(source + u) * rows : (source + u + 1) * rows]
        if rows == 1:
            value = values[0]
            for j in independent(lanes):
                own[j] = own[j] * value if multiplies else own[j] + value
            continue
        done, at = 0, begin
        while done < lanes:
            here = min(lanes - done, rows - at)
            for j in independent(here):
                before, value = own[done + j], values[at + j]
                own[done + j] = before * value if multiplies else before + value
            done += here
            at = 0


def copy_rows(tile: Any, source: int, target: int, count: int) -> None:
    """Copy rows of a workspace."""
    keep_apart()
    lanes = tile.lanes
    rows = lines(tile.work, target, target + count, lanes)
    given = lines(tile.work, source, source + count, lanes)
    for j in independent(len(rows)):
        rows[j] = given[j]


def sum_units(tile: Any, layer: int, first: int, last: int, units: Any) -> None:
    """Apply gate, residual and norm to hidden units whose products are all in."""
    keep_apart()
    if first >= last:
        return
    work, _, lanes = tile
    table, streams, vectors = units.table, units.streams, units.vectors
    z0, a0 = table[layer, Z], table[layer, A]
    if table[layer, GATE] >= 0:
        multiply_gate(tile, z0, layer, first, last, units)
    if table[layer, STREAM] >= 0:
        for u in range(first, last):
            unit = streams[table[layer, STREAM_INDEX] + u]
            place = table[layer, STREAM] + unit
            own = line(work, z0 + u, lanes)
            earlier = line(work, place, lanes)
            for j in independent(lanes):
                own[j] += earlier[j]
    if z0 != a0:  # another layer will add to this z, which must therefore stay
        copy_rows(tile, z0 + first, a0 + first, last - first)
    norm = table[layer, NORM]
    if norm >= 0:
        count = table[layer, UNITS]
        for u in range(first, last):
            own = line(work, a0 + u, lanes)
            factor, shift = vectors[norm + u], vectors[norm + count + u]
            for j in independent(lanes):
                own[j] = own[j] * factor + shift


def apply(
    address: int, tile: Any, place: int, layer: int, first: int, last: int, units: Any
) -> None:
    """Apply an activation, or its derivative, to units; nothing where there is no function."""
    if address != 0:
        rows = (tile.lanes, place + first, place + last, layer)
        call(address, tile.work, units.constants, rows)


def finish_units(tile: Any, layer: int, first: int, last: int, units: Any) -> None:
    """Finish hidden units whose products are all in."""
    if first >= last:
        return
    sum_units(tile, layer, first, last, units)
    apply(units.functions[0, layer], tile, units.table[layer, A], layer, first, last, units)


def finish_with_slopes(tile: Any, layer: int, first: int, last: int, units: Any) -> None:
    """Finish hidden units whose products are all in, with their activations' derivatives."""
    if first >= last:
        return
    sum_units(tile, layer, first, last, units)
    work, _, lanes = tile
    table, vectors = units.table, units.vectors
    a0, place, norm = table[layer, A], table[layer, SLOPE], table[layer, NORM]
    copy_rows(tile, a0 + first, place + first, last - first)
    apply(units.functions[1, layer], tile, place, layer, first, last, units)
    if norm >= 0:
        for u in range(first, last):
            own = line(work, place + u, lanes)
            for j in independent(lanes):
                own[j] *= vectors[norm + u]
    apply(units.functions[0, layer], tile, a0, layer, first, last, units)


def gather(rows: Any, column: int, row: int, lanes: int, line: Any) -> None:
    """Copy a column of some rows into the lanes.

    Lanes past the last row repeat it: what they compute is thrown away, but must not read past
    the end, nor be slow as numbers that are not finite can be.
    """
    keep_apart()
    count = len(rows)
    for j in range(lanes):
        line[j] = rows[min(row + j, count - 1), column]


def scatter(line: Any, rows: Any, column: int, row: int, here: int) -> None:
    """Copy the lanes that stand for rows into a column of these."""
    keep_apart()
    for j in range(here):
        rows[row + j, column] = line[j]
