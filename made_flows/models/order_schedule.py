"""Training over orders and masks: under which of them each batch is scored."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, cast

import torch
from torch import Tensor

from made_flows._checks import check_batch, expect, expect_type, positive_integer, shown
from made_flows._constants import WithConstants
from made_flows._torch import as_rows, module_of_same_parts
from made_flows.nn import masks as mk
from made_flows.nn.connectivity import draw_degrees
from made_flows.nn.made import MADE


class OrderSchedule(WithConstants):
    r"""Orders of the features and degrees of the hidden units, drawn or taken in turn.

    With fresh orders a network learns, of every order at once, the conditionals

    .. math:: \max_\theta\; \mathbb E_{o} \sum_k \log p_\theta(x_{o_k} \mid x_{o_{<k}})

    Args:
        made: the network that is trained.
        orders: None for the network's own order; ``"all"`` to draw a fresh one every time; a
            number K of fixed orders, drawn now and taken in turn; or K orders, (K, features).
        masks: None for the network's own degrees; ``"all"`` to draw fresh ones every time; or a
            number K of fixed sets of degrees.
        per_batch: how many orders a batch is cut into; ``"row"`` for an order for each row.
        generator: source of randomness for what is drawn now. What is drawn in training comes
            from torch's global generator.

    Raises:
        ValueError: for a network of a graph, which has no order; for other words, and orders
            that are no permutations.
        TypeError: for arguments of another type.

    References:
        Uria, Murray, Larochelle 2014, *A Deep and Tractable Density Estimator*, equation 7;
        Germain et al. 2015, sections 4.2-4.3.
    """

    orders: Tensor | None
    degrees: Tensor | None
    turn: Tensor
    resting = False

    def __init__(
        self,
        made: MADE,
        orders: Any = None,
        masks: Literal["all"] | int | None = None,
        per_batch: int | Literal["row"] = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("orders", orders), ("masks", masks)):
            free = value is None or made.graph is None
            expect(free, name, "to be left out for a network of a graph", shown(value))
        words = f"to be 'all', a number of them or orders of shape (K, {made.features})"
        expect(not isinstance(orders, str) or orders == "all", "orders", words, shown(orders))
        self.any_order, self.any_degrees = isinstance(orders, str), isinstance(masks, str)
        of_masks = "to be 'all' or a number of sets of degrees"
        expect(not self.any_degrees or masks == "all", "masks", of_masks, shown(masks))
        row = isinstance(per_batch, str) and per_batch == "row"
        known = row or isinstance(per_batch, Integral)
        expect_type(known, "orders_per_batch", "to be an integer or 'row'", per_batch)
        count = None if row else positive_integer(per_batch, "orders_per_batch")
        self.per_batch: int | Literal["row"] = count or "row"
        self.shape = made.shape
        # A tensor: checkpoints of training keep it, and a compiled step reads it anew.
        self.register_buffer("turn", torch.zeros((), dtype=torch.long), persistent=False)
        fixed = None
        if orders is not None and not self.any_order:
            fixed = fixed_orders(made.features, orders, generator, words)
        self.register_buffer("orders", fixed)
        drawn = None
        counted = isinstance(masks, Integral)
        if counted:
            sets = positive_integer(masks, "masks")
            drawn = torch.stack([self._fresh_degrees(generator) for _ in range(sets)])
        else:
            expect_type(masks is None or self.any_degrees, "masks", of_masks, masks)
        self.register_buffer("degrees", drawn)

    @property
    def draws(self) -> bool:
        """Whether scores are under orders and masks drawn now: in training."""
        return self.training and not self.resting

    def at_rest(self) -> OrderSchedule:
        """Return a view, not a copy, that knows what is trained and draws nothing in training."""
        view = module_of_same_parts(self)
        view.resting = True
        return view

    def _fresh_degrees(self, generator: torch.Generator | None = None) -> Tensor:
        """Return degrees of all hidden layers, one after the other."""
        # In random order, as a unit's place should not say how many ranks it may read.
        layers = draw_degrees(self.shape, "random", generator, shuffle=True)
        return torch.cat(layers) if layers else torch.empty(0, dtype=torch.long)

    def draw_orders(self, count: int) -> Tensor | None:
        """Return the next orders (count, features), None for the network's own."""
        if self.any_order:
            return torch.rand(count, self.shape.features, device="cpu").argsort(dim=-1)
        if self.orders is None:
            return None
        return self.orders[
            (self.turn + torch.arange(count, device=self.turn.device)) % len(self.orders)
        ]

    def draw_degrees(
        self, generator: torch.Generator | None = None, *, turn: int | None = None
    ) -> Sequence[Tensor] | None:
        """Return the next degrees of every hidden layer, None for the network's own."""
        if self.any_degrees:
            drawn = self._fresh_degrees(generator)
        elif self.degrees is None:
            return None
        else:
            at = self.turn if turn is None else torch.full_like(self.turn, turn)
            # Not by an index: of a tensor on a device that would wait for it.
            drawn = self.degrees.index_select(0, (at % len(self.degrees)).reshape(1))[0]
        return torch.split(drawn, list(self.shape.hidden))

    def outputs(self, made: MADE, x: Tensor, context: Tensor | None) -> Tensor:
        """Compute the parameters (..., features, K) of a batch under the next orders and masks."""
        if self.per_batch == 1:
            orders, degrees = self.draw_orders(1), self.draw_degrees()
            self.turn += 1
            parameters: Tensor = made(x, context, None if orders is None else orders[0], degrees)
            return parameters
        batch = check_batch(x=x, context=context)
        rows, contexts = as_rows(x, batch), as_rows(context, batch)
        parts = len(rows) if self.per_batch == "row" else min(self.per_batch, max(len(rows), 1))
        orders, degrees = self.draw_orders(parts), self.draw_degrees()
        self.turn += max(parts, 1)
        if orders is not None and parts == 1:
            orders = orders[0]
        elif orders is not None and self.per_batch != "row":
            # As many rows for each order: the first ones again, to fill the last part up.
            filled = torch.arange(-(-len(rows) // parts) * parts, device=rows.device) % len(rows)
            rows = rows[filled].unflatten(0, (parts, -1))
            contexts = None if contexts is None else contexts[filled].unflatten(0, (parts, -1))
            orders = orders.unsqueeze(1)
        output = cast(Tensor, made(rows, contexts, orders, degrees)).flatten(0, -3)
        return output[: batch.numel()].reshape(*batch, *output.shape[1:])

    def extra_repr(self) -> str:
        orders = "'all'" if self.any_order else None if self.orders is None else len(self.orders)
        masks = "'all'" if self.any_degrees else None if self.degrees is None else len(self.degrees)
        parts = [f"{n}={v}" for n, v in (("orders", orders), ("masks", masks)) if v is not None]
        return ", ".join([*parts, f"per_batch={self.per_batch!r}"])


def fixed_orders(
    features: int, orders: Any, generator: torch.Generator | None, wanted: str
) -> Tensor:
    """Return K orders, (K, features), checked or drawn."""
    if isinstance(orders, Integral):
        count = positive_integer(orders, "orders")
        return torch.stack([mk.make_order(features, "random", generator) for _ in range(count)])
    several = isinstance(orders, (Sequence, Tensor)) and not isinstance(orders, str)
    several = (several or hasattr(orders, "__array__")) and getattr(orders, "ndim", 1) > 0
    expect_type(several, "orders", wanted, orders)
    expect(len(orders) > 0, "orders", "to hold at least one order", "none")
    return torch.stack([mk.make_order(features, order) for order in orders])
