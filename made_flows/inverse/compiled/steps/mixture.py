"""A step of a mixture: m_k + s(a_k) v, with k drawn by u; parameters logits, then m, then a."""

from __future__ import annotations

from typing import Any

from made_flows.inverse.compiled.elementwise import scale
from made_flows.inverse.compiled.steps import line
from made_flows.inverse.compiled.steps.categorical import choose


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
    components = count // 3
    choose(work, lanes, parameters, components, noise, scratch, x)
    v, value = line(work, noise + 1, lanes), line(work, x, lanes)
    s, m = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    means = line(work, parameters + components, lanes)
    raw = line(work, parameters + 2 * components, lanes)
    # Each lane takes the mean and the scale of its own component: one scale, not one for each.
    for j in range(lanes):
        k = int(value[j])
        m[j] = means[k * lanes + j]
        s[j] = raw[k * lanes + j]
    scale(int(numbers[1]), numbers[2], numbers[3], s)
    for j in range(lanes):
        value[j] = m[j] + s[j] * v[j]
