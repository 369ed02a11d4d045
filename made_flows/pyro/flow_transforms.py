"""Flows of this library as transforms of Pyro: MAF and IAF, each a class of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributions import constraints

import made_flows.models.autoregressive_flows as core
from made_flows._checks import check_broadcast, check_event, described, expect, expect_type
from made_flows._keywords import helpful
from made_flows._registry import own_arguments
from made_flows.models.flows import Flow
from made_flows.pyro.base import VectorTransform
from made_flows.transforms.base import Transform
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule


class FlowTransform(VectorTransform):
    r"""A transform or flow of this library as a transform of Pyro, from noise to data.

    Of a flow, the transforms are taken and the base is not. Weights are shared. A context that is
    given takes part in the shapes: with a batch of contexts, a transformed distribution has a
    batch shape, whether its base has one or not.

    Args:
        flow: a :class:`~made_flows.Flow` or one of its transforms.
        context: (..., C) if the flow takes one.

    Raises:
        TypeError: for another kind of object.
        ValueError: for a context that is missing or superfluous.

    Example:
        >>> import torch, pyro.distributions as dist, made_flows as mf
        >>> transform = FlowTransform(mf.InvertibleLinear(3))
        >>> flow = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1), [transform])
        >>> flow.rsample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, flow: nn.Module, context: Tensor | None = None) -> None:
        super().__init__(cache_size=1)
        self.flow: Any = check_flow(flow)
        if self.flow.context:
            wanted = f"of shape (..., {self.flow.context}), as the flow takes one"
            expect(context is not None, "context", wanted, "none")
            check_event(context, "context", self.flow.context)
        else:
            left_out = "to be left out, as the flow takes none"
            expect(context is None, "context", left_out, described(context))
        self.context = context
        self.held_tensors = () if context is None else (context,)  # for the memory

    @property
    def features(self) -> int:  # type: ignore[override]
        """Number of features D."""
        return cast(int, self.flow.features)

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """Where data live."""
        return self._chain()[0].support

    def _chain(self) -> list[Transform]:
        return self.flow._chain() if isinstance(self.flow, Flow) else [self.flow]

    def _to_data_is_parallel(self) -> bool:
        return all(transform.data_pass == "parallel" for transform in self._chain())

    def to_data(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._to_data_is_parallel():
            return cast(tuple[Tensor, Tensor], self.flow.to_data(x, self.context))
        # The log-determinant of a sequential direction is extra work, and may not be wanted.
        return self.flow.generate(x, self.context), None

    def to_noise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self.flow.to_noise(y, self.context)
        return x, -log_det

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        if self._to_data_is_parallel():
            return cast(Tensor, self.flow.to_data(x, self.context)[1])
        return -cast(Tensor, self.flow.to_noise(y, self.context)[1])

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Broadcast shapes with the context's: a batch of contexts makes a batch."""
        if self.context is None:
            return torch.Size(shape)
        batch = check_broadcast(values=shape[:-1], context=self.context.shape[:-1])
        return torch.Size((*batch, *shape[-1:]))

    inverse_shape = forward_shape


class IAF(FlowTransform):
    r"""Inverse autoregressive flow: from noise to data, whose conditioners read the noise.

    .. math:: y_i = g(x_i; \theta_i(x_{<i}))

    One pass to sample, with the log-density of the sample: for posteriors in guides. ``.inv``
    takes about one pass per transform too, as a sequential inverse.

    Args:
        features: number of features D.
        transforms, hidden_features, order, normalize, bijection, scale, adjacency, degrees,
            activation, residual, direct, dropout, mask_weights, generator: by name alone, as for
            :class:`made_flows.IAF`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> guide = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1), [IAF(3)])
        >>> guide.log_prob(guide.rsample((5,))).shape
        torch.Size([5])
    """

    @helpful
    def __init__(
        self,
        features: int,
        *,
        transforms: int | None = None,
        hidden_features: Sequence[int] | None = None,
        order: Any = "reverse",
        normalize: Literal["batch", "actnorm"] | None = None,
        bijection: Literal["affine", "spline", "gated"] | Bijection = "affine",
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
        super().__init__(core.IAF(**own_arguments(locals())))


class MAF(FlowTransform):
    r"""Masked autoregressive flow: from noise to data, whose conditioners read the data.

    .. math:: y_i = g(x_i; \theta_i(y_{<i}))

    One pass to score data: for density estimation by ``pyro.sample("x", ..., obs=x)``. Sampling
    takes about one pass per transform too, as a sequential inverse. In Pyro this is written
    ``AffineAutoregressive(...).inv``, which loses its weights when it is pickled.

    Args:
        features: number of features D.
        transforms, hidden_features, order, normalize, bijection, scale, adjacency, degrees,
            activation, residual, direct, dropout, mask_weights, generator: by name alone, as for
            :class:`made_flows.MAF`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow for Density Estimation*.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> density = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1), [MAF(3)])
        >>> density.log_prob(torch.zeros(5, 3)).shape, density.sample((5,)).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    @helpful
    def __init__(
        self,
        features: int,
        *,
        transforms: int | None = None,
        hidden_features: Sequence[int] | None = None,
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
        super().__init__(core.MAF(**own_arguments(locals())))


def check_flow(flow: Any) -> Any:
    """Return the flow, if it is one of this library's.

    Raises:
        TypeError: for another kind of object.
    """
    known = isinstance(flow, (Flow, Transform))
    expect_type(known, "flow", "to be a Flow or a Transform of made_flows", flow)
    return flow
