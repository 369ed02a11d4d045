"""Random architectures for Hypothesis: any order or graph, degrees, depth, width and option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch

import made_flows as mf
from tests.helpers import density_models as models


@dataclass(frozen=True)
class Architecture:
    """Arguments of a MADE and a seed for what it draws; printed whole when a test fails."""

    arguments: dict[str, Any]
    seed: int

    @property
    def features(self) -> int:
        return int(self.arguments["features"])

    @property
    def context(self) -> int:
        return int(self.arguments["context"])

    def made(self, **more: Any) -> mf.MADE:
        """The scattered float64 network."""
        torch.manual_seed(self.seed)
        return models.made_of(**{**self.arguments, **more})


def permutations(size: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(range(size)).map(list)


@st.composite
def graphs(draw: st.DrawFn, features: int, context: int = 0) -> list[list[int]]:
    """A directed acyclic graph on numbered features, the context's columns at its end."""
    place = draw(permutations(features))
    edges = draw(
        st.lists(st.booleans(), min_size=features * features, max_size=features * features)
    )
    rows = [
        [int(place[i] > place[j] and edges[i * features + j]) for j in range(features)]
        for i in range(features)
    ]
    if not context or draw(st.booleans()):
        return rows
    reads = st.lists(st.integers(0, 1), min_size=context, max_size=context)
    return [[*row, *draw(reads)] for row in rows]


@st.composite
def architectures(
    draw: st.DrawFn,
    max_features: int = 7,
    activations: tuple[str, ...] = models.ACTIVATION_NAMES,
    graph: bool = True,
    max_layers: int = 4,
) -> Architecture:
    """Arguments of a MADE, all options mixed."""
    features = draw(st.integers(1, max_features))
    context = draw(st.integers(0, 3))
    arguments: dict[str, Any] = {
        "features": features,
        "context": context,
        "hidden_features": tuple(draw(st.lists(st.integers(1, 12), max_size=max_layers))),
        "activation": draw(st.sampled_from(activations)),
        "residual": draw(st.booleans()),
        "direct": draw(st.booleans()),
    }
    if graph and draw(st.integers(0, 3)) == 0:
        arguments["adjacency"] = draw(graphs(features, context))
    else:
        names = st.sampled_from(["natural", "reversed", "random"])
        arguments["order"] = draw(names | permutations(features))
        arguments["degrees"] = draw(st.sampled_from(["even", "random"]))
    return Architecture(arguments, draw(st.integers(0, 2**16)))
