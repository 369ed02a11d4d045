"""What both sweeps do with a tile of rows: products, and the beginning and end of hidden units.

A program of the kernels takes a tile of rows, whose activations stand in a workspace of its own,
unit by unit, the rows of the tile side by side, as in the compiled sweep for CPUs; places in it,
and the table of layers, are those of :mod:`made_flows.inverse.compiled.layout`. Threads of a
program share the workspace: between a write and a read of it by others lies a barrier, which
callers set.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from made_flows.inverse.compiled import layout
from made_flows.inverse.gpu.elementwise import activate, slope

COLUMNS = tl.constexpr(layout.COLUMNS)
SOURCE = tl.constexpr(layout.SOURCE)
Z = tl.constexpr(layout.Z)
A = tl.constexpr(layout.A)
SLOPE = tl.constexpr(layout.SLOPE)
BIAS = tl.constexpr(layout.BIAS)
ACTIVATION = tl.constexpr(layout.ACTIVATION)
STREAM = tl.constexpr(layout.STREAM)
STREAM_INDEX = tl.constexpr(layout.STREAM_INDEX)
BASE = tl.constexpr(layout.BASE)
GATE = tl.constexpr(layout.GATE)
NORM = tl.constexpr(layout.NORM)
UNITS = tl.constexpr(layout.UNITS)


class Net(NamedTuple):
    """What the kernels read of a network: its packed weights and its layout, on the device.

    Args:
        weights, vectors: of all matrices; biases, norms, and flags of what is not finite.
        context: the context's contributions, unit by unit.
        matrices: for every layer, then the direct connection, where its weights begin, and how far
            apart those of two units stand.
        constants, table, streams, panels, starts, features, feature_starts, column_starts,
            output_starts, input_starts: see :mod:`made_flows.inverse.compiled.layout`.
    """

    weights: Any
    vectors: Any
    context: Any
    matrices: Any
    constants: Any
    table: Any
    streams: Any
    panels: Any
    starts: Any
    features: Any
    feature_starts: Any
    column_starts: Any
    output_starts: Any
    input_starts: Any


COUNTS = ("rows", "context_rows", "levels", "panel_count", "depth")
"""Of the batch, its contexts, ranks, panels of them and hidden layers. They are arguments of their
own, since Triton compiles anew for numbers in tuples."""


class Tile(NamedTuple):
    """Some rows of the batch: their workspace, and the row of the context that each has."""

    work: Any
    at: Any
    context_rows: Any


@triton.jit
def places_of(first, ROWS: tl.constexpr):
    """Return where the lanes of some rows of the workspace stand."""
    return first[:, None] * ROWS + tl.arange(0, ROWS)[None, :]


@triton.jit
def matrix_of(net, index):
    """Return where a layer's weights begin, and how far apart those of two units stand."""
    return net.weights + tl.load(net.matrices + 2 * index), tl.load(net.matrices + 2 * index + 1)


