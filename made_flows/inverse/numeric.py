"""The numeric of a network for torch operations: weights sorted by degree, block-triangular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from made_flows._cache import TensorCache
from made_flows.inverse.symbolic import Integers, Symbolic, analyse
from made_flows.nn.spec import LayerSpec, Structure, mask_places, parse, unpack

__all__ = ["Numeric", "NumericLayer", "make_numeric", "symbolic_for"]

_SYMBOLIC: TensorCache[Symbolic] = TensorCache()


def symbolic_for(text: str, tensors: Sequence[Tensor]) -> Symbolic:
    """The symbolic of a network, kept while its ranks and masks do not change."""
    masks = [tensors[place] for place in mask_places(text)]
    return _SYMBOLIC.get(text, masks, lambda: analyse(parse(text), tensors))


@dataclass(frozen=True)
class NumericLayer:
    """One layer of a numeric, its units sorted by degree.

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
    """A network ready for the sequential inverse in torch operations.

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
    """The numeric of a network with these weights."""
    _, layers, direct = unpack(symbolic.structure, tensors)
    planned = []
    for index, (layer, place) in enumerate(zip(layers, symbolic.layers, strict=True)):
        units = place.units
        planned.append(
            NumericLayer(
                units,
                place.starts,
                place.stream,
                _sorted_weight(layer, units, symbolic.inputs_of(index)),
                _pick(layer.bias, units),
                _pick(layer.norm_scale, units),
                _pick(layer.norm_shift, units),
            )
        )
    between = None
    if direct is not None:
        between = _sorted_weight(direct, planned[-1].units, symbolic.columns)
    return Numeric(symbolic, tuple(planned), between)


def _sorted_weight(layer: LayerSpec, units: Tensor, inputs: Tensor) -> Tensor:
    masked = layer.weight.detach() * layer.mask
    return torch.index_select(masked.index_select(0, units), 1, inputs)


def _pick(values: Tensor | None, units: Tensor) -> Tensor | None:
    return None if values is None else values.detach().index_select(0, units)
