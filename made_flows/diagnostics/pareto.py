"""Importance weights with a generalised Pareto tail: how far an approximation can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from made_flows._checks import expect, expect_real, expect_type, real_number

_SMALLEST_TAIL = 5


@dataclass(frozen=True)
class SmoothedWeights:
    """Importance weights after Pareto smoothing.

    Args:
        log_weights: smoothed log-weights (S,), on the scale of those given.
        k_hat: estimated shape of the tail; infinite where it could not be fitted, and minus
            infinity where all weights are equal.
        threshold: the largest k-hat with which S weights give reliable averages.
    """

    log_weights: Tensor
    k_hat: float
    threshold: float

    @property
    def effective_sample_size(self) -> float:
        """(sum of weights)^2 / (sum of squared weights)."""
        share = torch.softmax(self.log_weights, dim=0)
        return float(1 / share.square().sum())

    @property
    def log_evidence(self) -> float:
        """Logarithm of the average weight: an estimate of the normalising constant."""
        return float(torch.logsumexp(self.log_weights, 0)) - math.log(len(self.log_weights))

    @property
    def log_evidence_error(self) -> float:
        """Standard error of ``log_evidence``: that of the average weight, relative to it."""
        excess = 1 / self.effective_sample_size - 1 / len(self.log_weights)
        return math.sqrt(max(excess, 0.0))

    @property
    def reliable(self) -> bool:
        """Whether averages by these weights can be trusted: k-hat below the threshold."""
        return self.k_hat < self.threshold


def pareto_smooth(log_weights: Tensor, relative_efficiency: float = 1.0) -> SmoothedWeights:
    r"""Smooth importance weights: replace the largest by quantiles of a fitted Pareto tail.

    The :math:`M = \lceil \min(S / 5, 3 \sqrt{S / r}) \rceil` largest of S weights are fitted by a
    generalised Pareto distribution above the next one, replaced by its quantiles at
    :math:`(j - 1/2) / M`, and cut at the largest raw weight. Its shape :math:`\hat k` says how
    heavy the tail is: averages are reliable for :math:`\hat k < \min(1 - 1/\log_{10} S, 0.7)`.

    Args:
        log_weights: logarithms of unnormalised weights (S,).
        relative_efficiency: r, the share of independent draws among them.

    Raises:
        TypeError: for something that is no tensor.
        ValueError: for another shape, fewer than two weights, NaN, or no weight above zero.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, *Pareto Smoothed Importance Sampling*,
        section 2.2; Zhang & Stephens 2009, *A New and Efficient Estimation Method for the
        Generalized Pareto Distribution*.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> smoothed = pareto_smooth(0.1 * torch.randn(1000, generator=generator))
        >>> smoothed.k_hat < smoothed.threshold
        True
    """
    expect_type(isinstance(log_weights, Tensor), "log_weights", "to be a tensor", log_weights)
    shape = tuple(log_weights.shape)
    expect(len(shape) == 1 and shape[0] > 1, "log_weights", "of shape (S,) with S > 1", shape)
    expect_real(log_weights, "log_weights")
    log_weights = log_weights.detach().double().cpu()
    expect(not bool(log_weights.isnan().any()), "log_weights", "without NaN", "some")
    largest = log_weights.max()
    expect(bool(largest.isfinite()), "log_weights", "with a finite largest one", float(largest))
    relative_efficiency = real_number(relative_efficiency, "relative_efficiency", above=0)

    count = len(log_weights)
    # Exponentials that are zero in float64 would be ties of their own.
    x = (log_weights - largest).clamp(min=math.log(torch.finfo(torch.float64).tiny))
    tail = math.ceil(min(count / 5, 3 * math.sqrt(count / relative_efficiency)))
    cutoff = x.sort().values[count - tail - 1]
    places = (x > cutoff).nonzero().squeeze(1)
    k_hat = math.inf if bool((x < 0).any()) else -math.inf
    smoothed = x.clone()
    if len(places) >= _SMALLEST_TAIL:
        order = places[x[places].argsort()]
        k_hat, scale = fit_pareto(x[order].exp() - cutoff.exp())
        if math.isfinite(k_hat):
            share = (torch.arange(len(order), dtype=x.dtype) + 0.5) / len(order)
            quantiles = _pareto_quantiles(share, k_hat, scale)
            smoothed[order] = torch.log(quantiles + cutoff.exp()).clamp(max=0)
    threshold = min(1 - 1 / math.log10(count), 0.7) if count > 10 else 0.0
    return SmoothedWeights(smoothed + largest, k_hat, threshold)


def fit_pareto(x: Tensor) -> tuple[float, float]:
    r"""Shape k and scale :math:`\sigma` of a generalised Pareto distribution, of positive values.

    The profile likelihood in :math:`b = -k / \sigma` is averaged over a grid, with a weak prior
    that pulls the shape towards 1/2 as ten values would.

    Args:
        x: positive values in increasing order (n,).

    References:
        Zhang & Stephens 2009, section 3 (their k is minus this one); Vehtari et al. 2024,
        appendix C (the prior of the shape).

    Example:
        >>> u = (torch.arange(1000) + 0.5) / 1000
        >>> k, scale = fit_pareto(((1 - u) ** -0.3 - 1) / 0.3)
        >>> round(k, 1), round(scale, 1)
        (0.3, 1.0)
    """
    x = x.double()
    n = len(x)
    points = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    steps = torch.arange(1, points + 1, dtype=x.dtype) - 0.5
    grid = 1 / x[-1] + (1 - torch.sqrt(points / steps)) / (3 * quartile)

    def shape(b: Tensor) -> Tensor:
        return torch.log1p(-b.unsqueeze(-1) * x).mean(dim=-1)

    shapes = shape(grid)
    likelihood = n * (torch.log(-grid / shapes) - shapes - 1)
    b = (torch.softmax(likelihood, dim=0) * grid).sum()
    k = shape(b)
    scale = -k / b
    return float((n * k + 5) / (n + 10)), float(scale)


def _pareto_quantiles(share: Tensor, k: float, scale: float) -> Tensor:
    """Return quantiles of a generalised Pareto distribution that starts at zero."""
    if k == 0:
        return -scale * torch.log1p(-share)
    return scale * torch.expm1(-k * torch.log1p(-share)) / k
