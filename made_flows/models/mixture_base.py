"""What mixtures of models have in common: weights that are learnt, and questions they answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from made_flows._checks import (
    check_event,
    expect,
    expect_type,
    non_negative_integer,
    real_number,
)
from made_flows.distributions.autoregressive import AutoregressiveDistribution
from made_flows.distributions.conditional import ConditionalMixture, HasConditionals
from made_flows.distributions.mixture import MixtureDistribution, in_chunks
from made_flows.models.density import DensityModel
from made_flows.training.optimization import modes_kept

__all__ = ["MixtureGain", "MixtureModel", "WeightFit"]


@dataclass(frozen=True)
class WeightFit:
    """What :meth:`MixtureModel.fit_weights` did.

    Args:
        log_likelihood: mean log-likelihood per row before every EM step, and at the end.
        weights: the weights found, zeros where a component was dropped.
    """

    log_likelihood: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def kept(self) -> int:
        """The number of components left."""
        return sum(weight > 0 for weight in self.weights)


@dataclass(frozen=True)
class MixtureGain:
    """A mixture's mean log-likelihood per row beside its components'.

    Args:
        mixture: that of the mixture.
        components: that of every component alone.
    """

    mixture: float
    components: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over components: what a component taken at random gives."""
        return sum(self.components) / len(self.components)

    @property
    def best(self) -> float:
        """The best of the components."""
        return max(self.components)

    def __str__(self) -> str:
        return (
            f"mixture of {len(self.components)}: {self.mixture:.3f} nats, "
            f"{self.mixture - self.mean:+.3f} on its components' mean, "
            f"{self.mixture - self.best:+.3f} on the best of them"
        )


