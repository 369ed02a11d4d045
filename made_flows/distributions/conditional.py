"""Conditional distributions: the missing features of a row, given those that are observed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical

from made_flows._checks import check_batch, check_event, check_finite, expect
from made_flows._torch import as_rows, has_concrete_values, in_groups
from made_flows.distributions._protocols import Components, Schedule, Units
from made_flows.distributions.base import HeadDistribution, VectorDistribution
from made_flows.distributions.missing import (
    check_answerable,
    fill,
    find_observed,
    network_for,
    observed_first,
    outputs_for,
)
from made_flows.inverse.per_row import sample_row_orders
from made_flows.inverse.sequential import sequential_inverse
from made_flows.inverse.steps import HeadStep
from made_flows.nn.made import MADE
from made_flows.univariate.heads import Head

_PATTERNS = 8
"""Patterns up to which each has a sequential inverse of its own: planning one takes as long as a
good many ranks of all rows together."""


_NOT_FINITE = "NaN: weights that are not finite"


class CompletionDistribution(VectorDistribution):
    r"""The distribution of whole rows whose observed features are known.

    .. math:: p(x_{\text{missing}} \mid x_{\text{observed}}, c)

    Its event shape is (D,): samples hold the observed values unchanged, and the observed entries
    of a value that is scored are not looked at.

    Attributes:
        x: the known values, (..., D); where they are missing, any.
        observed: which are known, (..., D).
    """

    _batched: ClassVar[tuple[str, ...]] = ("x", "observed", "context")

    def __init__(self, x: Tensor, observed: Tensor, context: Tensor | None) -> None:
        batch = check_batch(x=x, observed=observed, context=context)
        self.x, self.observed = x.expand(*batch, -1), observed.expand(*batch, -1)
        self.context = None if context is None else context.expand(*batch, -1)
        if context is not None:
            check_finite(context, "context")
        super().__init__(batch, x.shape[-1], validate_args=False)

    def _kept(self, samples: Tensor) -> Tensor:
        """Keep the observed values of samples as they were given, to the last bit."""
        dtype = samples.dtype
        if self.x.is_floating_point() and dtype.is_floating_point:
            dtype = torch.promote_types(self.x.dtype, dtype)
        return torch.where(self.observed, self.x.to(dtype), samples.to(dtype))

    def _rows(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, masks and contexts as lists of rows."""
        batch = self.batch_shape
        return as_rows(self.x, batch), as_rows(self.observed, batch), as_rows(self.context, batch)


def _known_values(x: Any, observed: Tensor | None, features: int) -> tuple[Tensor, Tensor]:
    """Return values (..., D) and which are observed: by a mask, or those that are not NaN."""
    x = check_event(x, "x", features)
    found = find_observed(x, observed, nan=True)
    return x, torch.ones_like(x, dtype=torch.bool) if found is None else found


