"""A foreign masked network as the sequential inverse sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._cache import TensorCache
from made_flows._torch import has_concrete_values
from made_flows.interop.layers import ForeignLayer
from made_flows.nn.linear import run_weight_hooks
from made_flows.nn.made import MADE
from made_flows.nn.masks import adjacency_levels
from made_flows.nn.spec import NetworkSpec
from made_flows.nn.validation import NotUnderstoodError, expect_own


@dataclass(eq=False)
class ForeignConditioner:
    """A foreign masked network behind the methods of :class:`~made_flows.inverse.Conditioner`.

    Args:
        net: the network.
        layers: its hidden layers, then its output.
        features: number of features D.
        counts: output rows of every feature.
        call: x (..., D) and context to parameters (..., D, K), by the network itself.
        context: number of context variables that it takes; 0 for none.
        direct: the layer that connects inputs to outputs, if there is one.
        parameter_major: whether output rows are sorted by parameter and then feature.

    Raises:
        NotUnderstoodError: if the masks are not autoregressive, weights are under a prior, or batch
            normalisation keeps no running statistics.
    """

    net: nn.Module
    layers: list[ForeignLayer]
    features: int
    counts: tuple[int]
    call: Callable[[Tensor, Tensor | None], Tensor]
    context: int = 0
    direct: ForeignLayer | None = None
    parameter_major: bool = False

    def __post_init__(self) -> None:
        if any(map(priors_of, self.net.modules())):
            raise NotUnderstoodError("its weights are under a prior, drawn anew at every look")
        self._levels: TensorCache[Tensor] = TensorCache(size=2)
        for layer in self.layers:
            if None in (part.running_mean for part in (layer.norm, layer.reads_norm) if part):
                raise NotUnderstoodError("batch normalisation keeps no running statistics")
        rows = self.layers[-1].linear.weight.shape[0]
        if rows != self.features * self.counts[0]:
            wanted = f"{self.features} x {self.counts[0]}"
            raise NotUnderstoodError(f"it has {rows} outputs for {wanted}")
        _ = self.ranks

    @property
    def like(self) -> Tensor:
        """A tensor on the device of the weights and of their dtype."""
        return cast(Tensor, self.layers[-1].linear.weight)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.like.dtype

    @property
    def ranks(self) -> Tensor:
        """The level of every feature, read off the masks."""
        masks = [layer.linear.mask for layer in self.layers]
        if self.direct is not None:
            masks.append(self.direct.linear.mask)
        return self._levels.get(None, masks, lambda: self._read_levels(masks))

    def _read_levels(self, masks: list[Tensor]) -> Tensor:
        if not all(map(has_concrete_values, masks)):
            raise NotUnderstoodError("its masks have no values that could be read")
        reaches: list[Tensor] = []
        reach = torch.eye(self.features, device=self.like.device)
        for layer in self.layers:
            reach = _reach(layer, reach)
            if layer.adds_to >= 0:
                reach = torch.maximum(reach, reaches[layer.adds_to])
            reaches.append(reach)
        if self.direct is not None:
            own = torch.eye(self.features, device=self.like.device)
            reach = torch.maximum(reach, _reach(self.direct, own))
        shape = (self.features, -1, self.features)
        if self.parameter_major:
            reach = reach.reshape(-1, self.features, self.features).transpose(0, 1)
        adjacency = reach.reshape(shape).amax(dim=1) > 0
        try:
            levels = adjacency_levels(adjacency)
        except ValueError as error:
            raise NotUnderstoodError(f"its masks are not autoregressive ({error})") from None
        return levels.to(self.like.device)

    def as_called(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Compute parameters (..., D, K) by the network itself."""
        return self.call(x, context)

    def reordered(self, order: Tensor) -> ForeignConditioner:
        """Put the parameters of every feature in another order, in place."""
        feature = torch.arange(self.features, device=order.device)[:, None] * self.counts[0]
        self.layers[-1].rows = (feature + order).reshape(-1)
        call = self.call
        self.call = lambda x, context: call(x, context)[..., order]
        return self

    def settings(self) -> tuple[Any, ...]:
        """Return which activations work in place: they may be set to do so."""
        return tuple(getattr(layer.activation, "inplace", False) for layer in self.layers)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the network's weights."""
        return self.net.parameters()

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        """Describe the layers, with what a context (rows, C) contributes."""
        every = self.layers if self.direct is None else [*self.layers, self.direct]
        run_weight_hooks(layer.linear for layer in every)
        layers = [layer.spec(context) for layer in self.layers]
        direct = None if self.direct is None else self.direct.spec(None)
        return NetworkSpec.of_layers(
            self.ranks, layers, direct, (1,), self.counts, self.parameter_major
        )


def priors_of(module: nn.Module) -> dict[str, Any]:
    """Return what draws weights of a module, as Pyro's modules have it."""
    return cast(dict[str, Any], vars(module).get("_pyro_samples", {}))


def _reach(layer: ForeignLayer, reach: Tensor) -> Tensor:
    mask: Tensor = layer.linear.mask
    if layer.columns is not None:
        mask = mask[:, layer.columns]
    return ((mask != 0).to(reach) @ reach > 0).to(reach)


def expect_network(net: Any, library: type, names: Sequence[str] = ("forward",)) -> None:
    """Raise unless a network computes what its class says.

    Args:
        net: the network.
        library: the library's class. A class of a plug-in with a forward pass of its own names the
            methods of that in ``made_flows_network``, and is taken for the library's.
        names: methods that neither a subclass nor the object itself may have replaced.
    """
    for kind in type(net).__mro__:
        if "made_flows_network" in vars(kind):
            library, names = kind, vars(kind)["made_flows_network"]
            break
    expect_own(net, library, names)


def own_conditioner(net: Any, parameters: int) -> MADE | None:
    """Return the network of this library that a foreign layer holds, None if it holds another.

    Args:
        net: the layer's network: a MADE, or what gives a MADE another library's interface.
        parameters: parameters of every feature that the layer takes.

    Raises:
        NotUnderstoodError: if it has another number of them.
    """
    made = getattr(net, "made", net)
    if not isinstance(made, MADE):
        return None
    expect_own(made, MADE, ("forward", "as_called", "compute", "spec"))
    if set(made.outputs) != {parameters}:
        raise NotUnderstoodError(f"its network gives {made.outputs} parameters, not {parameters}")
    return made
