"""Making the slow direction of other libraries' flows fast, in place."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from made_flows._checks import expect_type
from made_flows.interop.class_swap import Swapped, mix_in, original_class, unmix
from made_flows.interop.fast_layer import FastLayer
from made_flows.interop.libraries import find, library_of
from made_flows.nn.validation import NotUnderstoodError

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
        rows = [("fast", name, kind) for name, kind in self.fast.items()]
        rows += [("left", name, ": ".join(reason)) for name, reason in self.left.items()]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines = [f"{len(self.fast)} fast, {len(self.left)} left as they are"]
        return "\n".join(lines + [f"  {how}  {name:<{width}}  {what}" for how, name, what in rows])

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
        model: an ``nn.Module``, a distribution or transform of torch or Pyro, or any object that
            holds some: a list, a dictionary, a dataclass, a trainer. It is searched through, with
            all that it holds.

    Returns:
        The same object. What was done says :func:`acceleration`, and
        :func:`undo_acceleration` undoes it.

    Raises:
        TypeError: for an object in which there is nothing of the kind.

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
                fast = mixin.made_flows_read_of(layer)
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


def undo_acceleration(model: T) -> T:
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
                    mixin.made_flows_read_of(layer)
                    report.left[name] = (_kind(layer), "not accelerated")
            except NotUnderstoodError as error:
                report.left[name] = (_kind(layer), str(error))
    return report


def _kind(layer: Any) -> str:
    kind = original_class(layer)
    library = library_of(layer) or kind.__module__.partition(".")[0]
    return f"{library} {kind.__name__}"


# ---------------------------------------------------------------------- searching

_DEEPEST = 12
"""How many objects may lie within one another, modules not counted."""

_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), Tensor, type, ModuleType)


def _layers(model: Any) -> list[tuple[str, Any]]:
    """Return names and objects of every layer of a known library within, each object once."""
    wanted = "to be a module, a distribution or transform, or an object that holds some"
    expect_type(not isinstance(model, _LEAVES) and not _is_function(model), "model", wanted, model)
    found: dict[int, tuple[str, Any]] = {}
    anything = False
    for name, part in _walk(model, "", {}, 0):
        anything = True
        if library_of(part) is not None or isinstance(part, FastLayer):
            found.setdefault(id(part), (name or "(itself)", part))
    if not anything:
        kind = type(model).__name__
        raise TypeError(
            f"Expected model {wanted}; got a {kind} in which there are none. Give the flow itself, "
            "or whatever keeps it in its attributes"
        )
    return list(found.values())


def _is_function(model: Any) -> bool:
    """Tell whether an object is a function, which keeps what it uses where nobody looks."""
    return isinstance(model, FunctionType | MethodType | BuiltinFunctionType)


def _has_own(model: Any) -> bool:
    """Tell whether something of this library is within, which needs no acceleration."""
    kinds = (type(part) for _, part in _walk(model, "", {}, 0))
    return any(kind.__module__.startswith("made_flows.") for kind in kinds)


def _walk(part: Any, name: str, seen: dict[int, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield names and objects of the modules, distributions and transforms within, each once."""
    if id(part) in seen or isinstance(part, _LEAVES) or _is_function(part) or depth > _DEEPEST:
        return
    seen[id(part)] = part  # held, so that no other object takes its place meanwhile
    is_module = isinstance(part, nn.Module)
    if is_module or isinstance(part, Distribution | Transform) or library_of(part) is not None:
        yield name, part
    if is_module:
        # Modules keep modules in one place, by the names that a state dict has.
        for child_name, child in part.named_children():
            yield from _walk(child, _within(name, child_name), seen, depth)
    for child_name, child in _held(part):
        yield from _walk(child, _within(name, child_name), seen, depth + 1)


def _within(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _held(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds: items of collections, attributes of everything else."""
    if isinstance(part, dict):
        yield from ((str(key), value) for key, value in list(part.items()))
    elif isinstance(part, list | tuple | set | frozenset | deque):
        yield from ((str(i), value) for i, value in enumerate(list(part)))
    for kind in type(part).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(part, slot) and not slot.startswith("__"):
                yield slot, getattr(part, slot)
    for attribute, value in list(getattr(part, "__dict__", {}).items()):
        if attribute not in _TABLES and not attribute.startswith("_made_flows"):
            yield attribute, value


_TABLES = frozenset(vars(nn.Module()))
"""Attributes of torch's own that every module has; its modules are found by their names."""
