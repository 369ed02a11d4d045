"""Pyro's autoregressive transforms with a context, noise to data, fast in both directions."""

from __future__ import annotations

from typing import Any

from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from made_flows.pyro.conditioners import ConditionedNetwork, network_of
from made_flows.pyro.transforms import AffineAutoregressive, SplineAutoregressive

__all__ = ["ConditionalAffineAutoregressive", "ConditionalSplineAutoregressive"]


class ConditionalAffineAutoregressive(ConditionalTransformModule):
    r"""Pyro's inverse autoregressive flow with a context, fast in both directions.

    .. math:: y_i = \mu_i(x_{<i}, c) + \sigma_i(x_{<i}, c)\, x_i

    Args:
        autoregressive_nn: the network, called as ``network(x, context=c)``.
        kwargs: further arguments of :class:`AffineAutoregressive`.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from made_flows.pyro import ConditionalAutoRegressiveNN
        >>> network = ConditionalAutoRegressiveNN(10, 4, [40])
        >>> transform = ConditionalAffineAutoregressive(network)
        >>> base = dist.Normal(torch.zeros(10), torch.ones(10))
        >>> flow = dist.ConditionalTransformedDistribution(base, [transform])
        >>> flow.condition(torch.zeros(3, 4)).sample((3,)).shape
        torch.Size([3, 10])
    """

    def __init__(self, autoregressive_nn: Any, **kwargs: Any) -> None:
        super().__init__()
        self.nn = network_of(autoregressive_nn)
        AffineAutoregressive(self.nn, **kwargs)  # complains now rather than when it is called
        self.kwargs = kwargs

    def condition(self, context: Tensor) -> AffineAutoregressive:
        """The transform under a context (..., C), with the network among its parameters."""
        return AffineAutoregressive(ConditionedNetwork(self.nn, context), **self.kwargs)


class ConditionalSplineAutoregressive(ConditionalTransformModule):
    r"""Pyro's autoregressive rational spline with a context, fast in both directions.

    .. math:: y_i = g(x_i; \theta_i(x_{<i}, c))

    Args:
        input_dim: number of features D.
        autoregressive_nn: the network, called as ``network(x, context=c)``.
        kwargs: further arguments of :class:`SplineAutoregressive`.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> import torch
        >>> from made_flows.pyro import ConditionalAutoRegressiveNN
        >>> network = ConditionalAutoRegressiveNN(3, 2, [30], param_dims=[8, 8, 7, 8])
        >>> transform = ConditionalSplineAutoregressive(3, network).condition(torch.zeros(5, 2))
        >>> transform(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, input_dim: int, autoregressive_nn: Any, **kwargs: Any) -> None:
        super().__init__()
        self.nn = network_of(autoregressive_nn)
        self.input_dim = SplineAutoregressive(input_dim, self.nn, **kwargs).features
        self.kwargs = kwargs

    def condition(self, context: Tensor) -> SplineAutoregressive:
        """The transform under a context (..., C), with the network among its parameters."""
        network = ConditionedNetwork(self.nn, context)
        return SplineAutoregressive(self.input_dim, network, **self.kwargs)
