"""The benchmark of continuous tables: its rows, its page, its resumed runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _tables_data as data
from benchmarks import tables


@pytest.fixture
def folder(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "tables").mkdir()
    x = rng.normal(size=(80, 3))
    few = rng.integers(0, 4, size=(80, 1))
    np.savez(folder / "tables" / "mine.npz", X=np.hstack([x, few]))
    (folder / "anomaly").mkdir()
    np.savez(folder / "anomaly" / "odd.npz", X=x, y=np.arange(80) % 4 == 0)
    return folder


def test_rows_have_a_density(folder: Path):
    found = data.load_tables(["mine", "odd"])
    assert found["mine"].shape == (80, 3)  # the column of four values is left out
    assert found["odd"].shape == (60, 3)  # and so are anomalies


def test_splits_are_standardised_by_their_training_rows(folder: Path):
    rows = data.load_tables(["mine"])["mine"]
    split = data.cut(rows, 0)
    assert (len(split.train), len(split.test)) == (64, 16)
    assert np.allclose(split.train.mean(axis=0), 0)
    assert np.allclose(split.train.std(axis=0), 1)
    assert np.array_equal(split.test, data.cut(rows, 0).test)
    assert not np.array_equal(split.test, data.cut(rows, 1).test)


def test_runs_are_resumed_and_a_page_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[int, int]] = []

    def contender(level: float):
        def run(split: data.Split, seed: int, limit: float | None = None) -> np.ndarray:
            calls.append((len(split.train), seed))
            return np.full(len(split.test), level + 0.01 * seed)

        return run

    def failing(split: data.Split, seed: int) -> np.ndarray:
        raise ValueError("no fit")

    levels = {"normal": -3.0, "zuko MAF": -2.5, "MAF": -2.0, "estimate, fast": -1.5}
    given = {name: contender(level) for name, level in levels.items()} | {"zuko NSF": failing}
    monkeypatch.setattr(tables, "CONTENDERS", given)
    options = [
        "--tables",
        "mine",
        "odd",
        "--splits",
        "2",
        "--runs",
        "runs",
        "--output",
        "page",
        "--threads",
        "1",
    ]
    tables.main([*options, "--contenders", *given])
    assert len(calls) == 16
    tables.main([*options, "--contenders", *given])
    assert len(calls) == 16
    lines = [json.loads(line) for line in Path("runs/results.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    assert all(line["score"] == -math.inf for line in lines if line["name"] == "zuko NSF")
    page = Path("page/tables.md").read_text()
    for words in ("## Summary", "estimate, fast", "2 / 0 / 0", "+0.50 ± 0.00", "mine (64 x 3; 2)"):
        assert words in page


def test_differences_have_errors_over_splits_or_the_rows_of_one():
    first = {s: tables.Score(float(s), [s - 1.0, s + 1.0]) for s in range(2)}
    second = {s: tables.Score(0.0, [0.0, 0.0]) for s in range(3)}
    assert tables.paired(first, second) == (0.5, pytest.approx(0.5))
    assert tables.paired({1: first[1]}, second) == (1.0, pytest.approx(1.0))
    failed = {1: tables.Score(-math.inf, [])}
    mean, error = tables.paired(failed, second)
    assert mean == -math.inf
    assert math.isnan(error)


def test_a_quick_run(folder: Path):
    pytest.importorskip("sklearn")
    tables.main(["--quick", "--threads", "1", "--tables", "mine"])
    assert "quick run" in Path("output/benchmarks/tables.md").read_text()
