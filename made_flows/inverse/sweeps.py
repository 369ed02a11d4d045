"""The compiled sweeps: all steps of the sequential inverse, and of its adjoint, for tiles of rows.

Activations of a tile stand feature by feature, the rows of the tile side by side, so that rows
are the lanes of vectors. Ranks are taken in panels: before a panel one product per layer brings
in everything earlier; inside it small products do the rest. :mod:`made_flows.inverse.packing`
lays out the arrays that are named here.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from made_flows.inverse.elementwise import activate, scale, sigmoid, slope
from made_flows.inverse.elementwise import exp as exponential
from made_flows.inverse.simd import (
    ACCUMULATORS,
    VECTOR_BYTES,
    block_product,
    fill_rows,
    keep_apart,
    like,
)

__all__ = ["adjoint_tiles", "solve_tiles"]

# Columns of the table of layers. Places are in rows of the tile's workspace.
(
    Z,
    A,
    SLOPE,
    SOURCE,
    BIAS,
    ACTIVATION,
    STREAM,
    STREAM_INDEX,
    BASE,
    GATE,
    NORM,
    DELTA,
    SUM,
    UNITS,
    STREAM_SUM,
) = range(15)

# Blocks of units and vectors whose sums fit in the registers.
_ONE_8 = block_product(8, 1)
_ONE_4 = block_product(4, 1)
_ONE_1 = block_product(1, 1)
_TWO_12 = block_product(ACCUMULATORS // 2, 2)
_TWO_8 = block_product(min(8, ACCUMULATORS // 2), 2)
_TWO_4 = block_product(4, 2)
_TWO_1 = block_product(1, 2)
_FOUR_6 = block_product(ACCUMULATORS // 4, 4)
_FOUR_4 = block_product(min(4, ACCUMULATORS // 4), 4)
_FOUR_2 = block_product(2, 4)
_FOUR_1 = block_product(1, 4)
_WIDE_2, _WIDE_4 = ACCUMULATORS // 2, ACCUMULATORS // 4
_HALF_2, _HALF_4 = min(8, ACCUMULATORS // 2), min(4, ACCUMULATORS // 4)


@njit(nogil=True, error_model="numpy")
def add_product(
    c: Any, c0: int, a: Any, a0: int, w: Any, w0: int, stride: int, lanes: int, count: int, n: int
) -> None:
    """For n units: c[c0 + u * lanes + j] += sum over k < count of w[k, u] * a[k, j]."""
    keep_apart()
    if count <= 0 or n <= 0:
        return
    vectors = lanes * c.itemsize // VECTOR_BYTES
    u = 0
    if vectors == 1:
        while n - u >= 8:
            _ONE_8(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 8
        while n - u >= 4:
            _ONE_4(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 4
        while n - u >= 1:
            _ONE_1(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 1
    elif vectors == 2:
        while n - u >= _WIDE_2:
            _TWO_12(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += _WIDE_2
        while n - u >= _HALF_2:
            _TWO_8(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += _HALF_2
        while n - u >= 4:
            _TWO_4(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 4
        while n - u >= 1:
            _TWO_1(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 1
    else:
        while n - u >= _WIDE_4:
            _FOUR_6(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += _WIDE_4
        while n - u >= _HALF_4:
            _FOUR_4(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += _HALF_4
        while n - u >= 2:
            _FOUR_2(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 2
        while n - u >= 1:
            _FOUR_1(c, c0 + u * lanes, a, a0, w, w0 + u, stride, lanes, count)
            u += 1


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
    """Set z of units [first, last) to their biases and the context's contributions."""
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
    """Multiply rows of the workspace, one for each unit in [first, last), by the units' gates."""
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
def take_step(
    kind: int,
    rule: int,
    c0: float,
    c1: float,
    swapped: bool,
    work: Any,
    parameters: int,
    count: int,
    noise: Any,
    scratch: int,
    lanes: int,
    x: Any,
) -> None:
    """Values x of one feature from its noise and parameters; see ``StepKernel`` for the kinds.

    ``noise`` holds the first part of the noise, then the second; ``parameters`` and ``scratch``
    are places in the workspace.
    """
    keep_apart()
    if kind <= 3:
        shift_row, raw_row = (1, 0) if swapped else (0, 1)
        shift = work[(parameters + shift_row) * lanes : (parameters + shift_row + 1) * lanes]
        raw = work[(parameters + raw_row) * lanes : (parameters + raw_row + 1) * lanes]
        s = work[scratch * lanes : (scratch + 1) * lanes]
        for j in range(lanes):
            s[j] = raw[j]
        scale(rule, c0, c1, s)
        one = like(s[0], 1.0)
        if kind == 0:
            for j in range(lanes):
                x[j] = shift[j] + s[j] * noise[j]
        elif kind == 1:
            for j in range(lanes):
                x[j] = (noise[j] - shift[j]) / s[j]
        elif kind == 2:
            for j in range(lanes):
                x[j] = s[j] * noise[j] + (one - s[j]) * shift[j]
        else:
            for j in range(lanes):
                x[j] = (noise[j] - (one - s[j]) * shift[j]) / s[j]
    elif kind == 4:
        logits = work[parameters * lanes : (parameters + 1) * lanes]
        one, zero = like(noise[0], 1.0), like(noise[0], 0.0)
        for j in range(lanes):
            x[j] = one if noise[j] < sigmoid(logits[j]) else zero
    else:
        classes = count if kind == 5 else count // 3
        choose(work, parameters, classes, noise, scratch, lanes, x)
        if kind == 6:
            s = work[scratch * lanes : (scratch + 1) * lanes]
            m = work[(scratch + 1) * lanes : (scratch + 2) * lanes]
            for j in range(lanes):
                k = int(x[j])
                m[j] = work[(parameters + classes + k) * lanes + j]
                s[j] = work[(parameters + 2 * classes + k) * lanes + j]
            scale(rule, c0, c1, s)
            for j in range(lanes):
                x[j] = m[j] + s[j] * noise[lanes + j]


