"""A mixture of normals for a column by itself, no sharper than its rows can tell."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SOME = 2000
"""Values that a mixture is fitted to, at most."""

_FEW = 150
"""Values up to which the mixture is drawn to a standard normal, as far as they ask for it."""

_PULLS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""For how many values of a standard normal each normal of the mixture is taken to account."""

_FOLDS, _STEPS = 5, 30
"""Parts that are left out in turn, and steps of EM."""

_NARROW, _WIDE = 1e-2, 0.99
"""The least and the largest deviation of a normal."""


def fit_mixture(z: Tensor, width: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of normals to values z (N,), which are about standard normal as a whole, by EM.

    Of few values many normals would learn each of them by heart: they are drawn to the standard
    normal as strongly as makes those likeliest that are left out in turn.

    Args:
        z: the values.
        width: deviations below which a normal may not fall at a value, (N,).
        means: where the normals begin, (C,).

    Returns:
        Weights, means and deviations (C,), of double precision.
    """
    some = slice(None, None, max(1, len(z) // _SOME))
    z, width, means = z[some], width[some], means.double()
    pull = z.new_zeros(1)
    if 1 < len(z) <= _FEW:
        generator = torch.Generator().manual_seed(0)
        fold = torch.randperm(len(z), generator=generator, device="cpu").to(z.device) % _FOLDS
        left = torch.nn.functional.one_hot(fold, _FOLDS).T.bool().repeat(len(_PULLS), 1)
        pulls = z.new_tensor(_PULLS).repeat_interleave(_FOLDS)
        likely = _log_density(z, width, *_expect(z, width, means, pulls, ~left))
        gained = torch.where(left, likely, 0.0).reshape(len(_PULLS), -1).sum(dim=1)
        pull = pulls.reshape(len(_PULLS), -1)[gained.argmax(), :1]
    known = torch.ones_like(z, dtype=torch.bool)[None]
    weights, means, scales = _expect(z, width, means, pull, known)
    return weights[0], means[0], scales[0]


def _expect(
    z: Tensor, width: Tensor, start: Tensor, pull: Tensor, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit mixtures, by one pull (B,) each, to the values that are known to each, (B, N)."""
    count, rows = len(start), known.to(z).unsqueeze(-1)
    weights = z.new_full((len(pull), count), 1 / count)
    means, scales = start.expand_as(weights), torch.full_like(weights, 2 / count)
    pull = pull[:, None]
    for _ in range(_STEPS if len(z) > 1 else 0):
        apart = (z[:, None] - means[:, None]) / scales[:, None]
        log_p = (weights / scales).log()[:, None] - 0.5 * apart.square()
        parts = torch.softmax(log_p, dim=-1) * rows
        # Half a row more for each component, where it is: none dies or collapses.
        total = parts.sum(1) + 0.5 + pull
        weights = total / total.sum(-1, keepdim=True)
        means = (parts.mT @ z + 0.5 * means) / total
        apart = z[:, None] - means[:, None]
        spread = (parts * (apart.square() + width[:, None].square())).sum(1)
        scales = ((spread + 0.5 * 0.01 + pull) / total).sqrt().clamp(_NARROW, _WIDE)
    return weights, means, scales


def _log_density(
    z: Tensor, width: Tensor, weights: Tensor, means: Tensor, scales: Tensor
) -> Tensor:
    """Return log-densities (B, N), of normals made as wide as what cannot be told apart."""
    variance = scales[:, None] ** 2 + width[:, None] ** 2
    each = -0.5 * ((z[:, None] - means[:, None]) ** 2 / variance + variance.log())
    return torch.logsumexp(weights.log()[:, None] + each, dim=-1) - 0.5 * math.log(2 * math.pi)
