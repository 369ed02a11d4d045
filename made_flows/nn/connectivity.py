"""Connectivity: which unit of a MADE reads which, from an order of the features or from a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from made_flows.nn import masks as mk


class DependencyWarning(UserWarning):
    """Hidden layers are too narrow for the network to connect all the features it could."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a network, before anything is connected.

    Args:
        features: number of features D.
        context: number of context variables C.
        inputs: input columns of every feature.
        outputs: output rows of every feature.
        hidden: widths of the hidden layers.
        residual: whether the layers at even places are one residual stream.
        direct_first: whether direct connections reach the first parameter of a feature alone.
    """

    features: int
    context: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    hidden: tuple[int, ...]
    residual: bool = False
    direct_first: bool = False

    @property
    def input_features(self) -> Tensor:
        """The feature that each input column belongs to."""
        return torch.arange(self.features).repeat_interleave(torch.tensor(self.inputs))

    @property
    def output_features(self) -> Tensor:
        """The feature that each output row belongs to."""
        return torch.arange(self.features).repeat_interleave(torch.tensor(self.outputs))

    @property
    def direct_outputs(self) -> Tensor:
        """Which output rows direct connections may reach: ones and zeros, (outputs, 1)."""
        chosen = [k == 0 or not self.direct_first for each in self.outputs for k in range(each)]
        return torch.tensor(chosen)[:, None]

    def adds_to_stream(self, layer: int) -> bool:
        """Say whether a hidden layer ends a residual block, so that its units are the stream's."""
        return self.residual and layer > 0 and layer % 2 == 0


@dataclass(frozen=True)
class Connectivity:
    """Ranks of the features, degrees of the hidden units, and the masks that follow.

    Args:
        ranks: rank of every feature (for a graph: its topological level).
        degrees: degrees of the units of every hidden layer.
        masks: one mask per hidden layer and one for the output, (units, inputs).
        direct: mask of direct connections, (outputs, inputs).
        input_context: mask of the context's way to the first hidden layer, None without one.
        output_context: mask of the context's way to the outputs.
        graph: which feature may depend on which, (features, features); None for an order.
    """

    ranks: Tensor
    degrees: list[Tensor]
    masks: list[Tensor]
    direct: Tensor
    input_context: Tensor | None
    output_context: Tensor
    graph: Tensor | None = None


def connect_in_order(
    shape: Shape,
    ranks: Tensor,
    rule: str,
    generator: torch.Generator | None = None,
    *,
    shuffle: bool = False,
) -> Connectivity:
    """Connect units by their degrees (Germain et al. 2015, equations 12-13).

    Args:
        shape: the sizes of the network.
        ranks: rank of every feature.
        rule: ``"even"`` or ``"random"`` degrees.
        generator: source of randomness for random degrees.
        shuffle: leave units in random order, where otherwise they are sorted by degree.
    """
    degrees = draw_degrees(shape, rule, generator, shuffle)
    inputs, outputs = ranks[shape.input_features], ranks[shape.output_features]
    context = torch.ones(len(outputs), shape.context, dtype=torch.bool)
    first = torch.ones(shape.hidden[0], shape.context, dtype=torch.bool) if shape.hidden else None
    return Connectivity(
        ranks=ranks,
        degrees=degrees,
        masks=mk.degree_masks(inputs, degrees, outputs),
        direct=(outputs[:, None] > inputs) & shape.direct_outputs,
        input_context=first,
        output_context=context,
    )


def draw_degrees(
    shape: Shape, rule: str, generator: torch.Generator | None = None, shuffle: bool = False
) -> list[Tensor]:
    """Draw the degrees of the units of every hidden layer, see :func:`connect_in_order`."""
    drawn: list[Tensor] = []
    # Units of degree 0 read the context alone: without one they would be constants.
    lowest = 0 if shape.context else 1
    for layer, width in enumerate(shape.hidden):
        if shape.adds_to_stream(layer):
            drawn.append(drawn[0])
            continue
        if rule == "random" and drawn:
            lowest = int(drawn[-1].min())
        degrees = mk.hidden_degrees(
            width, shape.features, lowest=lowest, rule=rule, generator=generator
        )
        drawn.append(degrees[torch.randperm(width, generator=generator)] if shuffle else degrees)
    return drawn


def connect_by_graph(shape: Shape, adjacency: Tensor) -> Connectivity:
    """Connect units by a directed acyclic graph.

    Args:
        shape: the sizes of the network.
        adjacency: boolean (features, features + context); ``[i, j]``: feature i may depend on
            column j.
    """
    features = adjacency[:, : shape.features]
    columns = torch.cat([shape.input_features, shape.features + torch.arange(shape.context)])
    masks, degrees = mk.ancestor_masks(adjacency, columns, shape.hidden, shape.output_features)
    first, inputs = masks[0], len(shape.input_features)
    masks[0] = first[:, :inputs]
    return Connectivity(
        ranks=mk.adjacency_levels(features),
        degrees=degrees,
        masks=masks,
        direct=features[shape.output_features][:, shape.input_features] & shape.direct_outputs,
        input_context=first[:, inputs:] if shape.hidden else None,
        output_context=adjacency[shape.output_features, shape.features :],
        graph=features,
    )
