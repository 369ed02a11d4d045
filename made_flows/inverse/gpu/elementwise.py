"""Activations, their derivatives and scale rules for the kernels, in operations of Triton.

They follow torch: its limits, and its treatment of NaN. Triton has no ``tanh``, ``expm1`` and
``log1p`` that its interpreter could run too, so that they are made of exponentials and series here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from made_flows.inverse.compiled.layout import ACTIVATION_CODES
from made_flows.univariate.scales import SCALE_RULES

RELU = tl.constexpr(ACTIVATION_CODES["relu"])
LEAKY_RELU = tl.constexpr(ACTIVATION_CODES["leaky_relu"])
ELU = tl.constexpr(ACTIVATION_CODES["elu"])
TANH = tl.constexpr(ACTIVATION_CODES["tanh"])
SIGMOID = tl.constexpr(ACTIVATION_CODES["sigmoid"])
SILU = tl.constexpr(ACTIVATION_CODES["silu"])
SOFTPLUS = tl.constexpr(ACTIVATION_CODES["softplus"])
GELU = tl.constexpr(ACTIVATION_CODES["gelu"])

BOUNDED = tl.constexpr(SCALE_RULES.index("bounded"))
SOFTSIGN = tl.constexpr(SCALE_RULES.index("softsign"))
EXP = tl.constexpr(SCALE_RULES.index("exp"))
OF_SOFTPLUS = tl.constexpr(SCALE_RULES.index("softplus"))
OF_SIGMOID = tl.constexpr(SCALE_RULES.index("sigmoid"))

ROOT_HALF = tl.constexpr(0.5**0.5)
NORMAL = tl.constexpr(0.3989422804014327)  # density of the normal distribution at zero


@triton.jit
def expm1(x):
    """Compute exp(x) - 1; near zero by its Taylor series, where the difference would cancel."""
    series = 1.0 + x * (1.0 / 18)
    for k in tl.static_range(17, 1, -1):
        series = 1.0 + series * x * (1.0 / k)
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """Compute the hyperbolic tangent."""
    e = expm1(-2.0 * tl.abs(x))
    t = -e / (e + 2.0)
    return tl.where(x < 0.0, -t, t)


@triton.jit
def sigmoid(x):
    """Compute 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """Compute log(1 + exp(x)), the logarithm by the series of 2 artanh(t / (2 + t))."""
    t = tl.exp(-tl.abs(x))
    s = t / (2.0 + t)
    square = s * s
    series = square * (1.0 / 37) + 1.0 / 35
    for k in tl.static_range(33, 0, -2):
        series = series * square + 1.0 / k
    return tl.where(x > 0.0, x, tl.where(x <= 0.0, 0.0, x)) + 2.0 * s * series


@triton.jit
def activate(code, constant, z):
    """Apply an activation."""
    if code == RELU:
        z = tl.where(z < 0.0, 0.0, z)
    elif code == LEAKY_RELU:
        z = tl.where(z < 0.0, constant * z, z)
    elif code == ELU:
        z = tl.where(z > 0.0, z, constant * expm1(z))
    elif code == TANH:
        z = tanh(z)
    elif code == SIGMOID:
        z = sigmoid(z)
    elif code == SILU:
        z = z * sigmoid(z)
    elif code == SOFTPLUS:
        v = z * constant
        z = tl.where(v > 20.0, z, softplus(v) / constant)
    elif code == GELU:
        z = 0.5 * z * (1.0 + tl.erf(z * ROOT_HALF))
    return z


@triton.jit
def slope(code, constant, z):
    """Return the derivative of an activation."""
    d = z * 0.0 + 1.0
    if code == RELU:
        d = tl.where(z > 0.0, 1.0, 0.0).to(z.dtype)
    elif code == LEAKY_RELU:
        d = tl.where(z > 0.0, d, d * constant)
    elif code == ELU:
        d = tl.where(z > 0.0, d, constant * tl.exp(z))
    elif code == TANH:
        t = tanh(z)
        d = 1.0 - t * t
    elif code == SIGMOID:
        s = sigmoid(z)
        d = s * (1.0 - s)
    elif code == SILU:
        s = sigmoid(z)
        d = s * (1.0 + z * (1.0 - s))
    elif code == SOFTPLUS:
        v = z * constant
        d = tl.where(v > 20.0, d, sigmoid(v))
    elif code == GELU:
        d = 0.5 * (1.0 + tl.erf(z * ROOT_HALF)) + z * NORMAL * tl.exp(-0.5 * z * z)
    return d


@triton.jit
def scale(rule: tl.constexpr, c0: tl.constexpr, c1: tl.constexpr, raw):
    """Return the scales of raw values under a rule of ``SCALE_RULES``."""
    if rule == BOUNDED:
        s = tl.exp(c0 * tanh(raw / c0))
    elif rule == SOFTSIGN:
        s = tl.exp(raw / (1.0 + tl.abs(raw) / c0))
    elif rule == EXP:
        s = tl.exp(raw)
    elif rule == OF_SOFTPLUS:
        v = raw + c0
        s = tl.where(v > 20.0, v, softplus(v)) + c1
    elif rule == OF_SIGMOID:
        s = sigmoid(raw + c0) + c1
    else:  # clamp
        s = tl.exp(tl.where(raw < c0, c0, tl.where(raw > c1, c1, raw)))
    return s
