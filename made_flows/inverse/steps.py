"""Steps: how one rank's noise becomes its values, given the rank's parameters.

Sampling a head, and inverting a bijection in either direction, differ in their step alone.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from made_flows._checks import described
from made_flows._keys import KeyedModule
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.heads import Head
from made_flows.univariate.step_kernel import StepKernel, has_kernel


class Step(Protocol):
    """What the sequential inverse does at every rank."""

    @property
    def identity_encoding(self) -> bool:
        """Whether the network reads values as they are."""

    @property
    def differentiable(self) -> bool:
        """Whether values are differentiable in noise and parameters."""

    @property
    def name(self) -> str:
        """A word that :func:`step_of_name` understands."""

    @property
    def filler(self) -> float:
        """A value that stands for one that is not known yet."""

    @property
    def owner(self) -> nn.Module:
        """The head or bijection whose step it is."""

    def __call__(self, noise: Tensor, parameters: Tensor, features: Tensor | None = None) -> Tensor:
        """Compute values (...) from noise (..., P) and parameters (..., K).

        ``features`` says which feature each value belongs to, and broadcasts to the values; None
        stands for all features in their order.
        """

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the network reads for all features' values (N, D): (N, inputs)."""

    def value_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of values, for a network of the given dtype."""

    def kernel(self) -> StepKernel | None:
        """Return what the compiled kernel should do, None if it cannot."""


class HeadStep:
    """The step of a head: sampling.

    Args:
        head: the head.
    """

    def __init__(self, head: Head) -> None:
        self.head = head

    @property
    def identity_encoding(self) -> bool:
        return type(self.head).encode is Head.encode

    @property
    def differentiable(self) -> bool:
        # Gradients take values for what the network reads.
        return self.head.has_rsample and self.identity_encoding

    @property
    def name(self) -> str:
        return f"head:{self.head.key}"

    @property
    def filler(self) -> float:
        return self.head.filler

    @property
    def owner(self) -> nn.Module:
        return self.head

    def __call__(self, noise: Tensor, parameters: Tensor, features: Tensor | None = None) -> Tensor:
        if features is None:
            features = torch.arange(parameters.shape[-2], device=parameters.device)
        return self.head.step_at(noise, parameters, features)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.head.encode(x, dtype)

    def value_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.head.value_dtype or dtype

    def kernel(self) -> StepKernel | None:
        return self.head.kernel() if has_kernel(self.head) else None

    def score(self, x: Tensor, parameters: Tensor) -> tuple[None, Tensor]:
        """Compute log-probabilities (...) of values (..., D); a head has no images of them."""
        each = self.head.log_prob(x, parameters)
        _expect_each(x, (each,), f"log_prob of {type(self.head).__name__}")
        return None, each.sum(dim=-1)

    def score_kernel(self) -> StepKernel | None:
        """Return what the compiled parallel pass should do, None if it cannot."""
        kernel = self.head.kernel() if has_kernel(self.head, scored=True) else None
        return kernel._replace(head=True) if kernel is not None and kernel.scored else None


class BijectionStep:
    """The step of a bijection: a known value of one side becomes that of the other.

    Args:
        bijection: the bijection.
        direction: ``"forward"`` from noise to data, ``"inverse"`` from data to noise.
    """

    identity_encoding = True
    differentiable = True
    filler = 0.0

    def __init__(self, bijection: Bijection, direction: Literal["forward", "inverse"]) -> None:
        self.bijection = bijection
        self.direction = direction

    @property
    def name(self) -> str:
        return f"{self.direction}:{self.bijection.key}"

    @property
    def owner(self) -> nn.Module:
        return self.bijection

    def __call__(self, noise: Tensor, parameters: Tensor, features: Tensor | None = None) -> Tensor:
        return self.mapped(noise[..., 0], parameters)[0]

    def mapped(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map values (...), and give the logarithms of derivatives of each."""
        found = getattr(self.bijection, self.direction)(x, parameters)
        name = f"{self.direction} of {type(self.bijection).__name__}"
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(
                f"Expected {name} to return values and logarithms of derivatives, a pair; got "
                f"{described(found)}"
            )
        _expect_each(x, found, name)
        return found

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x

    def value_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def kernel(self) -> StepKernel | None:
        kernel = self.bijection.kernel() if has_kernel(self.bijection) else None
        if kernel is None or self.direction == "forward":
            return kernel
        return kernel._replace(inverse=True)

    score_kernel = kernel

    def score(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map values (..., D), and sum the logarithms of derivatives over them, (...)."""
        image, each = self.mapped(x, parameters)
        return image, each.sum(dim=-1)


def _expect_each(x: Tensor, found: tuple[Tensor, ...], name: str) -> None:
    """Raise where a class of a user's own does not give a number for each value (..., D)."""
    if any(part.dim() < x.dim() or part.shape[-1:] != x.shape[-1:] for part in found):
        shapes = " and ".join(str(tuple(part.shape)) for part in found)
        raise ValueError(
            f"Expected {name} to return a number for each value, of shape {tuple(x.shape)}; got "
            f"{shapes}"
        )


def fits(step: Step, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> bool:
    """Tell whether a network of these inputs and outputs of every feature is one for a step.

    Where one was put in the place of another by hand, it need not be, and kernels read what they
    are told to.
    """
    wanted = getattr(step.owner, "inputs", 1), getattr(step.owner, "outputs", outputs)
    pairs = zip((inputs, outputs), wanted, strict=True)
    return all(set(got) == {want} if isinstance(want, int) else got == want for got, want in pairs)


def step_of_name(name: str) -> Step:
    """Return the step that a name stands for."""
    kind, key = name.split(":")
    owner: Any = KeyedModule.of_key(int(key))
    if kind == "head":
        return HeadStep(owner)
    if kind in ("forward", "inverse"):
        return BijectionStep(owner, kind)  # type: ignore[arg-type]
    raise ValueError(f"Expected the name of a step; got {name!r}")
