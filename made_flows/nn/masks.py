"""Orders, degrees and masks: pure functions of integers.

Three words, kept apart everywhere:

* an *order* lists features as they are generated: ``order[k]`` is the feature generated k-th;
* a *rank* is a feature's 0-based place in the order: ``ranks[i]`` is when feature i comes;
* the *degree* of a hidden unit is how many ranks it may read (0: the context alone).

Orders and ranks are argsorts of each other. A unit reads the input of rank r if degree > r, a
unit reads a unit if degree >= its degree, and the output of rank r reads a unit if r >= its
degree. The product of all masks is then strictly lower triangular in rank order
(Germain et al. 2015, equations 12-13).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows._checks import (
    check_generator,
    expect,
    expect_type,
    expect_word,
    holds_integers,
    non_negative_integer,
    positive_integer,
    shown,
    tensor_or_empty,
)
from made_flows._torch import has_concrete_values


def make_order(
    features: int, order: Any = "natural", generator: torch.Generator | None = None
) -> Tensor:
    """Make an order of features: ``order[k]`` is the feature generated k-th.

    Args:
        features: number of features D.
        order: ``"natural"`` (0, 1, ..., D-1), ``"reversed"``, ``"random"``, or the permutation
            itself as a sequence, array or tensor of D integers.
        generator: source of randomness for ``"random"``; torch's global one by default.

    Raises:
        ValueError: if the order is neither a known name nor a permutation of 0..D-1.

    Example:
        >>> make_order(4, "reversed")
        tensor([3, 2, 1, 0])
    """
    features = positive_integer(features, "features")
    check_generator(generator)
    if isinstance(order, str):
        if order == "natural":
            return torch.arange(features)
        if order == "reversed":
            return torch.arange(features).flip(0)
        if order == "random":
            return torch.randperm(features, generator=generator)
        names = "'natural', 'reversed', 'random' or a permutation"
        raise ValueError(f"Expected order to be {names}; got {shown(order)}")
    given = tensor_or_empty(order).cpu()
    valid = given.shape == (features,) and _is_permutation(given)
    expect(valid, "order", f"to be a permutation of 0..{features - 1}", shown(order))
    return given.long().clone()


def order_name(order: Sequence[int]) -> str | None:
    """Return the name of an order, ``"natural"`` or ``"reversed"``; None for another.

    Example:
        >>> order_name([2, 1, 0])
        'reversed'
    """
    natural = list(range(len(order)))
    named = {"natural": natural, "reversed": natural[::-1]}
    return next((name for name, each in named.items() if each == [*order]), None)


def shortened(order: list[int]) -> str:
    """Write an order in a line: of a long one its first features."""
    return str(order) if len(order) <= 12 else f"{str(order[:6])[:-1]}, ...]"


def _is_permutation(order: Tensor) -> bool:
    places = torch.arange(len(order), device=order.device)
    return holds_integers(order) and torch.equal(order.long().sort().values, places)


def ranks_from_order(order: Tensor) -> Tensor:
    """Compute the rank of every feature: ``ranks[order[k]] = k``.

    Args:
        order: (features,), or (..., features) for several orders.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for a tensor that is no permutation.

    Example:
        >>> ranks_from_order(torch.tensor([2, 0, 1]))
        tensor([1, 2, 0])
    """
    _expect_features(order, "order")
    if order.dim() == 1 and has_concrete_values(order):
        expected = f"to be a permutation of 0..{len(order) - 1}"
        expect(_is_permutation(order), "order", expected, order.tolist())
    return torch.argsort(order)


def order_from_ranks(ranks: Tensor) -> Tensor:
    """Compute the order that gives these ranks; features of equal rank stay in feature order.

    Args:
        ranks: (features,), or (..., features) for several orders.

    Raises:
        TypeError: for anything but a tensor.

    Example:
        >>> order_from_ranks(torch.tensor([1, 2, 0]))
        tensor([2, 0, 1])
    """
    _expect_features(ranks, "ranks")
    return torch.argsort(ranks, stable=True)


def _expect_features(given: Any, argument: str) -> None:
    expect_type(isinstance(given, Tensor), argument, "to be a tensor of (..., features)", given)
    expect(given.dim() > 0, argument, "to be of shape (..., features)", tuple(given.shape))


def check_rule(rule: Any) -> None:
    """Refuse what is no rule of :func:`hidden_degrees`."""
    expect_word(rule, ("even", "random"), "degrees", "to be 'even' or 'random'")


def hidden_degrees(
    width: int,
    features: int,
    *,
    lowest: int = 1,
    rule: str = "even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the degrees of one hidden layer, sorted, between ``lowest`` and D-1.

    ``"even"`` spreads them evenly: every degree is present where the width allows, and the
    highest, which the last feature needs to see all others, always is. ``"random"`` draws them
    uniformly (Germain et al. 2015, section 4.2).

    Args:
        width: number of hidden units H.
        features: number of features D.
        lowest: the lowest degree: 0 makes units that read the context alone; for random degrees,
            the lowest degree of the layer before, so that no unit is left without inputs.
        rule: ``"even"`` or ``"random"``.
        generator: source of randomness for ``"random"``.

    Raises:
        ValueError: for an unknown rule or sizes below 1.

    Example:
        >>> hidden_degrees(6, 4)
        tensor([1, 1, 2, 2, 3, 3])
        >>> hidden_degrees(3, 10)
        tensor([3, 6, 9])
    """
    width = positive_integer(width, "width")
    features = positive_integer(features, "features")
    check_rule(rule)
    check_generator(generator)
    highest = features - 1
    lowest = min(non_negative_integer(lowest, "lowest"), highest)
    count = highest - lowest + 1
    if rule == "random":
        drawn = torch.randint(lowest, highest + 1, (width,), generator=generator)
        return drawn.sort().values
    # Counted down from the highest, so that a narrow layer keeps the highest.
    return highest - (torch.arange(width) * count // width).flip(0)


def degree_masks(
    input_ranks: Tensor, degrees: Sequence[Tensor], output_ranks: Tensor
) -> list[Tensor]:
    """Make the masks of a chain of layers, each (units, inputs), True where a weight lives.

    Args:
        input_ranks: rank of the feature that each input column belongs to.
        degrees: degrees of the units of each hidden layer.
        output_ranks: rank of the feature that each output row belongs to.

    Returns:
        One mask per hidden layer and one for the output; with no hidden layer, the one mask of
        a direct connection (strictly lower triangular in rank order).

    Example:
        >>> for mask in degree_masks(torch.arange(2), [torch.tensor([1, 1])], torch.arange(2)):
        ...     print(mask.int().tolist())
        [[1, 0], [1, 0]]
        [[0, 0], [1, 1]]
    """
    if not degrees:
        return [output_ranks[:, None] > input_ranks]
    masks = [degrees[0][:, None] > input_ranks]
    masks += [after[:, None] >= before for before, after in pairwise(degrees)]
    return [*masks, output_ranks[:, None] >= degrees[-1]]


def connectivity(masks: Sequence[Tensor]) -> Tensor:
    """Find which output can depend on which input through a chain of masks: their product.

    Args:
        masks: masks of shape (units, inputs), first layer first.

    Returns:
        A boolean matrix of shape (outputs, inputs).
    """
    expect(len(masks) > 0, "masks", "to hold at least one mask", len(masks))
    # By whether entries are zero: numbers of either sign, set by hand, must not cancel.
    reach = (masks[0] != 0).float()
    for mask in masks[1:]:
        # Counts of paths grow without bound with depth; only whether there is one matters.
        reach = (((mask != 0).float() @ reach) > 0).float()
    return reach > 0


def lost_dependencies(
    reach: Tensor, ranks: Tensor, allowed: Tensor | None = None
) -> list[tuple[int, int]]:
    """List the pairs (feature, earlier feature) that an order allows and masks do not connect.

    Args:
        reach: boolean (features, features), whether feature i's parameters can depend on feature j.
        ranks: rank of every feature.
        allowed: boolean (features, features); by default every feature of lower rank.

    Example:
        >>> reach = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]]).bool()
        >>> lost_dependencies(reach, torch.arange(3))
        [(2, 0)]
    """
    if allowed is None:
        allowed = ranks[:, None] > ranks
    pairs: list[list[int]] = (allowed & ~reach).nonzero().tolist()
    return [(i, j) for i, j in pairs]


def adjacency_levels(adjacency: Tensor) -> Tensor:
    """Find the topological level of every feature of a directed acyclic graph.

    Args:
        adjacency: boolean (features, features); ``adjacency[i, j]`` says that feature i may
            depend on feature j.

    Returns:
        Integers of shape (features,): 0 for features without parents, else one more than the
        highest level among the parents. Features of one level do not depend on one another.

    Raises:
        ValueError: if there is a cycle; the message names one.

    Example:
        >>> adjacency_levels(torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]]).bool())
        tensor([0, 1, 1])
    """
    parents = adjacency.cpu().ne(0).numpy()
    features = len(parents)
    levels = np.full(features, -1, dtype=np.int64)
    level = 0
    while (levels < 0).any():
        ready = (levels < 0) & ~(parents & (levels < 0)).any(axis=1)
        if not ready.any():
            cycle = " -> ".join(str(i) for i in _find_cycle(parents, levels < 0))
            raise ValueError(
                "Expected adjacency to have no cycle; got one: feature "
                f"{cycle} (each may depend on the next)"
            )
        levels[ready] = level
        level += 1
    return torch.from_numpy(levels)


def _find_cycle(parents: np.ndarray[Any, Any], open_: np.ndarray[Any, Any]) -> list[int]:
    """Find a cycle among the features that are still open: each of them has an open parent."""
    path = [int(np.flatnonzero(open_)[0])]
    while True:
        parent = int(np.flatnonzero(parents[path[-1]] & open_)[0])
        if parent in path:
            return [*path[path.index(parent) :], parent]
        path.append(parent)


def ancestor_masks(
    adjacency: Tensor, input_columns: Tensor, hidden: Sequence[int], output_features: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Make masks of a chain of layers that connect feature i to column j where a graph says so.

    Every hidden unit stands for a set of columns that it may read: one of the distinct parent
    sets of the graph, dealt out evenly and sorted by degree. A unit reads a unit whose set is
    contained in its own, and an output reads the units whose set is contained in its feature's
    parents; for a full order this is the rule of :func:`degree_masks`.

    Args:
        adjacency: boolean (features, features + context), acyclic in its features.
        input_columns: for each input of the network, the column of ``adjacency`` it belongs to.
        hidden: widths of the hidden layers.
        output_features: the feature that each output row belongs to.

    Returns:
        The masks, and the degrees of the hidden layers (one more than the highest level that a
        unit may read; 0 for units that read the context alone).
    """
    features = len(adjacency)
    levels = torch.full((adjacency.shape[1],), -1)
    levels[:features] = adjacency_levels(adjacency[:, :features])
    sets = torch.unique(adjacency, dim=0)
    useful = sets.any(dim=1)
    sets = sets[useful] if bool(useful.any()) else sets
    degrees_of_sets = torch.where(sets, levels + 1, 0).amax(dim=1)
    by_degree = torch.argsort(degrees_of_sets, stable=True)
    sets, degrees_of_sets = sets[by_degree], degrees_of_sets[by_degree]

    # Dealt from the end, so that a narrow layer keeps the sets of the highest degree.
    dealt = [len(sets) - 1 - (torch.arange(h) * len(sets) // h).flip(0) for h in hidden]
    layers = [sets[index] for index in dealt]
    parents = adjacency[output_features]
    if not layers:
        return [parents[:, input_columns]], []
    masks = [layers[0][:, input_columns]]
    masks += [_contains(after, before) for before, after in pairwise(layers)]
    return [*masks, _contains(parents, layers[-1])], [degrees_of_sets[index] for index in dealt]


def _contains(large: Tensor, small: Tensor) -> Tensor:
    """Compare boolean rows as sets: entry [l, s] says whether set l contains set s."""
    return (~large).float() @ small.float().T == 0


def check_adjacency(adjacency: Any, features: int, context: int) -> Tensor:
    """Check an adjacency, and return it as a boolean matrix (features, features + context).

    Args:
        adjacency: (features, features), where every feature depends on the whole context, or
            (features, features + context) with the context's columns last.
        features: number of features D.
        context: number of context variables C.
    """
    given = tensor_or_empty(adjacency).cpu()
    given = given.to_dense() if given.layout != torch.strided else given
    shapes = sorted({(features, features), (features, features + context)})
    expected = "of shape " + " or ".join(map(str, shapes))
    expect(tuple(given.shape) in shapes, "adjacency", expected, tuple(given.shape))
    valid = bool(((given == 0) | (given == 1)).all())
    expect(valid, "adjacency", "to hold only 0 and 1", "other values")
    missing = features + context - given.shape[1]
    return torch.cat([given.bool(), torch.ones(features, missing, dtype=torch.bool)], dim=1)
