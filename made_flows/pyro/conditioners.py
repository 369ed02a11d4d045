"""Networks of any origin as the conditioner of a transform for Pyro.

A network of this library, or Pyro's own, is inverted in about one pass. Any other function with a
``permutation`` works too, by one pass per feature, as in Pyro.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, cast

import torch
from pyro import nn as pyro_nn
from torch import Tensor, nn

from made_flows._checks import check_event, expect_type
from made_flows.inverse.sequential import Conditioner, sequential_inverse
from made_flows.inverse.steps import BijectionStep
from made_flows.nn.made import MADE
from made_flows.pyro.made_network import MADENetwork
from made_flows.pyro.networks import ConditionalAutoRegressiveNN
from made_flows.univariate.bijections import Bijection

__all__ = ["ConditionedNetwork", "network_of", "parameters_of", "solve"]


class ConditionedNetwork(nn.Module):
    """A network under a given context, with the interface of one without.

    Args:
        network: called as ``network(x, context=context)``.
        context: (..., C).

    Raises:
        TypeError, ValueError: for a context that the network does not take.
    """

    def __init__(self, network: nn.Module, context: Tensor) -> None:
        super().__init__()
        if isinstance(network, (ConditionalAutoRegressiveNN, MADENetwork)):
            network.check_context(context)
        else:
            # What another network takes, Pyro's say.
            expect_type(isinstance(context, Tensor), "context", "to be a torch.Tensor", context)
            if isinstance(network, pyro_nn.ConditionalAutoRegressiveNN):
                check_event(context, "context", network.context_dim)
        self.network = network
        self.context = context
        self.held_tensors = (context,)  # for the memory of a transform

    @property
    def permutation(self) -> Tensor:
        """The order: ``permutation[k]`` is the feature generated k-th."""
        return cast(Tensor, self.network.permutation)

    def get_permutation(self) -> Tensor:
        """The same."""
        return self.permutation

    def forward(self, x: Tensor) -> Any:
        """The network's parameters under the context."""
        return self.network(x, context=self.context)


def network_of(network: Any) -> Any:
    """What a transform keeps of the network it was given: a MADE gets Pyro's interface.

    Raises:
        TypeError: for anything that cannot be called or does not say its order.
    """
    if isinstance(network, MADE):
        return MADENetwork(network)
    if isinstance(network, functools.partial) and "context" in network.keywords:
        return ConditionedNetwork(network_of(network.func), network.keywords["context"])
    expect_type(
        callable(network) and hasattr(network, "permutation"),
        "autoregressive_nn",
        "to be a MADE or a network with Pyro's interface, a permutation among it",
        network,
    )
    return network


def parameters_of(network: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Parameters (..., D, K) of a network at x (..., D), whatever tuple of tensors it returns."""
    if isinstance(network, ConditionedNetwork):
        return parameters_of(network.network, x, network.context)
    # Straight to the layout wanted, unless someone listens to the module's calls.
    if not _watched(network):
        if isinstance(network, MADENetwork):
            return cast(Tensor, network.made(x, context))
        if isinstance(network, ConditionalAutoRegressiveNN):
            return network.evaluate(x, context)
    result = network(x) if context is None else network(x, context=context)
    parts = result if isinstance(result, tuple) else (result,)
    if all(part.dim() == x.dim() for part in parts):
        return torch.stack(parts, dim=-1)
    return torch.cat(parts, dim=-2).transpose(-1, -2)


def solve(network: Any, bijection: Bijection, y: Tensor) -> Tensor:
    """The x (..., D) that a transform which reads x maps to y (..., D)."""
    conditioner, context = _conditioner(network)
    if conditioner is None:
        return _pass_by_pass(network, bijection, y)
    check_event(y, "y", conditioner.features, conditioner.dtype)
    step = BijectionStep(bijection, "inverse")
    return sequential_inverse(conditioner, step, y.unsqueeze(-1), context)


def _conditioner(network: Any) -> tuple[Conditioner | None, Tensor | None]:
    """The network as the sequential inverse takes it, None if it is of an unknown kind."""
    if isinstance(network, ConditionedNetwork):
        return _conditioner(network.network)[0], network.context
    if isinstance(network, (ConditionalAutoRegressiveNN, MADENetwork)):
        return cast(Conditioner, network), None
    if isinstance(network, pyro_nn.ConditionalAutoRegressiveNN) and _computes_as_pyro(network):
        twin = _TWINS.get(network)
        if twin is None:
            twin = _TWINS[network] = _Twin(network)
        return cast(Conditioner, twin), None
    return None, None


def _computes_as_pyro(network: Any) -> bool:
    """Whether a network of Pyro's is not a subclass, nor hooked, to compute something else."""
    kind = type(network)
    known = (pyro_nn.AutoRegressiveNN.forward, pyro_nn.ConditionalAutoRegressiveNN.forward)
    return (
        kind.forward in known
        and kind._forward is pyro_nn.ConditionalAutoRegressiveNN._forward
        and not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    )


class _Twin(ConditionalAutoRegressiveNN):
    """A network of Pyro's, its layers and all, as one of this library's."""

    def __init__(self, network: Any) -> None:
        nn.Module.__init__(self)
        self.set_shapes(network.input_dim, network.context_dim, network.param_dims)
        self.layers, self.skip_layer = network.layers, network.skip_layer
        self.f = network.f
        self.__dict__["_network"] = weakref.ref(network)

    @property
    def permutation(self) -> Tensor:  # type: ignore[override]
        return cast(Tensor, self.__dict__["_network"]().permutation)


_TWINS: weakref.WeakKeyDictionary[nn.Module, _Twin] = weakref.WeakKeyDictionary()


def _pass_by_pass(network: Any, bijection: Bijection, y: Tensor) -> Tensor:
    """The inverse by D passes of the network, for networks that cannot be looked into."""
    x = torch.zeros_like(y)
    columns = torch.arange(y.shape[-1], device=y.device)
    for index in network.permutation:
        solved = bijection.inverse(y, parameters_of(network, x))[0]
        x = torch.where(columns == index, solved, x)
    return x


def _watched(network: Any) -> bool:
    """Whether a module has hooks of its own, which calls must go through."""
    own = vars(network)
    return bool(own.get("_forward_hooks") or own.get("_forward_pre_hooks"))
