"""Frames of any library as arrays by column, and back, without importing that library to read."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from made_flows._checks import expect, expect_type, listed
from made_flows.tables.types import arrow_as, as_named, pandas_as, polars_as, with_types
from made_flows.training.convert import as_array, dimensions, in_double

FRAMES = ("pandas", "polars", "pyarrow", "array", "dict")
"""What a table can be: frames of a library, a matrix, or arrays by name."""

DAY = 86400e6
"""Microseconds."""

_LARGEST = 1e100
"""Numbers are squared: of larger ones, that would not be finite."""


class Values(NamedTuple):
    """The values of one column, of one type.

    Args:
        array: float64 with NaN where one is missing (dates and durations in days), or, of text and
            booleans, objects with None there.
        holds: ``"float"``, ``"int"``, ``"bool"``, ``"text"``, ``"date"`` or ``"duration"``.
        category: whether the frame says that they are categories, whatever they are written as.
    """

    array: Any
    holds: str
    category: bool = False

    @property
    def missing(self) -> Any:
        """Which values are missing, (N,)."""
        if self.array.dtype == object:
            return np.array([value is None for value in self.array], dtype=bool)
        return np.isnan(self.array)


def read(table: Any, argument: str = "table") -> tuple[dict[str, Values], str]:
    """Read a table's columns, and say what kind of table it is (one of :data:`FRAMES`).

    Args:
        table: a frame of pandas or polars, an Arrow table, a matrix (its columns are named x0, x1
            and so on), or a mapping of names to columns.
        argument: its name, for errors.

    Raises:
        TypeError: for anything else, and for columns of mixed or unknown types, by name.
        ValueError: for columns of different lengths, no rows, equal names, and infinite values.
    """
    categories: set[str] = set()
    if isinstance(table, Mapping):
        expect_different(table, argument)
        kind = "dict"
        columns = {name: _array(column, f"column {name!r}") for name, column in table.items()}
    elif hasattr(table, "columns") and hasattr(table, "shape"):
        names = getattr(table, "column_names", None)  # Arrow's; the others' columns are names
        names = list(table.columns) if names is None else list(names)
        kind = type(table).__module__.partition(".")[0]
        expect_type(kind in FRAMES, argument, "to be a table", table)
        expect_different(names, argument)
        columns = {name: _of_frame(table[name], str(name)) for name in names}
        categories = {str(name) for name in names if _has_categories(table[name])}
    else:
        matrix = as_array(table, argument) if isinstance(table, torch.Tensor) else table
        known = isinstance(matrix, (np.ndarray, Sequence)) and not isinstance(matrix, str)
        records = known and len(matrix) > 0 and all(isinstance(row, Mapping) for row in matrix)
        wanted = "to be a table: a frame, a matrix or arrays by name"
        expect_type(known and not records, argument, wanted + _advice(matrix, argument), table)
        kind, matrix = "array", _array(matrix)
        vector = f". Of one row, take {argument}[None]; of one column, {argument}[:, None]"
        got = f"one of shape {matrix.shape}{vector if matrix.ndim == 1 else ''}"
        expect(dimensions(matrix) == 2, argument, "to have rows and columns", got)
        columns = {f"x{i}": matrix[:, i] for i in range(matrix.shape[1])}
    expect(len(columns) > 0, argument, "to have at least one column", "none")
    flat = all(column.ndim == 1 for column in columns.values())
    single = all(column.ndim == 0 for column in columns.values())
    row = ". Of one row, every value is a list of one" if single else ""
    wide = _shapes(columns) + row
    expect(flat, f"the columns of {argument}", "to have one dimension each", wide)
    lengths = {len(column) for column in columns.values()}
    expect(len(lengths) == 1, f"the columns of {argument}", "to be of one length", _shapes(columns))
    expect(lengths != {0}, argument, "to have at least one row", "none")
    found = {str(name): _values(column, str(name)) for name, column in columns.items()}
    return {
        name: values._replace(category=name in categories) for name, values in found.items()
    }, kind


def _advice(what: Any, argument: str) -> str:
    """Say what makes a table of something that is none, where that is known."""
    if isinstance(what, str | Path):
        return f", as pandas.read_csv({str(what)!r}) gives (or: made-flows fit {what})"
    if hasattr(what, "to_frame"):  # a Series of pandas or polars
        return f", as {argument}.to_frame() is of one column, and frame[:1] of one row"
    if isinstance(what, Sequence):
        return f", as pandas.DataFrame.from_records({argument}) makes of mappings"
    return ""


def expect_different(names: Iterable[Any], argument: str) -> None:
    """Refuse names that are equal, or would be as text: of 1 and "1", one would be lost."""
    counts = Counter(map(str, names))
    twice = sorted(name for name, count in counts.items() if count > 1)
    expect(not twice, argument, "to have columns of different names", ", ".join(twice))


def expect_columns(
    found: Iterable[str], names: Sequence[str], argument: str, spare: Collection[str] = ()
) -> None:
    """Refuse columns, by name, that are not those wanted; spare ones may be there or not."""
    found = list(found)
    lacking = [name for name in names if name not in found]
    strange = [name for name in found if name not in names and name not in spare]
    pairs = (("without", lacking), ("with", strange))
    parts = [f"{word} {listed(some)}" for word, some in pairs if some]
    wanted = f"to have the columns {listed(names)}"
    expect(not parts, argument, wanted, "one " + " and ".join(parts))


def write(
    columns: Mapping[str, Any],
    kind: str,
    like: Any = None,
    types: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return columns as a table of a kind, and of the types that were said.

    Of ``like``, a table, what the columns fill in is replaced alone: its other values stay as they
    are, to the nanosecond and in their time zones.

    Raises:
        ImportError: for frames of a library that is not installed.
    """
    if kind == "array":
        if like is None:
            return _matrix(list(columns.values()))
        matrix = _array(like)
        whole = {f"x{i}": matrix[:, i] for i in range(matrix.shape[1])}
        return _matrix(list((whole | _filled_arrays(whole, columns)).values()))
    if kind == "dict":
        named = zip(as_named(columns, types or {}), columns.values(), strict=True)
        return dict(named) if like is None else _filled_arrays(like, columns)
    try:
        library = importlib.import_module(kind)
    except ImportError as error:
        raise ImportError(
            f"The model was made from a frame of {kind}, which is not installed: pip install "
            f"{kind}, or set model.schema.frame = 'dict' for arrays by name"
        ) from error
    if kind == "pandas" and like is not None:
        return _filled_pandas(like, columns)
    lists: Any = dict(columns)
    if kind != "pandas":
        lists = {name: column.tolist() if column.dtype == object else column
                 for name, column in columns.items()}  # fmt: skip
    made: Any = library.table(lists) if kind == "pyarrow" else library.DataFrame(lists)
    if like is None:
        return with_types(made, kind, types or {})
    return _filled_polars(like, made) if kind == "polars" else _filled_arrow(like, made)


