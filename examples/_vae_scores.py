"""How good a variational autoencoder is: its ELBO and likelihood on held-out images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm import trange


class Estimate(NamedTuple):
    """A mean over images and its standard error, in nats."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.error:.2f}"

    def signed(self) -> str:
        """With its sign, for differences."""
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def estimate(values: Tensor) -> Estimate:
    """The mean of independent values (N,)."""
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


@torch.no_grad()
def log_weights(vae: Any, x: Tensor, draws: int, *, chunk: int = 50, progress: str = "") -> Tensor:
    r"""Importance weights :math:`\log p(x, z) - \log q(z \mid x)` of draws of z: (draws, N).

    Samples of the guide are scored by the guide itself, which takes no inverse of its flow: the
    trace holds the distribution that they were drawn from.
    """
    parts = []
    for start in trange(0, draws, chunk, desc=progress, disable=not progress, leave=False):
        with pyro.plate("draws", min(chunk, draws - start), dim=-2):
            guide = poutine.trace(vae.guide).get_trace(x)
            model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
        guide.compute_log_prob()
        model.compute_log_prob()
        joint = model.nodes["z"]["log_prob"] + model.nodes["x"]["log_prob"]
        parts.append(joint - guide.nodes["z"]["log_prob"])
    return torch.cat(parts)


def elbo(weights: Tensor) -> Tensor:
    """The evidence lower bound of every image, (draws, N) -> (N,)."""
    return weights.mean(dim=0)


def log_likelihood(weights: Tensor) -> Tensor:
    r"""The importance-weighted estimate of :math:`\log p(x)` of every image, likewise.

    In expectation it is a lower bound too, the closer the more draws and the better the posterior.

    References:
        Burda et al. 2016, *Importance Weighted Autoencoders*, section 3.
    """
    return weights.logsumexp(dim=0) - math.log(len(weights))
