"""What a model computes, written a second time: dense float64 products, one full pass a rank.

Nothing here is shared with the library but torch: weights are read from the layers, multiplied by
their masks, and the formulas are those of the papers. It is slow, and differentiable in whatever
the weights are made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

F64 = torch.float64

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: z.clamp(min=0),
    "elu": lambda z: torch.where(z > 0, z, z.clamp(max=0).expm1()),
    "tanh": lambda z: 2 * torch.sigmoid(2 * z) - 1,
    "silu": lambda z: z / (1 + (-z).exp()),
    "gelu": lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2,
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "softplus": lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "identity": lambda z: z,
}


def weight_of(layer: nn.Module, name: str) -> Tensor | None:
    """A weight as the layer's next forward has it: parametrized, pruned, normalised or plain."""
    state: dict[str, Tensor] = {**layer._parameters, **layer._buffers}  # type: ignore[dict-item]
    if f"{name}_orig" in state and f"{name}_mask" in state:  # torch.nn.utils.prune
        return state[f"{name}_orig"] * state[f"{name}_mask"]
    if f"{name}_g" in state:  # torch.nn.utils.weight_norm
        v = state[f"{name}_v"]
        return v * (state[f"{name}_g"] / v.flatten(1).norm(dim=1).reshape(-1, 1))
    value: Tensor | None = getattr(layer, name, None)  # parametrized ones are computed by this
    return value


class _Layer:
    """A masked affine map as one dense matrix and a bias; hooks are functions of its result."""

    def __init__(self, layer: nn.Module, rounding: float) -> None:
        weight, mask = weight_of(layer, "weight"), layer.mask  # type: ignore[assignment]
        of_mask, bias = weight_of(layer, "mask_weight"), weight_of(layer, "bias")
        assert weight is not None
        self.matrix = _rounded(weight, rounding) * mask.double()
        self.bias = torch.zeros(len(self.matrix), dtype=F64)
        if bias is not None:
            self.bias = self.bias + _rounded(bias, rounding)
        if of_mask is not None:
            self.bias = self.bias + (_rounded(of_mask, rounding) * mask.double()).sum(dim=1)
        self.hooks = list(layer._forward_hooks.values())

    def __call__(self, x: Tensor) -> Tensor:
        y = x @ self.matrix.T + self.bias
        for hook in self.hooks:
            y = hook(None, (x,), y)
        return y


def _rounded(weight: Tensor, size: float) -> Tensor:
    """The weight in double precision, off by random relative errors of a size."""
    exact = weight.cpu().double()
    return exact * (1 + size * torch.randn(exact.shape, dtype=F64)) if size else exact


