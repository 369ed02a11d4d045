"""The compiled sweep run backwards: the transposed system, for tiles of rows.

The delta of a hidden unit of degree m is complete once all ranks from m on are done. See
:mod:`made_flows.inverse.compiled.solve` for how a tile lies in memory.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from made_flows.inverse.compiled.layout import (
    DELTA,
    GATE,
    SLOPE,
    SOURCE,
    STREAM_INDEX,
    STREAM_SUM,
    SUM,
    Z,
)
from made_flows.inverse.compiled.products import add_product
from made_flows.inverse.compiled.simd import keep_apart, like
from made_flows.inverse.compiled.units import finish_with_slopes, gather, multiply_gate, start_units

__all__ = ["adjoint_tiles"]


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
    if table[layer, SUM] >= 0:  # later blocks add to this layer"s z
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

    The block holds weights from the panel"s units to units of the layer above, from
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
