"""Monotone rational-quadratic splines: a flexible bijection with an inverse in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from made_flows._checks import check_event, check_parameters, expect, positive_integer, real_number
from made_flows._registry import saveable
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.step_kernel import SplineForm, StepKernel


@saveable
class RationalQuadraticSpline(Bijection):
    r"""A monotone rational-quadratic spline on [-B, B], the identity outside.

    In bin k, from knot :math:`(x_k, y_k)` on, with :math:`\xi = (x - x_k) / w_k`, width
    :math:`w_k`, height :math:`h_k`, slope :math:`s_k = h_k / w_k` and derivatives :math:`d_k` at
    the knots,

    .. math:: y = y_k + h_k\, \frac{s_k \xi^2 + d_k\, \xi (1 - \xi)}
        {s_k + (d_k + d_{k+1} - 2 s_k)\, \xi (1 - \xi)}

    The parameters of a feature are K logits of the widths, K logits of the heights and the
    unconstrained derivatives at the K - 1 inner knots (at the outer ones they are 1). All
    zeros give the identity (to rounding).

    Args:
        bins: number of bins, at least 2 (of one, the ends leave nothing to choose).
        bound: B.
        min_width, min_height: smallest width and height of a bin, as fractions of 2 B.
        min_derivative: smallest derivative at an inner knot.

    Raises:
        ValueError: for sizes that are not positive, or minima that fill more than the interval.

    References:
        Durkan et al. 2019, *Neural Spline Flows*, equations 4-8 and appendix A.1. The
        discriminant of the inverse is written as a sum of squares here, so that rounding cannot
        make it negative.

    Example:
        >>> spline = RationalQuadraticSpline(bins=4)
        >>> spline.forward(torch.tensor([-1.0, 100.0]), torch.zeros(2, 11))[0].round(decimals=4)
        tensor([ -1., 100.])
    """

    def __init__(
        self,
        bins: int = 8,
        bound: float = 5.0,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        super().__init__()
        self.bins = positive_integer(bins, "bins")
        expect(self.bins > 1, "bins", "to be at least 2", bins)
        self.bound = real_number(bound, "bound", above=0)
        self.min_width = real_number(min_width, "min_width", above=0)
        self.min_height = real_number(min_height, "min_height", above=0)
        self.min_derivative = real_number(min_derivative, "min_derivative", above=0)
        for name in ("min_width", "min_height"):
            minimum = getattr(self, name)
            expect(minimum * bins < 1, name, f"to be below 1 / bins = {1 / bins:g}", minimum)
        expect(self.min_derivative < 1, "min_derivative", "to be below 1", min_derivative)
        self.outputs = 3 * self.bins - 1
        # Zeros give the identity: softplus(offset) is 1 - min_derivative.
        self.derivative_offset = math.log(math.expm1(1 - self.min_derivative))

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        check_parameters(x, parameters, self.outputs, "x")
        if min(x.dtype.itemsize, parameters.dtype.itemsize) < 4:
            return _precisely(self.forward, x, parameters)
        inside = x.abs() <= self.bound
        # Where the spline is not used it is computed all the same: at a point that cannot fail,
        # since the gradient of torch.where is 0 * inf = NaN for a value that is not taken.
        at = torch.where(inside, x, 0.0)
        (left, right), (bottom, top), (start, end) = self._bins(at, parameters, inverse=False)
        width, height = right - left, top - bottom
        xi = ((at - left) / width).clamp(0, 1)
        slope = height / width
        across = xi * (1 - xi)
        below = slope * (1 - 2 * across) + (start + end) * across
        y = bottom + height * (slope * xi * xi + start * across) / below
        log_derivative = _log_derivative(xi, slope, start, end)
        return torch.where(inside, y, x), torch.where(inside, log_derivative, 0.0)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        check_parameters(y, parameters, self.outputs, "y")
        if min(y.dtype.itemsize, parameters.dtype.itemsize) < 4:
            return _precisely(self.inverse, y, parameters)
        inside = y.abs() <= self.bound
        at = torch.where(inside, y, 0.0)
        (left, right), (bottom, top), (start, end) = self._bins(at, parameters, inverse=True)
        width, height = right - left, top - bottom
        theta = ((at - bottom) / height).clamp(0, 1)
        slope = height / width
        # xi solves (s - b) xi^2 + b xi - s theta = 0. Of the two ways to write its solution, the
        # one that does not subtract nearly equal numbers depends on the sign of b.
        difference = start * (1 - theta) - end * theta
        b = difference + 2 * slope * theta
        root = torch.sqrt(difference * difference + 4 * slope * slope * theta * (1 - theta))
        positive = b >= 0
        size = torch.where(positive, b, -b)
        total = size + root
        xi = torch.where(positive, 2 * slope * theta / total, total / (2 * (slope + size)))
        x = left + width * xi.clamp(0, 1)
        log_derivative = -_log_derivative(xi.clamp(0, 1), slope, start, end)
        return torch.where(inside, x, y), torch.where(inside, log_derivative, 0.0)

    def knots(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn parameters (..., K) into the places x and y of the knots, and derivatives there.

        Another way to write parameters as knots is a subclass that overrides this.

        Returns:
            Three tensors (..., bins + 1), the first two increasing from -bound to bound.
        """
        check_event(parameters, "parameters", self.outputs)
        # Bins first while computing: reductions over a short last dimension are slow.
        rows = parameters.movedim(-1, 0)
        widths, heights, raw = rows.split([self.bins, self.bins, self.bins - 1])
        inner = self.min_derivative + F.softplus(raw + self.derivative_offset)
        x = self._places(widths, self.min_width)
        y = self._places(heights, self.min_height)
        ends = torch.ones_like(inner[:1])
        derivatives = torch.cat([ends, inner, ends])
        return x.movedim(0, -1), y.movedim(0, -1), derivatives.movedim(0, -1)

    def kernel(self) -> StepKernel | None:
        form = SplineForm(
            bins=self.bins,
            left=-self.bound,
            width=2 * self.bound,
            tails=True,
            min_width=self.min_width,
            min_height=self.min_height,
            min_derivative=self.min_derivative,
            derivative_offset=self.derivative_offset,
        )
        return form.kernel()

    def _places(self, logits: Tensor, minimum: float) -> Tensor:
        """Place knots that divide [-bound, bound] by the softmax of some logits, (bins, ...)."""
        parts = minimum + (1 - minimum * self.bins) * F.softmax(logits, dim=0)
        inner = (2 * parts[:-1].cumsum(dim=0) - 1) * self.bound
        end = torch.full_like(inner[:1], self.bound)
        return torch.cat([-end, inner, end])

    def _bins(self, at: Tensor, parameters: Tensor, inverse: bool) -> list[Tensor]:
        """Find x, y and derivatives at both ends of the bins that values fall in, each (2, ...)."""
        shape = torch.broadcast_shapes(at.shape, parameters.shape[:-1])
        knots = [
            places.expand(*shape, places.shape[-1]).movedim(-1, 0)
            for places in self.knots(parameters)
        ]
        first = (at >= knots[int(inverse)][1:-1]).sum(dim=0)
        both = torch.stack([first, first + 1])
        return [each.gather(0, both) for each in knots]

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound:g}"


def _precisely(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """Map what is of half precision, in which a narrow bin would lie beside its place."""
    precise = torch.promote_types(x.dtype, torch.float32)
    values, log_derivatives = function(x.to(precise), parameters.to(precise))
    return values.to(x.dtype), log_derivatives.to(x.dtype)


def _log_derivative(xi: Tensor, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Compute the logarithm of dy/dx within a bin (Durkan et al. 2019, equation 5)."""
    rest = 1 - xi
    across = xi * rest
    above = end * xi * xi + 2 * slope * across + start * rest * rest
    # s + (d + d' - 2 s) xi (1 - xi), as a sum of positive terms.
    below = slope * (1 - 2 * across) + (start + end) * across
    return 2 * (torch.log(slope) - torch.log(below)) + torch.log(above)
