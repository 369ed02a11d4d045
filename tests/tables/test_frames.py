"""Frames of any library in, frames of the same library out."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

import made_flows as mf
from made_flows.tables.frames import read, write

N = 40
ZONE = datetime.timezone(datetime.timedelta(hours=2))
COLUMNS: dict[str, Any] = {
    "real": [0.5 * i**1.5 if i % 7 else None for i in range(N)],
    "whole": [i * i % 37 for i in range(N)],
    "text": [["a", "b", None, "c"][i % 4] for i in range(N)],
    "flag": [[True, False, None][i % 3] for i in range(N)],
    "day": [datetime.datetime(2024, 1, 1) + datetime.timedelta(days=i * i % 39) for i in range(N)],
}


def frame_of(kind: str) -> Any:
    if kind == "dict":
        return dict(COLUMNS)
    library: Any = pytest.importorskip(kind)
    if kind == "pandas":
        return library.DataFrame(COLUMNS)
    return library.DataFrame(COLUMNS) if kind == "polars" else library.table(COLUMNS)


def values_of(frame: Any, name: str) -> list[Any]:
    return list(read(frame)[0][name].array)


@pytest.mark.parametrize("kind", ["dict", "pandas", "polars", "pyarrow"])
def test_frames_are_read_alike_and_given_back(kind: str) -> None:
    frame = frame_of(kind)
    read_columns, found = read(frame)
    assert found == kind
    plain, _ = read(COLUMNS)
    for name, values in plain.items():
        if values.array.dtype == object:
            assert list(read_columns[name].array) == list(values.array)
        else:
            np.testing.assert_array_equal(read_columns[name].array, values.array)
    model = mf.TableMADE.from_data(frame, hidden_features=(8,))
    assert [c.name for c in model.schema.columns] == list(COLUMNS)
    drawn = model.sample(7)
    assert type(drawn) is type(frame)
    filled = model.impute(frame, seed=0)
    assert type(filled) is type(frame)
    assert not any(values.missing.any() for values in read(filled)[0].values())
    assert values_of(filled, "whole") == values_of(frame, "whole")
    if kind == "pandas":
        assert list(filled.columns) == list(frame.columns)
        assert filled["real"].dtype == frame["real"].dtype


def test_columns_that_are_not_modelled_are_kept() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {**COLUMNS, "name": [f"row {i}" for i in range(N)]}, index=range(5, 45)
    )
    model = mf.TableMADE.from_data(frame, hidden_features=(8,))
    filled = model.fill(frame, draws=2)
    assert list(filled["name"]) == list(frame["name"])
    assert list(filled.index) == list(frame.index)
    assert frame["real"].isna().any(), "the table that was given is not changed"
    typed = frame.astype({"whole": "Int64", "text": "category", "flag": "boolean"})
    np.testing.assert_array_equal(model.score_samples(typed), model.score_samples(frame))
    assert model.impute(typed, seed=0)["text"].dtype == typed["text"].dtype


MOMENTS = np.datetime64("2024-01-01T00:00:00.000000001", "ns") + np.arange(N) * np.timedelta64(
    3_600_000_000_007, "ns"
)
FILLED: dict[str, Any] = {  # name: a column, as a function of the library
    "moments": lambda _: MOMENTS,
    "zone": lambda _: [
        datetime.datetime(2024, 1, 1, i % 24, tzinfo=ZONE) + datetime.timedelta(i) for i in range(N)
    ],
    "spans": lambda _: (MOMENTS - MOMENTS[0]) * 3,
    "money": lambda _: [Decimal("1.10") * (i % 7) for i in range(N)],
    "words": lambda library: (
        library.array(["a", "b"] * (N // 2)).dictionary_encode()
        if library.__name__ == "pyarrow"
        else library.Series(["a", "b"] * (N // 2)).astype("category")
        if library.__name__ == "pandas"
        else library.Series(["a", "b"] * (N // 2), dtype=library.Categorical)
    ),
    "single": lambda _: np.linspace(0, 1, N, dtype=np.float32) ** 2,
}


@pytest.mark.parametrize("name", FILLED)
@pytest.mark.parametrize("kind", ["dict", "pandas", "polars", "pyarrow"])
def test_what_is_observed_stays_as_it_is(kind: str, name: str) -> None:
    """To the nanosecond, in its time zone, and in its own type."""
    library: Any = pytest.importorskip("pandas" if kind == "dict" else kind)
    if name == "money" and kind != "pandas":
        pytest.skip("arrays by name of objects become numbers; others cannot be made of a list")
    column, other = FILLED[name](library), np.random.default_rng(0).normal(size=N)
    if kind == "pyarrow":
        frame = library.table({"column": column, "other": other})
        holes = library.compute.if_else(np.arange(N) % 5 == 0, None, frame["column"])
        holed = frame.set_column(0, "column", holes)
    elif kind == "polars":
        frame = library.DataFrame({"column": column, "other": other})
        gone = library.Series(np.arange(N) % 5 == 0)
        blank = library.Series([None] * N, dtype=frame["column"].dtype)
        holed = frame.with_columns(blank.zip_with(gone, frame["column"]).alias("column"))
    else:
        frame = library.DataFrame({"column": column, "other": other})
        holed = frame.assign(column=frame["column"].where(np.arange(N) % 5 > 0))
    if kind == "dict":
        holed = {each: holed[each].array if name == "zone" else holed[each].to_numpy()
                 for each in holed}  # fmt: skip
    filled = mf.TableMADE.from_data(holed, hidden_features=(8,)).impute(holed, seed=0)
    assert not read(filled)[0]["column"].missing.any()
    given, now = (each["column"] for each in (holed, filled))
    if kind == "pyarrow" and name == "words":  # which are compared by their numbers
        given, now = given.to_pylist(), now.to_pylist()
    for i in range(N):
        if i % 5 and not (kind == "dict" and name == "zone"):
            assert now[i] == given[i]
    if kind in ("pandas", "polars"):
        assert filled["column"].dtype == holed["column"].dtype
    elif kind == "pyarrow":
        assert filled.schema == holed.schema


def test_matrices_have_columns_by_number() -> None:
    x = np.random.default_rng(0).normal(size=(N, 3))
    x[3, 1] = np.nan
    model = mf.TableMADE.from_data(x, hidden_features=(8,))
    assert model.schema.names == ["x0", "x1", "x2"]
    assert model.sample(4).shape == (4, 3)
    filled = model.impute(x, seed=0)
    assert filled.shape == x.shape
    assert np.isfinite(filled).all()
    tensor = torch.from_numpy(x)
    np.testing.assert_array_equal(model.score_samples(tensor), model.score_samples(x))


def test_values_of_other_types() -> None:
    columns, _ = read({
        "money": [Decimal("1.5"), Decimal(2), None],
        "numbers": [1, 2.5, None],
        "zone": [datetime.datetime(2024, 1, 1, 2, tzinfo=ZONE)] * 3,
        "span": [datetime.timedelta(hours=12)] * 3,
    })  # fmt: skip
    assert columns["money"].array[0] == 1.5
    assert columns["numbers"].holds == "float"
    assert columns["zone"].array[0] == (datetime.date(2024, 1, 1) - datetime.date(1970, 1, 1)).days
    assert columns["span"].array[0] == 0.5


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match="pip install pandas"):
        write({"x": np.zeros(2)}, "pandas")


@pytest.mark.parametrize("values", ["text", "whole", "real", "day"])
def test_what_is_missing_of_arrows_categories_is_missing(values: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    plain = arrow.array([None, *COLUMNS[values], None])
    for column in (plain.dictionary_encode(), arrow.chunked_array([plain.dictionary_encode()] * 2)):
        given = plain.to_pylist() * (len(column) // len(plain))
        found = read(arrow.table({"a": column}))[0]["a"].missing
        assert found.tolist() == [value is None or value != value for value in given]


@pytest.mark.parametrize("kind", ["polars", "pyarrow"])
def test_large_integers_beside_what_is_missing_are_refused(kind: str) -> None:
    library: Any = pytest.importorskip(kind)
    make = library.DataFrame if kind == "polars" else library.table
    assert read(make({"a": [1, None, 2**53 - 1]}))[0]["a"].array[2] == 2**53 - 1
    with pytest.raises(ValueError, match=r"below 2\*\*53 .* got 9007199254740993 in row 2"):
        read(make({"a": [1, None, 2**53 + 1]}))
