"""A probe beyond a guide's own draws: short chains that start from them, and where these go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from made_flows.pyro.whitened import Whitened, value_and_gradient

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


class _Chains:
    """Chains of Hamiltonian Monte Carlo with a step of one size.

    Args:
        density: the log-density (N,) of points (N, D).
        points: where they start (N, D).
    """

    def __init__(self, density: Callable[[Tensor], Tensor], points: Tensor) -> None:
        self._density, self.points = density, points
        self.value, self._gradient = value_and_gradient(density, points)

    @property
    def state(self) -> Tensor:
        """The points and their log-densities, (N, D + 1)."""
        return torch.cat([self.points, self.value.unsqueeze(-1)], dim=-1)

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
            value, gradient = value_and_gradient(self._density, points)
            momentum = change * (momentum + sizes / 2 * gradient)
        energy = (momentum.square() - start.square()).sum(dim=-1) / 2
        accepted = torch.rand_like(value).log() < value - self.value - energy
        self.value = torch.where(accepted, value, self.value)
        chosen = accepted.unsqueeze(-1)
        self.points = torch.where(chosen, points, self.points)
        self._gradient = torch.where(chosen, gradient, self._gradient)
        return float(accepted.double().mean())


@torch.no_grad()
def probe_beyond(posterior: Whitened) -> Probe | None:
    r"""Start short chains at weighted draws of a guide, and measure whether they wander off.

    Hamiltonian Monte Carlo leaves the posterior as it is. Where means, spreads or the log-density
    of its chains change by more than chance, the weighted draws were not draws of the posterior:
    there is mass where none of them fell, near enough to be reached. Steps are halved until most
    trajectories are accepted.

    Args:
        posterior: in the units of the draws.

    Returns:
        what was found; None where most draws are where the density has no gradient.

    References:
        Neal 2011, *MCMC Using Hamiltonian Dynamics*, sections 5.3 and 5.5.8.
    """
    draws, weights = posterior.draws, posterior.weights
    starts = draws[torch.multinomial(weights, _CHAINS, replacement=True)]
    starts = starts[_Chains(posterior, starts).value.isfinite()]
    if len(starts) < _CHAINS / 2:
        return None
    step = draws.shape[-1] ** -0.25
    for _ in range(_HALVINGS):
        if _Chains(posterior, starts).advance(step) > _ACCEPTED:
            break
        step /= 2
    chains = _Chains(posterior, starts)
    reference = torch.cat([draws, posterior.heights.unsqueeze(-1)], dim=-1)
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
