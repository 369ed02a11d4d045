"""Path gradients of a flow of plain affine transforms, as one function of autograd.

At the size of most posteriors a step of training takes as long as its calls are many. Here a flow
that is made of nothing but affine maps, masked layers and activations is sampled with its score in
a third of the calls that autograd would make, and goes back in one of autograd's nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from made_flows._cache import TensorCache
from made_flows.inverse.dispatch import path_kernels
from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import pull_back
from made_flows.inverse.steps import BijectionStep
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.models.variational import SCALE_STEP, DampedAffine, TriangularAffine
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

SMALL = 2**17
"""Numbers in weights and masks up to which rows one by one are no slower than matrix products."""

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


def sample_plain(
    flow: Flow, noise: Tensor, order: Sequence[Tensor], given: Sequence[Tensor]
) -> ScoredSample | None:
    """Draw samples with their scores, None if a transform of the flow is of another kind.

    Args:
        flow: the flow.
        noise: z (..., D).
        order: the flow's weights.
        given: what has their gradients: the same, or one vector in whose memory they lie.
    """
    steps = _plain_steps(flow)
    if not steps or torch.is_autocast_enabled(noise.device.type):
        return None
    shape = noise.shape
    x, log_det, score = AffinePath.apply(steps, order, noise.reshape(-1, shape[-1]), *given)
    return ScoredSample(x.view(shape), log_det.view(shape[:-1]), score.view(shape))


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


def _is_small(steps: Sequence[PlainStep], z: Tensor) -> bool:
    """Say whether the kernel takes less time than torch, where it can be had."""
    if z.dtype not in (torch.float32, torch.float64) or path_kernels(z) is None:
        return False
    size = sum(tensor.numel() for step in steps for tensor in step.network.tensors)
    return size <= SMALL and all(
        not step.network.structure.depth or type(step.transform.conditioner.activation) is nn.Tanh
        for step in steps
    )


class _Plan(NamedTuple):
    """What the kernel knows of a chain; see :mod:`made_flows.inverse.compiled.affine_path`."""

    table: Any
    program: Any
    mask: Tensor


_PLANS: TensorCache[_Plan] = TensorCache()


def _plan(steps: Sequence[PlainStep]) -> _Plan:
    """Lay out a chain, whose weights lie one behind another, for the kernel."""
    features = steps[0].transform.features
    table, masks = [len(steps), 0, features, *([0] * len(steps))], []
    program: list[int] = []
    width = place = 0
    for number, step in enumerate(steps):
        structure, tensors = step.network.structure, step.network.tensors
        ranks, layers, direct = structure.unpack(tensors)
        table[3 + number] = len(table)
        entries, noise = [], width
        width += features
        order = ranks.argsort(stable=True)  # of a graph's levels, some features share one
        below, degrees = order.argsort() + 1, []
        for layer in layers:
            units, inputs = layer.weight.shape
            bias = -1 if layer.bias is None else place + units * inputs
            entries += [units, inputs, place, bias, width]
            masks.append(layer.mask.reshape(-1))
            place += units * inputs
            if layer.bias is not None:
                masks.append(layer.mask.new_ones(units))
                place += units
            width += units
            below = torch.where(layer.mask != 0, below, 0).amax(dim=1)
            degrees.append(below.tolist())
        begin = len(program)
        for turn in range(features - 1, -1, -1):
            for index in range(len(layers) - 2, -1, -1):
                for unit, degree in enumerate(degrees[index]):
                    if degree == turn + 1:
                        program += [index, unit]
            program += [-1, int(order[turn])]
        table += [len(layers) - 1, -1 if direct is None else place, begin, len(program), noise]
        table += entries
        if direct is not None:
            masks.append(direct.mask.reshape(-1))
            place += direct.weight.numel()
    table[1] = width
    return _Plan(np.array(table), np.array(program), torch.cat(masks))


def _weights_of(step: PlainStep) -> list[Tensor]:
    """List a step's weights in the order of the kernel."""
    _, layers, direct = step.network.structure.unpack(step.network.tensors)
    found = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
    return found if direct is None else [*found, direct.weight]


