"""Density models: a MADE with a head on it, called with a context to give a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from made_flows._registry import saveable
from made_flows.checks import can_inspect, check_broadcast, check_event, expect_type
from made_flows.heads import Bernoulli, Categorical, Gaussian, GaussianMixture, Head
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.made import MADE
from made_flows.scales import ScaleRule

__all__ = [
    "AutoregressiveDistribution",
    "BernoulliMADE",
    "CategoricalMADE",
    "DensityModel",
    "GaussianMADE",
    "GaussianMixtureMADE",
]


@saveable
class DensityModel(nn.Module):
    r"""An autoregressive density: a MADE and a head.

    .. math:: \log p(x \mid c) = \sum_i \log p(x_i \mid \theta_i(x_{<i}, c))

    Calling the model with its context gives a :class:`torch.distributions.Distribution`.

    Args:
        made: the conditioner; made with ``parameters`` and ``inputs`` of the head (its
            ``outputs`` and ``inputs``).
        head: the distribution of one feature.

    Raises:
        TypeError: if the conditioner is not a MADE or the head is not a Head.
        ValueError: if their numbers of parameters or inputs differ.

    Example:
        >>> import made_flows as mf
        >>> model = mf.GaussianMADE(features=3, context=2)
        >>> distribution = model(torch.zeros(10, 2))
        >>> distribution.sample((5,)).shape, distribution.log_prob(torch.zeros(3)).shape
        (torch.Size([5, 10, 3]), torch.Size([10]))
    """

    def __init__(self, made: MADE, head: Head) -> None:
        super().__init__()
        expect_type(isinstance(made, MADE), "made", "to be a MADE", made)
        expect_type(isinstance(head, Head), "head", "to be a Head", head)
        for argument, name in (("parameters", "outputs"), ("inputs", "inputs")):
            wanted = getattr(head, name)
            wanted = (wanted,) * made.features if isinstance(wanted, int) else tuple(wanted)
            if getattr(made, name) != wanted:
                raise ValueError(
                    f"Expected made to have {argument}={getattr(head, name)}, as its head "
                    f"{type(head).__name__} needs; got {getattr(made, name)[0]}"
                )
        self.made = made
        self.head = head
        start = head.initial_parameters()
        bias = made.layers[-1].bias
        if start is not None and isinstance(bias, Tensor):
            with torch.no_grad():
                bias.copy_(start.repeat(made.features))

    @property
    def features(self) -> int:
        """Number of features D."""
        return self.made.features

    @property
    def context(self) -> int:
        """Number of context variables C."""
        return self.made.context

    def forward(self, context: Tensor | None = None) -> AutoregressiveDistribution:
        """The distribution of the features, given the context (..., C)."""
        return AutoregressiveDistribution(self, context)


class AutoregressiveDistribution(Distribution):
    """The distribution of a density model under a given context.

    Its batch shape is that of the context, () without one; its event shape is (D,). Scores take
    one pass of the network, samples one sequential inverse.

    Args:
        model: the density model.
        context: (..., C), if the model has one.
        validate_args: whether values are checked before they are scored (torch's default: yes).

    Raises:
        ValueError: for a context that is missing, superfluous or of the wrong shape, and for
            values outside the support, naming the first row and column.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as torch declares it)

    def __init__(
        self,
        model: DensityModel,
        context: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.model = model
        self.context = model.made.check_context(context)
        batch_shape = torch.Size() if self.context is None else self.context.shape[:-1]
        super().__init__(batch_shape, torch.Size((model.features,)), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Where values live: vectors of the head's support."""
        return constraints.independent(self.model.head.support, 1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return HeadStep(self.model.head).differentiable

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> AutoregressiveDistribution:
        """The same distribution with a larger batch shape.

        Raises:
            ValueError: for a shape that the batch shape does not broadcast to.
        """
        new: AutoregressiveDistribution = self._get_checked_instance(
            AutoregressiveDistribution, _instance
        )
        batch_shape = torch.Size(batch_shape)
        if check_broadcast(expanded=batch_shape, batch_shape=self.batch_shape) != batch_shape:
            raise ValueError(
                f"Expected a shape that batch_shape {tuple(self.batch_shape)} broadcasts to; got "
                f"{tuple(batch_shape)}"
            )
        new.model = self.model
        new.context = None if self.context is None else self.context.expand(*batch_shape, -1)
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _validate_sample(self, value: Tensor) -> None:
        check_event(value, "value", self.model.features)
        check_broadcast(value=value.shape[:-1], batch_shape=self.batch_shape)
        if can_inspect(value):
            self.model.head.check_values(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of values (..., D): of shape (...), broadcast with the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        model = self.model
        parameters = model.made(model.head.encode(value, model.made.dtype), self.context)
        each = model.head.log_prob(value, parameters).sum(dim=-1)
        return each.expand(check_broadcast(value=each.shape, batch_shape=self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples of shape (*sample_shape, *batch_shape, D), by one sequential inverse."""
        with torch.no_grad():
            return self._draw(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples that carry gradients to weights and context, by one sequential inverse."""
        if not self.has_rsample:
            raise NotImplementedError(
                f"Samples of a {type(self.model.head).__name__} head carry no gradients; "
                "use sample()"
            )
        return self._draw(sample_shape)

    def _draw(self, sample_shape: Sequence[int]) -> Tensor:
        model = self.model
        shape = self._extended_shape(torch.Size(sample_shape))
        like = model.made.ranks.new_empty(0, dtype=model.made.dtype)
        noise = model.head.noise(shape, like)
        return sequential_inverse(model.made, HeadStep(model.head), noise, self.context)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"AutoregressiveDistribution({type(self.model).__name__}, {shapes})"


@saveable
class GaussianMADE(DensityModel):
    r"""A MADE with Gaussian conditionals: mean and log-scale.

    .. math:: x_i \mid x_{<i}, c \sim \mathcal N(\mu_i, s_i^2)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        scale: the rule from an output to the scale, see :class:`~made_flows.ScaleRule`.
        made: further arguments of :class:`~made_flows.MADE`.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 2.2.

    Example:
        >>> import made_flows as mf
        >>> mf.GaussianMADE(4)().rsample((7,)).shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        *,
        scale: str | ScaleRule = "bounded",
        **made: Any,
    ) -> None:
        head = Gaussian(scale)
        super().__init__(MADE(features, context, hidden_features, head.outputs, **made), head)


@saveable
class GaussianMixtureMADE(DensityModel):
    r"""A MADE whose conditionals are mixtures of normals.

    .. math:: p(x_i \mid x_{<i}, c) = \sum_k \pi_{ik}\, \mathcal N(x_i; \mu_{ik}, s_{ik}^2)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        components: number of components of every mixture.
        scale: the rule from outputs to scales, see :class:`~made_flows.ScaleRule`.
        made: further arguments of :class:`~made_flows.MADE`.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 4.1 (MADE MoG).

    Example:
        >>> import made_flows as mf
        >>> mf.GaussianMixtureMADE(4, components=5)().sample((7,)).shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        *,
        components: int = 8,
        scale: str | ScaleRule = "bounded",
        **made: Any,
    ) -> None:
        head = GaussianMixture(components, scale)
        super().__init__(MADE(features, context, hidden_features, head.outputs, **made), head)


@saveable
class BernoulliMADE(DensityModel):
    r"""A MADE for binary data: logits.

    .. math:: p(x_i = 1 \mid x_{<i}, c) = \sigma(\ell_i)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        made: further arguments of :class:`~made_flows.MADE`.

    References:
        Germain et al. 2015, *MADE: Masked Autoencoder for Distribution Estimation*.

    Example:
        >>> import made_flows as mf
        >>> mf.BernoulliMADE(4)().sample((7,)).shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        **made: Any,
    ) -> None:
        head = Bernoulli()
        super().__init__(MADE(features, context, hidden_features, head.outputs, **made), head)


@saveable
class CategoricalMADE(DensityModel):
    r"""A MADE for categories: values are integers, read by the network as one-hot vectors.

    .. math:: p(x_i = k \mid x_{<i}, c) = \mathrm{softmax}(\ell_i)_k

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        categories: number of categories, the same for all features or one number each.
        made: further arguments of :class:`~made_flows.MADE`.

    Example:
        >>> import made_flows as mf
        >>> mf.CategoricalMADE(3, categories=(2, 5, 3))().sample((7,)).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        *,
        categories: int | Sequence[int],
        **made: Any,
    ) -> None:
        head = Categorical(categories, features)
        conditioner = MADE(
            features, context, hidden_features, head.outputs, inputs=head.inputs, **made
        )
        super().__init__(conditioner, head)
