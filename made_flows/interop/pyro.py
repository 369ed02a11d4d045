"""Layers of Pyro: its autoregressive network, affine and spline transforms."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyro.distributions import transforms as host
from pyro.distributions.transforms.spline import ConditionalSpline
from torch import Tensor

from made_flows.interop.bijections import HostMap
from made_flows.interop.class_swap import mix_in
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.pyro_networks import conditioner_of
from made_flows.interop.validation import NotUnderstoodError, expect_own
from made_flows.inverse.compiled.rational_spline import EDGES, SplineKernel
from made_flows.univariate.bijections import Affine, Bijection, GatedAffine
from made_flows.univariate.scales import ScaleRule

__all__ = ["FastAffine", "FastConditional", "FastSpline", "find"]

_CONDITIONAL = (host.ConditionalAffineAutoregressive, host.ConditionalSplineAutoregressive)
_WITHOUT_INVERSE = (
    host.BlockAutoregressive,
    host.ConditionalNeuralAutoregressive,
    host.NeuralAutoregressive,
)


def find(module: Any) -> type | None:
    """The class to mix into a Pyro transform to make it fast; None if nothing is slow in it.

    Raises:
        NotUnderstoodError: for a layer with a slow direction that cannot be made fast.
    """
    if isinstance(module, host.AffineAutoregressive):
        return FastAffine
    if isinstance(module, host.SplineAutoregressive):
        return FastSpline
    if isinstance(module, _CONDITIONAL):
        return FastConditional
    if isinstance(module, _WITHOUT_INVERSE) or getattr(module, "autoregressive", False) is True:
        raise NotUnderstoodError("Pyro has no inverse of it that could be made fast")
    return None


# ---------------------------------------------------------------------- transforms


class FastAffine(FastLayer):
    """The inverse of an affine autoregressive transform, in about one pass."""

    arn: Any
    stable: bool
    sigmoid_bias: float
    log_scale_min_clip: float
    log_scale_max_clip: float
    _cached_log_scale: Tensor | None

    def _inverse(self, y: Tensor) -> Tensor:
        x = _solve(self, self.arn, y)
        if x is None:
            original: Tensor = super()._inverse(y)  # type: ignore[misc]
            return original
        # Pyro then takes the scales from a pass at x, where it is asked for them.
        self._cached_log_scale = None
        return x

    def _inverse_stable(self, y: Tensor) -> Tensor:
        x = _solve(self, self.arn, y)
        if x is None:
            original: Tensor = super()._inverse_stable(y)  # type: ignore[misc]
            return original
        self._cached_log_scale = None
        return x

    def made_flows_read(self) -> Fast:
        return _read_affine(self)

    def made_flows_settings(self) -> tuple[Any, ...]:
        limits = (self.log_scale_min_clip, self.log_scale_max_clip)
        return self.arn, self.stable, self.sigmoid_bias, *limits

    @staticmethod
    def made_flows_rebind(layer: Any) -> None:
        if "_inverse" in vars(layer):
            vars(layer)["_inverse"] = layer._inverse_stable


class FastSpline(FastLayer):
    """The inverse of a spline autoregressive transform, in about one pass."""

    arn: Any
    spline: Any
    _cached_x_y: tuple[Any, Any]
    _cache_log_detJ: Tensor | None  # noqa: N815 (Pyro's name)

    def _inverse(self, y: Tensor) -> Tensor:
        x = _solve(self, self.arn, y)
        if x is None:
            original: Tensor = super()._inverse(y)  # type: ignore[misc]
            return original
        self._cache_log_detJ = None
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of |det| of the Jacobian at x."""
        x_old, y_old = self._cached_x_y
        if x is x_old and y is y_old and self._cache_log_detJ is None:
            at_solution = self.spline.condition(x)
            at_solution._inverse(y)
            self._cache_log_detJ = at_solution._cache_log_detJ
        result: Tensor = super().log_abs_det_jacobian(x, y)  # type: ignore[misc]
        return result

    def made_flows_read(self) -> Fast:
        return _read_spline(self)

    def made_flows_settings(self) -> tuple[Any, ...]:
        spline = self.spline
        return self.arn, spline, spline.nn, spline.count_bins, spline.bound, spline.order


class FastConditional(FastLayer):
    """Gives transforms whose inverse is fast; they share what is known of the network."""

    nn: Any
    kwargs: dict[str, Any]

    def condition(self, context: Tensor) -> Any:
        """The transform under a context (..., C)."""
        transform = super().condition(context)  # type: ignore[misc]
        fast = self.made_flows_current()
        if fast is not None:
            affine = isinstance(transform, host.AffineAutoregressive)
            mix_in(transform, FastAffine if affine else FastSpline)
            transform.made_flows_keep(Fast(fast.conditioner, fast.bijection))
        return transform

    def made_flows_read(self) -> Fast:
        return _read_conditional(self)

    def made_flows_settings(self) -> tuple[Any, ...]:
        return self.nn, tuple(sorted(self.kwargs.items()))


