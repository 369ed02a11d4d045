"""Products of weights and activations, in blocks that fit in the registers.

A block is a number of units times a number of vectors of lanes. For every input it loads each
vector of lanes once and each weight once, and multiplies all with all: the larger the block, the
fewer loads for a multiplication. Its sums must stay in registers, which bounds it; what is left
over at the end of a panel's units goes through smaller blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.simd import (
    ACCUMULATORS,
    VECTOR_BYTES,
    VECTORS,
    block_product,
    line,
    plus_product,
    unit_product,
)


def _blocks(*, transposed: bool) -> tuple[tuple[int, tuple[tuple[int, Any], ...]], ...]:
    """Return blocks by vectors, from the largest on, whose sums fit in the registers."""
    found = []
    units_by_vectors = ((8, 4, 1), (12, 8, 4, 1), (8, 4, 2, 1), (6, 4, 2, 1))[:VECTORS]
    for vectors, units in enumerate(units_by_vectors, 1):
        sizes = sorted({min(size, ACCUMULATORS // vectors) for size in units}, reverse=True)
        of = [(size, block_product(size, vectors, transposed=transposed)) for size in sizes]
        found.append((vectors, tuple(of)))
    return tuple(found)


_BLOCKS, _TRANSPOSED = _blocks(transposed=False), _blocks(transposed=True)
_WIDEST = 256
_OF_ONE_ROW = tuple((size, unit_product(size)) for size in (16, 32, 64, 128, _WIDEST))
"""Bytes of the weights of a block's units for one input, in place of vectors of lanes."""

SPARE = _WIDEST // 4
"""Numbers after weights, and after a workspace, that blocks of one row's units may read."""


class ProductRows(NamedTuple):
    """What is multiplied.

    Args:
        lanes: numbers in a row of the workspace.
        target, source: rows of the workspace, of sums and of inputs.
        block: where weights begin.
        stride: weights of one input, of which those of ``units`` units are used.
        inputs, units: how many.
    """

    lanes: int
    target: int
    source: int
    block: int
    stride: int
    inputs: int
    units: int


def add_product(work: Any, weights: Any, rows: Any) -> None:
    """Add to rows of a workspace, from ``target`` on, what rows from ``source`` on contribute.

    The block of weights holds, for one input after the other, those of ``stride`` units. Unit u
    grows by the sum over inputs k of weights[block + k * stride + u] times row source + k.
    """
    lanes, target, source, w0, stride, count, n = rows
    if count <= 0 or n <= 0:
        return
    c0, a0 = target * lanes, source * lanes
    itemsize = line(work, 0, 1).itemsize
    u = 0
    if lanes == 1:  # the units of a row are the lanes
        for block in _OF_ONE_ROW:
            width = block[0] // itemsize
            while n > u and (n - u <= width or block[0] == _WIDEST):
                block[1](work, c0 + u, a0, weights, w0 + u, stride, count, n - u)
                u += width
        return
    vectors = lanes * itemsize // VECTOR_BYTES
    for blocks in _BLOCKS:
        if vectors == blocks[0]:
            for block in blocks[1]:
                while n - u >= block[0]:
                    block[1](work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
                    u += block[0]


def add_transposed(work: Any, weights: Any, rows: Any) -> None:
    """Add what a block's units, read from ``source`` on, send back to its inputs.

    Here ``inputs`` of the rows are units of the block, of whose ``stride`` these are some, and
    ``units`` its inputs: input u grows by the sum over k of weights[block + u * stride + k] times
    row source + k.
    """
    lanes, target, source, w0, stride, count, n = rows
    if count <= 0 or n <= 0:
        return
    c0, a0 = target * lanes, source * lanes
    u = 0
    if lanes == 1:
        for i in range(n):
            total = work[c0 + i]
            for k in range(count):
                total = plus_product(total, weights[w0 + i * stride + k], work[a0 + k])
            work[c0 + i] = total
        return
    vectors = lanes * line(work, 0, 1).itemsize // VECTOR_BYTES
    for blocks in _TRANSPOSED:
        if vectors == blocks[0]:
            for block in blocks[1]:
                while n - u >= block[0]:
                    first = w0 + u * stride
                    block[1](work, c0 + u * lanes, a0, weights, first, stride, lanes, count)
                    u += block[0]
