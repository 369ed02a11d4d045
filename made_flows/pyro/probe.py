"""A probe beyond a guide's own draws: short chains that start from them, and where these go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

_AT_ONCE = 1000
"""Draws whose density is computed together."""
_CHAINS = 100
_ROUNDS = 3
"""Of two trajectories of eight steps, and one that is heated on the way."""
_LEAPS, _HOT_LEAPS, _HEAT = 8, 40, 0.3
_ACCEPTED = 0.65
"""Share of accepted trajectories below which steps are halved: where chains move the most."""
_HALVINGS = 10
_LARGE = 0.25
"""A change of means, in standard deviations, below which nothing is said."""
_CHANCE = 1e-3
"""How often chance alone should show as a change."""


@dataclass(frozen=True)
class Probe:
    """Where short Hamiltonian chains went that started at a guide's weighted draws.

    Chains that start in the posterior stay in it. All is measured in every unconstrained variable,
    less what those before it explain, and in the log-density.

    Args:
        moved: the largest change of a mean, in standard deviations of the draws (by their normal
            scores).
        moved_noise: how large chance makes it, once in a thousand probes.
        beyond: the largest share of chains that end beyond all draws.
        beyond_noise: how large chance makes that, likewise.
        travelled: distance of chains from start to end, in that of independent draws: near 0, they
            have seen nothing.
    """

    moved: float
    moved_noise: float
    beyond: float
    beyond_noise: float
    travelled: float

    @property
    def wandered(self) -> bool:
        """Whether chains left where the guide's weighted draws are, by more than chance."""
        return self.moved > max(self.moved_noise, _LARGE) or self.beyond > self.beyond_noise

    def __str__(self) -> str:
        return (
            f"means move by {self.moved:.2f} sd (by chance {self.moved_noise:.2f}), "
            f"{self.beyond:.0%} of the chains leave the draws' range (by chance "
            f"{self.beyond_noise:.0%})"
        )


class LatentSite:
    """What a latent variable of a model looks like, without vectorised particles.

    Args:
        fn: its distribution.
        value: a value of it, whose leading dimensions are those of plates.
    """

    def __init__(self, fn: Any, value: Tensor) -> None:
        self.shape, self.plates = value.shape, len(fn.batch_shape)
        self.transform: Transform | None
        try:
            self.transform = biject_to(fn.support)
        except NotImplementedError:  # a discrete one
            self.transform = None


