"""The distribution of a mixture of models: the logarithm outside the average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from made_flows._checks import check_batch
from made_flows._torch import as_rows, exceeds, in_groups
from made_flows.distributions._protocols import Components
from made_flows.distributions.base import VectorDistribution

_ROWS = 8192
"""Rows that a component scores at once, so that memory does not grow with the number of rows."""


class MixtureDistribution(VectorDistribution):
    r"""A mixture of the distributions that several models give under one context.

    .. math:: \log p(x \mid c) = \log \sum_k w_k\, p_k(x \mid c)

    Components are evaluated one after the other, and rows in chunks: without gradients, memory is
    that of one.

    Args:
        mixture: the components and their weights.
        context: (..., C), if the models take one.

    Raises:
        ValueError, TypeError: as the components do, for their contexts and values.
    """

    def __init__(self, mixture: Components, context: Tensor | None = None) -> None:
        self.mixture, self.context = mixture, context
        first: Distribution = mixture.component(0)(context)
        self._support = first.support
        super().__init__(first.batch_shape, first.event_shape[0], validate_args=False)

    def _modules(self) -> Iterator[nn.Module]:
        yield from self.mixture.modules()

    @property
    def support(self) -> Any:
        """Where values live."""
        return self._support

    def log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return log-probabilities (...) of values (..., D), broadcast with the batch shape.

        Args:
            value: (..., D).
            observed: boolean, which features are not missing; see
                :meth:`made_flows.AutoregressiveDistribution.log_prob`.
        """
        each = self.mixture.component_log_probs(value, self.context, observed)
        scores = torch.logsumexp(each + self.mixture.log_weights(each), dim=-1)
        return self._over_batch(scores)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        """Draw samples (*sample_shape, *batch_shape, D), each from a component drawn for it."""
        shape = self._extended_shape(sample_shape)[:-1]
        weights = self.mixture.weights
        chosen = weights.new_zeros(0, dtype=torch.long)
        if shape.numel():
            precise = torch.promote_types(weights.dtype, torch.float32)
            chosen = torch.multinomial(weights.to(precise), shape.numel(), replacement=True)
        rows = as_rows(self.context, shape)

        def draw(k: int, at: Tensor) -> Tensor:
            component = self.mixture.component(k)
            if rows is None:
                return cast(Tensor, component().sample((len(at),)))
            return cast(Tensor, component(rows[at]).sample())

        return in_groups(chosen, draw, len(self.mixture)).reshape(*shape, *self.event_shape)

    def _summary(self) -> str:
        return f"{len(self.mixture)} components"


def in_chunks(score: Callable[..., Tensor], value: Tensor, *others: Tensor | None) -> Tensor:
    """Return a function of rows (..., D), and of what comes with each, a bounded number at a time.

    Args:
        score: gives (...) for rows (..., D) and others.
        value: (..., D).
        others: each (..., anything), broadcast against the rows; or None.
    """
    batch = check_batch(value=value, **{f"other {i}": o for i, o in enumerate(others)})
    if not exceeds(prod(batch), _ROWS):  # batch.numel() is no symbol
        return score(value, *others)

    def split(rows: Tensor | None) -> Sequence[Tensor | None]:
        if rows is None:
            return [None] * -(-batch.numel() // _ROWS)
        return torch.split(as_rows(rows, batch), _ROWS)

    pieces = zip(split(value), *map(split, others), strict=True)
    return torch.cat([score(*piece) for piece in pieces]).reshape(batch)
