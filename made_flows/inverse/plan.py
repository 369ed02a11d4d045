"""The plan of a network for torch operations: weights sorted by degree, block-triangular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from made_flows.inverse.cache import TensorCache
from made_flows.inverse.skeleton import Integers, Skeleton, make_skeleton
from made_flows.network import Layer, Structure, mask_places, parse, unpack

__all__ = ["Plan", "PlanLayer", "fill_plan", "skeleton_for"]

_SKELETONS: TensorCache[Skeleton] = TensorCache(digest=False)


def skeleton_for(text: str, tensors: Sequence[Tensor]) -> Skeleton:
    """The skeleton of a network, kept while its ranks and masks do not change."""
    masks = [tensors[place] for place in mask_places(text)]
    return _SKELETONS.get(text, masks, lambda: make_skeleton(parse(text), tensors))


@dataclass(frozen=True)
class PlanLayer:
    """One layer of a plan, its units sorted by degree.

    Args:
        units, starts, stream: see :class:`~made_flows.inverse.skeleton.SkeletonLayer`.
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
class Plan:
    """A network ready for the sequential inverse in torch operations.

    Args:
        skeleton: which unit stands where.
        layers: the hidden layers, then the output.
        direct: masked weights of the direct connection, sorted, or None.
    """

    skeleton: Skeleton
    layers: tuple[PlanLayer, ...]
    direct: Tensor | None

    @property
    def structure(self) -> Structure:
        """How the layers hang together."""
        return self.skeleton.structure

    @property
    def hidden(self) -> tuple[PlanLayer, ...]:
        """The hidden layers."""
        return self.layers[:-1]

    @property
    def output(self) -> PlanLayer:
        """The output layer."""
        return self.layers[-1]


def fill_plan(skeleton: Skeleton, tensors: Sequence[Tensor]) -> Plan:
    """The plan of a network with these weights."""
    _, layers, direct = unpack(skeleton.structure, tensors)
    planned = []
    for index, (layer, place) in enumerate(zip(layers, skeleton.layers, strict=True)):
        units = place.units
        planned.append(
            PlanLayer(
                units,
                place.starts,
                place.stream,
                _sorted_weight(layer, units, skeleton.inputs_of(index)),
                _pick(layer.bias, units),
                _pick(layer.norm_scale, units),
                _pick(layer.norm_shift, units),
            )
        )
    between = None
    if direct is not None:
        between = _sorted_weight(direct, planned[-1].units, skeleton.columns)
    return Plan(skeleton, tuple(planned), between)


def _sorted_weight(layer: Layer, units: Tensor, inputs: Tensor) -> Tensor:
    masked = layer.weight.detach() * layer.mask
    return torch.index_select(masked.index_select(0, units), 1, inputs)


def _pick(values: Tensor | None, units: Tensor) -> Tensor | None:
    return None if values is None else values.detach().index_select(0, units)
