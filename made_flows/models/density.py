"""Density models: a MADE with a head on it, called with a context to give a distribution."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from made_flows._checks import expect, expect_type
from made_flows._registry import saveable
from made_flows.distributions.autoregressive import AutoregressiveDistribution
from made_flows.distributions.conditional import ConditionalDistribution, HasConditionals
from made_flows.models.order_schedule import OrderSchedule
from made_flows.nn.made import MADE
from made_flows.univariate.heads import Bernoulli, Categorical, Gaussian, GaussianMixture, Head
from made_flows.univariate.scales import ScaleRule

__all__ = [
    "AutoregressiveDistribution",
    "BernoulliMADE",
    "CategoricalMADE",
    "DensityModel",
    "GaussianMADE",
    "GaussianMixtureMADE",
]


@saveable
class DensityModel(nn.Module, HasConditionals):
    r"""An autoregressive density: a MADE and a head.

    .. math:: \log p(x \mid c) = \sum_i \log p(x_i \mid \theta_i(x_{<i}, c))

    Calling the model with its context gives a :class:`torch.distributions.Distribution`.

    Args:
        made: the conditioner; made with ``parameters`` and ``inputs`` of the head (its
            ``outputs`` and ``inputs``).
        head: the distribution of one feature.
        orders: the orders that are trained, in place of the conditioner's alone: ``"all"`` draws
            a fresh one for every batch, a number K (or K orders, (K, D)) are taken in turn. In
            evaluation mode the model is one density again, that of the conditioner's order.
        masks: likewise for the degrees of the hidden units: ``"all"`` or a number of sets.
        orders_per_batch: how many orders a batch is cut into, or ``"row"`` for one each.
        generator: source of randomness for K orders or sets of degrees.

    Raises:
        TypeError: if the conditioner is not a MADE or the head is not a Head.
        ValueError: if their numbers of parameters or inputs differ, and for orders or masks of a
            conditioner of a graph.

    References:
        Uria et al. 2014, *A Deep and Tractable Density Estimator*; Germain et al. 2015, sections
        4.2-4.3.

    Example:
        >>> import made_flows as mf
        >>> model = mf.GaussianMADE(features=3, context=2)
        >>> distribution = model(torch.zeros(10, 2))
        >>> distribution.sample((5,)).shape, distribution.log_prob(torch.zeros(3)).shape
        (torch.Size([5, 10, 3]), torch.Size([10]))
    """

    schedule: OrderSchedule | None

    def __init__(
        self,
        made: MADE,
        head: Head,
        *,
        orders: Any = None,
        masks: Literal["all"] | int | None = None,
        orders_per_batch: int | Literal["row"] = 1,
        generator: torch.Generator | None = None,
    ) -> None:
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
        self.schedule = None
        scheduled = orders is not None or masks is not None
        if scheduled or orders_per_batch != 1:
            expect(scheduled, "orders_per_batch", "to be left out without orders or masks",
                   orders_per_batch)  # fmt: skip
            self.schedule = OrderSchedule(made, orders, masks, orders_per_batch, generator)
        self.takes_missing = self.schedule is not None and self.schedule.any_order
        # Plain attributes: looking modules up takes longer.
        self._drawn_in_training = self.schedule is not None
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

    def arranged(self, order: Any = None, degrees: Sequence[Tensor] | None = None) -> DensityModel:
        """A model of the same weights, not copies of them, in another order.

        Its call gives the density under that order, in training too. See
        :meth:`made_flows.MADE.arranged`.

        Args:
            order: the order, (D,), or a name; None for that of this model.
            degrees: degrees of the units of every hidden layer; None for those of this model.

        Example:
            >>> import made_flows as mf
            >>> model = mf.BernoulliMADE(4, orders="all")
            >>> model.arranged([3, 1, 0, 2])().sample().shape
            torch.Size([4])
        """
        return self._of(self.made.arranged(order, degrees))

    def _of(self, made: MADE) -> DensityModel:
        other = copy.copy(self)
        other._modules = {**self._modules, "made": made}
        other._drawn_in_training = False
        return other

    def conditional(
        self,
        x: Tensor,
        observed: Tensor | None = None,
        *,
        context: Tensor | None = None,
    ) -> ConditionalDistribution:
        """The distribution of the missing features of rows, given the observed ones.

        Models trained with ``orders="all"`` answer for any features; others where the observed
        ones come first in their order (for a graph: have all their parents).

        Args:
            x: (..., D), NaN where a value is missing.
            observed: boolean (..., D), which values are not missing, instead of NaN.
            context: (..., C), required if and only if the model has one.

        Raises:
            ValueError: for observed values outside the support, and for a question that a model
                of one order cannot answer, naming the feature that is in the way.

        Example:
            >>> import made_flows as mf
            >>> model = mf.GaussianMADE(3, orders="all")
            >>> rest = model.conditional(torch.tensor([1.0, float("nan"), 2.0]))
            >>> rest.sample((5,))[:, 0]
            tensor([1., 1., 1., 1., 1.])
        """
        return ConditionalDistribution(self, x, observed, context)

    @property
    def draws(self) -> bool:
        """Whether scores are those of drawn orders or masks: in training."""
        return self._drawn_in_training and self.training

    def outputs(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (..., D, K) from what the network reads, in training of drawn orders."""
        if self.draws and self.schedule is not None:
            return self.schedule.outputs(self.made, x, context)
        parameters: Tensor = self.made(x, context)
        return parameters


