"""The kernel of the sweep: all steps of the sequential inverse for tiles of rows, in one launch.

Ranks are taken in panels, as in a blocked triangular solve: before a panel one product per layer
brings in everything earlier, in large blocks; inside it small products do the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from made_flows.inverse.gpu.steps import take_step
from made_flows.inverse.gpu.tile import COLUMNS, Part, Tile, Z, compute_units, sizes_of

FLAGS = tl.constexpr(64)


class Values(NamedTuple):
    """The tensors of a batch: noise (rows, dimension, parts), the others (rows, dimension)."""

    noise: Any
    known: Any
    solved: Any


@triton.jit
def put_value(
    net, tile, i, x, values, row, inside, dimension, ONE_HOT: tl.constexpr, ROWS: tl.constexpr
):
    """Write a feature's values, and what the network reads for them: they, or one-hot columns."""
    tl.store(values + row * dimension + tl.load(net.features + i), x, mask=inside)
    lane, first = tl.arange(0, ROWS), tl.load(net.input_starts + i)
    if ONE_HOT:
        for c in range(first, tl.load(net.input_starts + i + 1)):
            tl.store(tile.work + c * ROWS + lane, (x == (c - first).to(x.dtype)).to(x.dtype))
    else:
        tl.store(tile.work + first * ROWS + lane, x)


@triton.jit(do_not_specialize=["rows", "context_rows", "prefix"])
def solve_kernel(
    work, net, batch, rows, context_rows, prefix, STEP: tl.constexpr, META: tl.constexpr
):
    """Solve for values; a program takes a tile of rows after the other.

    Args:
        work: for every program, as much as a tile needs.
        net: a :class:`~made_flows.inverse.gpu.tile.Net`.
        batch: :class:`Values`.
        rows, context_rows: of the batch, and of its contexts, which come again.
        prefix: how many ranks are known.
        STEP: a :class:`~made_flows.inverse.gpu.steps.StepMeta`.
        META: a :class:`~made_flows.inverse.gpu.tile.Meta`.
    """
    ROWS: tl.constexpr = META.rows
    PARTS: tl.constexpr = STEP.parts
    lane = tl.arange(0, ROWS)
    sizes = sizes_of(net)
    depth, dimension = sizes.depth, sizes.dimension
    noise, known, values = batch
    work += tl.program_id(0).to(tl.int64) * sizes.lines * ROWS
    starts, columns, width = net.starts, net.column_starts, sizes.levels + 1
    feature_starts = net.feature_starts
    out = tl.load(net.table + depth * COLUMNS + Z)
    taint = tl.zeros((FLAGS,), values.dtype.element_ty)
    for k0 in range(0, sizes.flag_count, FLAGS):
        k = k0 + tl.arange(0, FLAGS)
        taint += tl.load(net.vectors + sizes.flags + k, mask=k < sizes.flag_count, other=0.0)
    nothing = tl.sum(taint, axis=0)  # or NaN, where no number may be drawn
    for number in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = lane.to(tl.int64) + number * ROWS
        inside = row < rows
        # Lanes past the last row repeat it: what they compute is thrown away.
        row = tl.minimum(row, rows - 1)
        tile = Tile(work, row % context_rows, context_rows)
        for p in range(sizes.panels):
            r0 = tl.load(net.panels + p)
            r1 = tl.load(net.panels + p + 1)
            given = r1 <= prefix  # all ranks of the panel are known
            o0 = tl.load(starts + depth * width + r0)
            if given:
                for i in range(tl.load(feature_starts + r0), tl.load(feature_starts + r1)):
                    x = tl.load(known + row * dimension + tl.load(net.features + i))
                    put_value(net, tile, i, x, values, row, inside, dimension, STEP.one_hot, ROWS)
                tl.debug_barrier()
            # Everything that earlier panels computed, in one product per layer. Where the panel is
            # known its own inputs come in too, and its outputs are not needed.
            for index in range(depth + 1):
                place = tl.load(net.table + index * COLUMNS + Z)
                until = r0
                if given:
                    until = r1
                if index == depth:
                    place = out - o0
                read = tl.load(columns + (r1 - 1 if given else r0))
                if index > 0:
                    read = tl.load(starts + (index - 1) * width + until)
                begin = tl.load(starts + index * width + r0)
                end = tl.load(starts + index * width + r1)
                if given & (index == depth):
                    end = begin
                part = Part(index, (begin, end), place, (0, read), (0, tl.load(columns + r0)))
                compute_units(
                    net, tile, part, nothing, index == depth, given, True, False, META.block, META
                )
                if given:
                    tl.debug_barrier()
            tl.debug_barrier()
            last = r1
            if given:
                last = r0
            for r in range(r0, last):
                # The units of degree r, layer by layer; they read only what is already there.
                for index in range(depth + 1):
                    place = tl.load(net.table + index * COLUMNS + Z)
                    done = tl.load(columns + r0)
                    read = tl.load(columns + r)
                    direct = (done, read)
                    if index == depth:
                        place = out - o0
                    if index > 0:
                        done = tl.load(starts + (index - 1) * width + r0)
                        read = tl.load(starts + (index - 1) * width + r + 1)
                    begin = tl.load(starts + index * width + r)
                    end = tl.load(starts + index * width + r + 1)
                    part = Part(index, (begin, end), place, (done, read), direct)
                    compute_units(
                        net, tile, part, nothing, index == depth, index < depth, False, False,
                        META.step, META,
                    )  # fmt: skip
                    tl.debug_barrier()
                for i in range(tl.load(feature_starts + r), tl.load(feature_starts + r + 1)):
                    f = tl.load(net.features + i)
                    first = tl.load(net.output_starts + i)
                    count = tl.load(net.output_starts + i + 1) - first
                    if r < prefix:
                        x = tl.load(known + row * dimension + f)
                    else:
                        u = tl.load(noise + (row * dimension + f) * PARTS)
                        v = tl.load(noise + (row * dimension + f) * PARTS + PARTS - 1)
                        parameters = work + (out - o0 + first) * ROWS
                        x = take_step(parameters, count, u, v, STEP, ROWS)
                    put_value(net, tile, i, x, values, row, inside, dimension, STEP.one_hot, ROWS)
                tl.debug_barrier()
