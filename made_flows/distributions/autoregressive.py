"""The distribution that a conditioner and a head give under a context."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from made_flows._checks import check_event
from made_flows._torch import has_concrete_values
from made_flows.distributions._protocols import Schedule, Units
from made_flows.distributions.base import HeadDistribution
from made_flows.distributions.missing import advised, fill, find_observed, outputs_for
from made_flows.inverse.parallel import parallel_pass
from made_flows.inverse.sequential import sequential_inverse
from made_flows.inverse.steps import HeadStep
from made_flows.nn.made import MADE
from made_flows.univariate.heads import Head


class AutoregressiveDistribution(HeadDistribution):
    r"""The distribution of a conditioner and a head under a given context.

    .. math:: \log p(x \mid c) = \sum_i \log p(x_i \mid \theta_i(x_{<i}, c))

    Its batch shape is that of the context, () without one; its event shape is (D,). Scores take
    one pass of the network, samples one sequential inverse.

    Args:
        conditioner: the network, x and c to :math:`\theta`.
        head: the distribution of one feature.
        context: c, (..., C), if the conditioner takes one.
        schedule: the orders and masks that the conditioner is trained on, if not its own alone.
        units: of the values, if they are not those of the network (a context is in the
            network's).
        validate_args: whether values are checked before they are scored (torch's default: yes).

    Raises:
        ValueError: for a context that is missing, superfluous or of the wrong shape, and for
            values outside the support, naming the first row and column.

    Example:
        >>> import made_flows as mf
        >>> made = mf.MADE(3, parameters=2)
        >>> AutoregressiveDistribution(made, mf.GaussianMADE(3).head).sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        conditioner: MADE,
        head: Head,
        context: Tensor | None = None,
        *,
        schedule: Schedule | None = None,
        units: Units | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.conditioner, self.head, self.schedule = conditioner, head, schedule
        self.units = units
        self.context = conditioner.check_context(context)
        batch_shape = () if self.context is None else self.context.shape[:-1]
        super().__init__(batch_shape, conditioner.features, validate_args=validate_args)

    @property
    def takes_missing(self) -> bool:
        """Whether NaN stands for a missing value: where all orders are trained."""
        return self.schedule is not None and self.schedule.any_order

    @property
    def _drawing(self) -> Schedule | None:
        """The schedule, where it draws orders or masks in every call."""
        return self.schedule if self.schedule is not None and self.schedule.draws else None

    def _random_part(self) -> str:
        if self._drawing is not None:
            return "orders or masks that are drawn"
        return self.conditioner.random_part

    def _modules(self) -> Iterator[nn.Module]:
        yield from self.conditioner.modules()
        yield from self.head.modules()

    def _validate_sample(self, value: Tensor) -> None:
        super()._validate_sample(value)
        if not has_concrete_values(value):
            return
        try:
            self.head.check_values(value)
        except ValueError as error:
            if self.takes_missing:
                raise
            raise advised(error, value) from None

    def log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return log-probabilities (...) of values (..., D), broadcast with the batch shape.

        They are -inf for values so far out that numbers overflow, and NaN where weights are.

        Where values are missing, that of the observed ones (their marginal), under an order that
        puts these first: exactly the marginal of the model in that order.

        Args:
            value: (..., D). For a model trained with ``orders="all"``, NaN is a missing value.
            observed: boolean (..., D), which values are not missing, instead of NaN.

        Raises:
            ValueError: for a model of one order, whose observed features do not come first in it.
        """
        self._warn_of_training_mode()
        if observed is not None or self.takes_missing:
            check_event(value, "value", self.conditioner.features)
            drawn = self._drawing is not None
            observed = find_observed(value, observed, nan=self.takes_missing, drawn=drawn)
            if observed is not None:
                return self._marginal(value, observed)
        if self._validate_args:
            self._validate_sample(value)
        each = self._score(self._standardized(value))
        if self.units is not None:
            each = each - self.units.log_scale().sum()
        return self._defined(self._over_batch(each), value)

    def _score(self, u: Tensor) -> Tensor:
        """Return log-probabilities (...) of values in the network's units."""
        # What is no category raises, in torch operations.
        if self._validate_args and self._drawing is None:
            return parallel_pass(self.conditioner, HeadStep(self.head), u, self.context)[1]
        inputs = self.head.encode(u, self.conditioner.dtype)
        return HeadStep(self.head).score(u, self._parameters(inputs))[1]

    def _parameters(self, inputs: Tensor) -> Tensor:
        """Return parameters (..., D, K), in training those of orders that are drawn now."""
        if (schedule := self._drawing) is not None:
            return schedule.outputs(self.conditioner, inputs, self.context)
        parameters: Tensor = self.conditioner(inputs, self.context)
        return parameters

    def _marginal(self, value: Tensor, observed: Tensor) -> Tensor:
        value = fill(self.head, value, observed)
        if self._validate_args:
            self._validate_sample(value)
        u = self._standardized(value, observed)
        inputs = self.head.encode(u, self.conditioner.dtype)
        fresh = self._drawing is not None
        parameters = outputs_for(
            self.conditioner, inputs, self.context, observed, self.schedule, fresh=fresh
        )
        return self._defined(self._over_batch(self._sum_of(u, parameters, observed)), value)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        made = self.conditioner
        noise = self.head.noise(self._extended_shape(sample_shape), made.like)
        return self._restored(sequential_inverse(made, HeadStep(self.head), noise, self.context))

    def _summary(self) -> str:
        return f"{type(self.head).__name__} head"
