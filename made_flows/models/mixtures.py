"""Mixtures of models, and of the orders of one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._checks import (
    as_numbers,
    check_event,
    check_generator,
    expect,
    expect_type,
    non_negative_integer,
    positive_integer,
    real_number,
)
from made_flows._registry import saveable
from made_flows._torch import has_concrete_values, modes_kept
from made_flows.distributions.conditional import ConditionalMixture
from made_flows.distributions.mixture import MixtureDistribution, in_chunks
from made_flows.models.base import HasConditionals, Model, check_model, same_support
from made_flows.models.density import DensityModel
from made_flows.models.mixture_weights import MixtureGain, WeightFit, fit_sparse_weights
from made_flows.models.order_schedule import OrderSchedule, fixed_orders
from made_flows.transforms.units import Units
from made_flows.univariate.heads import value_support


class MixtureModel(Model, HasConditionals, ABC):
    """What mixtures have in common: components, weights, and a distribution when called.

    Attributes:
        weights: the weight of every component, (K,); they sum to one.
        features: number of features D.
        context: number of context variables C.
    """

    weights: Tensor

    def set_weights(self, weights: Any, count: int) -> None:
        """Register a number of weights, equal ones for None."""
        if weights is None:
            checked = torch.full((count,), 1 / count)
        else:
            checked = as_numbers(weights, "weights").to(torch.get_default_dtype(), copy=True)
            shape = tuple(checked.shape)
            expect(shape == (count,), "weights", f"of shape ({count},), one each", shape)
            valid = bool((torch.isfinite(checked) & (checked >= 0)).all())
            valid = valid and bool(checked.sum() > 0)
            expect(valid, "weights", "to be >= 0, finite and not all 0", checked.tolist())
            checked /= checked.sum()
        self.register_buffer("weights", checked)

    def standardizable(self) -> list[Units]:
        """Return the units of the components that have some that training may set."""
        each = [self.component(k).standardizable() for k in range(len(self))]
        # The orders of one model share its units.
        distinct = {id(units): units for found in each for units in found}
        return list(distinct.values())

    def standardizable_throughout(self) -> bool:
        return all(self.component(k).standardizable_throughout() for k in range(len(self)))

    @abstractmethod
    def component(self, k: int) -> Model:
        """Return the k-th component."""

    def used(self) -> list[int]:
        """Return the numbers of the components whose weights are not known to be zero."""
        weights = self.weights
        known = weights.tolist() if has_concrete_values(weights) else [1.0] * len(self)
        return [k for k, weight in enumerate(known) if weight != 0]

    def log_weights(self, like: Tensor) -> Tensor:
        """Return logarithms of the weights, of the dtype and on the device of another tensor."""
        weights = self.weights.to(like)
        return (weights / weights.sum()).log()  # they were rounded to the model's own dtype

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        """Show the weights: not by ``extra_repr``, which says what training leaves as it is."""
        text = super().__repr__()
        if not has_concrete_values(self.weights) or len({*self.weights.tolist()}) == 1:
            return text
        weights = ", ".join(f"{weight:.3g}" for weight in self.weights.tolist())
        return text.replace("(\n", f"(\n  weights=({weights})\n", 1)

    def distribution(self, context: Tensor | None = None) -> MixtureDistribution:
        """Return the distribution of the features, given the context (..., C)."""
        return MixtureDistribution(self, context)

    def component_log_probs(
        self, x: Tensor, context: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Score under every component, (..., K); -inf where its weight is zero.

        Args:
            x: (..., D).
            context: (..., C), if the models take one.
            observed: boolean (..., D), which features are not missing.
        """
        check_event(x, "x", self.features)
        columns: list[Tensor | None] = [None] * len(self)
        for k in self.used():
            component = self.component(k)
            if observed is not None:
                _expect_marginals(component)

            def score(
                x: Tensor, context: Tensor | None, observed: Tensor | None, model: Any = component
            ) -> Tensor:
                distribution = model.distribution(context)
                given = (x,) if observed is None else (x, observed)
                return cast(Tensor, distribution.log_prob(*given))

            columns[k] = in_chunks(score, x, context, observed)
        like = next(column for column in columns if column is not None)
        absent = torch.full_like(like, -torch.inf, requires_grad=False)
        return torch.stack([absent if c is None else c for c in columns], dim=-1)

    def conditional(
        self, x: Tensor, observed: Tensor | None = None, *, context: Tensor | None = None
    ) -> ConditionalMixture:
        """Return the distribution of the missing features of rows, given the observed ones.

        Args:
            x: (..., D), NaN where a value is missing.
            observed: boolean (..., D), which values are not missing, instead of NaN.
            context: (..., C), if the models take one.

        Raises:
            TypeError: for components that are no density models.
            ValueError: as :meth:`made_flows.DensityModel.conditional` does.
        """
        for k in range(len(self)):
            _expect_marginals(self.component(k))
        return ConditionalMixture(self, x, observed, context)

    @property
    def takes_missing(self) -> bool:
        """Whether NaN stands for a missing value: where all components were trained for that."""
        models = (self.component(k) for k in range(len(self)))
        return all(getattr(model, "takes_missing", False) for model in models)

    @torch.no_grad()
    def fit_weights(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        iterations: int = 1000,
        tolerance: float = 1e-7,
        threshold: float = 1e-3,
    ) -> WeightFit:
        r"""Set the weights to those under which held-out rows are most likely, by EM.

        .. math:: w_k \leftarrow \frac1N \sum_n \frac{w_k\, p_k(x_n)}{\sum_j w_j\, p_j(x_n)}

        The components are scored once, in evaluation mode. The likelihood is concave in the
        weights and grows in every step. Then weights below the threshold are set to zero and the
        others fitted again: their components cost nothing any more.

        Args:
            x: rows (N, D) that the components were not trained on.
            context: (N, C), if the models take one.
            iterations: the largest number of EM steps.
            tolerance: stop when a step gains less than this many nats per row.
            threshold: weights below it are dropped (the largest never is).

        Returns:
            The log-likelihoods of all steps, and the weights.

        Raises:
            ValueError: for no rows, a row that no component finds possible, or numbers out of
                range.

        References:
            Dempster, Laird & Rubin 1977, section 4.3.
        """
        iterations = non_negative_integer(iterations, "iterations")
        tolerance = real_number(tolerance, "tolerance")
        expect(tolerance >= 0, "tolerance", "to be >= 0", tolerance)
        threshold = real_number(threshold, "threshold")
        expect(0 <= threshold < 1, "threshold", "to be in [0, 1)", threshold)
        before = self.weights.clone()
        self.weights.fill_(1 / len(self))  # a component of weight zero would not be scored
        try:
            scores = self._scored(x, context)
        finally:
            self.weights.copy_(before)
        for k, column in enumerate(scores.T):
            expect(not bool(column.isnan().any()), f"components[{k}]", "to score every row", "NaN")
        impossible = scores.amax(dim=1).isfinite().logical_not().nonzero().flatten().tolist()
        row = f"row {impossible[0]}" if impossible else ""
        expect(not impossible, "x", "to be possible under some component", row)

        weights, history = fit_sparse_weights(
            scores, iterations=iterations, tolerance=tolerance, threshold=threshold
        )
        self.weights.copy_(weights)
        return WeightFit(tuple(history), tuple(weights.tolist()))

    def _scored(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Score rows (N, D), at least one, under every component in evaluation mode: (N, K)."""
        check_event(x, "x", self.features)
        wanted = f"of shape (N, {self.features}), N > 0"
        expect(x.dim() == 2 and len(x) > 0, "x", wanted, tuple(x.shape))
        known = context is None or isinstance(context, Tensor)
        expect_type(known, "context", "to be a torch.Tensor or None", context)
        with modes_kept(self.modules()):
            return self.eval().component_log_probs(x, context).double()

    @torch.no_grad()
    def gain(self, x: Tensor, context: Tensor | None = None) -> MixtureGain:
        """Compare the mean log-likelihood of rows (N, D) with that of each component in use."""
        scores = self._scored(x, context)
        used = self.weights > 0
        joint = scores[..., used] + self.log_weights(scores)[used]
        each = scores[..., used].flatten(0, -2).mean(dim=0)
        return MixtureGain(float(joint.logsumexp(dim=-1).mean()), tuple(each.tolist()))


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
        ValueError: for none of them, for numbers of features or context variables or supports
            that differ, and for weights of another number or sign.

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
            check_model(model, f"components[{i}]")
            for name in ("features", "context"):
                wanted, got = (getattr(m, name) for m in (models[0], model))
                expect(got == wanted, f"components[{i}]", f"to have {name}={wanted}", got)
            wanted, got = models[0].support, model.support
            same = same_support(wanted, got)
            wanted, got = value_support(wanted), value_support(got)
            expect(same, f"components[{i}]", f"to have the first one's support, {wanted}", got)
        self.components = nn.ModuleList(models)
        self.training = any(model.training for model in models)
        self.features, self.context = models[0].features, models[0].context
        self.set_weights(weights, len(models))

    def component(self, k: int) -> Model:
        return cast(Model, self.components[k])

    def distribution(self, context: Tensor | None = None) -> MixtureDistribution:
        tensors = [next(chain(m.parameters(), m.buffers()), self.weights) for m in self.components]
        places = [tensor.device for tensor in tensors]
        if any(place != places[0] for place in places):  # samples of both would be mixed up
            wanted = "to be on one device, as mixture.to(device) puts them"
            expect(False, "components", wanted, f"some on {', '.join(sorted({*map(str, places)}))}")
        return super().distribution(context)


@saveable
class OrderMixture(MixtureModel):
    r"""A mixture over orders, and masks, of one network.

    .. math:: \log p(x \mid c) = \log \sum_k w_k \prod_i p(x_i \mid x_{<_k i}, c)

    The model is one trained over orders (``orders="all"`` or K of them): each order is a density
    of its own, they disagree, and their mixture is better than their mean (Jensen's inequality).
    Where masks were trained too, every component has degrees of its own: fresh ones, or those of a
    fixed set in turn.

    Args:
        model: the density model, used as it is and not copied.
        orders: how many orders to draw, or the orders, (K, D). None for those that the model was
            trained on where they were a fixed set, else 16.
        weights: (K,), see :class:`Mixture`.
        generator: source of randomness for the orders and degrees.

    Raises:
        TypeError: for anything but a density model.
        ValueError: for the model of a graph or of one order, orders that are no permutations,
            more orders than the fixed set has that the model was trained on, and a generator
            where nothing is drawn.

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
        wanted = "to be made with orders or masks, so that there are several to mix"
        expect(model.schedule is not None, "model", wanted, "a model of one order")
        schedule = cast(OrderSchedule, model.schedule)
        given = not (orders is None or isinstance(orders, Integral))
        check_generator(generator, draws=schedule.any_degrees or not given)
        self.model = model
        self.training = model.training
        self.features, self.context = model.features, model.context
        self.register_buffer("orders", _orders_of(model, schedule, orders, generator))
        count = len(self.orders)
        drawn = None
        if schedule.any_degrees or schedule.degrees is not None:
            layers = [schedule.draw_degrees(generator, turn=k) or () for k in range(count)]
            none = torch.zeros(0, dtype=torch.long)  # of a network without hidden layers
            drawn = torch.stack([torch.cat(tuple(each)) if each else none for each in layers])
        self.register_buffer("degrees", drawn)
        self.set_weights(weights, count)

    def component(self, k: int) -> DensityModel:
        """Return the model in the k-th order."""
        degrees = None
        if self.degrees is not None:
            degrees = torch.split(self.degrees[k], list(self.model.made.shape.hidden))
        return self.model.arranged(self.orders[k], degrees)

    def extra_repr(self) -> str:
        return f"orders={len(self)}"


def _orders_of(
    model: DensityModel,
    schedule: OrderSchedule,
    orders: Any,
    generator: torch.Generator | None,
) -> Tensor:
    """Return K orders, (K, D): those given, those the model knows, or fresh ones."""
    fixed = schedule.orders
    if orders is None or isinstance(orders, Integral):
        known = 16 if fixed is None else len(fixed)
        count = known if orders is None else positive_integer(orders, "orders")
        if fixed is not None:
            expect(count <= known, "orders", f"to be {known} at most, as was trained", count)
            return fixed[:count].clone()
        if not schedule.any_order:  # masks alone are trained
            return model.made.order.expand(count, -1).clone()
        orders = count
    wanted = "to be a number of orders or orders (K, features)"
    return fixed_orders(model.features, orders, generator, wanted).to(model.made.ranks.device)


def _expect_marginals(component: Any) -> None:
    known = isinstance(component, (DensityModel, MixtureModel))
    expect_type(known, "components", "to be density models, which know missing values", component)
