"""Steps: how a feature's noise becomes its value, for a tile of rows at once.

They do what the modules of the same names in ``made_flows.inverse.compiled.steps`` do, with the
same constants (``NUMBERS``: whether to invert, the scale rule and its two constants, the rest).
``work`` points at the first parameter of the feature; row k of a tile of ``ROWS`` rows stands at
``work + k * ROWS``. Parameters that a feature has many of are taken as one block of ``WIDTH``
rows, a power of two.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from made_flows.inverse.gpu.elementwise import scale, sigmoid, softplus
from made_flows.univariate.step_kernel import EDGES

KINDS = ("affine", "gated", "bernoulli", "categorical", "mixture", "rational_spline")
"""The kinds of :class:`~made_flows.univariate.step_kernel.StepKernel` that there are steps for."""


class StepMeta(NamedTuple):
    """The step that a sweep is compiled for.

    Args:
        kind: one of ``KINDS``.
        numbers: its constants.
        width: a power of two that its parameters of one kind fit in.
        parts: of the noise.
        one_hot: whether the network reads values as one-hot columns.
    """

    kind: str
    numbers: tuple[float, ...]
    width: int
    parts: int
    one_hot: bool


FIXED = tl.constexpr(EDGES["fixed"])


@triton.jit
def rows_of(work, first, count, fill: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Load ``count`` rows from one on as a block, (WIDTH, ROWS), filled up with a value."""
    k = tl.arange(0, WIDTH)
    places = (first + k)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    return tl.load(work + places, mask=(k < count)[:, None], other=fill)


@triton.jit
def row_at(work, index, ROWS: tl.constexpr):
    """Load for every lane the row that it names."""
    return tl.load(work + index * ROWS + tl.arange(0, ROWS))


