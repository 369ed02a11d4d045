"""Means and deviations of a posterior by exact draws, or many Hamiltonian chains at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from benchmarks._untuned_models import Untuned
from made_flows.pyro.layout import layout
from made_flows.pyro.starts import JointDensity, NormalStart, find_starts, init_to_prior_median
from made_flows.pyro.whitened import Density, value_and_gradient

STARTS, CHAINS, KEPT, LEAPS = 3, 64, 200, 10
MATTERS = 10.0
"""Nats by which where a way leads may be below the best."""
WINDOWS = (60, 60, 100, 100)
"""Of warm-up, after each of which units are those of the chains together."""
ACCEPTED = 0.85


@dataclass
class Reference:
    """What is known of a posterior's quantities.

    Args:
        mean, sd: of every quantity.
        r_hat: the largest of the chains; 1 for exact draws.
        effective: the smallest number of independent draws that they are worth.
    """

    mean: list[float]
    sd: list[float]
    r_hat: float
    effective: float

    @classmethod
    def of(cls, draws: Tensor, r_hat: float = 1.0, effective: float = math.nan) -> Reference:
        """Of draws of the quantities (n, Q)."""
        draws = draws.double()
        size = len(draws) if math.isnan(effective) else effective
        return cls(draws.mean(0).tolist(), draws.std(0).tolist(), r_hat, size)


def reference(posterior: Untuned) -> Reference:
    """Draws that owe nothing to a guide: exact ones, or of long chains."""
    if posterior.exact is None:
        chains = _by_hamiltonian_chains(posterior)
    else:
        chains = posterior.exact(torch.Generator().manual_seed(0))
        if chains.dim() == 2:
            return Reference.of(chains)
    draws = chains.flatten(0, 1)
    if posterior.mirrored is not None:
        draws = torch.cat([draws, posterior.mirrored(draws)])
    r_hat, effective = split_gelman_rubin(chains, 0, 1), effective_sample_size(chains, 0, 1)
    return Reference.of(draws, float(r_hat.max()), float(effective.min()))


def _by_hamiltonian_chains(posterior: Untuned) -> Tensor:
    """Quantities (chains, n, Q)."""
    model = posterior.chains_of or posterior.model
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            args = tuple(a.double() if a.is_floating_point() else a for a in posterior.args)
            pyro.clear_param_store()
            guide = AutoDiagonalNormal(model, init_loc_fn=init_to_prior_median)
            guide(*args)
            bound = partial(model, *args)
            nesting, sites = layout(bound, partial(guide, *args))
            density = Density(bound, nesting, sites, torch.float64)
            ways = {"its own": guide._init_loc()}
            ways.update({f"{k}": 4 * torch.rand(guide.latent_dim) - 2 for k in range(STARTS)})
            joint = JointDensity(model, sites, args, {})
            ranked = find_starts(joint, ways, torch.Generator().manual_seed(0))
            starts = [start for _, start in ranked if start.elbo > ranked[0][1].elbo - MATTERS]
            chains = _chains(density, starts)
            draws, at = {}, 0
            points = chains.flatten(0, 1)
            for name, site in sites.items():
                transform: Any = site.transform
                shape = site.unconstrained
                part = points[:, at : at + shape.numel()].reshape(-1, *shape)
                draws[name], at = transform(part), at + shape.numel()
    finally:
        torch.set_default_dtype(before)
    found = (posterior.from_chains or posterior.quantities)(draws)
    return found.reshape(CHAINS, KEPT, -1)


@torch.no_grad()
def _chains(density: Density, starts: Sequence[NormalStart]) -> Tensor:
    """Points (chains, n, D): from normal approximations of where some ways lead.

    Step sizes adapt by dual averaging (Hoffman & Gelman 2014, section 3.2), units by windows; the
    number of leaps is random.
    """
    factor, size = starts[0].factor, len(starts[0].location)
    chosen = [starts[chain % len(starts)] for chain in range(CHAINS)]
    points = torch.stack([s.location + s.factor @ torch.randn(size) for s in chosen])
    value, gradient = value_and_gradient(density, points)
    step, found = size**-0.25, list[Tensor]()
    for turns, count in enumerate((*WINDOWS, KEPT)):
        found, adapting = [], turns < len(WINDOWS)
        origin, drift, average = math.log(10 * step), 0.0, 0.0
        for turn in range(1, count + 1):
            momentum = torch.randn_like(points)
            energy = value - momentum.square().sum(-1) / 2
            place, height, slope = points, value, gradient
            sizes = step * (0.8 + 0.4 * torch.rand(CHAINS, 1))
            for _ in range(int(torch.randint(1, LEAPS + 1, ()))):
                momentum = momentum + sizes / 2 * (slope @ factor)
                place = place + sizes * (momentum @ factor.mT)
                height, slope = value_and_gradient(density, place)
                momentum = momentum + sizes / 2 * (slope @ factor)
            gain = height - momentum.square().sum(-1) / 2 - energy
            chance = gain.nan_to_num(-math.inf).clamp(max=0).exp()
            taken = torch.rand(CHAINS) < chance
            points = torch.where(taken[:, None], place, points)
            gradient = torch.where(taken[:, None], slope, gradient)
            value = torch.where(taken, height, value)
            found.append(points)
            if adapting:
                drift += (ACCEPTED - float(chance.mean()) - drift) / (turn + 10)
                logarithm = origin - math.sqrt(turn) / 0.05 * drift
                average += turn**-0.75 * (logarithm - average)
                step = math.exp(logarithm)
        if adapting:
            step = math.exp(average)
            if turns < len(WINDOWS) - 1:
                factor = _factor(torch.stack(found[count // 3 :]).reshape(-1, size))
                step = size**-0.25
    return torch.stack(found, 1)


def _factor(points: Tensor) -> Tensor:
    """A factor of the covariance, with correlations shrunk a little."""
    sd = points.std(0).clamp(min=1e-300)
    correlation = 0.999 * points.mT.corrcoef().reshape(len(sd), -1) + 0.001 * torch.eye(len(sd))
    return sd.unsqueeze(-1) * torch.linalg.cholesky(correlation)