class MixtureModel(nn.Module, HasConditionals, ABC):
    """What mixtures have in common: components, weights, and a distribution when called.

    Attributes:
        weights: the weight of every component, (K,); they sum to one.
        features: number of features D.
        context: number of context variables C.
    """

    weights: Tensor
    features: int
    context: int

    def set_weights(self, weights: Any, count: int) -> None:
        """Register a number of weights, equal ones for None."""
        if weights is None:
            checked = torch.full((count,), 1 / count)
        else:
            checked = torch.as_tensor(weights, dtype=torch.get_default_dtype()).detach().clone()
            shape = tuple(checked.shape)
            expect(shape == (count,), "weights", f"of shape ({count},), one each", shape)
            valid = bool((torch.isfinite(checked) & (checked >= 0)).all())
            valid = valid and bool(checked.sum() > 0)
            expect(valid, "weights", "to be >= 0, finite and not all 0", checked.tolist())
            checked /= checked.sum()
        self.register_buffer("weights", checked)

    @abstractmethod
    def component(self, k: int) -> Any:
        """The k-th component: called with a context, it gives a distribution."""

    def log_weights(self, like: Tensor) -> Tensor:
        """Logarithms of the weights, of the dtype and on the device of another tensor."""
        weights = self.weights.to(like)
        return (weights / weights.sum()).log()  # they were rounded to the model's own dtype

    def __len__(self) -> int:
        return len(self.weights)

    def forward(self, context: Tensor | None = None) -> MixtureDistribution:
        """The distribution of the features, given the context (..., C)."""
        return MixtureDistribution(self, context)

    def component_log_probs(
        self, x: Tensor, context: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities (..., K) under every component; -inf where its weight is zero.

        Args:
            x: (..., D).
            context: (..., C), if the models take one.
            observed: boolean (..., D), which features are not missing.
        """
        check_event(x, "x", self.features)
        columns: list[Tensor | None] = []
        for k, weight in enumerate(self.weights.tolist()):
            if weight == 0:
                columns.append(None)
                continue
            component = self.component(k)
            if observed is not None:
                _expect_marginals(component)

            def score(
                x: Tensor, context: Tensor | None, observed: Tensor | None, model: Any = component
            ) -> Tensor:
                # Not by a call: that of a Pyro model gives a distribution of Pyro.
                if isinstance(model, DensityModel):
                    return AutoregressiveDistribution(model, context).log_prob(x, observed)
                distribution = model() if context is None else model(context)
                if observed is None:
                    return torch.as_tensor(distribution.log_prob(x))
                return torch.as_tensor(distribution.log_prob(x, observed))

            columns.append(in_chunks(score, x, context, observed))
        like = next(column for column in columns if column is not None)
        absent = torch.full_like(like, -torch.inf, requires_grad=False)
        return torch.stack([absent if c is None else c for c in columns], dim=-1)

    def conditional(
        self, x: Tensor, observed: Tensor | None = None, *, context: Tensor | None = None
    ) -> ConditionalMixture:
        """The distribution of the missing features of rows, given the observed ones.

        Args:
            x: (..., D), NaN where a value is missing.
            observed: boolean (..., D), which values are not missing, instead of NaN.
            context: (..., C), if the models take one.

        Raises:
            TypeError: for components that are no density models.
            ValueError: as :meth:`made_flows.DensityModel.conditional` does.
        """
        _expect_marginals(self.component(0))
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
        threshold = real_number(threshold, "threshold")
        expect(0 <= threshold < 1, "threshold", "to be in [0, 1)", threshold)
        check_event(x, "x", self.features)
        expect(x.dim() == 2 and len(x) > 0, "x", f"of shape (N, {self.features}), N > 0",
               tuple(x.shape))  # fmt: skip
        before = self.weights.clone()
        self.weights.fill_(1 / len(self))  # a component of weight zero would not be scored
        try:
            with modes_kept(self):
                scores = self.eval().component_log_probs(x, context).double()
        except BaseException:
            self.weights.copy_(before)
            raise
        self.weights.copy_(before)
        possible = torch.isfinite(scores.amax(dim=1))
        row = 0 if bool(possible.all()) else int((~possible).nonzero()[0])
        expect(bool(possible.all()), "x", "to be possible under some component", f"row {row}")

        history: list[float] = []
        options: dict[str, Any] = {"iterations": iterations, "tolerance": tolerance}
        weights = mixture_weights(scores, **options, history=history)
        sparse = weights < min(threshold, float(weights.max()))
        if bool(sparse.any()):
            weights = weights.masked_fill(sparse, 0)
            weights /= weights.sum()
            weights = mixture_weights(scores, start=weights, **options, history=history)
        self.weights.copy_(weights)
        return WeightFit(tuple(history), tuple(weights.tolist()))

    @torch.no_grad()
    def gain(self, x: Tensor, context: Tensor | None = None) -> MixtureGain:
        """The mean log-likelihood of rows (N, D) beside that of each component (of weight > 0)."""
        with modes_kept(self):
            scores = self.eval().component_log_probs(x, context).double()
        used = self.weights > 0
        joint = scores[..., used] + self.log_weights(scores)[used]
        each = scores[..., used].flatten(0, -2).mean(dim=0)
        return MixtureGain(float(joint.logsumexp(dim=-1).mean()), tuple(each.tolist()))


def _expect_marginals(component: Any) -> None:
    known = isinstance(component, (DensityModel, MixtureModel))
    expect_type(known, "components", "to be density models, which know missing values", component)


def mixture_weights(
    scores: Tensor,
    *,
    start: Tensor | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-7,
    history: list[float] | None = None,
) -> Tensor:
    """The weights (K,) of a mixture under which rows are most likely, by EM.

    Args:
        scores: log-probabilities (N, K) of the rows under every component.
        start: weights to begin from (a zero stays one); None for equal ones.
        iterations: the largest number of EM steps.
        tolerance: stop when a step gains less than this many nats per row.
        history: a list to which the mean log-likelihood of every step is added.

    Example:
        >>> probabilities = torch.tensor([[0.5, 0.1], [0.5, 0.1], [0.1, 0.5]])
        >>> mixture_weights(probabilities.log()).round(decimals=2)
        tensor([0.7500, 0.2500])
    """
    weights = torch.full_like(scores[0], 1 / scores.shape[1]) if start is None else start
    last = -torch.inf
    for step in range(iterations + 1):
        joint = scores + weights.log()
        total = joint.logsumexp(dim=1, keepdim=True)
        mean = float(total.mean())
        if history is not None:
            history.append(mean)
        if step == iterations or mean - last < tolerance:
            break
        last = mean
        weights = (joint - total).exp().mean(dim=0)
        weights /= weights.sum()
    return weights
