"""One affine autoregressive layer with two hidden layers, as every library builds it.

The direction in which the network's input is known is the fast one, the other the slow one; which
of them is called forward differs from library to library.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import made_flows as mf
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.inverse.dispatch import backend

__all__ = [
    "TOLERANCE",
    "Dense",
    "Jacobi",
    "Layer",
    "NFlows",
    "Ours",
    "Pyro",
    "Zuko",
    "installed_peers",
]


class Layer(ABC):
    """One layer.

    Args:
        features: number of features D.
        hidden: width H of both hidden layers.
    """

    name: str
    features: int
    module: nn.Module

    @abstractmethod
    def fast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What one pass makes of x (B, D), and the logarithm of the Jacobian's determinant."""

    @abstractmethod
    def slow(self, z: Tensor) -> Tensor:
        """The inverse of a map of the fast direction's kind: (B, D) -> (B, D)."""

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density of x (B, D) by the layer over a standard normal, in one pass."""
        z, log_det = self.fast(x)
        return (-0.5 * (z * z + math.log(2 * math.pi))).sum(-1) + log_det


class Ours(Layer):
    """A GaussianMADE; its inverse compiled where it can be, or in torch operations."""

    def __init__(self, features: int, hidden: int, choice: str = "auto") -> None:
        self.name = "made_flows" if choice == "auto" else f"made_flows ({choice})"
        self.choice = choice
        self.features = features
        self.module = self.model = mf.GaussianMADE(
            features, hidden_features=(hidden, hidden), activation="relu"
        )
        self.step = HeadStep(self.model.head)

    def fast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.model.made(x).unbind(-1)
        log_scale = self.model.head.scale(raw)
        return (x - mean) * torch.exp(-log_scale), -log_scale.sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        return self.model().log_prob(x)

    def chosen(self) -> AbstractContextManager[None]:
        """A context in which sequential inverses are computed as this contender's name says."""
        return nullcontext() if self.choice == "auto" else backend(self.choice)

    def slow(self, z: Tensor) -> Tensor:
        with self.chosen():
            return sequential_inverse(self.model.made, self.step, z.unsqueeze(-1))


TOLERANCE = 1e-5
"""What a value may move by in the last pass of an iteration that stops early."""


class Jacobi(Ours):
    """Our layer inverted by Jacobi iteration (Song et al. 2021, algorithm 1), in torch operations.

    Args:
        features: number of features D.
        hidden: width H of both hidden layers.
        early_stop: whether to stop when values no longer move, and not after D passes.
    """

    def __init__(self, features: int, hidden: int, *, early_stop: bool) -> None:
        super().__init__(features, hidden)
        self.name = "Jacobi, early stop" if early_stop else "Jacobi"
        self.early_stop = early_stop

    def slow(self, z: Tensor) -> Tensor:
        x, noise = torch.zeros_like(z), z.unsqueeze(-1)
        for _ in range(self.features):
            before, x = x, self.step(noise, self.model.made(x))
            if self.early_stop and bool((x - before).abs().max() <= TOLERANCE):
                break
        return x


class Pyro(Layer):
    """Pyro's AffineAutoregressive."""

    name = "Pyro"

    def __init__(self, features: int, hidden: int) -> None:
        from pyro.distributions.transforms import AffineAutoregressive
        from pyro.nn import AutoRegressiveNN

        self.features = features
        self.module = AffineAutoregressive(AutoRegressiveNN(features, [hidden, hidden]))

    # Its cache knows tensors by identity: a view is a tensor that it has not seen.

    def fast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.view_as(x)
        y = self.module(x)
        return y, self.module.log_abs_det_jacobian(x, y)

    def slow(self, z: Tensor) -> Tensor:
        return self.module.inv(z.view_as(z))


class NFlows(Layer):
    """nflows' MaskedAffineAutoregressiveTransform.

    Its first layer has no activation, so that one block of one linear map gives matrices of the
    sizes that all others have, with one activation less.
    """

    name = "nflows"

    def __init__(self, features: int, hidden: int) -> None:
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        self.features = features
        self.module = MaskedAffineAutoregressiveTransform(
            features, hidden, num_blocks=1, use_residual_blocks=False
        )

    def fast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(x)

    def slow(self, z: Tensor) -> Tensor:
        return self.module.inverse(z)[0]


class Zuko(Layer):
    """zuko's MaskedAutoregressiveTransform."""

    name = "zuko"

    def __init__(self, features: int, hidden: int) -> None:
        from zuko.flows import MaskedAutoregressiveTransform

        # Importing zuko switches argument checks off for all distributions; ours has them.
        Distribution.set_default_validate_args(True)
        self.features = features
        self.module = MaskedAutoregressiveTransform(features, hidden_features=(hidden, hidden))

    def fast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.module().call_and_ladj(x)

    def slow(self, z: Tensor) -> Tensor:
        return self.module().inv(z)


class Dense:
    """The same network without masks, and nothing around it."""

    name = "dense MLP"

    def __init__(self, features: int, hidden: int) -> None:
        self.module = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * features),
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


def installed_peers() -> list[type[Layer]]:
    """The peers that can be imported."""
    peers: dict[str, type[Layer]] = {"pyro": Pyro, "nflows": NFlows, "zuko": Zuko}
    return [peer for package, peer in peers.items() if find_spec(package)]
