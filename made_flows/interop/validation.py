"""Whether a foreign network is what it was when it was read, and computes what its class says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Kept", "NotUnderstoodError", "Watch", "expect_own"]


class NotUnderstoodError(Exception):
    """A foreign layer computes something that is not known here; the message says what."""


def expect_own(module: Any, library: type, names: Sequence[str] = ("forward",)) -> None:
    """Raise unless a module is of a library's class and computes what that class computes.

    Args:
        module: the object.
        library: the library's class.
        names: methods that neither a subclass nor the object itself may have replaced.
    """
    kind = type(module)
    if not isinstance(module, library):
        raise NotUnderstoodError(f"{kind.__name__} is not a {_full_name(library)}")
    for name in names:
        if getattr(kind, name) is not getattr(library, name) or name in vars(module):
            raise NotUnderstoodError(f"{kind.__name__} has a {name} of its own")


def _full_name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]} {kind.__name__}"


class Watch:
    """Remembers the modules that a network consists of.

    Args:
        root: the network.

    Raises:
        NotUnderstoodError: if a module has forward hooks, which may change what it computes.
    """

    def __init__(self, root: nn.Module) -> None:
        self._seen = [(module, tuple(module._modules.values())) for module in root.modules()]
        for module, _ in self._seen:
            if module._forward_hooks or module._forward_pre_hooks:
                raise NotUnderstoodError(f"{type(module).__name__} has forward hooks")
            if "forward" in vars(module):
                raise NotUnderstoodError(f"a {type(module).__name__} has a forward of its own")

    def unchanged(self) -> bool:
        """Whether they are still the same modules, without hooks. Costs some microseconds."""
        for module, children in self._seen:
            own = module.__dict__
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or tuple(own["_modules"].values()) != children
                or "forward" in own
            ):
                return False
        return True


class Kept:
    """Tensors that are made anew in every call, but given out as the same objects if equal.

    The sequential inverse knows a network by the identity of its tensors, so that what is made of
    a host's tensors, a part of a weight or a scale, may not be another object in every call.
    Values are compared, rather than versions of what they are made of: those do not count every
    change (running statistics of batch normalisation, writes through ``.data``).
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, ...] = ()

    def same(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """What was given out before, if it equals what is given now."""
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, fresh)):
            return fresh
        if len(fresh) != len(self._kept) or not all(map(_equal, self._kept, fresh)):
            self._kept = fresh
        return self._kept


def _equal(one: Tensor, other: Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.device == other.device
    return same_kind and torch.equal(one, other)