class _Compiled:
    """Noise past all plain steps, by the kernel."""

    def __init__(self, steps: Sequence[PlainStep], z: Tensor) -> None:
        self.kernel = kernel = cast(ModuleType, path_kernels(z))
        masks = [
            tensor
            for step in steps
            for place, tensor in enumerate(step.network.tensors)
            if place in step.network.structure.mask_places
        ]
        key = tuple(step.network.structure for step in steps)
        self.plan = plan = _PLANS.get(key, masks, lambda: _plan(steps))
        self.weights = [weight for step in steps for weight in _weights_of(step)]
        # Kept, since weights may change before the way back.
        self.w = torch.cat([weight.reshape(-1) for weight in self.weights]).mul_(plan.mask)
        bijections = [cast(DampedAffine, step.transform.bijection) for step in steps]
        numbers = [number for b in bijections for number in (b.gain, b.scale.bound)]
        self.numbers = z.new_tensor(numbers)
        from made_flows.inverse.compiled.layout import Written

        width = int(plan.table[1])
        self.saved = z.new_empty(len(z) * width)
        self.space = Written(z.new_empty(width).numpy())
        self.x, self.score = z.new_empty(z.shape), z.new_empty(z.shape)
        self.log_det = z.new_empty(len(z))
        kernel.sample(
            len(z), self.space, *_arrays(self.w), plan.table, plan.program,
            *_arrays(self.numbers, z, self.saved, self.x, self.log_det, self.score),
        )  # fmt: skip

    def carry(self, score: Tensor) -> Tensor:
        """Return the score at the data; that at the noise is the standard normal's."""
        return self.score

    def back(self, of_x: Tensor, of_log_det: Tensor | None, weights: Gradients) -> Tensor:
        """Return the gradient of the noise, and add those of weights."""
        of_x = of_x.contiguous().clone()
        of_log_det = of_x.new_zeros(len(of_x)) if of_log_det is None else of_log_det.contiguous()
        of_w = torch.zeros_like(self.w)
        self.kernel.pull(
            len(of_x), self.space, *_arrays(self.w), self.plan.table,
            *_arrays(self.numbers, self.saved, of_x, of_log_det, of_w),
        )  # fmt: skip
        pieces = of_w.mul_(self.plan.mask).split([weight.numel() for weight in self.weights])
        for weight, piece in zip(self.weights, pieces, strict=True):
            weights[id(weight)] = piece.view(weight.shape)
        return of_x


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().reshape(-1).numpy() for tensor in tensors]


class AffinePath(torch.autograd.Function):
    """From noise (N, D) to samples, log-determinants and scores, in one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        steps: Sequence[PlainStep | TriangularAffine],
        order: Any,
        z: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take all steps.

        Args:
            ctx: torch's.
            steps: from noise to data.
            order: the flow's weights.
            z: noise (N, D).
            given: what has the gradients of these: they themselves, or a vector of all.
        """
        score, total, passed = -z, z.new_zeros(len(z)), []
        first = [step for step in steps if isinstance(step, PlainStep)]
        compiled = (
            first
            and _is_small(first, z)
            and all(isinstance(step, PlainStep) for step in steps[: len(first)])
        )
        for step in steps[len(first) - 1 :] if compiled else steps:
            past: _Compiled | _Triangular | _Plain
            if isinstance(step, TriangularAffine):
                past = _Triangular(step, z)
            else:
                past = _Compiled(first, z) if compiled else _Plain(step, z)
            score = past.carry(score)
            total = total + past.log_det
            z = past.x
            passed.append(past)
        ctx.passed, ctx.order, ctx.packed = passed, order, len(given) < len(order)
        ctx.mark_non_differentiable(score)
        ctx.set_materialize_grads(False)
        return z, total, score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor | None, of_log_det: Tensor | None, _: Any) -> Any:
        """Take gradients of samples (N, D) and log-determinants (N,) back to noise and weights."""
        first = ctx.passed[-1].x
        of_x = torch.zeros_like(first) if of_x is None else of_x
        weights: Gradients = {}
        for past in reversed(ctx.passed):
            of_x = past.back(of_x, of_log_det, weights)
        found = [weights[id(weight)] for weight in ctx.order]
        if ctx.packed:
            found = [torch.cat([gradient.reshape(-1) for gradient in found])]
        return None, None, of_x, *found


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
        self.inputs = [z]
        for layer, weight in zip(self.layers[:-1], self.masked, strict=False):
            self.inputs.append(made.activation(F.linear(self.inputs[-1], weight, layer.bias)))
        outputs = F.linear(self.inputs[-1], self.masked[-1], self.layers[-1].bias)
        if self.direct is not None:
            self.masked_direct = self.direct.weight * self.direct.mask
            outputs = torch.addmm(outputs, z, self.masked_direct.T)
        shift, raw = outputs.mul_(self.gain).unflatten(-1, (-1, 2)).unbind(-1)
        bounded = torch.tanh(raw / bound)
        log_scale = bound * bounded
        self.slope = 1 - bounded.square()
        self.scale = torch.exp(log_scale)
        self.scaled = self.scale * z
        self.x = shift + self.scaled
        self.log_det = log_scale.sum(dim=-1)

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
