"""Layers of zuko: its masked network under an affine map, a spline or a polynomial."""

from __future__ import annotations

from functools import partial
from math import log, prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from zuko import nn as networks
from zuko import transforms
from zuko.flows import autoregressive, polynomial, spline
from zuko.utils import unpack

from made_flows.interop.bijections import LibraryMap
from made_flows.interop.conditioner import ForeignConditioner
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.layers import IDENTITY, ForeignLayer, elementwise, expect_stream_kept
from made_flows.nn.validation import NotUnderstoodError, expect_own
from made_flows.univariate.bijections import Affine, Bijection
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.step_kernel import EDGES, SplineForm

_IN_CLOSED_FORM = (transforms.MonotonicRQSTransform, spline.CircularRQSTransform)
_BY_BISECTION = (
    transforms.BernsteinTransform,
    transforms.BoundedBernsteinTransform,
    transforms.GaussianizationTransform,
    transforms.SOSPolynomialTransform,
    polynomial.ShiftedSOSPTransform,
)


_SPLINE_SETTINGS = {"bound", "slope"}


def find(module: Any) -> type | None:
    """Find the class that makes a zuko transform fast; None if nothing is slow in it."""
    known = isinstance(module, autoregressive.MaskedAutoregressiveTransform)
    return FastTransform if known else None


class FastTransform(FastLayer):
    """A lazy autoregressive transform that gives transforms whose inverse is fast."""

    hyper: Any
    univariate: Any
    shapes: Any
    passes: int

    def forward(self, c: Tensor | None = None) -> Any:
        """Return the transform under a context (..., C)."""
        given = super().forward(c)  # type: ignore[misc]
        return FastInverse(given.meta, given.passes, self, c)

    def made_flows_read(self) -> Fast:
        layer: Any = self
        kind = autoregressive.MaskedAutoregressiveTransform
        expect_own(layer, kind, ("meta", "forward"), FastTransform)
        conditioner = _conditioner(layer)
        levels = int(conditioner.ranks.max()) + 1
        if layer.passes < levels:
            raise NotUnderstoodError(
                f"its {layer.passes} passes leave its {levels} levels unfinished"
            )
        bijection, differentiable = _bijection(layer)
        return Fast(conditioner, bijection, differentiable=differentiable)

    def made_flows_settings(self) -> tuple[Any, ...]:
        # What a partial holds may be changed in place.
        words = self.univariate.keywords if isinstance(self.univariate, partial) else {}
        return self.hyper, self.univariate, *self.shapes, self.passes, *words, *words.values()


class FastInverse(transforms.AutoregressiveTransform):
    """An autoregressive transform with an inverse of about one pass.

    Args:
        meta, passes: zuko's own.
        layer: the lazy transform it comes from.
        context: the context it was given.
    """

    def __init__(self, meta: Any, passes: int, layer: FastTransform, context: Any) -> None:
        super().__init__(meta, passes)
        self.layer, self.context = layer, context

    def _inverse(self, y: Tensor) -> Tensor:
        # A transform may outlive the acceleration of its layer.
        fast = None
        if isinstance(self.layer, FastLayer):
            fast = self.layer.made_flows_ready(y, self.context)
        if fast is None:
            return cast(Tensor, super()._inverse(y))
        return fast.solve(y, self.context)


# ---------------------------------------------------------------------- reading


def _bijection(layer: Any) -> tuple[Bijection, bool]:
    """Return the elementwise map, and whether its inverse has derivatives of its own."""
    univariate, shapes = layer.univariate, layer.shapes
    settled = isinstance(univariate, partial) and not univariate.args
    function = univariate.func if settled else univariate
    if function is transforms.MonotonicAffineTransform and [prod(s) for s in shapes] == [1, 1]:
        settings = univariate.keywords if settled else {}
        if set(settings) <= {"slope"}:
            return Affine(ScaleRule("softsign", bound=-log(settings.get("slope", 1e-3)))), True
    if function not in (*_IN_CLOSED_FORM, *_BY_BISECTION):
        # What a function makes of a feature may depend on which feature it is.
        name = getattr(function, "__name__", type(function).__name__)
        raise NotUnderstoodError(f"its univariate transform {name} is not known")

    def apply(values: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if torch.is_inference_mode_enabled():  # where autograd does not give zuko its derivatives
            with torch.inference_mode(False), torch.no_grad():
                return apply(values.clone(), parameters.clone(), inverse)
        transform = univariate(*unpack(parameters, shapes))
        result, log_derivative = (transform.inv if inverse else transform).call_and_ladj(values)
        return result, log_derivative

    compiled = _compiled(univariate, shapes) if function is _IN_CLOSED_FORM[0] else None
    return LibraryMap(layer.total, apply, compiled), function in _IN_CLOSED_FORM


def _compiled(univariate: Any, shapes: Any) -> SplineForm | None:
    """Describe zuko's rational-quadratic spline to the compiled inverse."""
    bins = prod(shapes[0])
    settings = univariate.keywords if isinstance(univariate, partial) else {}
    if [prod(s) for s in shapes] != [bins, bins, bins - 1] or not set(settings) <= _SPLINE_SETTINGS:
        return None
    bound, steepness = settings.get("bound", 5.0), -log(settings.get("slope", 1e-3))
    return SplineForm(
        bins=bins,
        left=-bound,
        width=2 * bound,
        tails=True,
        bound=steepness / 2,
        derivative_bound=steepness,
        edges=EDGES["fixed"],
    )


def _conditioner(layer: Any) -> ForeignConditioner:
    hyper, total = layer.hyper, layer.total
    expect_own(hyper, networks.MaskedMLP)
    features = hyper.out_features // total
    context = hyper.in_features - features
    layers: list[ForeignLayer] = []
    for module in hyper:
        _append(layers, module)
    if layers[-1].activation is not IDENTITY:
        raise NotUnderstoodError("its network ends with an activation")
    if context:
        layers[0].columns = slice(0, features)
        layers[0].base = layers[0].context_term

    def call(x: Tensor, given: Tensor | None) -> Tensor:
        if given is not None:
            shape = torch.broadcast_shapes(x.shape[:-1], given.shape[:-1])
            x = torch.cat([x.expand(*shape, -1), given.expand(*shape, -1)], dim=-1)
        outputs: Tensor = hyper(x)
        return cast(Tensor, outputs.unflatten(-1, (features, total)))

    return ForeignConditioner(hyper, layers, features, (total,), call, context)


def _append(layers: list[ForeignLayer], module: nn.Module) -> None:
    """Append a part of the network: a layer, a residual block, or a layer's activation."""
    if isinstance(module, networks.MaskedLinear):
        expect_own(module, networks.MaskedLinear)
        layers.append(ForeignLayer(module))
    elif isinstance(module, networks.Residual):
        expect_own(module, networks.Residual)
        stream = len(layers) - 1
        if not isinstance(module[0], networks.MaskedLinear):
            linear = layers[stream].linear
            expect_stream_kept(module[0], linear.out_features, linear.weight)
        for part in module:
            _append(layers, part)
        if len(layers) == stream + 1:
            raise NotUnderstoodError("its network has a residual block without layers")
        if layers[stream].activation is not IDENTITY or layers[-1].activation is not IDENTITY:
            raise NotUnderstoodError("its network has a residual block around an activation")
        layers[-1].adds_to = stream
    elif layers and layers[-1].activation is IDENTITY:
        layers[-1].activation = elementwise(module)
    else:
        raise NotUnderstoodError(f"its network has a {type(module).__name__} out of place")
