"""What a model has that another one, made by the same constructor, has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from made_flows._keys import KeyedModule
from made_flows._registry import class_name, is_saveable
from made_flows.nn.activations import code_of
from made_flows.serialization.arguments import Encoder

_OF_TORCH = frozenset(vars(nn.Module()))
_ABSENT = object()


class Difference(NamedTuple):
    """One difference between a model and another.

    Args:
        kind: ``"module"``, ``"attribute"``, ``"mode"``, ``"parameter"``, ``"requires_grad"``,
            ``"buffer"``, ``"parametrization"`` or ``"hook"``.
        path: the module concerned, by its name in the model; ``""`` for the model itself.
        name: what of the module differs.
        value: what the model has; :data:`Difference.absent` where it has nothing.
    """

    kind: str
    path: str
    name: str
    value: Any

    @property
    def place(self) -> str:
        """The full name of what differs."""
        return ".".join(part for part in (self.path, self.name) if part)

    @property
    def absent(self) -> bool:
        """Whether the model lacks what the other one has."""
        return self.value is _ABSENT


def differences(model: nn.Module, other: nn.Module) -> Iterator[Difference]:
    """Return the differences between a model and another of its class.

    Modules that differ in kind are one difference, whatever is in them. Attributes that begin
    with an underscore are taken for caches, random generators for sources of noise, and neither
    is compared.
    """
    seen: set[tuple[int, int]] = set()

    def visit(path: str, a: Any, b: Any) -> Iterator[Difference]:
        if a is None or (id(a), id(b)) in seen:
            return
        seen.add((id(a), id(b)))
        if _parametrized(a) != _parametrized(b):
            for name in sorted(_parametrized(a) ^ _parametrized(b)):
                yield Difference("parametrization", path, name, a)
            return  # what it has then differs in all things
        hooks = _hooks(a), _hooks(b)
        if not _alike(*hooks):
            yield Difference("hook", path, "", next(iter(hooks[0]), None))
        if a.training != b.training:
            yield Difference("mode", path, "", a.training)
        yield from _parameters(path, a, b)
        for name, mine, its in _both(a._buffers, b._buffers):
            persistent = (name in module._non_persistent_buffers_set for module in (a, b))
            if not _alike(mine, its) or len(set(persistent)) > 1:
                yield Difference("buffer", path, name, mine)
        mine_of, its_of = ({**_attributes(m), **m._modules} for m in (a, b))
        for name, mine, its in _both(mine_of, its_of):
            if name in a._modules and name in b._modules and _of_one_kind(mine, its):
                yield from visit(f"{path}.{name}" if path else name, mine, its)
            elif not _alike(mine, its) or (name in a._modules and name in b._modules):
                module = name in a._modules or (mine is _ABSENT and name in b._modules)
                yield Difference("module" if module else "attribute", path, name, mine)

    yield from visit("", model, other)


def _both(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**a, **b}:
        yield name, a.get(name, _ABSENT), b.get(name, _ABSENT)


def _parameters(path: str, a: nn.Module, b: nn.Module) -> Iterator[Difference]:
    for name, mine, its in _both(a._parameters, b._parameters):
        if isinstance(mine, Tensor) and isinstance(its, Tensor):
            if not _alike(mine, its):
                yield Difference("parameter", path, name, mine)
            if mine.requires_grad != its.requires_grad:
                yield Difference("requires_grad", path, name, mine.requires_grad)
        elif mine is not its:
            yield Difference("parameter", path, name, mine)


def _parametrized(module: nn.Module) -> set[str]:
    return set(module.parametrizations) if parametrize.is_parametrized(module) else set()  # type: ignore[arg-type]


def _hooks(module: nn.Module) -> list[Any]:
    """List what runs before and after a module's forward, hooks of gradients left out."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _attributes(module: nn.Module) -> dict[str, Any]:
    keyed = isinstance(module, KeyedModule)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _OF_TORCH and not (keyed and name == "key")
    }


def _of_one_kind(a: Any, b: Any) -> bool:
    """Tell whether modules are of one class, and of the same arguments as far as is known."""
    if a is None and b is None:
        return True
    if not (isinstance(a, nn.Module) and isinstance(b, nn.Module)):
        return False
    if class_name(type(a)) != class_name(type(b)):
        # The classes of parametrized modules are their own; parametrizations are told by name.
        return parametrize.is_parametrized(a) or parametrize.is_parametrized(b)
    if not is_saveable(type(a)):
        return True
    try:
        made_with = [(encoder := Encoder(), encoder.encode(each, "")) for each in (a, b)]
    except TypeError:
        return False
    (first, text), (second, other_text) = made_with
    return text == other_text and _alike(first.tensors, second.tensors)


def _alike(a: Any, b: Any, seen: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Tell whether two values are the same but for their identity."""
    if a is b or (id(a), id(b)) in seen:  # seen before: part of itself
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_tensor(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        both = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return both and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (int, float, np.number, np.bool_)):
        numbers = isinstance(b, (int, float, np.number, np.bool_))
        booleans = isinstance(a, (bool, np.bool_)), isinstance(b, (bool, np.bool_))
        return numbers and booleans[0] == booleans[1] and (a == b or (a != a and b != b))
    if (isinstance(a, str) != isinstance(b, str)) and code_of(a) is not None:
        return code_of(a) == code_of(b)
    seen = seen | {(id(a), id(b))}
    for kind in (list, tuple):
        if isinstance(a, kind) or isinstance(b, kind):
            both = isinstance(a, kind) and isinstance(b, kind) and len(a) == len(b)
            return both and all(_alike(x, y, seen) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], seen) for key in a)
    if type(a) is not type(b) and not isinstance(a, nn.Module):
        return False
    return _same_object(a, b, seen)


def _same_object(a: Any, b: Any, seen: frozenset[tuple[int, int]]) -> bool:
    if isinstance(a, nn.Module):  # outside the tree of modules, so that weights are not its state
        return _of_one_kind(a, b)
    if isinstance(a, (torch.Generator, np.random.Generator)):
        return True
    if isinstance(a, MethodType):
        return a.__func__ is b.__func__
    if isinstance(a, FunctionType):
        made_by: list[tuple[CodeType, Any, Any]] = [
            (f.__code__, f.__defaults__, [cell.cell_contents for cell in f.__closure__ or ()])
            for f in (a, b)
        ]
        return made_by[0][0] is made_by[1][0] and _alike(made_by[0][1:], made_by[1][1:], seen)
    if "__eq__" in {name for kind in type(a).__mro__[:-1] for name in vars(kind)}:
        try:
            return bool(a == b)
        except (RuntimeError, TypeError, ValueError):  # a comparison of tensors within, say
            pass
    # Objects that hold nothing one can look at, such as locks, are as good as each other.
    return _alike(getattr(a, "__dict__", {}), getattr(b, "__dict__", {}), seen)


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.is_meta != b.is_meta:
        return False
    if a.is_meta:
        return True
    a, b = (x.detach().cpu() for x in (a, b))
    return bool(torch.equal(a, b)) or bool(((a == b) | ((a != a) & (b != b))).all())
