"""Autoregressive layers of other libraries, and how each library calls its two directions."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions.transforms as pt
import torch
import zuko
from nflows.transforms import autoregressive as nt
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive as NormflowsSpline,
)
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

D, C = 5, 3

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ForeignLayer:
    """One row of the table.

    Args:
        make: makes the layer.
        quick: the direction of one pass: layer, values and context to values and log-determinant.
        slow: the other one.
        context: whether the layer takes a context.
        inside: values of the slow direction have to lie in (0, 1).
        differentiable: whether the fast inverse carries gradients itself.
    """

    make: Callable[[], nn.Module]
    quick: Callable[[Any, Tensor, Tensor | None], Pair]
    slow: Callable[[Any, Tensor, Tensor | None], Pair]
    context: bool = False
    inside: bool = False
    differentiable: bool = True

    def values(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Values that the slow direction can be asked for."""
        drawn = torch.randn(rows, D, dtype=dtype)
        return torch.sigmoid(drawn) if self.inside else drawn

    def given(self, rows: int, dtype: torch.dtype) -> Tensor | None:
        """A context, if the layer takes one."""
        return torch.randn(rows, C, dtype=dtype) if self.context else None


# ---------------------------------------------------------------------- how they are called


def _forward(layer: Any, x: Tensor, context: Tensor | None) -> Pair:
    return layer(x, context)


def _inverse(layer: Any, u: Tensor, context: Tensor | None) -> Pair:
    return layer.inverse(u, context)


def _pyro(layer: Any, context: Tensor | None) -> Any:
    return layer if context is None else layer.condition(context)


def _pyro_quick(layer: Any, x: Tensor, context: Tensor | None) -> Pair:
    transform = _pyro(layer, context)
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y)


def _pyro_slow(layer: Any, y: Tensor, context: Tensor | None) -> Pair:
    transform = _pyro(layer, context)
    x = transform.inv(y)
    return x, transform.log_abs_det_jacobian(x, y)


def _zuko_quick(layer: Any, x: Tensor, context: Tensor | None) -> Pair:
    return layer(context).call_and_ladj(x)


def _zuko_slow(layer: Any, u: Tensor, context: Tensor | None) -> Pair:
    return layer(context).inv.call_and_ladj(u)


def nflows_layer(kind: Any = nt.MaskedAffineAutoregressiveTransform, **kwargs: Any) -> ForeignLayer:
    context = kwargs.pop("context", False)
    inside = kind is not nt.MaskedAffineAutoregressiveTransform and "tails" not in kwargs
    arguments = {"features": D, "hidden_features": 12, **kwargs}
    if context:
        arguments["context_features"] = C
    return ForeignLayer(lambda: kind(**arguments), _forward, _inverse, context, inside)


def normflows_layer(kind: Any = MaskedAffineAutoregressive, **kwargs: Any) -> ForeignLayer:
    row = nflows_layer(kind, **kwargs)
    inside = kind is not MaskedAffineAutoregressive and "tails" not in kwargs
    return ForeignLayer(row.make, row.quick, row.slow, row.context, inside)


def _pyro_affine(context: bool, hidden: list[int], network: dict[str, Any], **kwargs: Any) -> Any:
    if context:
        made = ConditionalAutoRegressiveNN(D, C, hidden, **network)
        return pt.ConditionalAffineAutoregressive(made, **kwargs)
    return pt.AffineAutoregressive(AutoRegressiveNN(D, hidden, **network), **kwargs)


def pyro_layer(
    context: bool = False, hidden: tuple[int, ...] = (12, 10), network: Any = None, **kwargs: Any
) -> ForeignLayer:
    make = partial(_pyro_affine, context, list(hidden), network or {}, **kwargs)
    return ForeignLayer(make, _pyro_quick, _pyro_slow, context)


def pyro_spline(context: bool = False, order: str = "linear") -> ForeignLayer:
    sizes = [4, 4, 3, 4][: 4 if order == "linear" else 3]

    def make() -> Any:
        if context:
            made = ConditionalAutoRegressiveNN(D, C, [12, 10], param_dims=sizes)
            return pt.ConditionalSplineAutoregressive(D, made, count_bins=4, order=order)
        made = AutoRegressiveNN(D, [12, 10], param_dims=sizes)
        return pt.SplineAutoregressive(D, made, count_bins=4, order=order)

    return ForeignLayer(make, _pyro_quick, _pyro_slow, context)


def zuko_layer(context: bool = False, differentiable: bool = True, **kwargs: Any) -> ForeignLayer:
    def make() -> Any:
        # Its own: a test may change them in place.
        arguments = {"hidden_features": (12, 10), **copy.deepcopy(kwargs)}
        return zuko.flows.MaskedAutoregressiveTransform(D, C if context else 0, **arguments)

    return ForeignLayer(
        make, _zuko_quick, _zuko_slow, context, inside=False, differentiable=differentiable
    )


