"""What a foreign layer needs for a fast inverse, made when it is needed and kept beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._torch import (
    has_concrete_values,
    has_finite_sum,
    is_autocast,
    is_forward_mode,
    is_traced,
    is_untransformed,
    modes_kept,
)
from made_flows.interop.conditioner import ForeignConditioner, priors_of
from made_flows.inverse import dispatch
from made_flows.inverse.d_pass import warn_of_passes
from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import sequential_inverse
from made_flows.inverse.steps import BijectionStep, HeadStep, Step
from made_flows.nn.linear import is_weight_hook
from made_flows.nn.made import MADE
from made_flows.nn.spec import Structure
from made_flows.nn.validation import NotUnderstoodError, Watch
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.heads import Head

_KEPT = "_made_flows_fast"


@dataclass
class Fast:
    """The fast inverse of one layer.

    Args:
        conditioner: the layer's network as the sequential inverse sees it.
        elementwise: the layer's elementwise map, or the head that it samples.
        net: the layer's network as the layer calls it; by default the conditioner's.
        differentiable: whether derivatives of the map can be taken as the inverse takes them.
        settings: what of the layer it was made of.
    """

    conditioner: ForeignConditioner | MADE
    elementwise: Bijection | Head
    net: nn.Module | None = None
    differentiable: bool = True
    settings: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        own = self.elementwise
        self.step: Step = HeadStep(own) if isinstance(own, Head) else BijectionStep(own, "inverse")
        inner = self.conditioner
        net = (inner if isinstance(inner, MADE) else inner.net) if self.net is None else self.net
        self._watch = Watch(net, is_weight_hook)
        self._noisy = [module for module in net.modules() if isinstance(module, _NOISY)]
        self._priors = [*map(priors_of, net.modules())]
        self._activations = inner.settings() if isinstance(inner, ForeignConditioner) else ()

    def holds(self) -> bool:
        """Tell whether the network is made of what it was made of when it was read."""
        inner = self.conditioner
        activations = inner.settings() if isinstance(inner, ForeignConditioner) else ()
        return self._watch.unchanged() and activations == self._activations

    def solve(self, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Find what the layer maps to the given values (..., D)."""
        return self.draw(known.unsqueeze(-1), context)

    def draw(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Find the values (..., D) that the layer makes of noise (..., D, P)."""
        if context is not None and context.dim() == 2 and context.stride(0) == 0:
            context = context[:1]  # the same row for all
        return sequential_inverse(cast(Conditioner, self.conditioner), self.step, noise, context)

    def expect_solvable(self, known: Any, context: Any = None) -> bool:
        """Say whether the fast inverse gives what the library's own would, for these arguments.

        A single feature is left to the library, whose loop is then one pass; so are arguments that
        do not fit, of which the library says what is wrong, and what depends on the mode.

        Raises:
            NotUnderstoodError: where it cannot, for a reason that a user may not think of.
        """
        if not self.steady():  # before its weights are looked at, which a look may change
            return False
        conditioner = self.conditioner
        like = conditioner.like
        fits = (
            conditioner.features > 1
            and not like.is_meta
            and _fits(known, conditioner.features, like)
            and known.numel() > 0
            and (
                context is None
                or (conditioner.context > 0 and _fits(context, conditioner.context, like))
            )
        )
        looked_at = not is_untransformed(known)  # in operators of torch, autograd does not record
        own = self.differentiable or not (looked_at or self._asks_for_gradient(known, context))
        if not (fits and own):
            return False
        _expect_reverse_mode_once()
        if looked_at:
            _ = conditioner.ranks  # refused where masks cannot be read, as those that are mapped
        if is_autocast(known):
            raise NotUnderstoodError("autocast computes parts of it in another precision")
        if not dispatch.pays(self.step, *self._size, known):
            return False
        _expect_finite(known, context)
        return True

    @cached_property
    def _size(self) -> tuple[Structure, int]:
        """The network's structure, and how many weights it has."""
        network = self.conditioner.spec(None)
        matrices = [tensor for tensor in network.tensors if tensor.dim() == 2]
        return network.structure, sum(map(Tensor.numel, matrices)) // 2  # the others are masks

    def steady(self) -> bool:
        """Tell whether every call computes the same: no dropout, no batch statistics, no priors."""
        noisy = (module.training and getattr(module, "p", 1) > 0 for module in self._noisy)
        return not (any(noisy) or any(self._priors))

    def _asks_for_gradient(self, *tensors: Tensor | None) -> bool:
        return torch.is_grad_enabled() and (
            any(tensor is not None and tensor.requires_grad for tensor in tensors)
            or any(weight.requires_grad for weight in self.conditioner.parameters())
        )


def _fits(tensor: Any, size: int, like: Tensor) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dim() > 0
        and tensor.shape[-1] == size
        and tensor.dtype == like.dtype
        and tensor.device == like.device
    )


