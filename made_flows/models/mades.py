"""MADEs with each of the heads: Gaussians, mixtures of them, binary values, categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from made_flows._registry import own_arguments, saveable
from made_flows.models.density import DensityModel, draws_now
from made_flows.nn.made import MADE
from made_flows.univariate.heads import Bernoulli, Categorical, Gaussian, GaussianMixture, Head
from made_flows.univariate.scales import ScaleRule


class _HeadMADE(DensityModel):
    """A density model that makes its own conditioner."""

    def __init__(
        self,
        head: Head,
        features: int,
        context: int,
        hidden_features: Sequence[int] | None,
        *,
        order: Any,
        degrees: str,
        orders: Any,
        masks: Any,
        orders_per_batch: int | Literal["row"],
        mask_weights: bool | Literal["order"] | None,
        generator: torch.Generator | None,
        **network: Any,
    ) -> None:
        if mask_weights is None:  # networks whose masks change gain from being told them
            mask_weights = True if masks is not None else "order" if orders is not None else False
        drawn = draws_now(orders) or draws_now(masks)
        # Not for a network of which nothing is drawn, where orders or masks are.
        named = [word for word in (order, degrees) if isinstance(word, str)]
        random = "random" in named
        made = MADE(
            features, context, hidden_features, head.outputs, inputs=head.inputs, order=order,
            degrees=degrees, mask_weights=mask_weights,
            generator=generator if random or not drawn else None, **network,
        )  # fmt: skip
        super().__init__(
            made, head, orders=orders, masks=masks, orders_per_batch=orders_per_batch,
            generator=generator if drawn else None,
        )  # fmt: skip


@saveable
class GaussianMADE(_HeadMADE):
    r"""A MADE with Gaussian conditionals: mean and log-scale.

    .. math:: x_i \mid x_{<i}, c \sim \mathcal N(\mu_i, s_i^2)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers; by default two that grow with the features,
            see :class:`~made_flows.MADE`.
        scale: the rule from an output to the scale, see :class:`~made_flows.ScaleRule`.
        order, degrees, activation, residual, direct, dropout, adjacency, generator: as for
            :class:`~made_flows.MADE`.
        orders, masks, orders_per_batch: the orders and degrees that are trained, as for
            :class:`~made_flows.DensityModel`.
        mask_weights: as for :class:`~made_flows.MADE`; by default True with ``masks``, ``"order"``
            with ``orders`` alone, and False without either.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 2.2.

    Example:
        >>> import made_flows as mf
        >>> mf.GaussianMADE(4)().rsample((7,)).shape
        torch.Size([7, 4])
    """

    _former_defaults: ClassVar[dict[str, Any]] = {"activation": "relu", "hidden_features": (64, 64)}

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] | None = None,
        *,
        scale: str | ScaleRule = "bounded",
        order: Any = "natural",
        degrees: Literal["even", "random"] = "even",
        activation: Any = "tanh",
        residual: bool = False,
        direct: bool = False,
        dropout: float = 0.0,
        adjacency: Any = None,
        orders: Any = None,
        masks: Literal["all"] | int | None = None,
        orders_per_batch: int | Literal["row"] = 1,
        mask_weights: bool | Literal["order"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        arguments = own_arguments(locals())
        super().__init__(Gaussian(arguments.pop("scale")), **arguments)


@saveable
class GaussianMixtureMADE(_HeadMADE):
    r"""A MADE whose conditionals are mixtures of normals.

    .. math:: p(x_i \mid x_{<i}, c) = \sum_k \pi_{ik}\, \mathcal N(x_i; \mu_{ik}, s_{ik}^2)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers; by default two that grow with the features,
            see :class:`~made_flows.MADE`.
        components: number of components of every mixture.
        scale: the rule from outputs to scales, see :class:`~made_flows.ScaleRule`.
        order, degrees, activation, residual, direct, dropout, adjacency, generator: as for
            :class:`~made_flows.MADE`.
        orders, masks, orders_per_batch: the orders and degrees that are trained, as for
            :class:`~made_flows.DensityModel`.
        mask_weights: as for :class:`~made_flows.MADE`; by default True with ``masks``, ``"order"``
            with ``orders`` alone, and False without either.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 4.1 (MADE MoG).

    Example:
        >>> import made_flows as mf
        >>> mf.GaussianMixtureMADE(4, components=5)().sample((7,)).shape
        torch.Size([7, 4])
    """

    _former_defaults: ClassVar[dict[str, Any]] = {"activation": "relu", "hidden_features": (64, 64)}

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] | None = None,
        *,
        components: int = 8,
        scale: str | ScaleRule = "bounded",
        order: Any = "natural",
        degrees: Literal["even", "random"] = "even",
        activation: Any = "tanh",
        residual: bool = False,
        direct: bool = False,
        dropout: float = 0.0,
        adjacency: Any = None,
        orders: Any = None,
        masks: Literal["all"] | int | None = None,
        orders_per_batch: int | Literal["row"] = 1,
        mask_weights: bool | Literal["order"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        arguments = own_arguments(locals())
        head = GaussianMixture(arguments.pop("components"), arguments.pop("scale"))
        super().__init__(head, **arguments)


@saveable
class BernoulliMADE(_HeadMADE):
    r"""A MADE for binary data: logits.

    .. math:: p(x_i = 1 \mid x_{<i}, c) = \sigma(\ell_i)

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers; by default two that grow with the features,
            see :class:`~made_flows.MADE`.
        direct: whether inputs are also connected to outputs directly, where most of what a table
            of discrete values says is found; :func:`~made_flows.fit` keeps them sparse.
        order, degrees, activation, residual, dropout, adjacency, generator: as for
            :class:`~made_flows.MADE`.
        orders, masks, orders_per_batch: the orders and degrees that are trained, as for
            :class:`~made_flows.DensityModel`.
        mask_weights: as for :class:`~made_flows.MADE`; by default True with ``masks``, ``"order"``
            with ``orders`` alone, and False without either.

    References:
        Germain et al. 2015, *MADE: Masked Autoencoder for Distribution Estimation*.

    Example:
        >>> import made_flows as mf
        >>> mf.BernoulliMADE(4)().sample((7,)).shape
        torch.Size([7, 4])
    """

    _former_defaults: ClassVar[dict[str, Any]] = {"direct": False, "hidden_features": (64, 64)}

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] | None = None,
        *,
        order: Any = "natural",
        degrees: Literal["even", "random"] = "even",
        activation: Any = "relu",
        residual: bool = False,
        direct: bool = True,
        dropout: float = 0.0,
        adjacency: Any = None,
        orders: Any = None,
        masks: Literal["all"] | int | None = None,
        orders_per_batch: int | Literal["row"] = 1,
        mask_weights: bool | Literal["order"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(Bernoulli(), **own_arguments(locals()))


@saveable
class CategoricalMADE(_HeadMADE):
    r"""A MADE for categories: values are integers, read by the network as one-hot vectors.

    .. math:: p(x_i = k \mid x_{<i}, c) = \mathrm{softmax}(\ell_i)_k

    Args:
        features: number of features D.
        context: number of context variables C.
        hidden_features: widths of the hidden layers; by default two that grow with the features,
            see :class:`~made_flows.MADE`.
        categories: number of categories, the same for all features or one number each.
        direct: whether inputs are also connected to outputs directly, where most of what a table
            of discrete values says is found; :func:`~made_flows.fit` keeps them sparse.
        order, degrees, activation, residual, dropout, adjacency, generator: as for
            :class:`~made_flows.MADE`.
        orders, masks, orders_per_batch: the orders and degrees that are trained, as for
            :class:`~made_flows.DensityModel`.
        mask_weights: as for :class:`~made_flows.MADE`; by default True with ``masks``, ``"order"``
            with ``orders`` alone, and False without either.

    Example:
        >>> import made_flows as mf
        >>> mf.CategoricalMADE(3, categories=(2, 5, 3))().sample((7,)).shape
        torch.Size([7, 3])
    """

    _former_defaults: ClassVar[dict[str, Any]] = {"direct": False, "hidden_features": (64, 64)}

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] | None = None,
        *,
        categories: int | Sequence[int],
        order: Any = "natural",
        degrees: Literal["even", "random"] = "even",
        activation: Any = "relu",
        residual: bool = False,
        direct: bool = True,
        dropout: float = 0.0,
        adjacency: Any = None,
        orders: Any = None,
        masks: Literal["all"] | int | None = None,
        orders_per_batch: int | Literal["row"] = 1,
        mask_weights: bool | Literal["order"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        arguments = own_arguments(locals())
        super().__init__(Categorical(arguments.pop("categories"), features), **arguments)
