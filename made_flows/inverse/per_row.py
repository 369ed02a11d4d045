"""Samples where every row has an order of its own, and values of its own that are known.

The sequential inverse sorts a network's weights for one order. Here they stay as they are: units of
degree r read the inputs of the r lowest ranks, which are the very ones that are known at rank r,
whatever features these are in a row. So all rows advance together, rank by rank, and every unit is
computed once.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from made_flows.inverse.d_pass import d_pass_inverse, warn_of_passes
from made_flows.inverse.steps import HeadStep
from made_flows.nn.linear import MaskedLinear, run_weight_hooks
from made_flows.nn.made import MADE
from made_flows.nn.reordering import expect_own_masks
from made_flows.nn.spec import nothing_if_finite
from made_flows.nn.validation import NotUnderstoodError
from made_flows.univariate.heads import Head

_CHUNK = 2**24
"""Numbers in the activations of the rows that advance together, about."""


@torch.no_grad()
def sample_row_orders(
    made: MADE,
    head: Head,
    noise: Tensor,
    order: Tensor,
    values: Tensor,
    known: Tensor,
    context: Tensor | None = None,
) -> Tensor:
    """Draw values of every row in its own order, from noise, given those of its first features.

    Args:
        made: the network.
        head: its head.
        noise: (N, D, P).
        order: the features of every row as they come, (N, D).
        values: (N, D), of which the known are kept.
        known: how many of a row's first features are, (N,).
        context: (N, C) or None.

    Returns:
        Values (N, D).
    """
    try:
        made.expect_understood()
        expect_own_masks(made)
    except NotUnderstoodError as reason:
        warn_of_passes(made, made.features, reason)
        return d_pass_inverse(
            lambda x: made.as_called(x, context, order),
            order.argsort(dim=-1),
            HeadStep(head),
            noise,
            known=values,
            prefix=known,
            dtype=made.dtype,
        )
    width = len(made.input_features) + len(made.output_features) + 2 * sum(made.shape.hidden)
    rows = max(_CHUNK // width, 1)
    pieces = zip(
        noise.split(rows), order.split(rows), values.split(rows), known.split(rows), strict=True
    )
    parts = []
    for index, (u, of_rows, x, count) in enumerate(pieces):
        c = None if context is None else context[index * rows : (index + 1) * rows]
        parts.append(_Sweep(made, head, c, x).run(u, of_rows, count))
    return torch.cat(parts) if parts else values.clone()


class _Sweep:
    """The state of some rows: what is known, and what the network makes of it so far."""

    def __init__(self, made: MADE, head: Head, context: Tensor | None, values: Tensor) -> None:
        self.made, self.head, self.values = made, head, values.clone()
        self.layers = [cast(MaskedLinear, layer) for layer in made.layers]
        run_weight_hooks((*self.layers, made.direct))
        *hidden, last = self.layers
        like, rows = last.weight, len(values)
        self.inputs = like.new_zeros(rows, len(made.input_features))
        self.seen = torch.zeros_like(self.inputs)
        self.z = [like.new_zeros(rows, layer.out_features) for layer in hidden]
        self.a = [torch.empty_like(z).zero_() for z in self.z]
        self.outputs = like.new_zeros(rows, last.out_features)
        if last.bias is not None:
            self.outputs += last.bias
        every = self.layers if made.direct is None else [*self.layers, made.direct]
        self.outputs += nothing_if_finite([layer.weight for layer in every]).to(like.dtype)
        if made.output_context is not None and context is not None:
            self.outputs += made.output_context(context)
        self.context_term: Tensor | None = None
        if made.input_context is not None and context is not None:
            self.context_term = made.input_context(context)
        # Between hidden layers one mask holds for all rows.
        self.weights = [layer.weight * layer.mask for layer in hidden]
        self.offsets = [layer.offset() for layer in hidden]

    def run(self, noise: Tensor, order: Tensor, known: Tensor) -> Tensor:
        """Draw all ranks, one after the other."""
        made = self.made
        by_degree = [
            degrees.argsort(stable=True).split(degrees.bincount(minlength=made.features).tolist())
            for degrees in made.degrees
        ]
        rows = torch.arange(len(order), device=order.device)
        column_ranks = order.argsort(dim=-1)[:, made.input_features]
        for rank in range(made.features):
            for layer, units in enumerate(by_degree):
                if len(units[rank]):
                    self._finish(layer, units[rank])
            feature = order[:, rank]
            parameters = made.unpack(self._outputs())[rows, feature]
            drawn = self.head.step_at(noise[rows, feature], parameters, feature).to(
                self.values.dtype
            )
            given = self.values[rows, feature]
            self.values[rows, feature] = torch.where(rank < known, given, drawn)
            encoded = self.head.encode(self.values, self.inputs.dtype)
            self.inputs = torch.where(column_ranks <= rank, encoded, 0.0)
            self.seen = (column_ranks <= rank).to(self.inputs.dtype)
        return self.values

    def _finish(self, layer: int, units: Tensor) -> None:
        """Compute the units of one degree in a hidden layer, whose inputs are all known."""
        linear = self.layers[layer]
        if layer:
            z = self.a[layer - 1] @ self.weights[layer][units].t()
            offset = self.offsets[layer]
            if offset is not None:
                z += offset[units]
        else:
            z = self.inputs @ linear.weight[units].t()
            if linear.mask_weight is not None:
                z += self.seen @ linear.mask_weight[units].t()
            if self.context_term is not None:
                z += self.context_term[:, units]
        if linear.bias is not None:
            z += linear.bias[units]
        if self.made.adds_to_stream(layer):
            z += self.z[layer - 2][:, units]
        self.z[layer][:, units] = z
        a = self.made.activation(z)
        self.a[layer][:, units] = a
        if layer == len(self.z) - 1:
            last = self.layers[-1]
            self.outputs += a @ last.weight[:, units].t()
            if last.mask_weight is not None:
                self.outputs += last.mask_weight[:, units].sum(dim=1)

    def _outputs(self) -> Tensor:
        """Compute the outputs with what the known inputs contribute directly."""
        direct = self.made.direct if self.z else self.layers[0]
        if direct is None:
            return self.outputs
        outputs = self.inputs @ direct.weight.t()
        if direct.mask_weight is not None:
            outputs += self.seen @ direct.mask_weight.t()
        if self.made.shape.direct_first:
            outputs *= self.made.shape.direct_outputs.t().to(outputs)
        return self.outputs + outputs