def _missing(like: Any, names: Iterable[str]) -> dict[str, Any]:
    """Say which values of some of a table's columns are missing."""
    found, _ = read(like)
    return {name: found[name].missing for name in names}


def _filled_arrays(like: Mapping[Any, Any], columns: Mapping[str, Any]) -> dict[Any, Any]:
    table = dict(like)
    missing = _missing(like, columns)
    for name in like:
        if str(name) in columns:
            old, new = _array(like[name]), columns[str(name)]
            if old.dtype.kind in "Mm" or (old.dtype.kind == "f" and old.dtype.itemsize < 8):
                with np.errstate(over="ignore"):  # of float16: infinity is looked for
                    typed = new.astype(old.dtype)
                lost = old.dtype.kind == "f" and bool(np.isinf(typed).any())
                new = np.where(missing[str(name)], new if lost else typed, old)
            table[name] = new
    return table


def _filled_pandas(like: Any, columns: Mapping[str, Any]) -> Any:
    library = importlib.import_module("pandas")
    frame = like.copy()
    missing = _missing(like, columns)
    for name in frame.columns:
        if str(name) not in columns:
            continue
        old, new = frame[name], library.Series(columns[str(name)], index=frame.index)
        typed = pandas_as(new, old.dtype)
        if typed is new and hasattr(old.dtype, "categories"):
            typed = new.astype(object)  # a type of categories may not have that of a guess
        frame[name] = typed.where(missing[str(name)], old)
    return frame


