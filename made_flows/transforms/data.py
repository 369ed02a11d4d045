"""Fixed transforms for data: standardise, logit, log, dequantise; fitted once, never trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from made_flows._checks import (
    as_numbers,
    check_finite,
    check_values,
    expect,
    expect_type,
    non_negative_integer,
    positive_integer,
    real_number,
)
from made_flows._registry import saveable
from made_flows.transforms.base import Transform


@saveable
class Standardize(Transform):
    r"""Every column shifted and scaled: :math:`z_i = (x_i - m_i) / s_i`.

    Args:
        mean: m, (D,).
        std: s, (D,), positive.

    Raises:
        ValueError: for shapes that differ, values that are not finite, and columns that are
            constant, by their number.

    Example:
        >>> Standardize([3.0], [2.0]).to_noise(torch.tensor([[7.0], [3.0]]))[0]
        tensor([[2.],
                [0.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.register_buffer("mean", _columns(mean, "mean"))
        self.register_buffer("std", _columns(std, "std"))
        expect(self.mean.shape == self.std.shape, "std", "to have mean's shape", len(self.std))
        check_finite(self.mean, "mean")
        check_values(self.std, torch.isfinite(self.std) & (self.std > 0), "std", "to be positive")
        self.features = len(self.mean)

    @classmethod
    def fit(cls, x: Any) -> Standardize:
        """Fit the transform that gives the columns of x (N, D) mean 0 and deviation 1."""
        rows = _rows(x)
        expect(len(rows) > 1, "x", "to have at least two rows", len(rows))
        std, mean = torch.std_mean(rows, dim=0)
        dtype = torch.get_default_dtype()
        return cls(mean.to(dtype), std.to(dtype))

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context, self.mean.dtype)
        return (x - self.mean) / self.std, -self.std.log().sum().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context, self.mean.dtype)
        return z * self.std + self.mean, self.std.log().sum().expand(z.shape[:-1])


@saveable
class Logit(Transform):
    r"""Columns in bounded intervals, spread over the real line.

    .. math:: z = \log \frac{p}{1 - p}, \qquad
        p = \lambda + (1 - 2 \lambda) \frac{x - l}{h - l}

    and with a softness s

    .. math:: z = \log \frac{\sinh(p / 2s)}{\sinh((1 - p) / 2s)}

    Columns with infinite bounds stay as they are.

    Args:
        low: l, (D,).
        high: h, (D,).
        margin: :math:`\lambda`, which keeps the ends of the intervals finite: the density reaches
            :math:`\lambda (h - l) / (1 - 2 \lambda)` beyond them, and is normalised there. With 0
            it ends at l and h, which have no noise themselves.
        softness: s, None for infinite. A small one leaves shapes inside the interval as they are:
            the map is nearly linear but for about s (h - l) at both ends, and takes noise that is
            uniform plus logistic of scale s to uniform values.

    Raises:
        ValueError: for a softness below 0.02, bounds of which one alone is infinite, intervals that
            are empty, and, naming row and column, values outside the intervals as the margin
            widens them.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, appendix D (images).

    Example:
        >>> pixels = Logit([0.0, 0.0], [256.0, 256.0])
        >>> pixels.to_noise(torch.tensor([0.0, 128.0]))[0]
        tensor([-13.8155,   0.0000])
    """

    low: Tensor
    high: Tensor
    bounded: Tensor

    def __init__(
        self, low: Any, high: Any, margin: float = 1e-6, softness: float | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("low", _columns(low, "low"))
        self.register_buffer("high", _columns(high, "high"))
        expect(self.low.shape == self.high.shape, "high", "to have low's shape", len(self.high))
        check_values(self.low, self.low < self.high, "low", "to be below high")
        finite = torch.isfinite(self.low)
        both = finite == torch.isfinite(self.high)
        check_values(self.low, both, "low", "to be infinite where high is, and only there")
        self.margin = real_number(margin, "margin")
        expect(0 <= self.margin < 0.5, "margin", "to be in [0, 0.5)", margin)
        self.softness = None if softness is None else real_number(softness, "softness")
        # Below, exponentials of float32 come near their largest.
        expect(softness is None or softness >= 0.02, "softness", "to be at least 0.02", softness)
        self.features = len(self.low)
        self.register_buffer("bounded", finite, persistent=False)

    @classmethod
    def fit(cls, x: Any, widen: float = 0.1, margin: float = 1e-6) -> Logit:
        """Return the transform whose intervals are the ranges of the columns of x (N, D).

        Args:
            x: the data.
            widen: how much is added at both ends, as a part of the range, since other data of
                the same kind may reach further.
            margin: as for the class.
        """
        rows = _rows(x)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        more = real_number(widen, "widen") * (high - low)
        dtype = torch.get_default_dtype()
        return cls((low - more).to(dtype), (high + more).to(dtype), margin)

    @property
    def support(self) -> constraints.Constraint:
        low, high, length = self._interval()
        beyond = self.margin * length / (1 - 2 * self.margin)
        low = torch.where(self.bounded, low - beyond, self.low)
        high = torch.where(self.bounded, high + beyond, self.high)
        return constraints.independent(constraints.interval(low, high), 1)

    def _interval(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lower and upper ends, and lengths; 0, 1 and 1 where there are no bounds."""
        low = torch.where(self.bounded, self.low, 0.0)
        high = torch.where(self.bounded, self.high, 1.0)
        return low, high, high - low

    def _shares(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the shares p and 1 - p of the interval on both sides of a value, and its length.

        Both from their own end, as 1 - p would lose the small ones.
        """
        low, high, length = self._interval()
        at, inner = torch.where(self.bounded, x, 0.5), 1 - 2 * self.margin
        below = self.margin + inner * (at - low) / length
        return below, self.margin + inner * (high - at) / length, length

    def _steepness(self) -> tuple[float, float]:
        """Return a = 1 / 2s, 0 of the logit, and log(a sinh a), 0 of the logit as well."""
        if self.softness is None:
            return 0.0, 0.0
        steep = 0.5 / self.softness
        return steep, math.log(steep * math.sinh(steep))

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context, self.low.dtype)
        inner = 1 - 2 * self.margin
        below, above, length = self._shares(x)
        within = ~self.bounded | ((below > 0) & (above > 0))
        check_values(x, within & ~torch.isnan(x), "value", "to be between the bounds of its column")
        steep, constant = self._steepness()
        if steep:
            below, above = torch.sinh(steep * below), torch.sinh(steep * above)
        below, above = torch.log(below), torch.log(above)
        each = math.log(inner) + constant - torch.log(length) - below - above
        log_det = torch.where(self.bounded, each, 0.0).sum(dim=-1)
        return torch.where(self.bounded, below - above, x), log_det

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context, self.low.dtype)
        low, high, length = self._interval()
        inner = 1 - 2 * self.margin
        at = torch.where(self.bounded, z, 0.0)
        steep = self._steepness()[0]

        def share(at: Tensor) -> Tensor:
            p = torch.sigmoid(at - steep)
            return torch.log1p(math.expm1(2 * steep) * p) / (2 * steep) if steep else p

        # From the nearer end, where floating-point numbers are dense.
        near_low = low + length * (share(at) - self.margin) / inner
        near_high = high - length * (share(-at) - self.margin) / inner
        x = torch.where(at < 0, near_low, near_high)
        # Rounding must not carry a value past the last one that has noise.
        below, above, _ = self._shares(x)
        x = torch.where(below > 0, torch.where(above > 0, x, high), low)
        logsigmoid = torch.nn.functional.logsigmoid
        slope = logsigmoid(steep + at) + logsigmoid(steep - at)
        if steep:
            slope = slope + math.log(-math.expm1(-2 * steep) / (2 * steep))
        each = slope + torch.log(length) - math.log(inner)
        log_det = torch.where(self.bounded, each, 0.0).sum(dim=-1)
        return torch.where(self.bounded, x, z), log_det

    def extra_repr(self) -> str:
        soft = "" if self.softness is None else f", softness={self.softness:g}"
        return f"features={self.features}, margin={self.margin:g}{soft}"


class _OfColumns(Transform):
    """A transform of some columns; others stay as they are."""

    chosen: Tensor

    def __init__(self, features: int, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.register_buffer("chosen", _chosen(self.features, columns), persistent=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, columns={self.chosen.nonzero().squeeze(1).tolist()}"


@saveable
class Log(_OfColumns):
    r"""The logarithm of positive columns: :math:`z_i = \log x_i`; others stay as they are.

    Args:
        features: number of features D.
        columns: the columns concerned; all by default.

    Raises:
        ValueError: for columns out of range, and, naming row and column, for values that are not
            positive.

    Example:
        >>> Log(2, columns=[1]).to_noise(torch.ones(2))[0]
        tensor([1., 0.])
    """

    @classmethod
    def fit(cls, x: Any) -> Log:
        """Return the transform of the columns of x (N, D) that hold positive values only."""
        rows = _rows(x)
        return cls(rows.shape[1], (rows > 0).all(dim=0).nonzero().squeeze(1).tolist())

    @property
    def support(self) -> constraints.Constraint:
        low = torch.where(self.chosen, 0.0, -torch.inf)
        return constraints.independent(constraints.greater_than(low), 1)

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context)
        check_values(x, (x > 0) | ~self.chosen, "value", "to be positive")
        logarithm = torch.log(torch.where(self.chosen, x, 1.0))
        return torch.where(self.chosen, logarithm, x), -logarithm.sum(dim=-1)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context)
        logarithm = torch.where(self.chosen, z, 0.0)
        return torch.where(self.chosen, torch.exp(logarithm), z), logarithm.sum(dim=-1)


@saveable
class Dequantize(_OfColumns):
    r"""Integers made continuous by uniform noise: :math:`z_i = x_i + u_i,\ u_i \in [0, 1)`.

    The expected log-density of z is a lower bound of the log-probability of x; every call draws
    anew. The way back rounds down, and has no gradient. Other columns stay as they are.

    Args:
        features: number of features D.
        columns: the columns concerned; all by default.

    Raises:
        ValueError: for columns out of range, and, naming row and column, for values that are not
            integers.

    References:
        Theis et al. 2016, *A note on the evaluation of generative models*, section 3.1.

    Example:
        >>> dequantize = Dequantize(3)
        >>> z, _ = dequantize.to_noise(torch.tensor([0.0, 7.0, 255.0]))
        >>> dequantize.to_data(z)[0]
        tensor([  0.,   7., 255.])
    """

    differentiable = False
    one: Tensor

    def __init__(self, features: int, columns: Sequence[int] | None = None) -> None:
        super().__init__(features, columns)
        # Says in which dtype integers become noise: it moves with the model.
        self.register_buffer("one", torch.ones(()))

    @classmethod
    def fit(cls, x: Any) -> Dequantize:
        """Return the transform of the columns of x (N, D) that hold integers only."""
        rows = _rows(x)
        whole = (rows == rows.floor()).all(dim=0)
        return cls(rows.shape[1], whole.nonzero().squeeze(1).tolist())

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context)
        check_values(x, (x == x.floor()) | ~self.chosen, "value", "to be an integer")
        x = x if x.is_floating_point() else x.to(self.one.dtype)
        # Rounding must not carry the sum to the next integer.
        noisy = torch.minimum(x + torch.rand_like(x), torch.nextafter(x + 1, x))
        return torch.where(self.chosen, noisy, x), x.new_zeros(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context)
        return torch.where(self.chosen, z.floor(), z), z.new_zeros(z.shape[:-1])


