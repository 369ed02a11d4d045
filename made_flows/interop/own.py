"""Networks of this library inside a host's own layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from made_flows.interop.conditioner import depends_on_mode
from made_flows.interop.validation import NotUnderstoodError
from made_flows.nn.spec import NetworkSpec

__all__ = ["OwnConditioner", "is_own"]


def is_own(net: Any) -> bool:
    """Whether a network describes itself to the sequential inverse."""
    return type(net).__module__.startswith("made_flows.") and hasattr(net, "network")


class OwnConditioner:
    """A network of this library, with what :class:`~made_flows.interop.fast_layer.Fast` asks.

    Args:
        net: the network.
        parameters: parameters of every feature.

    Raises:
        NotUnderstoodError: if it has another number of them.
    """

    def __init__(self, net: Any, parameters: int) -> None:
        self.net = net
        self.features: int = net.features
        self.context: int = getattr(net, "context_dim", getattr(net, "context", 0))
        sizes = getattr(net, "outputs", None) or (net.output_multiplier,)
        if set(sizes) != {parameters}:
            raise NotUnderstoodError(f"its network gives {sizes} parameters, not {parameters}")
        self._noisy = [module for module in net.modules() if depends_on_mode(module)]

    @property
    def ranks(self) -> Tensor:
        """The rank of every feature."""
        ranks: Tensor = self.net.ranks
        return ranks

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = self.net.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.ranks.device

    def steady(self) -> bool:
        """Whether the network computes the same in every call."""
        return not any(module.training for module in self._noisy)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's weights."""
        parameters: Iterator[nn.Parameter] = self.net.parameters()
        return parameters

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        """Its layers, with what a context (rows, C) contributes."""
        network: NetworkSpec = self.net.spec(context)
        return network

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Its parameters (..., D, K)."""
        parameters: Tensor = self.net.evaluate(x, context)
        return parameters
