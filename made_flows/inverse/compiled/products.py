"""Products of weights and activations, in blocks that fit in the registers.

A block is a number of units times a number of vectors of lanes. For every input it loads each
vector of lanes once and each weight once, and multiplies all with all: the larger the block, the
fewer loads for a multiplication. Its sums must stay in registers, which bounds it; what is left
over at the end of a panel's units goes through smaller blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from made_flows.inverse.compiled.simd import ACCUMULATORS, VECTOR_BYTES, block_product, line

# Blocks of units and vectors whose sums fit in the registers.
_ONE_8 = block_product(8, 1)
_ONE_4 = block_product(4, 1)
_ONE_1 = block_product(1, 1)
_TWO_12 = block_product(ACCUMULATORS // 2, 2)
_TWO_8 = block_product(min(8, ACCUMULATORS // 2), 2)
_TWO_4 = block_product(4, 2)
_TWO_1 = block_product(1, 2)
_THREE_8 = block_product(ACCUMULATORS // 3, 3)
_THREE_4 = block_product(4, 3)
_THREE_1 = block_product(1, 3)
_FOUR_6 = block_product(ACCUMULATORS // 4, 4)
_FOUR_4 = block_product(min(4, ACCUMULATORS // 4), 4)
_FOUR_2 = block_product(2, 4)
_FOUR_1 = block_product(1, 4)
_WIDE_2, _WIDE_3, _WIDE_4 = ACCUMULATORS // 2, ACCUMULATORS // 3, ACCUMULATORS // 4
_HALF_2, _HALF_4 = min(8, ACCUMULATORS // 2), min(4, ACCUMULATORS // 4)


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
    vectors = lanes * line(work, 0, 1).itemsize // VECTOR_BYTES
    u = 0
    if vectors == 1:
        while n - u >= 8:
            _ONE_8(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 8
        while n - u >= 4:
            _ONE_4(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 4
        while n - u >= 1:
            _ONE_1(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 1
    elif vectors == 2:
        while n - u >= _WIDE_2:
            _TWO_12(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += _WIDE_2
        while n - u >= _HALF_2:
            _TWO_8(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += _HALF_2
        while n - u >= 4:
            _TWO_4(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 4
        while n - u >= 1:
            _TWO_1(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 1
    elif vectors == 3:
        while n - u >= _WIDE_3:
            _THREE_8(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += _WIDE_3
        while n - u >= 4:
            _THREE_4(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 4
        while n - u >= 1:
            _THREE_1(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 1
    else:
        while n - u >= _WIDE_4:
            _FOUR_6(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += _WIDE_4
        while n - u >= _HALF_4:
            _FOUR_4(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += _HALF_4
        while n - u >= 2:
            _FOUR_2(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 2
        while n - u >= 1:
            _FOUR_1(work, c0 + u * lanes, a0, weights, w0 + u, stride, lanes, count)
            u += 1
