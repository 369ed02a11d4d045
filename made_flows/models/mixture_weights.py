"""The weights of a mixture, learnt by expectation-maximisation; what a mixture gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightFit:
    """What :meth:`made_flows.Mixture.fit_weights` did.

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
        components: that of every component alone, but for those of weight zero.
    """

    mixture: float
    components: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over components, all alike: what one taken at random gives."""
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


def mixture_weights(
    scores: Tensor,
    *,
    start: Tensor | None = None,
    prior: Tensor | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-7,
    history: list[float] | None = None,
) -> Tensor:
    """Find the weights (K,) of a mixture under which rows are most likely, by EM.

    Args:
        scores: log-probabilities (N, K) of the rows under every component.
        start: weights to begin from (a zero stays one); None for equal ones.
        prior: how many rows more every component has (K,), which are its own; None for none.
        iterations: the largest number of EM steps.
        tolerance: stop when a step gains less than this many nats per row.
        history: a list to which the mean log-likelihood of every step is added.

    Example:
        >>> probabilities = torch.tensor([[0.5, 0.1], [0.5, 0.1], [0.1, 0.5]])
        >>> mixture_weights(probabilities.log()).round(decimals=2)
        tensor([0.7500, 0.2500])
    """
    weights = torch.full_like(scores[0], 1 / scores.shape[1]) if start is None else start
    prior = torch.zeros_like(weights) if prior is None else prior
    last = -torch.inf
    for step in range(iterations + 1):
        joint = scores + weights.log()
        total = joint.logsumexp(dim=1, keepdim=True)
        mean = float(total.mean() + torch.xlogy(prior, weights).sum() / len(scores))
        if history is not None:
            history.append(mean)
        if step == iterations or mean - last < tolerance:
            break
        last = mean
        weights = (joint - total).exp().sum(dim=0) + prior
        weights /= weights.sum()
    return weights


def fit_sparse_weights(
    scores: Tensor, *, iterations: int, tolerance: float, threshold: float
) -> tuple[Tensor, list[float]]:
    """Fit weights (K,) without those below a threshold; return all log-likelihoods too.

    The weights are fitted, those below the threshold (the largest never is) are set to zero, and
    the others are fitted again.

    Args:
        scores: log-probabilities (N, K) of the rows under every component.
        iterations, tolerance: of each fit, see :func:`mixture_weights`.
        threshold: weights below it are dropped.

    Example:
        >>> probabilities = torch.tensor([[0.5, 0.1], [0.5, 0.1]])
        >>> options = {"iterations": 50, "tolerance": 1e-7, "threshold": 1e-3}
        >>> fit_sparse_weights(probabilities.log(), **options)[0]
        tensor([1., 0.])
    """
    history: list[float] = []
    options: dict[str, Any] = {"iterations": iterations, "tolerance": tolerance}
    weights = mixture_weights(scores, **options, history=history)
    sparse = weights < min(threshold, float(weights.max()))
    if bool(sparse.any()):
        weights = weights.masked_fill(sparse, 0)
        weights /= weights.sum()
        weights = mixture_weights(scores, start=weights, **options, history=history)
    return weights, history
