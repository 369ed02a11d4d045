"""Flows of this library with a context: conditional densities, and posteriors of encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pyro.distributions import Normal, TransformedDistribution
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn

import made_flows.models.autoregressive_flows as core
from made_flows._checks import check_broadcast, check_event, expect, positive_integer
from made_flows._keywords import helpful
from made_flows._registry import own_arguments
from made_flows.pyro.flow_transforms import FlowTransform, check_flow
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule


class ConditionalFlowTransform(ConditionalTransformModule):
    """A flow with a context, as a conditional transform of Pyro.

    Args:
        flow: a :class:`~made_flows.Flow` or one of its transforms, with ``context`` variables.

    Raises:
        TypeError: for another kind of object.
        ValueError: for a flow without a context.

    Example:
        >>> import torch, pyro.distributions as dist, made_flows as mf
        >>> conditional = ConditionalFlowTransform(mf.MAF(3, context=2))
        >>> base = dist.Normal(torch.zeros(3), torch.ones(3))
        >>> density = dist.ConditionalTransformedDistribution(base, [conditional])
        >>> density.condition(torch.zeros(10, 2)).rsample().shape
        torch.Size([10, 3])
    """

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow: Any = check_flow(flow)
        expect(bool(self.flow.context), "flow", "to take a context", "one made with context=0")

    @property
    def features(self) -> int:
        """Number of features D."""
        return cast(int, self.flow.features)

    def condition(self, context: Tensor) -> FlowTransform:
        """Return the transform under a context (..., C), with the flow among its parameters."""
        return FlowTransform(self.flow, context)


class ConditionalMAF(ConditionalFlowTransform):
    r"""Masked autoregressive flow with a context: densities :math:`p(y \mid c)` in one pass.

    Args:
        features: number of features D.
        context: number of context variables C.
        transforms, hidden_features: as for :class:`MAF`.
        order, normalize, bijection, scale, adjacency, degrees, activation, residual, direct,
            dropout, mask_weights, generator: as for :class:`made_flows.MAF`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(3), torch.ones(3))
        >>> density = dist.ConditionalTransformedDistribution(base, [ConditionalMAF(3, 2)])
        >>> density.condition(torch.zeros(10, 2)).log_prob(torch.zeros(10, 3)).shape
        torch.Size([10])
    """

    @helpful
    def __init__(
        self,
        features: int,
        context: int,
        transforms: int | None = None,
        hidden_features: Sequence[int] | None = None,
        *,
        order: Any = "reverse",
        normalize: Literal["batch", "actnorm"] | None = None,
        bijection: Literal["affine", "spline", "gated"] | Bijection = "affine",
        scale: str | ScaleRule | None = None,
        adjacency: Any = None,
        degrees: Literal["even", "random"] = "even",
        activation: Any = "tanh",
        residual: bool = False,
        direct: bool = False,
        dropout: float = 0.0,
        mask_weights: bool | Literal["order"] = False,
        generator: torch.Generator | None = None,
    ) -> None:
        positive_integer(context, "context")
        super().__init__(core.MAF(**own_arguments(locals())))


class ConditionalIAF(ConditionalFlowTransform):
    r"""Inverse autoregressive flow with a context: posteriors :math:`q(z \mid x)` of an encoder.

    .. math:: z_0 = \mu + \sigma \epsilon, \qquad
        z_t = s_t z_{t-1} + (1 - s_t)\, m_t, \qquad (m_t, s_t) = f_t(z_{t-1}, h)

    The encoder gives location :math:`\mu`, scale :math:`\sigma` and context h; calling the module
    with them gives the distribution of z. A sample and the log-density of that sample take one pass
    of every :math:`f_t`; the log-density of other points takes one sequential inverse of each.
    Without location and scale, :meth:`condition` gives the flow alone, as a transform of Pyro.

    Args:
        features: number of features D of z.
        context: number of context variables C.
        transforms: number of steps T; the order of the features is reversed after each. Two, since
            the encoder's location and scale have done the most; a :class:`MAF` alone has five.
        hidden_features: widths of the hidden layers of every conditioner.
        bijection: ``"gated"`` for the update above, or another as for :class:`made_flows.IAF`.
        order, normalize, scale, adjacency, degrees, activation, residual, direct, dropout,
            mask_weights, generator: as for :class:`made_flows.IAF`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*,
        algorithm 1 and section 4.

    Example:
        >>> import torch, pyro
        >>> posterior = ConditionalIAF(features=3, context=8)
        >>> loc, scale, h = torch.zeros(10, 3), torch.ones(10, 3), torch.randn(10, 8)
        >>> with pyro.plate("rows", 10):
        ...     z = pyro.sample("z", posterior(loc, scale, h))
        >>> z.shape
        torch.Size([10, 3])
    """

    @helpful
    def __init__(
        self,
        features: int,
        context: int,
        transforms: int = 2,
        hidden_features: Sequence[int] | None = None,
        *,
        order: Any = "reverse",
        normalize: Literal["batch", "actnorm"] | None = None,
        bijection: Literal["affine", "spline", "gated"] | Bijection = "gated",
        scale: str | ScaleRule | None = None,
        adjacency: Any = None,
        degrees: Literal["even", "random"] = "even",
        activation: Any = "relu",
        residual: bool = False,
        direct: bool = False,
        dropout: float = 0.0,
        mask_weights: bool | Literal["order"] = False,
        generator: torch.Generator | None = None,
    ) -> None:
        positive_integer(context, "context")
        super().__init__(core.IAF(**own_arguments(locals())))

    def forward(self, loc: Tensor, scale: Tensor, context: Tensor) -> TransformedDistribution:
        """Return the distribution of z, of event shape (D,).

        Args:
            loc: location (..., D) of the first step.
            scale: its scale (..., D), positive.
            context: (..., C).

        Raises:
            TypeError: for another dtype than that of the weights.
            ValueError: for shapes that do not fit, and scales that are not positive.
        """
        dtype = next(self.parameters()).dtype
        check_event(loc, "loc", self.features, dtype)
        check_event(scale, "scale", self.features, dtype)
        check_event(context, "context", self.flow.context, dtype)
        check_broadcast(loc=loc.shape[:-1], scale=scale.shape[:-1], context=context.shape[:-1])
        base = Normal(loc, scale).to_event(1)
        return TransformedDistribution(base, [self.condition(context)])
