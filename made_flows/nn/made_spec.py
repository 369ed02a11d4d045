"""A MADE as the sequential inverse sees it, kept while it is made of the same objects."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows.nn.activations import activation_code, activation_name
from made_flows.nn.linear import MaskedLinear, is_weight_hook, run_weight_hooks
from made_flows.nn.masked_mlp import MaskedMLP
from made_flows.nn.spec import LayerSpec, NetworkSpec
from made_flows.nn.validation import Watch, expect_own


class MADESpec:
    """The layers of a MADE as a :class:`~made_flows.nn.spec.NetworkSpec`.

    A single row is inverted in a tenth of a millisecond, of which putting this together would
    take a third; to see that it still holds takes 2 us.

    Args:
        made: the network to describe.

    Attributes:
        network: without a context.
        with_context: its structure and tensors where a context contributes too.
        modules: what takes part in the pass, but for layers of the context.
        places: the tables, and names in them, of the tensors that say what it computes.
        contexts: the layers that a context contributes to, each with the layer it goes through.
        offsets: the layers that masks alone contribute to, each with the layers of those masks.
        computed: whether weights are computed anew for every call.

    Raises:
        NotUnderstoodError: where something else than masked layers and an elementwise activation
            takes part in what it computes.
    """

    def __init__(self, made: MaskedMLP) -> None:
        self.modules = _modules(made)
        self._watch = Watch(self.modules, allowed=is_weight_hook)
        linears = made.masked_layers()
        run_weight_hooks(made.every_layer())
        self.contexts, self.offsets = contexts_of(made), _offsets(made)
        self._code = activation_code(made.activation)
        self.network = self._describe(made, linears, self.offsets)
        self.with_context = self._describe(made, linears, {*self.contexts, *self.offsets})
        places: list[tuple[dict[str, Any], str]] = [(made._buffers, "ranks")]
        for layer in made.every_layer():
            places += [(layer._parameters, "weight"), (layer._parameters, "bias")]
            places.append((layer._buffers, "mask"))
        # Weights under a parametrization, or pruned, are computed: of now, and not to be kept.
        self.computed = not all(name in table for table, name in places)
        self.places = places
        self._tables, self._names = zip(*places, strict=True)
        self._tensors = [*map(dict.get, self._tables, self._names)]

    def _describe(
        self, made: MaskedMLP, linears: list[MaskedLinear], based: Collection[int]
    ) -> NetworkSpec:
        layers = [
            LayerSpec(
                linear.weight,
                linear.mask,
                linear.bias,
                base=linear.weight if index in based else None,  # stands for what each call brings
                activation=activation_name(made.activation),
                adds_to=index - 2 if made.adds_to_stream(index) else -1,
            )
            for index, linear in enumerate(linears)
        ]
        direct = None if made.direct is None else LayerSpec(made.direct.weight, made.direct.mask)
        return NetworkSpec.of_layers(made.ranks, layers, direct, made.inputs, made.outputs)

    def at(self, context: Tensor | None) -> NetworkSpec:
        """Add what a context (rows, C), or None, and the masks contribute to the network."""
        if context is None and not self.offsets:
            return self.network
        network = self.network if context is None else self.with_context
        bases = self._bases({} if context is None else self.contexts, context)
        return NetworkSpec(network.structure, network.tensors, bases)

    def _bases(self, contexts: dict[int, MaskedLinear], context: Tensor | None) -> list[Tensor]:
        """Compute what is added to the layers that are based on something, each (rows, units)."""
        rows = 1 if context is None else context.shape[0]  # len(context) is no symbol
        bases = []
        for index in sorted({*contexts, *self.offsets}):
            parts = [contexts[index](context)] if index in contexts else []
            offsets = (layer.offset() for layer in self.offsets.get(index, ()))
            parts += [offset.expand(rows, -1) for offset in offsets if offset is not None]
            bases.append(functools.reduce(torch.add, parts))
        return bases

    def holds(self, made: MaskedMLP) -> bool:
        """Say whether the network is still made of the same modules and tensors."""
        # It holds these tensors themselves, and nothing made of their values, so that who they
        # are is all that counts here; values are compared where they are packed.
        return (
            not self.computed
            and self._watch.unchanged()
            # Of one that has no code the modules and functions, which are watched, are all.
            and self._code == activation_code(made._modules["activation"])
            and all(map(operator.is_, map(dict.get, self._tables, self._names), self._tensors))
        )


def contexts_of(made: MaskedMLP) -> dict[int, MaskedLinear]:
    """Return the layers that a context contributes to, each with the layer that it goes through."""
    last = len(made.layers) - 1
    ways = {0: made.input_context, last: made.output_context}
    return {index: way for index, way in ways.items() if way is not None}


def _offsets(made: MaskedMLP) -> dict[int, list[MaskedLinear]]:
    """Return the layers that masks alone contribute to, each with the layers of those masks."""
    found: dict[int, list[MaskedLinear]] = {}
    for index, layer in enumerate(made.layers):
        if cast(MaskedLinear, layer).has_mask_weights:
            found[index] = [cast(MaskedLinear, layer)]
    if made.direct is not None and made.direct.has_mask_weights:
        found.setdefault(len(made.layers) - 1, []).append(made.direct)
    return found


def expect_layer(layer: nn.Module) -> None:
    """Raise unless a layer computes what :class:`MaskedLinear` does."""
    expect_own(layer, MaskedLinear, ("__call__", "forward", "full_bias", "offset"))


def _modules(made: MaskedMLP) -> list[nn.Module]:
    """List all modules that take part in the pass, which compute what their classes say."""
    layers = made.every_layer()
    for layer in layers:
        expect_layer(layer)
    # Layers of the context are not read but called, as in every other pass.
    return [made, made.layers, *layers, *made.activation.modules()]