@triton.jit
def add_product(
    total, weights, unit_step, input_step, u, live, work, source, first, last,
    PRECISION: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add what inputs [first, last), whose rows begin at ``source``, contribute to some units.

    The weight of unit u for input k stands at u * unit_step + k * input_step.
    """
    for k0 in range(first, last, INPUTS):
        k = k0 + tl.arange(0, INPUTS)
        here = k < last
        w = tl.load(
            weights + u[:, None] * unit_step + k[None, :] * input_step,
            mask=live[:, None] & here[None, :],
            other=0.0,
        )
        a = tl.load(work + places_of(source + k, ROWS), mask=here[:, None], other=0.0)
        total = tl.dot(w, a, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def of_context(net, tile, first, u, live):
    """Load the context's contributions to some units, (units, lanes)."""
    place = (first + u).to(tl.int64)[:, None] * tile.context_rows + tile.at[None, :]
    return tl.load(net.context + place, mask=live[:, None], other=0.0)


@triton.jit
def start_units(total, net, tile, layer, u, live):
    """Add to sums of some units their biases and the context's contributions."""
    bias = tl.load(net.vectors + tl.load(layer + BIAS) + u, mask=live, other=0.0)
    total += bias[:, None]
    base = tl.load(layer + BASE)
    if base >= 0:
        total += of_context(net, tile, base, u, live)
    return total


@triton.jit
def compute_units(
    net, tile, index, units, place, inputs, columns, taint, output, finished, START: tl.constexpr,
    SLOPES: tl.constexpr, CODE: tl.constexpr, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add to the weighted sums of some units of a layer what some of its inputs contribute.

    Args:
        index: the layer.
        units, inputs: ranges [first, last).
        place: where the sums begin in the workspace.
        columns: of an output, the range of inputs that contribute directly.
        taint: zero, or NaN where no number may be drawn.
        output: whether they are outputs.
        finished: whether their products are then all in, and activations take the place of sums.
        START: whether the sums begin with biases, and not with what stands there.
        SLOPES: whether derivatives of activations are wanted.
        CODE: the activation of all layers, -1 where they differ.
        DIRECT: whether inputs contribute directly to outputs.
    """
    layer = net.table + index * COLUMNS
    weights, pitch = matrix_of(net, index)
    source = tl.load(layer + SOURCE)
    first, last = inputs
    for u0 in range(units[0], units[1], BLOCK):
        u = u0 + tl.arange(0, BLOCK)
        live = u < units[1]
        here = tile.work + places_of(place + u, ROWS)
        if START:
            total = tl.zeros((BLOCK, ROWS), net.weights.dtype.element_ty)
            total = start_units(total, net, tile, layer, u, live)
            if output:
                total += taint
        else:
            total = tl.load(here, mask=live[:, None], other=0.0)
        total = add_product(
            total, weights, pitch, 1, u, live, tile.work, source, first, last,
            PRECISION, INPUTS, ROWS,
        )  # fmt: skip
        if DIRECT:  # noqa: SIM102 - known while compiling, the other while running
            if output:
                direct, far = matrix_of(net, index + 1)
                total = add_product(
                    total, direct, far, 1, u, live, tile.work, 0, columns[0], columns[1],
                    PRECISION, INPUTS, ROWS,
                )  # fmt: skip
        if not START:
            tl.debug_barrier()  # the place of a sum may become that of its activation
        if finished:
            finish_units(total, net, tile, index, u, live, CODE, SLOPES, ROWS)
        else:
            tl.store(here, total, mask=live[:, None])


@triton.jit
def finish_units(
    total, net, tile, index, u, live, CODE: tl.constexpr, SLOPES: tl.constexpr, ROWS: tl.constexpr
):
    """Apply gate, residual, norm and activation to hidden units whose products are all in."""
    layer, work, mask = net.table + index * COLUMNS, tile.work, live[:, None]
    gate = tl.load(layer + GATE)
    if gate >= 0:
        total *= of_context(net, tile, gate, u, live)
    stream = tl.load(layer + STREAM)
    if stream >= 0:
        place = tl.load(net.streams + tl.load(layer + STREAM_INDEX) + u, mask=live, other=0)
        total += tl.load(work + places_of(stream + place, ROWS), mask=mask, other=0.0)
    z0 = tl.load(layer + Z)
    a0 = tl.load(layer + A)
    if z0 != a0:  # another layer will add to this z, which must therefore stay
        tl.store(work + places_of(z0 + u, ROWS), total, mask=mask)
    norm = tl.load(layer + NORM)
    factor = tl.full((u.shape[0],), 1.0, total.dtype)
    if norm >= 0:
        factor = tl.load(net.vectors + norm + u, mask=live, other=0.0)
        shift = tl.load(net.vectors + norm + tl.load(layer + UNITS) + u, mask=live, other=0.0)
        total = total * factor[:, None] + shift[:, None]
    constant = tl.load(net.constants + index)
    code = tl.load(layer + ACTIVATION) if CODE < 0 else CODE
    if SLOPES:
        slopes = slope(code, constant, total) * factor[:, None]
        tl.store(work + places_of(tl.load(layer + SLOPE) + u, ROWS), slopes, mask=mask)
    tl.store(work + places_of(a0 + u, ROWS), activate(code, constant, total), mask=mask)
