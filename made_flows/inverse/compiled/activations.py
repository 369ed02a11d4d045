"""Activations of the compiled inverse, and their derivatives, each compiled by itself.

Every function works in place, since LLVM would have to check that two arrays do not overlap; a
network has those compiled that it needs, and no other.
"""

from __future__ import annotations

import math
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


def operands(work: Any, constants: Any, rows: Any) -> Any:
    """Return the values, the constant, zero and one."""
    lanes, first, last, constant = rows
    z = lines(work, first, last, lanes)
    return z, like(z[0], line(constants, constant, 1)[0]), like(z[0], 0.0), like(z[0], 1.0)


def slope_of_identity(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of identity."""
    z, _, _, one = operands(work, constants, rows)
    for i in range(len(z)):
        z[i] = one


def apply_relu(work: Any, constants: Any, rows: Any) -> None:
    """Compute max(z, 0)."""
    z, _, zero, _ = operands(work, constants, rows)
    for i in range(len(z)):
        v = z[i]
        z[i] = zero if v < zero else v


def slope_of_relu(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of relu."""
    z, _, zero, one = operands(work, constants, rows)
    for i in range(len(z)):
        z[i] = one if z[i] > zero else zero


def apply_leaky_relu(work: Any, constants: Any, rows: Any) -> None:
    """Compute z, or c z where that is negative."""
    z, c, zero, _ = operands(work, constants, rows)
    for i in range(len(z)):
        v = z[i]
        z[i] = c * v if v < zero else v


def slope_of_leaky_relu(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of leaky_relu."""
    z, c, zero, one = operands(work, constants, rows)
    for i in range(len(z)):
        z[i] = one if z[i] > zero else c


def apply_elu(work: Any, constants: Any, rows: Any) -> None:
    """Compute z, or c (exp(z) - 1) where that is negative."""
    z, c, zero, _ = operands(work, constants, rows)
    for i in range(len(z)):
        v = z[i]
        z[i] = v if v > zero else c * expm1(v)


def slope_of_elu(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of elu."""
    z, c, zero, one = operands(work, constants, rows)
    for i in range(len(z)):
        v = z[i]
        z[i] = one if v > zero else c * exp(v)


def apply_tanh(work: Any, constants: Any, rows: Any) -> None:
    """Compute the hyperbolic tangent."""
    z, _, _, _ = operands(work, constants, rows)
    for i in range(len(z)):
        z[i] = tanh(z[i])


def slope_of_tanh(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of tanh."""
    z, _, _, one = operands(work, constants, rows)
    for i in range(len(z)):
        t = tanh(z[i])
        z[i] = one - t * t


def apply_sigmoid(work: Any, constants: Any, rows: Any) -> None:
    """Compute 1 / (1 + exp(-z))."""
    z, _, _, _ = operands(work, constants, rows)
    for i in range(len(z)):
        z[i] = sigmoid(z[i])


def slope_of_sigmoid(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of sigmoid."""
    z, _, _, one = operands(work, constants, rows)
    for i in range(len(z)):
        s = sigmoid(z[i])
        z[i] = s * (one - s)


def apply_silu(work: Any, constants: Any, rows: Any) -> None:
    """Compute z / (1 + exp(-z))."""
    z, _, _, _ = operands(work, constants, rows)
    for i in range(len(z)):
        v = z[i]
        z[i] = v * sigmoid(v)


def slope_of_silu(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of silu."""
    z, _, _, one = operands(work, constants, rows)
    for i in range(len(z)):
        s = sigmoid(z[i])
        z[i] = s * (one + z[i] * (one - s))


def apply_softplus(work: Any, constants: Any, rows: Any) -> None:
    """Compute log(1 + exp(c z)) / c."""
    z, c, _, _ = operands(work, constants, rows)
    limit = like(c, 20.0)  # as torch does: above it, the identity
    for i in range(len(z)):
        v = z[i] * c
        z[i] = z[i] if v > limit else softplus(v) / c


def slope_of_softplus(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of softplus."""
    z, c, _, one = operands(work, constants, rows)
    limit = like(c, 20.0)
    for i in range(len(z)):
        v = z[i] * c
        z[i] = one if v > limit else sigmoid(v)


def apply_gelu(work: Any, constants: Any, rows: Any) -> None:
    """Compute z times the normal distribution function."""
    z, c, _, one = operands(work, constants, rows)
    half, root = like(c, 0.5), like(c, math.sqrt(0.5))
    for i in range(len(z)):
        v = z[i]
        z[i] = half * v * (one + like(v, math.erf(v * root)))


def slope_of_gelu(work: Any, constants: Any, rows: Any) -> None:
    """Compute the derivative of gelu."""
    z, c, _, one = operands(work, constants, rows)
    half, root = like(c, 0.5), like(c, math.sqrt(0.5))
    density = like(c, 1 / math.sqrt(2 * math.pi))
    for i in range(len(z)):
        v = z[i]
        below = half * (one + like(v, math.erf(v * root)))
        z[i] = below + v * density * exp(-half * v * v)


_NAMES = {code: name for name, code in ACTIVATION_CODES.items()}


def function_of(code: int, *, slope: bool) -> Any:
    """Return the function of an activation, or its derivative's; None for what changes nothing."""
    return globals().get(f"{'slope_of' if slope else 'apply'}_{_NAMES[code]}")
