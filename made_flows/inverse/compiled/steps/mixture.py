"""A step of a mixture: m_k + s(a_k) v, with k drawn by u; parameters logits, then m, then a."""

from __future__ import annotations

import math
from typing import Any

from made_flows.inverse.compiled.elementwise import exp, log_scale, log_scale_slope, scale
from made_flows.inverse.compiled.simd import like, line
from made_flows.inverse.compiled.steps.categorical import choose, log_sum
from made_flows.inverse.compiled.translation import independent


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, noise, scratch, x = rows
    components = count // 3
    choose(work, lanes, parameters, components, noise, scratch, x)
    v, value = line(work, noise + 1, lanes), line(work, x, lanes)
    s, m = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    means = line(work, parameters + components, lanes)
    raw = line(work, parameters + 2 * components, lanes)
    # Each lane takes the mean and the scale of its own component: one scale, not one for each.
    for j in independent(lanes):
        k = max(int(value[j]), 0)
        m[j] = means[k * lanes + j]
        s[j] = raw[k * lanes + j]
    scale(int(numbers[1]), numbers[2], numbers[3], s)
    zero, nothing = like(v[0], 0.0), like(v[0], math.nan)
    for j in independent(lanes):
        value[j] = m[j] + s[j] * v[j] if value[j] >= zero else nothing


def score(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, value, scratch, out = rows
    components = count // 3
    known, density = line(work, value, lanes), line(work, out + 1, lanes)
    weighted, weights = line(work, scratch, lanes), line(work, scratch + 2, lanes)
    normal = like(known[0], 0.5 * math.log(2 * math.pi))
    log_sum(work, lanes, parameters, components, scratch + 2)
    for k in range(components):
        logit, mean, log_s = component(work, lanes, parameters, components, k)
        log_scale(int(numbers[1]), numbers[2], numbers[3], log_s)
        for j in independent(lanes):
            _, logit[j] = joint(known[j], logit[j], mean[j], log_s[j])
    log_sum(work, lanes, parameters, components, scratch)
    for j in independent(lanes):
        density[j] += weighted[j] - weights[j] - normal


def component(work: Any, lanes: int, parameters: int, components: int, k: int) -> Any:
    """Return a component's logits, means and raw scales."""
    first = parameters + k
    return (
        line(work, first, lanes),
        line(work, first + components, lanes),
        line(work, first + 2 * components, lanes),
    )


def joint(known: Any, logit: Any, mean: Any, log_s: Any) -> Any:
    """Return z, and the logarithm of what a component adds to the density, but for constants."""
    z = (known - mean) * exp(-log_s)
    return z, logit - (like(z, 0.5) * z * z + log_s)


def log_scales(numbers: Any, raw: Any, log_s: Any) -> None:
    """Write the logarithms of scales, whose raw values stay as they are."""
    for j in independent(len(raw)):
        log_s[j] = raw[j]
    log_scale(int(numbers[1]), numbers[2], numbers[3], log_s)


def pull(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, count, value, scratch, out = rows
    components = count // 3
    known, image = line(work, value, lanes), line(work, out, lanes)
    density, log_s = line(work, out + 1, lanes), line(work, out + 2, lanes)
    highest, weighted = line(work, scratch, lanes), line(work, scratch + 1, lanes)
    weights, one = line(work, scratch + 2, lanes), like(known[0], 1.0)
    zero = like(known[0], 0.0)
    log_sum(work, lanes, parameters, components, scratch + 2)
    # The sum over components of what is not normalized yet, as weighted * exp(highest).
    for j in independent(lanes):
        highest[j] = like(one, -math.inf)
        weighted[j] = zero
        image[j] = zero
    for k in range(components):
        logit, mean, raw = component(work, lanes, parameters, components, k)
        log_scales(numbers, raw, log_s)
        for j in independent(lanes):
            _, each = joint(known[j], logit[j], mean[j], log_s[j])
            top = max(highest[j], each)
            finite = zero if top == like(one, -math.inf) else top
            weighted[j] = weighted[j] * exp(highest[j] - finite) + exp(each - finite)
            highest[j] = top
    for k in range(components):
        logit, mean, raw = component(work, lanes, parameters, components, k)
        log_scales(numbers, raw, log_s)
        log_scale_slope(int(numbers[1]), numbers[2], numbers[3], raw)
        for j in independent(lanes):
            z, each = joint(known[j], logit[j], mean[j], log_s[j])
            part = density[j] * exp(each - highest[j]) / weighted[j]
            logit[j] = part - density[j] * exp(logit[j] - weights[j])
            mean[j] = part * z * exp(-log_s[j])
            image[j] -= mean[j]
            raw[j] *= part * (z * z - one)
