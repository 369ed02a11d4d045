"""Tables of bijections, transforms and flows, name -> constructor: one line joins every check.

All are float64 and in evaluation mode, with weights far enough from their start that a test sees
every dependency, and small enough that two-dimensional densities can be integrated on a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import made_flows as mf

M = TypeVar("M", bound=nn.Module)


def shaken(module: M) -> M:
    """The module in float64 and evaluation mode, with noise added to all its weights."""
    generator = torch.Generator().manual_seed(1)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator).double())
    return module


@mf.saveable
class SinhArcsinh(mf.Bijection):
    """A user's own bijection, of another shape than the library's: sinh(e^a asinh(x) + b)."""

    outputs = 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        a, b = parameters.tanh().unbind(-1)
        inner = a.exp() * x.asinh() + b
        return inner.sinh(), a + inner.cosh().log() - 0.5 * (1 + x * x).log()

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        a, b = parameters.tanh().unbind(-1)
        x = ((-a).exp() * (y.asinh() - b)).sinh()
        return x, -self.forward(x, parameters)[1]

    def initial_parameters(self) -> Tensor:
        return torch.tensor([0.1, -0.2])


BIJECTIONS: dict[str, Callable[[], mf.Bijection]] = {
    "affine": mf.Affine,
    "affine, softsign": lambda: mf.Affine("softsign"),
    "affine, exp": lambda: mf.Affine("exp"),
    "affine, softplus": lambda: mf.Affine("softplus"),
    "affine, sigmoid": lambda: mf.Affine("sigmoid"),
    "affine, clamp": lambda: mf.Affine(mf.ScaleRule("clamp", low=-0.5, high=0.5)),
    "gated": mf.GatedAffine,
    "gated, no floor": lambda: mf.GatedAffine("sigmoid"),
    "spline": mf.RationalQuadraticSpline,
    "spline, two bins": lambda: mf.RationalQuadraticSpline(bins=2, bound=1.0),
    "spline, narrow": lambda: mf.RationalQuadraticSpline(bins=3, bound=1.5, min_derivative=0.1),
    "own": SinhArcsinh,
}
"""Bijections, by their constructors."""


def _graph(features: int) -> Tensor:
    """Every feature depends on the two before it in a shuffled numbering."""
    lag = torch.arange(features)[:, None] - torch.arange(features)
    place = torch.randperm(features, generator=torch.Generator().manual_seed(3))
    return ((lag == 1) | (lag == 2))[place][:, place]


OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda D: {},
    "reversed": lambda D: {"order": "reversed", "direct": "first"},
    "context": lambda D: {"context": 2, "order": [*range(1, D), 0]},
    "residual, direct": lambda D: {
        "residual": True, "direct": True, "hidden_features": (12, 8, 8), "dropout": 0.5,
    },
    "linear": lambda D: {"hidden_features": ()},
    "graph": lambda D: {"adjacency": _graph(D), "activation": "tanh"},
}  # fmt: skip


def _autoregressive(reads: str, bijection: str, option: str, D: int) -> mf.AutoregressiveTransform:
    kind = BIJECTIONS[bijection]()
    arguments = {"hidden_features": (12, 12), **OPTIONS[option](D)}
    made = mf.MADE(D, parameters=kind.outputs, **arguments)
    return mf.AutoregressiveTransform(made, kind, reads)


AUTOREGRESSIVE: dict[str, Callable[[int], mf.AutoregressiveTransform]] = {
    f"{reads} | {bijection} | {option}": (
        lambda D=4, reads=reads, bijection=bijection, option=option: shaken(
            _autoregressive(reads, bijection, option, D)
        )
    )
    for reads in ("data", "noise")
    for bijection in BIJECTIONS
    for option in OPTIONS
    if bijection in ("affine", "spline") or option == "context"
}


def _batch_norm(D: int) -> mf.BatchNorm:
    norm = shaken(mf.BatchNorm(D))
    norm.train()
    norm.to_noise(3 + 2 * torch.randn(50, D, dtype=torch.float64))
    return norm.eval()


TRANSFORMS: dict[str, Callable[..., mf.Transform]] = {
    **AUTOREGRESSIVE,
    "permutation, reversed": lambda D=4: mf.Permutation(D),
    "permutation, random": lambda D=4: mf.Permutation(D, "random"),
    "permutation, given": lambda D=4: mf.Permutation(D, [*range(1, D), 0]),
    "linear": lambda D=4: shaken(mf.InvertibleLinear(D)),
    "batch norm": lambda D=4: _batch_norm(D),
    "batch norm, fresh": lambda D=4: shaken(mf.BatchNorm(D)),
    "actnorm": lambda D=4: shaken(mf.ActNorm(D)),
    "standardize": lambda D=4: mf.Standardize([3.0] * D, [*range(1, D + 1)]).double(),
    "logit": lambda D=4: mf.Logit([-1.0] * D, [2.0] * D, margin=0.01).double(),
    "logit, soft": lambda D=4: mf.Logit([-1.0] * D, [2.0] * D, 0.0, softness=0.1).double(),
    "logit, some": lambda D=4: mf.Logit(
        [-1.0] + [-torch.inf] * (D - 1), [2.0] + [torch.inf] * (D - 1), margin=0
    ).double(),
    "log": lambda D=4: mf.Log(D).double(),
    "log, some": lambda D=4: mf.Log(D, columns=[D - 1]).double(),
}
"""Transforms, as functions of the number of features."""


def _normal(D: int) -> MultivariateNormal:
    covariance = 0.5 * torch.eye(D) + 0.3
    return MultivariateNormal(torch.linspace(-1, 1, D), covariance)


_SMALL: dict[str, Any] = {"transforms": 2, "hidden_features": (12, 12)}

FLOWS: dict[str, Callable[..., mf.Flow]] = {
    "MAF": lambda D=4: shaken(mf.MAF(D, **_SMALL)),
    "MAF, one transform": lambda D=4: shaken(mf.MAF(D, transforms=1)),
    "MAF, context": lambda D=4: shaken(mf.MAF(D, 3, **_SMALL)),
    "MAF, random order": lambda D=4: shaken(mf.MAF(D, **_SMALL, order="random", direct=True)),
    "MAF, given order": lambda D=4: shaken(mf.MAF(D, **_SMALL, order=[*range(1, D), 0])),
    "MAF, batch norm": lambda D=4: shaken(mf.MAF(D, **_SMALL, normalize="batch")),
    "MAF, actnorm": lambda D=4: shaken(mf.MAF(D, **_SMALL, normalize="actnorm")),
    "MAF, spline": lambda D=4: shaken(mf.MAF(D, 2, **_SMALL, bijection="spline")),
    "MAF, spline, linear": lambda D=4: shaken(
        mf.MAF(D, 2, **_SMALL, bijection="spline", linear=True)
    ),
    "MAF, gated": lambda D=4: shaken(mf.MAF(D, **_SMALL, bijection="gated")),
    "MAF, softplus, residual": lambda D=4: shaken(
        mf.MAF(D, **_SMALL, scale="softplus", residual=True)
    ),
    "MAF, own bijection": lambda D=4: shaken(mf.MAF(D, **_SMALL, bijection=SinhArcsinh())),
    "MAF, graph": lambda D=4: shaken(mf.MAF(D, adjacency=_graph(D))),
    "MAF, graph, two transforms": lambda D=4: shaken(mf.MAF(D, **_SMALL, adjacency=_graph(D))),
    "MAF-MoG": lambda D=4: shaken(
        mf.MAF(D, 2, **_SMALL, base=mf.GaussianMixtureMADE(D, 2, (12,), components=3))
    ),
    "MAF, Gaussian MADE": lambda D=4: shaken(
        mf.MAF(D, 2, **_SMALL, base=mf.GaussianMADE(D, hidden_features=(12,)))
    ),
    "MAF, torch base": lambda D=4: shaken(mf.MAF(D, **_SMALL, base=_normal(D))),
    "IAF": lambda D=4: shaken(mf.IAF(D, **_SMALL)),
    "IAF, context": lambda D=4: shaken(mf.IAF(D, 3, **_SMALL, order="random")),
    "IAF, spline": lambda D=4: shaken(mf.IAF(D, **_SMALL, bijection="spline")),
    "IAF, gated": lambda D=4: shaken(mf.IAF(D, 1, **_SMALL, bijection="gated")),
    "IAF, actnorm": lambda D=4: shaken(mf.IAF(D, **_SMALL, normalize="actnorm")),
    "IAF, graph": lambda D=4: shaken(mf.IAF(D, **_SMALL, adjacency=_graph(D))),
    "standardize | MAF": lambda D=4: shaken(
        mf.Flow([mf.Standardize([1.0] * D, [2.0] * D)], base=mf.MAF(D, 2, **_SMALL))
    ),
    "logit | linear | IAF": lambda D=4: shaken(
        mf.Flow(
            [mf.Logit([-1.0] * D, [2.0] * D, margin=0), mf.InvertibleLinear(D)],
            base=mf.IAF(D, **_SMALL),
        )
    ),
    "log | permutation": lambda D=4: mf.Flow([mf.Log(D, [0]), mf.Permutation(D)]).double(),
    "base alone": lambda D=4: shaken(mf.Flow([], base=mf.GaussianMADE(D))),
}
"""Flows, as functions of the number of features."""


def context_of(model: Any, *batch: int) -> Tensor | None:
    """A random context of a batch shape, None for a model without one."""
    return torch.randn(*batch, model.context, dtype=torch.float64) if model.context else None


def data_of(model: Any, *batch: int) -> Tensor:
    """Random data of a batch shape, where the model has its support."""
    first = model.transforms[0] if isinstance(model, mf.Flow) and len(model.transforms) else model
    x = torch.randn(*batch, model.features, dtype=torch.float64)
    if isinstance(first, mf.Logit):
        return torch.where(first.bounded, 3 * torch.rand_like(x) - 1, x)
    if isinstance(first, mf.Log):
        return torch.where(first.chosen, x.exp(), x)
    return x
