"""Layers of nflows: its MADE, affine and spline transforms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from nflows.flows.base import Flow
from nflows.nn.nde import made as nde
from nflows.transforms import autoregressive as host
from nflows.transforms import made
from nflows.transforms.base import CompositeTransform, InverseTransform
from nflows.transforms.splines import cubic, linear, quadratic, rational_quadratic
from torch import Tensor

from made_flows.interop import bijections as maps
from made_flows.interop import resmade as mades
from made_flows.interop.class_swap import original_class
from made_flows.interop.conditioner import ForeignConditioner
from made_flows.interop.fast_layer import Fast, FastLayer, skip_log_det
from made_flows.interop.own import OwnConditioner, is_own
from made_flows.interop.validation import NotUnderstoodError, expect_own
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule

__all__ = ["FastFlow", "FastInverse", "conditioner_of", "find"]

_TRANSFORMS = mades.MadeVersion(made, activates_first=True)
_NDE = mades.MadeVersion(nde)


def find(module: Any) -> type | None:
    """The class to mix into an nflows module to make it fast; None if nothing is slow in it.

    Raises:
        NotUnderstoodError: for a layer with a slow direction that cannot be made fast.
    """
    if isinstance(module, host.AutoregressiveTransform):
        return FastInverse
    if isinstance(module, nde.MixtureOfGaussiansMADE):
        raise NotUnderstoodError(
            "it draws random numbers between its passes; "
            "made_flows.nflows.MixtureOfGaussiansMADE loads its state dict"
        )
    if isinstance(module, Flow) and type(module)._sample is Flow._sample:
        return FastFlow
    return None


class FastInverse(mades.FastInverse):
    """The inverse of an nflows transform, in about one pass."""

    def made_flows_read(self) -> Fast:
        return _read(self)


class FastFlow:
    """Sampling without log-determinants, which nflows computes and drops."""

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        with skip_log_det() if _nobody_asks(self) else nullcontext():
            samples: Tensor = super()._sample(num_samples, context)  # type: ignore[misc]
        return samples


def _nobody_asks(flow: Any) -> bool:
    """Whether no part of a flow can use a log-determinant while it samples.

    nflows' own parts do not. A user's transform, base or embedding network might.
    """
    others = (flow._distribution, flow._embedding_net)
    return (
        _is_plain(flow._transform)
        and _library(flow._distribution) in _PLAIN
        and not any(isinstance(part, FastLayer) for other in others for part in other.modules())
    )


_PLAIN = ("nflows", "made_flows")


def _library(module: Any) -> str:
    return original_class(module).__module__.partition(".")[0]


def _is_plain(transform: Any) -> bool:
    if _library(transform) not in _PLAIN:
        return False
    if isinstance(transform, CompositeTransform):
        return all(map(_is_plain, transform._transforms))
    return not isinstance(transform, InverseTransform) or _is_plain(transform._transform)


def conditioner_of(net: Any, parameters: int) -> ForeignConditioner:
    """A MADE of nflows, of either of its two versions, as a conditioner.

    Raises:
        NotUnderstoodError: for another network, or one that computes something else.
    """
    if isinstance(net, made.MADE):
        version, library = _TRANSFORMS, made.MADE
    elif isinstance(net, nde.MADE):
        # A MixtureOfGaussiansMADE defines forward anew, as a call of what it inherits.
        mixture = nde.MixtureOfGaussiansMADE
        version, library = _NDE, mixture if isinstance(net, mixture) else nde.MADE
    else:
        raise NotUnderstoodError(f"the masks of a {type(net).__name__} are not known")
    # Networks of the plug-in define forward anew, as a check of what they are given.
    expect_own(net, type(net) if getattr(net, "made_flows_network", False) else library)
    return mades.made_conditioner(net, version, parameters)


def _read(layer: Any) -> Fast:
    """How a transform works."""
    for kind, (methods, bijection) in _KINDS.items():
        if isinstance(layer, kind):
            mades.expect_known(layer, host.AutoregressiveTransform, kind, methods)
            net, outputs = layer.autoregressive_net, layer._output_dim_multiplier()
            if is_own(net) and not isinstance(net, made.MADE):
                return Fast(OwnConditioner(net, outputs), bijection(layer))
            return Fast(conditioner_of(net, outputs), bijection(layer))
    raise NotUnderstoodError(f"the elementwise map of a {type(layer).__name__} is not known")


def _affine(layer: Any) -> Bijection:
    return maps.ScaleFirst(ScaleRule("softplus", offset=0.0, floor=layer._epsilon))


def _rational_quadratic(layer: Any) -> Bijection:
    return maps.rational_quadratic(layer, rational_quadratic)


def _quadratic(layer: Any) -> Bijection:
    bins, by = layer.num_bins, maps.shrinkage(layer)

    def split(parameters: Tensor) -> dict[str, Tensor]:
        return {
            "unnormalized_widths": parameters[..., :bins] / by,
            "unnormalized_heights": parameters[..., bins:],
        }

    function = (
        quadratic.quadratic_spline
        if layer.tails is None
        else quadratic.unconstrained_quadratic_spline
    )
    return maps.spline(layer, function, split, ("min_bin_width", "min_bin_height"))


def _cubic(layer: Any) -> Bijection:
    bins, by = layer.num_bins, maps.shrinkage(layer)

    def split(parameters: Tensor) -> dict[str, Tensor]:
        return {
            "unnormalized_widths": parameters[..., :bins] / by,
            "unnormalized_heights": parameters[..., bins : 2 * bins] / by,
            "unnorm_derivatives_left": parameters[..., -2:-1],
            "unnorm_derivatives_right": parameters[..., -1:],
        }

    return maps.spline(layer, cubic.cubic_spline, split)


def _linear(layer: Any) -> Bijection:
    return maps.spline(layer, linear.linear_spline, lambda p: {"unnormalized_pdf": p})


_KINDS: dict[Any, tuple[tuple[str, ...], Callable[[Any], Bijection]]] = {
    host.MaskedAffineAutoregressiveTransform: (("_unconstrained_scale_and_shift",), _affine),
    host.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: (
        ("_elementwise",),
        _rational_quadratic,
    ),
    host.MaskedPiecewiseQuadraticAutoregressiveTransform: (("_elementwise",), _quadratic),
    host.MaskedPiecewiseCubicAutoregressiveTransform: (("_elementwise",), _cubic),
    host.MaskedPiecewiseLinearAutoregressiveTransform: (("_elementwise",), _linear),
}
"""Of every class of transforms: the methods that make its map, and the map."""
