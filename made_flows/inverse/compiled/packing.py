"""Packing: the arrays of the kernels, from where everything stands and from the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows.inverse.compiled.gathering import Sources, found_in, pieces_of
from made_flows.inverse.compiled.layout import BIAS, Integers, Kept
from made_flows.inverse.compiled.placement import Layout, array_of, inputs_read
from made_flows.inverse.symbolic import Symbolic
from made_flows.nn.spec import LayerSpec


@dataclass(frozen=True)
class Weights:
    """What depends on the weights.

    Args:
        weights: all blocks, one after the other.
        vectors: biases and norms.
    """

    weights: NDArray[Any]
    vectors: NDArray[Any]


@dataclass(frozen=True)
class Gather:
    """Where every number of an array is found among a network's tensors.

    The symbolic phase of packing, since masks and weights' places do not change: the numeric phase
    is one gather. Masked weights are found at a zero, so that a NaN there changes nothing.

    Args:
        found: the :class:`~made_flows.inverse.compiled.gathering.Places` of the numbers.
        factors: of the masks, where they are not all one.
    """

    found: Kept
    factors: NDArray[np.float64] | None

    def of(self, sources: Sources) -> NDArray[Any]:
        """Write the array of these tensors."""
        target = sources.gather(self.found)
        if self.factors is not None:
            target *= self.factors.astype(target.dtype)
        return target


@dataclass(frozen=True)
class Gathers:
    """Where the arrays of a network are found.

    Args:
        weights: in blocks, then biases and norms.
        tainting: pieces of what is to be finite.
    """

    weights: Gather
    tainting: Kept


class _Places:
    """The layers of a network, with places among its tensors in place of numbers."""

    def __init__(self, symbolic: Symbolic, tensors: Sequence[Tensor]) -> None:
        self.symbolic, depth = symbolic, symbolic.structure.depth
        _, layers, direct = symbolic.structure.unpack(tensors)
        self.sizes = [tensor.numel() for tensor in _weights_of(symbolic, tensors)]
        self.zero = sum(self.sizes)
        self.factors: NDArray[np.float64] | None = None  # of masks, should they not be 0 or 1
        self.vectors: list[Integers] = []
        self.matrices: list[tuple[int, bool, Integers]] = []
        """Of each layer, and the direct connection: its index, whether it reads inputs, places."""
        at = 0
        for index, layer in enumerate(layers):
            at = self._add_matrix(layer, index, symbolic.inputs_of(index), at, index == 0)
            units = array_of(symbolic.layers[index].units)
            vectors = (layer.bias, layer.norm_scale, layer.norm_shift)
            for vector in vectors if layer.norm_scale is not None else vectors[:1]:
                known = vector is not None
                self.vectors.append(at + units if known else np.full(len(units), self.zero))
                at += len(vector) if vector is not None else 0
        if direct is not None:
            self._add_matrix(direct, depth, symbolic.columns, at, True)

    def _add_matrix(
        self, layer: LayerSpec, index: int, inputs: Tensor, at: int, of_inputs: bool
    ) -> int:
        mask = layer.mask.detach().expand(layer.weight.shape)
        seen = mask.ne(0)
        if not bool((mask == seen).all()):
            if self.factors is None:
                self.factors = np.ones(self.zero + 1)
            self.factors[at : at + mask.numel()] = array_of(mask.double().reshape(-1).clone())
        places = torch.arange(at, at + mask.numel(), device="cpu")
        places = places.reshape(mask.shape)
        places = places.masked_fill_(~seen, self.zero)
        places = places.index_select(0, self.symbolic.layers[index].units).index_select(1, inputs)
        self.matrices.append((index, of_inputs, array_of(places)))
        return at + mask.numel()

    def tainting(self, tensors: Sequence[Tensor]) -> Integers:
        """Return the pieces of what is to be finite."""
        numbers, left_out = range(len(tensors)), self.symbolic.structure.mask_places
        packed = [number for number in numbers if number not in left_out]
        found = self.symbolic.structure.tainting(numbers)
        return pieces_of(self.sizes, [packed.index(number) for number in found])

    def gather(self, places: Sequence[Integers]) -> Gather:
        """Return how to find the numbers at some places."""
        every = np.concatenate(places)
        factors = None if self.factors is None else self.factors[every]
        return Gather(Kept(found_in(every, self.sizes)), factors)


def _weights_of(symbolic: Symbolic, tensors: Sequence[Tensor]) -> list[Tensor]:
    """List the tensors that are packed: all but ranks and masks."""
    left_out = set(symbolic.structure.mask_places)
    return [tensor for place, tensor in enumerate(tensors) if place not in left_out]


def gathers_of(symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor]) -> Gathers:
    """Return where the arrays of a network are found, kept with its symbolic phase."""
    found: Gathers | None = symbolic.prepared.get("cpu gathers")
    if found is None:
        network = _Places(symbolic, tensors)
        found = symbolic.prepared["cpu gathers"] = Gathers(
            _gather(layout, network), Kept(network.tainting(tensors))
        )
    return found


def _sources_of(symbolic: Symbolic, tensors: Sequence[Tensor]) -> Sources:
    dtype = tensors[1].dtype
    return Sources([tensor.detach().to(dtype) for tensor in _weights_of(symbolic, tensors)])


def pack(symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor]) -> Weights:
    """Write the weights of a network in blocks."""
    gathers, sources = gathers_of(symbolic, layout, tensors), _sources_of(symbolic, tensors)
    packed, depth = gathers.weights.of(sources), symbolic.structure.depth
    vectors, first = packed[layout.size :], layout.table[depth, BIAS]
    nothing = sources.nothing(gathers.tainting)
    vectors[first : first + len(symbolic.layers[depth].units)] += nothing
    return Weights(packed[: layout.size], vectors)


def _gather(layout: Layout, network: _Places) -> Gather:
    """Find weights in blocks, then biases and norms."""
    ranks, symbolic = layout.ranks, network.symbolic
    found = np.full(layout.size, network.zero)
    chains = (*layout.blocks, layout.direct_blocks)
    for (index, of_inputs, matrix), places in zip(network.matrices, chains, strict=False):
        starts = ranks.starts[index]
        for p, (r0, r1) in enumerate(pairwise(ranks.panels)):
            read = inputs_read(symbolic, 0 if of_inputs else index, r1)
            block = matrix[starts[r0] : starts[r1], :read].T
            found[places[p] : places[p] + block.size] = block.reshape(-1)
    return network.gather([found, *network.vectors, np.array([network.zero])])