def _filled_polars(like: Any, made: Any) -> Any:
    library = importlib.import_module("polars")
    for name, missing in _missing(like, made.columns).items():
        old, new = like[name], polars_as(made[name], like[name].dtype)
        old = old if new.dtype == old.dtype else old.cast(new.dtype)
        like = like.with_columns(new.zip_with(library.Series(missing), old).alias(name))
    return like


def _filled_arrow(like: Any, made: Any) -> Any:
    library, compute = (importlib.import_module(f"pyarrow{part}") for part in ("", ".compute"))
    for name, missing in _missing(like, made.column_names).items():
        old, new = like[name].combine_chunks(), made[name].combine_chunks()
        new = arrow_as(new, old.type)
        old = old if new.type == old.type else old.cast(new.type)
        new = compute.if_else(library.array(missing), new, old)
        like = like.set_column(like.column_names.index(name), name, new)
    return like


def _has_categories(column: Any) -> bool:
    """Tell whether a frame's column is of a type of categories: of pandas, polars or Arrow."""
    kind = getattr(column, "dtype", getattr(column, "type", None))
    listed = hasattr(kind, "categories") or hasattr(kind, "index_type")
    return listed or type(kind).__name__ == "Categorical"


def _of_frame(column: Any, name: str) -> Any:
    """Return a frame's column as an array, in which nothing that is missing has become a value."""
    if hasattr(getattr(column, "type", None), "index_type"):
        # Arrow numbers categories from 0, and NumPy makes the last one of what is missing.
        column = column.cast(column.type.value_type)
    array = np.asarray(column)
    if array.dtype.kind == "f" and hasattr(column, "fill_null") and np.isnan(array).any():
        whole = np.asarray(column.fill_null(0))  # integers, which what is missing made floats of
        if whole.dtype.kind in "iu":
            expect_exact(whole.astype(np.float64), whole, f"column {name!r}")
    return array


def _array(values: Any, name: str = "table") -> Any:
    """Return an array; of objects from lists, whose values NumPy would bring to one type."""
    if isinstance(values, torch.Tensor):
        return as_array(values, name)
    if np.ma.isMaskedArray(values):  # NumPy alone would take what is behind the mask
        gone: Any = {"f": np.nan, "M": "NaT", "m": "NaT"}.get(values.dtype.kind)
        known = values.data.astype(object if gone is None else values.dtype)  # a copy
        known[np.ma.getmaskarray(values)] = gone
        return known
    return np.asarray(values) if hasattr(values, "__array__") else np.asarray(values, dtype=object)


def _matrix(columns: list[Any]) -> Any:
    mixed = any(column.dtype.kind not in "fiub" for column in columns)
    return np.stack([c.astype(object) if mixed else c for c in columns], axis=1)


def _shapes(columns: Mapping[Any, Any]) -> str:
    return ", ".join(f"{name!r} {column.shape}" for name, column in list(columns.items())[:5])


def _values(column: Any, name: str) -> Values:
    """Bring a column to one of few types."""
    kind = column.dtype.kind
    if kind == "O":
        return _of_objects(column, name)
    if kind in "US":
        return _of_objects(column.astype(str).astype(object), name)
    if kind == "b":
        return Values(column.astype(object), "bool")
    if kind in "Mm":
        days = column.astype(f"{kind}8[us]").astype(np.int64) / DAY
        holds = "date" if kind == "M" else "duration"
        return Values(np.where(np.isnat(column), np.nan, days), holds)
    expect_type(kind in "iuf", f"column {name!r}", "to hold numbers, text, dates or booleans",
                column.dtype)  # fmt: skip
    column = in_double(column, f"column {name!r}")
    numbers = as_written(column)
    wrong = np.abs(numbers) > _LARGEST
    if wrong.any():
        row = int(wrong.argmax())
        limit = f"to hold numbers of at most {_LARGEST:g} in size"
        words = "to be finite" if np.isinf(numbers[row]) else limit
        expect(False, f"column {name!r}", words, f"{numbers[row]:g} in row {row}")
    if kind in "iu":
        expect_exact(numbers, column, f"column {name!r}")
    return Values(numbers, "int" if kind in "iu" else "float")


