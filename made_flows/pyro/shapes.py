"""How Pyro's autoregressive networks lay out their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from made_flows._checks import expect, positive_integer

__all__ = ["PyroShapes"]


class PyroShapes(nn.Module):
    """The part of Pyro's interface that says how parameters are laid out."""

    permutation: Tensor

    def set_shapes(self, input_dim: int, context_dim: int, param_dims: Sequence[int]) -> None:
        self.input_dim, self.context_dim = input_dim, context_dim
        self.param_dims = [
            positive_integer(p, f"param_dims[{i}]") for i, p in enumerate(param_dims)
        ]
        expect(len(self.param_dims) > 0, "param_dims", "to name at least one parameter", param_dims)
        self.count_params = len(self.param_dims)
        self.output_multiplier = sum(self.param_dims)
        self.all_ones = set(self.param_dims) == {1}
        ends = [sum(self.param_dims[: i + 1]) for i in range(self.count_params)]
        starts = [end - size for end, size in zip(ends, self.param_dims, strict=True)]
        self.param_slices = [slice(s, e) for s, e in zip(starts, ends, strict=True)]

    @property
    def features(self) -> int:
        """Number of features D, by the library's own name."""
        return self.input_dim

    def get_permutation(self) -> Tensor:
        """The order: ``permutation[k]`` is the feature generated k-th."""
        return self.permutation

    def shaped(self, parameters: Tensor) -> Any:
        """Parameters (..., K, D) in Pyro's shapes."""
        if self.output_multiplier == 1:
            return parameters.squeeze(-2)
        if self.count_params == 1:
            return parameters
        if self.all_ones:
            return parameters.unbind(-2)
        return tuple(parameters[..., part, :] for part in self.param_slices)