def _solve(layer: FastLayer, arn: Any, y: Tensor) -> Tensor | None:
    """Where a transform maps to y, None where its own inverse has to say so."""
    context = arn.keywords["context"] if isinstance(arn, partial) else None
    fast = layer.made_flows_ready(y, context)
    if fast is None or (context is not None and not _covers(context, y)):
        return None
    return fast.solve(y, context)


def _covers(context: Tensor, y: Tensor) -> bool:
    """Whether a context can be expanded to the rows of y, as Pyro does it."""
    try:
        shape = torch.broadcast_shapes(context.shape[:-1], y.shape[:-1])
    except RuntimeError:
        return False
    return bool(shape == y.shape[:-1])


# ---------------------------------------------------------------------- reading


def _read_affine(layer: Any) -> Fast:
    methods = ("_call", "_call_stable", "log_abs_det_jacobian")
    kind = host.AffineAutoregressive
    for name in methods:
        if getattr(type(layer), name) is not getattr(kind, name):
            raise NotUnderstoodError(f"{type(layer).__name__} has a {name} of its own")
    _expect_inverse(layer, kind, FastAffine, ("_inverse", "_inverse_stable"))
    # The stable variant binds these two methods to the object.
    for name, function in (("_call", "_call_stable"), ("_inverse", "_inverse_stable")):
        bound = vars(layer).get(name)
        known = (getattr(kind, function), getattr(type(layer), function))
        if bound is not None and getattr(bound, "__func__", None) not in known:
            raise NotUnderstoodError(f"{type(layer).__name__} has a {name} of its own")
    return Fast(conditioner_of(layer.arn, [1, 1]), _affine(**_settings_of(layer)))


def _settings_of(layer: Any) -> dict[str, Any]:
    names = ("log_scale_min_clip", "log_scale_max_clip", "sigmoid_bias", "stable")
    return {name: getattr(layer, name) for name in names}


def _affine(
    log_scale_min_clip: float = -5.0,
    log_scale_max_clip: float = 3.0,
    sigmoid_bias: float = 2.0,
    stable: bool = False,
) -> Bijection:
    if stable:
        return GatedAffine(ScaleRule("sigmoid", offset=sigmoid_bias, floor=0.0))
    return Affine(ScaleRule("clamp", low=log_scale_min_clip, high=log_scale_max_clip))


def _read_spline(layer: Any) -> Fast:
    kind = host.SplineAutoregressive
    _expect_inverse(layer, kind, FastSpline, ("_inverse", "log_abs_det_jacobian"))
    expect_own(layer, kind, ("_call",))
    spline = layer.spline
    expect_own(spline, ConditionalSpline, ("condition", "_params"))
    if spline.nn is not layer.arn:
        raise NotUnderstoodError("its spline has a network of its own")
    bijection = _spline(spline.count_bins, spline.bound, spline.order)
    return Fast(conditioner_of(layer.arn, _sizes(spline.count_bins, spline.order)), bijection)


def _sizes(bins: int, order: str) -> list[int]:
    """Numbers of widths, heights, derivatives and, for a linear spline, lambdas."""
    return [bins, bins, bins - 1, bins] if order == "linear" else [bins, bins, bins - 1]


def _spline(count_bins: int = 8, bound: float = 3.0, order: str = "linear") -> Bijection:
    """Pyro's own spline of values (..., features) with parameters (..., features, K)."""
    sizes = _sizes(count_bins, order)

    def apply(values: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        parts = parameters.transpose(-1, -2).split(sizes, dim=-2)
        of_parameters: Any = ConditionalSpline
        host_spline = of_parameters(lambda _: parts, values.shape[-1], count_bins, bound, order)
        conditioned = host_spline.condition(values)
        result = conditioned._inverse(values) if inverse else conditioned._call(values)
        log_derivative = conditioned._cache_log_detJ
        return result, -log_derivative if inverse else log_derivative

    compiled = SplineKernel(
        bins=count_bins,
        left=-bound,
        width=2 * bound,
        tails=True,
        linear=order == "linear",
        min_width=1e-3,
        min_height=1e-3,
        min_derivative=1e-3,
        edges=EDGES["fixed"],
        edge=1 - 1e-3,
        min_place=0.025,
    )
    return HostMap(sum(sizes), apply, compiled)


def _read_conditional(layer: Any) -> Fast:
    if isinstance(layer, host.ConditionalAffineAutoregressive):
        sizes, bijection = [1, 1], _affine(**layer.kwargs)
        kind: type = host.ConditionalAffineAutoregressive
    else:
        bins, order = layer.kwargs.get("count_bins", 8), layer.kwargs.get("order", "linear")
        sizes, bijection = _sizes(bins, order), _spline(**layer.kwargs)
        kind = host.ConditionalSplineAutoregressive
    _expect_inverse(layer, kind, FastConditional, ("condition",))
    return Fast(conditioner_of(layer.nn, sizes), bijection)


def _expect_inverse(layer: Any, kind: type, fast: type, methods: tuple[str, ...]) -> None:
    """Raise unless methods are those of a class of Pyro, or made fast already."""
    for name in methods:
        own = getattr(type(layer), name)
        if own is not getattr(kind, name) and own is not getattr(fast, name, None):
            raise NotUnderstoodError(f"{type(layer).__name__} has a {name} of its own")
