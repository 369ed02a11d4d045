"""What one column holds, fitted to its values: between these and the codes that a head knows.

A code of 0 is a value of every column, so that it can stand for a missing one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from made_flows._checks import expect
from made_flows._registry import saveable
from made_flows.tables.frames import DAY, Values, as_written
from made_flows.training.moments import robust_moments

ATOM = -10_000.0
"""The code of the value that has a mass of its own; no logarithm of a number is near it."""

_MOST = 100
"""Values that have a probability each; categories beyond them share that of the unseen."""

_NUMBERS = ("int", "float")
_OF_TEXT = {"date": "datetime", "duration": "timedelta", "int": "numeric", "float": "numeric"}

_CYCLES = {"week": 7.0, "year": 365.2425}
_TAILS, _SKEWS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.12), (-0.6, -0.3, -0.1, 0.0, 0.1, 0.3, 0.6)


class Column(ABC):
    """One column of a table: its name, its kind, and the type of its values."""

    name: str
    kind: str
    holds: str

    @property
    @abstractmethod
    def whole_days(self) -> bool:
        """Whether its values are dates without a time."""

    def codes(self, values: Values) -> Any:
        """Return codes (N,) in double precision, NaN where a value is missing.

        Raises:
            TypeError: for values of another type.
            ValueError: for values that the column cannot have, naming the row.
        """
        values = _as_held(values, self.holds)
        fits = values.holds == self.holds or (values.holds in _NUMBERS and self.holds in _NUMBERS)
        if not fits and not bool(values.missing.all()):
            row = int((~values.missing).argmax())
            first = values.array[row : row + 1].tolist()[0]
            raise TypeError(
                f"Expected column {self.name!r} to hold {self.holds}, as in training; got "
                f"{values.holds}: {first!r} in row {row}{_converted(self.holds, values.holds)}"
            )
        codes = np.full(len(values.array), np.nan)
        known = ~values.missing
        codes[known] = self._codes(values.array[known], np.flatnonzero(known)) if fits else np.nan
        return codes

    @abstractmethod
    def _codes(self, values: Any, rows: Any) -> Any:
        """Return the codes of values that are not missing, of given rows."""

    @abstractmethod
    def values(self, codes: Any) -> Any:
        """Return the values of codes, of the type that the column holds."""

    @abstractmethod
    def guess(self, codes: Any) -> Any:
        """Return the best guess of values (n,) from draws of their codes (draws, n)."""

    def filled(self, known: Values, guesses: Any) -> Any:
        """Put guesses where values are missing."""
        array, missing = known.array, known.missing
        if known.holds == "bool" and guesses.dtype.kind in "if":
            if np.isin(guesses, (0, 1)).all():
                guesses = guesses.astype(bool)
            else:
                array = _as_held(known, self.holds).array
        if self.holds in ("date", "duration"):
            array = _moments(np.where(missing, 0.0, array.astype(float)), self.holds)
        array = array.astype(object if guesses.dtype == object else array.dtype)
        array[missing] = guesses
        return array

    @abstractmethod
    def summary(self) -> str:
        """Say what values there are, in a few words."""


def _converted(holds: str, found: str) -> str:
    """Say what makes values of one type of those of another, where something does."""
    if found == "text" and holds in _OF_TEXT:
        return f". pandas.to_{_OF_TEXT[holds]} makes them of text"
    return ". astype(str) makes text of them" if holds == "text" and found in _NUMBERS else ""


def _as_held(values: Values, holds: str) -> Values:
    """Return truth values as one and zero where a column holds numbers, and the other way round."""
    array, missing = values.array, values.missing
    if values.holds == "bool" and holds in _NUMBERS:
        return Values(np.where(missing, np.nan, array).astype(float), "int")
    if values.holds in _NUMBERS and holds == "bool" and np.isin(array[~missing], (0, 1)).all():
        return Values(np.where(missing, None, array.astype(bool)), "bool")
    return values


@saveable
@dataclass(frozen=True)
class CategoryColumn(Column):
    """A column of one of several values, each with a probability of its own.

    Values that were not seen in training have one together: as many as were not kept, and one
    more, of all the rows and one more (Laplace's rule of succession).

    Args:
        name: of the column.
        kind: ``"category"``, ``"binary"`` or ``"constant"``.
        holds: the type of its values, see :class:`~made_flows.tables.frames.Values`.
        categories: the values, the most frequent first.
        counts: in how many rows each was found.
        others: in how many rows others were found.
    """

    name: str
    kind: str
    holds: str
    categories: tuple[Any, ...]
    counts: tuple[int, ...]
    others: int

    @property
    def unseen(self) -> float:
        """The probability of all values that have no code of their own."""
        if self.holds == "bool" and len(self.categories) == 2:
            return 0.0
        return (self.others + 1) / (sum(self.counts) + self.others + 1)

    @property
    def whole_days(self) -> bool:
        return self.holds == "date" and all(day == round(day) for day in self.categories)

    def _codes(self, values: Any, rows: Any) -> Any:
        code: dict[Any, int] = {}
        if self.holds == "float":  # of a model that took single precision for what it is exactly
            with np.errstate(over="ignore"):  # which is no category then
                exact = np.array(self.categories, np.float32)
            same = exact == np.array(self.categories)
            written = as_written(np.where(same, exact, np.float32("nan"))).tolist()
            code = {value: k for k, value in enumerate(written)}
        code |= {value: k for k, value in enumerate(self.categories)}
        unseen = len(self.categories)
        return np.array([code.get(value, unseen) for value in values.tolist()], dtype=float)

    def values(self, codes: Any) -> Any:
        kinds = {"text": object, "bool": bool, "int": np.int64, "date": "M8[us]"}
        found: Any = np.array([self.categories[int(k)] for k in codes], dtype=object)
        if self.holds in ("date", "duration"):
            return _moments(found.astype(float), self.holds)
        return found.astype(kinds.get(self.holds, float))

    def guess(self, codes: Any) -> Any:
        counts = np.stack([(codes == k).sum(axis=0) for k in range(len(self.categories))])
        return self.values(counts.argmax(axis=0))

    def summary(self) -> str:
        shown = ", ".join(self._shown(self.categories[:4]))
        more = f", ... ({len(self.categories)})" if len(self.categories) > 4 else ""
        return f"{shown}{more}" + (f"; {self.others} rows of others" if self.others else "")

    def _shown(self, some: Sequence[Any]) -> list[str]:
        if self.whole_days:
            return _shown(some, "date")
        if self.holds == "float":  # integers beside missing values, too
            return [f"{value:.0f}" if value == round(value) else str(value) for value in some]
        return [str(value) or "''" for value in self.values(range(len(some)))]


@saveable
@dataclass(frozen=True)
class NumberColumn(Column):
    r"""A column of numbers, brought near a normal distribution by a map fitted to them.

    .. math:: y = b(x) - c, \qquad
        z = \frac{\sinh(t \operatorname{asinh}((y - m) / s) - k) - l}{d}

    with the base b: the identity, the logarithm of the distance from ``low``, the logit between
    ``low`` and ``high``, or asinh. y is the code.

    Args:
        name: of the column.
        kind: ``"real"``, ``"spline"``, ``"positive"``, ``"bounded"``, ``"count"``, ``"amount"``,
            ``"rounded"``, ``"zero_inflated"`` or ``"date"``.
        holds: the type of its values, see :class:`~made_flows.tables.frames.Values`.
        base: ``"identity"``, ``"log"``, ``"logit"`` or ``"asinh"``.
        low, high: ends of the support; ``high`` of the logit alone.
        center: c.
        step: the distance of neighbouring values, whose probability is that of the cell around
            them; 0 for a density.
        inflated: whether 0 has a probability of its own.
        shape: m, s, t, k, l and d.
        cycles: the names of cycles (``"week"``, ``"year"``) that the network is told the phase of.
        ends: least and largest value.
        frequent: numbers, of a column in steps, that have a probability of their own beside that
            of their cell: those far more frequent than their neighbours.

    References:
        Jones and Pewsey 2009, *Sinh-arcsinh distributions*, equation 1.
    """

    name: str
    kind: str
    holds: str
    base: str
    low: float
    high: float
    center: float
    step: float
    inflated: bool
    shape: tuple[float, ...]
    cycles: tuple[str, ...]
    ends: tuple[float, float]
    frequent: tuple[float, ...] = ()

    @property
    def whole_days(self) -> bool:
        return self.holds == "date" and self.step >= 1

    @property
    def masses(self) -> Any:
        """The codes of values that have a probability of their own."""
        codes = _base(np.array(self.frequent), self.base, self.low, self.high) - self.center
        return np.append([ATOM] * self.inflated, codes)

    @property
    def periods(self) -> tuple[float, ...]:
        """The cycles in the unit of the values, days."""
        return tuple(_CYCLES[name] for name in self.cycles)

    def _codes(self, values: Any, rows: Any) -> Any:
        zero = (values == 0) if self.inflated else np.zeros(len(values), dtype=bool)
        valid = np.ones_like(zero)
        if self.base in ("log", "logit"):
            valid = zero | (values > self.low)
        if self.base == "logit":
            valid &= values < self.high
        words = f"to be above {self.low:g}"
        if self.kind == "count":
            valid &= values == np.round(values)
            words = "to hold whole numbers from 0 on"
        elif self.base == "logit":
            words = f"to be between {self.low:g} and {self.high:g}, both excluded"
        elif self.kind == "amount" or self.inflated:
            words = "to hold no negative number"
        if not valid.all():
            place = int((~valid).argmax())
            got = f"{values[place]:g} in row {rows[place]}"
            advice = f". For other numbers, make the model with columns={{{self.name!r}: 'real'}}"
            expect(False, f"column {self.name!r} ({self.kind})", words, got + advice)
        codes = _base(np.where(zero, self.low + 1.0, values), self.base, self.low, self.high)
        return np.where(zero, ATOM, codes - self.center)

    def values(self, codes: Any) -> Any:
        atom = codes == ATOM if self.inflated else np.zeros(len(codes), dtype=bool)
        y = np.where(atom, 0.0, codes) + self.center
        if self.base == "log":
            x = self.low + np.exp(y)
        elif self.base == "logit":
            x = self.low + (self.high - self.low) / (1 + np.exp(-y))
        else:
            x = np.sinh(y) if self.base == "asinh" else y
        if self.step:
            x = _multiples(x, self.step)
        x = np.where(atom, 0.0, x)
        if self.holds == "int" and self.step and bool((np.abs(x) < 2**63).all()):
            return x.astype(np.int64)  # tails may reach further, where they stay as they are
        return _moments(x, self.holds) if self.holds in ("date", "duration") else x

    def guess(self, codes: Any) -> Any:
        values = self.values(codes.flatten()).reshape(codes.shape)
        kind, unit = values.dtype.kind, DAY if values.dtype.kind in "Mm" else 1.0
        middle = np.median(values if kind == "f" else values.astype(np.int64), axis=0)
        if self.step:  # a median of two values may lie between them, where there is none
            middle = _multiples(middle / unit, self.step) * unit
        return middle if kind == "f" else np.rint(middle).astype(np.int64).astype(values.dtype)

    def summary(self) -> str:
        ends = _shown(self.ends, self.holds)
        steps = f", in steps of {self.step:g}" if self.step else ""
        cycles = f", with the cycles {' and '.join(self.cycles)}" if self.cycles else ""
        more = f", ... ({len(self.frequent)})" if len(self.frequent) > 3 else ""
        often = ", ".join(_shown(self.frequent[:3], self.holds))
        often = f", often {often}{more}" if often else ""
        return f"{ends[0]} to {ends[1]}{steps}{often}{cycles}"


def fit_categories(name: str, values: Values) -> CategoryColumn:
    """Make a column of categories of its values."""
    known = values.array[~values.missing]
    found, counts = np.unique(known, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST]
    each = [found[k] for k in order]
    plain = {"text": str, "bool": bool, "int": int}.get(values.holds, float)
    kept = tuple(int(counts[k]) for k in order)
    kind = {1: "constant", 2: "binary"}.get(len(found), "category")
    return CategoryColumn(
        name, kind, values.holds, tuple(map(plain, each)), kept, len(known) - sum(kept)
    )


def fit_number(
    name: str,
    values: Values,
    kind: str,
    base: str,
    *,
    low: float = 0.0,
    high: float = 0.0,
    step: float = 0.0,
    inflated: bool = False,
    repeats: bool = True,
) -> NumberColumn:
    """Make a column of numbers, its map fitted to its values.

    Args:
        name, values, kind: of the column.
        base, low, high, step, inflated: see :class:`NumberColumn`.
        repeats: whether numbers that repeat have a probability of their own.

    Raises:
        ValueError: for values outside the support.
    """
    known = values.array[~values.missing]
    ends = (float(known.min()), float(known.max()))
    long = ends[1] - ends[0]
    dates = values.holds == "date"
    cycles = tuple(c for c, days in _CYCLES.items() if dates and (c == "week" or long > 2 * days))
    frequent = _frequent(known[known != 0] if inflated else known, step) if repeats and step else ()
    plain = NumberColumn(name, kind, values.holds, base, low, high, 0.0, step, inflated,
                         (0.0, 1.0, 1.0, 0.0, 0.0, 1.0), cycles, ends, frequent)  # fmt: skip
    codes = plain.codes(values)
    y = codes[~np.isnan(codes) & (codes != ATOM)]
    if not len(y):
        return plain
    # Of a whole step, so that neighbouring codes of an integer column are exactly one apart.
    center = float(np.median(y))
    if base == "identity" and step:
        center = round(center / step) * step
    center = 0.0 if base == "asinh" else center
    return replace(plain, center=center, shape=_fitted(y - center, base)[1])


def _frequent(x: Any, step: float) -> tuple[float, ...]:
    """Find numbers that are far more frequent than those around them, the most frequent first.

    Each is compared with its neighbours, in the least window of as many rows as a root of all, and
    of three steps either way at least. It is taken where a parameter of its own gains three times
    the nats that the Bayesian information criterion asks for one.
    """
    found, counts = np.unique(x, return_counts=True)
    ends = np.append(0, counts.cumsum())
    whole = np.abs(found - np.round(found / step) * step) < 1e-6 * step
    each = np.flatnonzero(whole & (counts >= 3))
    value, count = found[each], counts[each]
    cells, expected = np.full(len(each), 3.0), np.zeros(len(each))
    widening = np.ones(len(each), dtype=bool)
    while widening.any():
        far = (cells + 0.5) * step
        low, high = np.searchsorted(found, [value - far, value + far])
        rows = ends[high] - ends[low] - count
        expected = np.where(widening, (rows + 1) / (2 * cells), expected)
        widening &= (rows < max(20.0, len(x) ** 0.5)) & (rows < len(x) - count)
        cells = np.where(widening, 2 * cells, cells)
    gain = count * np.log(count / expected) - count + expected
    taken = np.flatnonzero((count > 3 * expected) & (gain > 1.5 * math.log(len(x) + 1)))
    taken = taken[np.argsort(-gain[taken], kind="stable")[:_MOST]]
    return tuple(value[taken[np.argsort(-count[taken], kind="stable")]].tolist())


def normal_likelihood(x: Any, base: str) -> float:
    """Return nats per value of a normal distribution behind the fitted map of a base.

    Args:
        x: numbers, positive ones for the logarithm.
        base: ``"identity"`` or ``"log"`` (of the numbers themselves).
    """
    y = _base(x, base, 0.0, 0.0)
    return _fitted(y - np.median(y), base)[0] - (float(y.mean()) if base == "log" else 0.0)


def _base(x: Any, base: str, low: float, high: float) -> Any:
    if base == "log":
        return np.log(x - low)
    if base == "logit":
        return np.log(x - low) - np.log(high - x)
    return np.arcsinh(x) if base == "asinh" else x


def _fitted(y: Any, base: str) -> tuple[float, tuple[float, ...]]:
    """Fit the sinh-arcsinh map by maximum likelihood of a normal, on a grid of tails and skews."""
    middle, spread = (float(v) for v in robust_moments(torch.from_numpy(y)[:, None]))
    spread = spread or 1.0
    some = np.sort(y)[:: max(1, len(y) // 4000)]
    if some[-1] != y.max():
        some = np.append(some, y.max())
    v = (some - middle) / spread
    best, chosen = -math.inf, (1.0, 0.0, 0.0, 1.0)
    # Tails of a logarithm are heavy already: heavier ones, exponentiated, are astronomical.
    for tail in _TAILS if base == "identity" else (1.0,):
        for skew in _SKEWS:
            t = tail * np.arcsinh(v) - skew
            z = np.sinh(t)
            deviation = max(float(z.std()), 1e-12)
            slopes = math.log(tail) + np.log(np.cosh(t)) - 0.5 * np.log1p(v * v)
            score = float(slopes.mean()) - math.log(deviation)
            if score > best + 1e-3:  # of two as good, the plainer, which comes first
                best, chosen = score, (tail, skew, float(z.mean()), deviation)
    tail, skew, location, deviation = chosen
    nats = best - math.log(spread) - 0.5 * math.log(2 * math.pi) - 0.5
    return nats, (middle, spread, tail, skew, location, deviation if deviation > 1e-9 else 1.0)


def _multiples(x: Any, step: float) -> Any:
    """Return the nearest multiples of a step, as they are written: 0.3, where 3 * 0.1 is not."""
    count = np.round(x / step)
    for digits in range(13):
        unit = step * 10.0**digits
        if abs(unit - round(unit)) <= 1e-9 * unit:
            return count * round(unit) / 10.0**digits
    return count * step


def _shown(numbers: Sequence[float], holds: str) -> list[str]:
    """Write down numbers, or dates, as a person reads them."""
    if holds == "date":
        return [str(day.astype("M8[D]")) for day in _moments(np.array(numbers), "date")]
    return [f"{number:.5g}" for number in numbers]


def _moments(days: Any, holds: str) -> Any:
    ticks = np.round(days * DAY).astype(np.int64)
    return ticks.astype("M8[us]" if holds == "date" else "m8[us]")
