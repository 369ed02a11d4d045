"""Modes that no draw of a guide fell into: climbed to from elsewhere, and weighed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from made_flows.pyro.starts import definite_inverse, falls_between
from made_flows.pyro.whitened import Density, Whitened, value_and_gradient

_NEAREST, _FURTHEST = 3.0, 100.0
"""Standard deviations of the guide's draws between which climbs begin."""
_DRAWS = 32
"""Of a mode's normal approximation, to weigh it."""
_DIMENSIONS = 1000
"""Up to which second derivatives are taken."""
_ENDS, _NEAR = 32, 0.1
"""Ends of climbs that are looked at; those nearer to each other, in deviations and root mean square
over dimensions, are one."""
_SECOND = 50
"""Second derivatives, by rows, for every climb: they take as long as the climbs do."""
_LEVEL = 0.5
"""Slope, in a mode's deviations, below which a climb has reached it; on bent ridges it is more."""
_ALIKE = 0.1
"""Share of the guide's own mode from which another, by its height and width alone, is said."""
_SETTLED, _SETTLE = 8, (50, 50)
"""Highest ends from which climbs go on in units of the curvature there, and the steps of each."""
_AT_ONCE = 1000
"""Gradients that are taken together."""
_TENABLE, _FEW = 0.01, 20
"""Share of the posterior, and draws that are to be expected in a mode, before it is missed."""