@njit(nogil=True, error_model="numpy")
def choose(
    work: Any, parameters: int, classes: int, uniform: Any, scratch: int, lanes: int, x: Any
) -> None:
    """The class in whose part of the cumulative distribution a uniform number falls."""
    keep_apart()
    highest = work[scratch * lanes : (scratch + 1) * lanes]
    threshold = work[(scratch + 1) * lanes : (scratch + 2) * lanes]
    first = work[parameters * lanes : (parameters + 1) * lanes]
    zero, one = like(uniform[0], 0.0), like(uniform[0], 1.0)
    for j in range(lanes):
        highest[j] = first[j]
        threshold[j] = zero
        x[j] = zero
    for k in range(1, classes):
        logits = work[(parameters + k) * lanes : (parameters + k + 1) * lanes]
        for j in range(lanes):
            highest[j] = max(highest[j], logits[j])
    for k in range(classes):
        logits = work[(parameters + k) * lanes : (parameters + k + 1) * lanes]
        for j in range(lanes):
            threshold[j] += exponential(logits[j] - highest[j])
    sums = work[(scratch + 2) * lanes : (scratch + 3) * lanes]
    for j in range(lanes):
        threshold[j] *= uniform[j]
        sums[j] = zero
    # The last class takes what is left, so that rounding cannot lead past it.
    for k in range(classes - 1):
        logits = work[(parameters + k) * lanes : (parameters + k + 1) * lanes]
        for j in range(lanes):
            sums[j] += exponential(logits[j] - highest[j])
            x[j] += one if threshold[j] >= sums[j] else zero


