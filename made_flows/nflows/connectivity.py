"""Degrees for nflows' networks with which no dependency is lost."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from made_flows.nn import masks as mk
from made_flows.nn.connectivity import DependencyWarning


def assign_degrees(net: Any, features: int, context: int, *, residual: bool, random: bool) -> None:
    """Give the units of an nflows network degrees that lose nothing, in place.

    nflows' own degrees are 1, 2, ..., D - 1 and again from 1; they stay where they are right. With
    a context there have to be units of degree 0 too, which read the context alone: otherwise the
    first feature, which reads no other, is without it. Fewer units than degrees are spread evenly
    over them.

    Args:
        net: the network, of either of nflows' two versions.
        features: number of features D.
        context: number of context variables; 0 for none.
        residual: whether it is made of residual blocks.
        random: whether degrees are drawn at random.

    Warns:
        DependencyWarning: if a feature does not read all features before it.
    """

    def degrees(units: int) -> Tensor:
        return _degrees(units, features, 0 if context else 1, random)

    stream = before = degrees(net.initial_layer.out_features)
    inputs = torch.arange(1, features + 1)
    _set(net.initial_layer, inputs, stream)
    for block in net.blocks:
        if residual:
            inner, outer = block.linear_layers
            within = degrees(inner.out_features)
            _set(inner, stream, within)
            # A unit of the stream keeps its degree from block to block.
            _set(outer, within, stream)
        else:
            after = degrees(block.linear.out_features)
            _set(block.linear, before, after)
            before = after
        block.degrees = before
    rows = inputs.repeat_interleave(net.final_layer.out_features // features)
    net.final_layer.mask.copy_(rows[:, None] > before)
    _warn_of_lost_dependencies(net, features, residual)


def _degrees(units: int, features: int, lowest: int, random: bool) -> Tensor:
    highest = features - 1
    lowest = min(lowest, highest)
    count = highest - lowest + 1
    if random:
        drawn = torch.randint(lowest, highest + 1, (units,))
        drawn[0] = lowest  # or the first feature might be without the context after all
        return drawn
    if units >= count:
        return torch.arange(units) % count + lowest
    return mk.hidden_degrees(units, features, lowest=lowest)


def _set(linear: Any, before: Tensor, after: Tensor) -> None:
    linear.mask.copy_(after[:, None] >= before)
    linear.degrees.copy_(after)


def _warn_of_lost_dependencies(net: Any, features: int, residual: bool) -> None:
    # Blocks add nothing to what a stream of units of the same degrees reads.
    inner = [] if residual else [block.linear.mask for block in net.blocks]
    reach = mk.connectivity([net.initial_layer.mask, *inner, net.final_layer.mask])
    reach = reach.reshape(features, -1, features).any(dim=1)
    lost = mk.lost_dependencies(reach, torch.arange(features))
    if lost:
        warnings.warn(
            f"{len(lost)} of {features * (features - 1) // 2} dependencies are lost (feature "
            f"{lost[0][0]} on {lost[0][1]}, ...): take more hidden_features, or no random masks",
            DependencyWarning,
            stacklevel=4,
        )
