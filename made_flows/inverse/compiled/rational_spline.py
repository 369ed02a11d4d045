"""The inverse of rational splines, compiled: the step of a spline takes a hundred torch operations.

Values alone are computed here, where no gradients are asked for; everything else is left to the
libraries' own functions. A spline of K bins on [left, left + width] has as parameters the logits
of K widths and K heights, unconstrained derivatives at knots, and for linear splines unconstrained
places within bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from made_flows._torch import as_rows, has_concrete_values

__all__ = ["EDGES", "SplineKernel", "invert"]

EDGES = {"fixed": 0, "given": 1, "circular": 2}
"""Derivatives at the two outer knots: a constant, parameters of their own, or one of the two."""


class SplineKernel(NamedTuple):
    """How the parameters of a rational spline become knots.

    Args:
        bins: number of bins K.
        left, width: the interval.
        tails: whether the map is the identity outside.
        linear: rational-linear (Dolatabadi et al. 2020), not rational-quadratic.
        divisor: what logits are divided by.
        bound: logits a become a / (1 + abs(a) / bound).
        min_width, min_height: smallest fractions of the interval.
        min_derivative: added to derivatives.
        derivative_bound: derivatives are exp(a / (1 + abs(a) / bound)) where it is positive,
            softplus(a) where it is zero.
        edges: see :data:`EDGES`.
        edge: the constant derivative at outer knots.
        min_place: smallest distance of a linear spline's inner point from the ends of a bin.
    """

    bins: int
    left: float
    width: float
    tails: bool
    linear: bool = False
    divisor: float = 1.0
    bound: float = math.inf
    min_width: float = 0.0
    min_height: float = 0.0
    min_derivative: float = 0.0
    derivative_bound: float = 0.0
    edges: int = 0
    edge: float = 1.0
    min_place: float = 0.0


def invert(spline: SplineKernel, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor] | None:
    """Values x with f(x) = y, and log dx/dy; None where the compiled function cannot say.

    Args:
        spline: the spline f.
        y: (...).
        parameters: (..., K), where y has as many entries.
    """
    if torch.is_grad_enabled() or y.device.type != "cpu" or not has_concrete_values(y):
        return None
    compiled = _compiled()
    if compiled is None or y.dtype not in (torch.float32, torch.float64):
        return None
    flat = as_rows(parameters, y.shape).contiguous()
    x = torch.empty_like(y, memory_format=torch.contiguous_format)
    log_derivative = torch.empty_like(x)
    inside = compiled(
        y.reshape(-1).numpy(),
        flat.numpy(),
        x.reshape(-1).numpy(),
        log_derivative.reshape(-1).numpy(),
        spline,
    )
    return (x, log_derivative) if inside or spline.tails else None


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., bool] | None:
    if find_spec("numba") is None:
        return None
    from numba import njit

    try:
        compiled: Callable[..., bool] = njit(nogil=True, error_model="numpy", cache=True)(_invert)
    except (RuntimeError, OSError):  # no folder for the cache
        compiled = njit(nogil=True, error_model="numpy")(_invert)
    return compiled


def _invert(y: Any, parameters: Any, x: Any, log_derivative: Any, spline: Any) -> bool:
    """Invert every value; whether all of them are in the interval."""
    bins = spline.bins
    all_inside = True
    weights = np.empty((2, bins))
    count = parameters.shape[1] - 2 * bins - (bins if spline.linear else 0)
    for i in range(len(y)):
        place = (y[i] - spline.left) / spline.width
        if not (place >= 0.0 and place <= 1.0):
            all_inside = False
            x[i], log_derivative[i] = y[i], 0.0
            continue
        # Widths and heights, as fractions of the interval.
        for part in range(2):
            highest, total = -np.inf, 0.0
            for k in range(bins):
                a = np.float64(parameters[i, part * bins + k]) / spline.divisor
                a = a / (1.0 + abs(a) / spline.bound)
                weights[part, k] = a
                highest = max(highest, a)
            for k in range(bins):
                weights[part, k] = math.exp(weights[part, k] - highest)
                total += weights[part, k]
            least = spline.min_height if part else spline.min_width
            for k in range(bins):
                weights[part, k] = least + (1.0 - least * bins) * weights[part, k] / total
        # The bin of the value, and where it begins.
        k, x0, y0 = 0, 0.0, 0.0
        while k < bins - 1 and place >= y0 + weights[1, k]:
            x0 += weights[0, k]
            y0 += weights[1, k]
            k += 1
        w, h = weights[0, k], weights[1, k]
        theta = min(max((place - y0) / h, 0.0), 1.0)
        slope = h / w
        ends = weights[:, 0]  # two numbers to hold derivatives; the widths are used up
        for end in range(2):
            knot = k + end
            outer = knot == 0 or knot == bins
            if spline.edges == 0:
                a = np.float64(parameters[i, 2 * bins + max(0, min(knot - 1, count - 1))])
            else:
                a = np.float64(parameters[i, 2 * bins + knot % count])
            if outer and spline.edges == 0:
                ends[end] = spline.edge
            elif spline.derivative_bound > 0.0:
                ends[end] = math.exp(a / (1.0 + abs(a) / spline.derivative_bound))
            else:
                softplus = max(a, 0.0) + math.log1p(math.exp(-abs(a)))
                ends[end] = spline.min_derivative + softplus
        start, end_ = ends[0], ends[1]
        if spline.linear:
            raw = np.float64(parameters[i, 2 * bins + count + k])
            inner = spline.min_place + (1.0 - 2.0 * spline.min_place) / (1.0 + math.exp(-raw))
            # Weights of the ends and of the inner point, whose height is middle (both within the
            # bin): Dolatabadi et al. 2020, section 3.
            last = math.sqrt(start / end_)
            inside = (inner * start + (1.0 - inner) * last * end_) / slope
            middle = inner * last / ((1.0 - inner) + inner * last)
            if theta <= middle:
                above, below = theta, inside * (middle - theta)
                xi = inner * above / (above + below)
                rate = inside * inner * middle
                denominator = (inner - xi) + inside * xi
            else:
                above, below = inside * (theta - middle), last * (1.0 - theta)
                xi = (above + inner * below) / (above + below)
                rate = last * inside * (1.0 - inner) * (1.0 - middle)
                denominator = inside * (1.0 - xi) + last * (xi - inner)
            log_slope = math.log(rate * slope) - 2.0 * math.log(denominator)
        else:
            # The root of Durkan et al. 2019, equations 6-8, with a discriminant that is a sum of
            # squares and without a difference of nearly equal numbers.
            difference = start * (1.0 - theta) - end_ * theta
            b = difference + 2.0 * slope * theta
            across = theta * (1.0 - theta)
            root = math.sqrt(difference * difference + 4.0 * slope * slope * across)
            if b >= 0.0:
                xi = 2.0 * slope * theta / (b + root)
            else:
                xi = (root - b) / (2.0 * (slope - b))
            xi = min(max(xi, 0.0), 1.0)
            rest = 1.0 - xi
            across = xi * rest
            above = end_ * xi * xi + 2.0 * slope * across + start * rest * rest
            below = slope * (1.0 - 2.0 * across) + (start + end_) * across
            log_slope = 2.0 * (math.log(slope) - math.log(below)) + math.log(above)
        x[i] = spline.left + spline.width * (x0 + w * xi)
        log_derivative[i] = -log_slope
    return all_inside