@njit(nogil=True, error_model="numpy")
def gather(rows: Any, column: int, row: int, lanes: int, line: Any) -> None:
    """A column of some rows into the lanes; lanes past the last row repeat it."""
    keep_apart()
    count = len(rows)
    for j in range(lanes):
        line[j] = rows[min(row + j, count - 1), column]


@njit(nogil=True, error_model="numpy")
def solve_tiles(
    first_row: int,
    last_row: int,
    lanes: int,
    noise: Any,
    known: Any,
    prefix: int,
    values: Any,
    work: Any,
    weights: Any,
    vectors: Any,
    constants: Any,
    bases: Any,
    base_rows: int,
    table: Any,
    starts: Any,
    streams: Any,
    features: Any,
    feature_starts: Any,
    column_starts: Any,
    output_starts: Any,
    input_starts: Any,
    panels: Any,
    blocks: Any,
    direct_blocks: Any,
    step: Any,
    step_constants: Any,
    scratch: int,
) -> None:
    """Solve rows [first_row, last_row), a tile of ``lanes`` rows after the other.

    Args: noise (N, P * D), known and values (N, D); the rest as packed.
    """
    depth = len(table) - 1
    out = table[depth, Z]
    kind, rule, swapped, parts = step[0], step[1], step[2] == 1, step[3]
    direct = len(direct_blocks) > 0
    for row in range(first_row, last_row, lanes):
        here = min(lanes, last_row - row)
        for p in range(len(panels) - 1):
            r0, r1 = panels[p], panels[p + 1]
            given = r1 <= prefix  # all ranks of the panel are known
            o0, o1 = starts[depth, r0], starts[depth, r1]
            for layer in range(depth + 1):
                u0, u1 = starts[layer, r0], starts[layer, r1]
                if layer == depth:
                    if given:
                        continue
                    start_units(
                        work, out - o0, layer, o0, o1, row, lanes, table, vectors, bases, base_rows
                    )
                    place = out
                else:
                    start_units(
                        work,
                        table[layer, Z],
                        layer,
                        u0,
                        u1,
                        row,
                        lanes,
                        table,
                        vectors,
                        bases,
                        base_rows,
                    )
                    place = table[layer, Z] + u0
                if given:
                    continue
                done = starts[layer - 1, r0] if layer > 0 else column_starts[r0]
                add_product(
                    work,
                    place * lanes,
                    work,
                    table[layer, SOURCE] * lanes,
                    weights,
                    blocks[layer, p],
                    u1 - u0,
                    lanes,
                    done,
                    u1 - u0,
                )
            if direct and not given:
                add_product(
                    work,
                    out * lanes,
                    work,
                    0,
                    weights,
                    direct_blocks[p],
                    o1 - o0,
                    lanes,
                    column_starts[r0],
                    o1 - o0,
                )
            if given:
                for r in range(r0, r1):
                    for i in range(feature_starts[r], feature_starts[r + 1]):
                        f = features[i]
                        x = work[scratch * lanes : (scratch + 1) * lanes]
                        gather(known, f, row, lanes, x)
                        for j in range(here):
                            values[row + j, f] = x[j]
                        put_inputs(work, input_starts[i], input_starts[i + 1], lanes, x, step[4])
                for layer in range(depth):
                    u0, u1 = starts[layer, r0], starts[layer, r1]
                    read = starts[layer - 1, r1] if layer > 0 else column_starts[r1 - 1]
                    add_product(
                        work,
                        (table[layer, Z] + u0) * lanes,
                        work,
                        table[layer, SOURCE] * lanes,
                        weights,
                        blocks[layer, p],
                        u1 - u0,
                        lanes,
                        read,
                        u1 - u0,
                    )
                    finish_units(
                        work,
                        layer,
                        u0,
                        u1,
                        row,
                        lanes,
                        table,
                        constants,
                        vectors,
                        streams,
                        bases,
                        base_rows,
                    )
                continue
            for r in range(r0, r1):
                for layer in range(depth + 1):
                    u0, u1 = starts[layer, r0], starts[layer, r1]
                    v0, v1 = starts[layer, r], starts[layer, r + 1]
                    if layer > 0:
                        done, read = starts[layer - 1, r0], starts[layer - 1, r + 1]
                    else:
                        done, read = column_starts[r0], column_starts[r]
                    place = out + v0 - o0 if layer == depth else table[layer, Z] + v0
                    add_product(
                        work,
                        place * lanes,
                        work,
                        (table[layer, SOURCE] + done) * lanes,
                        weights,
                        blocks[layer, p] + done * (u1 - u0) + v0 - u0,
                        u1 - u0,
                        lanes,
                        read - done,
                        v1 - v0,
                    )
                    if layer < depth:
                        finish_units(
                            work,
                            layer,
                            v0,
                            v1,
                            row,
                            lanes,
                            table,
                            constants,
                            vectors,
                            streams,
                            bases,
                            base_rows,
                        )
                v0, v1 = starts[depth, r], starts[depth, r + 1]
                if direct:
                    done = column_starts[r0]
                    add_product(
                        work,
                        (out + v0 - o0) * lanes,
                        work,
                        done * lanes,
                        weights,
                        direct_blocks[p] + done * (o1 - o0) + v0 - o0,
                        o1 - o0,
                        lanes,
                        column_starts[r] - done,
                        v1 - v0,
                    )
                for i in range(feature_starts[r], feature_starts[r + 1]):
                    f = features[i]
                    x = work[(scratch + 3) * lanes : (scratch + 4) * lanes]
                    if r < prefix:
                        gather(known, f, row, lanes, x)
                    else:
                        u = work[(scratch + 4) * lanes : (scratch + 6) * lanes]
                        for part in range(parts):
                            gather(
                                noise,
                                f * parts + part,
                                row,
                                lanes,
                                u[part * lanes : (part + 1) * lanes],
                            )
                        take_step(
                            kind,
                            rule,
                            step_constants[0],
                            step_constants[1],
                            swapped,
                            work,
                            out + output_starts[i] - o0,
                            output_starts[i + 1] - output_starts[i],
                            u,
                            scratch,
                            lanes,
                            x,
                        )
                    for j in range(here):
                        values[row + j, f] = x[j]
                    put_inputs(work, input_starts[i], input_starts[i + 1], lanes, x, step[4])


