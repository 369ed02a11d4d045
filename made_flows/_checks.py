"""Checks of arguments and data, with errors of one form: "Expected X; got Y"."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from made_flows._torch import has_concrete_values, has_finite_sum, is_autocast

LOST_ON_META = "what no state dict has is lost there: make the model anew, and load that"
"""What to do where buffers are left on the device that holds no numbers."""

_LONGEST = 80
"""Characters of a value that an error shows."""


def expect(condition: bool, argument: str, expected: str, got: object) -> None:
    """Raise a ValueError, "Expected {argument} {expected}; got {got}", unless it holds."""
    if not condition:
        text = got if isinstance(got, str) else _shortened(str(got))
        text = type(got).__name__ if isinstance(got, nn.Module) else text
        raise ValueError(f"Expected {argument} {expected}; got {text}")


def expect_type(condition: bool, argument: str, expected: str, got: object) -> None:
    """Raise a TypeError of the same form, which names the type got, unless the condition holds."""
    if not condition:
        raise TypeError(f"Expected {argument} {expected}; got {described(got)}")


def described(got: object) -> str:
    """Say an object's type and what it is, in a line: of a module or tensor not all of it."""
    if isinstance(got, type):
        return f"the class {got.__name__}, not an object of it"
    kind = type(got).__name__
    if isinstance(got, Tensor):
        return f"{kind} of shape {tuple(got.shape)}"
    if isinstance(got, nn.Module):
        return kind
    return f"{kind} {shown(got)}"


def listed(columns: Iterable[int | str]) -> str:
    """Name columns by their numbers or names, the first eight of them."""
    every = [*map(repr, columns)]
    first = ", ".join(every[:8])
    return f"{first} and {len(every) - 8} more" if len(every) > 8 else first


def shown(got: object) -> str:
    """Write a value in a line, as Python does: of a module or tensor, or a long one, not all."""
    if isinstance(got, (nn.Module, Tensor, type)):
        return described(got)
    return _shortened(repr(got))


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


class Unsaid:
    """An attribute that every subclass has to give: to read it where none is, is a TypeError."""

    def __init__(self, example: str) -> None:
        self.example = example

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.owner = name, owner.__name__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        raise TypeError(
            f"Expected {owner.__name__} to say its {self.name}, as every {self.owner} does; got "
            f"none. Add it to the class: {self.example}"
        )


def _integer(value: Any, argument: str, minimum: int, kind: str) -> int:
    expected = f"to be a {kind} integer"
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    expect_type(whole, argument, expected, value)
    expect(int(value) >= minimum, argument, expected, value)
    return int(value)


def positive_integer(value: Any, argument: str) -> int:
    """Return the value as an int of at least 1."""
    return _integer(value, argument, 1, "positive")


def non_negative_integer(value: Any, argument: str) -> int:
    """Return the value as an int of at least 0."""
    return _integer(value, argument, 0, "non-negative")


def checked_seed(value: Any) -> int | None:
    """Return a seed as an int, which torch's generators want, below 2**64; None stays None."""
    if value is None:
        return None
    seed = non_negative_integer(value, "seed")
    expect(seed < 2**64, "seed", "to be below 2**64", seed)
    return seed


def real_number(value: Any, argument: str, *, above: float | None = None) -> float:
    """Return the value as a finite float, strictly above a bound when one is given."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    expect_type(real, argument, "to be a number", value)
    number = float(value)
    expect(number - number == 0, argument, "to be finite", value)
    if above is not None:
        expect(number > above, argument, f"to be above {above:g}", value)
    return number


def boolean(value: Any, argument: str) -> bool:
    """Return the value as a bool; a string such as "no" is an error, not true."""
    known = isinstance(value, (bool, np.bool_))
    expect_type(known, argument, "to be True or False", value)
    return bool(value)


def expect_word(value: Any, words: Collection[str | None], argument: str, expected: str) -> None:
    """Raise a ValueError for what is none of some words, of which one may be None.

    An array is no word: to look for it among them would compare its numbers with each.
    """
    known = (value is None or isinstance(value, str)) and value in words
    expect(known, argument, expected, shown(value))


def expect_sequence(value: Any, argument: str, expected: str) -> None:
    """Raise a TypeError for what is no sequence, or text."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    expect_type(several, argument, expected, value)


def widths(value: Any, argument: str) -> tuple[int, ...]:
    """Return the value as a tuple of positive layer widths (possibly empty)."""
    expect_sequence(value, argument, "to be a sequence of layer widths such as (64, 64)")
    return tuple(positive_integer(width, f"{argument}[{i}]") for i, width in enumerate(value))


