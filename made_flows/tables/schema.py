"""The schema of a table: which column holds what, found from its values or said."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows._checks import expect, expect_type, listed, real_number, shown
from made_flows._registry import saveable
from made_flows.tables.columns import (
    CategoryColumn,
    Column,
    fit_categories,
    fit_number,
    normal_likelihood,
)
from made_flows.tables.frames import FRAMES, Values, expect_columns, read, write
from made_flows.tables.types import types_of

KINDS = (
    "real", "spline", "positive", "bounded", "count", "amount", "rounded", "zero_inflated", "date",
    "category", "binary", "leave_out",
)  # fmt: skip
"""What a column can be said to be."""

_FEW = 20
"""Numbers of so few values, each of ten rows or more, are categories."""

_INDEX = r"|Unnamed: \d+|__index_level_\d+__"
"""Names that pandas gives the index of a frame in files, and takes from them."""


@saveable
class Schema:
    """What the columns of a table hold.

    Args:
        columns: the columns that are modelled.
        context: the columns that the others are conditional on.
        left_out: names of columns that are not modelled, and why.
        frame: the kind of table that samples are given as, see
            :data:`~made_flows.tables.frames.FRAMES`.
        missing: how many values each of the columns lacked.
        types: what samples have of it by column, see :func:`~made_flows.tables.types.types_of`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> print(Schema.of({"height": rng.normal(170, 10, 99), "sex": ["f", "m", "f"] * 33}))
        column  kind    values            missing
        height  real    146.75 to 190.02
        sex     binary  f, m
    """

    def __init__(
        self,
        columns: Sequence[Column],
        context: Sequence[Column] = (),
        left_out: Mapping[str, str] | None = None,
        frame: str = "dict",
        missing: Sequence[int] = (),
        types: Mapping[str, Any] | None = None,
    ) -> None:
        self.columns, self.context = list(columns), list(context)
        self.left_out = dict(left_out or {})
        self.frame, self.missing, self.types = frame, tuple(missing), dict(types or {})
        expect(len(self.columns) > 0, "the table", "to have a column to model", str(self.left_out))
        expect(frame in FRAMES, "frame", f"to be one of {', '.join(FRAMES)}", shown(frame))

    @classmethod
    def of(
        cls,
        table: Any,
        columns: Mapping[str, Any] | None = None,
        context: Sequence[str] = (),
        *,
        any_number: bool = False,
        resolution: float | None = None,
    ) -> Schema:
        """Find the schema of a table from its values.

        Args:
            table: see :func:`made_flows.tables.frames.read`.
            columns: kinds of columns by name, in place of those found: one of :data:`KINDS`, or
                ``("bounded", low, high)``.
            context: names of the columns to condition on.
            any_number: whether columns of numbers are found to be of kinds that know no end, so
                that any number has a score.
            resolution: if given, columns of more than two numbers are rounded, in steps of as many
                standard deviations: all their scores are then probabilities of like cells.

        Raises:
            TypeError, ValueError: for names that the table lacks, unknown kinds, and values that
                a kind does not have, by column.
        """
        read_columns, frame = read(table)
        known = columns is None or isinstance(columns, Mapping)
        expect_type(known, "columns", "to be a mapping of names to kinds, or None", columns)
        said = dict(columns or {})
        given: Any = context
        several = isinstance(given, Iterable) and not isinstance(given, (str, Mapping, Tensor))
        expect_type(several, "context", "to be a list of names", given)
        context = list(given)  # once: it may be an iterator
        for argument, names in (("columns", said), ("context", context)):
            unknown = [name for name in names if name not in read_columns]
            expect(not unknown, argument, f"to name columns of the table ({listed(read_columns)})",
                   listed(unknown))  # fmt: skip
        twice = [name for name in read_columns if context.count(name) > 1]
        expect(not twice, "context", "to name each column once", listed(twice))
        found: dict[str, Column] = {}
        left_out: dict[str, str] = {}
        missing = []
        for name, values in read_columns.items():
            if name in said:
                column = _said(name, values, said[name])
            else:
                column = _found(name, values, any_number, resolution)
            if isinstance(column, str):
                left_out[name] = column
                continue
            found[name] = column
            if name not in context:
                missing.append(int(values.missing.sum()))
        lost = [name for name in context if name in left_out]
        expect(not lost, "context", "to name columns that can be used", listed(lost))
        modelled = [column for name, column in found.items() if name not in context]
        types = types_of(table, frame)
        types = {column.name: types[column.name] for column in modelled if column.name in types}
        given_context = [found[name] for name in context]
        return cls(modelled, given_context, left_out, frame, missing, types)

    @property
    def names(self) -> list[str]:
        """The names of the columns that are modelled."""
        return [column.name for column in self.columns]

    def encode(self, table: Any, argument: str = "table") -> tuple[Tensor, Tensor | None]:
        """Return the codes of a table's rows (N, D), NaN where missing, and of its context (N, C).

        Raises:
            TypeError, ValueError: for another table's columns, by name, and for values that they
                cannot have, by row.
        """
        columns = self._read(table, argument, [*self.columns, *self.context])
        context = self._context_codes(columns) if self.context else None
        return self._codes(self.columns, columns), context

    def encode_context(self, table: Any) -> Tensor | None:
        """Return the codes (N, C) of a table of context columns alone."""
        if not self.context:
            expect(table is None, "context", "to be left out, as the model has none", "a table")
            return None
        names = listed(column.name for column in self.context)
        expect(table is not None, "context", f"to be a table of {names}", "none")
        return self._context_codes(self._read(table, "context", self.context))

    def _context_codes(self, columns: Mapping[str, Values]) -> Tensor:
        codes = self._codes(self.context, columns)
        gone = torch.isnan(codes).nonzero().tolist()
        where = f"none in row {gone[0][0]} of {self.context[gone[0][1]].name!r}" if gone else ""
        expect(not gone, "context columns", "to hold a value in every row", where)
        for column, each in zip(self.context, codes.T, strict=True):
            if isinstance(column, CategoryColumn) and not column.others:
                unseen = (each == len(column.categories)).nonzero().flatten().tolist()
                if unseen:
                    value = columns[column.name].array[unseen[0]]
                    text = value if isinstance(value, str) else f"{value:g}"
                    warnings.warn(
                        f"Context column {column.name!r} has values that no row had in training, "
                        f"such as {text!r}: nothing was learnt of them",
                        stacklevel=4,
                    )
        return codes

    def decode(self, codes: Tensor) -> dict[str, Any]:
        """Return the values of codes (N, D), by column."""
        array = codes.detach().cpu().double().numpy()
        return {column.name: column.values(array[:, i]) for i, column in enumerate(self.columns)}

    def table(self, columns: Mapping[str, Any], like: Any = None) -> Any:
        """Return columns as a table of the kind that the model was made from, or of another's."""
        if like is None and self.frame == "array" and self.left_out:
            # A matrix has places in place of names: without these columns, others would be there.
            rows = len(next(iter(columns.values())))
            every = {**columns, **{name: np.full(rows, np.nan) for name in self.left_out}}
            columns = {name: every[name] for name in sorted(every, key=lambda name: int(name[1:]))}
        return write(columns, self.frame if like is None else read(like)[1], like, self.types)

    def _codes(self, which: Sequence[Column], columns: Mapping[str, Values]) -> Tensor:
        each = [column.codes(columns[column.name]) for column in which]
        return torch.from_numpy(np.stack(each, axis=1))

    def _read(self, table: Any, argument: str, which: Sequence[Column]) -> dict[str, Values]:
        columns, _ = read(table, argument)
        expect_columns(columns, [column.name for column in which], argument, self.left_out)
        return columns

    def __str__(self) -> str:
        rows = [("column", "kind", "values", "missing")]
        counts = [*self.missing, *[0] * (len(self.columns) - len(self.missing))]
        for column, count in zip(self.columns, counts, strict=True):
            rows.append((column.name, column.kind, column.summary(), str(count) if count else ""))
        rows += [(c.name, f"{c.kind}, context", c.summary(), "") for c in self.context]
        rows += [(name, "left out", why, "") for name, why in self.left_out.items()]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(row[i].ljust(wide[i]) for i in range(3)), row[3]]) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return f"Schema({len(self.columns)} columns: {listed(self.names)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and vars(self)["_arguments"] == vars(other)["_arguments"]

    __hash__ = None  # type: ignore[assignment]


