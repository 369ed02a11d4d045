"""Path gradients of a flow of plain affine transforms, as one function of autograd.

At the size of most posteriors a step of training takes as long as its calls are many. Here a flow
that is made of nothing but affine maps, masked layers and activations is sampled with its score in
a third of the calls that autograd would make, and goes back in one of autograd's nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from made_flows._cache import TensorCache
from made_flows._torch import is_autocast
from made_flows.inverse.dispatch import path_kernels
from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import pull_back
from made_flows.inverse.steps import BijectionStep
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.models.variational import SCALE_STEP, DampedAffine, TriangularAffine
from made_flows.nn.masked_mlp import masked_pass
from made_flows.nn.spec import LayerSpec, NetworkSpec
from made_flows.transforms.autoregressive import AutoregressiveTransform

JACOBIAN_UP_TO = 32
"""Features up to which the Jacobian of an affine transform takes less time than a sweep."""

_DERIVATIVES: dict[type, Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda a: 1 - a.square(),
    nn.ReLU: lambda a: (a > 0).to(a.dtype),
    nn.Sigmoid: lambda a: a * (1 - a),
}
"""Derivatives of activations, from their results."""

SMALL = 2**16
"""Weights up to which rows one by one are no slower than matrix products."""

_LANES = 8
"""Numbers that a loop over weights takes at once: ranges begin and end at multiples."""

Gradients = dict[int, Tensor]
"""Gradients of weights, by the identity of the weight."""


class ScoredSample(NamedTuple):
    """Samples of a flow.

    Args:
        x: the samples (..., D), with a gradient to the weights.
        log_det: log |det dx/dz| (...), likewise.
        score: gradient of log q at x with respect to x (..., D), a constant.
    """

    x: Tensor
    log_det: Tensor
    score: Tensor


class PlainStep(NamedTuple):
    """An affine autoregressive transform that reads noise, and its network at this moment."""

    transform: AutoregressiveTransform
    network: NetworkSpec


Steps = Sequence[PlainStep | TriangularAffine]


def sample_plain(
    flow: Flow, noise: Tensor, order: Sequence[Tensor], flat: Tensor | None = None
) -> ScoredSample | None:
    """Draw samples with their scores, None if a transform of the flow is of another kind.

    Args:
        flow: the flow.
        noise: z (..., D).
        order: the flow's weights.
        flat: a vector of all of them, one behind another, which gets their gradients.
    """
    steps = _plain_steps(flow)
    if not steps or is_autocast(noise):
        return None
    if flat is None:
        flat = torch.cat([weight.reshape(-1) for weight in order])
    return ScoredSample(*AffinePath.apply(steps, order, noise, flat))


def _plain_steps(flow: Flow) -> list[PlainStep | TriangularAffine] | None:
    """List a flow's transforms from noise to data, None where one is of another kind."""
    if type(flow.base) is not StandardNormal:
        return None
    steps: list[PlainStep | TriangularAffine] = []
    for transform in reversed(flow._chain()):
        if type(transform) is TriangularAffine:
            steps.append(transform)
            continue
        if type(transform) is not AutoregressiveTransform or transform.reads != "noise":
            return None
        made, bijection = transform.conditioner, transform.bijection
        network = made.plain_spec() if type(made.activation) in _DERIVATIVES else None
        if (
            type(bijection) is not DampedAffine
            or bijection.scale.rule != "bounded"
            or network is None
            or made.residual
            or network.bases
        ):
            return None
        steps.append(PlainStep(transform, network))
    return steps


def _is_small(steps: Steps, z: Tensor, flat: Tensor) -> bool:
    """Say whether the kernel, which ends with a triangular map, can be had and takes less time."""
    known = z.dtype in (torch.float32, torch.float64) and z.dtype == flat.dtype
    if not known or path_kernels(z) is None:
        return False
    if flat.numel() > SMALL or type(steps[-1]) is not TriangularAffine:
        return False
    return all(
        isinstance(step, PlainStep)
        and (
            not step.network.structure.depth
            or type(step.transform.conditioner.activation) is nn.Tanh
        )
        for step in steps[:-1]
    )


class _Plan(NamedTuple):
    """What the kernel knows of a chain.

    Args:
        width: saved numbers of a row.
        chain: a :class:`made_flows.inverse.compiled.affine_path.Chain`, written down.
        mask: what weights, and their gradients, are multiplied by.
    """

    width: int
    chain: Any
    mask: Tensor


_PLANS: TensorCache[_Plan] = TensorCache()


