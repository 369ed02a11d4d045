"""Missing values: which are observed, and orders that put the observed features first.

In an order that puts the observed features first, their joint probability is a product of terms of
the model, and the rest need not be known: the marginal is exact.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from made_flows._checks import check_batch, check_event, expect_type
from made_flows._torch import has_concrete_values, has_finite_sum
from made_flows.distributions._protocols import Schedule
from made_flows.nn import reordering
from made_flows.nn.made import MADE
from made_flows.univariate.heads import Head

_ADVICE = "If NaN stands for a missing value, use a model made with orders='all', which takes it"


def advised(error: ValueError, x: Tensor) -> ValueError:
    """Add to an error about values, if there is NaN among them, which models take that."""
    return ValueError(f"{error}. {_ADVICE}") if bool(torch.isnan(x).any()) else error


def find_observed(
    value: Tensor, observed: Tensor | None, *, nan: bool, drawn: bool = False
) -> Tensor | None:
    """Return which values are observed, broadcast against them; None if all are.

    Args:
        value: (..., D).
        observed: boolean (..., D), if it is given.
        nan: whether, without it, NaN stands for a missing value.
        drawn: whether orders are drawn for a batch, and not for each of its rows: those that NaN
            may need would take long where the values cannot be read, and are left out.

    Raises:
        TypeError: for a mask that is no boolean tensor.
        ValueError: for a mask of another shape.
    """
    if observed is not None:
        mask = check_event(observed, "observed", value.shape[-1])
        expect_type(mask.dtype is torch.bool, "observed", "to be of dtype torch.bool", mask.dtype)
        check_batch(value=value, observed=mask)
        return None if has_concrete_values(mask) and bool(mask.all()) else mask
    if not nan or not value.is_floating_point():
        return None
    if not has_concrete_values(value):  # a compiled or traced model may meet NaN in a later call
        return None if drawn else ~torch.isnan(value)
    if has_finite_sum(value):
        return None
    missing = torch.isnan(value)
    return ~missing if bool(missing.any()) else None


def fill(head: Head, value: Tensor, observed: Tensor) -> Tensor:
    """Put a value of the support where values are missing: nothing may depend on it."""
    filler = torch.as_tensor(head.filler, dtype=value.dtype, device=value.device)
    return torch.where(observed, value, filler)


def observed_first(places: Tensor, observed: Tensor) -> Tensor:
    """Order features (..., D) so that the observed ones come first, both kinds by their places.

    Args:
        places: of the features among one another: integers below D, or numbers below one.
        observed: boolean, (..., D).
    """
    later = 1 if places.is_floating_point() else places.shape[-1]
    return (places + later * (~observed).to(places.dtype)).argsort(dim=-1)


def check_answerable(made: MADE, observed: Tensor) -> None:
    """Refuse observed features that depend on missing ones, in an order that is not to change.

    Raises:
        ValueError: naming the first feature that is in the way.
    """
    if not has_concrete_values(observed):
        return
    rows = observed.reshape(-1, made.features)
    allowed = made.allowed.to(torch.float32)
    wrong = rows & ((~rows).to(torch.float32) @ allowed.t() > 0)
    if not bool(wrong.any()):
        return
    row, feature = wrong.nonzero()[0].tolist()
    earlier = int((~rows[row] & made.allowed[feature]).nonzero()[0])
    where = f" in row {row}" if observed.dim() > 1 else ""
    raise ValueError(
        "Expected the observed features to come before the missing ones in the model's order (for "
        f"a graph: with all their parents); got feature {earlier} missing{where}, on which the "
        f"observed feature {feature} depends. A model made with orders='all' has no such limit"
    )


def outputs_for(
    made: MADE,
    x: Tensor,
    context: Tensor | None,
    observed: Tensor,
    schedule: Schedule | None,
    *,
    fresh: bool = False,
) -> Tensor:
    """Compute parameters (..., D, K) under orders that put each row's observed ones first.

    Observed features keep their relative order, and so do the missing ones, which follow. A
    network that is not trained on all orders keeps its own, which has to put them first.

    Args:
        made: the network.
        x: what the network reads, (..., inputs); anything finite where values are missing.
        context: (..., C) or None.
        observed: (..., D).
        schedule: the orders and masks that are trained, None for those of the network.
        fresh: whether relative orders (and degrees, where they are trained) are drawn anew.
    """
    if schedule is None or not schedule.any_order:
        check_answerable(made, observed)
        return cast(Tensor, made(x, context))
    observed = observed.to(made.ranks.device)
    places, degrees = made.ranks, None
    if fresh:
        places = torch.rand(observed.shape, device="cpu").to(observed.device)
        degrees = schedule.draw_degrees()
    return cast(Tensor, made(x, context, observed_first(places, observed), degrees))


def network_for(made: MADE, observed: Tensor) -> tuple[MADE, int]:
    """Put the observed features (D,) first: the network in that order, and their number.

    For a graph, in which the observed have all their parents: with levels that put them first.
    """
    last = made.ranks.max() + 1
    places = made.ranks + last * (~observed).to(made.ranks.dtype)
    ranks = torch.unique(places, return_inverse=True)[1]
    known = len(torch.unique(places[observed]))
    if torch.equal(ranks, made.ranks):
        return made, known
    return reordering.view(made, ranks), known
