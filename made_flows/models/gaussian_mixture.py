"""Joint Gaussian mixtures: fitted by EM, and as models of this library."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from made_flows.models.mades import GaussianMADE
from made_flows.models.mixtures import Mixture

_ROUNDS = 200
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Gaussians:
    """A mixture of multivariate normal distributions, in double precision.

    Args:
        weights: (K,).
        means: (K, D).
        factors: lower triangular, (K, D, D): the covariances are factor times its transpose.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of rows (N, D): (N,)."""
        return self.joint(x).logsumexp(dim=1)

    def leading(self, columns: int) -> Gaussians:
        """Return the marginal of the first columns."""
        factors = self.factors[:, :columns, :columns]
        return Gaussians(self.weights, self.means[:, :columns], factors)

    def joint(self, x: Tensor) -> Tensor:
        """Return the logarithms of weight times density of every component, (N, K)."""
        # Products with inverses: many times as fast as solving for columns in small batches.
        eye = torch.eye(x.shape[1], dtype=x.dtype).expand_as(self.factors)
        inverse = torch.linalg.solve_triangular(self.factors, eye, upper=False)
        z = (x - self.means[:, None]) @ inverse.mT
        log_det = self.factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        constant = self.weights.log() - log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)
        each: Tensor = constant[:, None] - 0.5 * z.square().sum(dim=2)
        return each.T


def merged(mixtures: Sequence[Gaussians], weights: Tensor) -> Gaussians:
    """Return the mixture of mixtures, given the weight of each; those of none are left out."""
    pairs = [(m, w) for m, w in zip(mixtures, weights.tolist(), strict=True) if w > 0]
    return Gaussians(
        torch.cat([m.weights * weight for m, weight in pairs]),
        torch.cat([m.means for m, _ in pairs]),
        torch.cat([m.factors for m, _ in pairs]),
    )


def fit_gaussians(
    x: Tensor,
    components: int,
    prior: float,
    generator: torch.Generator,
    *,
    correlated: bool = False,
    end: float = math.inf,
) -> Gaussians:
    r"""Fit a mixture of normal distributions with full covariances by EM.

    Covariances are shrunk towards that of all rows, as if some rows more had been seen of each
    component, which keeps one of few rows from collapsing:

    .. math:: \Sigma_k = \frac{N_k S_k + \nu\, K^{-2/D}\, \Sigma_0}{N_k + \nu}

    where :math:`\Sigma_0` has the variances of the columns and, if ``correlated``, their
    covariances.

    Args:
        x: rows (N, D).
        components: K.
        prior: :math:`\nu`, above zero.
        generator: source of randomness for the start.
        correlated: whether components are alike in their correlations too, not in scale alone.
        end: on the clock of ``time.perf_counter``, when steps of EM have to end.

    References:
        Dempster, Laird & Rubin 1977; Fraley & Raftery 2007, *Bayesian Regularization for Normal
        Mixture Estimation and Model-Based Clustering*, section 3.

    Example:
        >>> x = torch.cat([torch.randn(100, 2) - 5, torch.randn(100, 2) + 5]).double()
        >>> found = fit_gaussians(x, 2, 1.0, torch.Generator().manual_seed(0))
        >>> bool((found.weights - 0.5).abs().max() < 0.01)
        True
    """
    x = x.double()
    features = x.shape[1]
    start = torch.diag(x.var(dim=0, correction=0).clamp(min=1e-12))
    if correlated:  # not quite, as columns may be linear in one another
        start = torch.lerp(start, x.T.cov(correction=0).reshape(features, features), 0.999)
    shrunk = start * components ** (-2 / features)
    share = torch.nn.functional.one_hot(_nearest(x, components, generator), components).double()
    best, last = _maximized(x, share, shrunk, prior), -torch.inf
    for _ in range(_ROUNDS if components > 1 else 0):
        joint = best.joint(x)
        total = joint.logsumexp(dim=1, keepdim=True)
        mean = float(total.mean())
        if mean - last < _TOLERANCE or time.perf_counter() > end:
            break
        last = mean
        best = _maximized(x, (joint - total).exp(), shrunk, prior)
    return best


def _maximized(x: Tensor, share: Tensor, shrunk: Tensor, prior: float) -> Gaussians:
    """Return the mixture under which rows are most likely, given each component's share of them."""
    count = share.sum(dim=0) + 1e-9
    means = (share.T @ x) / count[:, None]
    away = x - means[:, None]
    scatter = (away * share.T[..., None]).mT @ away
    covariances = (scatter + prior * shrunk) / (count + prior)[:, None, None]
    jitter = 1e-9 * shrunk
    factors, failed = torch.linalg.cholesky_ex(covariances + jitter)
    if bool(failed.any()):
        factors = torch.linalg.cholesky(covariances + 1e4 * jitter)
    return Gaussians(count / count.sum(), means, factors)


def _nearest(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Find the nearest of as many centres for every row, (N,): k-means, spread-out starts."""
    first = int(torch.randint(len(x), (), generator=generator))
    centres = x[first : first + 1]
    while len(centres) < components:
        distance = torch.cdist(x, centres).amin(dim=1).square()
        far = bool(distance.sum() > 0)
        drawn = torch.multinomial(distance if far else distance + 1, 1, generator=generator)
        centres = torch.cat([centres, x[drawn]])
    nearest = torch.cdist(x, centres).argmin(dim=1)
    for _ in range(20):
        counts = torch.bincount(nearest, minlength=components).clamp(min=1)
        sums = torch.zeros_like(centres).index_add(0, nearest, x)
        moved = torch.cdist(x, sums / counts[:, None]).argmin(dim=1)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return nearest


def gaussian_model(gaussians: Gaussians, context: int = 0) -> Mixture | GaussianMADE:
    r"""Return a mixture of normal distributions as a model: linear Gaussian MADEs, one a component.

    With a context, its variables are the first columns, and a single component is conditional on
    them.

    A normal distribution is a chain of linear regressions with normal noise. With
    :math:`\Sigma = A S^2 A^\top`, A of unit diagonal, each feature is

    .. math:: x = (I - A^{-1})\, x + A^{-1} m + S\, \varepsilon
    """
    parts = [
        _linear(mean, factor, context)
        for mean, factor in zip(gaussians.means, gaussians.factors, strict=True)
    ]
    return parts[0] if len(parts) == 1 else Mixture(parts, weights=gaussians.weights)


@torch.no_grad()
def _linear(mean: Tensor, factor: Tensor, context: int) -> GaussianMADE:
    model = GaussianMADE(len(mean) - context, context, (), scale="exp")
    eye = torch.eye(len(mean), dtype=factor.dtype)
    unit = factor / factor.diagonal()
    inverse = torch.linalg.solve_triangular(unit, eye, upper=False, unitriangular=True)[context:]
    scale, eye = factor.diagonal()[context:], eye[context:]
    layer = model.made.masked_layers()[-1]
    weight, bias = layer.weight, cast(Tensor, layer.bias)
    weight.zero_()
    weight[0::2] = (eye - inverse)[:, context:].to(weight)
    given = model.made.output_context
    if given is not None:
        given.weight.zero_()
        given.weight[0::2] = -inverse[:, :context].to(weight)
    bias[0::2] = (inverse @ mean).to(bias)
    bias[1::2] = scale.log().to(bias)
    return model.eval()