class ConditionalDistribution(HeadDistribution, CompletionDistribution):
    r"""The missing features of a conditioner and a head, in an order that puts the observed first.

    Sampled by one sequential inverse for each pattern of missing features, with a known prefix;
    rows of many patterns advance together, rank by rank.

    Args:
        conditioner: the network.
        head: the distribution of one feature.
        x: (..., D), NaN where a value is missing.
        observed: boolean (..., D), instead of NaN.
        context: (..., C), if the conditioner takes one.
        schedule: the orders and masks that the conditioner is trained on, if not its own alone.
        units: of the values, if they are not those of the network (a context is in the
            network's).

    Raises:
        ValueError: for observed values outside the support; for a model of one order, whose
            observed features do not come first in it.
    """

    def __init__(
        self,
        conditioner: MADE,
        head: Head,
        x: Tensor,
        observed: Tensor | None = None,
        context: Tensor | None = None,
        *,
        schedule: Schedule | None = None,
        units: Units | None = None,
    ) -> None:
        self.conditioner, self.head, self.schedule = conditioner, head, schedule
        self.units = units
        x, observed = _known_values(x, observed, conditioner.features)
        context = conditioner.check_context(context)
        filled = fill(head, x, observed)
        if has_concrete_values(filled):
            head.check_values(filled)
        if schedule is None or not schedule.any_order:
            check_answerable(conditioner, observed)
        super().__init__(filled, observed, context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score the missing entries of values (..., D), given the observed ones."""
        self._validate_sample(value)
        value = torch.where(self.observed, self.x.to(value.dtype), value)
        if has_concrete_values(value):
            self.head.check_values(value)
        u = self._standardized(value)
        inputs = self.head.encode(u, self.conditioner.dtype)
        parameters = outputs_for(
            self.conditioner, inputs, self.context, self.observed, self.schedule
        )
        return self._sum_of(u, parameters, ~self.observed)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        made, step = self.conditioner, HeadStep(self.head)
        x, observed, context = self._rows()
        x = self._standardized(x, observed).to(step.value_dtype(made.dtype))
        if not (torch.compiler.is_dynamo_compiling() or has_concrete_values(observed)):
            raise NotImplementedError(
                "Expected to know which features are observed, by which it is decided what is "
                "computed; got a tracer, torch.export or a transform of torch.func, which would "
                "keep those of now. Draw conditional samples outside of it"
            )
        patterns, group = torch.unique(observed, dim=0, return_inverse=True)
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        many = len(patterns) > max(_PATTERNS, made.features // 16)
        if many and made.graph is None and not torch.is_grad_enabled():
            drawn = self._draw_by_rank(sample_shape.numel(), x, observed, context)
            return self._kept(self._restored(drawn.reshape(shape)))

        def draw(number: int, rows: Tensor) -> Tensor:
            known = x[rows].expand(sample_shape.numel(), -1, -1)
            if bool(patterns[number].all()):
                return known.transpose(0, 1)
            network, prefix = network_for(made, patterns[number])
            noise = self.head.noise(known.shape, made.like)
            of_rows = None if context is None else context[rows]
            drawn = sequential_inverse(network, step, noise, of_rows, known=known, prefix=prefix)
            return drawn.transpose(0, 1)

        if not len(x):
            return x.new_empty(shape)
        samples = in_groups(group, draw).transpose(0, 1).reshape(shape)
        return self._kept(self._restored(samples))

    def _draw_by_rank(
        self, count: int, x: Tensor, observed: Tensor, context: Tensor | None
    ) -> Tensor:
        """Return rows (count * rows, D), those of all patterns together."""
        made, head = self.conditioner, self.head
        noise = head.noise((count * len(x), made.features), made.like)
        orders = observed_first(made.ranks, observed).repeat(count, 1)
        known, prefixes = x.repeat(count, 1), observed.sum(dim=-1).repeat(count)
        contexts = None if context is None else context.repeat(count, 1)
        return sample_row_orders(made, head, noise, orders, known, prefixes, contexts)


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

    _batched = ("x", "observed", "context", "log_weights")

    def __init__(
        self,
        mixture: Components,
        x: Tensor,
        observed: Tensor | None = None,
        context: Tensor | None = None,
    ) -> None:
        self.mixture = mixture
        x, observed = _known_values(x, observed, mixture.features)
        super().__init__(x, observed, context)
        joint = mixture.component_log_probs(self.x, self.context, self.observed)
        joint = joint + mixture.log_weights(joint)
        total = torch.logsumexp(joint, dim=-1, keepdim=True)
        if has_concrete_values(total):
            known = not bool(torch.isnan(total).any())
            expect(known, "the components", "to score the observed features", _NOT_FINITE)
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
        """Score the missing entries of values (..., D), given the observed ones."""
        terms = []
        for k in self.mixture.used():
            part = self._component(k, self.x, self.observed, self.context)
            terms.append(part.log_prob(value) + self.log_weights[..., k])
        return torch.logsumexp(torch.stack(terms), dim=0)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        x, observed, context = self._rows()
        count = sample_shape.numel()
        chosen = torch.zeros(0, dtype=torch.long, device=x.device)
        if count and len(x):  # torch draws no categories of no rows, nor none of some
            weights = Categorical(logits=self.log_weights.reshape(len(x), -1), validate_args=False)
            chosen = weights.sample((count,)).flatten()

        def draw(k: int, at: Tensor) -> Tensor:
            rows = at % max(len(x), 1)
            of_rows = None if context is None else context[rows]
            return self._component(k, x[rows], observed[rows], of_rows).sample()

        samples = in_groups(chosen, draw, len(self.mixture))
        return self._kept(samples.reshape(*sample_shape, *self.batch_shape, *self.event_shape))
