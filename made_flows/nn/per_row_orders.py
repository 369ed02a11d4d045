"""One order for each row: a pass of a network in which no two rows need have the same masks.

Rows of one order share its masks: a few orders are a few passes or, where as many rows have each,
one pass of batched products. For many orders, masked weights of every row would take rows x units
x inputs numbers. But units of one degree read the same inputs of a row, whatever its order: those
of the lowest ranks. So inputs are masked and not weights, once for every degree, and products are
batched over degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from made_flows._checks import check_batch, check_broadcast
from made_flows._torch import (
    as_rows,
    exceeds,
    has_concrete_values,
    in_groups,
    is_untransformed,
)
from made_flows.nn.linear import MaskedLinear, RowMask, takes_mask
from made_flows.nn.masked_mlp import MaskedMLP, Masks
from made_flows.nn.reordering import masks_of

_CHUNK = 2**23
"""Numbers in the largest temporary tensor, about: larger ones leave the caches, and no faster."""

_STACK = 2**26
"""Numbers in the masks of several orders that are held at once, at most."""

_PASS = 30_000
"""Numbers that could be masked in the time that one more pass of a small network takes."""


def forward_row_orders(
    made: MaskedMLP,
    x: Tensor,
    context: Tensor | None,
    ranks: Tensor,
    degrees: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute the parameters of every feature, where every row has an order of its own.

    Args:
        made: the network.
        x: (..., inputs).
        context: (..., C) or None.
        ranks: (..., features), broadcast against x; (..., 1, features) for several rows of each
            order is a batched product per layer.
        degrees: other degrees of the hidden units, one tensor per layer.

    Returns:
        (..., features, K), of the shape that x, context and ranks broadcast to.
    """
    batch = check_batch(x=x, order=ranks, context=context)
    hidden = made.shape.hidden
    direct = 0 if made.direct is None else sum(made.inputs) * sum(made.outputs)
    # Numbers in the masks of one order, and those of a row where all have their own.
    masked = sum(hidden[:1] + hidden[-1:]) * made.features + direct
    per_row = 2 * min(made.features, max(hidden, default=1)) * made.features + direct
    whole = all(map(takes_mask, made.every_layer()))
    if whole and ranks.shape[-2] == 1 and ranks.numel() > made.features:
        orders = ranks.numel() // made.features
        if orders * masked <= min(_STACK, batch.numel() * per_row):
            masks = masks_of(made, ranks.squeeze(-2), degrees)
            stacked = Masks(tuple(map(_stacked, masks.layers)), _stacked(masks.direct))
            return made.compute(x, context, stacked, made.dropout)
    if is_untransformed(x) and is_untransformed(ranks) and batch.numel():
        distinct, group = torch.unique(ranks.reshape(-1, made.features), dim=0, return_inverse=True)
        if len(distinct) == 1:
            masks = masks_of(made, distinct[0], degrees)
            output = made.compute(x, context, masks, made.dropout)
            return output.expand(*batch, *output.shape[-2:])
        few = len(distinct) * (masked + _PASS) < batch.numel() * per_row + _PASS
        if few or not whole:
            group = group.reshape(ranks.shape[:-1]).expand(batch).reshape(-1)
            return _pass_per_order(made, x, context, distinct, group, batch, degrees)
    return made.compute(x, context, row_masks(made, ranks, degrees), made.dropout)


def _stacked(mask: Tensor | RowMask | None) -> Tensor | RowMask | None:
    """Let masks (..., outputs, inputs) apply to all rows (..., n, inputs) of their orders."""
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        return mask

    def apply(x: Tensor, layer: MaskedLinear) -> Tensor:
        if layer.weight.numel() > _PASS:
            # One by one: masked weights of one order stay in the caches.
            batch = check_broadcast(x=x.shape[:-2], order=mask.shape[:-2])
            rows = x.expand(*batch, *x.shape[-2:]).flatten(0, -3)
            masks = mask.expand(*batch, *mask.shape[-2:]).flatten(0, -3)
            each = [layer(*pair) for pair in zip(rows, masks, strict=True)]
            return torch.stack(each).reshape(*batch, x.shape[-2], -1)
        z = x @ (layer.weight * mask).transpose(-1, -2)
        offset = layer.offset(mask)
        if offset is not None:
            z = z + offset.unsqueeze(-2)
        return z if layer.bias is None else z + layer.bias

    return apply


def _pass_per_order(
    made: MaskedMLP,
    x: Tensor,
    context: Tensor | None,
    distinct: Tensor,
    group: Tensor,
    batch: torch.Size,
    degrees: Sequence[Tensor] | None,
) -> Tensor:
    rows, contexts = as_rows(x, batch), as_rows(context, batch)

    def compute(number: int, chosen: Tensor) -> Tensor:
        masks = masks_of(made, distinct[number], degrees)
        of_rows = None if contexts is None else contexts[chosen]
        return made.compute(rows[chosen], of_rows, masks, made.dropout)

    output = in_groups(group, compute)
    return output.reshape(*batch, *output.shape[1:])


def row_masks(made: MaskedMLP, ranks: Tensor, degrees: Sequence[Tensor] | None = None) -> Masks:
    """Make the masks of a call in which row n has ranks[n], where they depend on ranks."""
    inputs, outputs = ranks[..., made.input_features], ranks[..., made.output_features]
    reading = outputs
    if made.shape.direct_first:
        reached = made.shape.direct_outputs.squeeze(-1).to(ranks.device)
        reading = torch.where(reached, outputs, -1)  # the others read nothing directly
    direct = _direct_mask(inputs, reading)
    if not made.shape.hidden:
        return Masks((direct,), None)
    own = made.degrees if degrees is None else degrees
    inner: tuple[Tensor | RowMask | None, ...] = (None,) * (len(own) - 1)
    if degrees is not None:
        inner = masks_of(made, made.ranks, degrees).layers[1:-1]
    first = _first_mask(inputs, _Groups.of(own[0]))
    last = _last_mask(outputs, _Groups.of(own[-1]))
    return Masks((first, *inner, last), direct)


