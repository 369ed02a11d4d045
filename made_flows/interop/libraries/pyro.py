"""Layers of Pyro: its autoregressive networks, affine and spline transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import torch
from pyro.distributions import transforms as theirs
from pyro.distributions.transforms.spline import ConditionalSpline
from pyro.nn import auto_reg_nn
from torch import Tensor, nn

from made_flows._checks import check_broadcast
from made_flows.interop.bijections import LibraryMap
from made_flows.interop.class_swap import mix_in
from made_flows.interop.conditioner import ForeignConditioner, expect_network, own_conditioner
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.layers import ForeignLayer, elementwise
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.made import MADE
from made_flows.nn.validation import NotUnderstoodError, expect_own
from made_flows.univariate.bijections import Affine, Bijection, GatedAffine
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.step_kernel import EDGES, SplineForm

_CONDITIONAL = (theirs.ConditionalAffineAutoregressive, theirs.ConditionalSplineAutoregressive)
_WITHOUT_INVERSE = (
    theirs.BlockAutoregressive,
    theirs.ConditionalNeuralAutoregressive,
    theirs.NeuralAutoregressive,
)


def find(module: Any) -> type | None:
    """Find the class that makes a Pyro transform fast; None if nothing is slow in it.

    Raises:
        NotUnderstoodError: for a layer with a slow direction that cannot be made fast.
    """
    if isinstance(module, theirs.AffineAutoregressive):
        return FastAffine
    if isinstance(module, theirs.SplineAutoregressive):
        return FastSpline
    if isinstance(module, _CONDITIONAL):
        return FastConditional
    if isinstance(module, _WITHOUT_INVERSE) or getattr(module, "autoregressive", False) is True:
        raise NotUnderstoodError("Pyro has no inverse of it that could be made fast")
    return None


# ---------------------------------------------------------------------- transforms


class _FastPyro(FastLayer):
    """The inverse of a transform of Pyro, in about one pass."""

    arn: Any
    made_flows_cached: ClassVar[str]
    """Where the transform keeps what its own inverse finds of the Jacobian."""

    def _made_flows_solve(self, y: Tensor, slowly: Callable[[Tensor], Tensor]) -> Tensor:
        """Find what the transform maps to y, by its own inverse where that has to say it."""
        context = self.arn.keywords["context"] if isinstance(self.arn, partial) else None
        fast = self.made_flows_ready(y, context)
        if fast is None or (context is not None and not _covers(context, y)):
            return slowly(y)
        x = fast.solve(y, context)
        # Pyro then takes it from a pass at x, where it is asked for it.
        setattr(self, self.made_flows_cached, None)
        return x


class FastAffine(_FastPyro):
    """The inverse of an affine autoregressive transform, in about one pass."""

    stable: bool
    sigmoid_bias: float
    log_scale_min_clip: float
    log_scale_max_clip: float
    made_flows_cached = "_cached_log_scale"

    def _inverse(self, y: Tensor) -> Tensor:
        return self._made_flows_solve(y, super()._inverse)  # type: ignore[misc]

    def _inverse_stable(self, y: Tensor) -> Tensor:
        return self._made_flows_solve(y, super()._inverse_stable)  # type: ignore[misc]

    def made_flows_read(self) -> Fast:
        layer: Any = self
        kind, own = theirs.AffineAutoregressive, type(layer)
        names = ("_call", "_call_stable", "log_abs_det_jacobian", "_inverse", "_inverse_stable")
        _expect_methods(layer, kind, FastAffine, names)
        # The stable variant binds these two methods to the object.
        for name, function in (("_call", "_call_stable"), ("_inverse", "_inverse_stable")):
            bound = vars(layer).get(name)
            known = (getattr(kind, function), getattr(own, function))
            if bound is not None and getattr(bound, "__func__", None) not in known:
                raise NotUnderstoodError(f"{own.__name__} has a {name} of its own")
        low, high = layer.log_scale_min_clip, layer.log_scale_max_clip
        return _fast(layer.arn, [1, 1], _affine(low, high, layer.sigmoid_bias, layer.stable))

    def made_flows_settings(self) -> tuple[Any, ...]:
        limits = (self.log_scale_min_clip, self.log_scale_max_clip)
        return *_network_settings(self.arn), self.stable, self.sigmoid_bias, *limits

    @staticmethod
    def made_flows_rebind(layer: Any) -> None:
        if "_inverse" in vars(layer):
            vars(layer)["_inverse"] = layer._inverse_stable


class FastSpline(_FastPyro):
    """The inverse of a spline autoregressive transform, in about one pass."""

    spline: Any
    _cached_x_y: tuple[Any, Any]
    _cache_log_detJ: Tensor | None  # noqa: N815 (Pyro's name)
    made_flows_cached = "_cache_log_detJ"

    def _inverse(self, y: Tensor) -> Tensor:
        return self._made_flows_solve(y, super()._inverse)  # type: ignore[misc]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of |det| of the Jacobian at x."""
        x_old, y_old = self._cached_x_y
        if x is x_old and y is y_old and self._cache_log_detJ is None:
            at_solution = self.spline.condition(x)
            at_solution._inverse(y)
            self._cache_log_detJ = at_solution._cache_log_detJ
        return cast(Tensor, super().log_abs_det_jacobian(x, y))  # type: ignore[misc]

    def made_flows_read(self) -> Fast:
        layer: Any = self
        kind = theirs.SplineAutoregressive
        _expect_methods(layer, kind, FastSpline, ("_inverse", "log_abs_det_jacobian"))
        expect_own(layer, kind, ("_call",))
        spline = layer.spline
        expect_own(spline, ConditionalSpline, ("condition", "_params"))
        if spline.nn is not layer.arn:
            raise NotUnderstoodError("its spline has a network of its own")
        bijection = PyroSpline(spline.count_bins, spline.bound, spline.order)
        return _fast(layer.arn, spline_sizes(spline.count_bins, spline.order), bijection)

    def made_flows_settings(self) -> tuple[Any, ...]:
        spline = self.spline
        settings = (spline, spline.nn, spline.count_bins, spline.bound, spline.order)
        return *_network_settings(self.arn), *settings


