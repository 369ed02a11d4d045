"""Layers of ``torch.nn`` as JSON, and back: those that embedding networks are made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from made_flows._checks import expect

_NAMES = """
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
    AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Conv1d
    Conv2d Conv3d Dropout Dropout1d Dropout2d Dropout3d Embedding Flatten GroupNorm Identity
    LayerNorm Linear MaxPool1d MaxPool2d MaxPool3d RMSNorm Unflatten
"""
LAYERS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _NAMES.split()}
"""The layers that can be written: their attributes bear the names of their arguments."""


def layer_arguments(layer: Any) -> dict[str, Any] | None:
    """Return what a layer's constructor was called with, defaults left out; None for others."""
    kind = type(layer)
    if LAYERS.get(kind.__name__) is not kind:
        return None
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name.startswith("_") or name in ("args", "kwargs", "device", "dtype"):
            continue
        value = getattr(layer, name, parameter.default)
        if name == "bias":
            value = value is not None
        if value != parameter.default:
            arguments[name] = value
    return arguments


def make_layer(name: Any, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the layer of a name and arguments, on torch's default device."""
    expect(name in LAYERS, "a layer", "to be one of torch.nn that is known", repr(name))
    expect("device" not in arguments, f"a layer {name}", "to name no device", "one that does")
    return LAYERS[name](**arguments)
