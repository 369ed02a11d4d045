"""Samples where every row has an order of its own, and values of its own that are known.

The sequential inverse sorts a network's weights for one order. Here they stay as they are: units of
degree r read the inputs of the r lowest ranks, which are the very ones that are known at rank r,
whatever features these are in a row. So all rows advance together, rank by rank, and every unit is
computed once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from made_flows._cache import TensorCache
from made_flows.inverse.d_pass import d_pass_inverse, warn_of_passes
from made_flows.inverse.eager import Activations
from made_flows.inverse.steps import HeadStep
from made_flows.inverse.symbolic import Symbolic, SymbolicLayer, starts_of
from made_flows.nn.activations import activation_name
from made_flows.nn.linear import MaskedLinear, run_weight_hooks
from made_flows.nn.made import MADE
from made_flows.nn.made_spec import contexts_of
from made_flows.nn.reordering import expect_own_masks
from made_flows.nn.spec import LayerSpec, NetworkSpec
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


_SYMBOLIC: TensorCache[Symbolic] = TensorCache()


class _Sweep:
    """The state of some rows: what is known, and what the network makes of it so far."""

    def __init__(self, made: MADE, head: Head, context: Tensor | None, values: Tensor) -> None:
        self.made, self.head, self.values = made, head, values.clone()
        run_weight_hooks(made.every_layer())
        network = _without_order(made, context)
        key = network.structure.key, bool(made.mask_weights)
        symbolic = _SYMBOLIC.get(key, [*made.degrees], lambda: _by_degree(made, network))
        self.state = Activations(network, symbolic, len(values))
        weights = made.masked_layers()[-1].mask_weight
        self.offsets: Tensor | None = None  # what the units of each degree add as known ones
        if made.degrees and weights is not None:
            self.offsets = weights.new_zeros(made.features, len(weights))
            self.offsets.index_add_(0, made.degrees[-1], weights.t())

    def run(self, noise: Tensor, order: Tensor, known: Tensor) -> Tensor:
        """Draw all ranks, one after the other."""
        made, state, depth = self.made, self.state, self.state.structure.depth
        rows = torch.arange(len(order), device=order.device)
        column_ranks = order.argsort(dim=-1)[:, made.input_features]
        every = state.units(depth, 0, made.features)
        for rank in range(made.features):
            for layer in range(depth):
                units = state.units(layer, rank, rank + 1)
                state.add(layer, units, 0, state.readable(layer, rank))
                state.finish(layer, units)
            outputs = state.z[-1]
            if depth:
                state.add(depth, every, state.known(depth, rank), state.readable(depth, rank))
            if self.offsets is not None:
                outputs += self.offsets[rank]
            if state.direct is not None:
                outputs = torch.addmm(outputs, state.inputs, state.direct.t())
            feature = order[:, rank]
            parameters = made.unpack(outputs)[rows, feature]
            drawn = self.head.step_at(noise[rows, feature], parameters, feature).to(
                self.values.dtype
            )
            given = self.values[rows, feature]
            self.values[rows, feature] = torch.where(rank < known, given, drawn)
            seen = column_ranks <= rank
            encoded = torch.where(seen, self.head.encode(self.values, state.inputs.dtype), 0.0)
            parts = [encoded, seen.to(encoded)] if made.mask_weights else [encoded]
            torch.cat(parts, dim=1, out=state.inputs)
        return self.values


def _without_order(made: MADE, context: Tensor | None) -> NetworkSpec:
    """Write a network down with the masks that hold in every order: those between hidden layers.

    Inputs that are not known yet are zero. Where masks have weights, as many columns more tell
    which are known.
    """
    linears, last = made.masked_layers(), len(made.layers) - 1
    ways = {} if context is None else contexts_of(made)
    layers = []
    for index, linear in enumerate(linears):
        inner = 0 < index < last
        weight = linear.weight if index else _with_mask_weight(linear)
        layers.append(
            LayerSpec(
                weight,
                linear.mask if inner else torch.ones_like(weight),
                linear.full_bias() if inner else linear.bias,
                base=ways[index](context) if index in ways else None,
                activation=activation_name(made.activation),
                adds_to=index - 2 if made.adds_to_stream(index) else -1,
            )
        )
    direct = None
    directly = made.direct if last else linears[0]
    if directly is not None:
        weight = _with_mask_weight(directly)
        direct = LayerSpec(weight, made.shape.direct_outputs.to(weight).expand_as(weight))
    return NetworkSpec.of_layers(made.ranks, layers, direct, made.inputs, made.outputs)


def _with_mask_weight(linear: MaskedLinear) -> Tensor:
    weights = linear.mask_weight
    return linear.weight if weights is None else torch.cat([linear.weight, weights], dim=1)


def _by_degree(made: MADE, network: NetworkSpec) -> Symbolic:
    """Sort the hidden units by degree, and leave inputs and outputs where they are."""
    levels, device = made.features, made.ranks.device
    layers: list[SymbolicLayer] = []
    for index, degrees in enumerate(made.degrees):
        units = degrees.argsort(stable=True)
        stream = layers[index - 2].units.argsort()[units] if made.adds_to_stream(index) else None
        layers.append(SymbolicLayer(units, starts_of(degrees[units].cpu().numpy(), levels), stream))
    _, (first, *_), direct = network.structure.unpack(network.tensors)
    outputs, columns = sum(made.outputs), (first if direct is None else direct).weight.shape[1]
    of_outputs = np.repeat([0, outputs], [1, levels])
    layers.append(SymbolicLayer(torch.arange(outputs, device=device), of_outputs, None))
    return Symbolic(
        network.structure,
        levels,
        torch.arange(levels, device=device),
        made.outputs,
        np.arange(levels + 1),
        torch.arange(columns, device=device),
        np.full(levels + 1, columns),
        tuple(layers),
    )
