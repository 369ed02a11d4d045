"""Where the weights of a MADE start."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from made_flows.nn.linear import MaskedLinear

if TYPE_CHECKING:
    from made_flows.nn.made import MADE

__all__ = ["initialize"]

_NEAR_ZERO = 0.01
"""Gain of the layers that should hardly count at the start: outputs and ends of residual blocks."""


def initialize(made: MADE) -> None:
    """Draw all weights anew; outputs and residual blocks start near zero."""
    layers = [cast(MaskedLinear, layer) for layer in made.layers]
    last = len(layers) - 1
    for index in range(len(layers)):
        near_zero = index == last or made.adds_to_stream(index)
        layers[index].reset_parameters(gain=_NEAR_ZERO if near_zero else 1.0)
    if made.input_context is not None:
        # The first layer's units read features and context: one variance for both.
        first = layers[0]
        first.reset_parameters(extra_inputs=made.input_context.mask.sum(1, keepdim=True))
        made.input_context.reset_parameters(extra_inputs=first.mask.sum(1, keepdim=True))
    for layer in (made.direct, made.output_context):
        if layer is not None:
            layer.reset_parameters(gain=_NEAR_ZERO)
