"""Frames of any library in, frames of the same library out."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

import made_flows as mf
from made_flows.tables.columns import fit_categories
from made_flows.tables.frames import read, write
from made_flows.tables.schema import Schema

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


def _of_types(kind: str) -> Any:
    """A frame whose columns are of other types than plain values would be."""
    library: Any = pytest.importorskip(kind)
    whole = np.arange(N) ** 2 % 37
    text = [["low", "high", "mid"][i % 3] for i in range(N)]
    if kind == "pandas":
        zone = library.date_range("2024-01-01", periods=N, freq="7h", tz="Europe/Paris")
        levels = library.CategoricalDtype(["low", "mid", "high", "never"], ordered=True)
        return library.DataFrame({
            "Int64": library.array([None, *whole[1:]], dtype="Int64"),
            "uint8": whole.astype("uint8"),
            "single": np.linspace(0, 1, N, dtype=np.float32) ** 2,
            "level": library.Series(text, dtype=levels),
            "numbers": library.Series(whole % 4, dtype=library.CategoricalDtype([3, 2, 1, 0])),
            "boolean": library.Series([True, None] * (N // 2), dtype="boolean"),
            "string": library.Series(text, dtype="string"),
            "object": library.Series(text, dtype=object),
            "zone": zone,
            "second": zone.tz_localize(None).astype("datetime64[s]"),
        })  # fmt: skip
    if kind == "polars":
        return library.DataFrame({
            "Int16": library.Series(whole, dtype=library.Int16),
            "single": library.Series(whole / 3, dtype=library.Float32),
            "category": library.Series(text, dtype=library.Categorical),
            "enum": library.Series(text, dtype=library.Enum(["low", "mid", "high", "never"])),
            "zone": library.Series(
                [datetime.datetime(2024, 1, 1 + i % 28, i % 24) for i in range(N)],
                dtype=library.Datetime("ms", "UTC"),
            ),
        })  # fmt: skip
    return library.table({
        "int16": library.array(whole, library.int16()),
        "single": library.array(whole / 3, library.float32()),
        "category": library.array(text).dictionary_encode(),
        "large": library.array(text, library.large_string()),
        "moment": library.array(MOMENTS, library.timestamp("ns", "UTC")),
        "money": library.array([Decimal("1.10") * (i % 7) for i in range(N)]),
    })  # fmt: skip


def _types_in(frame: Any) -> list[Any]:
    return frame.schema.types if hasattr(frame, "schema") and hasattr(frame.schema, "types") else (
        list(frame.dtypes)
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_samples_are_of_the_types_that_were_given(kind: str, tmp_path: Any) -> None:
    frame = _of_types(kind)
    model = mf.TableMADE.from_data(frame, hidden_features=(8,))
    mf.save(model, tmp_path / "model")
    for each in (model, mf.load(tmp_path / "model")):
        drawn = each.sample(20, seed=0)
        assert _types_in(drawn) == _types_in(frame)
        assert not any(values.missing.any() for values in read(drawn)[0].values())
    each.schema.frame = "dict"
    assert each.sample(2)["single"].dtype == float


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_types_that_cannot_hold_values_are_left(kind: str) -> None:
    library: Any = pytest.importorskip(kind)
    types: Any = {"pandas": "int8", "polars": "Int8", "pyarrow": "int8"}
    for values in (np.array([1, 300]), np.array([0.5, 1.0])):
        made = write({"a": values}, kind, types={"a": {kind: types[kind]}})
        assert read(made)[0]["a"].array.tolist() == values.tolist()
    narrow: Any = {"pandas": "float16", "polars": "Float32", "pyarrow": "float"}
    large = write({"a": np.array([1e90])}, kind, types={"a": {kind: narrow[kind]}})
    assert read(large)[0]["a"].array.tolist() == [1e90]
    assert library is not None


BITS = np.arange(N) % 3 == 0


@pytest.mark.parametrize(
    "given", [BITS, BITS.astype(int), BITS.astype(float)], ids=["bool", "int", "float"]
)
def test_truth_values_are_ones_and_zeros(given: Any) -> None:
    other = np.arange(N) * 0.7 % 1.0
    model = mf.TableMADE.from_data({"a": given, "b": other}, hidden_features=(8,))
    expected = model.score_samples({"a": given, "b": other})
    for column in (BITS, BITS.astype(int), BITS.astype(float), [bool(b) for b in BITS]):
        found = model.score_samples({"a": column, "b": other})
        np.testing.assert_array_equal(found, expected)
        holes = {"a": [None, *list(column)[1:]], "b": other}
        filled = model.impute(holes, seed=0)["a"]
        assert {type(value) for value in list(filled[1:])} <= {
            type(list(column)[1]),
            type(filled[1]),
        }
        assert set(np.asarray(filled, float)) <= {0.0, 1.0}
    with pytest.raises((TypeError, ValueError), match="column 'a'"):
        model.score_samples({"a": ["x"] * N, "b": other})


def test_other_numbers_are_no_truth_values() -> None:
    model = mf.TableMADE.from_data({"a": BITS, "b": np.arange(N)}, hidden_features=(8,))
    with pytest.raises(
        TypeError, match=r"column 'a' to hold bool, as in training; got int: 2.0 in"
    ):
        model.score_samples({"a": [2] * N, "b": np.arange(N)})


MASK = np.arange(N) % 4 == 1


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "?", "U2", "M8[D]", "m8[s]"])
def test_what_is_masked_is_missing(dtype: str) -> None:
    """And no value, as what is behind the mask (often -999) had been."""
    column = np.ma.masked_array((np.arange(N) % 7).astype(dtype), MASK)
    frame = {"a": column, "b": np.arange(N) ** 1.5}
    values = read(frame)[0]["a"]
    assert values.missing.tolist() == MASK.tolist()
    plain = read({"a": column.data})[0]["a"]
    assert values.holds == plain.holds
    assert values.array[~values.missing].tolist() == plain.array[~MASK].tolist()
    filled = mf.TableMADE.from_data(frame, hidden_features=(8,)).impute(frame, seed=0)["a"]
    assert not read({"a": filled})[0]["a"].missing.any()
    assert filled[~MASK].tolist() == column.data[~MASK].tolist()


SHORT: dict[str, Any] = {  # decimals, in single and half precision
    "array": np.asarray,
    "tensor": lambda x, dtype: torch.from_numpy(np.asarray(x, dtype)),
    "list": lambda x, dtype: list(np.asarray(x, dtype)),
    "pandas": lambda x, dtype: pytest.importorskip("pandas").Series(np.asarray(x, dtype)),
}


@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize("kind", SHORT)
def test_decimals_of_low_precision_are_those_that_they_stand_for(kind: str, dtype: str) -> None:
    """Steps and categories are the same, whatever the precision they are stored in."""
    rng = np.random.default_rng(0)
    table = {"steps": np.round(rng.normal(size=300), 1), "few": rng.choice([0.1, 0.2, 0.7], 300)}
    given = {name: SHORT[kind](column, dtype) for name, column in table.items()}
    for name, values in read(given)[0].items():
        assert values.array.tolist() == table[name].tolist()
    models = [mf.TableMADE.from_data(each, hidden_features=(8,)) for each in (table, given)]
    assert [column.kind for column in models[1].schema.columns] == ["rounded", "category"]
    for model in models:
        found, expected = model.score_samples(given), model.score_samples(table)
        np.testing.assert_array_equal(found, expected)


def test_categories_of_single_precision_in_files_of_before() -> None:
    few = np.array([0.1, 0.2, 0.7])[np.arange(N) % 3]
    exact = read({"few": few.astype(np.float32).astype(np.float64)})[0]["few"]
    column = fit_categories("few", exact)
    assert not set(column.categories) & {0.1, 0.2, 0.7}
    for each in (few, few.astype(np.float32)):
        found = column.codes(read({"few": each})[0]["few"])
        assert found.tolist() == column.codes(exact).tolist()
    assert column.codes(read({"few": np.array([0.3, np.nan, 1e50])})[0]["few"])[0] == 3
    large = read({"few": np.array([1e50, 0.5])})[0]["few"]
    assert sorted(fit_categories("few", large).codes(large)) == [0, 1]


def test_other_numbers_of_single_precision_stay() -> None:
    x = np.array([1 / 3, 1e-12, 1e30, 16777217.0, -0.0, np.nan, 1e-45], np.float32)
    found = read({"x": x})[0]["x"].array
    np.testing.assert_array_equal(found.astype(np.float32), x)
    np.testing.assert_allclose(found, x, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_have_the_categories_of_numbers_that_were_given(dtype: Any) -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(np.array([0.1, 0.2, 0.7], dtype)[np.arange(N) % 3]).astype("category")
    frame = pandas.DataFrame({"a": column})
    model = mf.TableMADE.from_data(frame, hidden_features=(8,))
    assert model.sample(5, seed=0)["a"].dtype == column.dtype


def _of_categories(kind: str, values: list[Any]) -> Any:
    library: Any = pytest.importorskip(kind)
    if kind == "pandas":
        return library.DataFrame({"a": library.Categorical(values)})
    if kind == "polars":
        return library.DataFrame({"a": library.Series(list(map(str, values)))}).select(
            library.col("a").cast(library.Categorical)
        )
    return library.table({"a": library.array(values).dictionary_encode()})


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_numbers_of_a_type_of_categories_are_categories(kind: str) -> None:
    """Numbers of shops were counts, of which draws were others than there are."""
    shops = [1000 + 7 * (i % 28) for i in range(60)]
    table = _of_categories(kind, shops)
    schema = Schema.of(table)
    assert schema.columns[0].kind == "category"
    assert Schema.of(table, any_number=True, resolution=0.05).columns == schema.columns
    drawn = mf.TableMADE(schema, (8,)).sample(50, seed=0)
    assert {*map(int, read(drawn)[0]["a"].array)} <= {*shops}
    if kind != "polars":  # whose categories are text
        assert Schema.of(table, {"a": "count"}).columns[0].kind == "count"
    with pytest.raises(ValueError, match="identifier"):
        Schema.of(_of_categories(kind, list(range(60))))


@pytest.mark.parametrize("names", [[0, 1], [("a", "x"), ("a", "y")], [7, "b"], [0.5, "b"]])
@pytest.mark.parametrize("kind", ["dict", "pandas"])
def test_samples_have_the_names_that_were_given(kind: str, names: list[Any], tmp_path: Any) -> None:
    """Beside rows of a frame whose columns have numbers for names, they were other columns."""
    table: Any = {name: np.random.default_rng(0).normal(size=30) for name in names}
    if kind == "pandas":
        table = pytest.importorskip("pandas").DataFrame(table)
    model = mf.TableMADE.from_data(table, hidden_features=(8,))
    mf.save(model, tmp_path / "model")
    wanted = ["0.5", "b"] if names[0] == 0.5 else names  # no name that a file holds as it is
    for each in (model, mf.load(tmp_path / "model")):
        drawn = each.sample(3)
        assert list(drawn) == wanted
        assert np.isfinite(each.score_samples(drawn)).all()
    if kind == "pandas" and names != [0.5, "b"]:
        assert drawn.columns.equals(table.columns)


@pytest.mark.parametrize("kind", ["dict", "pandas"])
def test_names_that_are_equal_as_text_are_refused(kind: str) -> None:
    """Of two columns, 1 and "1", one had been lost."""
    table: Any = {1: np.arange(3.0), "1": np.arange(3.0), 2: np.arange(3.0)}
    if kind == "pandas":
        table = pytest.importorskip("pandas").DataFrame(table)
    with pytest.raises(ValueError, match=r"table to have columns of different names; got 1$"):
        read(table)
