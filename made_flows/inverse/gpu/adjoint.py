"""The kernel of the sweep run backwards: the transposed system, for tiles of rows, in one launch.

The delta of a hidden unit of degree m is complete once all ranks from m on are done. See
:mod:`made_flows.inverse.gpu.solve` for how the work is cut up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from made_flows.inverse.compiled import layout
from made_flows.inverse.gpu.tile import (
    COLUMNS,
    GATE,
    SLOPE,
    STREAM_INDEX,
    Part,
    Tile,
    add_product,
    compute_units,
    context_term,
    matrix_of,
    places_of,
    sizes_of,
)

DELTA = tl.constexpr(layout.DELTA)
SUM = tl.constexpr(layout.SUM)
STREAM_SUM = tl.constexpr(layout.STREAM_SUM)


class Gradients(NamedTuple):
    """The tensors of a batch: (rows, dimension), slopes (rows, dimension, widest)."""

    x: Any
    gradient: Any
    slopes: Any
    solution: Any


@triton.jit
def pull(net, work, index, own, target, delta, above, BLOCK: tl.constexpr, META: tl.constexpr):
    """Add to rows ``own`` from ``target`` on what units ``above``, of a layer, send back to them.

    Both are ranges [first, last); the units' deltas begin at ``delta``.
    """
    weights, pitch = matrix_of(net, index)
    for k0 in range(own[0], own[1], BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        live = k < own[1]
        here = work + places_of(target + k, META.rows)
        total = tl.load(here, mask=live[:, None], other=0.0)
        total = add_product(total, weights, 1, pitch, k, live, work, delta, above, META)
        tl.debug_barrier()
        tl.store(here, total, mask=live[:, None])


@triton.jit
def pull_to_inputs(net, sizes, work, own, above, until, BLOCK: tl.constexpr, META: tl.constexpr):
    """Add to lambda of features ``own`` what units of ranks [above, until) send back.

    Units of the first layer do, and outputs where there are direct connections.
    """
    first = tl.load(net.starts + above), tl.load(net.starts + until)
    delta = tl.load(net.table + DELTA)
    pull(net, work, 0, own, sizes.lambdas, delta, first, BLOCK, META)
    if META.direct:
        tl.debug_barrier()
        depth = sizes.depth
        outputs = net.starts + depth * (sizes.levels + 1)
        last = tl.load(outputs + above), tl.load(outputs + until)
        delta = tl.load(net.table + depth * COLUMNS + DELTA)
        pull(net, work, depth + 1, own, sizes.lambdas, delta, last, BLOCK, META)


@triton.jit
def clear(work, place, count, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Set some rows of the workspace to zero."""
    for u0 in range(0, count, BLOCK):
        u = u0 + tl.arange(0, BLOCK)
        block = tl.zeros((BLOCK, ROWS), work.dtype.element_ty)
        tl.store(work + places_of(place + u, ROWS), block, mask=(u < count)[:, None])