def _found(name: str, values: Values, any_number: bool, resolution: float | None) -> Column | str:
    """Find what a column is; a sentence why not, of one that cannot be modelled."""
    known = values.array[~values.missing]
    if not len(known):
        return "no values"
    distinct = len(set(known.tolist()))
    whole = values.holds not in ("text", "bool") and bool((known == np.round(known)).all())
    each = whole and distinct == len(known) >= _FEW
    if each and values.holds in ("int", "float") and re.fullmatch(_INDEX, name):
        return "different numbers in all rows, the index of a frame: an identifier"
    if values.category or values.holds in ("text", "bool"):
        if distinct > max(_FEW, len(known) // 2):
            what = "texts" if values.holds == "text" else "categories"
            example = f"{distinct} different {what} in {len(known)} rows, as {shown(known[0])}"
            return f"{example}: an identifier or free text"
        return fit_categories(name, values)
    if resolution is not None and distinct > 2 and values.holds in ("int", "float"):
        step = resolution * float(known.std())
        return _number(name, values, "rounded", step=step, repeats=False)
    if distinct == 1 or (distinct <= _FEW and len(known) >= 10 * distinct):
        return fit_categories(name, values)
    if values.holds == "date":
        return _number(name, values, "date")
    if each and known.max() - known.min() == distinct - 1:
        return "numbers one after the other: an identifier"
    step = _step(known)
    if _inflated(known):
        return _number(name, values, "zero_inflated", any_number=any_number)
    if any_number:
        return _number(name, values, "rounded" if step else "real")
    if step:
        # Logarithms of large numbers that differ little do not tell one from the next.
        told = known.max() < 2**44 * step or known.min() < 0.5 * known.max()
        by_log = "count" if step == 1 and values.holds == "int" else "amount"
        return _number(name, values, by_log if known.min() >= 0 and told else "rounded")
    return _number(name, values, "positive" if _log_is_better(known) else "real")


def _said(name: str, values: Values, said: Any) -> Column | str:
    """Make a column of the kind that was said."""
    kind, *ends = said if isinstance(said, (tuple, list)) and said else (said,)
    numbers = {"bounded": (0, 2), "amount": (0, 1), "rounded": (0, 1)}
    known = isinstance(kind, str) and kind in KINDS and len(ends) in numbers.get(kind, (0,))
    words = f"{', '.join(KINDS)}, ('bounded', low, high), ('rounded', step) or ('amount', step)"
    expect(known, f"columns[{name!r}]", f"to be one of {words}", shown(said))
    if kind == "leave_out":
        return "as was asked"
    expect(not values.missing.all(), f"column {name!r}", "to hold values", "none")
    if kind in ("category", "binary"):
        column = fit_categories(name, values)
        expect(kind == "category" or len(column.categories) == 2, f"column {name!r}",
               "to hold two values, as a binary one", column.summary())  # fmt: skip
        return column
    fits = values.holds == "date" if kind == "date" else values.holds not in ("text", "bool")
    dates = "dates, in a file as 2024-05-31, elsewhere as pandas.to_datetime makes them of text"
    wanted = dates if kind == "date" else "numbers"
    if not fits:
        row = int(values.missing.argmin())
        got = f"{values.array[row]} in row {row}"
        raise TypeError(f"Expected column {name!r} ({kind}) to hold {wanted}; got {got}")
    given = [real_number(end, f"columns[{name!r}]") for end in ends]
    if kind == "bounded" and given:
        words = "to have low below high"
        expect(given[0] < given[1], f"columns[{name!r}]", words, given)
        return _number(name, values, kind, bounds=(given[0], given[1]))
    step = real_number(given[0], f"columns[{name!r}]", above=0) if given else 0.0
    return _number(name, values, kind, step=step)


def _number(
    name: str,
    values: Values,
    kind: str,
    *,
    bounds: tuple[float, float] | None = None,
    step: float = 0.0,
    any_number: bool = False,
    repeats: bool = True,
) -> Column:
    """Make a column of numbers of a kind."""
    known = values.array[~values.missing]
    base, low, high = "identity", 0.0, 0.0
    if kind in ("amount", "rounded", "zero_inflated", "date") and not step:
        step = _step(known[known != 0] if kind == "zero_inflated" else known)
        told = step > 0 or kind not in ("amount", "rounded")
        expect(told, f"column {name!r}", "to hold multiples of a step", "none")
    if kind == "positive":
        base = "log"
    elif kind in ("amount", "count"):
        step = step or 1.0
        base, low = "log", -step / 2
    elif kind == "zero_inflated":
        base, low = ("log", step / 2) if known.min() >= 0 and not any_number else ("asinh", 0.0)
    elif kind == "bounded":
        base = "logit"
        low, high = bounds or _bounds(known)
    return fit_number(name, values, kind, base, low=low, high=high, step=step,
                      inflated=kind == "zero_inflated", repeats=repeats)  # fmt: skip


def _inflated(known: Any) -> bool:
    zeros = float((known == 0).mean())
    return zeros >= 0.2 and len(known) * (1 - zeros) >= _FEW


def _log_is_better(known: Any) -> bool:
    if known.min() <= 0 or len(known) < _FEW or known.max() < 10 * known.min():
        return False
    return normal_likelihood(known, "log") > normal_likelihood(known, "identity")


def _bounds(known: Any) -> tuple[float, float]:
    """Choose ends around numbers: those of shares and percentages, or a little further out."""
    least, most = float(known.min()), float(known.max())
    for high in (1.0, 100.0):
        if least > 0 and most < high and most > 0.5 * high:
            return 0.0, high
    margin = max((most - least) / (len(known) + 1), 1e-9 * max(abs(least), abs(most), 1e-9))
    return least - margin, most + margin


def _step(known: Any) -> float:
    """Return the step of numbers that are recorded in steps, 0 where none is told.

    Whole numbers do, and others where many are equal: the largest that all are multiples of, which
    twenty tell; of fewer, a power of ten.
    """
    distinct = np.unique(known)
    scale = np.abs(distinct).max(initial=1.0)
    if scale >= 2**53:  # whole by rounding
        return 0.0
    few = len(distinct) < 2 or len(distinct) > 0.9 * len(known)
    for digits in range(1 if few else 7):
        shifted = distinct * 10.0**digits
        whole = np.round(shifted)
        error = np.abs(shifted - whole)
        # As far as rounding goes, and a small part of a step: else any number would be a multiple.
        if bool((error <= (min(1e-9 * scale * 10.0**digits, 1e-3) if digits else 0)).all()):
            told = len(distinct) >= _FEW and np.abs(whole).max() < 2**53
            unit = int(np.gcd.reduce(whole.astype(np.int64))) if told else 1
            return round(unit * 10.0**-digits, digits)
    return 0.0
