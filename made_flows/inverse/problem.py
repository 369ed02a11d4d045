"""What the inverse is asked: a network, a step and noise, as all implementations hand it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from made_flows.inverse.steps import Step
from made_flows.nn.spec import NetworkSpec


class Conditioner(Protocol):
    """A masked autoregressive network: a MADE, or another library's behind the same methods."""

    features: int
    ranks: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        """Describe the layers, with what a context (rows, C) contributes."""

    def as_called(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Compute the parameters (..., D, K), differentiable, that ``spec`` describes."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""


def value_dtype(step: Step, tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype of values: the network's, whatever the precision of the noise.

    Uniform noise is in float32 at least, and autocast may have made noise of half precision.
    """
    return step.value_dtype(tensors[1].dtype)


class Problem(NamedTuple):
    """Find values x with x_r = step(noise_r, p_r(x_<r)) for every rank r.

    Args:
        network: the network p.
        step: how noise becomes a value.
        noise: (N, D, P).
        known: (N, D) values, of which the first ``prefix`` ranks are kept as they are, or None.
        prefix: how many ranks are known.
    """

    network: NetworkSpec
    step: Step
    noise: Tensor
    known: Tensor | None = None
    prefix: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of values."""
        return value_dtype(self.step, self.network.tensors)


class TransposedProblem(NamedTuple):
    r"""Solve the transposed linearised system of a :class:`Problem`.

    With x_r = g(noise_r, p_r(x_<r)), the total derivative of a loss with respect to x_r is

    .. math:: \lambda_r = \bar x_r + \sum_{s > r} (\partial p_s / \partial x_r)^\top
        (\partial g / \partial p_s)\, \lambda_s

    Args:
        network: the network p.
        gradient: (N, D), the loss's gradient with respect to every value alone.
        slopes: (N, D, K), derivative of every value with respect to its own parameters.
        x: (N, D), the solution.
    """

    network: NetworkSpec
    gradient: Tensor
    slopes: Tensor
    x: Tensor
