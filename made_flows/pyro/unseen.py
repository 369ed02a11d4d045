"""Modes that no draw of a guide fell into: climbed to from elsewhere, and weighed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from made_flows.pyro.starts import definite_inverse
from made_flows.pyro.whitened import Whitened, value_and_gradient

_NEAREST, _FURTHEST = 3.0, 100.0
"""Standard deviations of the guide's draws between which climbs begin."""
_DRAWS = 32
"""Of a mode's normal approximation, to weigh it."""
_DIMENSIONS = 200
"""Up to which second derivatives are taken."""
_ENDS, _NEAR = 32, 0.1
"""Ends of climbs that are looked at; those nearer to each other, in deviations, are one."""
_AT_ONCE = 1000
"""Gradients that are taken together."""
_FEW = 20
"""Draws that are to be expected in a mode before it is missed."""


@torch.no_grad()
def unseen_share(
    posterior: Whitened, log_evidence: float, climbs: int, steps: int, tenable: float = 0.01
) -> float | None:
    r"""Look for a mode that a guide's weighted draws leave out, from places that they never saw.

    Climbs begin at draws of the prior, near zero, and far beyond the guide's own draws. Where one
    ends, a normal approximation :math:`q_k` has an evidence lower bound :math:`L_k`. By the
    inequality of data processing, the posterior has a share of nearly :math:`e^{L_k} / Z` at least
    wherever :math:`q_k` nearly always is: here, where :math:`p / q_k` is at most what draws of
    :math:`q_k` show. The mode is unseen if weighted draws of the guide have less than a quarter
    of this share there.

    Args:
        posterior: in the units of the guide's draws.
        log_evidence: log Z by the guide's weights.
        climbs: how many, all of which are evaluated together if the model can be.
        steps: of every climb, each a gradient.
        tenable: the share below which nothing is said, and below 20 effective draws.

    Returns:
        the share of the posterior, about, that is in the largest such mode; zero without one, None
        above 200 dimensions, where second derivatives are too many.

    References:
        Riedmiller & Braun 1993, *A Direct Adaptive Method for Faster Backpropagation Learning: The
        RPROP Algorithm*; Cover & Thomas 2006, *Elements of Information Theory*, section 2.8.
    """
    draws, weights = posterior.draws, posterior.weights
    size = draws.shape[-1]
    if size > _DIMENSIONS:
        return None
    ends = _climb(posterior, _inside(posterior, _begin(posterior, climbs)), steps)
    ends = _distinct(ends, value_and_gradient(posterior, ends)[0])
    largest, least = 0.0, max(tenable, _FEW * float(weights.square().sum()))
    for end, hessian in zip(ends, _hessians(posterior, ends), strict=True):
        factor = torch.linalg.cholesky_ex(definite_inverse(-hessian)).L
        if not bool(factor.isfinite().all()):
            continue
        log_det = factor.diagonal().log().sum()
        noise = torch.randn(_DRAWS, size, dtype=draws.dtype, device=draws.device)
        value, _ = value_and_gradient(posterior, end + noise @ factor.mT)
        ratios = (value - _standard_normal(noise) + log_det)[value.isfinite()]
        # The bound of the normal distribution where there is a density.
        bound = float(ratios.mean()) + math.log(max(len(ratios), 1) / _DRAWS)
        share = math.exp(min(bound - log_evidence, 50.0))
        if not share > max(least, largest):  # which no number is not
            continue
        z = torch.linalg.solve_triangular(factor, (draws - end).mT, upper=False).mT
        there = posterior.heights - _standard_normal(z) + log_det <= ratios.max()
        if float(weights[there].sum()) < share / 4:
            largest = share
    return largest / (1 + largest)


def _standard_normal(z: Tensor) -> Tensor:
    return -z.square().sum(dim=-1) / 2 - z.shape[-1] * math.log(2 * math.pi) / 2


def _begin(posterior: Whitened, climbs: int) -> Tensor:
    """Return where climbs begin, (N, D)."""
    draws = posterior.draws
    size = draws.shape[-1]
    near = 2 - 4 * torch.rand(climbs // 8, size, dtype=draws.dtype, device=draws.device)
    try:
        prior = posterior.from_prior(climbs // 8)
    except (NotImplementedError, RuntimeError, ValueError):  # an improper one
        prior = draws[:0]
    starts = [posterior.enter(near), prior[prior.isfinite().all(dim=-1)]]
    rest = climbs - sum(map(len, starts))
    noise = torch.randn(rest, size, dtype=draws.dtype, device=draws.device)
    further = torch.rand(rest, 1, dtype=draws.dtype, device=draws.device)
    return torch.cat([*starts, _NEAREST * (_FURTHEST / _NEAREST) ** further * noise])


def _inside(density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the points (N, D) that have a density: one without may be an error for all."""
    known = value_and_gradient(density, points)[0].isfinite()
    if bool(known.any()) or len(points) < 2:
        return points[known]
    return torch.cat([_inside(density, half) for half in points.chunk(2)])


def _climb(density: Callable[[Tensor], Tensor], points: Tensor, steps: int) -> Tensor:
    """Return where points (N, D) arrive by steps that look at the signs of the gradient alone."""
    sizes, last, before = torch.full_like(points, 0.5), points, torch.zeros_like(points)
    for _ in range(steps):
        value, gradient = value_and_gradient(density, points)
        wall = value.isneginf().unsqueeze(-1)
        points = torch.where(wall, last, points)
        turned = wall | (gradient * before < 0)
        sizes = sizes * torch.where(turned, 0.5, torch.where(gradient * before > 0, 1.2, 1.0))
        before = torch.where(turned, 0.0, gradient)
        last, points = points, points + sizes * before.sign()
    return last


def _distinct(ends: Tensor, heights: Tensor) -> Tensor:
    """Return the highest of all ends (N, D) that are near each other, at most 32."""
    chosen = ends[:0]
    for end in ends[heights.argsort(descending=True)]:
        if len(chosen) < _ENDS and not bool(((chosen - end).norm(dim=-1) < _NEAR).any()):
            chosen = torch.cat([chosen, end.unsqueeze(0)])
    return chosen


def _hessians(density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return second derivatives (N, D, D) at points (N, D), by differences of gradients.

    Not by differentiating twice: what overflows there (as in torch's ``logaddexp``, far from one of
    the two) does not here. The second differences are as wide as the first ones tell.
    """
    count, size = points.shape
    widths = torch.full_like(points, 0.01)
    hessians = points.new_zeros(count, size, size)
    for _ in range(2):
        moves = torch.diag_embed(widths)
        both = torch.stack([points.unsqueeze(1) + moves, points.unsqueeze(1) - moves])
        parts = both.reshape(-1, size).split(_AT_ONCE)
        slopes = torch.cat([value_and_gradient(density, part)[1] for part in parts])
        up, down = slopes.reshape(2, count, size, size)
        hessians = (up - down) / (2 * widths.unsqueeze(-1))
        widths = 0.1 * hessians.diagonal(dim1=1, dim2=2).abs().clamp(min=1e-12).rsqrt()
    return (hessians + hessians.mT) / 2
