"""A binary step: 1 where u < sigmoid(l), else 0, from the logit l."""

from __future__ import annotations

from typing import Any

from made_flows.inverse.compiled.elementwise import sigmoid, softplus
from made_flows.inverse.compiled.simd import like, line
from made_flows.inverse.compiled.translation import independent


def step(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, noise, _, x = rows
    logits, u, value = line(work, parameters, lanes), line(work, noise, lanes), line(work, x, lanes)
    one, zero = like(u[0], 1.0), like(u[0], 0.0)
    for j in independent(lanes):
        probability = sigmoid(logits[j])
        drawn = one if u[j] < probability else zero
        value[j] = drawn if probability == probability else probability  # NaN


def score(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, value, _, out = rows
    logits, known = line(work, parameters, lanes), line(work, value, lanes)
    density = line(work, out + 1, lanes)
    zero = like(known[0], 0.0)
    for j in independent(lanes):
        density[j] -= softplus(-logits[j] if known[j] > zero else logits[j])


def pull(work: Any, numbers: Any, rows: Any) -> None:
    """See :mod:`made_flows.inverse.compiled.steps`."""
    lanes, parameters, _, value, _, out = rows
    logits, known = line(work, parameters, lanes), line(work, value, lanes)
    image, density = line(work, out, lanes), line(work, out + 1, lanes)
    zero = like(known[0], 0.0)
    for j in independent(lanes):
        one = known[j] > zero
        rate = sigmoid(-logits[j] if one else logits[j])
        logits[j] = density[j] * (rate if one else -rate)
        image[j] = zero
