"""The sequential inverse in torch operations: any device and dtype, any head or bijection.

Ranks are taken in panels, as in a blocked triangular solve: before a panel, one matrix product
per layer brings in everything that earlier panels computed; inside it, small products do the
rest. Every unit is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.inverse.symbolic import Integers, Symbolic, symbolic_for
from made_flows.nn.activations import activate, activation_of_name
from made_flows.nn.spec import LayerSpec, NetworkSpec

_PANEL_UNITS = 64
"""Units of the widest layer in a panel, about. Larger panels mean fewer large products, smaller
ones less work inside: 32 to 128 measured alike, within noise, on the sizes of the benchmark."""


class Activations:
    """The sorted weights of a network; z and a of every layer for N rows, filled in by degree.

    Activations take the place of a z that is needed no more: on a GPU every operation counts.

    Args:
        network: the network.
        symbolic: its symbolic phase.
        rows: N.
        slopes: whether every z will be needed.
    """

    def __init__(
        self, network: NetworkSpec, symbolic: Symbolic, rows: int, slopes: bool = False
    ) -> None:
        self.symbolic = symbolic
        self.structure = network.structure
        _, layers, direct = network.structure.unpack(network.tensors, network.bases)
        self.places = symbolic.layers
        self.layers = [
            layer._replace(
                weight=_sorted_weight(layer, place.units, symbolic.inputs_of(index)),
                bias=_pick(layer.bias, place.units),
                norm_scale=_pick(layer.norm_scale, place.units),
                norm_shift=_pick(layer.norm_shift, place.units),
            )
            for index, (layer, place) in enumerate(zip(layers, self.places, strict=True))
        ]
        like = self.layers[-1].weight
        self.proof = symbolic.nothing_if_holds(network.tensors)
        taint = (self.structure.taint(network.tensors) + self.proof).to(like.dtype)
        self.direct = None
        if direct is not None:
            self.direct = _sorted_weight(direct, self.places[-1].units, symbolic.columns)
        self.activations = [activation_of_name(word) for word in network.structure.activations]
        self.inputs = like.new_zeros(rows, len(symbolic.columns))
        self.z: list[Tensor] = []
        self.a: list[Tensor] = []
        self.gates: list[Tensor | None] = []
        for index, (layer, place) in enumerate(zip(self.layers, self.places, strict=True)):
            begin = like.new_zeros(len(place.units)) if layer.bias is None else layer.bias
            z = (begin + taint if layer is self.layers[-1] else begin).repeat(rows, 1)
            if layer.base is not None and rows:
                # Row n belongs to row n modulo (number of rows) of the context.
                repeats = rows // len(layer.base)
                z.unflatten(0, (repeats, len(layer.base))).add_(layer.base[:, place.units])
            gate = layer.gate
            if gate is not None and rows:
                gate = gate[:, place.units].repeat(rows // len(gate), 1)
            self.gates.append(gate)
            kept = slopes or layer.norm_scale is not None or index in self.structure.adds_to
            self.z.append(z)
            self.a.append(torch.empty_like(z) if kept else z)

    def panels(self, first: int = 0) -> list[tuple[int, int]]:
        """Cut the ranks from one on into ranges [start, stop) of about equally many units."""
        widest = max(len(place.units) for place in self.places)
        levels = self.symbolic.levels
        size = max(1, round(_PANEL_UNITS * levels / max(widest, 1)))
        return [(r, min(r + size, levels)) for r in range(first, levels, size)]

    def source(self, layer: int) -> Tensor:
        """Return what a layer reads."""
        return self.a[layer - 1] if layer else self.inputs

    def known(self, layer: int, rank: int) -> int:
        """Return how many of the layer's inputs are known before anything of this rank is."""
        starts = self.places[layer - 1].starts if layer else self.symbolic.column_starts
        return int(starts[rank])

    def readable(self, layer: int, degree: int) -> int:
        """Count the layer's inputs that a unit of this degree (an output: of this rank) reads."""
        if layer:
            return int(self.places[layer - 1].starts[degree + 1])
        return int(self.symbolic.column_starts[degree])

    def units(self, layer: int, start: int, stop: int) -> slice:
        """Return the units of a layer with degrees (outputs: ranks) in [start, stop)."""
        return _span(self.places[layer].starts, start, stop)

    def add(self, layer: int, units: slice, start: int, stop: int) -> None:
        """Add to z of some units what the layer's inputs in [start, stop) contribute."""
        if units.start < units.stop and start < stop:
            weight = self.layers[layer].weight[units, start:stop]
            self.z[layer][:, units].addmm_(self.source(layer)[:, start:stop], weight.T)

    def add_direct(self, units: slice, start: int, stop: int) -> None:
        """Add to outputs what the inputs in [start, stop) contribute directly."""
        if self.direct is not None and units.start < units.stop and start < stop:
            weight = self.direct[units, start:stop]
            self.z[-1][:, units].addmm_(self.inputs[:, start:stop], weight.T)

    def finish(self, layer: int, units: slice) -> None:
        """Apply gate, residual and activation to hidden units whose products are all in."""
        if units.start == units.stop:
            return
        z = self.z[layer][:, units]
        gate = self.gates[layer]
        if gate is not None:
            z *= gate[:, units]
        stream = self.places[layer].stream
        if stream is not None:
            z += self.z[self.structure.adds_to[layer]][:, stream[units]]
        overwrite = self.a[layer] is self.z[layer]
        z = self.normed(layer, units)
        a = activate(self.activations[layer], z, overwrite=overwrite)
        if a is not z or not overwrite:
            self.a[layer][:, units] = a

    def normed(self, layer: int, units: slice) -> Tensor:
        """Return what the activation of some units is applied to."""
        weights, z = self.layers[layer], self.z[layer][:, units]
        if weights.norm_scale is None or weights.norm_shift is None:
            return z
        return z * weights.norm_scale[units] + weights.norm_shift[units]

    def fill(self, ranks: int) -> None:
        """Compute all hidden units that the ranks below this number determine, at once."""
        if ranks == 0:
            return
        for layer in range(self.structure.depth):
            units = self.units(layer, 0, ranks)
            self.add(layer, units, 0, self.readable(layer, ranks - 1))
            self.finish(layer, units)


