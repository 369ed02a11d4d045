"""The same weights under another order and other degrees than a network's own.

They serve one call, as its masks; a second network that shares the weights; or the network itself
from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from made_flows._cache import TensorCache
from made_flows._checks import (
    LOST_ON_META,
    expect,
    expect_sequence,
    expect_type,
    holds_integers,
    tensor_or_empty,
)
from made_flows._torch import has_concrete_values, module_of_same_parts
from made_flows.nn import masks as mk
from made_flows.nn.connectivity import connect_in_order
from made_flows.nn.linear import mask_of, masked
from made_flows.nn.masked_mlp import MaskedMLP, Masks

Network = TypeVar("Network", bound=MaskedMLP)


def check_ranks(made: MaskedMLP, order: Any) -> Tensor:
    """Compute the ranks (..., D) of an order, or of one for each row, on the network's device."""
    expect(made.graph is None, "order", "to be left out for a network of a graph", order)
    if not isinstance(order, Tensor) or has_concrete_values(order):
        given = tensor_or_empty(order)
        if given.dim() > 1:
            _check_orders(given, made.features)
        else:
            given = mk.make_order(made.features, order)
        order = given
    return mk.ranks_from_order(order.to(made.ranks.device))


def _check_orders(orders: Tensor, features: int) -> None:
    expected = f"to be of shape (..., {features}), permutations of 0..{features - 1}"
    expect(orders.shape[-1] == features, "order", expected, tuple(orders.shape))
    expect(holds_integers(orders), "order", expected, orders.dtype)
    sorted_orders = orders.sort(dim=-1).values
    wrong = (sorted_orders != torch.arange(features, device=orders.device)).any(dim=-1)
    if bool(wrong.any()):
        row = wrong.nonzero()[0].tolist()
        got = orders[tuple(row)].tolist()
        expect(False, "order", expected, f"{got} in row {', '.join(map(str, row))}")


def check_degrees(made: MaskedMLP, degrees: Any) -> tuple[Tensor, ...]:
    """Check the degrees of every hidden layer and bring them to the network's device.

    Raises:
        ValueError: for another number of layers or units, for degrees out of range, and for
            ends of residual blocks whose degrees are not those of the stream.
        TypeError: for anything but a sequence of integer tensors.
    """
    expect(made.graph is None, "degrees", "to be left out for a network of a graph", degrees)
    expect_sequence(degrees, "degrees", "to be a sequence of tensors, one per hidden layer")
    hidden = made.shape.hidden
    expect(len(degrees) == len(hidden), "degrees", f"of {len(hidden)} layers", len(degrees))
    checked: list[Tensor] = []
    for layer, (given, width) in enumerate(zip(degrees, hidden, strict=True)):
        name = f"degrees[{layer}]"
        try:
            given = given if isinstance(given, Tensor) else torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            expect_type(False, name, "to be integers", given)
        expect_type(holds_integers(given), name, "to be integers", given.dtype)
        expect(given.shape == (width,), name, f"of shape ({width},)", tuple(given.shape))
        if has_concrete_values(given):
            valid = bool(((given >= 0) & (given < made.features)).all())
            highest = made.features - 1
            expect(valid, name, f"to be from 0 to {highest}", f"{int(given.min())} to "
                   f"{int(given.max())}")  # fmt: skip
            if made.adds_to_stream(layer):
                same = torch.equal(given.to(checked[0].device), checked[0])
                expect(same, name, "to equal degrees[0], as its units are the stream's", "others")
        checked.append(given.to(made.ranks.device))
    return tuple(checked)