_RQS = {
    "univariate": partial(zuko.transforms.MonotonicRQSTransform, slope=1e-2),
    "shapes": [(4,), (4,), (3,)],
}
_GRAPH = torch.eye(D, D + C, dtype=torch.bool)
_GRAPH[2, 0] = _GRAPH[4, 2] = _GRAPH[3, 1] = _GRAPH[0, D] = _GRAPH[3, D + 2] = True
_LINEAR = {"tails": "linear", "tail_bound": 2.0, "num_bins": 4}

LAYERS: dict[str, ForeignLayer] = {
    # nflows
    "nflows": nflows_layer(),
    "nflows, context": nflows_layer(context=True),
    "nflows, no blocks": nflows_layer(num_blocks=0),
    "nflows, feedforward": nflows_layer(use_residual_blocks=False),
    "nflows, feedforward, context": nflows_layer(use_residual_blocks=False, context=True),
    "nflows, random masks": nflows_layer(use_residual_blocks=False, random_mask=True),
    "nflows, tanh": nflows_layer(activation=torch.tanh, num_blocks=3),
    "nflows, sine": nflows_layer(activation=torch.sin, context=True),
    "nflows, batch norm": nflows_layer(use_batch_norm=True, context=True),
    "nflows, batch norm, feedforward": nflows_layer(use_batch_norm=True, use_residual_blocks=False),
    "nflows, narrow": nflows_layer(hidden_features=2),
    "nflows, rational-quadratic": nflows_layer(
        nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, num_bins=4
    ),
    "nflows, rational-quadratic, tails": nflows_layer(
        nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, context=True, **_LINEAR
    ),
    "nflows, quadratic": nflows_layer(nt.MaskedPiecewiseQuadraticAutoregressiveTransform),
    "nflows, quadratic, tails": nflows_layer(
        nt.MaskedPiecewiseQuadraticAutoregressiveTransform, **_LINEAR
    ),
    "nflows, cubic": nflows_layer(nt.MaskedPiecewiseCubicAutoregressiveTransform, num_bins=4),
    "nflows, linear": nflows_layer(nt.MaskedPiecewiseLinearAutoregressiveTransform, num_bins=4),
    # normflows
    "normflows": normflows_layer(),
    "normflows, context": normflows_layer(context=True),
    "normflows, feedforward": normflows_layer(use_residual_blocks=False),
    "normflows, random masks": normflows_layer(use_residual_blocks=False, random_mask=True),
    "normflows, batch norm": normflows_layer(use_batch_norm=True, context=True),
    "normflows, spline": normflows_layer(NormflowsSpline, num_bins=4),
    "normflows, spline, tails": normflows_layer(NormflowsSpline, context=True, **_LINEAR),
    "normflows, circular spline": normflows_layer(
        NormflowsSpline, tails="circular", tail_bound=4.0, num_bins=4, permute_mask=True
    ),
    # Pyro
    "Pyro": pyro_layer(),
    "Pyro, one hidden layer": pyro_layer(hidden=(7,)),
    "Pyro, context": pyro_layer(context=True),
    "Pyro, skip": pyro_layer(network={"skip_connections": True}),
    "Pyro, skip, context": pyro_layer(context=True, network={"skip_connections": True}),
    "Pyro, tanh": pyro_layer(network={"nonlinearity": nn.Tanh()}),
    "Pyro, limits": pyro_layer(log_scale_min_clip=-0.1, log_scale_max_clip=0.2),
    "Pyro, stable": pyro_layer(stable=True),
    "Pyro, stable, context": pyro_layer(context=True, stable=True, sigmoid_bias=1.0),
    "Pyro, linear spline": pyro_spline(),
    "Pyro, quadratic spline": pyro_spline(order="quadratic"),
    "Pyro, linear spline, context": pyro_spline(context=True),
    # zuko
    "zuko": zuko_layer(),
    "zuko, context": zuko_layer(context=True),
    "zuko, linear network": zuko_layer(context=True, hidden_features=()),
    "zuko, order": zuko_layer(order=torch.tensor([3, 0, 4, 1, 2])),
    "zuko, coupling": zuko_layer(passes=2),
    "zuko, graph": zuko_layer(context=True, adjacency=_GRAPH),
    "zuko, residual": zuko_layer(context=True, residual=True, hidden_features=(12, 12, 9)),
    "zuko, elu": zuko_layer(activation=nn.ELU),
    "zuko, slope": zuko_layer(
        univariate=partial(zuko.transforms.MonotonicAffineTransform, slope=0.1)
    ),
    "zuko, spline": zuko_layer(**_RQS),
    "zuko, spline, context": zuko_layer(context=True, **_RQS),
    "zuko, circular spline": zuko_layer(
        univariate=partial(zuko.flows.spline.CircularRQSTransform, slope=1e-2),
        shapes=[(4,), (4,), (3,)],
    ),
    "zuko, polynomial": zuko_layer(
        univariate=zuko.transforms.BoundedBernsteinTransform, shapes=[(6,)], differentiable=False
    ),
}


def make(row: ForeignLayer, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A layer whose weights are not near zero, in evaluation mode."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = row.make().to(dtype).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            bound = 1 / math.sqrt(max(parameter.shape[-1], 4))
            parameter.copy_(torch.empty_like(parameter).uniform_(-bound, bound))
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
    return layer
