"""The symbolic phase, once for all weights: which unit stands where, sorted by degree.

Sparse solvers look at the places of nonzero entries once (the symbolic phase), and at the entries
whenever they change (the numeric phase). Here the masks are the places. Degrees are read off them
(one more than the highest rank that a unit can be reached from), so that any masked network can
be inverted, whoever built it and in whatever order its units stand. Sorted by degree, every weight
is block-triangular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows._cache import TensorCache
from made_flows.nn.spec import NetworkSpec, Structure

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class SymbolicLayer:
    """One layer of a network, sorted.

    Args:
        units: the network's unit at each place; sorted by degree (output rows: by rank, then
            feature). Units that read every rank are left out, as nothing may read them.
        starts: ``starts[d]`` is the number of units of degree (output rows: rank) below d.
        stream: for every unit, the place in an earlier layer of the unit that it adds to, or None.
    """

    units: Tensor
    starts: Integers
    stream: Tensor | None


@dataclass(frozen=True)
class Symbolic:
    """What is known of a network from its masks alone.

    Args:
        structure: how the layers hang together.
        levels: number of ranks R; features of one rank are solved together.
        features: features sorted by rank; ``feature_starts[r]`` of them have a rank below r.
        outputs: how many outputs each of them has (no tensor, which would have to be waited for).
        columns: input columns sorted by rank, with ``column_starts``.
        layers: the hidden layers, then the output.
        proof: copies of ranks and masks on a device that would have to be waited for.
        prepared: what an implementation derived from it for itself, under its name.
    """

    structure: Structure
    levels: int
    features: Tensor
    outputs: tuple[int, ...]
    feature_starts: Integers
    columns: Tensor
    column_starts: Integers
    layers: tuple[SymbolicLayer, ...]
    proof: tuple[Tensor, ...] = ()
    prepared: dict[str, Any] = field(default_factory=dict)

    def inputs_of(self, layer: int) -> Tensor:
        """List the units (for the first layer: the inputs) that a layer reads, sorted."""
        return self.layers[layer - 1].units if layer else self.columns

    def nothing_if_holds(self, tensors: Sequence[Tensor]) -> Tensor | float:
        """Return zero if the masks are what they were, or else NaN, without waiting for either."""
        if not self.proof:  # they were compared
            return 0.0
        masks = [tensors[place] for place in self.structure.mask_places]
        changed = [(a != b).any() for a, b in zip(masks, self.proof, strict=True)]
        return torch.where(torch.stack(changed).any(), torch.nan, 0.0)


def starts_of(sorted_degrees: Integers, levels: int) -> Integers:
    """Count the sorted degrees below each of 0, 1, ... levels."""
    return np.searchsorted(sorted_degrees, np.arange(levels + 1)).astype(np.int64)


def _highest(mask: NDArray[np.bool_], below: Integers) -> Integers:
    """Find, for every row of a mask, the largest value among its inputs; 0 for none."""
    if mask.shape[1] == 0:
        return np.zeros(len(mask), dtype=np.int64)
    order = np.argsort(below, kind="stable")
    # The last input a row reads, in sorted order, is the one of the largest value.
    last = mask.shape[1] - 1 - np.argmax(mask[:, order[::-1]], axis=1)
    return np.where(mask.any(axis=1), below[order[last]], 0)


def _analyse(structure: Structure, tensors: Sequence[Tensor]) -> Symbolic:
    """Sort the units of a network with these masks.

    Raises:
        ValueError: if an output reads a feature that does not come before its own.
    """
    ranks_tensor, layers, direct = structure.unpack(tensors)
    device = layers[0].weight.device
    # Copies: an array that shares a tensor's memory pins its storage to its size.
    ranks = ranks_tensor.cpu().clone().numpy().astype(np.int64)
    levels = int(ranks.max()) + 1
    of_column = np.repeat(ranks, structure.inputs)
    row_features = np.repeat(np.arange(structure.features), structure.parameters)
    if structure.parameter_major:
        row_features = np.arange(len(row_features)) % structure.features
    of_row = ranks[row_features]

    def sort(values: Integers, then: Integers | None = None) -> tuple[Tensor, Integers]:
        order = np.lexsort((np.zeros_like(values) if then is None else then, values))
        order = order[values[order] < levels]
        return torch.from_numpy(order).to(device), starts_of(values[order], levels)

    features, feature_starts = sort(ranks)
    columns, column_starts = sort(of_column)
    before = of_column + 1
    degrees: list[Integers] = []
    sorted_layers: list[SymbolicLayer] = []
    for index, layer in enumerate(layers):
        degree = _highest(_boolean(layer.mask), before)
        if index == structure.depth:
            _check_output(degree, of_row, row_features)
            units, starts = sort(of_row, row_features)
            sorted_layers.append(SymbolicLayer(units, starts, None))
            break
        if layer.adds_to >= 0:
            degree = np.maximum(degree, degrees[layer.adds_to])
        units, starts = sort(degree)
        stream = None
        if layer.adds_to >= 0:
            # Of lower or equal degree, so never left out where this unit is kept.
            places = torch.empty(len(degree), dtype=torch.long, device=device)
            earlier = sorted_layers[layer.adds_to].units
            places[earlier] = torch.arange(len(earlier), device=device)
            stream = places[units]
        sorted_layers.append(SymbolicLayer(units, starts, stream))
        degrees.append(degree)
        before = degree
    if direct is not None:
        _check_output(_highest(_boolean(direct.mask), of_column + 1), of_row, row_features)
    return Symbolic(
        structure,
        levels,
        features,
        tuple(structure.parameters[feature] for feature in features.tolist()),
        feature_starts,
        columns,
        column_starts,
        tuple(sorted_layers),
    )


def _boolean(mask: Tensor) -> NDArray[np.bool_]:
    array: NDArray[np.bool_] = mask.detach().ne(0).cpu().numpy()  # NumPy has no bfloat16
    return array


def _check_output(reads: Integers, ranks: Integers, features: Integers) -> None:
    wrong = np.flatnonzero(reads > ranks)
    if len(wrong):
        feature = int(features[wrong[0]])
        raise ValueError(
            f"Expected masks that let feature {feature} (rank {ranks[wrong[0]]}) read features of "
            f"lower rank only; got one that reads rank {reads[wrong[0]] - 1}"
        )


_COMPARED: TensorCache[Symbolic] = TensorCache()
_PROVED: TensorCache[Symbolic] = TensorCache(proves=True)


def symbolic_for(network: NetworkSpec) -> Symbolic:
    """Return the symbolic phase of a network, kept while its ranks and masks do not change.

    On a GPU, which would have to be waited for, a change that torch does not count goes unseen:
    whoever uses the result there proves the masks, as ``nothing_if_holds`` does.
    """
    structure, tensors = network.structure, network.tensors
    masks = [tensors[place] for place in structure.mask_places]
    if not _is_waited_for(tensors[1]):
        return _COMPARED.get(structure.key, masks, lambda: _analyse(structure, tensors))

    def make() -> Symbolic:
        return replace(_analyse(structure, tensors), proof=tuple(mask.clone() for mask in masks))

    return _PROVED.get(structure.key, masks, make)


def _is_waited_for(tensor: Tensor) -> bool:
    return not tensor.is_cpu
