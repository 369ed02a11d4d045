"""Hidden units of a tile: start with biases, finish with activations."""

from __future__ import annotations

from typing import Any

from numba import njit

from made_flows.inverse.compiled.elementwise import activate, slope
from made_flows.inverse.compiled.layout import (
    ACTIVATION,
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
from made_flows.inverse.compiled.simd import fill_rows, keep_apart


@njit(nogil=True, error_model="numpy")
def start_units(tile: Any, place: int, layer: int, first: int, last: int, units: Any) -> None:
    """Set z of units [first, last) to their biases and the context's contributions."""
    keep_apart()
    work, row, lanes = tile
    context, rows = units.context, units.context_rows
    bias = units.table[layer, BIAS]
    fill_rows(work, (place + first) * lanes, units.vectors, bias + first, last - first, lanes)
    base = units.table[layer, BASE]
    if base < 0:
        return
    for u in range(first, last):
        line = work[(place + u) * lanes : (place + u + 1) * lanes]
        if rows == 1:
            value = context[base + u]
            for j in range(lanes):
                line[j] += value
            continue
        values = context[(base + u) * rows : (base + u + 1) * rows]
        at = row % rows
        for j in range(lanes):
            line[j] += values[at]
            at += 1  # counted on: a division in every lane would take longer than the sum
            if at == rows:
                at = 0


@njit(nogil=True, error_model="numpy")
def multiply_gate(tile: Any, place: int, layer: int, first: int, last: int, units: Any) -> None:
    """Multiply rows of the workspace, one for each unit in [first, last), by the units' gates."""
    keep_apart()
    work, row, lanes = tile
    context, rows = units.context, units.context_rows
    gate = units.table[layer, GATE]
    for u in range(first, last):
        line = work[(place + u) * lanes : (place + u + 1) * lanes]
        at = row % rows
        for j in range(lanes):
            line[j] *= context[(gate + u) * rows + at]
            at += 1
            if at == rows:
                at = 0


@njit(nogil=True, error_model="numpy")
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
            line = work[(z0 + u) * lanes : (z0 + u + 1) * lanes]
            earlier = work[place * lanes : (place + 1) * lanes]
            for j in range(lanes):
                line[j] += earlier[j]
    out = work[(a0 + first) * lanes : (a0 + last) * lanes]
    if z0 != a0:  # another layer will add to this z, which must therefore stay
        z = work[(z0 + first) * lanes : (z0 + last) * lanes]
        for j in range(len(out)):
            out[j] = z[j]
    norm = table[layer, NORM]
    if norm >= 0:
        count = table[layer, UNITS]
        for u in range(first, last):
            line = work[(a0 + u) * lanes : (a0 + u + 1) * lanes]
            factor, shift = vectors[norm + u], vectors[norm + count + u]
            for j in range(lanes):
                line[j] = line[j] * factor + shift


@njit(nogil=True, error_model="numpy")
def finish_units(tile: Any, layer: int, first: int, last: int, units: Any) -> None:
    """Finish hidden units whose products are all in."""
    if first >= last:
        return
    sum_units(tile, layer, first, last, units)
    place, lanes = units.table[layer, A], tile.lanes
    out = tile.work[(place + first) * lanes : (place + last) * lanes]
    activate(units.table[layer, ACTIVATION], units.constants[layer], out)


@njit(nogil=True, error_model="numpy")
def finish_with_slopes(tile: Any, layer: int, first: int, last: int, units: Any) -> None:
    """Finish hidden units whose products are all in, with their activations' derivatives."""
    if first >= last:
        return
    sum_units(tile, layer, first, last, units)
    work, _, lanes = tile
    table, vectors = units.table, units.vectors
    code, constant = table[layer, ACTIVATION], units.constants[layer]
    out = work[(table[layer, A] + first) * lanes : (table[layer, A] + last) * lanes]
    place, norm = table[layer, SLOPE], table[layer, NORM]
    slopes = work[(place + first) * lanes : (place + last) * lanes]
    for j in range(len(out)):
        slopes[j] = out[j]
    slope(code, constant, slopes)
    if norm >= 0:
        for u in range(first, last):
            line = work[(place + u) * lanes : (place + u + 1) * lanes]
            for j in range(lanes):
                line[j] *= vectors[norm + u]
    activate(code, constant, out)


@njit(nogil=True, error_model="numpy")
def gather(rows: Any, column: int, row: int, lanes: int, line: Any) -> None:
    """Copy a column of some rows into the lanes.

    Lanes past the last row repeat it: what they compute is thrown away, but must not read past
    the end, nor be slow as numbers that are not finite can be.
    """
    keep_apart()
    count = len(rows)
    for j in range(lanes):
        line[j] = rows[min(row + j, count - 1), column]


@njit(nogil=True, error_model="numpy")
def scatter(line: Any, rows: Any, column: int, row: int, here: int) -> None:
    """Copy the lanes that stand for rows into a column of these."""
    keep_apart()
    for j in range(here):
        rows[row + j, column] = line[j]