def per_feature(value: Any, features: int, argument: str) -> tuple[int, ...]:
    """Return one positive number for each feature, of one for all or of one for each."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        expect(len(value) == features, argument, f"to have {features} entries", len(value))
        return tuple(positive_integer(v, f"{argument}[{i}]") for i, v in enumerate(value))
    expect_type(not isinstance(value, str), argument, "to be an integer or a sequence", value)
    return (positive_integer(value, argument),) * features


def check_event(x: Any, argument: str, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Check that x is a tensor whose last dimension has the given size (and the given dtype)."""
    if not isinstance(x, Tensor):  # every call of a model comes here: a call less for each check
        raise TypeError(f"Expected {argument} to be a torch.Tensor; got {described(x)}")
    tensor: Tensor = x
    if tensor.layout != torch.strided:
        raise TypeError(f"Expected {argument} to be dense; got {tensor.layout}: .to_dense()")
    if tensor.is_complex():
        expect_real(tensor, argument)
    if tensor.dim() == 0 or tensor.shape[-1] != size:
        raise ValueError(f"Expected {argument} of shape (..., {size}); got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype and not is_autocast(tensor):
        convert = f"Convert it: {argument}.to({dtype})"
        if tensor.is_floating_point():  # no model is of integers
            convert = f"Convert the one or the other: {argument}.to({dtype})"
            convert += f" or model.to({tensor.dtype})"
        words = f"Expected {argument} of dtype {dtype}, that of the model; got {tensor.dtype}"
        raise TypeError(f"{words}. {convert}")
    return tensor


def check_parameters(values: Any, parameters: Any, size: int, argument: str) -> None:
    """Check values (...) and their parameters (..., size), which broadcast together."""
    expect_type(isinstance(values, Tensor), argument, "to be a torch.Tensor", values)
    check_event(parameters, "parameters", size)
    check_broadcast(**{argument: values.shape, "parameters": parameters.shape[:-1]})


def check_context(
    context: Tensor | None,
    size: int,
    owner: str,
    *,
    argument: str = "context",
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Return the context (..., size) of an owner ("model"), which was made with argument=size.

    Raises:
        ValueError: for a context that is missing, superfluous or of another size.
    """
    if size == 0:
        if context is not None:
            raise ValueError(
                f"Expected no context, since the {owner} was made with {argument}=0; got one of "
                f"shape {tuple(getattr(context, 'shape', ()))}"
            )
        return None
    if context is None:
        raise ValueError(
            f"Expected context of shape (..., {size}), since the {owner} was made with "
            f"{argument}={size}; got none"
        )
    return check_event(context, "context", size, dtype)


def check_broadcast(**shapes: Sequence[int]) -> torch.Size:
    """Broadcast several named shapes, or raise a ValueError that names them."""
    # The common cases first, since torch's own way takes longer than a small layer: all are of one
    # shape, or else single rows. Sizes that are traced are compared by torch alone.
    if not torch.compiler.is_compiling():
        every = [tuple(shape) for shape in shapes.values()]
        longest = max(every, key=len, default=())
        wide = [shape for shape in every if shape.count(1) < len(shape)] or [longest]
        if len(wide[0]) == len(longest) and wide.count(wide[0]) == len(wide):
            return torch.Size(wide[0])
    try:
        return torch.Size(torch.broadcast_shapes(*(tuple(shape) for shape in shapes.values())))
    except RuntimeError:
        named = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"Expected shapes that broadcast together; got {named}") from None


def check_batch(**tensors: Tensor | None) -> torch.Size:
    """Broadcast named tensors but for their last dimensions; those that are None are left out."""
    return check_broadcast(**{name: t.shape[:-1] for name, t in tensors.items() if t is not None})


def check_expanded(to: Any, batch_shape: torch.Size) -> torch.Size:
    """Check the batch shape that a distribution is expanded to against its own."""
    shape = check_sample_shape(to, "batch_shape")
    larger = check_broadcast(expanded=shape, batch_shape=batch_shape) == shape
    wanted = f"that batch_shape {tuple(batch_shape)} broadcasts to"
    expect(larger, "a shape", wanted, tuple(shape))
    return shape


def check_sample_shape(shape: Any, argument: str = "sample_shape") -> torch.Size:
    """Return the shape that is asked for; an integer n means (n,).

    Raises:
        TypeError: for what is no shape.
        ValueError: for a negative size.
    """
    try:
        size = torch.Size((int(shape),) if isinstance(shape, Integral) else shape)
    except (TypeError, RuntimeError):
        size = None
    known = size is not None and not isinstance(shape, bool)
    expect_type(known, argument, "to be a sequence of integers, or an integer", shape)
    checked = cast(torch.Size, size)
    expect(min(checked, default=0) >= 0, argument, "to be of sizes >= 0", tuple(checked))
    return checked


def check_generator(generator: Any, *, draws: bool = True) -> None:
    """Refuse what is no random generator, and one of which nothing would be drawn."""
    known = generator is None or isinstance(generator, torch.Generator)
    expect_type(known, "generator", "to be a torch.Generator or None", generator)
    expect(generator is None or draws, "generator", "to be left out, as nothing is drawn", "one")


def expect_real(x: Tensor, argument: str) -> None:
    """Raise a TypeError for complex numbers."""
    if x.is_complex():
        raise TypeError(f"Expected {argument} to be real; got {x.dtype}")


def _as_tensor(value: Any) -> Tensor:
    # as_tensor would move a tensor to torch's default device.
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value).detach()


def as_numbers(value: Any, argument: str) -> Tensor:
    """Convert an array-like to a dense tensor of real numbers.

    Raises:
        TypeError: for anything else.
        ValueError: for values that are masked, of which torch would take what is behind the mask.
    """
    expect(not np.ma.is_masked(value), argument, "to hold no masked values", "some")
    try:
        tensor = _as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        expect_type(False, argument, "to hold numbers, in rows of one length", value)
        raise
    expect_type(tensor.layout == torch.strided, argument, "to be dense", tensor.layout)
    expect_real(tensor, argument)
    return tensor


def tensor_or_empty(value: Any) -> Tensor:
    """Convert an array-like to a tensor; what is none becomes empty, which no check lets pass."""
    try:
        return _as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0)


def checked_device(device: Any, *, holds_numbers: bool = True) -> torch.device | None:
    """Return a device, or raise a ValueError for one that is not there; None stays None.

    Unless it has to hold numbers, it may be "meta".
    """
    if device is None:
        return None
    found, why = None, ""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        # What torch says of a name that it does not know is a list of all that it knows.
        why = "" if found is None else f" ({_shortened(str(error))})"
        found = None
    if found is None:
        raise ValueError(
            f"Expected device to be one of this machine, {_devices()}; got {shown(device)}{why}"
        )
    expect(found.type != "meta" or not holds_numbers, "device", "to hold numbers", "'meta'")
    return found


def _devices() -> str:
    """Name the devices that are there: 'cpu', 'cuda:0' or 'cuda:1'."""
    kinds = [(kind, getattr(torch, kind).device_count()) for kind in ("cuda", "xpu", "mps")]
    names = ["'cpu'", *(f"'{kind}:{i}'" for kind, count in kinds for i in range(count))]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def check_default_device() -> None:
    """Raise a ValueError where tensors are made without values, of which masks cannot be made."""
    hint = "to hold values, of which masks are made (make the model elsewhere, then .to('meta'))"
    expect(torch.empty(0).device.type != "meta", "torch's default device", hint, "meta")


def holds_integers(x: Tensor) -> bool:
    """Tell whether a tensor's dtype is one of integers, booleans left out."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype is torch.bool)


def check_finite(x: Tensor, argument: str, first: int = 0) -> None:
    """Raise a ValueError that names the first row and column that is NaN or infinite.

    Rows are counted from ``first``, for values that are a part of more.
    """
    if has_concrete_values(x) and not has_finite_sum(x):
        check_values(x, torch.isfinite(x), argument, "to be finite", first)


def check_values(x: Tensor, valid: Tensor, argument: str, expected: str, first: int = 0) -> None:
    """Raise a ValueError that names the first row and column where ``valid`` is false."""
    # What is expected may be what cannot be read: limits of stacked models, that are mapped over.
    if not (has_concrete_values(x) and has_concrete_values(valid)) or bool(valid.all()):
        return
    valid = valid.expand(x.shape)
    place = (~valid).nonzero()[0]
    value = x[tuple(place)].item()
    if x.dim() >= 2:
        place[0] += first
        row = ", ".join(str(int(i)) for i in place[:-1])
        where = f"row {row}, column {int(place[-1])}"
    elif x.dim() == 1:
        where = f"column {int(place[0])}"
    else:
        where = "its only value"
    raise ValueError(f"Expected {argument} {expected}; got {value:g} in {where}")
