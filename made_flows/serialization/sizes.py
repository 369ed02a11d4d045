"""How many numbers the arguments of a record ask for: no more than its tensors hold.

Before anything is built, so that a few bytes cannot ask for all of a machine's memory or time.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from made_flows._checks import expect
from made_flows.nn.made import with_block_ends
from made_flows.serialization.arguments import Decoder

_FREE = 2**20
"""Numbers that may be asked for beyond what the file holds: of constants that it leaves out."""

_LOOSE = ("Log", "Dequantize", "Categorical")
"""Classes whose features are constants that files leave out."""

_MADES = ("MADE", "GaussianMADE", "BernoulliMADE", "GaussianMixtureMADE", "CategoricalMADE")


def check_sizes(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for a text whose arguments ask for more than the tensors hold."""
    stored = sum(tensor.numel() for tensor in tensors.values())
    # What is there under several names was made several times; not very many, or it is a trap.
    names = dict(text.get("aliases", {})).values()
    shared = sum(tensors[name].numel() for name in names if name in tensors)
    held = stored + min(shared, 64 * stored)
    needed = _numbers([dict(text), text.get("changes")], held)
    expect(needed <= held, "sizes in the header", f"that {held} numbers in the file fill", needed)


def _numbers(value: Any, held: int) -> int:
    """Return the least number of weights and buffers that the objects in a value have."""
    if isinstance(value, list):
        return sum(_numbers(item, held) for item in value)
    if not isinstance(value, dict):
        return 0
    if "class" not in value:
        if "layer" in value:
            with torch.device("meta"):  # where nothing is stored
                layer: nn.Module = Decoder({}).decode(value)
            return sum(tensor.numel() for tensor in layer.state_dict().values())
        [content] = value.values() if len(value) == 1 else [None]
        items = list(content.values()) if isinstance(content, dict) and "dict" in value else content
        return _numbers(items, held)
    kind, arguments = value["class"], value.get("arguments")
    if not isinstance(arguments, dict) or not isinstance(kind, str):
        return 0  # refused later on, with a better message
    inside = sum(_numbers(item, held) for item in arguments.values())
    if "." in kind:  # a class of somebody's own
        return inside
    if kind in _LOOSE:
        categories = max(_integers(arguments.get("categories")), default=1)
        count = _count(arguments.get("features")) * categories
        most = held + _FREE
        expect(count <= most, f"the sizes of {kind}", f"to be at most {most}", count)
        return inside
    return inside + _own(kind, arguments)


def _own(kind: str, arguments: Mapping[str, Any]) -> int:
    """Bound an object's own weights and buffers from below; defaults count for nothing."""
    features = _count(arguments.get("features"))
    fixed = _count(arguments.get("orders")) * max(features, 1) + _count(arguments.get("masks"))
    if kind in _MADES:
        return _made(kind, arguments) + fixed
    if kind in ("MAF", "IAF"):
        return max(1, _count(arguments.get("transforms"))) * _made(kind, arguments)
    return (2 * features**2 if kind == "InvertibleLinear" else features) + fixed


def _made(kind: str, arguments: Mapping[str, Any]) -> int:
    """Return the weights of a MADE made with these arguments, or with what they imply."""
    features = _count(arguments.get("features"))
    outputs = inputs = features
    if kind == "MADE":
        outputs = _each(arguments.get("parameters"), features)
        inputs = _each(arguments.get("inputs"), features)
    elif kind == "CategoricalMADE":
        outputs = inputs = _each(arguments.get("categories"), features)
    elif kind == "GaussianMixtureMADE":
        outputs = max(1, _count(arguments.get("components"))) * features
    bijection = arguments.get("bijection")
    if isinstance(bijection, dict) and isinstance(bijection.get("arguments"), dict):
        outputs *= max(1, _count(bijection["arguments"].get("bins")))
    least = features + outputs * _count(arguments.get("context"))
    if arguments.get("hidden_features") is None:
        return least + outputs
    hidden = _integers(arguments["hidden_features"])
    chains = [[inputs, *hidden, outputs]]
    if len(hidden) > 1 and arguments.get("residual", True) is not False:
        chains.append([inputs, *with_block_ends(tuple(hidden)), outputs])
    return least + min(sum(a * b for a, b in pairwise(widths)) for widths in chains)


def _count(value: Any) -> int:
    """Return a positive integer, or zero for anything else."""
    return value if isinstance(value, int) and value > 0 else 0


def _each(value: Any, features: int) -> int:
    """Sum one number for all features, or one for each, over the features."""
    numbers = _integers(value)
    return (
        numbers[0] * features if isinstance(value, int) and numbers else sum(numbers or [features])
    )


def _integers(value: Any) -> list[int]:
    """Return the positive integers in a value, as the encoder writes them."""
    if isinstance(value, dict):
        return _integers(list(value.values()))
    if isinstance(value, list):
        return [n for item in value for n in _integers(item)]
    return [value] if _count(value) else []
