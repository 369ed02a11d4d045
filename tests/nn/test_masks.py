"""Orders, degrees and masks: integers, checked against their definitions."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from made_flows import MADE, DependencyWarning
from made_flows.nn import masks as mk
from tests.helpers.architectures import graphs, permutations


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strictly_lower(matrix: Tensor, ranks: Tensor) -> bool:
    """Whether a (features, features) matrix connects features to features of lower rank only."""
    by_rank = matrix[torch.argsort(ranks)][:, torch.argsort(ranks)]
    return not bool(by_rank.triu().any())


# ---------------------------------------------------------------------- orders and ranks


@given(st.integers(1, 12).flatmap(permutations))
def test_orders_and_ranks_are_argsorts_of_each_other(given_order: list[int]) -> None:
    order = mk.make_order(len(given_order), given_order)
    ranks = mk.ranks_from_order(order)
    for place, feature in enumerate(given_order):
        assert ranks[feature] == place  # the feature generated k-th has rank k
    assert torch.equal(mk.order_from_ranks(ranks), order)
    assert torch.equal(torch.argsort(ranks), order)
    assert torch.equal(torch.argsort(order), ranks)


def test_named_orders() -> None:
    assert mk.make_order(3).tolist() == [0, 1, 2]
    assert mk.make_order(3, "reversed").tolist() == [2, 1, 0]
    drawn = [tuple(mk.make_order(3, "random", generator(seed)).tolist()) for seed in range(100)]
    assert len(set(drawn)) == 6  # all of them; 100 draws miss one with probability 1e-7
    assert drawn[0] == tuple(mk.make_order(3, "random", generator(0)).tolist())


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_an_order_may_be_any_sequence_and_is_copied(kind: Any) -> None:
    source = kind([2, 0, 1])
    order = mk.make_order(3, source)
    assert order.tolist() == [2, 0, 1]
    assert order.dtype == torch.int64
    order[0] = 7
    assert next(iter(source)) == 2


BAD_ORDERS = {
    "a repeated feature": [0, 0, 1],
    "a feature too many": [0, 1, 2, 3],
    "a feature too few": [0, 1],
    "ranks from one": [1, 2, 3],
    "negative": [-1, 0, 1],
    "floats": [0.0, 1.0, 2.0],
    "booleans": torch.tensor([True, False, True]),
    "nested": [[0, 1, 2]],
    "ragged": [[0], [1, 2]],
    "text inside": ["a", "b", "c"],
    "unknown name": "sorted",
    "none": None,
    "a number": 3,
}


@pytest.mark.parametrize("order", BAD_ORDERS.values(), ids=BAD_ORDERS)
def test_what_is_no_permutation_is_refused(order: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected order to be .*permutation.*; got"):
        mk.make_order(3, order)


# ---------------------------------------------------------------------- degrees


@given(width=st.integers(1, 40), features=st.integers(2, 20), lowest=st.integers(0, 1))
def test_even_degrees(width: int, features: int, lowest: int) -> None:
    degrees = mk.hidden_degrees(width, features, lowest=lowest).tolist()
    assert degrees == sorted(degrees)
    assert lowest <= degrees[0]
    assert degrees[-1] == features - 1  # without it the last feature could not see them all
    possible = range(lowest, features)
    counts = [degrees.count(degree) for degree in possible]
    assert max(counts) - min(counts) <= 1
    # Evenly spread: neither gaps nor crowds at one end.
    gaps = np.diff([lowest - 1, *degrees])
    assert gaps.max() <= -(-len(possible) // width)


@given(
    width=st.integers(1, 40),
    features=st.integers(2, 20),
    lowest=st.integers(0, 1),
    seed=st.integers(0, 999),
)
def test_random_degrees(width: int, features: int, lowest: int, seed: int) -> None:
    def draw() -> Tensor:
        return mk.hidden_degrees(
            width, features, lowest=lowest, rule="random", generator=generator(seed)
        )

    degrees = draw()
    assert degrees.tolist() == sorted(degrees.tolist())
    assert lowest <= degrees[0]
    assert degrees[-1] <= features - 1
    assert torch.equal(degrees, draw())


def test_random_degrees_are_uniform_over_all_of_them() -> None:
    degrees = mk.hidden_degrees(60_000, 7, rule="random", generator=generator())
    counts = torch.bincount(degrees, minlength=7)
    assert counts[0] == 0
    # Each count is within 6 standard deviations of 10000: false alarm below 2e-8.
    assert (counts[1:] - 10_000).abs().max() < 6 * (60_000 * 5 / 36) ** 0.5


def test_one_feature_has_units_of_degree_zero() -> None:
    assert mk.hidden_degrees(3, 1).tolist() == [0, 0, 0]
    assert mk.hidden_degrees(3, 1, rule="random").tolist() == [0, 0, 0]


def test_random_degrees_leave_no_unit_without_inputs() -> None:
    for seed in range(20):
        made = MADE(
            6, hidden_features=(5, 4, 3), degrees="random", generator=generator(seed), direct=True
        )
        for layer in made.layers[:-1]:
            assert layer.mask.any(dim=1).all()


BAD_DEGREES = {
    "no width": ({"width": 0, "features": 3}, r"width to be a positive integer; got 0"),
    "no features": ({"width": 3, "features": 0}, r"features to be a positive integer; got 0"),
    "no rule": ({"width": 3, "features": 3, "rule": "odd"}, r"to be 'even' or 'random'; got 'odd'"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_DEGREES.values(), ids=BAD_DEGREES)
def test_bad_degrees(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mk.hidden_degrees(**arguments)


# ---------------------------------------------------------------------- masks


@st.composite
def chains(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """Ranks, and degrees of some layers in no order whatever."""
    ranks = draw(st.integers(1, 8).flatmap(permutations))
    degree = st.integers(0, len(ranks) - 1)
    layers = draw(st.lists(st.lists(degree, min_size=1, max_size=6), max_size=4))
    return torch.tensor(ranks), [torch.tensor(layer) for layer in layers]


@given(chains())
def test_masks_are_those_of_equations_12_and_13(chain: tuple[Tensor, list[Tensor]]) -> None:
    ranks, degrees = chain
    masks = mk.degree_masks(ranks, degrees, ranks)
    assert len(masks) == len(degrees) + 1
    # m(k) >= d for inputs, m'(k') >= m(k) for units, d > m(k) for outputs; d is a rank plus one.
    d = (ranks + 1).tolist()
    below = d
    for mask, layer in zip(masks, [layer.tolist() for layer in degrees], strict=False):
        assert mask.tolist() == [[unit >= source for source in below] for unit in layer]
        below = layer
    assert masks[-1].tolist() == [[output > source for source in below] for output in d]


@given(chains())
def test_the_product_of_masks_is_strictly_lower_triangular(
    chain: tuple[Tensor, list[Tensor]],
) -> None:
    ranks, degrees = chain
    masks = mk.degree_masks(ranks, degrees, ranks)
    product = masks[0].double()
    for mask in masks[1:]:
        product = mask.double() @ product
    assert strictly_lower(product != 0, ranks)
    assert torch.equal(mk.connectivity(masks), product != 0)


@given(
    ranks=st.integers(2, 9).flatmap(permutations),
    spare=st.lists(st.integers(0, 8), min_size=1, max_size=4),
)
def test_layers_wide_enough_lose_no_dependency(ranks: list[int], spare: list[int]) -> None:
    features, of_rank = len(ranks), torch.tensor(ranks)
    degrees = [mk.hidden_degrees(features - 1 + extra, features) for extra in spare]
    reach = mk.connectivity(mk.degree_masks(of_rank, degrees, of_rank))
    assert torch.equal(reach, of_rank[:, None] > of_rank)
    assert mk.lost_dependencies(reach, of_rank) == []


@given(
    ranks=st.integers(2, 12).flatmap(permutations),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_narrow_layers_keep_the_last_output_connected(ranks: list[int], widths: list[int]) -> None:
    features, of_rank = len(ranks), torch.tensor(ranks)
    degrees = [mk.hidden_degrees(width, features) for width in widths]
    reach = mk.connectivity(mk.degree_masks(of_rank, degrees, of_rank))
    last = reach[int(of_rank.argmax())]
    assert int(last.sum()) == features - 1


def test_a_deep_chain_of_masks_does_not_overflow() -> None:
    ranks = torch.arange(6)
    degrees = [mk.hidden_degrees(200, 6)] * 60  # some 200**60 paths
    reach = mk.connectivity(mk.degree_masks(ranks, degrees, ranks))
    assert torch.equal(reach, ranks[:, None] > ranks)


def test_no_mask_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected masks to hold at least one mask"):
        mk.connectivity([])


@given(chains())
def test_lost_dependencies_are_the_allowed_pairs_that_are_not_reached(
    chain: tuple[Tensor, list[Tensor]],
) -> None:
    ranks, degrees = chain
    reach = mk.connectivity(mk.degree_masks(ranks, degrees, ranks))
    each = range(len(ranks))
    expected = [(i, j) for i in each for j in each if ranks[i] > ranks[j] and not reach[i, j]]
    assert mk.lost_dependencies(reach, ranks) == expected


def test_a_thousand_features_and_two_thousand_units() -> None:
    made = MADE(1000, hidden_features=(1000, 1000))
    assert torch.equal(made.reach(), made.allowed)
    assert all(torch.equal(d, d.sort().values) for d in made.degrees)


# ---------------------------------------------------------------------- warnings

# Constructors to their arguments and the number of dependencies that are lost (by hand).
CHAIN = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
NARROW = {
    # Degrees 2 and 3: feature 1 finds no unit that it may read.
    "two units": ({"features": 4, "hidden_features": (2,)}, 1),
    # One unit of degree 4: only the last feature reads anything.
    "one unit": ({"features": 5, "hidden_features": (1,)}, 6),
    "one unit under context": ({"features": 5, "context": 3, "hidden_features": (1,)}, 6),
    "one narrow layer of two": ({"features": 4, "hidden_features": (9, 2)}, 1),
    "residual": ({"features": 4, "hidden_features": (2, 9), "residual": True}, 1),
    "three parameters": ({"features": 4, "hidden_features": (2,), "parameters": 3}, 1),
    "graph": ({"features": 3, "hidden_features": (1,), "adjacency": CHAIN}, 1),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "lost"), NARROW.values(), ids=NARROW)
def test_the_warning_counts_and_names_what_is_lost(arguments: dict[str, Any], lost: int) -> None:
    with pytest.warns(DependencyWarning, match=rf"too narrow .*: {lost} of \d+ dep") as caught:
        made = MADE(**arguments)
    assert len(caught) == 1
    message = str(caught[0].message)
    missing = mk.lost_dependencies(made.reach(), made.ranks, made.allowed)
    assert len(missing) == lost
    assert f"feature {missing[0][0]} on {missing[0][1]}" in message
    assert "direct=True" in message
    assert caught[0].filename == __file__  # it points at the caller's line


@pytest.mark.parametrize("name", [name for name in NARROW if name != "graph"])
def test_the_width_that_the_warning_names_is_enough(name: str) -> None:
    arguments = dict(NARROW[name][0])
    with pytest.warns(DependencyWarning) as caught:
        MADE(**arguments)
    [enough] = re.findall(r"layers of at least (\d+) units", str(caught[0].message))
    layers = len(arguments["hidden_features"])
    MADE(**{**arguments, "hidden_features": (int(enough),) * layers})  # warnings are errors
    # One less is too few, but for the units that a context would have for itself.
    spare = int("context" in arguments)
    with pytest.warns(DependencyWarning):
        MADE(**{**arguments, "hidden_features": (int(enough) - spare - 1,) * layers})


@pytest.mark.parametrize("arguments", [a for a, _ in NARROW.values()], ids=NARROW)
def test_direct_connections_restore_what_is_lost(arguments: dict[str, Any]) -> None:
    made = MADE(**arguments, direct=True)
    assert torch.equal(made.reach(), made.allowed)


def test_no_hidden_layer_loses_nothing() -> None:
    made = MADE(6, hidden_features=())
    assert torch.equal(made.reach(), made.allowed)


# ---------------------------------------------------------------------- graphs


def longest_path(adjacency: Sequence[Sequence[int]], feature: int) -> int:
    features = len(adjacency)
    parents = [j for j in range(features) if adjacency[feature][j]]
    return max((1 + longest_path(adjacency, j) for j in parents), default=0)


@given(st.integers(1, 7).flatmap(graphs))
def test_levels_are_the_longest_paths(adjacency: list[list[int]]) -> None:
    levels = mk.adjacency_levels(torch.tensor(adjacency).bool())
    assert levels.tolist() == [longest_path(adjacency, i) for i in range(len(adjacency))]


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_a_cycle_is_named(rows: list[list[bool]]) -> None:
    adjacency = torch.tensor(rows)
    paths = torch.linalg.matrix_power(adjacency.double(), len(rows))
    assume(bool(paths.any()))  # a path of as many steps as there are features: a cycle
    with pytest.raises(ValueError, match="Expected adjacency to have no cycle") as caught:
        mk.adjacency_levels(adjacency)
    [named] = re.findall(r"(\d+(?: -> \d+)+)", str(caught.value))
    cycle = [int(feature) for feature in named.split(" -> ")]
    assert cycle[0] == cycle[-1]
    assert len(set(cycle)) == len(cycle) - 1
    assert all(rows[i][j] for i, j in itertools.pairwise(cycle))


@st.composite
def graphs_and_widths(draw: st.DrawFn) -> tuple[Tensor, int, list[int]]:
    features, context = draw(st.integers(1, 6)), draw(st.integers(0, 2))
    graph = draw(graphs(features, context))
    widths = draw(st.lists(st.integers(1, 10), max_size=3))
    return mk.check_adjacency(graph, features, context), features, widths


@given(graphs_and_widths())
def test_ancestor_masks_connect_nothing_that_the_graph_does_not(
    case: tuple[Tensor, int, list[int]],
) -> None:
    adjacency, features, widths = case
    columns = torch.arange(adjacency.shape[1])
    masks, degrees = mk.ancestor_masks(adjacency, columns, widths, torch.arange(features))
    assert [len(d) for d in degrees] == widths
    reach = mk.connectivity(masks)
    assert not (reach & ~adjacency).any()
    distinct = len({tuple(row) for row in adjacency.tolist() if any(row)})
    if all(width >= distinct for width in widths):
        assert torch.equal(reach, adjacency)
    # A unit's degree is one more than the highest level it may read.
    levels = mk.adjacency_levels(adjacency[:, :features])
    of_column = torch.cat([levels + 1, torch.zeros(adjacency.shape[1] - features).long()])
    for depth, degree in enumerate(degrees, start=1):
        reads = mk.connectivity(masks[:depth])
        assert bool((torch.where(reads, of_column, 0).amax(dim=1) <= degree).all())
        assert degree.tolist() == sorted(degree.tolist())


@pytest.mark.parametrize("widths", [(), (8,), (5, 9), (3, 2)])
def test_for_a_full_order_the_rule_of_graphs_is_that_of_degrees(widths: tuple[int, ...]) -> None:
    ranks = torch.tensor([2, 0, 4, 1, 3])
    adjacency = ranks[:, None] > ranks
    each = torch.arange(5)
    masks, degrees = mk.ancestor_masks(adjacency, each, widths, each)
    of_order = [mk.hidden_degrees(width, 5) for width in widths]
    expected = mk.degree_masks(ranks, of_order, ranks)
    for mask, other in zip(masks, expected, strict=True):
        assert torch.equal(mask, other)
    for degree, other in zip(degrees, of_order, strict=True):
        assert torch.equal(degree, other)


BAD_GRAPHS = {
    "not square": ([[0, 0], [1, 0], [1, 1]], r"of shape \(3, 3\) or \(3, 5\); got \(3, 2\)"),
    "one column of context": ([[0] * 4] * 3, r"of shape \(3, 3\) or \(3, 5\); got \(3, 4\)"),
    "weights": ([[0, 0, 0], [2, 0, 0], [0, 0, 0]], r"to hold only 0 and 1"),
    "not a number": ([[0, 0, 0], [float("nan"), 0, 0], [0, 0, 0]], "to hold only 0 and"),
    "ragged": ([[0], [1, 0], [1, 1, 0]], r"of shape"),
    "text": ("natural", "of shape"),
    "a loop": ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], r"to have no cycle; got one: feature 1 -> 1"),
}


@pytest.mark.parametrize(("adjacency", "message"), BAD_GRAPHS.values(), ids=BAD_GRAPHS)
def test_bad_graphs(adjacency: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected adjacency {message}"):
        MADE(3, context=2, adjacency=adjacency)


def test_an_order_beside_a_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected order to be left out when adjacency is given"):
        MADE(3, order="reversed", adjacency=torch.zeros(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MADE(3, order="natural", adjacency=torch.zeros(3, 3))
