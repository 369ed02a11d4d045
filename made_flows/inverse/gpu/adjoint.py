"""The kernel of the sweep run backwards: the transposed system, for tiles of rows, in one launch.

The delta of a hidden unit of degree m is complete once all ranks from m on are done. See
:mod:`made_flows.inverse.gpu.solve` for how the work is cut up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from made_flows.inverse.compiled import layout
from made_flows.inverse.gpu.tile import (
    GATE,
    SLOPE,
    STREAM_INDEX,
    add_product,
    finish_units,
    of_context,
    places_of,
    start_units,
)

COLUMNS = tl.constexpr(layout.COLUMNS)
SOURCE = tl.constexpr(layout.SOURCE)
DELTA = tl.constexpr(layout.DELTA)
SUM = tl.constexpr(layout.SUM)
STREAM_SUM = tl.constexpr(layout.STREAM_SUM)


@triton.jit
def pull(
    weights, matrix, begin, end, target, delta, first, last, work,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add to rows [begin, end) from ``target`` on what units [first, last) send back to them."""
    pitch = tl.load(matrix + 1)
    for k0 in range(begin, end, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        live = k < end
        here = work + places_of(target + k, ROWS)
        total = tl.load(here, mask=live[:, None], other=0.0)
        total = add_product(
            total, weights + tl.load(matrix), 1, pitch, k, live, work, delta, first, last,
            PRECISION, INPUTS, ROWS,
        )  # fmt: skip
        tl.debug_barrier()
        tl.store(here, total, mask=live[:, None])


@triton.jit
def pull_to_inputs(
    weights, matrices, table, starts, width, depth, begin, end, target, above, until, work,
    DIRECT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Add to lambda of features [begin, end) what units of ranks [above, until) send back.

    Units of the first layer do, and outputs where there are direct connections.
    """
    pull(
        weights, matrices, begin, end, target, tl.load(table + DELTA), tl.load(starts + above),
        tl.load(starts + until), work, PRECISION, BLOCK, INPUTS, ROWS,
    )  # fmt: skip
    if DIRECT:
        tl.debug_barrier()
        outputs = starts + depth * width
        pull(
            weights, matrices + 2 * depth + 2, begin, end, target,
            tl.load(table + depth * COLUMNS + DELTA), tl.load(outputs + above),
            tl.load(outputs + until), work, PRECISION, BLOCK, INPUTS, ROWS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "context_rows", "levels", "panel_count", "depth", "widest"])
def adjoint_kernel(
    x,
    gradient,
    slopes,
    solution,
    work,
    weights,
    vectors,
    constants,
    context,
    table,
    matrices,
    streams,
    panels,
    starts,
    features,
    feature_starts,
    output_starts,
    rows,
    context_rows,
    levels,
    panel_count,
    depth,
    widest,
    lambdas,
    size,
    dimension,
    DIRECT: tl.constexpr,
    CODE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Solve the transposed system for (rows, dimension); see ``eager.adjoint``.

    Args:
        x, gradient, slopes, solution: (rows, dimension), slopes (rows, dimension, widest).
        lambdas: where lambda begins in the workspace.

    The others are those of ``solve_kernel``, of the adjoint's own layout.
    """
    dtype = solution.dtype.element_ty
    lane = tl.arange(0, ROWS)
    work += tl.program_id(0).to(tl.int64) * size
    width = levels + 1
    outputs = tl.load(table + depth * COLUMNS + DELTA)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = lane.to(tl.int64) + tile * ROWS
        inside = row < rows
        row = tl.minimum(row, rows - 1)
        at = row % context_rows
        for i in range(dimension):
            f = tl.load(features + i)
            tl.store(work + i * ROWS + lane, tl.load(x + row * dimension + f))
            own = tl.load(gradient + row * dimension + f)
            tl.store(work + (lambdas + i) * ROWS + lane, own)
        tl.debug_barrier()
        # All inputs are known: the hidden units, a layer after the other.
        for index in range(depth):
            layer = table + index * COLUMNS
            source = tl.load(layer + SOURCE)
            constant = tl.load(constants + index)
            matrix = weights + tl.load(matrices + 2 * index)
            pitch = tl.load(matrices + 2 * index + 1)
            delta = tl.load(layer + DELTA)
            kept = tl.load(layer + SUM)
            for p in range(panel_count):
                r1 = tl.load(panels + p + 1)
                begin = tl.load(starts + index * width + tl.load(panels + p))
                end = tl.load(starts + index * width + r1)
                read = tl.load(feature_starts + r1 - 1)
                if index > 0:
                    read = tl.load(starts + (index - 1) * width + r1)
                for u0 in range(begin, end, BLOCK):
                    u = u0 + tl.arange(0, BLOCK)
                    live = u < end
                    nothing = tl.zeros((BLOCK, ROWS), dtype)
                    tl.store(work + places_of(delta + u, ROWS), nothing, mask=live[:, None])
                    if kept >= 0:
                        tl.store(work + places_of(kept + u, ROWS), nothing, mask=live[:, None])
                    total = start_units(nothing, layer, u, live, vectors, context, at, context_rows)
                    total = add_product(
                        total, matrix, pitch, 1, u, live, work, source, 0, read,
                        PRECISION, INPUTS, ROWS,
                    )  # fmt: skip
                    finish_units(
                        total, layer, u, live, work, vectors, constant, streams, context, at,
                        context_rows, CODE, True, ROWS,
                    )  # fmt: skip
            tl.debug_barrier()
        for q in range(panel_count):
            p = panel_count - 1 - q
            r0 = tl.load(panels + p)
            r1 = tl.load(panels + p + 1)
            # What later panels send back, in one product per layer. Inputs of rank r are read by
            # units of degree r + 1 and more, units of degree r by those of degree r and more.
            pull_to_inputs(
                weights, matrices, table, starts, width, depth, tl.load(feature_starts + r0),
                tl.load(feature_starts + r1), lambdas, r1, levels, work,
                DIRECT, PRECISION, BLOCK, INPUTS, ROWS,
            )  # fmt: skip
            for index in range(depth):
                own = starts + index * width
                above = own + width
                pull(
                    weights, matrices + 2 * index + 2, tl.load(own + r0), tl.load(own + r1),
                    tl.load(table + index * COLUMNS + DELTA),
                    tl.load(table + (index + 1) * COLUMNS + DELTA),
                    tl.load(above + r1), tl.load(above + levels), work,
                    PRECISION, BLOCK, INPUTS, ROWS,
                )  # fmt: skip
            tl.debug_barrier()
            for s in range(r1 - r0):
                r = r1 - 1 - s
                i0 = tl.load(feature_starts + r)
                i1 = tl.load(feature_starts + r + 1)
                pull_to_inputs(
                    weights, matrices, table, starts, width, depth, i0, i1, lambdas, r + 1, r1,
                    work, DIRECT, PRECISION, STEP, INPUTS, ROWS,
                )  # fmt: skip
                tl.debug_barrier()
                for i in range(i0, i1):
                    f = tl.load(features + i)
                    own = tl.load(work + (lambdas + i) * ROWS + lane)
                    tl.store(solution + row * dimension + f, own, mask=inside)
                    first = tl.load(output_starts + i)
                    for k in range(tl.load(output_starts + i + 1) - first):
                        d = own * tl.load(slopes + (row * dimension + f) * widest + k)
                        tl.store(work + (outputs + first + k) * ROWS + lane, d)
                tl.debug_barrier()
                # Units of degree r read inputs of lower ranks only: all they fed is done.
                for back in range(depth):
                    index = depth - 1 - back
                    layer = table + index * COLUMNS
                    above = starts + (index + 1) * width
                    begin = tl.load(starts + index * width + r)
                    end = tl.load(starts + index * width + r + 1)
                    delta = tl.load(layer + DELTA)
                    matrix = weights + tl.load(matrices + 2 * index + 2)
                    pitch = tl.load(matrices + 2 * index + 3)
                    kept = tl.load(layer + SUM)
                    earlier = tl.load(layer + STREAM_SUM)
                    gate = tl.load(layer + GATE)
                    for u0 in range(begin, end, STEP):
                        u = u0 + tl.arange(0, STEP)
                        live = u < end
                        mask = live[:, None]
                        here = work + places_of(delta + u, ROWS)
                        total = tl.load(here, mask=mask, other=0.0)
                        total = add_product(
                            total, matrix, 1, pitch, u, live, work,
                            tl.load(layer + COLUMNS + DELTA),
                            tl.load(above + r), tl.load(above + r1), PRECISION, INPUTS, ROWS,
                        )  # fmt: skip
                        steep = work + places_of(tl.load(layer + SLOPE) + u, ROWS)
                        total *= tl.load(steep, mask=mask, other=0.0)
                        if kept >= 0:  # later blocks add to this layer's z
                            sums = work + places_of(kept + u, ROWS)
                            total += tl.load(sums, mask=mask, other=0.0)
                        if earlier >= 0:
                            place = tl.load(layer + STREAM_INDEX)
                            place = tl.load(streams + place + u, mask=live, other=0)
                            sums = work + places_of(earlier + place, ROWS)
                            so_far = tl.load(sums, mask=mask, other=0.0)
                            tl.debug_barrier()
                            tl.store(sums, so_far + total, mask=mask)
                        if gate >= 0:
                            total *= of_context(context, gate, u, live, at, context_rows)
                        tl.debug_barrier()
                        tl.store(here, total, mask=mask)
                    tl.debug_barrier()