@dataclass(frozen=True)
class _Groups:
    """Hidden units grouped by degree.

    Args:
        degrees: the distinct degrees, (m,).
        units: the units of each, filled up with H, one more than the last unit: (m, width).
        places: where every unit stands in ``units``, flattened: (H,).
    """

    degrees: Tensor
    units: Tensor
    places: Tensor

    @staticmethod
    def of(degrees: Tensor) -> _Groups:
        if not has_concrete_values(degrees):  # how many are distinct cannot be known
            units = torch.arange(len(degrees), device=degrees.device)
            return _Groups(degrees, units.unsqueeze(-1), units)
        distinct, group, counts = torch.unique(degrees, return_inverse=True, return_counts=True)
        width, by_degree = int(counts.max()), torch.argsort(group, stable=True)
        starts = counts.cumsum(0) - counts
        within = torch.arange(len(degrees), device=degrees.device) - starts[group[by_degree]]
        places = torch.empty_like(group)
        places[by_degree] = group[by_degree] * width + within
        units = torch.full((len(distinct) * width,), len(degrees), device=degrees.device)
        units[places] = torch.arange(len(degrees), device=degrees.device)
        return _Groups(distinct, units.reshape(-1, width), places)


def _first_mask(inputs: Tensor, groups: _Groups) -> RowMask:
    """Let units of degree d read the inputs of rank below d."""
    degrees = groups.degrees[:, None, None]

    def apply(x: Tensor, layer: MaskedLinear) -> Tensor:
        weight = _grouped(layer.weight, groups)  # (m, width, inputs)
        of_mask = None if layer.mask_weight is None else _grouped(layer.mask_weight, groups)

        def product(values: Tensor, ranks: Tensor) -> Tensor:
            read = ranks < degrees  # (m, n, inputs)
            z = torch.where(read, values, 0.0) @ weight.transpose(1, 2)
            if of_mask is not None:
                z = z + read.to(values.dtype) @ of_mask.transpose(1, 2)
            return z.transpose(0, 1).flatten(1)[:, groups.places]

        return _in_chunks(product, x, inputs, len(degrees) * x.shape[-1], layer.bias)

    return apply


def _last_mask(outputs: Tensor, groups: _Groups) -> RowMask:
    """Let outputs of rank r read the units of degree up to r."""
    degrees = groups.degrees[:, None, None]

    def apply(x: Tensor, layer: MaskedLinear) -> Tensor:
        weight = _grouped(layer.weight.t(), groups)  # (m, width, outputs)
        of_mask = None
        if layer.mask_weight is not None:
            of_mask = _grouped(layer.mask_weight.t(), groups).sum(dim=1, keepdim=True)

        def product(values: Tensor, ranks: Tensor) -> Tensor:
            sent = _grouped(values.t(), groups).movedim(-1, 1) @ weight  # (m, n, outputs)
            if of_mask is not None:
                sent = sent + of_mask
            return torch.where(ranks >= degrees, sent, 0.0).sum(dim=0)

        return _in_chunks(product, x, outputs, len(degrees) * layer.out_features, layer.bias)

    return apply


def _direct_mask(inputs: Tensor, outputs: Tensor) -> RowMask:
    """Let outputs of rank r read the inputs of rank below r."""
    both = torch.cat([inputs, outputs], dim=-1)

    def apply(x: Tensor, layer: MaskedLinear) -> Tensor:
        def product(values: Tensor, ranks: Tensor) -> Tensor:
            of_inputs, of_outputs = ranks.split([inputs.shape[-1], outputs.shape[-1]], dim=1)
            read = of_outputs[:, :, None] > of_inputs[:, None, :]
            z = (torch.where(read, layer.weight, 0.0) @ values.unsqueeze(-1)).squeeze(-1)
            if layer.mask_weight is not None:
                z = z + torch.where(read, layer.mask_weight, 0.0).sum(dim=-1)
            return z

        return _in_chunks(product, x, both, layer.weight.numel(), layer.bias)

    return apply


def _grouped(values: Tensor, groups: _Groups) -> Tensor:
    """Arrange rows of units (H, ...) as (m, width, ...), zeros where a group has fewer units."""
    padded = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
    return padded[groups.units]


def _in_chunks(
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    ranks: Tensor,
    size: int,
    bias: Tensor | None,
) -> Tensor:
    """Compute a product of rows x (..., I) and ranks (..., R), and add a bias.

    It takes ``size`` temporaries a row.
    Several chunks compute their temporaries again for their gradients, instead of keeping them.
    """
    batch = check_batch(x=x, order=ranks)
    x, ranks = as_rows(x, batch), as_rows(ranks, batch)
    rows = max(_CHUNK // max(size, 1), 1)
    if not exceeds(x.shape[0], rows):  # len(x) is no symbol
        z = product(x, ranks)
    else:
        parts = [
            cast(Tensor, checkpoint(product, *part, use_reentrant=False, preserve_rng_state=False))
            for part in zip(x.split(rows), ranks.split(rows), strict=True)
        ]
        z = torch.cat(parts)
    z = z.reshape(*batch, z.shape[-1])
    return z if bias is None else z + bias
