"""Transforms in a row, as one map between data and noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from made_flows.transforms.autoregressive import Way, map_together
from made_flows.transforms.base import Transform


class Chain:
    r"""Transforms applied one after the other, listed from data to noise.

    .. math:: z = f_K \circ \dots \circ f_1(x; c), \qquad
        \log |\det J| = \sum_k \log |\det J_k|

    Args:
        transforms: the transforms, the first one next to the data.
        support: where data live if there are no transforms, as the noise does.

    Example:
        >>> import made_flows as mf
        >>> chain = Chain([mf.Log(2), mf.Standardize([0.0, 0.0], [2.0, 2.0])])
        >>> chain.to_noise(torch.ones(2))
        (tensor([0., 0.]), tensor(-1.3863))
    """

    def __init__(self, transforms: Iterable[Transform], support: Any = None) -> None:
        self.transforms = list(transforms)
        self._support = support

    @property
    def support(self) -> Any:
        """Where data live."""
        return self.transforms[0].support if self.transforms else self._support

    @property
    def noise_pass(self) -> Literal["parallel", "sequential"]:
        """How noise is computed from data."""
        return _slowest(transform.noise_pass for transform in self.transforms)

    @property
    def data_pass(self) -> Literal["parallel", "sequential"]:
        """How data are computed from noise."""
        return _slowest(transform.data_pass for transform in self.transforms)

    @property
    def differentiable(self) -> bool:
        """Whether data carry gradients to the noise."""
        return all(transform.differentiable for transform in self.transforms)

    @property
    def random_part(self) -> str:
        """What makes noise random at this moment; empty if nothing does."""
        for transform in self.transforms:
            if part := transform.random_part:
                return part
        return ""

    def modules(self) -> Iterator[nn.Module]:
        """Return the transforms, and the modules inside them."""
        for transform in self.transforms:
            yield from transform.modules()

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x (..., D) to noise z (..., D), and return log |det dz/dx| (...)."""
        return self._map("to_noise", x, context)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z (..., D) to data x (..., D), and return log |det dx/dz| (...)."""
        return self._map("to_data", z, context)

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise to data, without the work for log-determinants."""
        return self._map("generate", z, context)[0]

    def _map(self, way: Way, values: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take one transform after the other, those in a row together where they can be."""
        total: Any = None
        left = self.transforms if way == "to_noise" else self.transforms[::-1]
        while left:
            found = map_together(left, way, values, context)
            if found is None:
                given = context if left[0].context else None
                if way == "generate":
                    found = 1, left[0].generate(values, given), None
                else:
                    total = _zeros(values) if total is None else total
                    found = 1, *getattr(left[0], way)(values, given)
            before = values.dtype
            count, values, log_det = found
            left = left[count:]
            if log_det is not None:
                total = log_det if total is None else total + log_det
            if total is not None and values.dtype != before and values.is_floating_point():
                total = total.to(values.dtype)  # units bring values to the precision of the weights
        return values, _zeros(values) if total is None and way != "generate" else total


def _zeros(values: Tensor) -> Tensor:
    """Return a zero for each of some values (..., D), in their precision."""
    dtype = None if values.is_floating_point() else torch.float32
    return values.new_zeros(values.shape[:-1], dtype=dtype)


def _slowest(passes: Iterable[str]) -> Literal["parallel", "sequential"]:
    return "sequential" if "sequential" in passes else "parallel"