def _sorted_weight(layer: LayerSpec, units: Tensor, inputs: Tensor) -> Tensor:
    """Return a layer's masked weights (units, inputs), sorted, in memory of their own."""
    weight = layer.weight.detach()
    masked = weight * layer.mask.to(weight.dtype)
    return masked.index_select(0, units).index_select(1, inputs)


def _pick(values: Tensor | None, units: Tensor) -> Tensor | None:
    """Return the values of some units, in memory of their own."""
    return None if values is None else values.detach().index_select(0, units)


def _span(starts: Integers, first: int, last: int) -> slice:
    return slice(int(starts[first]), int(starts[last]))


def solve(problem: Problem) -> Tensor:
    """Return the values x with x_r = step(noise_r, parameters_r(x_<r)) for every rank r.

    Args:
        problem: the network as it is, step, noise, and what is known.

    Returns:
        Values (N, D), of the dtype that the step gives.
    """
    network, step, noise, known, prefix = problem
    state = Activations(network, symbolic_for(network), len(noise))
    dtype = state.layers[-1].weight.dtype
    features, starts = state.symbolic.features, state.symbolic.feature_starts
    encoded_columns, columns = state.symbolic.columns, state.symbolic.column_starts
    noise = noise.index_select(1, features)
    found: list[Tensor] = []  # sorted as the features are
    values = None if known is None else known.clone()  # to be encoded
    if prefix and known is not None:
        stop = int(columns[prefix])
        encoded = step.encode(known, dtype)
        state.inputs[:, :stop] = encoded[:, encoded_columns[:stop]]
        state.fill(prefix)
        found.append(known[:, features[: int(starts[prefix])]])
    depth = state.structure.depth
    counts = state.symbolic.outputs
    for start, stop in state.panels(prefix):
        for layer in range(depth + 1):
            state.add(layer, state.units(layer, start, stop), 0, state.known(layer, start))
        outputs = state.units(depth, start, stop)
        state.add_direct(outputs, 0, int(columns[start]))
        for rank in range(start, stop):
            for layer in range(depth + 1):
                units = state.units(layer, rank, rank + 1)
                begin, end = state.known(layer, start), state.readable(layer, rank)
                state.add(layer, units, begin, end)
                if layer < depth:
                    state.finish(layer, units)
                else:
                    state.add_direct(units, int(columns[start]), int(columns[rank]))
            at = _span(starts, rank, rank + 1)
            parameters = _unpack(state.z[-1][:, state.units(depth, rank, rank + 1)], counts[at])
            fresh = step(noise[:, at], parameters, features[at])
            inputs = _span(columns, rank, rank + 1)
            found.append(fresh if known is None else fresh.to(known.dtype))
            if step.identity_encoding:
                state.inputs[:, inputs] = fresh
            else:
                if values is None:
                    values = fresh.new_zeros(len(noise), state.structure.features)
                values[:, features[at]] = fresh.to(values.dtype)
                state.inputs[:, inputs] = step.encode(values, dtype)[:, encoded_columns[inputs]]
    joined = torch.cat(found, dim=1)
    result = torch.empty_like(joined)
    result[:, features] = joined
    return result


