"""Layers of ``torch.nn`` as JSON, and back: those that embedding networks are made of."""

from __future__ import annotations

import inspect
import math
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
    """Return the layer of a name and arguments."""
    expect(name in LAYERS, "a layer", "to be one of torch.nn that is known", repr(name))
    return LAYERS[name](**arguments)


def layer_numbers(name: str, arguments: Mapping[str, Any]) -> int:
    """Bound from below how many weights and buffers a layer has."""

    def product(*names: str) -> int:
        return int(math.prod(_product(arguments.get(each, 1)) for each in names))

    if name.startswith("Conv"):
        channels = product("in_channels", "out_channels") // product("groups")
        kernel = product("kernel_size")
        # A number stands for as many dimensions as the layer's name says.
        several = isinstance(arguments.get("kernel_size"), int)
        return channels * int(kernel ** (int(name[4]) if several else 1))
    if name == "LayerNorm" or name == "RMSNorm":
        return product("normalized_shape") * bool(arguments.get("elementwise_affine", True))
    if name == "GroupNorm":
        return product("num_channels") * bool(arguments.get("affine", True))
    names = {
        "Linear": ("in_features", "out_features"),
        "Embedding": ("num_embeddings", "embedding_dim"),
    }.get(name, ("num_features",) if name.startswith("BatchNorm") else ())
    return product(*names) if names else 0


def _product(value: Any) -> int:
    """Multiply the numbers in a value as the encoder writes it."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return math.prod(map(_product, value))
    return value if isinstance(value, int) and value > 0 else 1
