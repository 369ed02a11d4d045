"""Constructor arguments as JSON, and back: a closed list of kinds, so that no file runs code.

Numbers, text, None and lists stand for themselves; everything else is an object with one key that
names its kind. Tensors go with the weights, under names that start with ``ARGUMENTS``.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from made_flows._checks import described, expect
from made_flows._registry import class_name, find_class, former_defaults, is_saveable
from made_flows.nn.activations import CONSTANTS, code_of, make_activation

ARGUMENTS = "arguments/"
"""How the names of argument tensors start; no name in a state dict has a slash."""


_NAMES = """
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
    AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Conv1d
    Conv2d Conv3d Dropout Dropout1d Dropout2d Dropout3d Embedding Flatten GroupNorm Identity
    LayerNorm Linear MaxPool1d MaxPool2d MaxPool3d RMSNorm Unflatten
"""
_LAYERS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _NAMES.split()}
"""The layers that can be written: their attributes bear the names of their arguments."""


class Encoder:
    """Writes values as JSON.

    Attributes:
        tensors: the tensors found, by the names that stand for them.
        classes: the classes of the objects found, by their names in files.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.classes: dict[str, type] = {}
        self._objects: dict[int, int] = {}  # by identity: an object used twice is one object

    def encode(self, value: Any, name: str) -> Any:
        """Return a value as JSON.

        Args:
            value: the argument, or an object of a registered class.
            name: the argument's name, for errors.

        Raises:
            TypeError: for a kind that cannot be written, naming the argument.
        """
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (int, np.integer)):
            return int(value)
        if isinstance(value, (float, np.floating)):
            number = float(value)
            return number if math.isfinite(number) else {"float": str(number)}
        if isinstance(value, np.bool_):
            return bool(value)
        if isinstance(value, (list, tuple, nn.ModuleList)):
            items = [self.encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": self._arguments(value, name)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Tensor):
            return {"tensor": self.tensor(value)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": self.tensor(torch.from_numpy(np.ascontiguousarray(value).copy()))}
        if is_saveable(type(value)) and hasattr(value, "_arguments"):
            return self._object(value, name)
        if type(value) is nn.Sequential:
            children = value._modules.items()
            return {"layers": [[key, self.encode(each, f"{name}.{key}")] for key, each in children]}
        arguments = _layer_arguments(value)
        if arguments is not None:
            return {"layer": {type(value).__name__: self._arguments(arguments, name)}}
        return self._activation(value, name)

    def _arguments(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {key: self.encode(value, f"{name}.{key}") for key, value in values.items()}

    def tensor(self, value: Tensor) -> str:
        """Return the name under which a tensor is written."""
        key = f"{ARGUMENTS}{len(self.tensors)}"
        self.tensors[key] = value.detach().cpu().contiguous().clone()
        return key

    def _object(self, value: Any, name: str) -> dict[str, Any]:
        if id(value) in self._objects:
            return {"same": self._objects[id(value)]}
        arguments = self._arguments(value._arguments, name)
        self._objects[id(value)] = len(self._objects)
        written = class_name(type(value))
        self.classes[written] = type(value)
        return {"class": written, "arguments": arguments}

    def _activation(self, value: Any, name: str) -> dict[str, Any]:
        code = code_of(value)
        if code is None:
            raise TypeError(
                f"Expected argument {name} to be one that can be saved: numbers, text, sequences, "
                f"arrays, known activations and objects of this library; got "
                f"{described(getattr(value, 'function', value))}. Make the model without it, "
                f"decorate its class with made_flows.saveable, or save model.state_dict() and "
                f"make the model by hand"
            )
        return {"activation": list(code)}


class Decoder:
    """Makes the values that an :class:`Encoder` wrote, their objects constructed anew.

    Args:
        tensors: the tensors of the file.
        classes: classes to take for their names, in place of those registered.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], classes: Mapping[str, type] | None = None
    ) -> None:
        self.tensors = tensors
        self.classes = {} if classes is None else classes
        self._objects: list[Any] = []

    def decode(self, value: Any) -> Any:
        """Return a value from its JSON.

        Raises:
            ValueError: for an unknown class or kind.
            Exception: of a constructor that refuses its arguments.
        """
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "class" in value:
            return self._object(value)
        if len(value) != 1:
            raise ValueError(f"Expected an object of one key; got {sorted(value)}")
        [(kind, content)] = value.items()
        if kind == "tuple":
            return tuple(self.decode(item) for item in content)
        if kind == "dict":
            return {key: self.decode(item) for key, item in content.items()}
        if kind == "float":
            return float(content)
        if kind == "dtype" and isinstance(getattr(torch, content, None), torch.dtype):
            return getattr(torch, content)
        if kind in ("tensor", "array"):
            tensor = self.tensors[content]
            return tensor if kind == "tensor" else tensor.numpy()
        if kind == "layer":
            [(name, arguments)] = content.items()
            return _make_layer(name, {key: self.decode(item) for key, item in arguments.items()})
        if kind == "layers":
            named = {key: self.decode(item) for key, item in content}
            modules = (make_activation(m) if isinstance(m, str) else m for m in named.values())
            return nn.Sequential(OrderedDict(zip(named, modules, strict=True)))
        if kind == "same":
            return self._objects[content]
        if kind == "activation":
            name, constant = content
            activation = make_activation(name)
            if name in CONSTANTS and getattr(activation, CONSTANTS[name]) != constant:
                return type(activation)(**{CONSTANTS[name]: constant})
            return name
        raise ValueError(f"Expected an argument of a known kind; got {kind!r}: {content!r}")

    def _object(self, value: dict[str, Any]) -> Any:
        name = value["class"]
        known = isinstance(name, str) and name in self.classes
        kind = self.classes[name] if known else find_class(name)
        arguments = {key: self.decode(item) for key, item in value["arguments"].items()}
        arguments = former_defaults(kind) | arguments
        made = _call(kind, arguments)
        self._objects.append(made)
        return made


def _layer_arguments(layer: Any) -> dict[str, Any] | None:
    """Return what a layer's constructor was called with, defaults left out; None for others."""
    kind = type(layer)
    if _LAYERS.get(kind.__name__) is not kind:
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


def _make_layer(name: Any, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the layer of a name and arguments, on torch's default device."""
    expect(name in _LAYERS, "a layer", "to be one of torch.nn that is known", repr(name))
    expect("device" not in arguments, f"a layer {name}", "to name no device", "one that does")
    return _LAYERS[name](**arguments)


def _call(kind: type, arguments: dict[str, Any]) -> Any:
    """Construct an object by name, the values of ``*args`` by place."""
    parameters = inspect.signature(kind).parameters
    star = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
    if star not in arguments:
        return kind(**arguments)
    before = [arguments.pop(name) for name in takewhile(lambda name: name != star, parameters)]
    return kind(*before, *arguments.pop(star), **arguments)
