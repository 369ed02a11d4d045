"""A MADE with the interface of Pyro's autoregressive networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from made_flows._checks import expect, expect_type
from made_flows.nn.made import MADE
from made_flows.nn.spec import NetworkSpec
from made_flows.pyro.shapes import PyroShapes

__all__ = ["MADENetwork"]


class MADENetwork(PyroShapes):
    """A :class:`~made_flows.MADE` with the interface of Pyro's networks.

    It works inside Pyro's own transforms, and brings what Pyro's networks do not have: residual
    blocks, any order or graph, a linear path of the context, orders redrawn in training.

    Args:
        made: the network, with ``parameters`` the sum of ``param_dims``.
        param_dims: parameters per feature, as for :class:`AutoRegressiveNN`; by default one
            tensor for each.

    Raises:
        TypeError: for another kind of network.
        ValueError: where ``param_dims`` do not add up to the network's parameters, which must be
            the same number for all features, with one input each.

    Example:
        >>> import torch, made_flows as mf
        >>> network = MADENetwork(mf.MADE(4, hidden_features=(16, 16), residual=True))
        >>> mean, log_scale = network(torch.zeros(10, 4))
        >>> mean.shape
        torch.Size([10, 4])
    """

    def __init__(self, made: MADE, param_dims: Sequence[int] | None = None) -> None:
        super().__init__()
        expect_type(isinstance(made, MADE), "made", "to be a MADE", made)
        total = set(made.outputs)
        expect(set(made.inputs) == {1}, "made", "to have one input per feature", made.inputs)
        expect(len(total) == 1, "made", "to have the same parameters for all", made.outputs)
        if param_dims is None:
            param_dims = (1,) * made.outputs[0]
        self.set_shapes(made.features, made.context, param_dims)
        expect(
            {self.output_multiplier} == total,
            "param_dims",
            f"to add up to the network's {made.outputs[0]} parameters",
            param_dims,
        )
        self.made = made

    @property
    def permutation(self) -> Tensor:  # type: ignore[override]
        """The order, which training may redraw."""
        return self.made.order

    @property
    def ranks(self) -> Tensor:
        """The rank of every feature."""
        return self.made.ranks

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.made.dtype

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """Parameters in Pyro's shapes, from x (..., D) and context (..., C)."""
        return self.shaped(self.made(x, context).transpose(-1, -2))

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (..., D, K) without dropout."""
        return self.made.evaluate(x, context)

    def check_context(self, context: Tensor | None) -> Tensor | None:
        """The context, checked against what the network was made for."""
        return self.made.check_context(context)

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        """The network as the sequential inverse sees it."""
        return self.made.spec(context)
