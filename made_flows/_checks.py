"""Checks of arguments and data, with errors of one form: "Expected X; got Y"."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows._torch import has_concrete_values

__all__ = [
    "boolean",
    "check_broadcast",
    "check_context",
    "check_event",
    "check_expanded",
    "check_finite",
    "check_sample_shape",
    "check_values",
    "expect",
    "expect_type",
    "non_negative_integer",
    "positive_integer",
    "real_number",
    "widths",
]


def expect(condition: bool, argument: str, expected: str, got: object) -> None:
    """Raise a ValueError, "Expected {argument} {expected}; got {got}", unless it holds."""
    if not condition:
        raise ValueError(f"Expected {argument} {expected}; got {got}")


def expect_type(condition: bool, argument: str, expected: str, got: object) -> None:
    """Raise a TypeError of the same form, which names the type got, unless the condition holds."""
    if not condition:
        raise TypeError(f"Expected {argument} {expected}; got {type(got).__name__} {got!r}")


def _integer(value: Any, argument: str, minimum: int, kind: str) -> int:
    expect_type(
        isinstance(value, Integral) and not isinstance(value, bool),
        argument,
        f"to be a {kind} integer",
        value,
    )
    expect(int(value) >= minimum, argument, f"to be a {kind} integer", value)
    return int(value)


def positive_integer(value: Any, argument: str) -> int:
    """The value as an int of at least 1."""
    return _integer(value, argument, 1, "positive")


def non_negative_integer(value: Any, argument: str) -> int:
    """The value as an int of at least 0."""
    return _integer(value, argument, 0, "non-negative")


def real_number(value: Any, argument: str, *, above: float | None = None) -> float:
    """The value as a finite float, strictly above a bound when one is given."""
    expect_type(
        isinstance(value, Real) and not isinstance(value, bool), argument, "to be a number", value
    )
    number = float(value)
    expect(number - number == 0, argument, "to be finite", value)
    if above is not None:
        expect(number > above, argument, f"to be above {above:g}", value)
    return number


def boolean(value: Any, argument: str) -> bool:
    """The value as a bool; a string such as "no" is an error, not true."""
    whole = isinstance(value, (bool, np.bool_))
    expect_type(whole, argument, "to be True or False", value)
    return bool(value)


def widths(value: Any, argument: str) -> tuple[int, ...]:
    """The value as a tuple of positive layer widths (possibly empty)."""
    expect_type(
        isinstance(value, Sequence) and not isinstance(value, str),
        argument,
        "to be a sequence of layer widths such as (64, 64)",
        value,
    )
    return tuple(positive_integer(width, f"{argument}[{i}]") for i, width in enumerate(value))


def check_event(x: Any, argument: str, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Check that x is a tensor whose last dimension has the given size (and the given dtype)."""
    expect_type(isinstance(x, Tensor), argument, "to be a torch.Tensor", x)
    tensor: Tensor = x
    if tensor.dim() == 0 or tensor.shape[-1] != size:
        raise ValueError(f"Expected {argument} of shape (..., {size}); got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype and not torch.is_autocast_enabled():
        raise TypeError(
            f"Expected {argument} of dtype {dtype}, that of the model; got {tensor.dtype}. "
            f"Convert the one or the other: {argument}.to({dtype}) or model.to({tensor.dtype})"
        )
    return tensor


def check_context(
    context: Tensor | None,
    size: int,
    owner: str,
    *,
    argument: str = "context",
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """The context (..., size) of an owner ("model"), which was made with argument=size.

    Raises:
        ValueError: for a context that is missing, superfluous or of another size.
    """
    if size == 0:
        if context is not None:
            raise ValueError(
                f"Expected no context, since the {owner} was made with {argument}=0; got one of "
                f"shape {tuple(context.shape)}"
            )
        return None
    if context is None:
        raise ValueError(
            f"Expected context of shape (..., {size}), since the {owner} was made with "
            f"{argument}={size}; got none"
        )
    return check_event(context, "context", size, dtype)


def check_broadcast(**shapes: Sequence[int]) -> torch.Size:
    """The broadcast of several named shapes, or a ValueError that names them."""
    distinct = {shape for shape in map(tuple, shapes.values()) if shape}
    if len(distinct) <= 1:  # the common case; torch's own way takes longer than a small layer
        return torch.Size(next(iter(distinct), ()))
    try:
        return torch.Size(torch.broadcast_shapes(*(tuple(shape) for shape in shapes.values())))
    except RuntimeError:
        named = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"Expected shapes that broadcast together; got {named}") from None


def check_expanded(to: Sequence[int], batch_shape: torch.Size) -> torch.Size:
    """The batch shape that a distribution is expanded to, or a ValueError if its own does not."""
    shape = torch.Size(to)
    if check_broadcast(expanded=shape, batch_shape=batch_shape) != shape:
        raise ValueError(
            f"Expected a shape that batch_shape {tuple(batch_shape)} broadcasts to; got "
            f"{tuple(shape)}"
        )
    return shape


def check_sample_shape(shape: Any) -> torch.Size:
    """The shape of the samples that are asked for; an integer n means (n,).

    Raises:
        TypeError: for what is no shape.
        ValueError: for a negative size.
    """
    try:
        size = torch.Size((int(shape),) if isinstance(shape, Integral) else shape)
    except (TypeError, RuntimeError):
        raise TypeError(
            f"Expected sample_shape to be a sequence of integers, or an integer; got "
            f"{type(shape).__name__} {shape!r}"
        ) from None
    expect(all(n >= 0 for n in size), "sample_shape", "to be of sizes >= 0", tuple(size))
    return size


def check_finite(x: Tensor, argument: str) -> None:
    """Raise a ValueError that names the first row and column that is NaN or infinite."""
    # A sum is finite only where all values are; it takes a tenth of the time of looking at each.
    if has_concrete_values(x) and not bool(torch.isfinite(x.detach().sum())):
        check_values(x, torch.isfinite(x), argument, "to be finite")


def check_values(x: Tensor, valid: Tensor, argument: str, expected: str) -> None:
    """Raise a ValueError that names the first row and column where ``valid`` is false."""
    if not has_concrete_values(x) or bool(valid.all()):
        return
    valid = valid.expand(x.shape)
    place = (~valid).nonzero()[0]
    value = x[tuple(place)].item()
    if x.dim() >= 2:
        row = ", ".join(str(int(i)) for i in place[:-1])
        where = f"row {row}, column {int(place[-1])}"
    elif x.dim() == 1:
        where = f"column {int(place[0])}"
    else:
        where = "its only value"
    raise ValueError(f"Expected {argument} {expected}; got {value:g} in {where}")
