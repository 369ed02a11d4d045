"""Plain affine steps in torch operations: to samples with their scores, and back to the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import pull_back
from made_flows.inverse.steps import BijectionStep
from made_flows.models.variational import SCALE_STEP, DampedAffine, TriangularAffine
from made_flows.nn.masked_mlp import masked_pass
from made_flows.nn.spec import LayerSpec, NetworkSpec
from made_flows.transforms.autoregressive import AutoregressiveTransform

JACOBIAN_UP_TO = 32
"""Features up to which the Jacobian of an affine transform takes less time than a sweep."""

DERIVATIVES: dict[type, Callable[[Tensor], Tensor]] = {
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
    bijection: DampedAffine
    network: NetworkSpec


Steps = Sequence[PlainStep | TriangularAffine]


class InTurn:
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


class _Plain:
    """Noise past an autoregressive step."""

    def __init__(self, step: PlainStep, z: Tensor) -> None:
        self.step, self.z = step, z
        made = step.transform.conditioner
        self.gain, bound = step.bijection.gain, step.bijection.scale.bound
        self.derivative = DERIVATIVES[type(made.activation)]
        structure, tensors = step.network.structure, step.network.tensors
        self.ranks, self.layers, self.direct = structure.unpack(tensors)
        # Kept, since weights may change before the way back.
        self.masked = [layer.weight * layer.mask.to(layer.weight.dtype) for layer in self.layers]
        self.inputs: list[Tensor] = []
        direct = None
        if self.direct is not None:
            self.masked_direct = self.direct.weight * self.direct.mask.to(z.dtype)
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
