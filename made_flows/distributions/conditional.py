"""Conditional distributions: the missing features of a row, given those that are observed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints

from made_flows._checks import check_broadcast, check_event, expect, positive_integer
from made_flows._torch import as_rows, has_concrete_values
from made_flows.distributions.missing import (
    check_answerable,
    fill,
    find_observed,
    network_for,
    outputs_for,
)
from made_flows.distributions.mixture import sample_components
from made_flows.inverse.per_row import sample_row_orders
from made_flows.inverse.sequential import HeadStep, sequential_inverse

if TYPE_CHECKING:
    from made_flows.models.density import DensityModel
    from made_flows.models.mixture_base import MixtureModel

__all__ = [
    "CompletionDistribution",
    "ConditionalDistribution",
    "ConditionalMixture",
    "HasConditionals",
]

_PATTERNS = 8
"""Patterns up to which each has a sequential inverse of its own: planning one takes as long as a
good many ranks of all rows together."""


class CompletionDistribution(Distribution, ABC):
    r"""The distribution of whole rows whose observed features are known.

    .. math:: p(x_{\text{missing}} \mid x_{\text{observed}}, c)

    Its event shape is (D,): samples hold the observed values unchanged, and the observed entries
    of a value that is scored are not looked at.

    Attributes:
        x: the known values, (..., D); where they are missing, any.
        observed: which are known, (..., D).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as torch declares it)

    def __init__(self, x: Tensor, observed: Tensor, context: Tensor | None) -> None:
        shapes = {"x": x.shape[:-1], "observed": observed.shape[:-1]}
        if context is not None:
            shapes["context"] = context.shape[:-1]
        batch = check_broadcast(**shapes)
        self.x, self.observed = x.expand(*batch, -1), observed.expand(*batch, -1)
        self.context = None if context is None else context.expand(*batch, -1)
        super().__init__(batch, x.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Completed rows, (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape))

    @abstractmethod
    def _draw(self, sample_shape: torch.Size) -> Tensor:
        """Completed rows."""

    def _kept(self, samples: Tensor) -> Tensor:
        """Samples with the observed values as they were given, to the last bit."""
        return torch.where(self.observed, self.x.to(samples.dtype), samples)

    def _rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, masks and contexts as lists of rows."""
        batch = self.batch_shape
        return as_rows(self.x, batch), as_rows(self.observed, batch), as_rows(self.context, batch)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({shapes})"


class HasConditionals:
    """What models have in common that answer for missing features."""

    # Not an ABC: Pyro makes PyroModules of models, and classes have one metaclass.
    def conditional(
        self, x: Tensor, observed: Tensor | None = None, *, context: Tensor | None = None
    ) -> CompletionDistribution:
        """The distribution of the missing features of rows, given the observed ones."""
        raise NotImplementedError

    def impute(
        self,
        x: Tensor,
        samples: int = 1,
        observed: Tensor | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Rows with their missing values drawn, the observed ones unchanged: (samples, ..., D).

        Arguments and errors are those of ``conditional``.
        """
        samples = positive_integer(samples, "samples")
        return self.conditional(x, observed, context=context).sample((samples,))


def known_values(x: Any, observed: Tensor | None, features: int) -> tuple[Tensor, Tensor]:
    """Values (..., D), and which are observed: those of a mask, or those that are not NaN."""
    x = check_event(x, "x", features)
    found = find_observed(x, observed, nan=True)
    return x, torch.ones_like(x, dtype=torch.bool) if found is None else found