@triton.jit
def choose(work, classes, uniform, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Return the class in whose part of the cumulative distribution a uniform number falls.

    It is -1 where logits are NaN, or infinite.
    """
    logits = rows_of(work, 0, classes, float("-inf"), WIDTH, ROWS)
    weights = tl.exp(logits - tl.max(logits, axis=0)[None, :])
    total = tl.sum(weights, axis=0)
    threshold = uniform * total
    passed = threshold[None, :] >= tl.cumsum(weights, axis=0)
    # The last class takes what is left, so that rounding cannot lead past it.
    passed = passed & (tl.arange(0, WIDTH) < classes - 1)[:, None]
    return tl.where(total == total, tl.sum(passed.to(tl.int32), axis=0), -1)


@triton.jit
def fractions(
    work, first, part: tl.constexpr, NUMBERS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Return the fractions of the interval that widths (part 0) or heights (1) take."""
    BINS: tl.constexpr = NUMBERS[4]
    a = rows_of(work, first, BINS, 0.0, WIDTH, ROWS) / NUMBERS[9]
    a = a / (1.0 + tl.abs(a) / NUMBERS[10])
    inside = (tl.arange(0, WIDTH) < BINS)[:, None]
    a = tl.where(inside, a, float("-inf"))
    a = tl.exp(a - tl.max(a, axis=0)[None, :])
    least: tl.constexpr = NUMBERS[11 + part]
    a = least + (1.0 - least * BINS) * a / tl.sum(a, axis=0)[None, :]
    return tl.where(inside, a, 0.0)


@triton.jit
def positive(raw, outer, NUMBERS: tl.constexpr):
    """Make a raw derivative positive; at outer knots it may be a constant."""
    if NUMBERS[14] > 0.0:
        a = tl.exp(raw / (1.0 + tl.abs(raw) / NUMBERS[14]))
    else:
        a = NUMBERS[13] + softplus(raw + NUMBERS[15])
    if NUMBERS[16] == FIXED:
        a = tl.where(outer, NUMBERS[17], a)
    return a


@triton.jit
def edge_row(knot, knots, NUMBERS: tl.constexpr):
    """Return the row of a knot's raw derivative; any row, where it is a constant."""
    if NUMBERS[16] == FIXED:
        row = tl.maximum(tl.minimum(knot - 1, knots - 1), 0)
    else:
        row = knot % knots
    return row


@triton.jit
def clamped(t):
    """Bring a place within a bin to between 0 and 1, where rounding led past them."""
    return tl.where(t < 0.0, 0.0, tl.where(t > 1.0, 1.0, t))


@triton.jit
def rational_quadratic(place, width, height, start, end, INVERSE: tl.constexpr):
    """Map a value's place in its bin on one axis to that on the other."""
    steep = height / width
    if INVERSE:
        # The root of Durkan et al. 2019, equations 6-8, without a difference of like numbers.
        difference = start * (1.0 - place) - end * place
        b = difference + 2.0 * steep * place
        across = place * (1.0 - place)
        root = tl.sqrt(difference * difference + 4.0 * steep * steep * across)
        size = tl.abs(b)
        other = tl.where(
            b >= 0.0,
            2.0 * steep * place / (size + root),
            (size + root) / (2.0 * (steep + size)),
        )
        other = clamped(other)
    else:
        across = place * (1.0 - place)  # equation 4
        below = steep * (1.0 - 2.0 * across) + (start + end) * across
        other = (steep * place * place + start * across) / below
    return other


@triton.jit
def rational_linear(
    place, width, height, start, end, raw, least: tl.constexpr, INVERSE: tl.constexpr
):
    """Return the same for a bin that is divided in two (Dolatabadi et al. 2020, section 3)."""
    inner = least + (1.0 - 2.0 * least) * sigmoid(raw)
    # Weights of the bin's last end and of its inner point, whose height is middle.
    steep = height / width
    last = tl.sqrt(start / end)
    weight = (inner * start + (1.0 - inner) * last * end) / steep
    middle = inner * last / ((1.0 - inner) + inner * last)
    if INVERSE:
        lower = place <= middle
        above = tl.where(lower, inner * place, weight * (place - middle))
        below = tl.where(lower, weight * (middle - place), last * (1.0 - place))
        other = tl.where(lower, above / (place + below), (above + inner * below) / (above + below))
    else:
        lower = place <= inner
        above = tl.where(lower, weight * middle * place, last * (place - inner))
        below = tl.where(lower, inner - place, weight * (1.0 - place))
        other = tl.where(
            lower, above / (below + weight * place), (middle * below + above) / (below + above)
        )
    return other


@triton.jit
def rational_spline(work, count, u, NUMBERS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Apply a monotone rational spline or its inverse; the identity outside of its interval."""
    BINS: tl.constexpr = NUMBERS[4]
    INVERSE: tl.constexpr = NUMBERS[0] != 0.0
    LINEAR: tl.constexpr = NUMBERS[8] != 0.0
    widths = fractions(work, 0, 0, NUMBERS, WIDTH, ROWS)
    heights = fractions(work, BINS, 1, NUMBERS, WIDTH, ROWS)
    lefts = tl.cumsum(widths, axis=0) - widths
    bottoms = tl.cumsum(heights, axis=0) - heights
    place = (u - NUMBERS[5]) / NUMBERS[6]
    k = tl.arange(0, WIDTH)[:, None]
    # The last bin that begins at or below the value.
    begun = place[None, :] >= (bottoms if INVERSE else lefts)
    bin_ = tl.sum((begun & (k > 0) & (k < BINS)).to(tl.int32), axis=0)
    here = k == bin_[None, :]
    left = tl.sum(tl.where(here, lefts, 0.0), axis=0)
    bottom = tl.sum(tl.where(here, bottoms, 0.0), axis=0)
    width = tl.sum(tl.where(here, widths, 0.0), axis=0)
    height = tl.sum(tl.where(here, heights, 0.0), axis=0)
    knots = count - (3 if LINEAR else 2) * BINS
    derivatives = work + 2 * BINS * ROWS
    start = row_at(derivatives, edge_row(bin_, knots, NUMBERS), ROWS)
    end = row_at(derivatives, edge_row(bin_ + 1, knots, NUMBERS), ROWS)
    start = positive(start, bin_ == 0, NUMBERS)
    end = positive(end, bin_ == BINS - 1, NUMBERS)
    within = clamped((place - bottom) / height if INVERSE else (place - left) / width)
    if LINEAR:
        raw = row_at(derivatives, knots + bin_, ROWS)
        other = rational_linear(within, width, height, start, end, raw, NUMBERS[18], INVERSE)
    else:
        other = rational_quadratic(within, width, height, start, end, INVERSE)
    other = left + width * other if INVERSE else bottom + height * other
    return tl.where((place >= 0.0) & (place <= 1.0), NUMBERS[5] + NUMBERS[6] * other, u)


@triton.jit
def take_step(work, count, u, v, STEP: tl.constexpr, ROWS: tl.constexpr):
    """Return the values (ROWS,) of a feature with ``count`` parameters from two parts of noise."""
    KIND: tl.constexpr = STEP.kind
    NUMBERS: tl.constexpr = STEP.numbers
    WIDTH: tl.constexpr = STEP.width
    if KIND == "affine":
        SWAPPED: tl.constexpr = NUMBERS[5] != 0.0
        shift = NUMBERS[4] * row_at(work, 1 if SWAPPED else 0, ROWS)
        s = NUMBERS[4] * row_at(work, 0 if SWAPPED else 1, ROWS)
        s = scale(NUMBERS[1], NUMBERS[2], NUMBERS[3], s)
        x = (u - shift) / s if NUMBERS[0] != 0.0 else shift + s * u
    elif KIND == "gated":
        target = row_at(work, 0, ROWS)
        s = scale(NUMBERS[1], NUMBERS[2], NUMBERS[3], row_at(work, 1, ROWS))
        x = (u - (1.0 - s) * target) / s if NUMBERS[0] != 0.0 else s * u + (1.0 - s) * target
    elif KIND == "bernoulli":
        probability = sigmoid(row_at(work, 0, ROWS)).to(u.dtype)
        x = tl.where(u < probability, 1.0, 0.0).to(u.dtype)
        x = tl.where(probability == probability, x, probability)  # NaN
    elif KIND == "categorical":
        x = choose(work, count, u, WIDTH, ROWS).to(u.dtype)
    elif KIND == "mixture":
        components = count // 3
        chosen = choose(work, components, u, WIDTH, ROWS)
        k = tl.maximum(chosen, 0)
        s = row_at(work, 2 * components + k, ROWS)
        x = row_at(work, components + k, ROWS) + v * scale(NUMBERS[1], NUMBERS[2], NUMBERS[3], s)
        x = tl.where(chosen < 0, float("nan"), x)
    else:
        x = rational_spline(work, count, u, NUMBERS, WIDTH, ROWS)
    return x