class _Network:
    """Parameters of every feature, as a list of D tensors (rows, K)."""

    def __init__(self, made: Any, activation: Callable[[Tensor], Tensor], rounding: float) -> None:
        self.layers = [_Layer(layer, rounding) for layer in made.layers]
        optional = (made.direct, made.input_context, made.output_context)
        self.direct, self.to_first, self.to_output = (
            None if layer is None else _Layer(layer, rounding) for layer in optional
        )
        self.activation, self.blocks = activation, bool(made.residual)
        self.sizes, self.ranks = list(made.outputs), made.ranks.cpu().tolist()

    def __call__(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        *hidden, last = self.layers
        z = x
        if hidden:
            z = hidden[0](x)
            if self.to_first is not None:
                z = z + self.to_first(context)
            if self.blocks:
                for inner, outer in zip(hidden[1::2], hidden[2::2], strict=True):
                    z = z + outer(self.activation(inner(self.activation(z))))
            else:
                for layer in hidden[1:]:
                    z = layer(self.activation(z))
            z = self.activation(z)
        y = last(z)
        if self.direct is not None:
            y = y + self.direct(x)
        if self.to_output is not None:
            y = y + self.to_output(context)
        return list(y.split(self.sizes, dim=-1))


# ---------------------------------------------------------------------- one feature


def _log_scale(rule: Any, a: Tensor) -> Tensor:
    if rule.rule == "bounded":
        return rule.bound * torch.tanh(a / rule.bound)
    if rule.rule == "softsign":
        return rule.bound * a / (rule.bound + a.abs())
    if rule.rule == "softplus":
        return torch.log(torch.log1p(torch.exp(a + rule.offset)) + rule.floor)
    if rule.rule == "sigmoid":
        return torch.log(1 / (1 + torch.exp(-a - rule.offset)) + rule.floor)
    if rule.rule == "clamp":  # its gradient passes straight through
        return a + (a.clamp(rule.low, rule.high) - a).detach()
    assert rule.rule == "exp"
    return a


def _normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def _head_log_prob(head: Any, x: Tensor, parameters: Tensor) -> Tensor:
    """Log-probability of values (rows,)."""
    kind = type(head).__name__
    if kind == "Gaussian":
        return _normal(x, parameters[:, 0], _log_scale(head.scale, parameters[:, 1]))
    if kind == "GaussianMixture":
        logits, means, raw = parameters.chunk(3, dim=1)
        each = _normal(x[:, None], means, _log_scale(head.scale, raw))
        return torch.logsumexp(logits + each, dim=1) - torch.logsumexp(logits, dim=1)
    if kind == "Bernoulli":
        return -F.softplus(torch.where(x > 0.5, -parameters[:, 0], parameters[:, 0]))
    assert kind == "Categorical"
    chosen = parameters.gather(1, x.long()[:, None])[:, 0]
    return chosen - torch.logsumexp(parameters, dim=1)


def _head_step(head: Any, noise: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Values from noise (rows, parts), and how near a draw came to another choice."""
    kind = type(head).__name__
    if kind == "Gaussian":
        scale = _log_scale(head.scale, parameters[:, 1]).exp()
        return parameters[:, 0] + scale * noise[:, 0], torch.ones(len(noise), dtype=F64)
    if kind == "Bernoulli":
        probability = torch.sigmoid(parameters[:, 0])
        return (noise[:, 0] < probability).double(), (noise[:, 0] - probability).abs()
    logits = parameters if kind == "Categorical" else parameters.chunk(3, dim=1)[0]
    ends = torch.softmax(logits, dim=1).cumsum(dim=1)
    chosen = (noise[:, :1] >= ends[:, :-1]).sum(dim=1)
    margin = torch.ones(len(noise), dtype=F64)
    if logits.shape[1] > 1:
        margin = (noise[:, :1] - ends[:, :-1]).abs().amin(dim=1)
    if kind == "Categorical":
        return chosen.double(), margin
    _, means, raw = parameters.chunk(3, dim=1)
    mean, raw = (part.gather(1, chosen[:, None])[:, 0] for part in (means, raw))
    return mean + _log_scale(head.scale, raw).exp() * noise[:, 1], margin


def _to_data(bijection: Any, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The map from noise to data, and the logarithm of its derivative."""
    kind = type(bijection).__name__
    if kind == "Affine":
        log_scale = _log_scale(bijection.scale, parameters[:, 1])
        return parameters[:, 0] + log_scale.exp() * z, log_scale
    if kind == "GatedAffine":
        log_scale = _log_scale(bijection.scale, parameters[:, 1])
        gate = log_scale.exp()
        return gate * z + (1 - gate) * parameters[:, 0], log_scale
    if kind == "SinhArcsinh":
        a, b = parameters.tanh().unbind(-1)
        inner = a.exp() * z.asinh() + b
        return inner.sinh(), a + inner.cosh().log() - torch.log1p(z * z) / 2
    assert kind == "RationalQuadraticSpline"
    return _spline(bijection, z, parameters)


def _spline(spline: Any, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Durkan et al. 2019, equations 4 and 5."""
    K, B = spline.bins, spline.bound

    def knots(logits: Tensor, smallest: float) -> Tensor:
        parts = 2 * B * (smallest + (1 - smallest * K) * torch.softmax(logits, dim=1))
        return torch.cat([torch.full_like(parts[:, :1], -B), parts.cumsum(dim=1) - B], dim=1)

    x, y = (
        knots(parameters[:, :K], spline.min_width),
        knots(parameters[:, K : 2 * K], spline.min_height),
    )
    shift = math.log(math.exp(1 - spline.min_derivative) - 1)
    inner = spline.min_derivative + F.softplus(parameters[:, 2 * K :] + shift)
    one = torch.ones_like(inner[:, :1])
    d = torch.cat([one, inner, one], dim=1)
    inside = z.abs() <= B
    at = torch.where(inside, z, torch.zeros_like(z))
    k = (at[:, None] >= x[:, 1:-1]).sum(dim=1, keepdim=True)
    (x0, x1), (y0, y1), (d0, d1) = (
        (t.gather(1, k)[:, 0], t.gather(1, k + 1)[:, 0]) for t in (x, y, d)
    )
    xi, s = (at - x0) / (x1 - x0), (y1 - y0) / (x1 - x0)
    below = s + (d0 + d1 - 2 * s) * xi * (1 - xi)
    value = y0 + (y1 - y0) * (s * xi**2 + d0 * xi * (1 - xi)) / below
    slope = s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / below**2
    return torch.where(inside, value, z), torch.where(inside, slope.log(), torch.zeros_like(z))


def _to_noise(bijection: Any, x: Tensor, parameters: Tensor) -> Tensor:
    """The other way: by bisection where the map is not affine, and a last step of Newton's.

    That step carries the gradient.
    """
    if type(bijection).__name__ in ("Affine", "GatedAffine"):
        shift, log_scale = _to_data(bijection, torch.zeros_like(x), parameters)
        return (x - shift) * torch.exp(-log_scale)
    with torch.no_grad():
        low, high = torch.full_like(x, -1e8), torch.full_like(x, 1e8)
        for _ in range(90):
            middle = (low + high) / 2
            above = _to_data(bijection, middle, parameters)[0] > x
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        z = (low + high) / 2
    y, log_slope = _to_data(bijection, z, parameters)
    return z + (x - y) * torch.exp(-log_slope.detach())


# ---------------------------------------------------------------------- models


class PlainDensity:
    """A density model, given by its parts.

    Args:
        model: where the parts are found.
        activation: of its network.
        rounding: size of random relative errors in its weights, for how much these matter.
    """

    def __init__(
        self, model: Any, activation: Callable[[Tensor], Tensor], rounding: float = 0.0
    ) -> None:
        self.network, self.head = _Network(model.made, activation, rounding), model.head
        self.categories: Sequence[int] = getattr(model.head, "categories", ())

    def _parameters(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        if self.categories:
            columns = [
                F.one_hot(x[:, i].long().clamp(0, size - 1), size).double()
                for i, size in enumerate(self.categories)
            ]
            x = torch.cat(columns, dim=1)
        return self.network(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-probabilities (rows,) of x (rows, D)."""
        parameters = self._parameters(x, context)
        return sum(_head_log_prob(self.head, x[:, i], p) for i, p in enumerate(parameters))  # type: ignore[return-value]

    def sample(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values (rows, D) from noise (rows, D, parts), and the smallest margin of every row."""
        ranks = self.network.ranks
        x = torch.zeros(noise.shape[:2], dtype=F64)
        margins = torch.ones(len(noise), dtype=F64)
        for rank in range(max(ranks) + 1):
            parameters = self._parameters(x, context)
            for i in (i for i, each in enumerate(ranks) if each == rank):
                value, margin = _head_step(self.head, noise[:, i], parameters[i])
                x = torch.cat([x[:, :i], value[:, None], x[:, i + 1 :]], dim=1)
                margins = torch.minimum(margins, margin.detach())
        return x, margins


class PlainFlow:
    """A flow of autoregressive transforms over a standard normal, given by its parts.

    Args:
        flow: where the parts are found.
        activation: of its networks.
        rounding: see :class:`PlainDensity`.
    """

    def __init__(
        self, flow: Any, activation: Callable[[Tensor], Tensor], rounding: float = 0.0
    ) -> None:
        self.transforms = [
            (_Network(t.conditioner, activation, rounding), t.bijection, t.reads)
            for t in flow.transforms
        ]

    def to_noise(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noise of x (rows, D), and the logarithm of |det dz/dx|."""
        total = torch.zeros(len(x), dtype=F64)
        for network, bijection, reads in self.transforms:
            x, log_det = _transform(network, bijection, x, context, reads == "noise", inverse=True)
            total = total + log_det
        return x, total

    def to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Data of noise z (rows, D), and the logarithm of |det dx/dz|."""
        total = torch.zeros(len(z), dtype=F64)
        for network, bijection, reads in reversed(self.transforms):
            z, log_det = _transform(network, bijection, z, context, reads == "data", inverse=False)
            total = total + log_det
        return z, total

    def log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-densities (rows,) of x (rows, D)."""
        return self.of_noise(*self.to_noise(x, context))

    def of_noise(self, z: Tensor, log_det: Tensor) -> Tensor:
        """Log-densities (rows,) of what has the noise z (rows, D)."""
        return -0.5 * (z * z + math.log(2 * math.pi)).sum(dim=1) + log_det


def _transform(
    network: _Network,
    bijection: Any,
    known: Tensor,
    context: Tensor | None,
    sequential: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """One transform of known values: a pass where they are what it reads, else one a rank."""

    def column(i: int, parameters: Tensor) -> tuple[Tensor, Tensor]:
        if inverse:
            z = _to_noise(bijection, known[:, i], parameters)
            return z, -_to_data(bijection, z, parameters)[1]
        return _to_data(bijection, known[:, i], parameters)

    if not sequential:
        columns = [column(i, p) for i, p in enumerate(network(known, context))]
        values, logs = (torch.stack(part, dim=1) for part in zip(*columns, strict=True))
        return values, logs.sum(dim=1)
    found = torch.zeros_like(known)
    total = torch.zeros(len(known), dtype=F64)
    for rank in range(max(network.ranks) + 1):
        parameters = network(found, context)
        for i in (i for i, each in enumerate(network.ranks) if each == rank):
            value, log = column(i, parameters[i])
            found = torch.cat([found[:, :i], value[:, None], found[:, i + 1 :]], dim=1)
            total = total + log
    return found, total