@njit(nogil=True, error_model="numpy")
def put_inputs(work: Any, first: int, last: int, lanes: int, x: Any, one_hot: int) -> None:
    """What the network reads for a feature's values: the values, or one-hot columns."""
    keep_apart()
    if one_hot == 0:
        line = work[first * lanes : (first + 1) * lanes]
        for j in range(lanes):
            line[j] = x[j]
        return
    one, zero = like(x[0], 1.0), like(x[0], 0.0)
    for c in range(first, last):
        line = work[c * lanes : (c + 1) * lanes]
        category = like(x[0], c - first)
        for j in range(lanes):
            line[j] = one if x[j] == category else zero


@njit(nogil=True, error_model="numpy")
def finish_deltas(
    work: Any,
    layer: int,
    first: int,
    last: int,
    row: int,
    lanes: int,
    table: Any,
    streams: Any,
    bases: Any,
    base_rows: int,
) -> None:
    """Turn what came back to hidden units into the deltas of their weighted sums."""
    keep_apart()
    delta0, slope0 = table[layer, DELTA], table[layer, SLOPE]
    delta = work[(delta0 + first) * lanes : (delta0 + last) * lanes]
    slopes = work[(slope0 + first) * lanes : (slope0 + last) * lanes]
    for j in range(len(delta)):
        delta[j] *= slopes[j]
    if table[layer, SUM] >= 0:  # later blocks add to this layer's z
        sums = work[(table[layer, SUM] + first) * lanes : (table[layer, SUM] + last) * lanes]
        for j in range(len(delta)):
            delta[j] += sums[j]
    earlier = table[layer, STREAM_SUM]
    if earlier >= 0:
        for u in range(first, last):
            place = earlier + streams[table[layer, STREAM_INDEX] + u]
            line = work[place * lanes : (place + 1) * lanes]
            own = work[(delta0 + u) * lanes : (delta0 + u + 1) * lanes]
            for j in range(lanes):
                line[j] += own[j]
    if table[layer, GATE] >= 0:
        multiply_gate(work, delta0, first, last, row, lanes, table[layer, GATE], bases, base_rows)


