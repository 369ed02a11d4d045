"""Elementwise maps of other libraries as bijections: the steps of a sequential inverse."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

from torch import Tensor

from made_flows.inverse.compiled.spline_inverse import invert
from made_flows.univariate.bijections import Affine, Bijection
from made_flows.univariate.step_kernel import EDGES, SplineForm, StepKernel


class ScaleFirst(Affine):
    """An affine map whose first parameter is the scale and whose second is the shift.

    Args:
        scale: the rule from the first parameter to the scale.
    """

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, parameters.flip(-1))

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().inverse(y, parameters.flip(-1))

    def kernel(self) -> StepKernel:
        return StepKernel("affine", self.scale, (1.0, 1.0))


class LibraryMap(Bijection):
    """A map that a library computes by a function of its own.

    Args:
        outputs: parameters of every feature K.
        function: values (...), parameters (..., K) and whether the inverse is wanted, to values
            and logarithms of derivatives. It must treat every feature alike.
        spline: the same map as a rational spline, if it is one: its steps and its inverse
            without gradients are compiled.
    """

    def __init__(
        self,
        outputs: int,
        function: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]],
        spline: SplineForm | None = None,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.function = function
        self.spline = spline

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(x, parameters, False)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        solved = None if self.spline is None else invert(self.spline, y, parameters)
        return self.function(y, parameters, True) if solved is None else solved

    def kernel(self) -> StepKernel | None:
        return None if self.spline is None else self.spline.kernel()


def spline(
    layer: Any,
    function: Callable[..., tuple[Tensor, Tensor]],
    split: Callable[[Tensor], dict[str, Tensor]],
    constants: tuple[str, ...] = (),
    compiled: SplineForm | None = None,
) -> LibraryMap:
    """Return a spline of nflows or normflows, by the library's own function.

    Args:
        layer: the transform.
        function: the library's function.
        split: from the parameters (..., K) of a feature to the function's arguments.
        constants: further arguments, which are attributes of the layer.
        compiled: the same spline for the compiled inverse.
    """
    fixed = {name: getattr(layer, name) for name in constants}
    if getattr(layer, "tails", None) is not None:
        fixed |= {"tails": layer.tails, "tail_bound": layer.tail_bound}

    def apply(values: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return function(inputs=values, inverse=inverse, **split(parameters), **fixed)

    return LibraryMap(layer._output_dim_multiplier(), apply, compiled)


def shrinkage(layer: Any) -> float:
    """Return what nflows and normflows divide widths (and heights) by."""
    width = getattr(layer.autoregressive_net, "hidden_features", None)
    return 1.0 if width is None else sqrt(width)


def rational_quadratic(layer: Any, splines: Any) -> LibraryMap:
    """Return the rational-quadratic spline of nflows or normflows.

    Args:
        layer: the transform.
        splines: the library's module of them.
    """
    bins, by = layer.num_bins, shrinkage(layer)

    def split(parameters: Tensor) -> dict[str, Tensor]:
        return {
            "unnormalized_widths": parameters[..., :bins] / by,
            "unnormalized_heights": parameters[..., bins : 2 * bins] / by,
            "unnormalized_derivatives": parameters[..., 2 * bins :],
        }

    function = (
        splines.rational_quadratic_spline
        if layer.tails is None
        else splines.unconstrained_rational_quadratic_spline
    )
    bound = float(layer.tail_bound)
    compiled = SplineForm(
        bins=bins,
        left=0.0 if layer.tails is None else -bound,
        width=1.0 if layer.tails is None else 2 * bound,
        tails=layer.tails is not None,
        divisor=by,
        min_width=layer.min_bin_width,
        min_height=layer.min_bin_height,
        min_derivative=layer.min_derivative,
        edges=EDGES[{None: "given", "linear": "fixed", "circular": "circular"}[layer.tails]],
    )
    names = ("min_bin_width", "min_bin_height", "min_derivative")
    return spline(layer, function, split, names, compiled)
