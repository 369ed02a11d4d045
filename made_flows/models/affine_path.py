"""Path gradients of a flow of plain affine transforms, as one function of autograd.

At the size of most posteriors a step of training takes as long as its calls are many. Here a flow
that is made of nothing but affine maps, masked layers and activations is sampled with its score in
a third of the calls that autograd would make, and goes back in one of autograd's nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from made_flows._cache import TensorCache
from made_flows._torch import is_autocast
from made_flows.inverse.dispatch import path_kernels
from made_flows.models.affine_steps import DERIVATIVES, InTurn, PlainStep, ScoredSample, Steps
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.models.variational import SCALE_STEP, DampedAffine, TriangularAffine
from made_flows.nn.spec import LayerSpec
from made_flows.transforms.autoregressive import AutoregressiveTransform

SMALL = 2**16
"""Weights up to which rows one by one are no slower than matrix products."""

_LANES = 8
"""Numbers that a loop over weights takes at once: ranges begin and end at multiples."""


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
    weights: list[int] = []
    for transform in reversed(flow._chain()):
        if type(transform) is TriangularAffine:
            steps.append(transform)
            continue
        if type(transform) is not AutoregressiveTransform or transform.reads != "noise":
            return None
        made, bijection = transform.conditioner, transform.bijection
        read = made.plain_read() if type(made.activation) in DERIVATIVES else None
        network = None if read is None else read.at(None)
        if (
            type(bijection) is not DampedAffine
            or bijection.scale.rule != "bounded"
            or network is None
            or made.residual
            or network.bases
        ):
            return None
        steps.append(PlainStep(transform, bijection, network))
        weights += [id(tensor) for tensor in network.tensors if isinstance(tensor, nn.Parameter)]
    return steps if len(set(weights)) == len(weights) else None  # of tied ones, gradients are sums


class _SmallChain(NamedTuple):
    """What the kernel takes: plain steps, and a triangular map next to the data."""

    inner: list[PlainStep]
    outer: TriangularAffine


def _small_chain(steps: Steps, z: Tensor, flat: Tensor) -> _SmallChain | None:
    """Return steps as a chain where the kernel can be had for them, and takes less time."""
    known = z.dtype in (torch.float32, torch.float64)
    known = known and (z.dtype, z.device) == (flat.dtype, flat.device)
    if not known or path_kernels(z) is None or flat.numel() > SMALL:
        return None
    *before, outer = steps
    inner = [
        step
        for step in before
        if isinstance(step, PlainStep)
        and (
            not step.network.structure.depth
            or type(step.transform.conditioner.activation) is nn.Tanh
        )
    ]
    if len(inner) < len(before) or not isinstance(outer, TriangularAffine):
        return None
    return _SmallChain(inner, outer)


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


def _plan_of(steps: _SmallChain, order: Sequence[Tensor]) -> _Plan:
    ends = accumulate(map(Tensor.numel, order))
    places = {id(weight): end - weight.numel() for weight, end in zip(order, ends, strict=True)}
    outer = steps.outer
    made_of = [fixed for fixed in (outer.origin, outer.units) if fixed is not None]
    key: list[Any] = [outer.features, outer.matrix.dtype, outer.gain]
    key += [places[id(outer.matrix)], places[id(outer.location)]]
    for step in steps.inner:
        structure, tensors = step.network.structure, step.network.tensors
        key += [structure, step.bijection.gain, step.bijection.scale.bound]
        key += [places[id(tensor)] for tensor in tensors if id(tensor) in places]
        made_of += [tensors[place] for place in structure.mask_places]
    return _PLANS.get(
        tuple(key), made_of, lambda: _plan(steps, places, sum(map(Tensor.numel, order)))
    )


def _plan(steps: _SmallChain, places: dict[int, int], size: int) -> _Plan:
    """Lay out a chain, whose weights lie at places of a vector, for the kernel."""
    chain, outer = steps
    features = outer.features
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
        numbers += [step.bijection.gain, step.bijection.scale.bound]
        ranks, layers, direct = step.network.structure.unpack(step.network.tensors)
        begin = len(program)
        program += _turns(ranks, layers)
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


def _turns(ranks: Tensor, layers: Sequence[LayerSpec]) -> list[int]:
    """List what a score is solved for, the last rank first: its units, and then its feature.

    In pairs, of a hidden layer and a unit, or of -1 and a feature.
    """
    order = ranks.argsort(stable=True)  # of a graph's levels, some features share one
    below, degrees = order.argsort() + 1, []
    for layer in layers:
        below = torch.where(layer.mask != 0, below, 0).amax(dim=1)
        degrees.append(below.tolist())
    turns: list[int] = []
    for turn in range(len(order) - 1, -1, -1):
        for index in range(len(layers) - 2, -1, -1):
            for unit, degree in enumerate(degrees[index]):
                if degree == turn + 1:
                    turns += [index, unit]
        turns += [-1, int(order[turn])]
    return turns


class _Compiled:
    """Noise (..., D) past all steps, by the kernel."""

    def __init__(
        self, steps: _SmallChain, order: Sequence[Tensor], flat: Tensor, noise: Tensor
    ) -> None:
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
        small = _small_chain(steps, noise, flat)
        past: _Compiled | InTurn = (
            InTurn(steps, order, noise) if small is None else _Compiled(small, order, flat, noise)
        )
        results, ctx.past = past.results, past
        del past.results
        ctx.mark_non_differentiable(results.score)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor, of_log_det: Tensor, _: Any) -> Any:
        """Take gradients of samples (..., D) and log-determinants (...) back to noise, weights."""
        return None, None, *ctx.past.back(of_x, of_log_det)
