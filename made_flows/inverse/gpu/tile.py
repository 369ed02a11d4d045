"""What both sweeps do with a tile of rows: products, and the beginning and end of hidden units.

A program of the kernels takes a tile of rows, whose activations stand in a workspace of its own,
unit by unit, the rows of the tile side by side, as in the compiled sweep for CPUs; places in it,
and the table of layers, are those of :mod:`made_flows.inverse.compiled.layout`. Threads of a
program share the workspace: between a write and a read of it by others lies a barrier, which
callers set.
"""

from __future__ import annotations

import triton
import triton.language as tl

from made_flows.inverse.compiled import layout
from made_flows.inverse.gpu.elementwise import activate, slope

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


@triton.jit
def places_of(first, ROWS: tl.constexpr):
    """Return where the lanes of some rows of the workspace stand."""
    return first[:, None] * ROWS + tl.arange(0, ROWS)[None, :]


@triton.jit
def add_product(
    total,
    weights,
    unit_step,
    input_step,
    u,
    live,
    work,
    source,
    first,
    last,
    PRECISION: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
):
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
def of_context(context, first, u, live, at, rows):
    """Load the context's contributions to some units, (units, lanes)."""
    place = (first + u).to(tl.int64)[:, None] * rows + at[None, :]
    return tl.load(context + place, mask=live[:, None], other=0.0)


@triton.jit
def start_units(total, layer, u, live, vectors, context, at, context_rows):
    """Add to sums of some units their biases and the context's contributions."""
    bias = tl.load(vectors + tl.load(layer + BIAS) + u, mask=live, other=0.0)
    total += bias[:, None]
    base = tl.load(layer + BASE)
    if base >= 0:
        total += of_context(context, base, u, live, at, context_rows)
    return total


@triton.jit
def finish_units(
    total,
    layer,
    u,
    live,
    work,
    vectors,
    constant,
    streams,
    context,
    at,
    context_rows,
    CODE: tl.constexpr,
    SLOPES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Apply gate, residual, norm and activation to hidden units whose products are all in.

    ``CODE`` is the activation of all layers, -1 where they differ; ``SLOPES`` says whether
    derivatives of activations are wanted.
    """
    mask = live[:, None]
    gate = tl.load(layer + GATE)
    if gate >= 0:
        total *= of_context(context, gate, u, live, at, context_rows)
    stream = tl.load(layer + STREAM)
    if stream >= 0:
        place = tl.load(streams + tl.load(layer + STREAM_INDEX) + u, mask=live, other=0)
        total += tl.load(work + places_of(stream + place, ROWS), mask=mask, other=0.0)
    z0 = tl.load(layer + Z)
    a0 = tl.load(layer + A)
    if z0 != a0:  # another layer will add to this z, which must therefore stay
        tl.store(work + places_of(z0 + u, ROWS), total, mask=mask)
    norm = tl.load(layer + NORM)
    factor = tl.full((u.shape[0],), 1.0, total.dtype)
    if norm >= 0:
        factor = tl.load(vectors + norm + u, mask=live, other=0.0)
        shift = tl.load(vectors + norm + tl.load(layer + UNITS) + u, mask=live, other=0.0)
        total = total * factor[:, None] + shift[:, None]
    code = tl.load(layer + ACTIVATION) if CODE < 0 else CODE
    if SLOPES:
        slopes = slope(code, constant, total) * factor[:, None]
        tl.store(work + places_of(tl.load(layer + SLOPE) + u, ROWS), slopes, mask=mask)
    tl.store(work + places_of(a0 + u, ROWS), activate(code, constant, total), mask=mask)
