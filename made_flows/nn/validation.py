"""Whether a network computes what its class says: no hooks, overriding subclasses, wrapped layers.

The sequential inverse reads weights and masks, and never calls the layers. Where something else
takes part in what they compute, it would follow another network than the one that scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

from torch import nn

from made_flows._torch import has_global_hooks


class NotUnderstoodError(Exception):
    """A network computes something that cannot be read off its weights; the message says what."""


def expect_own(
    module: Any, library: type, names: Sequence[str] = ("forward",), fast: type | None = None
) -> None:
    """Raise unless a module is of a library's class and computes what that class computes.

    Args:
        module: the object.
        library: the library's class.
        names: methods that neither a subclass nor the object itself may have replaced.
        fast: a class whose methods may have replaced them.
    """
    kind = type(module)
    if not isinstance(module, library):
        name = f"{library.__module__.split('.')[0]} {library.__name__}"
        raise NotUnderstoodError(f"{kind.__name__} is not a {name}")
    for name in names:
        known = (getattr(library, name), getattr(fast, name, None))
        if getattr(kind, name) not in known or name in vars(module):
            raise NotUnderstoodError(f"{kind.__name__} has a {name} of its own")


def _no_hook(hook: Any) -> bool:
    return False


class Watch:
    """Remembers the modules that a network consists of, and the functions that they hold.

    Args:
        modules: the network, with all modules within; or several modules, by themselves.
        allowed: says of a forward pre-hook that it is accounted for (by default none is).

    Raises:
        NotUnderstoodError: if a module has forward hooks, which may change what it computes.
    """

    def __init__(
        self, modules: nn.Module | Iterable[nn.Module], allowed: Callable[[Any], bool] = _no_hook
    ) -> None:
        if has_global_hooks():
            raise NotUnderstoodError("there are forward hooks on all modules")
        within = list(modules.modules() if isinstance(modules, nn.Module) else modules)
        for module in within:
            kind = type(module).__name__
            if module._forward_hooks or not all(map(allowed, module._forward_pre_hooks.values())):
                raise NotUnderstoodError(f"{kind} has forward hooks")
            if "forward" in vars(module):
                raise NotUnderstoodError(f"a {kind} has a forward of its own")
        # By dictionaries, which torch's modules never exchange, and without a loop of Python's.
        self._own = [vars(module) for module in within]
        self._modules, self._kinds = within, [*map(type, within)]
        # An activation may be a function, which is in no table of modules.
        self._functions = [
            (own, name, value)
            for own in self._own
            for name, value in own.items()
            if not name.startswith("_") and callable(value)  # no tables, which no compiler calls
        ]
        self._empty: list[dict[Any, Any]] = [module._forward_hooks for module in within]
        self._filled: list[dict[Any, Any]] = []
        for module in within:
            tables: tuple[dict[Any, Any], ...] = (module._modules, module._forward_pre_hooks)
            for table in tables:
                (self._filled if table else self._empty).append(table)
        self._held = [*map(tuple, map(dict.values, self._filled))]

    def unchanged(self) -> bool:
        """Say whether they are still the same modules, without hooks. It takes 1 us."""
        return not (
            has_global_hooks()
            or any(self._empty)
            or [*map(tuple, map(dict.values, self._filled))] != self._held
            or any(map(dict.__contains__, self._own, repeat("forward")))
            or (self._functions and any(own.get(n) is not seen for own, n, seen in self._functions))
            or [*map(type, self._modules)] != self._kinds
        )
