"""A register of the classes that can be saved, and the arguments each object was made with."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

import torch

__all__ = ["REGISTRY", "saveable"]

REGISTRY: dict[str, type] = {}

T = TypeVar("T")


def saveable(cls: type[T]) -> type[T]:
    """Register a class by its name and let its objects remember their constructor's arguments.

    The arguments of the outermost constructor are kept in ``_arguments``, as given (defaults are
    left out, so that a file stays short; random generators are left out, as what they drew is in
    the buffers). :func:`made_flows.save` writes them, :func:`made_flows.load` calls the class
    with them.

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
            bound = dict(signature.bind(self, *args, **kwargs).arguments)
            bound.pop(next(iter(signature.parameters)))
            for parameter in signature.parameters.values():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    bound.update(bound.pop(parameter.name, {}))
            # Past nn.Module.__setattr__, which would register modules found among the arguments.
            self.__dict__["_arguments"] = {
                name: value
                for name, value in bound.items()
                if not isinstance(value, torch.Generator)
            }
        constructor(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    REGISTRY[cls.__name__] = cls
    return cls
