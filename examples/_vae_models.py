"""A variational autoencoder of binary images, with a choice of posterior and of decoder."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from made_flows.pyro import BernoulliMADE, ConditionalIAF

PIXELS = 64
LATENT = 8
CONTEXT = 32
WIDTH = 200


def mlp(*sizes: int, dropout: float) -> nn.Sequential:
    """Hidden layers of these sizes, each with an activation and dropout."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """The posterior of an image: a diagonal normal, or an inverse autoregressive flow from it."""

    def __init__(self, posterior: str) -> None:
        super().__init__()
        self.body = mlp(PIXELS, WIDTH, WIDTH, dropout=0.1)
        self.flow: ConditionalIAF | None = None
        if posterior == "IAF":
            self.flow = ConditionalIAF(
                LATENT, CONTEXT, transforms=4, hidden_features=(128,), activation="elu"
            )
        self.sizes = [LATENT, LATENT, CONTEXT if self.flow is not None else 0]
        self.out = nn.Linear(WIDTH, sum(self.sizes))
        with torch.no_grad():
            self.out.weight.mul_(0.1)  # posteriors start near the prior

    def forward(self, x: Tensor) -> Any:
        loc, raw, context = self.out(self.body(x)).split(self.sizes, dim=-1)
        scale = nn.functional.softplus(raw + 0.5) + 1e-3
        if self.flow is None:
            return dist.Normal(loc, scale).to_event(1)
        return self.flow(loc, scale, context)


class Decoder(nn.Module):
    """Pixels given z: independent of each other, or each given those before it as well."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = mlp(LATENT, WIDTH, WIDTH, dropout=0.1)
        self.out = nn.Linear(WIDTH, PIXELS)
        self.made: BernoulliMADE | None = None
        if kind == "made":
            self.made = BernoulliMADE(PIXELS, PIXELS, (32,), direct=True, dropout=0.3)

    def forward(self, z: Tensor) -> Any:
        logits = self.out(self.body(z))
        if self.made is None:
            return dist.Bernoulli(logits=logits).to_event(1)
        return self.made(logits)


class VAE(nn.Module):
    r"""Model and guide: :math:`p(z)\, p(x \mid z)` and :math:`q(z \mid x)`.

    Args:
        posterior: "diagonal" or "IAF".
        decoder: "bernoulli" or "made".
    """

    def __init__(self, posterior: str, decoder: str) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(posterior), Decoder(decoder)

    def prior(self) -> Any:
        return dist.Normal(torch.zeros(LATENT), torch.ones(LATENT)).to_event(1)

    def model(self, x: Tensor, warmth: float = 1.0) -> None:
        pyro.module("vae", self)
        with pyro.plate("images", len(x), dim=-1):
            with poutine.scale(scale=warmth):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor, warmth: float = 1.0) -> None:
        with pyro.plate("images", len(x), dim=-1), poutine.scale(scale=warmth):
            pyro.sample("z", self.encoder(x))
