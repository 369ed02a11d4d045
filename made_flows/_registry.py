"""A register of the classes that can be saved, and the arguments each object was made with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from made_flows._keywords import check_keywords

REGISTRY: dict[str, type] = {}
"""The classes that can be loaded, by the names that files give them."""

T = TypeVar("T")


def saveable(cls: type[T]) -> type[T]:
    """Register a class by its name and let its objects remember their constructor's arguments.

    The arguments of the outermost constructor are kept in ``_arguments``: copies of lists, arrays
    and tensors, so that later changes of them are not taken for what the object was made with.
    Defaults are left out, so that a file stays short, but for those that were others once: a class
    names what they were in ``_former_defaults``, for files that do not say. Random generators are
    left out, as what they drew is in the buffers. :func:`made_flows.save` writes them, and
    :func:`made_flows.load` calls the class with them. A class of the same module and name replaces
    the one before, as when a notebook's cell is run again; models of either can be saved.

    Example:
        >>> import made_flows as mf
        >>> mf.MADE(3, hidden_features=(8,))._arguments
        {'features': 3, 'hidden_features': (8,)}
    """
    constructor = cls.__init__
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_arguments" not in self.__dict__:
            try:
                bound = dict(signature.bind(self, *args, **kwargs).arguments)
            except TypeError:
                check_keywords(cls.__name__, signature, kwargs)
                constructor(self, *args, **kwargs)  # raises it with the function's name
                raise
            bound.pop(next(iter(signature.parameters)))
            for parameter in signature.parameters.values():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    bound.update(bound.pop(parameter.name, {}))
            for name in former_defaults(cls, signature):
                bound.setdefault(name, signature.parameters[name].default)
            # Past nn.Module.__setattr__, which would register modules found among the arguments.
            self.__dict__["_arguments"] = {
                name: _copied(value)
                for name, value in bound.items()
                if not isinstance(value, torch.Generator)
            }
        constructor(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    cls._saveable = cls  # type: ignore[attr-defined]
    REGISTRY[class_name(cls)] = cls
    return cls


def own_arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a constructor was given, by name: of its ``locals()`` before it assigns others.

    For constructors that say all their arguments to editors, and pass them on.
    """
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}


def former_defaults(cls: type, signature: inspect.Signature | None = None) -> dict[str, Any]:
    """Say what arguments that files leave out stand for, where it is not the default now."""
    former: dict[str, Any] = getattr(cls, "_former_defaults", {})
    parameters = (signature or inspect.signature(cls)).parameters
    return {name: value for name, value in former.items() if name in parameters}


def class_name(cls: type) -> str:
    """Return the name of a class in files: with its module, but for the library's own classes."""
    if cls.__module__.partition(".")[0] == "made_flows":
        return cls.__name__
    return f"{cls.__module__}.{cls.__qualname__}"


def is_saveable(cls: type) -> bool:
    """Tell whether a class was itself registered: what it inherits from does not count."""
    return vars(cls).get("_saveable") is cls


def find_class(name: Any) -> type:
    """Return the class that a file names.

    A class of somebody's own is also found where it has moved to another module, or where the
    file is of a time when names had no module, as long as only one has its name. A name with a
    module never stands for a class of the library.

    Raises:
        ValueError: for a name that stands for none, or for several.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    last = str(name).rpartition(".")[2]
    found = [each for each in REGISTRY if "." in each and each.rpartition(".")[2] == last]
    if len(found) == 1:
        return REGISTRY[found[0]]
    several = f", and {' and '.join(found)} are other classes of that name" if found else ""
    raise ValueError(
        f"Expected a registered class; got {name!r}. If it is a class of your own, import the "
        f"module that defines it, decorated with made_flows.saveable{several}"
    )


def _copied(value: Any) -> Any:
    """Copy an argument's plain containers, arrays and tensors; keep other objects."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        copies = map(_copied, value)
        return list(copies) if isinstance(value, list) else tuple(copies)
    return value
