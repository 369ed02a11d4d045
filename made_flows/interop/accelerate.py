"""Making the slow direction of other libraries' flows fast, in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from torch.distributions import Distribution, Transform

from made_flows._checks import expect_type
from made_flows.interop.class_swap import Swapped, mix_in, original_class, unmix
from made_flows.interop.fast_layer import FastLayer
from made_flows.interop.libraries import find, library_of
from made_flows.nn.validation import NotUnderstoodError

__all__ = ["AccelerationReport", "AccelerationWarning", "accelerate", "acceleration", "restore"]

T = TypeVar("T")


class AccelerationWarning(UserWarning):
    """Some autoregressive layers were left as they are; the message says which and why."""


@dataclass(frozen=True)
class AccelerationReport:
    """Which autoregressive layers of a model are fast in both directions, and which are not.

    Args:
        fast: name of a layer -> library and class.
        left: name of a layer -> library and class, and why its slow direction is left as it is.
    """

    fast: dict[str, str] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.fast)} fast, {len(self.left)} left as they are"]
        width = max(map(len, (*self.fast, *self.left)), default=0)
        lines += [f"  fast  {name:<{width}}  {kind}" for name, kind in self.fast.items()]
        lines += [
            f"  left  {name:<{width}}  {kind}: {reason}"
            for name, (kind, reason) in self.left.items()
        ]
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(model: T) -> T:
    r"""Make the slow direction of every autoregressive layer of a model fast, in place.

    Layers of nflows, Pyro, zuko and normflows stay the objects that they are, with the same
    parameters, buffers and state dict; their sequential direction, D passes of the network,
    becomes one sequential inverse of about the work of a pass. All numbers stay equal to
    rounding: values, log-determinants and first derivatives, in both directions. While training
    with dropout or batch normalisation inside a network, where the library's own loop is the only
    definition of its result, that loop is what runs.

    Args:
        model: an ``nn.Module``, or a distribution or transform of torch or Pyro, or a list of
            those; they are searched through.

    Returns:
        The same object. What was done says :func:`acceleration`; :func:`restore` undoes it.

    Raises:
        TypeError: for anything else.

    Warns:
        AccelerationWarning: for autoregressive layers that are left as they are, or if there is
            no autoregressive layer at all.

    Example:
        >>> import made_flows as mf
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> transform = mf.accelerate(MaskedAffineAutoregressiveTransform(4, 16))
        >>> mf.acceleration(transform)
        1 fast, 0 left as they are
          fast  (itself)  nflows MaskedAffineAutoregressiveTransform
    """
    left: dict[str, tuple[str, str]] = {}
    others: list[tuple[Any, type]] = []
    any_fast = False
    for name, layer in _layers(model):
        if isinstance(layer, FastLayer):
            any_fast = True
            continue
        try:
            mixin = find(layer)
            if mixin is not None and issubclass(mixin, FastLayer):
                fast = mixin.made_flows_read(layer)
                mix_in(layer, mixin)
                layer.made_flows_keep(fast)
                any_fast = True
            elif mixin is not None:
                others.append((layer, mixin))
        except NotUnderstoodError as error:
            left[name] = (_kind(layer), str(error))
    if any_fast:  # what they are parts of
        for layer, mixin in others:
            mix_in(layer, mixin)
    if left:
        lines = str(AccelerationReport(left=left)).split("\n")[1:]
        message = "some autoregressive layers are left as they are:\n" + "\n".join(lines)
        warnings.warn(message, AccelerationWarning, stacklevel=2)
    elif not any_fast and not _has_own(model):
        message = f"there is no autoregressive layer of a known library in this {_kind(model)}"
        warnings.warn(message, AccelerationWarning, stacklevel=2)
    return model


def restore(model: T) -> T:
    """Undo :func:`accelerate`, in place: every layer computes as its library has it.

    Args:
        model: what was given to :func:`accelerate`, or a part of it.

    Returns:
        The same object.

    Raises:
        TypeError: for anything that cannot be searched through.
    """
    for _, layer in _layers(model):
        unmix(layer)
    return model


def acceleration(model: Any) -> AccelerationReport:
    """Report which autoregressive layers of a model are fast in both directions.

    Args:
        model: as for :func:`accelerate`.

    Raises:
        TypeError: for anything that cannot be searched through.
    """
    report = AccelerationReport()
    for name, layer in _layers(model):
        if isinstance(layer, FastLayer):
            report.fast[name] = _kind(layer)
        elif not isinstance(layer, Swapped):
            try:
                mixin = find(layer)
                if mixin is not None and issubclass(mixin, FastLayer):
                    mixin.made_flows_read(layer)
                    report.left[name] = (_kind(layer), "not accelerated")
            except NotUnderstoodError as error:
                report.left[name] = (_kind(layer), str(error))
    return report


def _kind(layer: Any) -> str:
    kind = original_class(layer)
    library = library_of(layer) or kind.__module__.partition(".")[0]
    return f"{library} {kind.__name__}"


# ---------------------------------------------------------------------- searching

_PARTS = ("transforms", "parts", "base_dist", "base_transform", "transform", "_inv", "_transform")
"""Where distributions and transforms keep others, which need not be modules."""


def _layers(model: Any) -> list[tuple[str, Any]]:
    """Return names and objects of every layer of a known library within, each object once."""
    kinds = (nn.Module, Distribution, Transform, list, tuple)
    known = isinstance(model, kinds) or library_of(model) is not None
    expect_type(known, "model", "to be a module, distribution, transform or list of them", model)
    found: dict[int, tuple[str, Any]] = {}
    for name, part in _walk(model, "", set()):
        if library_of(part) is not None or isinstance(part, FastLayer):
            found.setdefault(id(part), (name or "(itself)", part))
    return list(found.values())


def _has_own(model: Any) -> bool:
    """Tell whether something of this library is within, which needs no acceleration."""
    kinds = (type(part) for _, part in _walk(model, "", set()))
    return any(kind.__module__.startswith("made_flows.") for kind in kinds)


def _walk(part: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(part) in seen:
        return
    seen.add(id(part))
    prefix = f"{name}." if name else ""
    if isinstance(part, list | tuple):
        for i, child in enumerate(part):
            yield from _walk(child, f"{prefix}{i}", seen)
        return
    is_module = isinstance(part, nn.Module)
    if (
        not is_module
        and not isinstance(part, Distribution | Transform)
        and library_of(part) is None
    ):
        return
    yield name, part
    if is_module:
        for child_name, child in part.named_children():
            yield from _walk(child, f"{prefix}{child_name}", seen)
    if not is_module or isinstance(part, Transform) or library_of(part) == "pyro":
        for child_name in _PARTS:
            child = vars(part).get(child_name)
            if child is not None:
                yield from _walk(child, f"{prefix}{child_name}", seen)