class FastConditional(FastLayer):
    """Gives transforms whose inverse is fast; they share what is known of the network."""

    nn: Any
    kwargs: dict[str, Any]

    def condition(self, context: Tensor) -> Any:
        """Return the transform under a context (..., C)."""
        transform = super().condition(context)  # type: ignore[misc]
        fast = self.made_flows_current()
        if fast is not None:
            affine = isinstance(transform, theirs.AffineAutoregressive)
            mix_in(transform, FastAffine if affine else FastSpline)
            transform.made_flows_keep(Fast(fast.conditioner, fast.elementwise, fast.net))
        return transform

    def made_flows_read(self) -> Fast:
        layer: Any = self
        if isinstance(layer, theirs.ConditionalAffineAutoregressive):
            sizes, bijection = [1, 1], _affine(**layer.kwargs)
            kind: type = theirs.ConditionalAffineAutoregressive
        else:
            bins, order = layer.kwargs.get("count_bins", 8), layer.kwargs.get("order", "linear")
            sizes, bijection = spline_sizes(bins, order), PyroSpline(**layer.kwargs)
            kind = theirs.ConditionalSplineAutoregressive
        _expect_methods(layer, kind, FastConditional, ("condition",))
        return _fast(layer.nn, sizes, bijection)

    def made_flows_settings(self) -> tuple[Any, ...]:
        return *_network_settings(self.nn), tuple(sorted(self.kwargs.items()))


def _network_settings(arn: Any) -> tuple[Any, ...]:
    """Return a network and its activation: a function that a watch over modules misses."""
    return arn, getattr(arn.func if isinstance(arn, partial) else arn, "f", None)


def _covers(context: Tensor, y: Tensor) -> bool:
    """Tell whether a context can be expanded to the rows of y, as Pyro does it."""
    try:
        shape = torch.broadcast_shapes(context.shape[:-1], y.shape[:-1])
    except RuntimeError:
        return False
    return bool(shape == y.shape[:-1])


# ---------------------------------------------------------------------- networks


