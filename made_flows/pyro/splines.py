"""The rational splines of Pyro, knot for knot, as bijections of this library."""

from __future__ import annotations

import torch
from torch import Tensor

from made_flows._registry import saveable
from made_flows.interop.libraries.pyro import spline_form
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.splines import RationalQuadraticSpline
from made_flows.univariate.step_kernel import StepKernel

_MIN_LAMBDA = 0.025
"""How near to a knot a bin may be divided, as a fraction of the bin."""


@saveable
class PyroQuadraticSpline(RationalQuadraticSpline):
    """The monotone rational-quadratic spline as Pyro parametrises it.

    The parameters of a feature are K logits of the widths, K of the heights, and K - 1 inner
    derivatives before a softplus. At the outer knots the derivative is 0.999, as there.

    Args:
        bins: number of bins.
        bound: the spline is the identity outside [-bound, bound].

    References:
        Durkan et al. 2019, *Neural Spline Flows*, equations 4-8.

    Example:
        >>> spline = PyroQuadraticSpline(bins=4)
        >>> spline.forward(torch.tensor([0.0, 100.0]), torch.zeros(2, 11))[0].round(decimals=4)
        tensor([  0., 100.])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__(bins, bound)
        self.derivative_offset, self.edge = 0.0, 1 - self.min_derivative


@saveable
class PyroLinearSpline(Bijection):
    r"""The monotone rational-linear spline as Pyro parametrises it.

    A bin from :math:`(x_0, y_0)` to :math:`(x_1, y_1)`, with derivatives :math:`d_0, d_1` and
    slope s, is divided at :math:`\xi = \lambda` into two ratios of linear functions of
    :math:`\xi = (x - x_0) / (x_1 - x_0)`. With weights :math:`w_0 = 1`,
    :math:`w_1 = \sqrt{d_0 / d_1}` and :math:`w_c = (\lambda w_0 d_0 + (1 - \lambda) w_1 d_1) / s`,
    and :math:`y_c` the mean of :math:`y_0, y_1` weighted by :math:`(1 - \lambda) w_0` and
    :math:`\lambda w_1`,

    .. math:: y = \frac{w_0 y_0 (\lambda - \xi) + w_c y_c\, \xi}{w_0 (\lambda - \xi) + w_c\, \xi}
        \;\; (\xi \le \lambda), \qquad
        y = \frac{w_c y_c (1 - \xi) + w_1 y_1 (\xi - \lambda)}
        {w_c (1 - \xi) + w_1 (\xi - \lambda)} \;\; (\xi > \lambda)

    The parameters of a feature are K logits of the widths, K of the heights, K - 1 inner
    derivatives before a softplus, and K places :math:`\lambda` before a sigmoid.

    Args:
        bins: number of bins K.
        bound: the spline is the identity outside [-bound, bound].

    References:
        Dolatabadi et al. 2020, *Invertible Generative Modeling using Linear Rational Splines*,
        section 3 (algorithm 1).

    Example:
        >>> spline = PyroLinearSpline(bins=4)
        >>> y, _ = spline.forward(torch.tensor([1.0, 100.0]), torch.zeros(2, 15))
        >>> spline.inverse(y, torch.zeros(2, 15))[0].round(decimals=4)
        tensor([  1., 100.])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__()
        # The quadratic spline's checks and places of the knots.
        self.quadratic = PyroQuadraticSpline(bins, bound)
        self.bins, self.bound = self.quadratic.bins, self.quadratic.bound
        self.outputs = 4 * self.bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() <= self.bound
        # A point that cannot fail where the spline is not used: the gradient of torch.where is
        # 0 * inf = NaN for a value that is not taken.
        at = torch.where(inside, x, 0.0)
        part = _Bin(self, at, parameters, inverse=False)
        xi = ((at - part.x0) / part.width).clamp(0, 1)
        first = xi <= part.division
        left, right, wl, wr, yl, yr = part.half(first)
        # In either half: weights of its two ends, (distance to the other end) times its own.
        to_left, to_right = wr * (xi - left), wl * (right - xi)
        total = to_left + to_right
        y = yl + (yr - yl) * (to_left / total)
        slope = wl * wr * (right - left) * (yr - yl) / part.width
        log_derivative = torch.log(slope) - 2 * torch.log(total)
        return torch.where(inside, y, x), torch.where(inside, log_derivative, 0.0)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        inside = y.abs() <= self.bound
        at = torch.where(inside, y, 0.0)
        part = _Bin(self, at, parameters, inverse=True)
        first = at <= part.yc
        left, right, wl, wr, yl, yr = part.half(first)
        # y between its ends is the weighted mean above; solved for the place of xi.
        above, below = wl * (at - yl).clamp(min=0), wr * (yr - at).clamp(min=0)
        total = above + below
        xi = (left * below + right * above) / total
        x = part.x0 + part.width * xi
        # dx/dy at the same pair, written without the subtraction of nearly equal numbers.
        log_derivative = torch.log(
            wl * wr * (right - left) * (yr - yl) * part.width
        ) - 2 * torch.log(total)
        return torch.where(inside, x, y), torch.where(inside, log_derivative, 0.0)

    def kernel(self) -> StepKernel | None:
        return spline_form(self.bins, self.bound, "linear").kernel()

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound:g}"


class _Bin:
    """The bins that values fall in, and the point where each is divided."""

    def __init__(
        self, spline: PyroLinearSpline, at: Tensor, parameters: Tensor, inverse: bool
    ) -> None:
        bins = spline.bins
        rest, raw = parameters.split([3 * bins - 1, bins], dim=-1)
        (self.x0, x1), (self.y0, self.y1), (d0, d1), first = spline.quadratic.bin_of(
            at, rest, inverse
        )
        self.width, height = x1 - self.x0, self.y1 - self.y0
        division = raw.expand(*first.shape, bins).gather(-1, first.unsqueeze(-1)).squeeze(-1)
        division = torch.sigmoid(division) * (1 - 2 * _MIN_LAMBDA) + _MIN_LAMBDA
        self.division = division
        self.w1 = torch.sqrt(d0 / d1)
        rest_of = 1 - division
        self.wc = (division * d0 + rest_of * self.w1 * d1) * self.width / height
        share = division * self.w1 / (rest_of + division * self.w1)
        self.yc = self.y0 + height * share

    def half(self, first: Tensor) -> tuple[Tensor, ...]:
        """Return ends in xi, weights and ends in y of the half that each value is in."""
        one = torch.ones_like(self.division)
        return (
            torch.where(first, 0.0, self.division),
            torch.where(first, self.division, one),
            torch.where(first, one, self.wc),
            torch.where(first, self.wc, self.w1),
            torch.where(first, self.y0, self.yc),
            torch.where(first, self.yc, self.y1),
        )
