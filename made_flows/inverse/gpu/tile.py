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
        sizes: :class:`Sizes`, as numbers on the device: Triton compiles anew for numbers in tuples
            that it is launched with.
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
    sizes: Any


class Sizes(NamedTuple):
    """How large a network and its layout are.

    Args:
        levels, panels: ranks, and panels of them.
        depth: hidden layers.
        dimension: features.
        lines: rows of a tile's workspace.
        flags, flag_count: where, among the vectors, the packing flags weights that are not finite,
            and in how many numbers.
        lambdas: where lambda begins in the workspace of the adjoint.
    """

    levels: Any
    panels: Any
    depth: Any
    dimension: Any
    lines: Any
    flags: Any
    flag_count: Any
    lambdas: Any


class Meta(NamedTuple):
    """What a sweep is compiled for.

    Args:
        code: the activation of all hidden layers, -1 where they differ.
        direct: whether inputs contribute directly to outputs.
        precision: of products, in Triton's words.
        rows, block, step, inputs, warps: how the work is cut up, see
            :class:`~made_flows.inverse.gpu.autotuning.Config`.
    """

    code: int
    direct: bool
    precision: str
    rows: int
    block: int
    step: int
    inputs: int
    warps: int


class Tile(NamedTuple):
    """Some rows of the batch: their workspace, and the row of the context that each has."""

    work: Any
    at: Any
    context_rows: Any


class Part(NamedTuple):
    """Some units of a layer, and what they read.

    Args:
        index: the layer.
        units, inputs: ranges [first, last).
        place: where the units' sums begin in the workspace.
        columns: of outputs, the range of inputs that contribute directly.
    """

    index: Any
    units: Any
    place: Any
    inputs: Any
    columns: Any


@triton.jit
def sizes_of(net):
    """Load the sizes of a network."""
    s = net.sizes
    return Sizes(
        tl.load(s), tl.load(s + 1), tl.load(s + 2), tl.load(s + 3), tl.load(s + 4), tl.load(s + 5),
        tl.load(s + 6), tl.load(s + 7),
    )  # fmt: skip


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
    total, weights, unit_step, input_step, u, live, work, source, inputs, META: tl.constexpr
):
    """Add what inputs [first, last), whose rows begin at ``source``, contribute to some units.

    The weight of unit u for input k stands at u * unit_step + k * input_step.
    """
    for k0 in range(inputs[0], inputs[1], META.inputs):
        k = k0 + tl.arange(0, META.inputs)
        here = k < inputs[1]
        w = tl.load(
            weights + u[:, None] * unit_step + k[None, :] * input_step,
            mask=live[:, None] & here[None, :],
            other=0.0,
        )
        a = tl.load(work + places_of(source + k, META.rows), mask=here[:, None], other=0.0)
        total = tl.dot(w, a, total, input_precision=META.precision, out_dtype=total.dtype)
    return total


@triton.jit
def context_term(net, tile, first, u, live):
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
        total += context_term(net, tile, base, u, live)
    return total


@triton.jit
def compute_units(
    net, tile, part, taint, output, finished, START: tl.constexpr, SLOPES: tl.constexpr,
    BLOCK: tl.constexpr, META: tl.constexpr,
):  # fmt: skip
    """Add to the weighted sums of some units of a layer what some of its inputs contribute.

    Args:
        part: a :class:`Part`.
        taint: zero, or NaN where no number may be drawn.
        output: whether they are outputs.
        finished: whether their products are then all in, and activations take the place of sums.
        START: whether the sums begin with biases, and not with what stands there.
        SLOPES: whether derivatives of activations are wanted.
        BLOCK: how many units are taken at once.
    """
    ROWS: tl.constexpr = META.rows
    layer = net.table + part.index * COLUMNS
    weights, pitch = matrix_of(net, part.index)
    source = tl.load(layer + SOURCE)
    for u0 in range(part.units[0], part.units[1], BLOCK):
        u = u0 + tl.arange(0, BLOCK)
        live = u < part.units[1]
        here = tile.work + places_of(part.place + u, ROWS)
        if START:
            total = tl.zeros((BLOCK, ROWS), net.weights.dtype.element_ty)
            total = start_units(total, net, tile, layer, u, live)
            if output:
                total += taint
        else:
            total = tl.load(here, mask=live[:, None], other=0.0)
        total = add_product(total, weights, pitch, 1, u, live, tile.work, source, part.inputs, META)
        if META.direct:  # noqa: SIM102 - known while compiling, the other while running
            if output:
                direct, far = matrix_of(net, part.index + 1)
                total = add_product(
                    total, direct, far, 1, u, live, tile.work, 0, part.columns, META
                )
        if not START:
            tl.debug_barrier()  # the place of a sum may become that of its activation
        if finished:
            finish_units(total, net, tile, part.index, u, live, SLOPES, META)
        else:
            tl.store(here, total, mask=live[:, None])


@triton.jit
def finish_units(total, net, tile, index, u, live, SLOPES: tl.constexpr, META: tl.constexpr):
    """Apply gate, residual, norm and activation to hidden units whose products are all in."""
    layer, work, mask = net.table + index * COLUMNS, tile.work, live[:, None]
    gate = tl.load(layer + GATE)
    if gate >= 0:
        total *= context_term(net, tile, gate, u, live)
    stream = tl.load(layer + STREAM)
    if stream >= 0:
        place = tl.load(net.streams + tl.load(layer + STREAM_INDEX) + u, mask=live, other=0)
        total += tl.load(work + places_of(stream + place, META.rows), mask=mask, other=0.0)
    z0 = tl.load(layer + Z)
    a0 = tl.load(layer + A)
    if z0 != a0:  # another layer will add to this z, which must therefore stay
        tl.store(work + places_of(z0 + u, META.rows), total, mask=mask)
    norm = tl.load(layer + NORM)
    factor = tl.full((u.shape[0],), 1.0, total.dtype)
    if norm >= 0:
        factor = tl.load(net.vectors + norm + u, mask=live, other=0.0)
        shift = tl.load(net.vectors + norm + tl.load(layer + UNITS) + u, mask=live, other=0.0)
        total = total * factor[:, None] + shift[:, None]
    constant = tl.load(net.constants + index)
    code = tl.load(layer + ACTIVATION) if META.code < 0 else META.code
    if SLOPES:
        slopes = slope(code, constant, total) * factor[:, None]
        tl.store(work + places_of(tl.load(layer + SLOPE) + u, META.rows), slopes, mask=mask)
    tl.store(work + places_of(a0 + u, META.rows), activate(code, constant, total), mask=mask)
