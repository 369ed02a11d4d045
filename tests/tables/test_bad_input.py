"""What is no table, no kind, no value of a column: an error that says so, or the right answer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch

import made_flows as mf
from made_flows.tables.schema import Schema

N = 60
GOOD: dict[str, Any] = {
    "size": np.random.default_rng(0).normal(size=N),
    "count": np.random.default_rng(1).poisson(30, N),
    "kind": ["a", "b", "c"] * 20,
    "day": np.datetime64("2024-01-01") + np.arange(N).astype("m8[D]"),
}


def one(name: str, values: Any) -> dict[str, Any]:
    return {**GOOD, name: values}


def with_value(name: str, value: Any, row: int = 3) -> dict[str, Any]:
    values = list(GOOD[name])
    values[row] = value
    return one(name, values)


def of(table: Any, **options: Any) -> Callable[[], object]:
    return lambda: mf.TableMADE.from_data(table, **options)


def said(kind: Any, name: str = "size") -> Callable[[], object]:
    return of(GOOD, columns={name: kind})


MODEL = mf.TableMADE.from_data(GOOD, hidden_features=(8,))
ARRAY = mf.TableMADE.from_data(GOOD["size"][:, None], hidden_features=(8,))
CONTEXT = mf.TableMADE.from_data(GOOD, context=["kind"], hidden_features=(8,))
POSITIVE = mf.TableMADE.from_data({"x": np.exp(GOOD["size"])}, {"x": "positive"})
SHARE = mf.TableMADE.from_data({"x": 1 / (1 + np.exp(GOOD["size"]))}, {"x": "bounded"})
INFLATED = mf.TableMADE.from_data({"x": np.maximum(GOOD["size"], 0)})


def score(table: Any, model: mf.TableMADE = MODEL) -> Callable[[], object]:
    return lambda: model.score_samples(table)


class Series:
    """A column of pandas or polars."""

    def to_frame(self) -> None: ...


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no table": (of(None), TypeError, "table to be a table"),
    "a number": (of(3.0), TypeError, "table to be a table"),
    "kinds as text": (of(GOOD, columns="real"), TypeError, "columns to be a mapping"),
    "kinds as an array": (of(GOOD, columns=np.ones(3)), TypeError, "columns to be a mapping"),
    "context, a number": (of(GOOD, context=1), TypeError, "context to be a list of names"),
    "context, a mapping": (of(GOOD, context={"kind": 1}), TypeError, "context to be a list of nam"),
    "options as an array": (
        lambda: mf.fit_table(GOOD, options=np.ones(3)),
        TypeError,
        "options to be a mapping",
    ),
    "context, a 0-d tensor": (
        of(GOOD, context=torch.tensor(1)),
        TypeError,
        "context to be a list of names",
    ),
    "context, twice": (
        of(GOOD, context=["kind", "kind"]),
        ValueError,
        "each column once; got 'kind",
    ),
    "a seed of draws": (lambda: MODEL.sample(2, seed="a"), TypeError, "seed to be a non-negative"),
    "half a seed": (lambda: MODEL.fill(GOOD, seed=0.5), TypeError, "seed to be a non-negative"),
    "a seed of training": (
        lambda: mf.fit_table(GOOD, seed=[1]),
        TypeError,
        "seed to be a non-negative integer",
    ),
    "text": (of("table.csv"), TypeError, "table to be a table"),
    "a set": (of({1.0, 2.0}), TypeError, "table to be a table"),
    "no columns": (of({}), ValueError, "at least one column; got none"),
    "no rows": (of({"x": []}), ValueError, "at least one row; got none"),
    "empty matrix": (of(np.zeros((0, 3))), ValueError, "at least one row; got none"),
    "no wide matrix": (of(np.zeros((3, 0))), ValueError, "at least one column"),
    "a vector": (
        of(np.zeros(5)),
        ValueError,
        "got one of shape (5,). Of one row, take table[None]",
    ),
    "rows as mappings": (of([{"x": 1.0}] * 3), TypeError, "pandas.DataFrame.from_records(table)"),
    "a Series": (of(Series()), TypeError, "as table.to_frame() is of one column"),
    "one row of values": (of({"x": 1.0, "y": "a"}), ValueError, "every value is a list of one"),
    "dates as text, later": (
        score(one("day", ["2024-01-01"] * N)),
        TypeError,
        "pandas.to_datetime",
    ),
    "numbers as text, later": (score(one("size", ["1.5"] * N)), TypeError, "pandas.to_numeric"),
    "text as numbers, later": (score(one("kind", [3] * N)), TypeError, "astype(str) makes text"),
    "a cube": (of(np.zeros((5, 2, 2))), ValueError, "to have rows and columns"),
    "unequal lengths": (of({"x": [1.0], "y": [1.0, 2.0]}), ValueError, "to be of one length"),
    "a scalar column": (of({"x": 1.0}), ValueError, "one dimension each"),
    "a wide column": (of({"x": np.zeros((3, 2))}), ValueError, "one dimension each"),
    "complex": (of(one("size", [1j] * N)), TypeError, "of one type: numbers, text, dates"),
    "infinite": (
        of(with_value("size", math.inf)),
        ValueError,
        "'size' to be finite; got inf in row 3",
    ),
    "text among numbers": (
        of(with_value("size", "?")),
        TypeError,
        "'size' to hold values of one type",
    ),
    "numbers among text": (of(with_value("kind", 4)), TypeError, "got 'a' in row 0 and 4 in row 3"),
    "booleans among numbers": (of(one("size", [1.5, True] * 30)), TypeError, "of one type"),
    "dates among text": (of(with_value("kind", date(2020, 1, 1))), TypeError, "of one type"),
    "objects": (of(one("kind", [object()] * N)), TypeError, "'kind' to hold values of one type"),
    "lists": (of(one("kind", np.array([[1], []] * 30, dtype=object))), TypeError, "of one type"),
    "an integer that is rounded": (of(one("count", [2**53 + 1] * N)), ValueError, "below 2**53"),
    "huge integers": (of(one("count", [2**60 + i for i in range(N)])), ValueError, "below 2**53"),
    "nothing to model": (of({"x": [math.nan] * 5}), ValueError, "a column to model"),
    "only identifiers": (of({"id": np.arange(N)}), ValueError, "a column to model"),
    "unknown kind": (said("normal"), ValueError, "columns['size'] to be one of real, spline"),
    "kind of a number": (said(3), ValueError, "to be one of real"),
    "unhashable kind": (said(["real", 1]), ValueError, "to be one of real"),
    "column of no kind": (said(None), ValueError, "to be one of real"),
    "unknown column": (said("real", "sise"), ValueError, "columns to name columns of the table"),
    "positive of negatives": (said("positive"), ValueError, "'size' (positive) to be above 0"),
    "count of fractions": (said("count"), ValueError, "whole numbers from 0 on"),
    "amount of negatives": (
        of({"x": np.round(GOOD["size"])}, columns={"x": "amount"}),
        ValueError,
        "no negative number",
    ),
    "rounded of none": (said("rounded"), ValueError, "to hold multiples of a step"),
    "binary of many": (said("binary", "kind"), ValueError, "two values, as a binary one"),
    "text as numbers": (said("real", "kind"), TypeError, "'kind' (real) to hold numbers; got"),
    "text as dates": (said("date", "kind"), TypeError, "to hold dates, in a file as 2024-05-31"),
    "a file": (lambda: mf.fit_table("a.csv"), TypeError, "as pandas.read_csv('a.csv') gives"),
    "date of numbers": (said("date"), TypeError, "'size' (date) to hold dates"),
    "bounds the wrong way": (said(("bounded", 1, 0)), ValueError, "low below high"),
    "equal bounds": (said(("bounded", 1, 1)), ValueError, "low below high"),
    "one bound": (said(("bounded", 1)), ValueError, "to be one of real"),
    "bounds of text": (said(("bounded", "a", "b")), TypeError, "to be a number"),
    "bounds inside": (said(("bounded", 0, 0.1)), ValueError, "between 0 and 0.1, both excluded"),
    "a kind of no values": (
        of(one("size", [None] * N), columns={"size": "real"}),
        ValueError,
        "'size' to hold values; got none",
    ),
    "context as text": (of(GOOD, context="kind"), TypeError, "context to be a list of names"),
    "unknown context": (of(GOOD, context=["sort"]), ValueError, "context to name columns"),
    "all is context": (of(GOOD, context=list(GOOD)), ValueError, "a column to model"),
    "context left out": (
        of(GOOD, columns={"kind": "leave_out"}, context=["kind"]),
        ValueError,
        "columns that can be used; got 'kind'",
    ),
    "no schema": (lambda: mf.TableMADE(GOOD), TypeError, "schema to be a Schema"),  # type: ignore[arg-type]
    "no components": (of(GOOD, components=0), ValueError, "components to be a positive integer"),
    "unknown option": (of(GOOD, depth=3), TypeError, "depth"),
    "unknown frame": (
        lambda: Schema(MODEL.schema.columns, frame="sql"),
        ValueError,
        "frame to be one",
    ),
    "scored without a column": (
        score({"size": [1.0]}),
        ValueError,
        "one without 'count', 'kind', 'day'",
    ),
    "scored with another column": (score({**GOOD, "z": [1] * N}), ValueError, "one with 'z'"),
    "scored matrix": (score(np.zeros((3, 4))), ValueError, "without 'size', 'count'"),
    "scored wide matrix": (score(np.zeros((3, 4)), ARRAY), ValueError, "with 'x1', 'x2', 'x3'"),
    "scored text": (
        score(one("size", ["a"] * N)),
        TypeError,
        "'size' to hold float, as in training",
    ),
    "scored number": (
        score(one("kind", [1.0] * N)),
        TypeError,
        "'kind' to hold text, as in training",
    ),
    "scored dates": (score(one("size", GOOD["day"])), TypeError, "got date"),
    "scored half a count": (score(with_value("count", 1.5)), ValueError, "1.5 in row 3. For other"),
    "scored negative count": (score(with_value("count", -1)), ValueError, "-1 in row 3"),
    "scored zero": (score({"x": [1.0, 0.0]}, POSITIVE), ValueError, "above 0; got 0 in row 1"),
    "scored one": (score({"x": [0.5, 1.0]}, SHARE), ValueError, "got 1 in row 1"),
    "scored negative": (score({"x": [0.0, -1.0]}, INFLATED), ValueError, "got -1 in row 1"),
    "scored infinite": (score(with_value("size", -math.inf)), ValueError, "-inf in row 3"),
    "scored no orders": (lambda: MODEL.score_samples(GOOD, orders=0), ValueError, "orders to be"),
    "no sample": (lambda: MODEL.sample(0), ValueError, "count to be a positive integer"),
    "half a sample": (lambda: MODEL.sample(1.5), TypeError, "count to be a positive integer"),  # type: ignore[arg-type]
    "needless context": (lambda: MODEL.sample(2, context={"kind": ["a"]}), ValueError, "left out"),
    "missing context": (lambda: CONTEXT.sample(2), ValueError, "a table of 'kind'"),
    "other context": (
        lambda: CONTEXT.sample(2, context={"k": ["a"]}),
        ValueError,
        "without 'kind'",
    ),
    "missing in context": (
        lambda: CONTEXT.sample(2, context={"kind": ["a", None]}),
        ValueError,
        "hold a value in every row; got none in row 1",
    ),
    "no draws": (lambda: MODEL.fill(GOOD, draws=0), ValueError, "draws to be a positive integer"),
    "fitted to another table": (lambda: MODEL.fit({"x": [1.0]}), ValueError, "without 'size'"),
    "validated by another": (
        lambda: MODEL.fit(GOOD, validation={"x": [1.0]}),
        ValueError,
        "validation",
    ),
    "codes of another width": (lambda: MODEL().log_prob(torch.zeros(2, 3)), ValueError, "(..., 4)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_is_wrong(name: str) -> None:
    call, kind, words = ERRORS[name]
    with pytest.raises(kind, match=re.escape(words)):
        call()


def kinds(table: Any) -> dict[str, str]:
    schema = Schema.of(table)
    return {c.name: c.kind for c in schema.columns} | dict.fromkeys(schema.left_out, "left out")


RNG = np.random.default_rng(0)
ANSWERS: dict[str, tuple[Any, str]] = {
    "one row": ([3.0], "constant"),
    "constant": ([3.0] * 50, "constant"),
    "constant text": (["a"] * 50, "constant"),
    "all missing": ([None] * 50, "left out"),
    "free text": ([f"word {i}" for i in range(50)], "left out"),
    "row numbers": (np.arange(1, 51), "left out"),
    "row numbers, shuffled": (RNG.permutation(50) + 7, "left out"),
    "two numbers": ([0, 1] * 25, "binary"),
    "two numbers and holes": ([0, 1, math.nan] * 25, "binary"),
    "booleans": ([True, False, None] * 25, "binary"),
    "few numbers": ([1, 2, 3, 5] * 20, "category"),
    "counts": (RNG.poisson(100, 300), "count"),
    "counts with holes": (np.append(RNG.poisson(100, 300), math.nan), "amount"),
    "integers of both signs": (RNG.poisson(100, 300) - 100, "rounded"),
    "hundredths": (np.round(RNG.lognormal(1, 1, 900), 2), "amount"),
    "reals": (RNG.normal(size=300), "real"),
    "positive": (RNG.lognormal(size=300), "positive"),
    "mostly zero": (np.maximum(RNG.normal(size=300), 0), "zero_inflated"),
    "32-bit": (RNG.normal(size=300).astype(np.float32), "real"),
    "dates": (np.datetime64("2024-01-01") + RNG.integers(0, 500, 300), "date"),
    "Python dates": ([date(2024, 1, 1 + i % 28) for i in range(40)], "date"),
    "dates with holes": (
        np.append(np.datetime64("NaT"), np.array("2024-01-01", "M8[D]") + np.arange(90)),
        "date",
    ),
    "durations": (RNG.integers(0, 5000, 300).astype("m8[s]"), "zero"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_kinds_are_found(name: str) -> None:
    values, kind = ANSWERS[name]
    table = {"other": RNG.normal(size=len(values)), "x": values}
    found = kinds(table)["x"]
    assert found == kind if kind != "zero" else found in ("positive", "amount", "real")
    if kind == "left out" or len(values) == 1:
        return
    model = mf.TableMADE.from_data(table, hidden_features=(8,))
    assert np.isfinite(model.score_samples(table)).all()
    assert len(model.sample(3)["x"]) == 3


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_the_index_of_a_frame_is_no_column_of_it(name: str) -> None:
    """Of some rows of a frame, in a file, it was a count."""
    index = RNG.permutation(900)[:50]
    table = {name: index, "x": RNG.normal(size=50)}
    assert kinds(table) == {name: "left out", "x": "real"}
    assert kinds({"id": index, "x": table["x"]})["id"] == "count"
    assert kinds({**table, name: index // 20})[name] != "left out"
    assert Schema.of(table, {name: "count"}).columns[0].kind == "count"
    days = np.datetime64("2024-01-01") + index
    assert kinds({**table, name: days})[name] == "date"


def test_the_schema_is_a_table_and_can_be_overridden() -> None:
    table = {**GOOD, "id": np.arange(N), "fare": np.maximum(GOOD["size"], 0.0)}
    text = str(Schema.of(table, {"fare": "real", "count": "leave_out"}, ["kind"]))
    assert [line.split()[0] for line in text.splitlines()] == [
        "column", "size", "day", "fare", "kind", "count", "id",
    ]  # fmt: skip
    assert "identifier" in text
    assert "category, context" in text
    assert "as was asked" in text
