"""Packing: the arrays of the kernels, from where everything stands and from the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows.inverse.compiled.gathering import Gathering, found_in, pieces_of
from made_flows.inverse.compiled.layout import BIAS, Integers
from made_flows.inverse.compiled.placement import Layout, array_of, inputs_read
from made_flows.inverse.symbolic import Symbolic
from made_flows.nn.spec import LayerSpec


@dataclass(frozen=True)
class Gather:
    """Where every number of an array is found among a network's tensors.

    The symbolic phase of packing, since masks and weights' places do not change: the numeric phase
    is one gather. Masked weights are found at a zero, so that a NaN there changes nothing.

    Args:
        owners: the tensors' places whose numbers are packed: all but ranks and masks.
        numbers: the weights in blocks, then biases and norms.
        factors: of the masks, where they are not all one.
    """

    owners: list[int]
    numbers: Gathering
    factors: NDArray[np.float64] | None


class _Places:
    """The layers of a network, with places among its tensors in place of numbers."""

    def __init__(self, symbolic: Symbolic, tensors: Sequence[Tensor]) -> None:
        self.symbolic, depth = symbolic, symbolic.structure.depth
        _, layers, direct = symbolic.structure.unpack(tensors)
        masks = symbolic.structure.mask_places
        self.owners = [place for place in range(len(tensors)) if place not in masks]
        self.sizes = [tensors[place].numel() for place in self.owners]
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
        found = self.symbolic.structure.tainting(range(len(tensors)))
        return pieces_of(self.sizes, [*map(self.owners.index, found)])


def gather_of(symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor]) -> Gather:
    """Return where the arrays of a network are found, kept with its symbolic phase."""
    found: Gather | None = symbolic.prepared.get("cpu gather")
    if found is None:
        found = _gather(layout, _Places(symbolic, tensors), tensors)
        symbolic.prepared["cpu gather"] = found
    return found


def pack(symbolic: Symbolic, layout: Layout, tensors: Sequence[Tensor]) -> Tensor:
    """Write the weights of a network in blocks, then biases and norms, in one tensor."""
    found, dtype = gather_of(symbolic, layout, tensors), tensors[1].dtype
    given = (tensors[place] for place in found.owners)
    sources = [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in given]
    packed = found.numbers.write(sources)
    numbers, count = array_of(packed), found.numbers.count
    if found.factors is not None:
        numbers[:count] *= found.factors.astype(numbers.dtype)
    if numbers[count : found.numbers.size].any():  # NaN, which is to be seen in every output
        first = layout.size + layout.table[symbolic.structure.depth, BIAS]
        numbers[first : first + layout.outputs] = np.nan
    return packed


def _gather(layout: Layout, network: _Places, tensors: Sequence[Tensor]) -> Gather:
    """Find weights in blocks, then biases and norms."""
    ranks, symbolic = layout.ranks, network.symbolic
    parts: list[tuple[int, int, Integers]] = []  # begin, numbers in a row, places
    chains = (*layout.blocks, layout.direct_blocks)
    for (index, of_inputs, matrix), places in zip(network.matrices, chains, strict=False):
        starts = ranks.starts[index]
        for p, (r0, r1) in enumerate(pairwise(ranks.panels)):
            read = inputs_read(symbolic, 0 if of_inputs else index, r1)
            block = matrix[starts[r0] : starts[r1], :read].T
            if block.size:
                parts.append((int(places[p]), block.shape[1], block.reshape(-1)))
    parts.sort(key=lambda part: part[0])
    at = layout.size
    for vector in (*network.vectors, np.array([network.zero])):
        if len(vector):
            parts.append((at, 1, vector))
            at += len(vector)
    every = np.concatenate([part for _, _, part in parts])
    factors = None if network.factors is None else network.factors[every]
    places = found_in(every, network.sizes, [part[:2] for part in parts])
    return Gather(network.owners, Gathering(places, network.tainting(tensors)), factors)