class ConditionalDistribution(CompletionDistribution):
    r"""The missing features under a density model, in an order that puts the observed first.

    Sampled by one sequential inverse for each pattern of missing features, with a known prefix;
    rows of many patterns advance together, rank by rank.

    Args:
        model: the density model.
        x: (..., D), NaN where a value is missing.
        observed: boolean (..., D), instead of NaN.
        context: (..., C), if the model has one.

    Raises:
        ValueError: for observed values outside the support; for a model of one order, whose
            observed features do not come first in it.
    """

    def __init__(
        self,
        model: DensityModel,
        x: Tensor,
        observed: Tensor | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.model = model
        x, observed = known_values(x, observed, model.features)
        context = model.made.check_context(context)
        filled = fill(model.head, x, observed)
        if has_concrete_values(filled):
            model.head.check_values(filled)
        if not model.takes_missing:
            check_answerable(model.made, observed)
        super().__init__(filled, observed, context)

    @property
    def support(self) -> Any:
        """Where values live: vectors of the head's support."""
        return constraints.independent(self.model.head.support, 1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return HeadStep(self.model.head).differentiable

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the missing entries of values (..., D), given the observed ones."""
        check_event(value, "value", self.model.features)
        check_broadcast(value=value.shape[:-1], batch_shape=self.batch_shape)
        model = self.model
        value = torch.where(self.observed, self.x.to(value.dtype), value)
        if has_concrete_values(value):
            model.head.check_values(value)
        inputs = model.head.encode(value, model.made.dtype)
        parameters = outputs_for(model, inputs, self.context, self.observed)
        each = model.head.log_prob(value, parameters)
        return torch.where(self.observed, torch.zeros_like(each), each).sum(dim=-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Completed rows that carry gradients to weights, context and known values."""
        if not self.has_rsample:
            raise NotImplementedError(
                f"Samples of a {type(self.model.head).__name__} head carry no gradients; "
                "use sample()"
            )
        return self._draw(torch.Size(sample_shape))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        made, step = self.model.made, HeadStep(self.model.head)
        dtype = step.value_dtype(made.dtype)
        x, observed, context = self._rows()
        patterns, group = torch.unique(observed, dim=0, return_inverse=True)
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        many = len(patterns) > max(_PATTERNS, made.features // 16)
        if many and made.graph is None and not torch.is_grad_enabled():
            return self._kept(self._draw_by_rank(sample_shape, dtype).reshape(shape))
        by_pattern = torch.argsort(group, stable=True)
        sizes = torch.bincount(group, minlength=len(patterns)).tolist()
        parts = []
        for pattern, rows in zip(patterns, by_pattern.split(sizes), strict=True):
            known = x[rows].to(dtype)
            if bool(pattern.all()):
                parts.append(known.expand(sample_shape.numel(), -1, -1))
                continue
            network, prefix = network_for(made, pattern)
            noise = self.model.head.noise((sample_shape.numel(), *known.shape), self._like())
            of_rows = None if context is None else context[rows]
            parts.append(
                sequential_inverse(network, step, noise, of_rows, known=known, prefix=prefix)
            )
        if not parts:
            return x.new_empty(shape, dtype=dtype)
        samples = torch.cat(parts, dim=1).index_select(1, torch.argsort(by_pattern))
        return self._kept(samples.reshape(shape))

    def _draw_by_rank(self, sample_shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Rows (samples * rows, D), those of all patterns together."""
        made, head, count = self.model.made, self.model.head, sample_shape.numel()
        x, observed, context = self._rows()
        noise = head.noise((count * len(x), made.features), self._like())
        places = made.ranks + made.features * (~observed).to(made.ranks.dtype)
        return sample_row_orders(
            made,
            head,
            noise,
            places.argsort(dim=-1).repeat(count, 1),
            x.to(dtype).repeat(count, 1),
            observed.sum(dim=-1).repeat(count),
            None if context is None else context.repeat(count, 1),
        )

    def _like(self) -> Tensor:
        """An empty tensor of the network's device and dtype."""
        made = self.model.made
        return made.ranks.new_empty(0, dtype=made.dtype)


class ConditionalMixture(CompletionDistribution):
    r"""The missing features under a mixture: its weights are what the observed ones make of them.

    .. math:: p(x_m \mid x_o) = \sum_k w_k(x_o)\, p_k(x_m \mid x_o), \qquad
        w_k(x_o) \propto w_k\, p_k(x_o)

    Args:
        mixture: the mixture; all its components take missing values.
        x: (..., D), NaN where a value is missing.
        observed: boolean (..., D), instead of NaN.
        context: (..., C), if the models have one.

    Attributes:
        log_weights: logarithms of the weights of the components, (..., K).
    """

    def __init__(
        self,
        mixture: MixtureModel,
        x: Tensor,
        observed: Tensor | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.mixture = mixture
        x, observed = known_values(x, observed, mixture.features)
        super().__init__(x, observed, context)
        joint = mixture.component_log_probs(self.x, self.context, self.observed)
        joint = joint + mixture.log_weights(joint)
        total = torch.logsumexp(joint, dim=-1, keepdim=True)
        if has_concrete_values(total):
            possible = bool(torch.isfinite(total).all())
            expect(possible, "x", "to be possible under some component", "a row that is not")
        self.log_weights = joint - total

    @property
    def support(self) -> Any:
        """Where values live."""
        return self._component(0, self.x, self.observed, self.context).support

    def _component(
        self, k: int, x: Tensor, observed: Tensor, context: Tensor | None
    ) -> CompletionDistribution:
        conditional: CompletionDistribution = self.mixture.component(k).conditional(
            x, observed, context=context
        )
        return conditional

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the missing entries of values (..., D), given the observed ones."""
        terms = []
        for k in (self.mixture.weights > 0).nonzero().flatten().tolist():
            part = self._component(k, self.x, self.observed, self.context)
            terms.append(part.log_prob(value) + self.log_weights[..., k])
        return torch.logsumexp(torch.stack(terms), dim=0)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        x, observed, context = self._rows()
        weights = Categorical(logits=self.log_weights.reshape(len(x), -1), validate_args=False)
        chosen = weights.sample((sample_shape.numel(),)).flatten()

        def draw(k: int, at: Tensor) -> Tensor:
            rows = at % max(len(x), 1)
            of_rows = None if context is None else context[rows]
            return self._component(k, x[rows], observed[rows], of_rows).sample()

        samples = sample_components(chosen, draw)
        return self._kept(samples.reshape(*sample_shape, *self.batch_shape, *self.event_shape))