def masks_of(made: MaskedMLP, ranks: Tensor, degrees: Sequence[Tensor] | None = None) -> Masks:
    """Make the masks of a network under other ranks, and other degrees where they are given.

    Of the weights' type, as a product with booleans converts them every time.

    Args:
        made: the network.
        ranks: rank of every feature, (..., D); masks have the same leading dimensions where they
            depend on it.
        degrees: degrees of every hidden layer; None for the network's own.
    """
    dtype = made.dtype
    inputs, outputs = ranks[..., made.input_features], ranks[..., made.output_features]
    direct = None
    if made.direct is not None or not made.shape.hidden:
        direct = _above(outputs, inputs, dtype)
        if made.shape.direct_first:
            direct = direct * made.shape.direct_outputs.to(direct)
    if not made.shape.hidden:
        return Masks((direct,), None)
    own = made.degrees if degrees is None else degrees
    first, last = _above(own[0], inputs, dtype), _above(outputs + 1, own[-1], dtype)
    inner: list[Tensor | None] = [None] * (len(own) - 1)
    if degrees is not None:
        inner = [_above(after + 1, before, dtype) for before, after in pairwise(degrees)]
    return Masks((first, *inner, last), direct)


_OWN: TensorCache[None] = TensorCache()
"""Of networks whose masks are those of their order."""


def expect_own_masks(made: MaskedMLP) -> None:
    """Refuse another order where masks were changed by hand: nothing says what they are in it.

    Raises:
        ValueError: naming the first layer whose mask does not follow from order and degrees.
    """
    masks = [mask_of(layer) for layer in made.every_layer()]
    if not all(map(has_concrete_values, [made.ranks, *masks])):
        return
    got = f"some on meta ({LOST_ON_META})"
    expect(not made.input_features.is_meta, "a network's buffers", "beside its weights", got)

    def compare() -> None:
        expected = masks_of(made, made.ranks, made.degrees).every()
        for index, (mask, right) in enumerate(zip(masks, expected, strict=True)):
            same = torch.equal(mask, cast(Tensor, right).to(mask))
            name = f"layers[{index}]" if index < len(made.layers) else "direct"
            wanted = "to follow from order and degrees, for another order to be asked for"
            expect(same, f"the mask of {name}", wanted, "one that was changed by hand")

    _OWN.get(None, [made.ranks, *made.degrees, *masks], compare)


def _above(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Make ones where the integer of a row is above that of a column, else zeros."""
    # Comparing takes ten times as long: booleans are slow to make and to convert.
    difference = rows.to(torch.float32).unsqueeze(-1) - columns.to(torch.float32).unsqueeze(-2)
    return difference.clamp(0, 1).to(dtype)


@torch.no_grad()
def resample(
    made: MaskedMLP, generator: torch.Generator | None, *, order: bool, degrees: bool
) -> None:
    """Draw a new order and new degrees of a network, in place."""
    expect(made.graph is None, "the network", "to have an order to draw anew", "a graph")
    if order:
        drawn = mk.make_order(made.features, "random", generator)
        made.ranks.copy_(mk.ranks_from_order(drawn))
    if degrees:
        connectivity = connect_in_order(
            made.shape, made.ranks.cpu(), "random", generator, shuffle=True
        )
        for old, new in zip(made.degrees, connectivity.degrees, strict=True):
            old.copy_(new)
    masks = masks_of(made, made.ranks, made.degrees).every()
    for layer, mask in zip(made.every_layer(), masks, strict=True):
        mask_of(layer).copy_(cast(Tensor, mask))


def view(made: Network, ranks: Tensor, degrees: Sequence[Tensor] | None = None) -> Network:
    """Make a network of the same weights, not copies, with ranks, degrees and masks of its own.

    For a graph, ranks may be any that put parents before their children; its masks stay.
    """
    other = module_of_same_parts(made)
    other._buffers["ranks"] = ranks
    if made.graph is not None:
        return other
    expect_own_masks(made)
    degrees = made.degrees if degrees is None else degrees
    for layer, layer_degrees in enumerate(degrees):
        other._buffers[f"degrees_{layer}"] = layer_degrees.clone()
    masks = masks_of(made, ranks, degrees)
    other._modules["layers"] = nn.ModuleList(  # a list, which torch.compile knows how to resume
        [
            masked(layer, cast(Tensor, mask))
            for layer, mask in zip(made.layers, masks.layers, strict=True)
        ]
    )
    if made.direct is not None:
        other._modules["direct"] = masked(made.direct, cast(Tensor, masks.direct))
    return other
