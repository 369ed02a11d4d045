"""The base of all transforms: an invertible map between data and noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.distributions import constraints

from made_flows._checks import Unsaid, check_context, check_event
from made_flows._constants import WithConstants


class Transform(WithConstants, ABC):
    r"""An invertible map :math:`z = f(x; c)` from data x to noise z.

    A transform of one's own defines both directions; each returns the image and
    :math:`\log |\det|` of the Jacobian of the map applied, of the batch's shape.

    Attributes:
        features: number of features D.
        context: number of context variables C; 0 for a transform that takes none.
        noise_pass, data_pass: how each direction is computed, ``"parallel"`` or ``"sequential"``.
        differentiable: whether :meth:`to_data` carries gradients.
        unit_free: whether it is trained in whatever units data have, so that
            :func:`made_flows.fit` may standardise them before it.
        changing: names of buffers and other attributes that training changes: those that a
            checkpoint's model may have otherwise.

    Example:
        >>> import torch
        >>> class Scale(Transform):
        ...     def __init__(self, features, factor):
        ...         super().__init__()
        ...         self.features, self.factor = features, torch.tensor(factor)
        ...     def to_noise(self, x, context=None):
        ...         log_det = self.features * self.factor.log()
        ...         return x * self.factor, log_det.expand(x.shape[:-1])
        ...     def to_data(self, z, context=None):
        ...         log_det = -self.features * self.factor.log()
        ...         return z / self.factor, log_det.expand(z.shape[:-1])
        >>> import made_flows as mf
        >>> mf.Flow([Scale(3, 2.0)])().sample((5,)).shape
        torch.Size([5, 3])
    """

    features: int = Unsaid("features = 3")  # type: ignore[assignment]
    context: int = 0
    noise_pass: Literal["parallel", "sequential"] = "parallel"
    data_pass: Literal["parallel", "sequential"] = "parallel"
    differentiable: bool = True
    unit_free: bool = False
    changing: Sequence[str] = ()

    @abstractmethod
    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x (..., D) to noise z (..., D), and return log |det dz/dx| (...)."""

    @abstractmethod
    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z (..., D) to data x (..., D), and return log |det dx/dz| (...)."""

    def forward(self, *values: Any) -> tuple[Tensor, Tensor]:
        """Raise an error: a call does not say in which direction."""
        raise NotImplementedError(
            f"Expected to_noise(x) or to_data(z) of the {type(self).__name__}; got a call, which "
            "says no direction"
        )

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise to data alone, for transforms whose log-determinant is extra work."""
        return self.to_data(z, context)[0]

    def _check(
        self, name: str, values: Tensor, context: Tensor | None, dtype: torch.dtype | None = None
    ) -> None:
        """Check what one direction is given."""
        check_context(context, self.context, "transform")
        check_event(values, name, self.features, dtype)

    @property
    def random_part(self) -> str:
        """What makes noise random at this moment, as dropout does; empty if nothing does."""
        return ""

    @property
    def support(self) -> constraints.Constraint:
        """Where data live."""
        return cast(constraints.Constraint, constraints.real_vector)

    def extra_repr(self) -> str:
        return f"features={self.features}"