def conditioner_of(net: Any, sizes: list[int]) -> ForeignConditioner | MADE:
    """Return a network with Pyro's interface as a conditioner.

    Args:
        net: a network of Pyro, of the plug-in, or a MADE with Pyro's interface.
        sizes: numbers of the parameters that a transform takes.

    Raises:
        NotUnderstoodError: for another network, or one that computes something else.
    """
    made = own_conditioner(net, sum(sizes))
    if made is None:
        unconditional = isinstance(net, auto_reg_nn.AutoRegressiveNN)
        library = auto_reg_nn.ConditionalAutoRegressiveNN
        expect_network(
            net, auto_reg_nn.AutoRegressiveNN if unconditional else library, ("forward", "_forward")
        )
    if list(net.param_dims) != sizes:
        raise NotUnderstoodError(f"its network gives {net.param_dims} parameters, not {sizes}")
    if made is not None:
        return made
    layers = [ForeignLayer(_linear(linear), elementwise(net.f)) for linear in net.layers]
    layers[-1] = ForeignLayer(net.layers[-1])
    direct = None if net.skip_layer is None else ForeignLayer(_linear(net.skip_layer))
    context = net.context_dim
    if context:
        # The context's columns come first.
        layers[0].columns = slice(context, None)
        layers[0].base = first = layers[0].context_term
        if direct is not None:
            direct.columns = slice(context, None)
            layers[-1].base = added = direct.context_term
            if len(layers) == 1:
                layers[0].base = lambda given: first(given) + added(given)

    def call(x: Tensor, given: Tensor | None) -> Tensor:
        return parameters_of(net, x, given)

    outputs = (sum(sizes),)
    return ForeignConditioner(
        net, layers, net.input_dim, outputs, call, context, direct, parameter_major=True
    )


def parameters_of(net: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Compute parameters (..., D, K) at x (..., D), whatever tuple a network returns."""
    outputs = net(x) if context is None else net(x, context=context)
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    if all(part.dim() == x.dim() for part in parts):
        return torch.stack(parts, dim=-1)
    return torch.cat(parts, dim=-2).transpose(-1, -2)


def _linear(linear: Any) -> nn.Module:
    own = isinstance(linear, MaskedLinear)
    expect_own(linear, MaskedLinear if own else auto_reg_nn.MaskedLinear)
    if own and linear.has_mask_weights:
        raise NotUnderstoodError("its masks have weights of their own")
    return linear  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- reading


def _fast(arn: Any, sizes: list[int], bijection: Bijection) -> Fast:
    """Make the fast inverse of a network, perhaps a ``functools.partial`` with a context."""
    net = arn
    if isinstance(arn, partial):
        if arn.args or set(arn.keywords) != {"context"}:
            raise NotUnderstoodError("its network is called with further arguments")
        net = arn.func
    return Fast(conditioner_of(net, sizes), bijection, net)


def _affine(
    log_scale_min_clip: float = -5.0,
    log_scale_max_clip: float = 3.0,
    sigmoid_bias: float = 2.0,
    stable: bool = False,
) -> Bijection:
    if stable:
        return GatedAffine(ScaleRule("sigmoid", offset=sigmoid_bias, floor=0.0))
    return Affine(ScaleRule("clamp", low=log_scale_min_clip, high=log_scale_max_clip))


def spline_sizes(bins: int, order: str) -> list[int]:
    """Return numbers of widths, heights, derivatives and, for a linear spline, lambdas."""
    return [bins, bins, bins - 1, bins] if order == "linear" else [bins, bins, bins - 1]


class PyroSpline(LibraryMap):
    """Pyro's own spline, of values (..., features) by parameters (..., features, K).

    Args:
        count_bins, bound, order: as of Pyro's transforms.
    """

    def __init__(self, count_bins: int = 8, bound: float = 3.0, order: str = "linear") -> None:
        sizes = spline_sizes(count_bins, order)
        compiled = SplineForm(
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
        apply = partial(_map_by_pyro, sizes, (count_bins, bound, order))
        super().__init__(sum(sizes), apply, compiled)
        self.bins, self.bound = count_bins, bound

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound:g}"


def _map_by_pyro(
    sizes: list[int],
    settings: tuple[int, float, str],
    values: Tensor,
    parameters: Tensor,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    shape = check_broadcast(values=values.shape, parameters=parameters.shape[:-1])
    values, parameters = values.expand(shape), parameters.expand(*shape, -1)
    parts = parameters.transpose(-1, -2).split(sizes, dim=-2)
    of_parameters: Any = ConditionalSpline
    their_spline = of_parameters(lambda _: parts, values.shape[-1], *settings)
    conditioned = their_spline.condition(values)
    result = conditioned._inverse(values) if inverse else conditioned._call(values)
    log_derivative = conditioned._cache_log_detJ
    return result, -log_derivative if inverse else log_derivative


def _expect_methods(layer: Any, kind: type, fast: type, methods: tuple[str, ...]) -> None:
    """Raise unless methods are those of a class of Pyro, or made fast already."""
    for name in methods:
        own = getattr(type(layer), name)
        if own is not getattr(kind, name) and own is not getattr(fast, name, None):
            raise NotUnderstoodError(f"{type(layer).__name__} has a {name} of its own")
