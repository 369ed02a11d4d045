"""Mixtures of models, and of the orders of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from made_flows._checks import expect, expect_type, positive_integer
from made_flows._registry import saveable
from made_flows.models.density import DensityModel
from made_flows.models.mixture_base import MixtureModel
from made_flows.models.order_schedule import OrderSchedule
from made_flows.nn import masks as mk

__all__ = ["Mixture", "OrderMixture"]


@saveable
class Mixture(MixtureModel):
    r"""A mixture of density models, or of any models that are called with a context.

    .. math:: \log p(x \mid c) = \log \sum_k w_k\, p_k(x \mid c)

    The average is one of probabilities of whole vectors. Averages of parameters (of logits, say)
    would not be normalised, and neither is a product of experts: its constant is a sum over all
    vectors.

    Args:
        components: the models; features and contexts are the same for all.
        weights: (K,), >= 0; scaled to sum to one. None for equal ones.

    Raises:
        TypeError: for components that are no models.
        ValueError: for none of them, for numbers of features or context variables that differ,
            and for weights of another number or sign.

    Example:
        >>> import made_flows as mf
        >>> mixture = Mixture([mf.GaussianMADE(3), mf.MAF(3)], weights=[0.7, 0.3])
        >>> mixture().log_prob(torch.zeros(10, 3)).shape, mixture().sample((5,)).shape
        (torch.Size([10]), torch.Size([5, 3]))
    """

    def __init__(self, components: Sequence[nn.Module], weights: Any = None) -> None:
        super().__init__()
        sequence = isinstance(components, (Sequence, nn.ModuleList))
        expect_type(sequence, "components", "to be a sequence of models", components)
        expect(len(components) > 0, "components", "to hold at least one model", "none")
        models: list[Any] = list(components)
        for i, model in enumerate(models):
            known = isinstance(model, nn.Module) and isinstance(
                getattr(model, "features", None), int
            )
            expect_type(known, f"components[{i}]", "to be a model with features", model)
            for name in ("features", "context"):
                wanted, got = (getattr(m, name, 0) for m in (models[0], model))
                expect(got == wanted, f"components[{i}]", f"to have {name}={wanted}", got)
        self.components = nn.ModuleList(models)
        self.training = any(model.training for model in models)
        self.features, self.context = models[0].features, getattr(models[0], "context", 0)
        self.set_weights(weights, len(models))

    def component(self, k: int) -> Any:
        return self.components[k]


@saveable
class OrderMixture(MixtureModel):
    r"""A mixture over orders, and masks, of one network.

    .. math:: \log p(x \mid c) = \log \sum_k w_k \prod_i p(x_i \mid x_{<_k i}, c)

    The model is one trained over orders (``orders="all"`` or K of them): each order is a density
    of its own, they disagree, and their mixture is better than their mean (Jensen's inequality).
    Where masks were trained too, every component has other degrees as well.

    Args:
        model: the density model, used as it is and not copied.
        orders: how many orders to draw, or the orders, (K, D). None for those that the model was
            trained on where they were a fixed set, else 16.
        weights: (K,), see :class:`Mixture`.
        generator: source of randomness for the orders and degrees.

    Raises:
        TypeError: for anything but a density model.
        ValueError: for the model of a graph, orders that are no permutations, more orders than
            the fixed set has that the model was trained on.

    References:
        Uria, Murray, Larochelle 2014, *A Deep and Tractable Density Estimator*, section 4.

    Example:
        >>> import made_flows as mf
        >>> model = mf.BernoulliMADE(6, orders="all")
        >>> mixture = OrderMixture(model, orders=8)
        >>> mixture().log_prob(torch.zeros(10, 6)).shape, mixture().sample((5,)).shape
        (torch.Size([10]), torch.Size([5, 6]))
    """

    orders: Tensor
    degrees: Tensor | None

    def __init__(
        self,
        model: DensityModel,
        orders: Any = None,
        *,
        weights: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        expect_type(isinstance(model, DensityModel), "model", "to be a DensityModel", model)
        expect(model.made.graph is None, "model", "to have an order", "the model of a graph")
        self.model = model
        self.training = model.training
        self.features, self.context = model.features, model.context
        schedule = model.schedule
        self.register_buffer("orders", _orders_of(model, schedule, orders, generator))
        count = len(self.orders)
        drawn = None
        if schedule is not None and (schedule.any_degrees or schedule.degrees is not None):
            layers = [schedule.draw_degrees(generator, turn=k) or () for k in range(count)]
            drawn = torch.stack([torch.cat(tuple(each)) for each in layers])
        self.register_buffer("degrees", drawn)
        self.set_weights(weights, count)

    def component(self, k: int) -> DensityModel:
        """The model in the k-th order."""
        degrees = None
        if self.degrees is not None:
            degrees = torch.split(self.degrees[k], list(self.model.made.shape.hidden))
        return self.model.arranged(self.orders[k], degrees)

    def extra_repr(self) -> str:
        return f"orders={len(self)}"


def _orders_of(
    model: DensityModel,
    schedule: OrderSchedule | None,
    orders: Any,
    generator: torch.Generator | None,
) -> Tensor:
    """K orders, (K, D): those given, those the model knows, or fresh ones."""
    fixed = None if schedule is None else schedule.orders
    only_masks = schedule is not None and not schedule.any_order and fixed is None
    if orders is None or (isinstance(orders, int) and not isinstance(orders, bool)):
        known = 16 if fixed is None else len(fixed)
        count = known if orders is None else positive_integer(orders, "orders")
        if fixed is not None:
            expect(count <= known, "orders", f"to be {known} at most, as was trained", count)
            return fixed[:count].clone()
        if only_masks:
            return model.made.order.expand(count, -1).clone()
        drawn = [mk.make_order(model.features, "random", generator) for _ in range(count)]
        return torch.stack(drawn).to(model.made.ranks.device)
    several = isinstance(orders, (Sequence, Tensor)) and not isinstance(orders, str)
    several = several or hasattr(orders, "__array__")
    expect_type(several, "orders", "to be a number of orders or orders (K, features)", orders)
    expect(len(orders) > 0, "orders", "to hold at least one order", "none")
    given = [mk.make_order(model.features, order) for order in orders]
    return torch.stack(given).to(model.made.ranks.device)
