"""An affine step, x = g m + s(g a) u, or its inverse, from the parameters m and a.

Constants: the gain g, and whether the parameters come as (a, m).
"""

from __future__ import annotations

import math
from typing import Any

from made_flows.inverse.compiled.elementwise import exp, log_scale, log_scale_slope, scale
from made_flows.inverse.compiled.simd import like, line
from made_flows.inverse.compiled.translation import independent
from made_flows.univariate.step_kernel import HEAD


def parameter_lines(work: Any, numbers: Any, lanes: int, parameters: int) -> Any:
    """Return g m and g a, which take the place of the parameters."""
    swapped = numbers[5] != 0.0
    shift = line(work, parameters + 1 if swapped else parameters, lanes)
    raw = line(work, parameters if swapped else parameters + 1, lanes)
    gain = like(raw[0], numbers[4])
    for j in independent(lanes):
        raw[j] *= gain
        shift[j] *= gain
    return shift, raw


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, noise, _, x = rows
    shift, s = parameter_lines(work, numbers, lanes, parameters)
    u, value = line(work, noise, lanes), line(work, x, lanes)
    scale(int(numbers[1]), numbers[2], numbers[3], s)
    if numbers[0] == 0.0:
        for j in independent(lanes):
            value[j] = shift[j] + s[j] * u[j]
    else:
        for j in independent(lanes):
            value[j] = (u[j] - shift[j]) / s[j]


def score(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, value, _, out = rows
    shift, log_s = parameter_lines(work, numbers, lanes, parameters)
    known, image = line(work, value, lanes), line(work, out, lanes)
    density = line(work, out + 1, lanes)
    log_scale(int(numbers[1]), numbers[2], numbers[3], log_s)
    if numbers[0] == 0.0:
        for j in independent(lanes):
            image[j] = shift[j] + exp(log_s[j]) * known[j]
            density[j] += log_s[j]
        return
    half, normal = like(log_s[0], 0.5), like(log_s[0], 0.5 * math.log(2 * math.pi))
    head = numbers[0] == HEAD
    for j in independent(lanes):
        z = (known[j] - shift[j]) * exp(-log_s[j])
        image[j] = z
        density[j] -= log_s[j] + (half * z * z + normal) if head else log_s[j]


def pull(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, value, scratch, out = rows
    shift, log_s = parameter_lines(work, numbers, lanes, parameters)
    known, image = line(work, value, lanes), line(work, out, lanes)
    density, slope = line(work, out + 1, lanes), line(work, scratch, lanes)
    gain, zero = like(log_s[0], numbers[4]), like(log_s[0], 0.0)
    for j in independent(lanes):
        slope[j] = log_s[j]
    log_scale(int(numbers[1]), numbers[2], numbers[3], log_s)
    log_scale_slope(int(numbers[1]), numbers[2], numbers[3], slope)
    if numbers[0] == 0.0:
        for j in independent(lanes):
            shift[j] = gain * image[j]
            image[j] *= exp(log_s[j])
            log_s[j] = gain * slope[j] * (image[j] * known[j] + density[j])
        return
    head = numbers[0] == HEAD
    for j in independent(lanes):
        rate = exp(-log_s[j])
        z = (known[j] - shift[j]) * rate
        of_z = image[j] - (density[j] * z if head else zero)
        image[j] = of_z * rate
        shift[j] = -gain * image[j]
        log_s[j] = -gain * slope[j] * (of_z * z + density[j])
