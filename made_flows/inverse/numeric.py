"""The numeric phase: a network's weights in the places that the symbolic phase has found.

It is done again whenever weights change. Sorted by degree, masked weights are block-triangular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from made_flows._cache import TensorCache
from made_flows.inverse.symbolic import Integers, Symbolic, analyse
from made_flows.nn.spec import LayerSpec, NetworkSpec, Structure

_SYMBOLIC: TensorCache[Symbolic] = TensorCache()


def symbolic_for(network: NetworkSpec) -> Symbolic:
    """Return the symbolic phase of a network, kept while its ranks and masks do not change."""
    structure, tensors = network.structure, network.tensors
    masks = [tensors[place] for place in structure.mask_places]
    return _SYMBOLIC.get(structure.key, masks, lambda: analyse(structure, tensors))


@dataclass(frozen=True)
class NumericLayer:
    """The weights of one layer, its units sorted by degree.

    Args:
        units, starts, stream: see :class:`~made_flows.inverse.symbolic.SymbolicLayer`.
        weight: masked weights, (units, inputs).
        bias, norm_scale, norm_shift: (units,), or None.
    """

    units: Tensor
    starts: Integers
    stream: Tensor | None
    weight: Tensor
    bias: Tensor | None
    norm_scale: Tensor | None
    norm_shift: Tensor | None


@dataclass(frozen=True)
class Numeric:
    """A network's weights, sorted.

    Args:
        symbolic: which unit stands where.
        layers: the hidden layers, then the output.
        direct: masked weights of the direct connection, sorted, or None.
    """

    symbolic: Symbolic
    layers: tuple[NumericLayer, ...]
    direct: Tensor | None

    @property
    def structure(self) -> Structure:
        """How the layers hang together."""
        return self.symbolic.structure

    @property
    def hidden(self) -> tuple[NumericLayer, ...]:
        """The hidden layers."""
        return self.layers[:-1]

    @property
    def output(self) -> NumericLayer:
        """The output layer."""
        return self.layers[-1]


def make_numeric(symbolic: Symbolic, tensors: Sequence[Tensor]) -> Numeric:
    """Sort the weights of a network as its symbolic phase says."""
    _, layers, direct = symbolic.structure.unpack(tensors)
    sorted_layers = []
    for index, (layer, place) in enumerate(zip(layers, symbolic.layers, strict=True)):
        units = place.units
        sorted_layers.append(
            NumericLayer(
                units,
                place.starts,
                place.stream,
                sorted_weight(layer, units, symbolic.inputs_of(index)),
                pick(layer.bias, units),
                pick(layer.norm_scale, units),
                pick(layer.norm_shift, units),
            )
        )
    between = None
    if direct is not None:
        between = sorted_weight(direct, sorted_layers[-1].units, symbolic.columns)
    return Numeric(symbolic, tuple(sorted_layers), between)


def sorted_weight(layer: LayerSpec, units: Tensor, inputs: Tensor) -> Tensor:
    """Return a layer's masked weights (units, inputs), sorted, in memory of their own.

    Where the mask is zero the weight is left out, not multiplied: a NaN or an infinity there,
    which no forward pass of a masked product should have read, changes nothing.
    """
    mask = layer.mask
    weight = layer.weight.detach()
    masked = torch.where(mask != 0, weight * mask.to(weight.dtype), torch.zeros_like(weight))
    return torch.index_select(masked.index_select(0, units), 1, inputs)


def pick(values: Tensor | None, units: Tensor) -> Tensor | None:
    """Return the values of some units, in memory of their own."""
    return None if values is None else values.detach().index_select(0, units)
