"""A step to the category of the least waiting time, given its logarithm for each; or to its normal.

It is the largest logit less its logarithm. With the constant 1, parameters are logits, means and
log-scales, and the value is that category's normal with the noise after the waiting times.
"""

from __future__ import annotations

import math
from typing import Any

from made_flows.inverse.compiled.elementwise import scale
from made_flows.inverse.compiled.simd import like, line
from made_flows.inverse.compiled.translation import independent


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, noise, scratch, x = rows
    mixed = numbers[4] > 0.0
    classes = count // 3 if mixed else count
    value, best = line(work, x, lanes), line(work, scratch, lanes)
    total = line(work, scratch + 1, lanes)
    zero, least = like(value[0], 0.0), like(value[0], -math.inf)
    for j in independent(lanes):
        best[j] = least
        total[j] = zero
        value[j] = zero
    for k in range(classes):
        logit, wait = line(work, parameters + k, lanes), line(work, noise + k, lanes)
        category = like(value[0], k)
        for j in independent(lanes):
            score = logit[j] - wait[j]
            total[j] += logit[j]
            value[j] = category if score > best[j] else value[j]
            best[j] = max(best[j], score)
    if mixed:
        means, raw = (
            line(work, parameters + classes, lanes),
            line(work, parameters + 2 * classes, lanes),
        )
        for j in independent(lanes):
            k = int(value[j])
            value[j] = means[k * lanes + j]
            best[j] = raw[k * lanes + j]
        scale(int(numbers[1]), numbers[2], numbers[3], best)
        v = line(work, noise + classes, lanes)
        for j in independent(lanes):
            value[j] += best[j] * v[j]
    nothing = like(value[0], math.nan)
    for j in independent(lanes):
        value[j] = value[j] if total[j] - total[j] == zero else nothing