def _unpack(outputs: Tensor, counts: Sequence[int]) -> Tensor:
    """Unpack outputs (N, sum of counts) to (N, features, K), padded with -inf."""
    largest = max(counts)
    if min(counts) == largest:
        return outputs.reshape(len(outputs), len(counts), largest)
    padded = outputs.new_full((len(outputs), len(counts), largest), -torch.inf)
    start = 0
    for i, count in enumerate(counts):
        padded[:, i, :count] = outputs[:, start : start + count]
        start += count
    return padded


def adjoint(problem: TransposedProblem) -> Tensor:
    """Solve the transposed linearised system: the sweep run backwards.

    The delta of a hidden unit of degree m is complete once all ranks from m on are done.

    Args:
        problem: the network as it is, and the system.

    Returns:
        lambda, (N, D).
    """
    network, gradient, slopes, x = problem
    rows = len(x)
    state = Activations(network, symbolic_for(network), rows, slopes=True)
    state.inputs.copy_(x[:, state.symbolic.columns])
    state.fill(state.symbolic.levels)
    depth = state.structure.depth
    derivatives = [
        _derivative(state.activations[layer], state.normed(layer, slice(None)))
        for layer in range(depth)
    ]
    for layer, weights in enumerate(state.layers[:-1]):
        if weights.norm_scale is not None:
            derivatives[layer] *= weights.norm_scale
    solution = gradient[:, state.symbolic.features] + state.proof
    slopes = slopes[:, state.symbolic.features]
    # Deltas with respect to W a of every layer; of the outputs they are slope * lambda.
    deltas = [torch.zeros_like(z) for z in state.z]
    streams = [torch.zeros_like(z) for z in state.z[:-1]]  # deltas with respect to z

    def pull(layer: int, units: slice, above: slice) -> Tensor | None:
        """Return what the given units of the next layer send back to some units of this one."""
        if above.start >= above.stop or units.start >= units.stop:
            return None
        return deltas[layer + 1][:, above] @ state.layers[layer + 1].weight[above, units]

    def pull_inputs(at: slice, above: Sequence[slice]) -> None:
        """Add to lambda what the given units of the first layer, and outputs, send back."""
        for layer, weight in ((0, state.layers[0].weight), (depth, state.direct)):
            units = above[layer]
            if weight is not None and units.start < units.stop and at.start < at.stop:
                solution[:, at].addmm_(deltas[layer][:, units], weight[units, at])

    for start, stop in reversed(state.panels()):
        done = [slice(int(p.starts[stop]), len(p.units)) for p in state.places]
        panel = [state.units(layer, start, stop) for layer in range(depth + 1)]
        at = _span(state.symbolic.feature_starts, start, stop)
        pull_inputs(at, done)
        partial = [pull(layer, panel[layer], done[layer + 1]) for layer in range(depth)]
        for rank in range(stop - 1, start - 1, -1):
            at = _span(state.symbolic.feature_starts, rank, rank + 1)
            fresh = [_span(place.starts, rank + 1, stop) for place in state.places]
            pull_inputs(at, fresh)
            outputs = state.units(depth, rank, rank + 1)
            delta = slopes[:, at] * solution[:, at].unsqueeze(-1)
            deltas[depth][:, outputs] = delta.reshape(rows, outputs.stop - outputs.start)
            for layer in reversed(range(depth)):
                units = state.units(layer, rank, rank + 1)
                if units.start == units.stop:
                    continue
                above = state.units(layer + 1, rank, stop)
                total = pull(layer, units, above)
                earlier = partial[layer]
                if earlier is not None:
                    offset = panel[layer].start
                    before = earlier[:, units.start - offset : units.stop - offset]
                    total = before if total is None else total + before
                delta = streams[layer][:, units]
                if total is not None:
                    delta += total * derivatives[layer][:, units]
                stream = state.places[layer].stream
                if stream is not None:
                    streams[state.structure.adds_to[layer]][:, stream[units]] += delta
                gate = state.gates[layer]
                deltas[layer][:, units] = delta if gate is None else delta * gate[:, units]
    result = torch.empty_like(solution)
    result[:, state.symbolic.features] = solution
    return result


def _derivative(activation: nn.Module, z: Tensor) -> Tensor:
    def total(values: Tensor) -> Tensor:
        return activate(activation, values, overwrite=False).sum()

    try:
        derivative: Tensor = torch.func.grad(total)(z)
    except RuntimeError:
        # It refuses to work under hooks on saved tensors, as of save_on_cpu, and with functions of
        # autograd that were not written for it. Autograd does, but inside of an operator.
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = total(leaf)
            if not value.requires_grad:
                raise
            [derivative] = torch.autograd.grad(value, leaf)
    return derivative