@njit(nogil=True, error_model="numpy")
def pull(
    work: Any,
    target: int,
    first: int,
    last: int,
    panel_first: int,
    panel_last: int,
    delta: int,
    above_first: int,
    above_last: int,
    block_first: int,
    transposed: Any,
    block: int,
    lanes: int,
) -> None:
    """Add to units [first, last) at a place what units of the layer above send back.

    The block holds weights from the panel's units to units of the layer above, from
    ``block_first`` on.
    """
    stride = panel_last - panel_first
    add_product(
        work,
        (target + first) * lanes,
        work,
        (delta + above_first) * lanes,
        transposed,
        block + (above_first - block_first) * stride + first - panel_first,
        stride,
        lanes,
        above_last - above_first,
        last - first,
    )


@njit(nogil=True, error_model="numpy")
def fill_activations(
    row: int,
    lanes: int,
    work: Any,
    weights: Any,
    vectors: Any,
    constants: Any,
    bases: Any,
    base_rows: int,
    table: Any,
    starts: Any,
    streams: Any,
    feature_starts: Any,
    panels: Any,
    blocks: Any,
) -> None:
    """Compute all hidden units of a tile whose inputs are all known."""
    for p in range(len(panels) - 1):
        r0, r1 = panels[p], panels[p + 1]
        for layer in range(len(table) - 1):
            u0, u1 = starts[layer, r0], starts[layer, r1]
            z0 = table[layer, Z]
            start_units(work, z0, layer, u0, u1, row, lanes, table, vectors, bases, base_rows)
            read = starts[layer - 1, r1] if layer > 0 else feature_starts[r1 - 1]
            add_product(
                work,
                (z0 + u0) * lanes,
                work,
                table[layer, SOURCE] * lanes,
                weights,
                blocks[layer, p],
                u1 - u0,
                lanes,
                read,
                u1 - u0,
            )
            finish_with_slopes(
                work,
                layer,
                u0,
                u1,
                row,
                lanes,
                table,
                constants,
                vectors,
                streams,
                bases,
                base_rows,
            )


