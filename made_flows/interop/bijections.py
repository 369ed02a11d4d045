"""Elementwise maps of other libraries as bijections: the steps of a sequential inverse."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import sqrt
from typing import Any

from torch import Tensor

from made_flows.inverse.dispatch import invert_spline
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
        solved = None if self.spline is None else invert_spline(self.spline, y, parameters)
        return self.function(y, parameters, True) if solved is None else solved

    def kernel(self) -> StepKernel | None:
        return None if self.spline is None else self.spline.kernel()


def spline(layer: Any, compiled: SplineForm | None = None) -> LibraryMap:
    """Return a spline of nflows or normflows, by the layer's own function of one feature.

    Args:
        layer: the transform.
        compiled: the same spline for the compiled inverse.
    """
    single, outputs = copy(layer), layer._output_dim_multiplier()
    single.features = 1

    def apply(values: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        rows = parameters.reshape(-1, outputs).clone()  # which the layer divides in place
        result, log_derivative = single._elementwise(values.reshape(-1, 1), rows, inverse)
        return result.reshape(values.shape), log_derivative.reshape(values.shape)

    return LibraryMap(outputs, apply, compiled)


def rational_quadratic(layer: Any) -> LibraryMap:
    """Return the rational-quadratic spline of nflows or normflows, for the compiled inverse too."""
    tails, bound = layer.tails is not None, float(layer.tail_bound)
    hidden = getattr(layer.autoregressive_net, "hidden_features", None)
    return spline(
        layer,
        SplineForm(
            bins=layer.num_bins,
            left=-bound if tails else 0.0,
            width=2 * bound if tails else 1.0,
            tails=tails,
            divisor=1.0 if hidden is None else sqrt(hidden),
            min_width=layer.min_bin_width,
            min_height=layer.min_bin_height,
            min_derivative=layer.min_derivative,
            edges=EDGES[{None: "given", "linear": "fixed", "circular": "circular"}[layer.tails]],
        ),
    )