@triton.jit(do_not_specialize=["rows", "context_rows", "widest"])
def adjoint_kernel(work, net, gradients, rows, context_rows, widest, META: tl.constexpr):
    """Solve the transposed system for (rows, dimension); see ``eager.adjoint``.

    The arguments are those of ``solve_kernel``, of the adjoint's own layout, but for
    ``gradients``, a :class:`Gradients`, and ``widest``, how many slopes a feature has.
    """
    ROWS: tl.constexpr = META.rows
    STEP: tl.constexpr = META.step
    lane = tl.arange(0, ROWS)
    sizes = sizes_of(net)
    depth, dimension, levels, lambdas = sizes.depth, sizes.dimension, sizes.levels, sizes.lambdas
    x, gradient, slopes, solution = gradients
    work += tl.program_id(0).to(tl.int64) * sizes.lines * ROWS
    starts, width = net.starts, levels + 1
    outputs = tl.load(net.table + depth * COLUMNS + DELTA)
    for number in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = lane.to(tl.int64) + number * ROWS
        inside = row < rows
        row = tl.minimum(row, rows - 1)
        tile = Tile(work, row % context_rows, context_rows)
        for i in range(dimension):
            f = tl.load(net.features + i)
            tl.store(work + i * ROWS + lane, tl.load(x + row * dimension + f))
            own = tl.load(gradient + row * dimension + f)
            tl.store(work + (lambdas + i) * ROWS + lane, own)
        tl.debug_barrier()
        # All inputs are known: the hidden units, a layer after the other.
        for index in range(depth):
            layer = net.table + index * COLUMNS
            kept = tl.load(layer + SUM)
            count = tl.load(starts + index * width + levels)
            clear(work, tl.load(layer + DELTA), count, META.block, ROWS)
            if kept >= 0:
                clear(work, kept, count, META.block, ROWS)
            for p in range(sizes.panels):
                r1 = tl.load(net.panels + p + 1)
                begin = tl.load(starts + index * width + tl.load(net.panels + p))
                end = tl.load(starts + index * width + r1)
                read = tl.load(net.feature_starts + r1 - 1)
                if index > 0:
                    read = tl.load(starts + (index - 1) * width + r1)
                part = Part(index, (begin, end), 0, (0, read), (0, 0))
                compute_units(net, tile, part, 0.0, False, True, True, True, META.block, META)
            tl.debug_barrier()
        for q in range(sizes.panels):
            p = sizes.panels - 1 - q
            r0 = tl.load(net.panels + p)
            r1 = tl.load(net.panels + p + 1)
            # What later panels send back, in one product per layer. Inputs of rank r are read by
            # units of degree r + 1 and more, units of degree r by those of degree r and more.
            own = (tl.load(net.feature_starts + r0), tl.load(net.feature_starts + r1))
            pull_to_inputs(net, sizes, work, own, r1, levels, META.block, META)
            for index in range(depth):
                layer, here = net.table + index * COLUMNS, starts + index * width
                above = (tl.load(here + width + r1), tl.load(here + width + levels))
                pull(
                    net, work, index + 1, (tl.load(here + r0), tl.load(here + r1)),
                    tl.load(layer + DELTA), tl.load(layer + COLUMNS + DELTA), above,
                    META.block, META,
                )  # fmt: skip
            tl.debug_barrier()
            for s in range(r1 - r0):
                r = r1 - 1 - s
                i0 = tl.load(net.feature_starts + r)
                i1 = tl.load(net.feature_starts + r + 1)
                pull_to_inputs(net, sizes, work, (i0, i1), r + 1, r1, STEP, META)
                tl.debug_barrier()
                for i in range(i0, i1):
                    f = tl.load(net.features + i)
                    of_x = tl.load(work + (lambdas + i) * ROWS + lane)
                    tl.store(solution + row * dimension + f, of_x, mask=inside)
                    first = tl.load(net.output_starts + i)
                    for k in range(tl.load(net.output_starts + i + 1) - first):
                        d = of_x * tl.load(slopes + (row * dimension + f) * widest + k)
                        tl.store(work + (outputs + first + k) * ROWS + lane, d)
                tl.debug_barrier()
                # Units of degree r read inputs of lower ranks only: all they fed is done.
                for back in range(depth):
                    index = depth - 1 - back
                    layer, here = net.table + index * COLUMNS, starts + index * width
                    delta = tl.load(layer + DELTA)
                    weights, pitch = matrix_of(net, index + 1)
                    kept = tl.load(layer + SUM)
                    earlier = tl.load(layer + STREAM_SUM)
                    gate = tl.load(layer + GATE)
                    end = tl.load(here + r + 1)
                    for u0 in range(tl.load(here + r), end, STEP):
                        u = u0 + tl.arange(0, STEP)
                        live = u < end
                        mask = live[:, None]
                        place = work + places_of(delta + u, ROWS)
                        total = tl.load(place, mask=mask, other=0.0)
                        above = (tl.load(here + width + r), tl.load(here + width + r1))
                        total = add_product(
                            total, weights, 1, pitch, u, live, work,
                            tl.load(layer + COLUMNS + DELTA), above, META,
                        )  # fmt: skip
                        steep = work + places_of(tl.load(layer + SLOPE) + u, ROWS)
                        total *= tl.load(steep, mask=mask, other=0.0)
                        if kept >= 0:  # later blocks add to this layer's z
                            sums = work + places_of(kept + u, ROWS)
                            total += tl.load(sums, mask=mask, other=0.0)
                        if earlier >= 0:
                            unit = net.streams + tl.load(layer + STREAM_INDEX) + u
                            unit = tl.load(unit, mask=live, other=0)
                            sums = work + places_of(earlier + unit, ROWS)
                            so_far = tl.load(sums, mask=mask, other=0.0)
                            tl.debug_barrier()
                            tl.store(sums, so_far + total, mask=mask)
                        if gate >= 0:
                            total *= context_term(net, tile, gate, u, live)
                        tl.debug_barrier()
                        tl.store(place, total, mask=mask)
                    tl.debug_barrier()
