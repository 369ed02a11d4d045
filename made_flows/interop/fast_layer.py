"""What a layer of a host needs for a fast inverse, made when it is needed and kept beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from made_flows.interop.conditioner import ForeignConditioner
from made_flows.interop.own import OwnConditioner
from made_flows.interop.validation import NotUnderstoodError, Watch
from made_flows.inverse.sequential import Conditioner, sequential_inverse
from made_flows.inverse.steps import BijectionStep
from made_flows.univariate.bijections import Bijection

__all__ = ["Fast", "FastLayer", "log_det_skipped", "skip_log_det"]

_KEPT = "_made_flows_fast"


@dataclass
class Fast:
    """The fast inverse of one layer.

    Args:
        conditioner: the layer's network.
        bijection: its elementwise map.
        differentiable: whether derivatives of the map can be taken as the inverse takes them.
        settings: what of the layer it was made of.
    """

    conditioner: ForeignConditioner | OwnConditioner
    bijection: Bijection
    differentiable: bool = True
    settings: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self.step = BijectionStep(self.bijection, "inverse")
        self.watch = Watch(self.conditioner.net)

    def solve(self, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Where the layer maps to the given values (..., D)."""
        conditioner = cast(Conditioner, self.conditioner)
        return sequential_inverse(conditioner, self.step, known.unsqueeze(-1), context)

    def can_solve(self, known: Any, context: Any = None) -> bool:
        """Whether the fast inverse gives what the host's own would, for these arguments.

        A single feature is left to the host, whose loop is then one pass.
        """
        conditioner = self.conditioner
        return (
            conditioner.features > 1
            and _fits(known, conditioner.features, conditioner)
            and known.numel() > 0
            and (
                context is None
                or (conditioner.context > 0 and _fits(context, conditioner.context, conditioner))
            )
            and conditioner.steady()
            and (self.differentiable or not _asks_for_gradient(conditioner, known, context))
            and torch.autograd.forward_ad._current_level < 0
            and not torch.is_autocast_enabled(conditioner.device.type)
        )


def _fits(tensor: Any, size: int, conditioner: ForeignConditioner | OwnConditioner) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dim() > 0
        and tensor.shape[-1] == size
        and tensor.dtype == conditioner.dtype
        and tensor.device == conditioner.device
    )


def _asks_for_gradient(
    conditioner: ForeignConditioner | OwnConditioner, *tensors: Tensor | None
) -> bool:
    return torch.is_grad_enabled() and (
        any(tensor is not None and tensor.requires_grad for tensor in tensors)
        or any(weight.requires_grad for weight in conditioner.parameters())
    )


class FastLayer:
    """Mixed into a host's layer: finds out how it works when that is first needed.

    And again when the layer has changed.

    Nothing of what it finds out is saved or copied: a copy finds out for itself.
    """

    def made_flows_read(self) -> Fast:
        """Reads the layer; raises :class:`NotUnderstoodError` where it cannot."""
        raise NotImplementedError

    def made_flows_settings(self) -> tuple[Any, ...]:
        """The network, and everything else that the fast inverse is made of."""
        raise NotImplementedError

    def made_flows_current(self) -> Fast | None:
        """The fast inverse of the layer as it is now, None where there is none."""
        fast: Fast | None = self.__dict__.get(_KEPT)
        try:
            if fast is None or not self._made_flows_holds(fast):
                if torch._C._functorch.peek_interpreter_stack() is not None:
                    return None  # under torch.func masks cannot be read
                fast = self.made_flows_keep(self.made_flows_read())
        except NotUnderstoodError:
            self.__dict__.pop(_KEPT, None)
            return None
        return fast

    def _made_flows_holds(self, fast: Fast) -> bool:
        new, old = self.made_flows_settings(), fast.settings
        # Identity first: comparing tensors gives tensors.
        same = len(new) == len(old) and all(
            a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(new, old, strict=True)
        )
        return same and fast.watch.unchanged()

    def made_flows_ready(self, known: Any, context: Any = None) -> Fast | None:
        """The fast inverse if it gives what the layer's own would, None if not."""
        if torch.compiler.is_compiling():
            return None  # nothing of what is looked up here can be traced; the host's loop can
        fast = self.made_flows_current()
        try:
            return fast if fast is not None and fast.can_solve(known, context) else None
        except NotUnderstoodError:
            return None

    def made_flows_keep(self, fast: Fast) -> Fast:
        """Keeps a fast inverse beside the layer, where it is no part of its state."""
        fast.settings = self.made_flows_settings()
        self.__dict__[_KEPT] = fast
        return fast

    def made_flows_forget(self) -> None:
        """Drops what was found out."""
        self.__dict__.pop(_KEPT, None)

    @staticmethod
    def made_flows_rebind(layer: Any) -> None:
        """Brings methods that a layer has bound to itself in line with its class."""

    def __getstate__(self) -> Any:
        inherited = getattr(super(), "__getstate__", None)  # Python 3.10's objects have none
        state = self.__dict__ if inherited is None else inherited()
        if not isinstance(state, dict):
            return state
        return {name: value for name, value in state.items() if name != _KEPT}


_VALUES_WANTED: ContextVar[bool] = ContextVar("log_det_skipped", default=False)


@contextmanager
def skip_log_det() -> Iterator[None]:
    """Within, the caller drops log-determinants, so that layers need not compute them."""
    token = _VALUES_WANTED.set(True)
    try:
        yield
    finally:
        _VALUES_WANTED.reset(token)


def log_det_skipped() -> bool:
    """Whether the caller wants values alone."""
    return _VALUES_WANTED.get()