@saveable
class GaussianMADE(DensityModel):
    r"""A MADE with Gaussian conditionals: mean and log-scale.

    .. math:: x_i \mid x_{<i}, c \sim \mathcal N(\mu_i, s_i^2)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        scale: the rule from an output to the scale, see :class:`~made_flows.ScaleRule`.
        made: further arguments of :class:`~made_flows.MADE`, and ``orders``, ``masks`` and
            ``orders_per_batch`` of :class:`DensityModel`.

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
        options = _options(made)
        conditioner = MADE(features, context, hidden_features, head.outputs, **made)
        super().__init__(conditioner, head, **options)


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
        made: further arguments of :class:`~made_flows.MADE`, and ``orders``, ``masks`` and
            ``orders_per_batch`` of :class:`DensityModel`.

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
        options = _options(made)
        conditioner = MADE(features, context, hidden_features, head.outputs, **made)
        super().__init__(conditioner, head, **options)


@saveable
class BernoulliMADE(DensityModel):
    r"""A MADE for binary data: logits.

    .. math:: p(x_i = 1 \mid x_{<i}, c) = \sigma(\ell_i)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        made: further arguments of :class:`~made_flows.MADE`, and ``orders``, ``masks`` and
            ``orders_per_batch`` of :class:`DensityModel`.

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
        options = _options(made)
        conditioner = MADE(features, context, hidden_features, head.outputs, **made)
        super().__init__(conditioner, head, **options)


@saveable
class CategoricalMADE(DensityModel):
    r"""A MADE for categories: values are integers, read by the network as one-hot vectors.

    .. math:: p(x_i = k \mid x_{<i}, c) = \mathrm{softmax}(\ell_i)_k

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers.
        categories: number of categories, the same for all features or one number each.
        made: further arguments of :class:`~made_flows.MADE`, and ``orders``, ``masks`` and
            ``orders_per_batch`` of :class:`DensityModel`.

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
        options = _options(made)
        conditioner = MADE(
            features, context, hidden_features, head.outputs, inputs=head.inputs, **made
        )
        super().__init__(conditioner, head, **options)


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of a DensityModel out of those of its MADE."""
    names = ("orders", "masks", "orders_per_batch")
    options = {name: arguments.pop(name) for name in names if name in arguments}
    if options.get("orders") is not None or options.get("masks") is not None:
        options["generator"] = arguments.get("generator")
        # Networks whose masks change gain from being told them.
        arguments.setdefault("mask_weights", options.get("masks") is not None or "order")
    return options
