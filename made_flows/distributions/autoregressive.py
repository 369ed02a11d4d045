"""The distribution that a density model gives under a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from made_flows._checks import check_broadcast, check_event, check_expanded
from made_flows._torch import has_concrete_values
from made_flows.distributions.missing import ADVICE, fill, find_observed, outputs_for
from made_flows.inverse.sequential import HeadStep, sequential_inverse

if TYPE_CHECKING:
    from made_flows.models.density import DensityModel

__all__ = ["AutoregressiveDistribution"]


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
        batch_shape = check_expanded(batch_shape, self.batch_shape)
        new.model = self.model
        new.context = None if self.context is None else self.context.expand(*batch_shape, -1)
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _validate_sample(self, value: Tensor) -> None:
        check_event(value, "value", self.model.features)
        check_broadcast(value=value.shape[:-1], batch_shape=self.batch_shape)
        if not has_concrete_values(value):
            return
        try:
            self.model.head.check_values(value)
        except ValueError as error:
            if self.model.takes_missing or not bool(torch.isnan(value).any()):
                raise
            raise ValueError(f"{error}. {ADVICE}") from None

    def log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log-probability of values (..., D): of shape (...), broadcast with the batch shape.

        Where values are missing, that of the observed ones (their marginal), under an order that
        puts these first: exactly the marginal of the model in that order.

        Args:
            value: (..., D). For a model trained with ``orders="all"``, NaN is a missing value.
            observed: boolean (..., D), which values are not missing, instead of NaN.

        Raises:
            ValueError: for a model of one order, whose observed features do not come first in it.
        """
        model = self.model
        if observed is not None or model.takes_missing:
            check_event(value, "value", model.features)
            observed = find_observed(value, observed, nan=model.takes_missing)
            if observed is not None:
                return self._marginal(value, observed)
        if self._validate_args:
            self._validate_sample(value)
        inputs = model.head.encode(value, model.made.dtype)
        each = model.head.log_prob(value, model.outputs(inputs, self.context)).sum(dim=-1)
        return each.expand(check_broadcast(value=each.shape, batch_shape=self.batch_shape))

    def _marginal(self, value: Tensor, observed: Tensor) -> Tensor:
        model = self.model
        value = fill(model.head, value, observed)
        if self._validate_args:
            self._validate_sample(value)
        inputs = model.head.encode(value, model.made.dtype)
        parameters = outputs_for(model, inputs, self.context, observed, fresh=model.draws)
        each = model.head.log_prob(value, parameters)
        score = torch.where(observed, each, torch.zeros_like(each)).sum(dim=-1)
        return score.expand(check_broadcast(value=score.shape, batch_shape=self.batch_shape))

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