class _Density:
    """The log-density of a model's unconstrained latent variables, of many points at once.

    Args:
        model, args, kwargs: the model, and its data.
        nesting: how many dimensions its plates take.
        sites: its latent variables, all continuous.
        dtype: of their values.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        nesting: int,
        sites: Mapping[str, LatentSite],
        dtype: torch.dtype,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._nesting, self._sites, self._dtype = nesting, sites, dtype

    def unconstrained(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Return draws by site as points (S, D)."""
        parts = []
        for name, site in self._sites.items():
            value = samples[name]
            parts.append(cast(Transform, site.transform).inv(value).reshape(len(value), -1))
        return torch.cat(parts, dim=-1).double()

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log-density (N,) at points (N, D)."""
        count, at, total, values = len(u), 0, u.new_zeros(len(u)), {}
        for name, site in self._sites.items():
            transform = cast(Transform, site.transform)
            shape = transform.inverse_shape(site.shape)
            part = u[:, at : at + shape.numel()].reshape(count, *shape).to(self._dtype)
            at += shape.numel()
            value = transform(part)
            log_det = transform.log_abs_det_jacobian(part, value)
            total = total + log_det.reshape(count, -1).sum(dim=-1)
            between = [1] * (self._nesting - site.plates)
            values[name] = value.reshape(count, *between, *site.shape)

        def together() -> None:
            with pyro.plate("probed points", count, dim=-self._nesting - 1):
                self._model(*self._args, **self._kwargs)

        # Points where a distribution's arguments are out of range have no density: no error.
        with poutine.block(), pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(together, data=values)).get_trace()
            trace.compute_log_prob()
        for node in trace.nodes.values():
            if node["type"] == "sample":
                log_prob = node["log_prob"]
                missing = [1] * (self._nesting + 1 - log_prob.dim())
                log_prob = log_prob.reshape(*missing, *log_prob.shape)
                total = total + log_prob.reshape(len(log_prob), -1).sum(dim=-1)
        return total


class _Chains:
    """Chains of Hamiltonian Monte Carlo with a step of one size.

    Args:
        density: the log-density (N,) of points (N, D).
        points: where they start (N, D).
    """

    def __init__(self, density: Callable[[Tensor], Tensor], points: Tensor) -> None:
        self._density, self.points = density, points
        self.value, self._gradient = self._look(points)

    @property
    def state(self) -> Tensor:
        """The points and their log-densities, (N, D + 1)."""
        return torch.cat([self.points, self.value.unsqueeze(-1)], dim=-1)

    def _look(self, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            try:
                value = self._density(points)
                (gradient,) = torch.autograd.grad(value.sum(), points)
            except (RuntimeError, ValueError):  # a matrix without a Cholesky factor, say
                value, gradient = points.new_full((len(points),), math.nan), points
        known = value.isfinite() & gradient.isfinite().all(dim=-1)
        value = torch.where(known, value.detach(), -math.inf)
        return value, torch.where(known.unsqueeze(-1), gradient, 0.0)

    def advance(self, step: float, heat: float = 0.0, leaps: int = _LEAPS) -> float:
        """Take every chain along a trajectory; return the share of those accepted.

        Args:
            step: its largest size.
            heat: the logarithm by which momenta grow, at most, with every leap of the first half,
                and shrink with every one of the second: so that they cross what lies between modes.
            leaps: an even number of steps.
        """
        sizes = step * (0.6 + 0.4 * torch.rand_like(self.value)).unsqueeze(-1)
        heats = torch.exp(heat / 2 * torch.rand_like(sizes))
        start = torch.randn_like(self.points)
        points, value, gradient, momentum = self.points, self.value, self._gradient, start
        for leap in range(leaps):
            change = heats if leap < leaps // 2 else 1 / heats
            momentum = change * momentum + sizes / 2 * gradient
            points = points + sizes * momentum
            value, gradient = self._look(points)
            momentum = change * (momentum + sizes / 2 * gradient)
        energy = (momentum.square() - start.square()).sum(dim=-1) / 2
        accepted = torch.rand_like(value).log() < value - self.value - energy
        self.value = torch.where(accepted, value, self.value)
        chosen = accepted.unsqueeze(-1)
        self.points = torch.where(chosen, points, self.points)
        self._gradient = torch.where(chosen, gradient, self._gradient)
        return float(accepted.double().mean())


@torch.no_grad()
def probe_beyond(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    nesting: int,
    sites: Mapping[str, LatentSite],
    samples: Mapping[str, Tensor],
    weights: Tensor,
) -> Probe | None:
    r"""Start short chains at weighted draws of a guide, and measure whether they wander off.

    Hamiltonian Monte Carlo leaves the posterior as it is. Where means, spreads or the log-density
    of its chains change by more than chance, the weighted draws were not draws of the posterior:
    there is mass where none of them fell, near enough to be reached. The unconstrained variables
    are whitened by the draws' covariance, and steps halved until most trajectories are accepted.

    Args:
        model, args, kwargs: the model, and its data; run for all points at once, within a plate.
        nesting: how many dimensions its plates take.
        sites: its latent variables.
        samples: draws by site, each (S, *shape).
        weights: of the draws (S,).

    Returns:
        what was found; None where there are no gradients, as a latent variable is discrete or torch
        in inference mode, and where fewer draws than chains have finite unconstrained values.

    References:
        Neal 2011, *MCMC Using Hamiltonian Dynamics*, sections 5.3 and 5.5.8.
    """
    discrete = any(site.transform is None for site in sites.values())
    if discrete or torch.is_inference_mode_enabled():
        return None
    some = next(iter(samples.values()))
    density = _Density(model, args, kwargs, nesting, sites, some.dtype)
    draws, weights = density.unconstrained(samples), weights.to(some.device)
    usable = draws.isfinite().all(dim=-1) & (weights > 0)
    if int(usable.sum()) < _CHAINS:
        return None
    draws, weights = draws[usable], weights[usable] / weights[usable].sum()
    middle = weights @ draws
    factor = _factor(draws - middle, weights)
    whitened = torch.linalg.solve_triangular(factor, (draws - middle).mT, upper=False).mT

    def of_whitened(v: Tensor) -> Tensor:
        return density(middle + v @ factor.mT).double()

    starts = whitened[torch.multinomial(weights, _CHAINS, replacement=True)]
    starts = starts[_Chains(of_whitened, starts).value.isfinite()]
    if len(starts) < _CHAINS / 2:
        return None
    step = draws.shape[-1] ** -0.25
    for _ in range(_HALVINGS):
        if _Chains(of_whitened, starts).advance(step) > _ACCEPTED:
            break
        step /= 2
    chains = _Chains(of_whitened, starts)
    heights = torch.cat([of_whitened(part) for part in whitened.split(_AT_ONCE)])
    reference = torch.cat([whitened, heights.unsqueeze(-1)], dim=-1)
    scores = _NormalScores(reference, weights)
    before, seen = scores(chains.state), []
    for turn in range(_ROUNDS):
        for _ in range(2):
            chains.advance(step)
        chains.advance(step, _HEAT, _HOT_LEAPS)
        if turn > 0:
            seen.append(scores(chains.state))
    outside = (chains.state < reference.amin(dim=0)) | (chains.state > reference.amax(dim=0))
    way = (seen[-1] - before)[:, :-1].square().mean().sqrt()
    return Probe(
        *_largest(torch.stack(seen).mean(dim=0) - before),
        beyond=float(outside.double().mean(dim=0).max()),
        beyond_noise=_outside_by_chance(len(starts), *reference.shape),
        travelled=float(way) / math.sqrt(2),
    )


def _factor(centred: Tensor, weights: Tensor) -> Tensor:
    """Return the Cholesky factor of the covariance; of its diagonal where draws are too few."""
    covariance = centred.mT @ (weights.unsqueeze(-1) * centred)
    diagonal = covariance.diagonal().clamp(min=1e-300)
    if 5 * centred.shape[-1] <= 1 / float(weights.square().sum()):
        unit = diagonal.rsqrt()
        factor, failed = torch.linalg.cholesky_ex(unit[:, None] * covariance * unit)
        if not int(failed):
            return cast(Tensor, diagonal.sqrt()[:, None] * factor)
    return torch.diag(diagonal.sqrt())


class _NormalScores:
    """Maps values to where they stand among weighted draws, on the scale of a standard normal.

    Args:
        draws: (S, D).
        weights: (S,), which sum to one.
    """

    def __init__(self, draws: Tensor, weights: Tensor) -> None:
        columns, order = draws.mT.sort(dim=-1)
        reached = weights[order].cumsum(dim=-1)
        self._columns = columns.contiguous()
        self._reached = torch.cat([torch.zeros_like(reached[:, :1]), reached], dim=-1)
        self._least = 0.5 / len(draws)

    def __call__(self, values: Tensor) -> Tensor:
        columns = values.mT.contiguous()
        sides = [
            self._reached.gather(1, torch.searchsorted(self._columns, columns, right=right))
            for right in (False, True)
        ]
        share = (sides[0] + sides[1]) / 2
        return cast(Tensor, torch.special.ndtri(share.clamp(self._least, 1 - self._least)).mT)


def _largest(changes: Tensor) -> tuple[float, float]:
    """Return the mean change (of N chains, D quantities) that is least chance, and its noise."""
    count, quantities = changes.shape
    errors = changes.std(dim=0) / math.sqrt(count)
    z = float(torch.special.ndtri(torch.tensor(1 - _CHANCE / (4 * quantities)).double()))
    quantile = z + (z**3 + z) / (4 * (count - 1))  # of Student's t, by its first correction
    means = changes.mean(dim=0)
    excess = means.abs() - quantile * errors
    at = int(excess.argmax())
    return float(means[at].abs()), quantile * float(errors[at])


def _outside_by_chance(chains: int, draws: int, quantities: int) -> float:
    """Return the largest share of chains that chance takes beyond the range of as many draws."""
    expected = torch.tensor(2 * chains / (draws + 1), dtype=torch.float64)
    counts = torch.arange(1.0, chains + 1, dtype=torch.float64)
    at_least = torch.special.gammainc(counts, expected)  # as many, by Poisson
    return int((at_least > _CHANCE / (2 * quantities)).sum()) / chains
