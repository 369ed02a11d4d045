"""The plan: a masked network with its units sorted by degree, every weight block-triangular.

Degrees are read off the masks (one more than the highest rank a unit can be reached from), so
that a plan can be made of any masked network, whoever built it and in whatever order its units
stand.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows.network import Layer, Structure, parse, unpack

__all__ = ["Plan", "PlanLayer", "make_plan", "plan_for"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PlanLayer:
    """One layer of a plan.

    Args:
        units: the network's unit at each place; sorted by degree (output rows: by rank).
        starts: ``starts[d]`` is the number of units of degree (output rows: rank) below d.
        weight: masked weights in sorted order, (units, inputs).
        bias: biases in sorted order, or None.
        norm_scale, norm_shift: in sorted order, or None.
        stream: for every unit, the place in an earlier layer of the unit that it adds to, or None.
    """

    units: Tensor
    starts: Integers
    weight: Tensor
    bias: Tensor | None
    norm_scale: Tensor | None
    norm_shift: Tensor | None
    stream: Tensor | None = None


@dataclass
class Plan:
    """A network ready for the sequential inverse.

    Args:
        structure: how the layers hang together.
        levels: number of ranks R; features of one rank are solved together.
        features: features sorted by rank; ``feature_starts[r]`` of them have a rank below r.
        columns: input columns sorted by rank, with ``column_starts``.
        layers: the hidden layers, then the output, whose rows are sorted by rank.
        direct: masked weights of the direct connection in sorted order, or None.
        packed: what a kernel made of the plan for itself.
    """

    structure: Structure
    levels: int
    features: Tensor
    feature_starts: Integers
    columns: Tensor
    column_starts: Integers
    layers: list[PlanLayer]
    direct: Tensor | None
    packed: dict[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> list[PlanLayer]:
        """The hidden layers."""
        return self.layers[:-1]

    @property
    def output(self) -> PlanLayer:
        """The output layer."""
        return self.layers[-1]


def _starts(sorted_degrees: Integers, levels: int) -> Integers:
    return np.searchsorted(sorted_degrees, np.arange(levels + 1)).astype(np.int64)


def _highest(mask: NDArray[np.bool_], below: Integers) -> Integers:
    """For every row of a mask, the largest value among the inputs it reads; 0 for none."""
    if mask.shape[1] == 0:
        return np.zeros(len(mask), dtype=np.int64)
    order = np.argsort(below, kind="stable")
    # The last input a row reads, in sorted order, is the one of the largest value.
    last = mask.shape[1] - 1 - np.argmax(mask[:, order[::-1]], axis=1)
    return np.where(mask.any(axis=1), below[order[last]], 0)


def make_plan(structure: Structure, tensors: Sequence[Tensor]) -> Plan:
    """A plan of a network as it is now.

    Raises:
        ValueError: if an output reads a feature that does not come before its own.
    """
    ranks_tensor, layers, direct = unpack(structure, tensors)
    device = layers[0].weight.device
    ranks = ranks_tensor.cpu().numpy().astype(np.int64)
    levels = int(ranks.max()) + 1
    of_column = np.repeat(ranks, structure.inputs)
    row_features = np.repeat(np.arange(structure.features), structure.parameters)
    if structure.parameter_major:
        row_features = np.arange(len(row_features)) % structure.features
    of_row = ranks[row_features]

    def sort(values: Integers, then: Integers | None = None) -> tuple[Tensor, Integers]:
        order = np.lexsort((np.zeros_like(values) if then is None else then, values))
        order = order[values[order] < levels]  # units that read everything: nothing reads them
        return torch.from_numpy(order).to(device), _starts(values[order], levels)

    features, feature_starts = sort(ranks)
    columns, column_starts = sort(of_column)
    before, before_units = of_column + 1, columns
    degrees: list[Integers] = []
    planned: list[PlanLayer] = []
    for index, layer in enumerate(layers):
        mask = layer.mask.cpu().numpy().astype(bool)
        degree = _highest(mask, before)
        if index == structure.depth:
            _check_output(degree, of_row, row_features)
            degree = of_row
        elif layer.adds_to >= 0:
            degree = np.maximum(degree, degrees[layer.adds_to])
        units, starts = sort(degree, row_features if index == structure.depth else None)
        stream = None
        if layer.adds_to >= 0:
            # Of lower or equal degree, so never dropped where this unit is kept.
            places = torch.empty(len(layer.mask), dtype=torch.long, device=device)
            earlier = planned[layer.adds_to].units
            places[earlier] = torch.arange(len(earlier), device=device)
            stream = places[units]
        planned.append(_sorted_layer(layer, units, before_units, starts, stream))
        degrees.append(degree)
        before, before_units = degree, units
    direct_weight = None
    if direct is not None:
        _check_output(
            _highest(direct.mask.cpu().numpy().astype(bool), of_column + 1), of_row, structure
        )
        rows = planned[-1].units
        masked = direct.weight.detach() * direct.mask
        direct_weight = masked[rows][:, columns].contiguous()
    return Plan(
        structure, levels, features, feature_starts, columns, column_starts, planned, direct_weight
    )


def _check_output(reads: Integers, ranks: Integers, features: Integers) -> None:
    wrong = np.flatnonzero(reads > ranks)
    if len(wrong):
        feature = int(features[wrong[0]])
        raise ValueError(
            f"Expected masks that let feature {feature} (rank {ranks[wrong[0]]}) read features of "
            f"lower rank only; got one that reads rank {reads[wrong[0]] - 1}"
        )


def _sorted_layer(
    layer: Layer, units: Tensor, inputs: Tensor, starts: Integers, stream: Tensor | None
) -> PlanLayer:
    masked = layer.weight.detach() * layer.mask

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach()[units].contiguous()

    return PlanLayer(
        units,
        starts,
        masked[units][:, inputs].contiguous(),
        pick(layer.bias),
        pick(layer.norm_scale),
        pick(layer.norm_shift),
        stream,
    )


# ---------------------------------------------------------------------- cache


@dataclass
class _Entry:
    tensors: list[weakref.ref[Tensor]]
    stamps: list[tuple[Any, ...]]
    plan: Plan

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the very tensors of the plan, unchanged since it was made."""
        return len(tensors) == len(self.tensors) and all(
            reference() is tensor and stamp == _stamp(tensor)
            for reference, stamp, tensor in zip(self.tensors, self.stamps, tensors, strict=True)
        )


_CACHE: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
_CACHE_SIZE = 64
# Reentrant: a tensor may die, and its callback run, while this thread holds the lock.
_LOCK = RLock()


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor's values may have: version, place, type, shape, a few values."""
    return (
        tensor._version,
        tensor.data_ptr(),
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
    )


def plan_for(text: str, tensors: Sequence[Tensor]) -> Plan:
    """The plan of a network, made anew when any of its tensors has changed since."""
    if any(tensor.is_inference() for tensor in tensors):
        return make_plan(parse(text), tensors)  # such tensors do not count their changes
    key = (text, *map(id, tensors))
    with _LOCK:
        entry = _CACHE.get(key)
        if entry is not None and entry.is_of(tensors):
            _CACHE.move_to_end(key)
            return entry.plan
    stamps = [_stamp(tensor) for tensor in tensors]
    plan = make_plan(parse(text), tensors)

    def drop(_: Any) -> None:
        with _LOCK:
            _CACHE.pop(key, None)

    with _LOCK:
        _CACHE[key] = _Entry([weakref.ref(tensor, drop) for tensor in tensors], stamps, plan)
        _CACHE.move_to_end(key)
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return plan
