"""The kernel of the sweep: all steps of the sequential inverse for tiles of rows, in one launch.

Ranks are taken in panels, as in a blocked triangular solve: before a panel one product per layer
brings in everything earlier, in large blocks; inside it small products do the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from made_flows.inverse.compiled import layout
from made_flows.inverse.gpu.steps import take_step
from made_flows.inverse.gpu.tile import Z, add_product, finish_units, places_of, start_units

COLUMNS = tl.constexpr(layout.COLUMNS)
SOURCE = tl.constexpr(layout.SOURCE)
FLAGS = tl.constexpr(64)


@triton.jit
def put_inputs(work, first, last, x, lane, ONE_HOT: tl.constexpr, ROWS: tl.constexpr):
    """Write what the network reads for a feature's values: the values, or one-hot columns."""
    if ONE_HOT:
        for c in range(first, last):
            tl.store(work + c * ROWS + lane, (x == (c - first).to(x.dtype)).to(x.dtype))
    else:
        tl.store(work + first * ROWS + lane, x)


@triton.jit(
    do_not_specialize=[
        "rows", "context_rows", "prefix", "levels", "panel_count", "depth", "flag_place",
        "flag_count",
    ]
)  # fmt: skip
def solve_kernel(
    noise,
    known,
    values,
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
    column_starts,
    output_starts,
    input_starts,
    rows,
    context_rows,
    prefix,
    levels,
    panel_count,
    depth,
    size,
    dimension,
    flag_place,
    flag_count,
    PARTS: tl.constexpr,
    DIRECT: tl.constexpr,
    ONE_HOT: tl.constexpr,
    KIND: tl.constexpr,
    NUMBERS: tl.constexpr,
    WIDTH: tl.constexpr,
    CODE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Solve for values (rows, dimension); a program takes a tile of ``ROWS`` rows after the other.

    Args:
        noise, known, values: (rows, dimension, PARTS), (rows, dimension), (rows, dimension).
        work: ``size`` numbers for every program.
        flag_place, flag_count: where, among the vectors, the packing flags weights that are not
            finite, and in how many numbers.
        weights, vectors, constants, context: what units are made of; see ``backend``.
        table, streams, panels, starts, features, feature_starts, column_starts, output_starts,
            input_starts: the layout, see ``made_flows.inverse.compiled.layout``.
        matrices: for every layer, then the direct connection, where its weights begin, and how far
            apart those of two units stand.
        BLOCK, STEP, INPUTS: units of a block before and inside a panel, inputs of a product.
    """
    dtype = values.dtype.element_ty
    lane = tl.arange(0, ROWS)
    work += tl.program_id(0).to(tl.int64) * size
    width = levels + 1
    out = tl.load(table + depth * COLUMNS + Z)
    taint = tl.zeros((FLAGS,), dtype)
    for k0 in range(0, flag_count, FLAGS):
        k = k0 + tl.arange(0, FLAGS)
        taint += tl.load(vectors + flag_place + k, mask=k < flag_count, other=0.0)
    nothing = tl.sum(taint, axis=0)  # or NaN, where no number may be drawn
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = lane.to(tl.int64) + tile * ROWS
        inside = row < rows
        # Lanes past the last row repeat it: what they compute is thrown away.
        row = tl.minimum(row, rows - 1)
        at = row % context_rows
        for p in range(panel_count):
            r0 = tl.load(panels + p)
            r1 = tl.load(panels + p + 1)
            given = r1 <= prefix  # all ranks of the panel are known
            o0 = tl.load(starts + depth * width + r0)
            if given:
                for i in range(tl.load(feature_starts + r0), tl.load(feature_starts + r1)):
                    f = tl.load(features + i)
                    x = tl.load(known + row * dimension + f)
                    tl.store(values + row * dimension + f, x, mask=inside)
                    c0 = tl.load(input_starts + i)
                    c1 = tl.load(input_starts + i + 1)
                    put_inputs(work, c0, c1, x, lane, ONE_HOT, ROWS)
                tl.debug_barrier()
            # Everything that earlier panels computed, in one product per layer. Where the panel is
            # known its own inputs come in too, and its outputs are not needed.
            for index in range(depth + 1):
                layer = table + index * COLUMNS
                place = tl.load(layer + Z)
                until = r0
                if given:
                    until = r1
                if index == depth:
                    place = out - o0
                read = tl.load(column_starts + (r1 - 1 if given else r0))
                if index > 0:
                    read = tl.load(starts + (index - 1) * width + until)
                begin = tl.load(starts + index * width + r0)
                end = tl.load(starts + index * width + r1)
                if given & (index == depth):
                    end = begin
                matrix = weights + tl.load(matrices + 2 * index)
                pitch = tl.load(matrices + 2 * index + 1)
                source = tl.load(layer + SOURCE)
                for u0 in range(begin, end, BLOCK):
                    u = u0 + tl.arange(0, BLOCK)
                    live = u < end
                    total = tl.zeros((BLOCK, ROWS), dtype)
                    total = start_units(total, layer, u, live, vectors, context, at, context_rows)
                    if index == depth:
                        total += nothing
                    total = add_product(
                        total, matrix, pitch, 1, u, live, work, source, 0, read,
                        PRECISION, INPUTS, ROWS,
                    )  # fmt: skip
                    if DIRECT:  # noqa: SIM102 - known while compiling, the other while running
                        if index == depth:
                            total = add_product(
                                total,
                                weights + tl.load(matrices + 2 * depth + 2),
                                tl.load(matrices + 2 * depth + 3),
                                1, u, live, work, 0, 0, tl.load(column_starts + r0),
                                PRECISION, INPUTS, ROWS,
                            )  # fmt: skip
                    if given:
                        constant = tl.load(constants + index)
                        finish_units(
                            total, layer, u, live, work, vectors, constant, streams, context, at,
                            context_rows, CODE, False, ROWS,
                        )  # fmt: skip
                    else:
                        tl.store(work + places_of(place + u, ROWS), total, mask=live[:, None])
                if given:
                    tl.debug_barrier()
            tl.debug_barrier()
            last = r1
            if given:
                last = r0
            for r in range(r0, last):
                # The units of degree r, layer by layer; they read only what is already there.
                for index in range(depth + 1):
                    layer = table + index * COLUMNS
                    place = tl.load(layer + Z)
                    done = tl.load(column_starts + r0)
                    read = tl.load(column_starts + r)
                    if index == depth:
                        place = out - o0
                    if index > 0:
                        done = tl.load(starts + (index - 1) * width + r0)
                        read = tl.load(starts + (index - 1) * width + r + 1)
                    begin = tl.load(starts + index * width + r)
                    end = tl.load(starts + index * width + r + 1)
                    matrix = weights + tl.load(matrices + 2 * index)
                    pitch = tl.load(matrices + 2 * index + 1)
                    source = tl.load(layer + SOURCE)
                    for u0 in range(begin, end, STEP):
                        u = u0 + tl.arange(0, STEP)
                        live = u < end
                        here = work + places_of(place + u, ROWS)
                        total = tl.load(here, mask=live[:, None], other=0.0)
                        total = add_product(
                            total, matrix, pitch, 1, u, live, work, source, done, read,
                            PRECISION, INPUTS, ROWS,
                        )  # fmt: skip
                        if index < depth:
                            tl.debug_barrier()  # its place may become that of the activation
                            constant = tl.load(constants + index)
                            finish_units(
                                total, layer, u, live, work, vectors, constant, streams, context,
                                at, context_rows, CODE, False, ROWS,
                            )  # fmt: skip
                        else:
                            if DIRECT:
                                total = add_product(
                                    total,
                                    weights + tl.load(matrices + 2 * depth + 2),
                                    tl.load(matrices + 2 * depth + 3),
                                    1, u, live, work, 0,
                                    tl.load(column_starts + r0), tl.load(column_starts + r),
                                    PRECISION, INPUTS, ROWS,
                                )  # fmt: skip
                            tl.debug_barrier()
                            tl.store(here, total, mask=live[:, None])
                    tl.debug_barrier()
                for i in range(tl.load(feature_starts + r), tl.load(feature_starts + r + 1)):
                    f = tl.load(features + i)
                    first = tl.load(output_starts + i)
                    count = tl.load(output_starts + i + 1) - first
                    if r < prefix:
                        x = tl.load(known + row * dimension + f)
                    else:
                        u = tl.load(noise + (row * dimension + f) * PARTS)
                        v = tl.load(noise + (row * dimension + f) * PARTS + PARTS - 1)
                        parameters = work + (out - o0 + first) * ROWS
                        x = take_step(parameters, count, u, v, KIND, NUMBERS, WIDTH, ROWS)
                    tl.store(values + row * dimension + f, x, mask=inside)
                    c0 = tl.load(input_starts + i)
                    c1 = tl.load(input_starts + i + 1)
                    put_inputs(work, c0, c1, x, lane, ONE_HOT, ROWS)
                tl.debug_barrier()
