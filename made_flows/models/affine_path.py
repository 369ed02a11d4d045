"""Path gradients of a flow of plain affine transforms, as one function of autograd.

At the size of most posteriors a step of training takes as long as its calls are many. Here a flow
that is made of nothing but affine maps, masked layers and activations is sampled with its score in
a third of the calls that autograd would make, and goes back in one of autograd's nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        for step in steps:
            past = _Triangular(step, z) if isinstance(step, TriangularAffine) else _Plain(step, z)
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
            transform = self.step.transform
            step = BijectionStep(transform.bijection, "inverse")
            conditioner = cast(Conditioner, transform.conditioner)
            return pull_back(conditioner, step, self.x.unsqueeze(-1), self.z, score)
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


def solve(transposed: Tensor, wanted: Tensor, ranks: Tensor | None = None) -> Tensor:
    """Solve systems (N, D, D) of transposed Jacobians, triangular in the order of the ranks."""
    order = [] if ranks is None else ranks.tolist()
    columns = wanted.unsqueeze(-1)
    if order and order in (sorted(order), sorted(order, reverse=True)):
        solution = torch.linalg.solve_triangular(transposed, columns, upper=order[0] == 0)
    else:
        solution = torch.linalg.solve_ex(transposed, columns).result
    return cast(Tensor, solution.squeeze(-1))
