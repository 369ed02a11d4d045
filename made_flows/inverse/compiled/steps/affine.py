"""An affine step, x = g m + s(g a) u, or its inverse, from the parameters m and a.

Constants: the gain g, and whether the parameters come as (a, m).
"""

from __future__ import annotations

from typing import Any

from made_flows.inverse.compiled.elementwise import scale
from made_flows.inverse.compiled.simd import like
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
    swapped = numbers[5] != 0.0
    shift = line(work, parameters + 1 if swapped else parameters, lanes)
    s = line(work, parameters if swapped else parameters + 1, lanes)
    u, value = line(work, noise, lanes), line(work, x, lanes)
    gain = like(s[0], numbers[4])
    for j in range(lanes):
        s[j] *= gain
        shift[j] *= gain
    scale(int(numbers[1]), numbers[2], numbers[3], s)
    if numbers[0] == 0.0:
        for j in range(lanes):
            value[j] = shift[j] + s[j] * u[j]
    else:
        for j in range(lanes):
            value[j] = (u[j] - shift[j]) / s[j]
