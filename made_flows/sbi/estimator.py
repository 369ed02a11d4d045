"""A model of this library behind sbi's interface of density estimators."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn

from made_flows._checks import check_finite, check_values
from made_flows.models.base import Model
from made_flows.models.flows import Flow
from made_flows.sbi.support import Bounds


class Estimator(ConditionalDensityEstimator):
    r"""The density :math:`q(\theta \mid x)` of an ``input`` under a ``condition``.

    Its samples come from one sequential inverse for every transform. Where a support is given, all
    samples lie in it, and outside the density is zero.

    Args:
        net: the model, which takes the embedded condition as its context.
        embedding_net: from conditions (rows, ...) to (rows, C).
        input_shape, condition_shape: of one row.
        bounds: where inputs live, if not everywhere.
        rows: the inputs and conditions that it was built on, by which the first loss tells whether
            a trainer of posteriors was given an estimator of likelihoods, or the other way round.

    Shapes:
        input: (samples, rows, *input_shape) or (rows, *input_shape); condition: (rows,
        *condition_shape). ``log_prob``: (samples, rows). ``sample(shape)``: (*shape, rows,
        *input_shape).
    """

    def __init__(
        self,
        net: Model,
        embedding_net: nn.Module,
        input_shape: torch.Size,
        condition_shape: torch.Size,
        bounds: Bounds | None = None,
        rows: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(net, input_shape, condition_shape)
        self._built_on = rows
        self._embedding_net, self.bounds = embedding_net, bounds

    def _load_from_state_dict(self, *arguments: Any, **more: Any) -> None:
        self._built_on = None  # weights that were trained: files of them are to hold no simulations
        super()._load_from_state_dict(*arguments, **more)

    @property
    def embedding_net(self) -> nn.Module:
        """What turns conditions into contexts, the z-score first."""
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:  # noqa: A002
        """Return log-densities (samples, rows); -inf outside the support.

        A value on a bound is scored as the next number inside.
        """
        x = self._columns(input)
        return self._scores(x[None] if x.dim() == 2 else x, condition)

    def _scores(self, x: Tensor, condition: Tensor) -> Tensor:
        distribution = self._distribution(condition)
        if self.bounds is None:
            scores: Tensor = distribution.log_prob(x)
            return scores
        check_finite(x, "input")
        known = distribution.log_prob(self.bounds.inside(x))
        return torch.where(self.bounds.holds(x), known, -torch.inf)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Raise a TypeError: trainers of ratios (NRE) call classifiers, which this is not."""
        raise TypeError(
            "Expected a density estimator to be used by log_prob, loss and sample, as NPE and NLE "
            "do; got a call of it. Trainers of ratios (NRE) take a classifier, as sbi's 'resnet'"
        )

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:  # noqa: A002
        """Return negative log-densities (rows,).

        Raises:
            ValueError: for inputs outside the support, of which there is nothing to learn, and for
                conditions in place of inputs.
        """
        # sbi trains on the very rows that it builds with.
        rows, self._built_on = self._built_on, None
        if rows is not None and _holds(rows[1], input[:1]) and not _holds(rows[0], input[:1]):
            raise ValueError(
                "Expected a builder with likelihood=True for NLE, and without it for NPE; got the "
                "one for the other"
            )
        x = self._columns(input)
        if self.bounds is not None:
            expected = "to lie in the support (of simulations with likelihood=True)"
            check_values(x, self.bounds.hold(x), "parameters", expected)
        return -self._scores(x, condition)

    def sample(self, sample_shape: Any, condition: Tensor, **kwargs: Any) -> Tensor:
        """Draw samples (*sample_shape, rows, *input_shape)."""
        return self._rows(self._distribution(condition).sample(sample_shape))

    def sample_and_log_prob(
        self, sample_shape: Any, condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Draw samples, and their log-densities (*sample_shape, rows), with gradients if it can."""
        distribution = self._distribution(condition)
        if not distribution.has_rsample:
            drawn = distribution.sample(sample_shape)
            # Rounding may carry a sample onto a bound, where the model has no density.
            drawn = drawn if self.bounds is None else self.bounds.inside(drawn)
            return self._rows(drawn), distribution.log_prob(drawn)
        drawn, scores = distribution.rsample_and_log_prob(sample_shape)
        return self._rows(drawn), scores

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:  # noqa: A002
        """Return the noise of inputs (..., *input_shape) under conditions that broadcast to them.

        Raises:
            NotImplementedError: for a model without noise of its inputs' size.
        """
        net: Any = self.net
        if not isinstance(net, Flow) or isinstance(net.base, Flow) or net.base.context:
            raise NotImplementedError(f"{type(net).__name__} has no noise of its inputs' size")
        x = self._columns(input)
        x = x if self.bounds is None else self.bounds.inside(x)
        return net.to_noise(x, self._embedded(condition))[0]

    def _columns(self, values: Tensor) -> Tensor:
        self._check_input_shape(values)
        return values.flatten(values.dim() - len(self.input_shape))

    def _rows(self, values: Tensor) -> Tensor:
        # Rounding may carry a sample onto a bound, which an open support lacks.
        values = values if self.bounds is None else self.bounds.inside(values)
        return values.reshape(*values.shape[:-1], *self.input_shape)

    def _embedded(self, condition: Tensor) -> Tensor:
        self._check_condition_shape(condition)
        batch = condition.shape[: condition.dim() - len(self.condition_shape)]
        rows = condition.reshape(prod(batch), *self.condition_shape)  # numel() is no symbol
        embedded: Tensor = self._embedding_net(rows)
        return embedded.reshape(*batch, embedded.shape[1:].numel())

    def _distribution(self, condition: Tensor) -> Any:
        return self.net(self._embedded(condition))


def _holds(rows: Tensor, row: Tensor) -> bool:
    """Tell whether one of the rows is the row given."""
    same = rows.shape[1:] == row.shape[1:]
    return same and bool((rows.flatten(1) == row.flatten(1).to(rows.device)).all(1).any())