def _rows(x: Any) -> Tensor:
    """Convert data to finite rows (N, D) in double precision."""
    rows = as_numbers(x, "x").double()
    expect(rows.dim() == 2 and rows.numel() > 0, "x", "of shape (N, D)", tuple(rows.shape))
    check_finite(rows, "x")
    return rows


def _columns(value: Any, argument: str) -> Tensor:
    """Convert one number per column to a tensor of floats."""
    tensor = as_numbers(value, argument).clone()
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    expect(tensor.dim() == 1 and len(tensor) > 0, argument, "of shape (D,)", tuple(tensor.shape))
    return tensor


def _chosen(features: int, columns: Any) -> Tensor:
    """Return which columns are meant, (D,): all of them for None."""
    if columns is None:
        return torch.ones(features, dtype=torch.bool)
    chosen = torch.zeros(features, dtype=torch.bool)
    several = isinstance(columns, Iterable) and not isinstance(columns, str)
    expect_type(several, "columns", "to be a sequence of integers, or None", columns)
    for i, column in enumerate(columns):
        name, plain = f"columns[{i}]", column.item() if isinstance(column, Tensor) else column
        index = non_negative_integer(plain, name)
        expect(index < features, name, f"to be below {features}", index)
        expect(not bool(chosen[index]), name, "to be named once", index)
        chosen[index] = True
    return chosen
