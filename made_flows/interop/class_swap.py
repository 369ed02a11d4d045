"""Fast layers in place of a library's own, by giving an object another class.

The object stays the same: whatever refers to it, its parameters, buffers, hooks and name, its
state dict and its repr are untouched. Only its class becomes a subclass of what it was, made here,
whose inverse is fast. Replacing modules instead would miss references that are not attributes of a
parent module (Pyro keeps its transforms in lists, and their inverses as weak pairs); replacing
methods on the object would not survive a copy, as a bound method is copied by its name.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, cast

from made_flows.interop.fast_layer import FastLayer
from made_flows.nn.validation import NotUnderstoodError


class Swapped:
    """Mixed into classes made here, so that their objects are copied and pickled as such.

    A class made at run time cannot be found by its name; it is made again from the original.
    """

    _made_flows_original: type
    _made_flows_mixin: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced
        if not arguments or arguments[0] is not type(self):
            return reduced
        original, mixin = self._made_flows_original, self._made_flows_mixin
        name = (mixin.__module__, mixin.__qualname__)
        return _revive, (name, make, original, *arguments[1:]), *rest


def _revive(name: tuple[str, str], make: Any, original: type, *arguments: Any) -> Any:
    revived = make(original, *arguments)
    revived.__class__ = _mixed(original, getattr(import_module(name[0]), name[1]))
    return revived


@cache
def _mixed(original: type, mixin: type) -> type:
    attributes = {"_made_flows_original": original, "_made_flows_mixin": mixin}
    for name in ("__module__", "__qualname__", "__doc__"):
        attributes[name] = getattr(original, name)
    return type(original.__name__, (*_anchor(original), Swapped, mixin, original), attributes)


def _anchor(original: type) -> tuple[type, ...]:
    """Return a first base that makes objects of a class made here laid out as the original's.

    Python lets an object change its class only where the two classes took on their attribute
    dictionary in the same place: at a subclass of the same class. (It is not ``object`` for
    classes made of ``abc.ABC``, as Pyro's conditional transforms are.)
    """
    kind = original
    while kind.__base__ is not None and _layout(kind) == _layout(kind.__base__):
        kind = kind.__base__
    root = kind.__base__
    return () if root is None or root is object else (type(root)("Anchor", (root,), {}),)


def _layout(kind: type) -> tuple[int, ...]:
    return kind.__basicsize__, kind.__itemsize__, kind.__dictoffset__, kind.__weakrefoffset__


def _unmixed(kind: type) -> type:
    """Return the original of a class made here; of a class made of that, one made of the original.

    Parametrizations, sharding and Pyro's modules give an object a class of their own, too.
    """
    if not issubclass(kind, Swapped):
        return kind
    if "_made_flows_original" in vars(kind):
        return kind._made_flows_original
    inherited = {"__dict__", "__weakref__"}  # which every class has for itself
    attributes = {name: value for name, value in vars(kind).items() if name not in inherited}
    bases = dict.fromkeys(map(_unmixed, kind.__bases__))
    # What another base extends comes with that one.
    own = [base for base in bases if sum(issubclass(other, base) for other in bases) == 1]
    make: Any = type(kind)
    return cast(type, make(kind.__name__, tuple(own), attributes))


def original_class(layer: Any) -> type:
    """Return the class of an object, before :func:`mix_in`."""
    kind = type(layer)
    return kind._made_flows_original if issubclass(kind, Swapped) else kind


def mix_in(layer: Any, mixin: type) -> None:
    """Let an object's class be a subclass of what it is, with a mixin before it.

    Raises:
        NotUnderstoodError: if Python cannot give the object such a class.
    """
    try:
        layer.__class__ = _mixed(original_class(layer), mixin)
    except TypeError as error:
        raise NotUnderstoodError(f"its class cannot be extended ({error})") from None
    if issubclass(mixin, FastLayer):
        mixin.made_flows_rebind(layer)


def unmix(layer: Any) -> bool:
    """Give an object its own class back; False if it has it."""
    kind = type(layer)
    if not issubclass(kind, Swapped):
        return False
    mixin = kind._made_flows_mixin
    if issubclass(mixin, FastLayer):
        layer.made_flows_forget()
    layer.__class__ = _unmixed(kind)
    if issubclass(mixin, FastLayer):
        mixin.made_flows_rebind(layer)
    return True