@njit(nogil=True, error_model="numpy")
def adjoint_tiles(
    first_row: int,
    last_row: int,
    lanes: int,
    x: Any,
    gradient: Any,
    derivatives: Any,
    solution: Any,
    work: Any,
    weights: Any,
    vectors: Any,
    constants: Any,
    bases: Any,
    base_rows: int,
    table: Any,
    starts: Any,
    streams: Any,
    features: Any,
    feature_starts: Any,
    output_starts: Any,
    panels: Any,
    blocks: Any,
    transposed: Any,
    back_blocks: Any,
    direct_back: Any,
    lambda_place: int,
    widest: int,
) -> None:
    """Solve the transposed system for rows [first_row, last_row); see ``eager.adjoint``.

    Activations come first, all their inputs known; then the sweep runs from the last rank to
    the first. Args: x, gradient and solution (N, D); derivatives (N, D * widest), of every value
    with respect to its parameters; the rest as packed.
    """
    depth = len(table) - 1
    ranks = len(feature_starts) - 1
    direct = len(direct_back) > 0
    for row in range(first_row, last_row, lanes):
        here = min(lanes, last_row - row)
        for i in range(len(features)):
            gather(x, features[i], row, lanes, work[i * lanes : (i + 1) * lanes])
            place = lambda_place + i
            gather(gradient, features[i], row, lanes, work[place * lanes : (place + 1) * lanes])
        fill_activations(
            row,
            lanes,
            work,
            weights,
            vectors,
            constants,
            bases,
            base_rows,
            table,
            starts,
            streams,
            feature_starts,
            panels,
            blocks,
        )
        for layer in range(depth):
            for start in (table[layer, DELTA], table[layer, SUM]):
                if start >= 0:
                    end = start + starts[layer, ranks]
                    work[start * lanes : end * lanes] = like(work[0], 0.0)
        outputs = table[depth, DELTA]
        for p in range(len(panels) - 2, -1, -1):
            r0, r1 = panels[p], panels[p + 1]
            f0, f1 = feature_starts[r0], feature_starts[r1]
            # What later panels send back, in one product per layer. Inputs of rank r are read
            # by units of degree r + 1 and more, units of degree r by those of degree r and more.
            pull(
                work,
                lambda_place,
                f0,
                f1,
                f0,
                f1,
                table[0, DELTA],
                starts[0, r1],
                starts[0, ranks],
                starts[0, r0 + 1],
                transposed,
                back_blocks[0, p],
                lanes,
            )
            if direct:
                pull(
                    work,
                    lambda_place,
                    f0,
                    f1,
                    f0,
                    f1,
                    outputs,
                    starts[depth, r1],
                    starts[depth, ranks],
                    starts[depth, r0 + 1],
                    transposed,
                    direct_back[p],
                    lanes,
                )
            for layer in range(depth):
                u0, u1 = starts[layer, r0], starts[layer, r1]
                pull(
                    work,
                    table[layer, DELTA],
                    u0,
                    u1,
                    u0,
                    u1,
                    table[layer + 1, DELTA],
                    starts[layer + 1, r1],
                    starts[layer + 1, ranks],
                    starts[layer + 1, r0],
                    transposed,
                    back_blocks[layer + 1, p],
                    lanes,
                )
            for r in range(r1 - 1, r0 - 1, -1):
                i0, i1 = feature_starts[r], feature_starts[r + 1]
                pull(
                    work,
                    lambda_place,
                    i0,
                    i1,
                    f0,
                    f1,
                    table[0, DELTA],
                    starts[0, r + 1],
                    starts[0, r1],
                    starts[0, r0 + 1],
                    transposed,
                    back_blocks[0, p],
                    lanes,
                )
                if direct:
                    pull(
                        work,
                        lambda_place,
                        i0,
                        i1,
                        f0,
                        f1,
                        outputs,
                        starts[depth, r + 1],
                        starts[depth, r1],
                        starts[depth, r0 + 1],
                        transposed,
                        direct_back[p],
                        lanes,
                    )
                for i in range(i0, i1):
                    own = work[(lambda_place + i) * lanes : (lambda_place + i + 1) * lanes]
                    f = features[i]
                    for k in range(output_starts[i + 1] - output_starts[i]):
                        place = outputs + output_starts[i] + k
                        line = work[place * lanes : (place + 1) * lanes]
                        gather(derivatives, f * widest + k, row, lanes, line)
                        for j in range(lanes):
                            line[j] *= own[j]
                    for j in range(here):
                        solution[row + j, f] = own[j]
                for layer in range(depth - 1, -1, -1):
                    u0, u1 = starts[layer, r0], starts[layer, r1]
                    v0, v1 = starts[layer, r], starts[layer, r + 1]
                    if v0 == v1:
                        continue
                    pull(
                        work,
                        table[layer, DELTA],
                        v0,
                        v1,
                        u0,
                        u1,
                        table[layer + 1, DELTA],
                        starts[layer + 1, r],
                        starts[layer + 1, r1],
                        starts[layer + 1, r0],
                        transposed,
                        back_blocks[layer + 1, p],
                        lanes,
                    )
                    finish_deltas(work, layer, v0, v1, row, lanes, table, streams, bases, base_rows)
