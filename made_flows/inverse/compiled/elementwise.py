"""Exponentials and scale rules for the compiled inverse, lane by lane.

The C library's functions work on one number at a time. These are polynomials without branches,
so that LLVM works on a vector of lanes at once; they are accurate to a few units in the last
place (the tests hold every activation, scale rule and step against torch's). Methods: range
reduction by multiples of log 2 and a Taylor polynomial; the logarithm by its series in
(x - 1) / (x + 1).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from made_flows._llvm import SINGLE, emits
from made_flows.inverse.compiled.simd import (
    keep_apart,
    like,
    polynomial,
    split_mantissa,
    split_power,
)
from made_flows.inverse.compiled.translation import Writer

# Taylor's series of (exp(x) - 1 - x) / x^2, and those of artanh in the square of its argument.
_EXP_SINGLE = polynomial(*(1 / math.factorial(k) for k in range(7, 1, -1)))
_EXP_DOUBLE = polynomial(*(1 / math.factorial(k) for k in range(13, 1, -1)))
_LOG1P = polynomial(*(1 / k for k in range(37, 0, -2)))
_LOG = polynomial(*(1 / k for k in range(21, 1, -2)))

_F32_SHIFT = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer in the low bits
_F64_SHIFT = 6755399441055744.0  # 1.5 * 2^52


def _halves_single(x: Any) -> Any:
    # Past these limits the result is infinite or zero all the same; NaN stays NaN.
    y = np.float32(-105.0) if x < np.float32(-105.0) else x
    y = np.float32(90.0) if y > np.float32(90.0) else y
    shifted = y * np.float32(1.4426950408889634) + _F32_SHIFT
    whole = shifted - _F32_SHIFT
    r = y - whole * np.float32(0.693359375)
    r = r + whole * np.float32(2.12194440e-4)
    s, t = split_power(shifted)
    return _EXP_SINGLE(r) * r * r + r, s, t


def _halves_double(x: Any) -> Any:
    y = -750.0 if x < -750.0 else x
    y = 710.0 if y > 710.0 else y
    shifted = y * 1.4426950408889634 + _F64_SHIFT
    whole = shifted - _F64_SHIFT
    r = y - whole * 6.93145751953125e-1
    r = r - whole * 1.42860682030941723212e-6
    s, t = split_power(shifted)
    return _EXP_DOUBLE(r) * r * r + r, s, t


@emits
def _halves(w: Writer, x: Any) -> Any:
    """Split exp(x) into (p, s, t): exp(x) = (1 + p) * s * t, with s and t powers of two."""
    return w.call(_halves_single if x.type == SINGLE else _halves_double, (x,))


def exp(x: Any) -> Any:
    """Compute the exponential."""
    p, s, t = _halves(x)
    return (s + s * p) * t


def expm1(x: Any) -> Any:
    """Compute exp(x) - 1 without cancellation near zero, for x below 80."""
    p, s, t = _halves(x)
    power = s * t
    return p * power + (power - like(x, 1.0))


def tanh(x: Any) -> Any:
    """Compute the hyperbolic tangent."""
    size = abs(x)
    limit = like(x, 20.0)  # beyond it, one to rounding in either precision
    size = limit if size > limit else size
    e = expm1(-size - size)
    t = -e / (e + like(x, 2.0))
    return -t if x < like(x, 0.0) else t


def sigmoid(x: Any) -> Any:
    """Compute 1 / (1 + exp(-x))."""
    one = like(x, 1.0)
    return one / (one + exp(-x))


def log1p(t: Any) -> Any:
    """Compute log(1 + t) for t from 0 to 1: 2 artanh(t / (2 + t)) by its series."""
    s = t / (like(t, 2.0) + t)
    return like(t, 2.0) * s * _LOG1P(s * s)


def log(x: Any) -> Any:
    """Compute the logarithm; NaN of what is negative."""
    zero, tiny = like(x, 0.0), like(x, 2.0**-100)
    few = x < tiny  # so few that the exponent may be below its range: scaled up
    m, n = split_mantissa(x * like(x, 2.0**100) if few else x)
    n = n - like(x, 100.0) if few else n
    # m lies between the root of 1/2 and that of 2.
    s = (m - like(x, 1.0)) / (m + like(x, 1.0))
    square = s * s
    total = _LOG(square)
    # The upper part of log 2 has so few digits that its product with n is exact.
    result = n * like(x, 1.42860682030941723212e-6) + like(x, 2.0) * (s + s * square * total)
    result = result + n * like(x, 6.93145751953125e-1)
    result = x if x == like(x, math.inf) else result
    result = like(x, -math.inf) if x == zero else result
    return result if x >= zero else like(x, math.nan)


def softplus(x: Any) -> Any:
    """Compute log(1 + exp(x))."""
    zero = like(x, 0.0)
    return (x if x > zero else zero) + log1p(exp(-abs(x)))


def log_scale(rule: int, c0: float, c1: float, s: Any) -> None:
    """Replace raw values by the logarithms of their scales under a rule, in place."""
    keep_apart()
    a0, a1 = like(s[0], c0), like(s[0], c1)
    zero, one = like(s[0], 0.0), like(s[0], 1.0)
    if rule == 0:  # bounded
        for i in range(len(s)):
            s[i] = a0 * tanh(s[i] / a0)
    elif rule == 1:  # softsign
        for i in range(len(s)):
            s[i] = s[i] / (one + abs(s[i]) / a0)
    elif rule == 3:  # softplus
        low, limit = like(s[0], -40.0), like(s[0], 20.0)
        for i in range(len(s)):
            v = s[i] + a0
            # Far below zero softplus is exp, to the last digit; its log must not underflow.
            size = v if v > limit else softplus(low if v < low and a1 == zero else v)
            s[i] = v if v < low and a1 == zero else log(size + a1)
    elif rule == 4:  # sigmoid
        for i in range(len(s)):
            v = s[i] + a0
            s[i] = -softplus(-v) if a1 == zero else log(sigmoid(v) + a1)
    elif rule == 5:  # clamp
        for i in range(len(s)):
            v = s[i]
            v = a0 if v < a0 else v
            s[i] = a1 if v > a1 else v


def scale(rule: int, c0: float, c1: float, s: Any) -> None:
    """Replace raw values by their scales under a rule (of ``SCALE_RULES``), in place."""
    keep_apart()
    a0, a1 = like(s[0], c0), like(s[0], c1)
    if rule == 3:  # softplus
        limit = like(s[0], 20.0)  # as torch does: above it, the identity
        for i in range(len(s)):
            v = s[i] + a0
            s[i] = (v if v > limit else softplus(v)) + a1
    elif rule == 4:  # sigmoid
        for i in range(len(s)):
            s[i] = sigmoid(s[i] + a0) + a1
    else:
        log_scale(rule, c0, c1, s)
        for i in range(len(s)):
            s[i] = exp(s[i])


def log_scale_slope(rule: int, c0: float, c1: float, s: Any) -> None:
    """Replace raw values by the derivatives of :func:`log_scale` at them, in place."""
    keep_apart()
    a0, a1 = like(s[0], c0), like(s[0], c1)
    zero, one = like(s[0], 0.0), like(s[0], 1.0)
    if rule == 0:  # bounded
        for i in range(len(s)):
            t = tanh(s[i] / a0)
            s[i] = one - t * t
    elif rule == 1:  # softsign
        for i in range(len(s)):
            r = one / (one + abs(s[i]) / a0)
            s[i] = r * r
    elif rule == 3:  # softplus
        low, limit = like(s[0], -40.0), like(s[0], 20.0)
        for i in range(len(s)):
            v = s[i] + a0
            size = v if v > limit else softplus(low if v < low and a1 == zero else v)
            r = one if v > limit else sigmoid(v)
            s[i] = one if v < low and a1 == zero else r / (size + a1)
    elif rule == 4:  # sigmoid
        for i in range(len(s)):
            v = s[i] + a0
            below = sigmoid(-v)
            above = sigmoid(v)
            s[i] = below if a1 == zero else above * below / (above + a1)
    else:  # exp; clamp passes gradients through its limits
        for i in range(len(s)):
            s[i] = one