def _plan_of(steps: Steps, order: Sequence[Tensor]) -> _Plan:
    ends = accumulate(map(Tensor.numel, order))
    places = {id(weight): end - weight.numel() for weight, end in zip(order, ends, strict=True)}
    outer = cast(TriangularAffine, steps[-1])
    fixed = [] if outer.origin is None else [outer.origin, cast(Tensor, outer.units)]
    made_of = fixed
    key: list[Any] = [outer.features, outer.matrix.dtype, outer.gain]
    key += [places[id(outer.matrix)], places[id(outer.location)]]
    for step in cast(list[PlainStep], steps[:-1]):
        structure, tensors = step.network.structure, step.network.tensors
        bijection = cast(DampedAffine, step.transform.bijection)
        key += [structure, bijection.gain, bijection.scale.bound]
        key += [places[id(tensor)] for tensor in tensors if id(tensor) in places]
        made_of = [*made_of, *(tensors[place] for place in structure.mask_places)]
    return _PLANS.get(
        tuple(key), made_of, lambda: _plan(steps, places, sum(map(Tensor.numel, order)))
    )


def _plan(steps: Steps, places: dict[int, int], size: int) -> _Plan:
    """Lay out a chain, whose weights lie at places of a vector, for the kernel."""
    outer = cast(TriangularAffine, steps[-1])
    features, chain = outer.features, cast(list[PlainStep], steps[:-1])
    table, spans, program = [0] * (7 + len(chain)), list[tuple[int, Tensor]](), list[int]()
    numbers, mask, width = list[float](), outer.matrix.new_ones(size), 0

    def place_of(weight: Tensor, among: Tensor) -> int:
        place = places[id(weight)]
        mask[place : place + weight.numel()] = among.reshape(-1)
        return place

    def ranges(of: Tensor) -> None:  # what rows read: units are sorted, and half of all is zero
        spans.append((len(table), of))
        table.append(-1)

    for number, step in enumerate(chain):
        bijection = cast(DampedAffine, step.transform.bijection)
        numbers += [bijection.gain, bijection.scale.bound]
        ranks, layers, direct = step.network.structure.unpack(step.network.tensors)
        order = ranks.argsort(stable=True)  # of a graph's levels, some features share one
        below, degrees = order.argsort() + 1, []
        for layer in layers:
            below = torch.where(layer.mask != 0, below, 0).amax(dim=1)
            degrees.append(below.tolist())
        begin = len(program)
        for turn in range(features - 1, -1, -1):
            for index in range(len(layers) - 2, -1, -1):
                for unit, degree in enumerate(degrees[index]):
                    if degree == turn + 1:
                        program += [index, unit]
            program += [-1, int(order[turn])]
        table[7 + number] = len(table)
        table += [len(layers) - 1, -1 if direct is None else place_of(direct.weight, direct.mask)]
        ranges(layers[0].mask[:0] if direct is None else direct.mask)
        table += [begin, len(program), width]
        width += features
        for layer in layers:
            bias = -1 if layer.bias is None else places[id(layer.bias)]
            table += [*layer.weight.shape, place_of(layer.weight, layer.mask), bias]
            ranges(layer.mask)
            table.append(width)
            width += len(layer.weight)
    for place, among in spans:
        table[place] = len(table)
        for row in among:
            read = row.nonzero().flatten().tolist() or [0]
            table += [read[0] // _LANES * _LANES, min((read[-1] // _LANES + 1) * _LANES, len(row))]
    ones = torch.ones_like(outer.matrix)
    matrix = place_of(outer.matrix, outer.gain * ones.tril(-1) + SCALE_STEP * ones.tril().triu())
    fixed, log_det = mask.new_zeros(1), 0.0
    if outer.origin is not None and outer.units is not None:
        fixed = torch.cat([outer.origin, outer.units.reshape(-1)])
        log_det = float(outer.units.diagonal().log().sum())
    head = [len(chain), width + features, features, matrix, places[id(outer.location)], width]
    table[:7] = [*head, int(outer.origin is not None)]
    from made_flows.inverse.compiled.affine_path import Chain
    from made_flows.inverse.compiled.layout import Written

    constants = (mask.new_tensor([*numbers, log_det]).numpy(), fixed.numpy())
    written = Written(Chain(np.array(table), np.array(program), *constants))
    return _Plan(width + features, written, mask)


class _Compiled:
    """Noise (..., D) past all steps, by the kernel."""

    def __init__(self, steps: Steps, order: Sequence[Tensor], flat: Tensor, noise: Tensor) -> None:
        self.kernel = cast(ModuleType, path_kernels(noise))
        self.plan = plan = _plan_of(steps, order)
        self.w = flat * plan.mask  # kept, since weights may change before the way back
        shape = noise.shape
        self.rows = rows = noise.numel() // shape[-1]
        self.saved, self.space = noise.new_empty(rows * plan.width), noise.new_empty(plan.width)
        x, log_det, score = map(noise.new_empty, (shape, shape[:-1], shape))
        self.results = ScoredSample(x, log_det, score)
        self.kernel.sample(
            rows, self.space, plan.chain, self.w, noise.contiguous(), self.saved, *self.results
        )

    def back(self, of_x: Tensor, of_log_det: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the noise and of the vector of weights."""
        of_x = of_x.clone(memory_format=torch.contiguous_format)
        of_w = torch.zeros_like(self.w)
        given = (self.w, self.saved, of_x, of_log_det.contiguous(), of_w)
        self.kernel.pull(self.rows, self.space, self.plan.chain, *given)
        return of_x, of_w.mul_(self.plan.mask)


class _InTurn:
    """Noise (..., D) past all steps, one after the other."""

    def __init__(self, steps: Steps, order: Sequence[Tensor], noise: Tensor) -> None:
        self.order, shape = order, noise.shape
        x = noise.reshape(-1, shape[-1])
        score, log_det, self.passed = -x, x.new_zeros(len(x)), list[_Triangular | _Plain]()
        for step in steps:
            kind: Any = _Triangular if isinstance(step, TriangularAffine) else _Plain
            past = kind(step, x)
            x, log_det, score = past.x, log_det + past.log_det, past.carry(score)
            del past.x  # the last one belongs to the graph that keeps this object
            self.passed.append(past)
        parts = x.view(shape), log_det.view(shape[:-1]), score.view(shape)
        # Copies, since a function's results that are views can not be changed in place.
        self.results = ScoredSample(*map(torch.clone, parts))

    def back(self, of_x: Tensor, of_log_det: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of the noise and of the vector of weights."""
        weights: Gradients = {}
        of_z, of_log_det = of_x.reshape(-1, of_x.shape[-1]), of_log_det.reshape(-1)
        for past in reversed(self.passed):
            of_z = past.back(of_z, of_log_det, weights)
        of_flat = torch.cat([weights[id(weight)].reshape(-1) for weight in self.order])
        return of_z.view(of_x.shape), of_flat


class AffinePath(torch.autograd.Function):
    """From noise (..., D) to samples, log-determinants and scores, in one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, steps: Steps, order: Sequence[Tensor], noise: Tensor, flat: Tensor
    ) -> ScoredSample:
        """Take all steps.

        Args:
            ctx: torch's.
            steps: from noise to data.
            order: the flow's weights.
            noise: z (..., D).
            flat: the weights in a vector, which has their gradients.
        """
        small = _is_small(steps, noise, flat)
        past: _Compiled | _InTurn
        past = _Compiled(steps, order, flat, noise) if small else _InTurn(steps, order, noise)
        results, ctx.past = past.results, past
        del past.results
        ctx.mark_non_differentiable(results.score)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor, of_log_det: Tensor, _: Any) -> Any:
        """Take gradients of samples (..., D) and log-determinants (...) back to noise, weights."""
        return None, None, *ctx.past.back(of_x, of_log_det)


class _Plain:
    """Noise past an autoregressive step."""

    def __init__(self, step: PlainStep, z: Tensor) -> None:
        self.step, self.z = step, z
        made = step.transform.conditioner
        bijection = cast(DampedAffine, step.transform.bijection)
        self.gain, bound = bijection.gain, bijection.scale.bound
        self.derivative = _DERIVATIVES[type(made.activation)]
        structure, tensors = step.network.structure, step.network.tensors
        self.ranks, self.layers, self.direct = structure.unpack(tensors)
        # Kept, since weights may change before the way back.
        self.masked = [layer.weight * layer.mask for layer in self.layers]
        self.inputs: list[Tensor] = []
        direct = None
        if self.direct is not None:
            self.masked_direct = self.direct.weight * self.direct.mask
            direct = partial(F.linear, weight=self.masked_direct)
        kept = [
            partial(self._linear, weight, layer.bias)
            for weight, layer in zip(self.masked, self.layers, strict=True)
        ]
        outputs = masked_pass(kept, made.activation, z, direct=direct)
        shift, raw = outputs.mul_(self.gain).unflatten(-1, (-1, 2)).unbind(-1)
        bounded = torch.tanh(raw / bound)
        log_scale = bound * bounded
        self.slope = 1 - bounded.square()
        self.scale = torch.exp(log_scale)
        self.scaled = self.scale * z
        self.x = shift + self.scaled
        self.log_det = log_scale.sum(dim=-1)

    def _linear(self, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
        self.inputs.append(values)  # for the way back
        return F.linear(values, weight, bias)

    def carry(self, score: Tensor) -> Tensor:
        """Take the score at the noise to that at the data."""
        rows, features = self.z.shape
        if features > JACOBIAN_UP_TO:
            score = score - self.back(None, score.new_ones(rows), {})
            return pull_score(self.step.transform, self.x, self.z, score)
        # The transposed Jacobian of the outputs, (N, D, 2 D), layer by layer.
        jacobian = self.masked[0].T
        for weight, values in zip(self.masked[1:], self.inputs[1:], strict=True):
            jacobian = F.linear(jacobian * self.derivative(values).unsqueeze(1), weight)
        if self.direct is not None:
            jacobian = jacobian + self.masked_direct.T
        of_shift, of_raw = jacobian.unflatten(-1, (features, 2)).unbind(-1)
        of_log_scale = of_raw * (self.gain * self.slope).unsqueeze(1)
        of_x = torch.add(of_log_scale * self.scaled.unsqueeze(1), of_shift, alpha=self.gain)
        of_x.diagonal(dim1=1, dim2=2).copy_(self.scale)
        return solve(of_x, score - of_log_scale.sum(dim=-1), self.ranks)

    def back(self, of_x: Tensor | None, of_log_det: Tensor | None, weights: Gradients) -> Tensor:
        """Return the gradient of the noise, and add those of weights."""
        of_raw = 0.0 if of_x is None else of_x * self.scaled
        if of_log_det is not None:
            of_raw = of_raw + of_log_det.unsqueeze(-1)
        of_raw = self.gain * self.slope * of_raw
        of_shift = torch.zeros_like(of_raw) if of_x is None else self.gain * of_x
        delta = torch.stack([of_shift, of_raw], dim=-1).flatten(1)
        of_z = 0.0 if of_x is None else of_x * self.scale
        if self.direct is not None:
            _store(weights, self.direct, delta, self.z)
            of_z = of_z + delta @ self.masked_direct
        for index in reversed(range(len(self.layers))):
            _store(weights, self.layers[index], delta, self.inputs[index])
            delta = delta @ self.masked[index]
            if index:
                delta = delta * self.derivative(self.inputs[index])
        return of_z + delta


def _store(weights: Gradients, layer: LayerSpec, delta: Tensor, values: Tensor) -> None:
    weights[id(layer.weight)] = (delta.T @ values).mul_(layer.mask)
    if layer.bias is not None:
        weights[id(layer.bias)] = delta.sum(dim=0)


class _Triangular:
    """Noise past a triangular affine map."""

    def __init__(self, step: TriangularAffine, z: Tensor) -> None:
        self.step, self.z = step, z
        self.x, self.log_det = step.to_data(z)
        self.scale, self.lower = torch.exp(step.log_scale), step.lower
        self.units = step.units

    def carry(self, score: Tensor) -> Tensor:
        """Take the score at the noise to that at the data."""
        return self.step.pull_back(score)

    def back(self, of_x: Tensor, of_log_det: Tensor | None, weights: Gradients) -> Tensor:
        """Return the gradient of the noise, and add those of weights."""
        of_y = of_x if self.units is None else of_x @ self.units
        of_u = of_y * self.scale
        u = self.z + F.linear(self.z, self.lower)
        of_log_scale = (of_u * u).sum(dim=0)
        if of_log_det is not None:
            of_log_scale = of_log_scale + of_log_det.sum()
        matrix = (of_u.T @ self.z).tril_(-1).mul_(self.step.gain)
        matrix.diagonal().copy_(SCALE_STEP * of_log_scale)
        weights[id(self.step.matrix)], weights[id(self.step.location)] = matrix, of_y.sum(dim=0)
        return torch.addmm(of_u, of_u, self.lower)


def pull_score(transform: AutoregressiveTransform, x: Tensor, z: Tensor, score: Tensor) -> Tensor:
    """Solve the transposed system of a transform's Jacobian at noise z, whose data are x."""
    step = BijectionStep(transform.bijection, "inverse")
    return pull_back(cast(Conditioner, transform.conditioner), step, x.unsqueeze(-1), z, score)


def solve(transposed: Tensor, wanted: Tensor, ranks: Tensor | None = None) -> Tensor:
    """Solve systems (N, D, D) of transposed Jacobians, triangular in the order of the ranks."""
    order = [] if ranks is None else ranks.tolist()
    columns = wanted.unsqueeze(-1)
    if order and order in (sorted(order), sorted(order, reverse=True)):
        solution = torch.linalg.solve_triangular(transposed, columns, upper=order[0] == 0)
    else:
        solution = torch.linalg.solve_ex(transposed, columns).result
    return cast(Tensor, solution.squeeze(-1))