def _expect_reverse_mode_once() -> None:
    """Raise where derivatives are being taken that the fast inverse does not have.

    It has first ones in reverse mode, and no trace of torch.jit records them.
    """
    levels = torch._C._functorch.get_interpreter_stack() or ()
    kinds = [level.key() for level in levels]
    transform = torch._C._functorch.TransformType
    if is_forward_mode() or transform.Jvp in kinds:
        raise NotUnderstoodError("derivatives are taken in forward mode")
    if kinds.count(transform.Grad) > 1:
        raise NotUnderstoodError("second derivatives are taken")
    if is_traced() and torch.is_grad_enabled():
        raise NotUnderstoodError("torch.jit.trace records gradients")


def _expect_finite(*tensors: Tensor | None) -> None:
    """Raise unless all values are finite: what becomes of others, the library's own passes say."""
    for tensor in tensors:
        if tensor is not None and has_concrete_values(tensor) and not has_finite_sum(tensor):
            raise NotUnderstoodError("some of the values are not finite")


_SPECTRAL = nn.utils.parametrizations._SpectralNorm
"""In training its estimate changes whenever the weight is looked at."""

_NOISY = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._BatchNorm,
    nn.RReLU,
    _SPECTRAL,
)
"""Modules that compute something else in every call of training; dropout if its p, which may be
changed, is not zero."""


class FastLayer:
    """Mixed into a foreign layer: reads how it works when that is first needed.

    It reads again when the layer has changed. Nothing of what it reads is saved or copied: a copy
    reads for itself.
    """

    def made_flows_read(self) -> Fast:
        """Read the layer; raise :class:`NotUnderstoodError` where it cannot be understood."""
        raise NotImplementedError

    @classmethod
    def made_flows_read_of(cls, layer: Any) -> Fast:
        """Read a layer, as :meth:`made_flows_read` does, whatever its network was made into.

        Raises:
            NotUnderstoodError: where it cannot be understood, or has not got what its class has.
        """
        estimates = [part for part in layer.modules() if isinstance(part, _SPECTRAL)]
        try:
            with modes_kept(estimates):
                for part in estimates:
                    part.eval()  # or every look at a weight would change it
                return cls.made_flows_read(layer)
        except NotUnderstoodError:
            raise
        except Exception as error:
            reason = f"it is not made as its class makes it ({type(error).__name__}: {error})"
            raise NotUnderstoodError(reason) from error

    def made_flows_settings(self) -> tuple[Any, ...]:
        """Return the network, and everything else that the fast inverse is made of."""
        raise NotImplementedError

    def made_flows_current(self) -> Fast | None:
        """Return the fast inverse of the layer as it is now, None where there is none."""
        try:
            return self._made_flows_look()
        except NotUnderstoodError:
            return None

    def _made_flows_look(self) -> Fast | None:
        fast: Fast | None = self.__dict__.get(_KEPT)
        if fast is None or not self._made_flows_holds(fast):
            self.made_flows_forget()
            if torch._C._functorch.peek_interpreter_stack() is not None:
                return None  # under torch.func masks cannot be read
            if any(weight.is_meta for weight in cast(nn.Module, self).parameters()):
                return None  # nor where there are no values
            fast = self.made_flows_keep(type(self).made_flows_read_of(self))
        return fast

    def _made_flows_holds(self, fast: Fast) -> bool:
        # Objects are compared and not values: what is kept reads the layer's tensors in each call.
        new, old = self.made_flows_settings(), fast.settings
        # Identity first: comparing tensors gives tensors.
        same = len(new) == len(old) and all(
            a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(new, old, strict=True)
        )
        return same and fast.holds()

    def made_flows_ready(self, known: Any, context: Any = None) -> Fast | None:
        """Return the fast inverse if it gives what the layer's own would, None if not.

        Warns:
            SlowInverseWarning: once for each reason why the layer's own has to take its passes.
        """
        if torch.compiler.is_compiling():
            return None  # nothing of what is looked up here can be traced; the library's loop can
        try:
            fast = self._made_flows_look()
            return fast if fast is not None and fast.expect_solvable(known, context) else None
        except NotUnderstoodError as reason:
            sized = isinstance(known, Tensor) and known.dim() > 0
            warn_of_passes(self, known.shape[-1] if sized else 1, reason)
            return None

    def made_flows_keep(self, fast: Fast) -> Fast:
        """Keep a fast inverse beside the layer, where it is no part of its state."""
        fast.settings = self.made_flows_settings()
        self.__dict__[_KEPT] = fast
        return fast

    def made_flows_forget(self) -> None:
        """Drop what was read."""
        self.__dict__.pop(_KEPT, None)

    @staticmethod
    def made_flows_rebind(layer: Any) -> None:
        """Bring methods that a layer has bound to itself in line with its class."""

    def __getstate__(self) -> Any:
        inherited = getattr(super(), "__getstate__", None)  # Python 3.10's objects have none
        state = self.__dict__ if inherited is None else inherited()
        if not isinstance(state, dict):
            return state
        return {name: value for name, value in state.items() if name != _KEPT}
