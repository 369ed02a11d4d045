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

__all__ = ["finish_units", "finish_with_slopes", "gather", "multiply_gate", "start_units"]


@njit(nogil=True, error_model="numpy")
def start_units(
    work: Any,
    place: int,
    layer: int,
    first: int,
    last: int,
    row: int,
    lanes: int,
    table: Any,
    vectors: Any,
    bases: Any,
    base_rows: int,
) -> None:
    """Set z of units [first, last) to their biases and the context"s contributions."""
    keep_apart()
    bias = table[layer, BIAS]
    fill_rows(work, (place + first) * lanes, vectors, bias + first, last - first, lanes)
    base = table[layer, BASE]
    if base < 0:
        return
    for u in range(first, last):
        line = work[(place + u) * lanes : (place + u + 1) * lanes]
        if base_rows == 1:
            value = bases[base + u]
            for j in range(lanes):
                line[j] += value
            continue
        values = bases[(base + u) * base_rows : (base + u + 1) * base_rows]
        at = row % base_rows
        for j in range(lanes):
            line[j] += values[at]
            at += 1
            if at == base_rows:
                at = 0


@njit(nogil=True, error_model="numpy")
def multiply_gate(
    work: Any,
    place: int,
    first: int,
    last: int,
    row: int,
    lanes: int,
    gate: int,
    bases: Any,
    base_rows: int,
) -> None:
    """Multiply rows of the workspace, one for each unit in [first, last), by the units" gates."""
    keep_apart()
    for u in range(first, last):
        line = work[(place + u) * lanes : (place + u + 1) * lanes]
        at = row % base_rows
        for j in range(lanes):
            line[j] *= bases[(gate + u) * base_rows + at]
            at += 1
            if at == base_rows:
                at = 0


@njit(nogil=True, error_model="numpy")
def sum_units(
    work: Any,
    layer: int,
    first: int,
    last: int,
    row: int,
    lanes: int,
    table: Any,
    vectors: Any,
    streams: Any,
    bases: Any,
    base_rows: int,
) -> None:
    """Gate, residual and norm of hidden units whose products are all in: what is activated."""
    keep_apart()
    if first >= last:
        return
    z0, a0 = table[layer, Z], table[layer, A]
    if table[layer, GATE] >= 0:
        multiply_gate(work, z0, first, last, row, lanes, table[layer, GATE], bases, base_rows)
    if table[layer, STREAM] >= 0:
        for u in range(first, last):
            unit = streams[table[layer, STREAM_INDEX] + u]
            place = table[layer, STREAM] + unit
            line = work[(z0 + u) * lanes : (z0 + u + 1) * lanes]
            earlier = work[place * lanes : (place + 1) * lanes]
            for j in range(lanes):
                line[j] += earlier[j]
    out = work[(a0 + first) * lanes : (a0 + last) * lanes]
    if z0 != a0:
        z = work[(z0 + first) * lanes : (z0 + last) * lanes]
        for j in range(len(out)):
            out[j] = z[j]
    norm = table[layer, NORM]
    if norm >= 0:
        units = table[layer, UNITS]
        for u in range(first, last):
            line = work[(a0 + u) * lanes : (a0 + u + 1) * lanes]
            factor, shift = vectors[norm + u], vectors[norm + units + u]
            for j in range(lanes):
                line[j] = line[j] * factor + shift


@njit(nogil=True, error_model="numpy")
def finish_units(
    work: Any,
    layer: int,
    first: int,
    last: int,
    row: int,
    lanes: int,
    table: Any,
    constants: Any,
    vectors: Any,
    streams: Any,
    bases: Any,
    base_rows: int,
) -> None:
    """Hidden units whose products are all in."""
    if first >= last:
        return
    sum_units(work, layer, first, last, row, lanes, table, vectors, streams, bases, base_rows)
    out = work[(table[layer, A] + first) * lanes : (table[layer, A] + last) * lanes]
    activate(table[layer, ACTIVATION], constants[layer], out)


@njit(nogil=True, error_model="numpy")
def finish_with_slopes(
    work: Any,
    layer: int,
    first: int,
    last: int,
    row: int,
    lanes: int,
    table: Any,
    constants: Any,
    vectors: Any,
    streams: Any,
    bases: Any,
    base_rows: int,
) -> None:
    """Hidden units whose products are all in, and the derivatives of their activations."""
    if first >= last:
        return
    sum_units(work, layer, first, last, row, lanes, table, vectors, streams, bases, base_rows)
    code, constant = table[layer, ACTIVATION], constants[layer]
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
    """A column of some rows into the lanes; lanes past the last row repeat it."""
    keep_apart()
    count = len(rows)
    for j in range(lanes):
        line[j] = rows[min(row + j, count - 1), column]
