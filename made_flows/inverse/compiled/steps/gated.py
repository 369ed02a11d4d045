"""A gated step, x = s(a) u + (1 - s(a)) m, or its inverse, from the parameters m and a."""

from __future__ import annotations

from typing import Any

from made_flows.inverse.compiled.elementwise import exp, log_scale, log_scale_slope, scale
from made_flows.inverse.compiled.simd import like, line
from made_flows.inverse.compiled.translation import independent


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, noise, _, x = rows
    target, s = line(work, parameters, lanes), line(work, parameters + 1, lanes)
    u, value = line(work, noise, lanes), line(work, x, lanes)
    one = like(s[0], 1.0)
    scale(int(numbers[1]), numbers[2], numbers[3], s)
    if numbers[0] == 0.0:
        for j in independent(lanes):
            value[j] = s[j] * u[j] + (one - s[j]) * target[j]
    else:
        for j in independent(lanes):
            value[j] = (u[j] - (one - s[j]) * target[j]) / s[j]


def score(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, value, _, out = rows
    target, log_s = line(work, parameters, lanes), line(work, parameters + 1, lanes)
    known, image = line(work, value, lanes), line(work, out, lanes)
    density = line(work, out + 1, lanes)
    one = like(log_s[0], 1.0)
    log_scale(int(numbers[1]), numbers[2], numbers[3], log_s)
    inverse = numbers[0] != 0.0
    for j in independent(lanes):
        s = exp(log_s[j])
        rest = (one - s) * target[j]
        image[j] = (known[j] - rest) / s if inverse else s * known[j] + rest
        density[j] += -log_s[j] if inverse else log_s[j]


def pull(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, value, scratch, out = rows
    target, log_s = line(work, parameters, lanes), line(work, parameters + 1, lanes)
    known, image = line(work, value, lanes), line(work, out, lanes)
    density, slope = line(work, out + 1, lanes), line(work, scratch, lanes)
    one = like(log_s[0], 1.0)
    for j in independent(lanes):
        slope[j] = log_s[j]
    log_scale(int(numbers[1]), numbers[2], numbers[3], log_s)
    log_scale_slope(int(numbers[1]), numbers[2], numbers[3], slope)
    sign = -one if numbers[0] != 0.0 else one
    for j in independent(lanes):
        rate = exp(sign * log_s[j])
        of_image, distance = image[j], known[j] - target[j]
        image[j] = of_image * rate
        target[j] = of_image * (one - rate)
        log_s[j] = sign * slope[j] * (image[j] * distance + density[j])