@torch.no_grad()
def unseen_share(posterior: Whitened, log_evidence: float, climbs: int, steps: int) -> float | None:
    r"""Look for a mode that a guide's weighted draws leave out, from places that they never saw.

    Climbs begin at draws of the guide and of the prior, near zero, and far beyond them. Where one
    ends, a normal approximation :math:`q_k` has an evidence lower bound :math:`L_k`. By the
    inequality of data processing, the posterior has a share of nearly :math:`e^{L_k} / Z` at least
    wherever :math:`q_k` nearly always is: here, where :math:`p / q_k` is at most what draws of
    :math:`q_k` show. The mode is unseen if weighted draws of the guide have less than a quarter
    of this share there.

    In many dimensions :math:`L_k` of a mode that is not normal is far below its mass. But modes are
    often alike, as where signs or labels can be exchanged: then the ratio of their masses is about
    that of Laplace's approximations of both. A mode that is apart from the one that the guide's
    draws climb to, has a tenth of it by this ratio or more, and less than a quarter of that among
    the draws that are nearer to it, is unseen as well.

    Args:
        posterior: in the units of the guide's draws.
        log_evidence: log Z by the guide's weights.
        climbs: how many, all of which are evaluated together if the model can be.
        steps: of every climb, each a gradient.

    Returns:
        the share of the posterior, about, that is in the largest such mode; zero without one, None
        where draws have no gradient, or second derivatives are too many: above 1000 dimensions, or
        with few climbs.

    References:
        Riedmiller & Braun 1993, *A Direct Adaptive Method for Faster Backpropagation Learning: The
        RPROP Algorithm*; Cover & Thomas 2006, *Elements of Information Theory*, section 2.8.
    """
    draws, weights = posterior.draws, posterior.weights
    size = draws.shape[-1]
    count = min(_ENDS, climbs * _SECOND // size)
    if size > _DIMENSIONS or count < 2:
        return None
    at = torch.multinomial(weights, max(climbs // 8, 1), replacement=True)
    own, others = (_inside(posterior, u) for u in (draws[at], _begin(posterior, climbs - len(at))))
    if len(own) == 0:
        return None
    ends = _climb(posterior, torch.cat([own, others]), steps)
    heights = _heights(posterior, ends)
    top = ends[heights[: len(own)].argmax()]
    ends = _settled(posterior, torch.cat([top.unsqueeze(0), _distinct(ends, heights, count)]))
    home: _Mode | None = None
    largest, least = 0.0, max(_TENABLE, _FEW * float(weights.square().sum()))
    for mode in _modes(posterior, ends):
        end, factor, home = mode.place, mode.factor, home or mode
        if not bool(factor.isfinite().all()):
            continue
        noise = torch.randn(_DRAWS, size, dtype=draws.dtype, device=draws.device)
        around = end + noise @ factor.mT
        value = _heights(posterior, around)
        ratios = (value - mode.log_q(around))[value.isfinite()]
        # The bound of the normal distribution where there is a density.
        bound = float(ratios.mean()) + math.log(max(len(ratios), 1) / _DRAWS)
        share = math.exp(min(bound - log_evidence, 50.0))
        if share > max(least, largest):  # which no number is not
            there = posterior.heights - mode.log_q(draws) <= ratios.max()
            if float(weights[there].sum()) < share / 4:
                largest = share
        share = math.exp(min(mode.log_mass - home.log_mass, 50.0))
        if share > max(least, largest, _ALIKE) and _apart(posterior, home, mode):
            nearer = mode.log_q(draws) > home.log_q(draws)
            if float(weights[nearer].sum()) < share / 4:
                largest = share
    return largest / (1 + largest)


@torch.no_grad()
def highest_ends(density: Density, like: Tensor, climbs: int, steps: int, count: int) -> Tensor:
    """Return modes (count, D) at most, where the highest climbs from the prior and near zero end.

    A density without bound, as of a funnel's narrow end, has none there.
    """
    near = 2 - 4 * torch.rand(climbs // 2, len(like), dtype=torch.float64, device=like.device)
    points = torch.cat([near, _of_prior(density, near, climbs // 2)])
    ends = _climb(density, _inside(density, points), steps)
    looked = 0 if len(like) > _DIMENSIONS else min(2 * count, climbs * _SECOND // len(like))
    ends = _settled(density, _distinct(ends, _heights(density, ends), looked))
    return ends[[mode.reached for mode in _modes(density, ends)]][:count]


class _Mode(NamedTuple):
    """A mode, and the normal distribution of its height and curvature.

    Args:
        place: (D,).
        height: the log-density there.
        factor: lower triangular factor of the covariance (D, D).
        reached: whether the density falls in every direction, and the climb ended there.
    """

    place: Tensor
    height: float
    factor: Tensor
    reached: bool

    @classmethod
    def at(cls, place: Tensor, height: Tensor, slope: Tensor, hessian: Tensor) -> _Mode:
        """Look at where a climb ended."""
        factor = torch.linalg.cholesky_ex(definite_inverse(-hessian)).L
        falls = not int(torch.linalg.cholesky_ex(-hessian).info)
        return cls(
            place, float(height), factor, falls and float((factor.mT @ slope).norm()) < _LEVEL
        )

    @property
    def log_mass(self) -> float:
        """The logarithm of the mass, by Laplace's approximation."""
        half = len(self.place) * math.log(2 * math.pi) / 2
        return self.height + float(self.factor.diagonal().log().sum()) + half

    def log_q(self, points: Tensor) -> Tensor:
        """Return the normal distribution's log-density (N,) of points (N, D)."""
        z = torch.linalg.solve_triangular(self.factor, (points - self.place).mT, upper=False).mT
        half = len(self.place) * math.log(2 * math.pi) / 2
        log_q: Tensor = -z.square().sum(dim=-1) / 2 - half
        return log_q - self.factor.diagonal().log().sum()


def _modes(density: Callable[[Tensor], Tensor], ends: Tensor) -> Iterator[_Mode]:
    """Look at where climbs (N, D) ended, one after the other."""
    found = zip(ends, *value_and_gradient(density, ends), _hessians(density, ends), strict=True)
    return (_Mode.at(*each) for each in found)


def _apart(density: Callable[[Tensor], Tensor], first: _Mode, second: _Mode) -> bool:
    """Tell whether two places are modes, between which the density falls."""
    both = first.reached and second.reached
    return both and falls_between(partial(_heights, density), first.place, second.place)


def _heights(density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the density (N,) where it and its gradient are numbers, elsewhere minus infinity."""
    return value_and_gradient(density, points)[0]


def _begin(posterior: Whitened, climbs: int) -> Tensor:
    """Return where climbs begin, (N, D)."""
    draws = posterior.draws
    size = draws.shape[-1]
    near = 2 - 4 * torch.rand(climbs // 8, size, dtype=draws.dtype, device=draws.device)
    starts = [posterior.enter(near), _of_prior(posterior, near, climbs // 8)]
    rest = climbs - sum(map(len, starts))
    noise = torch.randn(rest, size, dtype=draws.dtype, device=draws.device)
    further = torch.rand(rest, 1, dtype=draws.dtype, device=draws.device)
    return torch.cat([*starts, _NEAREST * (_FURTHEST / _NEAREST) ** further * noise])


def _of_prior(density: Density | Whitened, like: Tensor, count: int) -> Tensor:
    """Return draws of the prior (N, D); none of an improper one."""
    try:
        prior = density.from_prior(count)
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return like[:0]
    return prior[prior.isfinite().all(dim=-1)]


def _inside(density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the points (N, D) that have a density: one without may be an error for all."""
    known = _heights(density, points).isfinite()
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


def _settled(density: Callable[[Tensor], Tensor], ends: Tensor) -> Tensor:
    """Return ends (N, D) after more steps of the first ones, each in units of its own curvature.

    Steps along the axes creep where modes are bent or narrow across them.
    """
    ends, rest = ends[: _SETTLED + 1], ends[_SETTLED + 1 :]
    for steps in _SETTLE if len(ends) else ():
        inverses = [definite_inverse(-hessian) for hessian in _hessians(density, ends)]
        factors = torch.stack([torch.linalg.cholesky_ex(each).L for each in inverses])
        place = partial(_moved, ends, factors)
        ends = place(_climb(lambda v: density(place(v)), torch.zeros_like(ends), steps))  # noqa: B023
    return torch.cat([ends, rest])


def _moved(points: Tensor, factors: Tensor, v: Tensor) -> Tensor:
    return points + (factors @ v.unsqueeze(-1)).squeeze(-1)


def _distinct(ends: Tensor, heights: Tensor, count: int) -> Tensor:
    """Return the highest of all ends (N, D) that are near each other, at most so many."""
    chosen, near = ends[:0], _NEAR * math.sqrt(ends.shape[-1])
    for end in ends[heights.argsort(descending=True)]:
        if len(chosen) < count and not bool(((chosen - end).norm(dim=-1) < near).any()):
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
