"""Arguments that are none: every public function of nn says what it expected, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import made_flows as mf
from made_flows.nn import masks as mk

X = torch.zeros(4, 3)
GRAPH = torch.zeros(3, 3)


def _made(**options: Any) -> mf.MADE:
    return mf.MADE(3, **{"hidden_features": (8, 8), **options})


def _on_meta(make: Callable[[], Any]) -> None:
    with torch.device("meta"):
        make()


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "residual as a word": (lambda: _made(residual="no"), TypeError,
                           "Expected residual to be True or False; got str 'no'"),
    "residual as a number": (lambda: _made(residual=1), TypeError, "Expected residual to be True"),
    "direct as a word": (lambda: _made(direct="false"), TypeError,
                         "Expected direct to be True, False or 'first'; got str 'false'"),
    "a device without values": (lambda: _on_meta(_made), ValueError,
                                "Expected torch's default device to hold values"),
    "categories on such a device": (lambda: _on_meta(lambda: mf.CategoricalMADE(3, categories=2)),
                                    ValueError, "default device to hold values"),
    "no direct": (lambda: _made(direct=None), TypeError,
                  "Expected direct to be True, False or 'first'"),
    "mask weights as a number": (lambda: _made(mask_weights=1), TypeError,
                                 "Expected mask_weights to be True, False or 'order'"),
    "mask weights of a tensor": (lambda: _made(mask_weights=torch.zeros(2)), TypeError,
                                 "Expected mask_weights to be True, False or 'order'"),
    "unknown mask weights": (lambda: _made(mask_weights="all"), ValueError,
                             "Expected mask_weights to be True, False or 'order'; got 'all'"),
    "a seed": (lambda: _made(generator=3), TypeError,
               "Expected generator to be a torch.Generator or None; got int 3"),
    "degrees of a graph": (lambda: _made(adjacency=GRAPH, degrees="random"), ValueError,
                           "Expected degrees to be left out when adjacency is given; got 'random'"),
    "a seed to draw by": (lambda: _made().resample_masks(3), TypeError, "Expected generator"),
    "draw an order, no": (lambda: _made().resample_masks(order="no"), TypeError,
                          "Expected order to be True or False; got str 'no'"),
    "a list to evaluate": (lambda: _made().evaluate([0, 0, 0]), TypeError,
                           "Expected x to be a torch.Tensor; got list"),
    "two columns to evaluate": (lambda: _made().evaluate(torch.zeros(4, 2)), ValueError,
                                r"Expected x of shape \(..., 3\); got \(4, 2\)"),
    "a context to evaluate": (lambda: _made().evaluate(X, X), ValueError, "Expected no context"),
    "words as degrees": (lambda: _made()(X, degrees=["a", "b"]), TypeError,
                         r"Expected degrees\[0\] to be integers; got str 'a'"),
    "nothing as degrees": (lambda: _made()(X, degrees=[None, None]), TypeError,
                           r"Expected degrees\[0\] to be integers; got NoneType"),
    "a list as order": (lambda: mk.ranks_from_order([1, 0]), TypeError,  # type: ignore[arg-type]
                        "Expected order to be a tensor"),
    "an order with gaps": (lambda: mk.ranks_from_order(torch.tensor([0, 0, 3])), ValueError,
                           r"Expected order to be a permutation of 0..2; got \[0, 0, 3\]"),
    "an order of fractions": (lambda: mk.ranks_from_order(torch.arange(3.0)), ValueError,
                              "Expected order to be a permutation"),
    "a number as order": (lambda: mk.ranks_from_order(torch.tensor(0)), ValueError,
                          r"Expected order to be of shape \(..., features\)"),
    "no ranks": (lambda: mk.order_from_ranks(None), TypeError,  # type: ignore[arg-type]
                 "Expected ranks to be a tensor"),
    "a seed for an order": (lambda: mk.make_order(3, "random", 3),  # type: ignore[arg-type]
                            TypeError, "Expected generator to be a torch.Generator"),
    "a seed for degrees": (lambda: mk.hidden_degrees(3, 3, rule="random",
                                                     generator=3),  # type: ignore[arg-type]
                           TypeError, "Expected generator to be a torch.Generator"),
    "a word as lowest degree": (lambda: mk.hidden_degrees(3, 3, lowest="x"),  # type: ignore
                                TypeError, "Expected lowest to be a non-negative integer"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_sparse_graph_is_a_graph() -> None:
    graph = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    made = _made(adjacency=graph.to_sparse())
    assert torch.equal(made.allowed, graph.bool())
