"""The kernel of the numeric phase: one layer's weights, sorted by degree, and its vectors.

It runs in every call and reads weights and masks as they are, so that nothing on the device is
believed to be what it was, and nothing has to be waited for. What the plan says of the masks it
proves: a unit that reads more than the plan knows of gets a bias that is not a number. It also
flags weights that are not finite, masked or not: nothing finite is to be drawn by them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Packed(NamedTuple):
    """Where the numbers of a layer go.

    Args:
        weights, biases, norms: sorted; norms after the biases.
        flags: a number for every program: zero, or NaN if it saw a weight, or a bias of a hidden
            unit, that is not finite.
    """

    weights: Any
    biases: Any
    norms: Any
    flags: Any


class Own(NamedTuple):
    """A layer's own tensors, None where it has none, their strides, and the network's ranks."""

    weight: Any
    weight_strides: tuple[int, ...]
    mask: Any
    mask_strides: tuple[int, ...]
    bias: Any
    norm_scale: Any
    norm_shift: Any
    ranks: Any


class Order(NamedTuple):
    """Where a layer's units and inputs stand, as the plan has it.

    Args:
        units: (count,), the network's unit at each place.
        limits: (count,), how many of the sorted inputs each may read.
        inputs: (every,), the network's input at each place; those after the first ``kept`` may be
            read by no unit.
        row_features, row_ranks: (count,), for outputs: their feature, and its rank.
    """

    units: Any
    limits: Any
    inputs: Any
    row_features: Any
    row_ranks: Any


@triton.jit
def copied(target, source, u, row, live):
    """Copy the entries of some units, in their sorted order."""
    tl.store(target + u, tl.load(source + row, mask=live, other=0.0), mask=live)


@triton.jit(do_not_specialize=["count", "kept", "every", "pitch"])
def pack_kernel(
    packed, own, order, count, kept, every, pitch, OUTPUT: tl.constexpr, VECTORS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write weights (count, pitch), zero where the mask is, and biases; a program takes some units.

    Args:
        packed, own, order: see above.
        VECTORS: whether there are any vectors: a direct connection has none, but adds to those of
            the outputs.
    """
    u = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = u < count
    row = tl.load(order.units + u, mask=live, other=0)
    limit = tl.load(order.limits + u, mask=live, other=0)
    wrong = tl.zeros((BLOCK,), tl.int32)
    poison = tl.zeros((BLOCK,), packed.weights.dtype.element_ty)
    if OUTPUT:
        feature = tl.load(order.row_features + u, mask=live, other=0)
        expected = tl.load(order.row_ranks + u, mask=live, other=0)
        wrong += (tl.load(own.ranks + feature, mask=live, other=0) != expected).to(tl.int32)
    for k0 in range(0, every, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        both = live[:, None] & (k < every)[None, :]
        column = tl.load(order.inputs + k, mask=k < every, other=0)
        steps = own.mask_strides
        place = row[:, None] * steps[0] + column[None, :] * steps[1]
        m = tl.load(own.mask + place, mask=both, other=0)
        steps = own.weight_strides
        place = row[:, None] * steps[0] + column[None, :] * steps[1]
        w = tl.load(own.weight + place, mask=both, other=0.0)
        poison += tl.sum(w * 0.0, axis=1)  # zero of everything that is finite
        present = m != 0
        known = k[None, :] < limit[:, None]
        wrong += tl.sum((present & (known == 0) & both).to(tl.int32), axis=1)
        # Where the mask is zero the weight is left out, not multiplied: it may be a NaN.
        w = tl.where(present & known, w * m.to(w.dtype), 0.0)
        tl.store(
            packed.weights + u[:, None] * pitch + k[None, :], w, mask=both & (k < kept)[None, :]
        )
    if VECTORS:
        b = tl.zeros((BLOCK,), packed.weights.dtype.element_ty)
        if own.bias is not None:
            b = tl.load(own.bias + row, mask=live, other=0.0)
        if not OUTPUT:
            poison += b * 0.0
        tl.store(packed.biases + u, tl.where(wrong > 0, float("nan"), b), mask=live)
    else:  # runs after the outputs, whose biases are there
        b = tl.load(packed.biases + u, mask=live, other=0.0)
        tl.debug_barrier()
        tl.store(packed.biases + u, tl.where(wrong > 0, float("nan"), b), mask=live)
    tl.store(packed.flags + tl.program_id(0), tl.sum(poison, axis=0))
    if own.norm_scale is not None:
        copied(packed.norms, own.norm_scale, u, row, live)
        copied(packed.norms + count, own.norm_shift, u, row, live)
