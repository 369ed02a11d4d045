"""The MADE of nflows and normflows, one design in three versions, and the inverse over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from made_flows.interop.conditioner import ForeignConditioner
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.layers import IDENTITY, ForeignLayer, elementwise, expect_stream_kept
from made_flows.nn.made import MADE
from made_flows.nn.validation import NotUnderstoodError, expect_own
from made_flows.univariate.bijections import Bijection


@dataclass(frozen=True)
class MadeVersion:
    """One version of the network.

    Args:
        module: the library's module with the classes ``MADE``, ``MaskedLinear``,
            ``MaskedFeedforwardBlock`` and ``MaskedResidualBlock``.
        activates_first: whether the context's contribution to the first layer, and without
            residual blocks the first layer itself, go through the activation.
        gates: whether the context gates residual blocks instead of adding to them.
    """

    module: Any
    activates_first: bool = False
    gates: bool = False


def made_conditioner(
    net: Any, version: MadeVersion, parameters: int, forward: Callable[..., Tensor] | None = None
) -> ForeignConditioner:
    """Return a MADE of nflows or normflows as a conditioner.

    Args:
        net: the network.
        version: which version of the design it is.
        parameters: output rows of every feature.
        forward: the network's forward pass, which gets the network first; None for its call.

    Raises:
        NotUnderstoodError: if the network or a part of it computes something else.
    """
    library = version.module
    layers = [_linear(net.initial_layer, library)]
    features = net.initial_layer.in_features
    blocks = list(net.blocks)
    residual = isinstance(blocks[0], library.MaskedResidualBlock) if blocks else True
    context = getattr(net, "context_layer", None)
    takes = 0 if context is None else context.in_features
    if version.activates_first:
        own = elementwise(net.activation)
        if context is not None:
            layers[0].base = _activated(context, net.activation)
        if not net.use_residual_blocks:
            layers[0].activation = own
    elif context is not None:
        layers[0].base = context
    if type(getattr(net, "preprocessing", IDENTITY)) is not nn.Identity:
        raise NotUnderstoodError("it preprocesses its inputs")
    for block in blocks:
        activation = elementwise(block.activation)
        if residual:
            expect_own(block, library.MaskedResidualBlock)
            _add_residual(layers, block, activation, version)
        else:
            expect_own(block, library.MaskedFeedforwardBlock)
            takes = takes if version.activates_first or not version.gates else 0
            layer = _linear(block.linear, library)
            layer.activation, layer.reads_norm = activation, _norm(block.batch_norm)
            layers.append(layer)
    layers.append(_linear(net.final_layer, library))

    def call(x: Tensor, given: Tensor | None) -> Tensor:
        outputs: Tensor = net(x, given) if forward is None else forward(net, x, given)
        return outputs.reshape(*outputs.shape[:-1], features, parameters)

    return ForeignConditioner(net, layers, features, (parameters,), call, takes)


def _add_residual(
    layers: list[ForeignLayer], block: Any, activation: nn.Module, version: MadeVersion
) -> None:
    """Add a residual block: it reads the activation of the stream, which is the last layer."""
    stream = len(layers) - 1
    norms = list(block.batch_norm_layers) if block.use_batch_norm else [None, None]
    context = getattr(block, "context_layer", None)
    inner, outer = (_linear(linear, version.module) for linear in block.linear_layers)
    if norms[0] is None:
        expect_stream_kept(block.activation, inner.linear.in_features, inner.linear.weight)
    layers[stream].activation, layers[stream].norm = activation, _norm(norms[0])
    inner.activation, inner.norm = activation, _norm(norms[1])
    outer.adds_to = stream
    if context is not None and version.gates:
        outer.gate = _activated(context, torch.sigmoid)
    elif context is not None:
        inner.base = context
    layers += [inner, outer]


def _linear(linear: Any, library: Any) -> ForeignLayer:
    expect_own(linear, library.MaskedLinear)
    return ForeignLayer(linear)


def _norm(norm: Any) -> nn.BatchNorm1d | None:
    if norm is not None:
        expect_own(norm, nn.BatchNorm1d)
    return norm  # type: ignore[no-any-return]


def _activated(
    layer: Callable[[Tensor], Tensor], activation: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda context: activation(layer(context))


class FastInverse(FastLayer):
    """The inverse of an autoregressive transform of nflows or normflows, in about one pass.

    Its values come from the sequential inverse, its log-determinant from the transform's own
    last step at that solution, so that everything is what the loop over features would end with.
    """

    autoregressive_net: Any
    _elementwise_inverse: Any

    def inverse(self, inputs: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """Find what the transform maps to the inputs, and log |det| of the inverse's Jacobian."""
        self.made_flows_check(inputs)
        # Of two features the loop's two passes are as much work as a sweep and the pass after it.
        fast = None if inputs.shape[-1] <= 2 else self._ready(inputs, context)
        if fast is None:
            result: tuple[Tensor, Tensor] = super().inverse(inputs, context)  # type: ignore[misc]
            return result
        outputs = fast.solve(inputs, context)
        parameters = self.autoregressive_net(outputs, context)
        return outputs, self._elementwise_inverse(inputs, parameters)[1]

    def made_flows_check(self, inputs: Any) -> None:
        """Raise for inputs that are of no use; libraries leave it to what they do with them."""

    def made_flows_generate(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Find what the transform maps to the inputs, without a log-determinant."""
        fast = self._ready(inputs, context)
        return self.inverse(inputs, context)[0] if fast is None else fast.solve(inputs, context)

    def _ready(self, inputs: Any, context: Any) -> Fast | None:
        return self.made_flows_ready(inputs, context) if inputs.dim() == 2 else None

    def made_flows_settings(self) -> tuple[Any, ...]:
        own, net = self.__dict__, self.autoregressive_net
        divisor = getattr(net, "hidden_features", None)  # of a spline's sizes, by its root
        return net, divisor, *(own.get(name) for name in _SETTINGS)


_SETTINGS = (
    "_epsilon",
    "num_bins",
    "tails",
    "tail_bound",
    "min_bin_width",
    "min_bin_height",
    "min_derivative",
)
"""Attributes that the elementwise maps are made of, as far as a transform has them."""


_MAP = ("_elementwise", "_elementwise_inverse", "_unconstrained_scale_and_shift")
_METHODS = ("inverse", "_output_dim_multiplier", *_MAP)
"""Methods that make the elementwise maps, as far as a transform has them."""


def read_transform(
    layer: Any,
    maps: Mapping[Any, Callable[[Any], Bijection]],
    conditioner: Callable[[Any, int], ForeignConditioner | MADE],
) -> Fast:
    """Return the fast inverse of a transform.

    Args:
        layer: the transform.
        maps: the library's classes of transforms, and the elementwise map of an object of each.
        conditioner: from a network, and the parameters of every feature, to a conditioner.

    Raises:
        NotUnderstoodError: for a transform that computes something else than its class.
    """
    kind = next((kind for kind in maps if isinstance(layer, kind)), None)
    if kind is None:
        raise NotUnderstoodError(f"the elementwise map of a {type(layer).__name__} is not known")
    expect_own(layer, kind, [name for name in _METHODS if hasattr(kind, name)], FastInverse)
    bijection, net = maps[kind](layer), layer.autoregressive_net
    return Fast(conditioner(net, layer._output_dim_multiplier()), bijection, net)
