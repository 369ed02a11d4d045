"""Simulators with posteriors that can be drawn from: two moons, linear Gaussian, SLCP.

They are those of Lueckmann et al. 2021, *Benchmarking Simulation-Based Inference*. Reference
samples come from exact posteriors, or from long Markov chains on the exact likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Uniform


class Task(NamedTuple):
    """A simulator.

    Args:
        prior: of parameters; its tensors are those of a box, or normal.
        simulate: parameters (N, D) to simulations (N, C).
        reference: a simulation (C,) and a number of samples to samples of its posterior.
    """

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor, int], Tensor]


def _box(half: float, size: int) -> Any:
    return Independent(Uniform(-half * torch.ones(size), half * torch.ones(size)), 1)


# ---------------------------------------------------------------------- linear Gaussian


def _linear() -> Task:
    size, variance = 10, 0.1
    prior = MultivariateNormal(torch.zeros(size), variance * torch.eye(size))
    spread = math.sqrt(variance)
    return Task(
        prior,
        lambda theta: theta + spread * torch.randn_like(theta),
        lambda x, n: 0.5 * x + math.sqrt(variance / 2) * torch.randn(n, size),
    )


# ---------------------------------------------------------------------- two moons


def _arc(n: int) -> Tensor:
    """Points of the crescent that both moons are made of."""
    angle = math.pi * (torch.rand(n) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)


def _moons(theta: Tensor) -> Tensor:
    a, b = theta.unbind(1)
    shift = torch.stack([-(a + b).abs(), b - a], dim=1) / math.sqrt(2)
    return _arc(len(theta)) + shift


def _moons_posterior(x: Tensor, n: int) -> Tensor:
    """Solve for the parameters of arcs drawn anew: the simulator is volume-preserving in them."""
    shift = math.sqrt(2) * (x - _arc(20 * n))
    shift = shift[shift[:, 0] <= 0]
    total = -shift[:, 0] * torch.randint(2, (len(shift),)).mul(2).sub(1)
    theta = torch.stack([total - shift[:, 1], total + shift[:, 1]], dim=1) / 2
    theta = theta[(theta.abs() <= 1).all(dim=1)]
    if len(theta) < n:
        raise RuntimeError("Expected more of the arcs to lead into the prior")
    return theta[:n]


# ---------------------------------------------------------------------- SLCP


def _slcp_noise(theta: Tensor) -> MultivariateNormal:
    mean, first, second = theta[:, :2], theta[:, 2].square(), theta[:, 3].square()
    # Scales of zero would make no distribution.
    first, second = first.clamp(min=1e-4), second.clamp(min=1e-4)
    rho = theta[:, 4].tanh().clamp(-0.9999, 0.9999)
    zero = torch.zeros_like(first)
    below = torch.stack([rho * second, (1 - rho.square()).sqrt() * second], dim=1)
    factor = torch.stack([torch.stack([first, zero], dim=1), below], dim=1)
    return MultivariateNormal(mean, scale_tril=factor)


def _slcp(theta: Tensor) -> Tensor:
    return _slcp_noise(theta).sample((4,)).transpose(0, 1).flatten(1)


def _slcp_posterior(x: Tensor, n: int) -> Tensor:
    """Resample prior draws by their likelihood, and move each by Metropolis steps."""

    def score(theta: Tensor) -> Tensor:
        inside = (theta.abs() <= 3).all(dim=1)
        rows = _slcp_noise(theta.clamp(-3, 3)).log_prob(x.reshape(4, 1, 2)).sum(0)
        return rows.where(inside, -torch.inf)

    draws = torch.cat([6 * torch.rand(100_000, 5) - 3 for _ in range(10)])
    scores = torch.cat([score(part) for part in draws.split(100_000)])
    theta = draws[torch.multinomial((scores - scores.max()).exp(), n, replacement=True)]
    now = score(theta)
    for step in range(2000):
        # Steps of many sizes: the posterior is narrow in some places and wide in others.
        size = 10 ** (-2.5 + 2 * torch.rand(n, 1))
        moved = theta + size * torch.randn_like(theta)
        if step % 4 == 0:  # between modes: the scales' signs do not matter to the likelihood
            moved = theta * torch.tensor([1.0, 1, 0, 0, 1]) + theta * torch.cat(
                [torch.zeros(n, 2), torch.randint(2, (n, 2)).mul(2.0).sub(1), torch.zeros(n, 1)], 1
            )
        then = score(moved)
        accepted = torch.rand(n).log() < then - now
        theta, now = theta.where(~accepted[:, None], moved), now.where(~accepted, then)
    return theta


TASKS: dict[str, Task] = {
    "two moons": Task(_box(1.0, 2), _moons, _moons_posterior),
    "linear Gaussian": _linear(),
    "SLCP": Task(_box(3.0, 5), _slcp, _slcp_posterior),
}
