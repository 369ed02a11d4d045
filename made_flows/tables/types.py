"""Types of a frame's columns, beyond what these hold: kept as words, and given to samples."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

_PLAIN = {
    "pandas": ("int64", "float64", "bool", "str"),
    "polars": ("Int64", "Float64", "Boolean", "String"),
    "pyarrow": ("int64", "double", "bool", "string"),
}
"""Types that columns made of plain values have anyway."""

_PARTS = ("time_unit", "time_zone", "precision", "scale")
"""What types of polars are made of."""


def types_of(table: Any, kind: str) -> dict[str, dict[str, Any]]:
    """Say of what type columns are, by their names, as numbers and words that a file can hold.

    Args:
        table: a frame, or arrays by name.
        kind: the library whose frame it is; other tables have no types.

    Returns:
        By column, the type by library, and the name of one whose name is no text. Types of plain
        values are left out, and unknown ones.

    Example:
        >>> import pandas
        >>> table = pandas.DataFrame({"a": [1, 2], "b": [1.5, 2.5]}).astype({"a": "Int8"})
        >>> types_of(table, "pandas")
        {'a': {'pandas': 'Int8'}}
    """
    if kind == "array":
        return {}
    names = table.column_names if kind == "pyarrow" else list(getattr(table, "columns", table))
    said: Any = {"pandas": _said_of_pandas, "polars": _said_of_polars, "pyarrow": _said_of_arrow}
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        word = said[kind](table[name]) if kind in said else None
        if word is not None and word not in _PLAIN[kind]:
            found[str(name)] = {kind: word}
        parts = list(name) if isinstance(name, tuple) else [name]  # of several levels
        if not isinstance(name, str) and all(type(part) in (int, str) for part in parts):
            found.setdefault(str(name), {})["name"] = parts if isinstance(name, tuple) else name
    return found


def as_named(names: Iterable[str], types: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Return the names that columns had, such as numbers.

    Example:
        >>> as_named(["0", "b"], {"0": {"name": 0}})
        [0, 'b']
    """
    given = [types.get(name, {}).get("name", name) for name in names]
    return [tuple(name) if isinstance(name, list) else name for name in given]


def with_types(made: Any, kind: str, types: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a frame whose columns have the types said, where these can hold their values."""
    for name, said in types.items():
        if kind in said:
            if kind == "pandas":
                made[name] = pandas_as(made[name], _pandas_type(said[kind]))
            elif kind == "polars":
                made = made.with_columns(polars_as(made[name], _polars_type(said[kind])))
            else:
                place = made.column_names.index(name)
                column = arrow_as(made[name].combine_chunks(), _arrow_type(said[kind]))
                made = made.set_column(place, name, column)
    if kind == "pandas":
        made.columns = as_named(made.columns, types)
    return made


# ---------------------------------------------------------------------- values as what a type holds


def pandas_as(new: Any, dtype: Any) -> Any:
    """Return a series in a type, or as it is where the type cannot hold its values."""
    library = importlib.import_module("pandas")
    zone = getattr(dtype, "tz", None) is not None
    categories = getattr(dtype, "categories", None)
    if categories is not None and categories.dtype == np.float32:
        new = new.astype(np.float32)  # 0.1 is none of its categories otherwise
    try:
        with np.errstate(over="ignore"):  # infinity is looked for
            typed = (new.dt.tz_localize("UTC") if zone else new).astype(dtype)
        lost = bool(typed.isna().any())
        if library.api.types.is_integer_dtype(dtype) and not lost:
            lost = not bool((typed.astype(new.dtype) == new).all())
        elif library.api.types.is_float_dtype(dtype) and not lost:
            lost = not np.isfinite(typed.to_numpy(float)).all()
    except (TypeError, ValueError, OverflowError):
        return new
    return new if lost else typed


def polars_as(new: Any, dtype: Any) -> Any:
    """Do as :func:`pandas_as` does."""
    library = importlib.import_module("polars")
    if getattr(dtype, "time_zone", None):
        new = new.dt.replace_time_zone("UTC")
    try:
        typed = new.cast(dtype)
    except library.exceptions.PolarsError:
        return new
    whole = new.dtype.is_float() and dtype.is_integer()
    lost = whole and not bool((typed == new).all())
    return new if lost or (dtype.is_float() and bool(typed.is_infinite().any())) else typed


def arrow_as(new: Any, type_: Any) -> Any:
    """Do as :func:`pandas_as` does."""
    library, compute = (importlib.import_module(f"pyarrow{part}") for part in ("", ".compute"))
    try:
        typed = new.cast(type_)
    except library.ArrowException:
        return new
    lost = library.types.is_floating(type_) and compute.any(compute.is_inf(typed)).as_py()
    return new if lost else typed


# ---------------------------------------------------------------------- types as words, and back


def _said_of_pandas(column: Any) -> Any:
    dtype = column.dtype
    if hasattr(dtype, "categories"):
        values = dtype.categories
        return {
            "categories": [_plain(each) for each in values.tolist()],
            "of": str(values.dtype),
            "ordered": bool(dtype.ordered),
        }
    text = [isinstance(each, str) for each in column] if dtype.kind == "O" else [True]
    return str(dtype) if any(text) else None  # other objects became values of some type


def _pandas_type(said: Any) -> Any:
    library = importlib.import_module("pandas")
    if isinstance(said, str):
        return library.api.types.pandas_dtype(said)
    categories = library.Index(said["categories"], dtype=said["of"])
    return library.CategoricalDtype(categories, said["ordered"])


def _said_of_polars(column: Any) -> Any:
    dtype = column.dtype
    name = type(dtype).__name__
    parts = {part: value for part in _PARTS if (value := getattr(dtype, part, None)) is not None}
    if name == "Enum":
        parts["categories"] = dtype.categories.to_list()
    return {"name": name, **parts} if parts else name


def _polars_type(said: Any) -> Any:
    library = importlib.import_module("polars")
    parts = {"name": said} if isinstance(said, str) else dict(said)
    return getattr(library, parts.pop("name"))(**parts)


def _said_of_arrow(column: Any) -> Any:
    library = importlib.import_module("pyarrow")
    type_ = column.type
    if library.types.is_dictionary(type_):
        parts = type_.index_type, type_.value_type, type_.ordered
        return {"dictionary": [str(parts[0]), str(parts[1]), parts[2]]}
    if library.types.is_timestamp(type_):
        return {"timestamp": [type_.unit, type_.tz]}
    if library.types.is_decimal(type_):
        return {f"decimal{type_.bit_width}": [type_.precision, type_.scale]}
    with suppress(ValueError):
        return str(type_) if library.type_for_alias(str(type_)) == type_ else None
    return None


def _arrow_type(said: Any) -> Any:
    library = importlib.import_module("pyarrow")
    if isinstance(said, str):
        return library.type_for_alias(said)
    ((name, arguments),) = said.items()
    if name == "dictionary":
        *kinds, ordered = arguments
        return library.dictionary(*map(library.type_for_alias, kinds), ordered)
    return getattr(library, name)(*arguments)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, bool, int, float)) else str(value)
