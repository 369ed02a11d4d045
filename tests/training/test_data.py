"""Rows of files, streams and loaders: the same numbers as from rows in memory, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import made_flows as mf
from made_flows.training import data as of_data
from made_flows.training import standardization
from made_flows.training.convert import as_tensor

ROWS = np.random.default_rng(0).normal(1e3, 5, (203, 3))
CONTEXT = np.random.default_rng(1).normal(size=(203, 2)).astype(np.float32)
QUIET = {"progress": False, "seed": 0, "max_epochs": 2}


def model(context: int = 2, **options: Any) -> mf.MAF:
    torch.manual_seed(0)
    return mf.MAF(3, context, transforms=1, hidden_features=(8,), **options)


def mapped(path: Path, array: np.ndarray) -> np.memmap:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f4", "i2", "u2"])
@pytest.mark.parametrize("validation", [0.2, None])
def test_files_train_as_rows_in_memory(dtype: str, validation, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(of_data, "_PIECE", 50)
    x = ROWS.astype(dtype)
    of_file = mapped(tmp_path / "x.npy", x), mapped(tmp_path / "c.npy", CONTEXT)
    runs = []
    for data in ((x, CONTEXT), of_file):
        flow = model()
        history = mf.fit(flow, *data, validation=validation, **QUIET)
        as_pair = mf.fit(again := model(), data, validation=validation, **QUIET)
        assert as_pair.train == history.train
        runs.append((history.train, history.validation, mf.score(flow, *data)))
        assert mf.score(again, data) == runs[-1][-1]
    assert runs[0] == runs[1]


def test_a_pair_without_a_context_is_rows() -> None:
    x = torch.from_numpy(ROWS).float()
    assert mf.score(model(0), (x, None)) == mf.score(model(0), x)
    assert mf.fit(model(0), x, validation=(x[:50], None), **QUIET).epochs
    with pytest.raises(ValueError, match="validation to come with a context"):
        mf.fit(model(2), x, context=CONTEXT, validation=(x[:50], None), **QUIET)


def test_rows_of_files_stay_there(tmp_path) -> None:
    """Nothing but batches is read into memory: the rows kept are those of the file."""
    target = of_data.Target.of(model(0))
    rows = of_data.open_data(mapped(tmp_path / "x.npy", ROWS), None, target, "data", 32, None)
    for part in (rows, *rows.split(0.1, torch.Generator())):
        assert isinstance(part.x, np.memmap)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((120, 1), np.nan, "data to be finite; got nan in row 120, column 1"),
        ((202, 2), np.inf, "data to be finite; got inf in row 202, column 2"),
    ],
)
def test_a_bad_value_of_a_file_is_named_by_its_row(place, value, message, tmp_path, monkeypatch):
    monkeypatch.setattr(of_data, "_PIECE", 50)
    x = ROWS.copy()
    x[place] = value
    for call in (mf.score, mf.fit):
        with pytest.raises(ValueError, match=message):
            call(model(0), mapped(tmp_path / "x.npy", x))


def test_a_file_of_another_width_or_kind_or_length_is_refused(tmp_path) -> None:
    for array, context, error, message in [
        (ROWS[:, :2], None, ValueError, r"data of shape \(N, 3\); got \(203, 2\)"),
        (ROWS[:, 0], None, ValueError, r"data of shape \(N, 3\); got \(203,\)"),
        (ROWS.astype(complex), None, TypeError, "data to hold numbers; got"),
        (ROWS.astype("U8"), None, TypeError, "data to hold numbers; got"),
        (ROWS, CONTEXT[:9], ValueError, "the context of data to have 203 rows, as data has; got 9"),
    ]:
        given = [mapped(tmp_path / "x.npy", array)]
        given += [] if context is None else [mapped(tmp_path / "c.npy", context)]
        with pytest.raises(error, match=message):
            mf.score(model(0 if context is None else 2), *given)


class Batches(IterableDataset):
    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __iter__(self):
        return iter(torch.as_tensor(ROWS[: sum(self.sizes)]).split(self.sizes))


class BatchItems(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        return torch.as_tensor(ROWS[:193]).split(64)[i]


STREAMS = {
    "dataset of batches": lambda: Batches(64, 64, 64, 1),
    "items that are batches": BatchItems,
    "loader of batches": lambda: DataLoader(BatchItems(), batch_size=None),
    "loader": lambda: DataLoader(TensorDataset(torch.as_tensor(ROWS[:193])), batch_size=64),
    "first one row": lambda: Batches(1, 64, 64, 64),
}


@pytest.mark.parametrize("normalize", [None, "batch", "actnorm"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_single_row_left_over_is_trained_with_others(name: str, normalize: str | None) -> None:
    flow = model(0, normalize=normalize)
    history = mf.fit(flow, STREAMS[name](), validation=None, **QUIET)
    assert history.epochs == 2
    expected = flow().log_prob(torch.as_tensor(ROWS[:193])).mean().item()
    for given in (STREAMS[name](), iter(torch.as_tensor(ROWS[:193]).split(50))):
        assert mf.score(flow, given) == pytest.approx(expected, rel=1e-6)


def test_score_leaves_modes_and_generators_alone() -> None:
    flow = model(0, dropout=0.5).train()
    before = torch.get_rng_state()
    assert mf.score(flow, ROWS, batch_size=7) == mf.score(flow, ROWS.tolist(), batch_size=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in flow.modules())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("model", ROWS), TypeError, "model to be a torch.nn.Module; got str"),
        ((model(0), ROWS, CONTEXT), ValueError, "without a context"),
        ((model(2), ROWS), ValueError, r"context of shape \(N, 2\); got no context"),
        ((model(0), []), ValueError, "data of shape"),
        ((model(0), iter([])), ValueError, "at least one row"),
        ((model(0), [["a", "b", "c"]]), TypeError, "to hold numbers"),
    ],
)
def test_bad_input_of_score(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        mf.score(*arguments)
    with pytest.raises((TypeError, ValueError), match="batch_size to be a positive integer"):
        mf.score(model(0), ROWS, batch_size=0)


def test_of_many_rows_some_are_measured_and_rare_values_are_found(monkeypatch) -> None:
    monkeypatch.setattr(standardization, "_MOST", 50)
    monkeypatch.setattr(standardization, "_PIECE", 64)
    x = ROWS.copy()
    x[:, 2] = 0.1
    x[101, 2] = 3.1  # between those that are measured, the sample has one value
    flow = model(0)
    mf.fit(flow, x, validation=None, **QUIET)
    torch.testing.assert_close(flow.units.location[:2], torch.as_tensor(ROWS[::5, :2].mean(0)))
    assert flow.units.scale[2].item() == pytest.approx(3 / 203**0.5, rel=1e-6)
    x[101, 2] = 0.1
    with pytest.raises(ValueError, match=r"column 2 constant at 0\.1"):
        mf.fit(model(0), x, validation=None, **QUIET)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "?"])
def test_what_is_masked_is_missing(dtype: str) -> None:
    """And no value, as what is behind the mask (often -999) had been."""
    x = np.ma.masked_array(ROWS > 1e3 if dtype == "?" else ROWS.astype(dtype), ROWS > 1005)
    holes = as_tensor(x, "x")
    assert holes.isnan().numpy().tolist() == x.mask.tolist()
    assert (holes.numpy()[~x.mask] == x.data[~x.mask]).all()
    with pytest.raises(ValueError, match="data to be finite; got nan in row"):
        mf.fit(model(0), x, **QUIET)
    np.testing.assert_array_equal(as_tensor(x[:0], "x"), x.data[:0])
    unmasked = np.ma.masked_array(x.data, np.zeros_like(x.mask))
    assert as_tensor(unmasked, "x").numpy().dtype == x.dtype
    with pytest.raises(ValueError, match="mean to hold no masked values"):
        mf.Standardize(x[0] if x.mask[0].any() else x[x.mask.any(axis=1)][0], np.ones(3))


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_frames_of_several_types_of_numbers(kind: str) -> None:
    library: Any = pytest.importorskip(kind)
    columns: dict[str, Any] = {"real": ROWS[:, 0], "whole": np.arange(203), "flag": ROWS[:, 1] > 0}

    def frame(**more: Any) -> Any:
        table = columns | more
        return library.table(table) if kind == "pyarrow" else library.DataFrame(table)

    whole = frame()
    if kind == "pandas":
        whole = whole.astype({"whole": "Int64", "flag": "boolean"})
    np.testing.assert_array_equal(as_tensor(whole, "x"), np.stack([*columns.values()], axis=1))
    wrong = r"every column of data to hold numbers; got 'kind' of \w+\. fit_table takes"
    with pytest.raises(TypeError, match=wrong):
        mf.fit(model(0), frame(kind=["a", "b", "c", "d", "e", "f", "g"] * 29), **QUIET)


X = torch.from_numpy(ROWS - 1e3)
FINE = 1 + np.arange(609).reshape(203, 3).astype(np.longdouble) * np.longdouble(2) ** -60
MORE_THAN_DOUBLE = pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="long doubles are doubles"
)
UNREADABLE: dict[str, tuple[Any, str]] = {
    "complex": (X + 0j, "to be real; got dtype torch.complex128"),
    "sparse": (X.to_sparse(), "to be dense; got layout torch.sparse_coo"),
    "quantized": (
        torch.ops.aten.quantize_per_tensor(X.float(), 0.1, 0, torch.qint8),
        "to be dequantized; got dtype torch.qint8",
    ),
    "meta": (X.to("meta"), "to hold numbers; got device"),
    "integers above 2**63": (
        torch.full((203, 3), -1, dtype=torch.int64).view(torch.uint64), r"integers below 2\*\*"),
    "bytes": (X.numpy().astype("S"), "to hold numbers|one type|column to model"),
    "records": (np.zeros(203, dtype=[("a", "f8")]), "to hold numbers|rows and columns"),
}  # fmt: skip
ENTRIES: dict[str, Any] = {
    "fit": lambda x: mf.fit(model(0), x, **QUIET),
    "context": lambda x: mf.fit(mf.MAF(3, 3, 1), X, x, **QUIET),
    "batches": lambda x: mf.fit(model(0), [x, x], **QUIET),
    "score": lambda x: mf.score(model(0), x),
    "estimate": lambda x: mf.estimate(x, budget="fast", max_seconds=0.1, progress=False),
    "table": lambda x: mf.fit_table(x, **QUIET),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_holds_no_numbers_is_refused_by_name(name: str, entry: str) -> None:
    x, message = UNREADABLE[name]
    with pytest.raises((TypeError, ValueError), match=f"^Expected .*({message})"):
        ENTRIES[entry](x)


@MORE_THAN_DOUBLE
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_double_precision_brings_together_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="numbers that double precision tells apart"):
        ENTRIES[entry](FINE)


SAME = {
    "of eight bits": lambda x: x.to(torch.float8_e5m2),
    "unsigned": lambda x: (100 * x).abs().to(torch.uint16),
    "a negative view": lambda x: torch.complex(x, -x).conj().imag,
}


@pytest.mark.parametrize("name", SAME)
def test_numbers_of_rare_kinds_are_read(name: str) -> None:
    x = SAME[name](X)
    assert mf.score(model(0), x) == mf.score(model(0), x.to(torch.float64))
    assert as_tensor(x, "x").tolist() == x.to(torch.float64).tolist()


def far(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.stack([X[:, 0], 1e9 + 10 * X[:, 1], X[:, 2]], dim=1).to(dtype)


ROUNDED = {
    "rows": lambda: mf.fit(model(0), far(), standardize=False, **QUIET),
    "integers": lambda: mf.score(model(0), far(torch.int64)),
    "contexts": lambda: mf.score(mf.Embedded(model(4), torch.nn.Linear(3, 4), 3), X, far()),
    "integers above 2**53": lambda: mf.score(model(0).double(), far(torch.int64) + 2**61),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_digits_that_are_lost_are_said(name: str, tmp_path) -> None:
    with pytest.warns(
        UserWarning, match=r"hardly vary .* to which they are rounded: (1|0, 1, 2)\."
    ):
        ROUNDED[name]()
    if name == "rows":
        with pytest.warns(UserWarning, match="to which they are rounded: 1"):
            mf.score(model(0), mapped(tmp_path / "x.npy", far().numpy()))


def test_digits_that_are_kept_are_not_said() -> None:
    flow = model(0)
    with pytest.warns(UserWarning, match="samples are rounded"):
        mf.fit(flow, far(), **QUIET)
    mf.score(flow, far())
    mf.score(model(0).double(), far())
    mf.score(model(0), far(torch.float32))
    mf.score(mf.BernoulliMADE(3), (X > 0).double())
