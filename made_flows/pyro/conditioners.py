"""Networks of any origin as the conditioner of a transform for Pyro.

A network of this library, or Pyro's own, is inverted in about one pass. Any other function with a
``permutation`` works too, by one pass per feature, as in Pyro.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from pyro import nn as pyro_nn
from torch import Tensor, nn

from made_flows._checks import check_event, check_finite, expect_type
from made_flows._torch import is_hooked
from made_flows.interop.libraries import pyro as interop
from made_flows.nn.made import MADE
from made_flows.pyro.networks import ConditionalAutoRegressiveNN, MADENetwork
from made_flows.univariate.bijections import Bijection


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
        check_finite(context, "context")
        self.network = network
        self.context = context
        self.held_tensors = (context,)  # for the memory of a transform

    @property
    def permutation(self) -> Tensor:
        """The order: ``permutation[k]`` is the feature generated k-th."""
        return cast(Tensor, self.network.permutation)

    def get_permutation(self) -> Tensor:
        """Return the same."""
        return self.permutation

    def forward(self, x: Tensor) -> Any:
        """Return the network's parameters under the context."""
        return self.network(x, context=self.context)


def network_of(network: Any) -> Any:
    """Return what a transform keeps of the network it was given: a MADE gets Pyro's interface.

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


def parameters_of(network: Any, x: Tensor) -> Tensor:
    """Return parameters (..., D, K) of a network at x (..., D), whatever it returns."""
    network, context = without_context(network)
    # Straight to the layout wanted, unless someone listens to the module's calls.
    if isinstance(network, nn.Module) and not is_hooked(network):
        if isinstance(network, MADENetwork):
            return cast(Tensor, network.made(x, context))
        if isinstance(network, ConditionalAutoRegressiveNN):
            return network.evaluate(x, context)
    return interop.parameters_of(network, x, context)


def without_context(network: Any) -> tuple[Any, Tensor | None]:
    """Return a network, and the context that it is under, if it is under one."""
    if isinstance(network, ConditionedNetwork):
        return network.network, network.context
    return network, None


def pass_by_pass(network: Any, bijection: Bijection, y: Tensor) -> Tensor:
    """Return the x (..., D) that a transform which reads x maps to y (..., D), by D passes."""
    x = torch.zeros_like(y)
    columns = torch.arange(y.shape[-1], device=y.device)
    for index in network.permutation:
        solved = bijection.inverse(y, parameters_of(network, x))[0]
        x = torch.where(columns == index, solved, x)
    return x
