"""A step to a category: the one in whose part of the cumulative distribution u falls."""

from __future__ import annotations

from typing import Any

from numba import njit

from made_flows.inverse.compiled.elementwise import exp
from made_flows.inverse.compiled.simd import keep_apart, like
from made_flows.inverse.compiled.steps import line


def step(
    work: Any,
    numbers: Any,
    lanes: int,
    parameters: int,
    count: int,
    noise: int,
    scratch: int,
    x: int,
) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    choose(work, lanes, parameters, count, noise, scratch, x)


@njit(nogil=True, error_model="numpy")
def choose(
    work: Any, lanes: int, parameters: int, classes: int, noise: int, scratch: int, x: int
) -> None:
    """Return the class in whose part of the cumulative distribution a uniform number falls.

    The logits become their exponentials, which are computed once. Rows of the scratch space
    from ``scratch + 2`` on are left alone.
    """
    keep_apart()
    uniform, value = line(work, noise, lanes), line(work, x, lanes)
    highest, threshold = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    first = line(work, parameters, lanes)
    zero, one = like(uniform[0], 0.0), like(uniform[0], 1.0)
    for j in range(lanes):
        highest[j] = first[j]
        threshold[j] = zero
        value[j] = zero
    for k in range(1, classes):
        logits = line(work, parameters + k, lanes)
        for j in range(lanes):
            highest[j] = max(highest[j], logits[j])
    for k in range(classes):
        weights = line(work, parameters + k, lanes)
        for j in range(lanes):
            weights[j] = exp(weights[j] - highest[j])
            threshold[j] += weights[j]
    sums = highest  # the highest logits are not needed any more
    for j in range(lanes):
        threshold[j] *= uniform[j]
        sums[j] = zero
    # The last class takes what is left, so that rounding cannot lead past it.
    for k in range(classes - 1):
        weights = line(work, parameters + k, lanes)
        for j in range(lanes):
            sums[j] += weights[j]
            value[j] += one if threshold[j] >= sums[j] else zero
