"""Activations of the compiled inverse, and their derivatives, each compiled by itself.

Each is a function of a number and the activation's constant. Kernels work in place, since LLVM
would have to check that two arrays do not overlap; a network has those compiled that it needs, and
no other.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from made_flows.inverse.compiled.elementwise import exp, expm1, sigmoid, softplus, tanh
from made_flows.inverse.compiled.layout import ACTIVATION_CODES
from made_flows.inverse.compiled.simd import like, line, lines


class ActivationRows(NamedTuple):
    """What an activation is applied to.

    Args:
        lanes: numbers in a row of the workspace.
        first, last: the rows.
        constant: where its constant stands.
    """

    lanes: int
    first: int
    last: int
    constant: int


@lru_cache(maxsize=64)
def over_rows(function: Any) -> Any:
    """Make a kernel that replaces every number of some rows by a function of it and a constant."""

    def kernel(work: Any, constants: Any, rows: Any) -> None:
        lanes, first, last, constant = rows
        z = lines(work, first, last, lanes)
        c = like(z[0], line(constants, constant, 1)[0])
        for i in range(len(z)):
            z[i] = function(z[i], c)

    kernel.__name__ = function.__name__
    return kernel


def slope_of_identity(z: Any, c: Any) -> Any:
    """Compute the derivative of identity."""
    return like(z, 1.0)


def apply_relu(z: Any, c: Any) -> Any:
    """Compute max(z, 0)."""
    zero = like(z, 0.0)
    return zero if z < zero else z


def slope_of_relu(z: Any, c: Any) -> Any:
    """Compute the derivative of relu."""
    zero, one = like(z, 0.0), like(z, 1.0)
    return one if z > zero else zero


def apply_leaky_relu(z: Any, c: Any) -> Any:
    """Compute z, or c z where that is negative."""
    return c * z if z < like(z, 0.0) else z


def slope_of_leaky_relu(z: Any, c: Any) -> Any:
    """Compute the derivative of leaky_relu."""
    one = like(z, 1.0)
    return one if z > like(z, 0.0) else c


def apply_elu(z: Any, c: Any) -> Any:
    """Compute z, or c (exp(z) - 1) where that is negative."""
    return z if z > like(z, 0.0) else c * expm1(z)


def slope_of_elu(z: Any, c: Any) -> Any:
    """Compute the derivative of elu."""
    return like(z, 1.0) if z > like(z, 0.0) else c * exp(z)


def apply_tanh(z: Any, c: Any) -> Any:
    """Compute the hyperbolic tangent."""
    return tanh(z)


def slope_of_tanh(z: Any, c: Any) -> Any:
    """Compute the derivative of tanh."""
    t = tanh(z)
    return like(z, 1.0) - t * t


def apply_sigmoid(z: Any, c: Any) -> Any:
    """Compute 1 / (1 + exp(-z))."""
    return sigmoid(z)


def slope_of_sigmoid(z: Any, c: Any) -> Any:
    """Compute the derivative of sigmoid."""
    s = sigmoid(z)
    return s * (like(z, 1.0) - s)


def apply_silu(z: Any, c: Any) -> Any:
    """Compute z / (1 + exp(-z))."""
    return z * sigmoid(z)


def slope_of_silu(z: Any, c: Any) -> Any:
    """Compute the derivative of silu."""
    s, one = sigmoid(z), like(z, 1.0)
    return s * (one + z * (one - s))


def apply_softplus(z: Any, c: Any) -> Any:
    """Compute log(1 + exp(c z)) / c; as torch does, the identity where c z is above 20."""
    v = z * c
    return z if v > like(c, 20.0) else softplus(v) / c


def slope_of_softplus(z: Any, c: Any) -> Any:
    """Compute the derivative of softplus."""
    v = z * c
    return like(z, 1.0) if v > like(c, 20.0) else sigmoid(v)


def apply_gelu(z: Any, c: Any) -> Any:
    """Compute z times the normal distribution function."""
    half, root = like(c, 0.5), like(c, math.sqrt(0.5))
    return half * z * (like(z, 1.0) + like(z, math.erf(z * root)))


def slope_of_gelu(z: Any, c: Any) -> Any:
    """Compute the derivative of gelu."""
    half, root = like(c, 0.5), like(c, math.sqrt(0.5))
    density = like(c, 1 / math.sqrt(2 * math.pi))
    below = half * (like(z, 1.0) + like(z, math.erf(z * root)))
    return below + z * density * exp(-half * z * z)


_NAMES = {code: name for name, code in ACTIVATION_CODES.items()}


def function_of(code: int, *, slope: bool) -> Any:
    """Return the kernel of an activation, or its derivative's; None for what changes nothing."""
    function = globals().get(f"{'slope_of' if slope else 'apply'}_{_NAMES[code]}")
    return None if function is None else over_rows(function)
