"""What distributions ask of the objects that they are made of, whoever provides them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from made_flows.nn.made import MADE


class Schedule(Protocol):
    """The orders and masks that a conditioner is trained on.

    Attributes:
        any_order: whether every order is trained, so that any feature may be missing.
        draws: whether scores are under orders and masks drawn now: in training.
    """

    @property
    def any_order(self) -> bool: ...

    @property
    def draws(self) -> bool: ...

    def outputs(self, made: MADE, x: Tensor, context: Tensor | None) -> Tensor:
        """Return parameters (..., D, K) under the orders and masks that are next."""

    def draw_degrees(self) -> Sequence[Tensor] | None:
        """Return the next degrees of every hidden layer, None for the network's own."""


class Units(Protocol):
    """Location and scale of data whose network works in standardised units."""

    def standardize(self, x: Tensor) -> Tensor:
        """Convert data (..., D) to the units of the network, in its dtype."""

    def restore(self, u: Tensor) -> Tensor:
        """Convert values in the units of the network back to data (..., D)."""

    def log_scale(self) -> Tensor:
        """Return the logarithms of the scales (D,)."""


class Components(Protocol):
    """The components of a mixture and their weights.

    Attributes:
        features: number of features D.
        weights: the weight of every component, (K,).
    """

    features: int
    weights: Tensor

    def modules(self) -> Iterator[nn.Module]:
        """Return the modules whose weights take part."""

    def __len__(self) -> int: ...

    def component(self, k: int) -> Any:
        """Return the k-th component: a model, called with a context to give a distribution."""

    def used(self) -> list[int]:
        """Return the numbers of the components whose weights are not known to be zero."""

    def log_weights(self, like: Tensor) -> Tensor:
        """Return logarithms of the weights, of the dtype and on the device of another tensor."""

    def component_log_probs(
        self, x: Tensor, context: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Return log-probabilities (..., K) under every component."""


class Invertible(Protocol):
    """An invertible map between data and noise: one transform, or several in a row.

    Attributes:
        noise_pass, data_pass: how each direction is computed, ``"parallel"`` or ``"sequential"``.
        differentiable: whether data carry gradients to the noise.
        support: where data live.
    """

    @property
    def noise_pass(self) -> str: ...

    @property
    def data_pass(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    @property
    def support(self) -> Any: ...

    @property
    def random_part(self) -> str:
        """What makes noise random at this moment, as dropout does; empty if nothing does."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the modules whose weights take part."""

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x (..., D) to noise z (..., D), and return log |det dz/dx| (...)."""

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z (..., D) to data x (..., D), and return log |det dx/dz| (...)."""

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise to data, without the work for log-determinants."""
