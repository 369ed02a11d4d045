"""A MADE described as a network, kept while it is made of the same objects."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from made_flows.activations import activation_name
from made_flows.linear import MaskedLinear
from made_flows.network import Layer, Network

if TYPE_CHECKING:
    from made_flows.made import MADE

__all__ = ["Description", "bases_of", "words_of"]


class Description:
    """The layers of a MADE as a :class:`~made_flows.network.Network`.

    A single row is inverted in a tenth of a millisecond, of which putting this together would
    take a third; to see that it still holds takes 3 us.

    Args:
        made: the network to describe.

    Attributes:
        network: without a context.
        with_context: its text and tensors where a context contributes too.
    """

    def __init__(self, made: MADE) -> None:
        linears = [cast(MaskedLinear, layer) for layer in made.layers]
        contexts, offsets = _contexts(made), _offsets(made)
        based = {*contexts, *offsets}
        self._activation = activation_name(made.activation)
        self._modules = _modules(made)
        self.network = self._describe(made, linears, offsets)
        self.with_context = self._describe(made, linears, based)
        places: list[tuple[dict[str, Any], str]] = [(made._buffers, "ranks")]
        for linear in linears if made.direct is None else [*linears, made.direct]:
            places += [(linear._parameters, "weight"), (linear._parameters, "bias")]
            places.append((linear._buffers, "mask"))
        self._tensors = [(table, name, table[name]) for table, name in places]

    def _describe(self, made: MADE, linears: list[MaskedLinear], based: Collection[int]) -> Network:
        last = len(linears) - 1
        layers = [
            Layer(
                linear.weight,
                linear.mask,
                linear.bias,
                base=linear.weight if index in based else None,  # stands for what each call brings
                activation=self._activation,
                adds_to=index - 2 if index < last and made.adds_to_stream(index) else -1,
            )
            for index, linear in enumerate(linears)
        ]
        direct = None if made.direct is None else Layer(made.direct.weight, made.direct.mask)
        return Network.of_layers(made.ranks, layers, direct, made.inputs, made.outputs)

    def holds(self, made: MADE) -> bool:
        """Whether the network is still made of the same modules and tensors."""
        return (
            self._modules == _modules(made)
            and self._activation == activation_name(made.activation)
            and all(table[name] is tensor for table, name, tensor in self._tensors)
        )


def _contexts(made: MADE) -> dict[int, MaskedLinear]:
    """The layers that a context contributes to, and the way it takes there."""
    last = len(made.layers) - 1
    ways = {0: made.input_context, last: made.output_context}
    return {index: way for index, way in ways.items() if way is not None}


def _offsets(made: MADE) -> dict[int, list[MaskedLinear]]:
    """The layers that masks alone contribute to, and the weights of those masks."""
    found: dict[int, list[MaskedLinear]] = {}
    for index, layer in enumerate(made.layers):
        if cast(MaskedLinear, layer).has_mask_weights:
            found[index] = [cast(MaskedLinear, layer)]
    if made.direct is not None and made.direct.has_mask_weights:
        found.setdefault(len(made.layers) - 1, []).append(made.direct)
    return found


def bases_of(made: MADE, context: Tensor | None = None) -> list[Tensor]:
    """What a context (rows, C) and masks alone contribute to the layers, each (rows, units)."""
    contexts, offsets = _contexts(made), _offsets(made)
    rows = 1 if context is None else len(context)
    bases = []
    for index in range(len(made.layers)):
        parts: list[Tensor] = []
        if context is not None and index in contexts:
            parts.append(contexts[index](context))
        for layer in offsets.get(index, ()):
            offset = layer.offset()
            parts += [] if offset is None else [offset.expand(rows, -1)]
        if parts:
            bases.append(functools.reduce(torch.add, parts))
    return bases


def _modules(made: MADE) -> tuple[nn.Module | None, ...]:
    # Dictionaries: looking attributes of modules up takes several times as long.
    layers = cast(nn.ModuleList, made._modules["layers"])
    return (*made._modules.values(), *layers._modules.values())


def words_of(made: MADE) -> str:
    """What its representation says of a MADE."""
    parts = [f"features={made.features}"]
    if made.context:
        parts.append(f"context={made.context}")
    parts.append(f"hidden_features={made.hidden_features}")
    same = len(set(made.outputs)) == 1
    parts.append(f"parameters={made.outputs[0] if same else made.outputs}")
    if set(made.inputs) != {1}:
        parts.append(f"inputs={made.inputs[0] if len(set(made.inputs)) == 1 else made.inputs}")
    if made.graph is not None:
        parts.append(f"levels={int(made.ranks.max()) + 1}")
    else:
        order = made.order.tolist()
        if order == sorted(order):
            shown = "natural"
        elif order == sorted(order, reverse=True):
            shown = "reversed"
        else:
            shown = str(order) if made.features <= 12 else f"{str(order[:6])[:-1]}, ...]"
        parts.append(f"order={shown}")
    if made.residual:
        parts.append("residual=True")
    if made.mask_weights:
        parts.append(f"mask_weights={made.mask_weights!r}")
    return ", ".join(parts)
