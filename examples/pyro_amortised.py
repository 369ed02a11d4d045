"""A hierarchical model of many groups, in mini-batches: one encoder for the posteriors of all.

Two thousand people answer eight yes-or-no questions of growing strength. Each has a threshold and a
slope of their own, around those of the population. A guide with parameters for every person would
grow with their number; an encoder reads a person's answers, and what the population is like, and
gives the posterior of the two: a normal one, or a `ConditionalIAF` from it. With two variables a
person, quadrature tells the exact evidence, and so how many nats each encoder is short.
With MADE_FLOWS_QUICK=1 both are trained for a moment only, to see that it runs.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from made_flows.pyro import ConditionalIAF

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
PEOPLE, BATCH = 2000, 100
STEPS = 20 if QUICK else 4000
STRENGTHS = torch.linspace(-2.0, 2.0, 8)
CONTEXT = 16


def answers() -> Tensor:
    """Draw the answers (PEOPLE, 8) of a population."""
    generator = torch.Generator().manual_seed(0)
    z = torch.tensor([0.3, 0.8]) + torch.tensor([0.7, 0.4]) * torch.randn(
        PEOPLE, 2, generator=generator
    )
    return torch.bernoulli(logits(z).sigmoid(), generator=generator)


def logits(z: Tensor) -> Tensor:
    """Return log-odds (..., 8) of yes, given thresholds and logarithms of slopes (..., 2)."""
    return z[..., 1:].exp() * (STRENGTHS - z[..., :1])


def model(y: Tensor, rows: Tensor) -> None:
    """The population, and the people of a mini-batch."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(2)).to_event(1))
    with pyro.plate("people", len(y), subsample=rows):
        z = pyro.sample("z", dist.Normal(mu, tau).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=logits(z)).to_event(1), obs=y[rows])


class Encoder(nn.Module):
    """Posteriors of people, from their answers and the population's mean and spread."""

    def __init__(self, flow: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8 + 4, 64), nn.ELU(), nn.Linear(64, 4 + CONTEXT))
        self.flow = (
            ConditionalIAF(2, CONTEXT, transforms=2, hidden_features=(32,)) if flow else None
        )

    def forward(self, y: Tensor, mu: Tensor, tau: Tensor) -> Any:
        population = torch.cat([mu, tau.log()], dim=-1).expand(*y.shape[:-1], 4)
        loc, raw, h = self.body(torch.cat([y, population], dim=-1)).split([2, 2, CONTEXT], dim=-1)
        scale = nn.functional.softplus(raw) + 1e-3
        if self.flow is None:
            return dist.Normal(loc, scale).to_event(1)
        return self.flow(loc, scale, h)


def train(y: Tensor, flow: bool) -> tuple[Encoder, dict[str, Tensor]]:
    """Train an encoder, and a normal guide of the population; return both."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    encoder = Encoder(flow)
    population = AutoNormal(poutine.block(model, expose=["mu", "tau"]))

    def guide(y: Tensor, rows: Tensor) -> None:
        found = population(y, rows)
        pyro.module("encoder", encoder)
        with pyro.plate("people", len(y), subsample=rows):
            pyro.sample("z", encoder(y[rows], found["mu"], found["tau"]))

    optimizer = pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.05 ** (1 / STEPS)})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(STEPS):
        svi.step(y, torch.randperm(len(y))[:BATCH])
    return encoder, population.median()


@torch.no_grad()
def shortfall(encoder: Encoder, y: Tensor, found: dict[str, Tensor]) -> Tensor:
    """Return how far each person's ELBO is below the exact evidence (PEOPLE,), in nats."""
    mu, tau = found["mu"], found["tau"]
    prior = dist.Normal(mu, tau).to_event(1)
    q = encoder(y, mu, tau)
    z = q.sample((200,))
    elbo = prior.log_prob(z) + likelihood(z, y) - q.log_prob(z)
    steps = torch.linspace(-6.0, 6.0, 97)
    grid = torch.cartesian_prod(mu[0] + tau[0] * steps, mu[1] + tau[1] * steps)
    cell = (tau * (steps[1] - steps[0])).prod().log()
    # All people at once, by products: log-odds of a point for yes, and what no costs.
    odds = logits(grid)
    each = y @ odds.T - nn.functional.softplus(odds).sum(dim=-1) + prior.log_prob(grid)
    return each.logsumexp(dim=-1) + cell - elbo.mean(dim=0)


def likelihood(z: Tensor, y: Tensor) -> Tensor:
    return dist.Bernoulli(logits=logits(z)).to_event(1).log_prob(y)


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    y = answers()
    print(f"{'posterior':10}{'short of the evidence, nats a person':>38}{'worst':>8}   population")
    for name in ("normal", "IAF"):
        encoder, found = train(y, flow=name == "IAF")
        short = shortfall(encoder, y, found)
        mu, tau = found["mu"].tolist(), found["tau"].tolist()
        print(
            f"{name:10}{float(short.mean()):38.4f}{float(short.max()):8.3f}   threshold "
            f"{mu[0]:.2f} ± {tau[0]:.2f}, log-slope {mu[1]:.2f} ± {tau[1]:.2f}"
        )
    trained = "for a moment only" if QUICK else f"by {STEPS} mini-batches of {BATCH}"
    print(f"pyro_amortised: trained {trained}, in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