def as_written(column: Any) -> Any:
    """Return numbers in double precision: those of lower precision are the decimals they stand for.

    0.1 of single precision is 0.10000000149 otherwise, no multiple of a step, and not the category
    0.1.
    """
    numbers = column.astype(np.float64)
    if column.dtype.kind != "f" or column.dtype.itemsize >= 8:
        return numbers
    written, left = numbers.copy(), np.isfinite(numbers) & (numbers != np.round(numbers))
    for digits in range(1, 8):
        shorter = np.round(numbers, digits)
        found = left & (shorter.astype(column.dtype) == column)
        written, left = np.where(found, shorter, written), left & ~found
    return written


def expect_exact(numbers: Any, given: Any, argument: str) -> None:
    """Refuse integers that double precision would round.

    Args:
        numbers: a column (N,) or a matrix (N, D), in double precision.
        given: the same as it was given.
        argument: its name, for errors.
    """
    inexact = np.argwhere(np.abs(numbers) >= 2**53)  # itself is what the next one is rounded to
    if len(inexact):
        place = tuple(inexact[0].tolist())
        where = f"row {place[0]}" + "".join(f", column {i}" for i in place[1:])
        wanted = "to hold integers below 2**53 (or, of identifiers, text)"
        expect(False, argument, wanted, f"{given[place]} in {where}")


def _of_objects(column: Any, name: str) -> Values:
    missing = np.array([_is_missing(value) for value in column], dtype=bool)
    kinds = np.array(["" if gone else _kind(v) for v, gone in zip(column, missing, strict=True)])
    found = set(kinds[~missing].tolist())
    if found == {"int", "float"}:
        found = {"float"}
    if len(found) > 1 or "" in found:
        first = int((~missing).argmax())
        other = int(((kinds != kinds[first]) & ~missing).argmax()) if len(found) > 1 else first
        got = " and ".join(f"{column[row]!r} in row {row}" for row in sorted({first, other}))
        one = "to hold values of one type: numbers, text, dates or booleans"
        advice = "" if len(found) > 1 else ". Others can be text, by astype(str)"
        raise TypeError(f"Expected column {name!r} {one}; got {got}{advice}")
    holds = found.pop() if found else "float"
    made: Any = {"text": str, "bool": bool, "date": _moment, "duration": _moment}.get(
        holds, _decimal
    )
    gone: Any = {"text": None, "bool": None, "date": "NaT", "duration": "NaT"}.get(holds, np.nan)
    each = [gone if lost else made(value) for value, lost in zip(column, missing, strict=True)]
    kind: Any = {"text": object, "bool": object, "date": "M8[us]", "duration": "m8[us]"}
    array = np.array(each, dtype=kind.get(holds, float))
    if holds == "int":
        expect_exact(array, column, f"column {name!r}")
        return Values(array, holds)
    return Values(array, holds) if array.dtype == object else _values(array, name)


def _decimal(value: Any) -> float:
    """Return a number in double precision, see :func:`as_written`."""
    short = isinstance(value, (np.float16, np.float32))
    return float(str(value)) if short else float(value)


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def _kind(value: Any) -> str:
    for types, kind in (
        ((bool, np.bool_), "bool"), (str, "text"), (Integral, "int"), ((Real, Decimal), "float"),
        ((date, np.datetime64), "date"), ((timedelta, np.timedelta64), "duration"),
    ):  # fmt: skip
        if isinstance(value, types):
            return kind
    return ""


def _moment(value: Any) -> Any:
    """Return a date or duration without a time zone, in universal time."""
    offset = value.utcoffset() if hasattr(value, "utcoffset") else None
    return value if offset is None else (value - offset).replace(tzinfo=None)
