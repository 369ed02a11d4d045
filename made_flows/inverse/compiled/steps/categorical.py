"""A step to a category: the one in whose part of the cumulative distribution u falls."""

from __future__ import annotations

import math
from typing import Any

from made_flows.inverse.compiled.elementwise import exp, log
from made_flows.inverse.compiled.simd import keep_apart, like, line
from made_flows.inverse.compiled.translation import independent


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, noise, scratch, x = rows
    choose(work, lanes, parameters, count, noise, scratch, x)


def choose(
    work: Any, lanes: int, parameters: int, classes: int, noise: int, scratch: int, x: int
) -> None:
    """Return the class in whose part of the cumulative distribution a uniform number falls.

    It is -1 where logits are NaN, or infinite.

    The logits become their exponentials, which are computed once. Rows of the scratch space
    from ``scratch + 2`` on are left alone.
    """
    keep_apart()
    uniform, value = line(work, noise, lanes), line(work, x, lanes)
    highest, threshold = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    first = line(work, parameters, lanes)
    zero, one = like(uniform[0], 0.0), like(uniform[0], 1.0)
    for j in independent(lanes):
        highest[j] = first[j]
        threshold[j] = zero
        value[j] = zero
    for k in range(1, classes):
        logits = line(work, parameters + k, lanes)
        for j in independent(lanes):
            highest[j] = max(highest[j], logits[j])
    for k in range(classes):
        weights = line(work, parameters + k, lanes)
        for j in independent(lanes):
            weights[j] = exp(weights[j] - highest[j])
            threshold[j] += weights[j]
    sums = highest  # the highest logits are not needed any more
    for j in independent(lanes):
        threshold[j] *= uniform[j]
        sums[j] = zero
    # The last class takes what is left, so that rounding cannot lead past it.
    for k in range(classes - 1):
        weights = line(work, parameters + k, lanes)
        for j in independent(lanes):
            sums[j] += weights[j]
            value[j] += one if threshold[j] >= sums[j] else zero
    for j in independent(lanes):
        value[j] = value[j] if threshold[j] == threshold[j] else -one


def score(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, value, scratch, out = rows
    known, density = line(work, value, lanes), line(work, out + 1, lanes)
    chosen, total = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    for j in independent(lanes):
        chosen[j] = like(known[0], math.nan)  # of what is no category
    for k in range(count):
        logits = line(work, parameters + k, lanes)
        category = like(known[0], k)
        for j in independent(lanes):
            chosen[j] = logits[j] if known[j] == category else chosen[j]
    log_sum(work, lanes, parameters, count, scratch + 1)
    for j in independent(lanes):
        density[j] += chosen[j] - total[j]


def pull(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, value, scratch, out = rows
    known, density = line(work, value, lanes), line(work, out + 1, lanes)
    image, total = line(work, out, lanes), line(work, scratch, lanes)
    zero, one = like(known[0], 0.0), like(known[0], 1.0)
    log_sum(work, lanes, parameters, count, scratch)
    for k in range(count):
        logits = line(work, parameters + k, lanes)
        category = like(known[0], k)
        for j in independent(lanes):
            chosen = one if known[j] == category else zero
            logits[j] = density[j] * (chosen - exp(logits[j] - total[j]))
    for j in independent(lanes):
        image[j] = zero


def log_sum(work: Any, lanes: int, first: int, count: int, out: int) -> None:
    """Write the logarithm of the sum of exponentials of some rows; the row after it is used."""
    keep_apart()
    total, highest = line(work, out, lanes), line(work, out + 1, lanes)
    zero, least = like(total[0], 0.0), like(total[0], -math.inf)
    for j in independent(lanes):
        highest[j] = least
        total[j] = zero
    for k in range(count):
        row = line(work, first + k, lanes)
        for j in independent(lanes):
            highest[j] = max(highest[j], row[j])
    for j in independent(lanes):
        highest[j] = zero if highest[j] == least else highest[j]
    for k in range(count):
        row = line(work, first + k, lanes)
        for j in independent(lanes):
            total[j] += exp(row[j] - highest[j])
    for j in independent(lanes):
        total[j] = highest[j] + log(total[j])
