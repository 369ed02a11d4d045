"""One step: a feature's value from its noise and parameters."""

from __future__ import annotations

from typing import Any

from numba import njit

from made_flows.inverse.compiled.elementwise import exp as exponential
from made_flows.inverse.compiled.elementwise import scale, sigmoid
from made_flows.inverse.compiled.simd import keep_apart, like

__all__ = ["put_inputs", "take_step"]


@njit(nogil=True, error_model="numpy")
def take_step(
    kind: int,
    rule: int,
    c0: float,
    c1: float,
    swapped: bool,
    work: Any,
    parameters: int,
    count: int,
    noise: Any,
    scratch: int,
    lanes: int,
    x: Any,
) -> None:
    """Values x of one feature from its noise and parameters; see ``StepKernel`` for the kinds.

    ``noise`` holds the first part of the noise, then the second; ``parameters`` and ``scratch``
    are places in the workspace.
    """
    keep_apart()
    if kind <= 3:
        shift_row, raw_row = (1, 0) if swapped else (0, 1)
        shift = work[(parameters + shift_row) * lanes : (parameters + shift_row + 1) * lanes]
        raw = work[(parameters + raw_row) * lanes : (parameters + raw_row + 1) * lanes]
        s = work[scratch * lanes : (scratch + 1) * lanes]
        for j in range(lanes):
            s[j] = raw[j]
        scale(rule, c0, c1, s)
        one = like(s[0], 1.0)
        if kind == 0:
            for j in range(lanes):
                x[j] = shift[j] + s[j] * noise[j]
        elif kind == 1:
            for j in range(lanes):
                x[j] = (noise[j] - shift[j]) / s[j]
        elif kind == 2:
            for j in range(lanes):
                x[j] = s[j] * noise[j] + (one - s[j]) * shift[j]
        else:
            for j in range(lanes):
                x[j] = (noise[j] - (one - s[j]) * shift[j]) / s[j]
    elif kind == 4:
        logits = work[parameters * lanes : (parameters + 1) * lanes]
        one, zero = like(noise[0], 1.0), like(noise[0], 0.0)
        for j in range(lanes):
            x[j] = one if noise[j] < sigmoid(logits[j]) else zero
    else:
        classes = count if kind == 5 else count // 3
        choose(work, parameters, classes, noise, scratch, lanes, x)
        if kind == 6:
            s = work[scratch * lanes : (scratch + 1) * lanes]
            m = work[(scratch + 1) * lanes : (scratch + 2) * lanes]
            for j in range(lanes):
                k = int(x[j])
                m[j] = work[(parameters + classes + k) * lanes + j]
                s[j] = work[(parameters + 2 * classes + k) * lanes + j]
            scale(rule, c0, c1, s)
            for j in range(lanes):
                x[j] = m[j] + s[j] * noise[lanes + j]


@njit(nogil=True, error_model="numpy")
def choose(
    work: Any, parameters: int, classes: int, uniform: Any, scratch: int, lanes: int, x: Any
) -> None:
    """The class in whose part of the cumulative distribution a uniform number falls."""
    keep_apart()
    highest = work[scratch * lanes : (scratch + 1) * lanes]
    threshold = work[(scratch + 1) * lanes : (scratch + 2) * lanes]
    first = work[parameters * lanes : (parameters + 1) * lanes]
    zero, one = like(uniform[0], 0.0), like(uniform[0], 1.0)
    for j in range(lanes):
        highest[j] = first[j]
        threshold[j] = zero
        x[j] = zero
    for k in range(1, classes):
        logits = work[(parameters + k) * lanes : (parameters + k + 1) * lanes]
        for j in range(lanes):
            highest[j] = max(highest[j], logits[j])
    for k in range(classes):
        logits = work[(parameters + k) * lanes : (parameters + k + 1) * lanes]
        for j in range(lanes):
            threshold[j] += exponential(logits[j] - highest[j])
    sums = work[(scratch + 2) * lanes : (scratch + 3) * lanes]
    for j in range(lanes):
        threshold[j] *= uniform[j]
        sums[j] = zero
    # The last class takes what is left, so that rounding cannot lead past it.
    for k in range(classes - 1):
        logits = work[(parameters + k) * lanes : (parameters + k + 1) * lanes]
        for j in range(lanes):
            sums[j] += exponential(logits[j] - highest[j])
            x[j] += one if threshold[j] >= sums[j] else zero


@njit(nogil=True, error_model="numpy")
def put_inputs(work: Any, first: int, last: int, lanes: int, x: Any, one_hot: int) -> None:
    """What the network reads for a feature's values: the values, or one-hot columns."""
    keep_apart()
    if one_hot == 0:
        line = work[first * lanes : (first + 1) * lanes]
        for j in range(lanes):
            line[j] = x[j]
        return
    one, zero = like(x[0], 1.0), like(x[0], 0.0)
    for c in range(first, last):
        line = work[c * lanes : (c + 1) * lanes]
        category = like(x[0], c - first)
        for j in range(lanes):
            line[j] = one if x[j] == category else zero
