"""Density models: a MADE with a head on it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import constraints

from made_flows._checks import check_generator, expect, expect_type
from made_flows._registry import saveable
from made_flows._torch import module_of_same_parts
from made_flows.distributions.autoregressive import AutoregressiveDistribution
from made_flows.distributions.conditional import ConditionalDistribution
from made_flows.models.base import HasConditionals, Model
from made_flows.models.order_schedule import OrderSchedule
from made_flows.nn.made import MADE
from made_flows.transforms.units import Units
from made_flows.univariate.heads import Head


@saveable
class DensityModel(Model, HasConditionals):
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
            whole = isinstance(wanted, Integral)
            wanted = (wanted,) * made.features if whole else tuple(wanted)
            needed = (
                f"to have {argument}={getattr(head, name)}, as its head {type(head).__name__} needs"
            )
            expect(getattr(made, name) == wanted, "made", needed, getattr(made, name)[0])
        self.features, self.context = made.features, made.context
        self.made = made
        self.head = head
        self.units = Units(made.features, made.context)
        self.units.of_data = head.support is constraints.real
        self.schedule = None
        scheduled = orders is not None or masks is not None
        check_generator(generator, draws=draws_now(orders) or draws_now(masks))
        given: Any = orders_per_batch  # an array is not to be compared with a number
        one = isinstance(given, Integral) and given == 1
        if scheduled or not one:
            expect(scheduled, "orders_per_batch", "to be left out without orders or masks",
                   orders_per_batch)  # fmt: skip
            self.schedule = OrderSchedule(made, orders, masks, orders_per_batch, generator)
        made.start_at(head.initial_parameters())

    @property
    def takes_missing(self) -> bool:
        """Whether NaN stands for a missing value: where all orders are trained."""
        return self.schedule is not None and self.schedule.any_order

    @property
    def _active_units(self) -> Units | None:
        return None if self.units.location is None else self.units

    def distribution(self, context: Tensor | None = None) -> AutoregressiveDistribution:
        """Return the distribution of the features, given the context (..., C)."""
        given, units = self.units.standardize_context(context), self._active_units
        return AutoregressiveDistribution(
            self.made, self.head, given, schedule=self.schedule, units=units
        )

    def standardizable(self) -> list[Units]:
        """Return the model's units: of its contexts alone where values are no real numbers."""
        return [self.units] if self.units.of_data or self.context else []

    def arranged(self, order: Any = None, degrees: Sequence[Tensor] | None = None) -> DensityModel:
        """Share the weights (no copies) with a model in another order.

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
        other = module_of_same_parts(self)
        other._modules["made"] = self.made.arranged(order, degrees)
        other._modules["schedule"] = None if self.schedule is None else self.schedule.at_rest()
        return other

    def conditional(
        self, x: Tensor, observed: Tensor | None = None, *, context: Tensor | None = None
    ) -> ConditionalDistribution:
        """Return the distribution of the missing features of rows, given the observed ones.

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
        given, units = self.units.standardize_context(context), self._active_units
        return ConditionalDistribution(
            self.made, self.head, x, observed, given, schedule=self.schedule, units=units
        )


def draws_now(value: Any) -> bool:
    """Tell whether orders or masks are a number, to be drawn when a model is made."""
    return isinstance(value, Integral) and not isinstance(value, bool)
