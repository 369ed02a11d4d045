"""The benchmark of densities: its loaders on small files of the real formats, its resumed runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import made_flows as mf
from benchmarks import _density_data as data
from benchmarks import density
from benchmarks._density_runs import Plan, Result, run


def _write_power(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "power").mkdir(parents=True)
    rows = np.round(rng.normal(size=(300, 8)) * [1, 1, 5, 9, 3, 3, 3, 100] + 50)
    np.save(folder / "power" / "data.npy", rows)


def _write_gas(folder: Path) -> np.ndarray:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 3))
    columns = {"Time": np.arange(200.0), "Meth": base[:, 0], "Eth": base[:, 1]}
    a, b, c = base.T
    columns |= {"R1": a, "R2": 3 * a + 0.01 * b, "R3": b, "R4": -a, "R5": c, "R6": a - 0.01 * c}
    (folder / "gas").mkdir(parents=True)
    pandas.DataFrame(columns).to_pickle(folder / "gas" / "ethylene_CO.pickle")
    return np.stack([b, -a, c, a - 0.01 * c], axis=1)


def _write_hepmass(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "hepmass").mkdir(parents=True)
    for name, rows, more in (("train", 120, 0), ("test", 60, 1)):
        values = rng.normal(size=(rows, 4 + more)) + 2
        values[:, 2] = np.maximum(values[:, 2], 2.0)  # many are equal to the smallest
        label = rng.integers(0, 2, size=(rows, 1)).astype(float)
        header = ",".join(["# label", *(f"f{i}" for i in range(4 + more))])
        with (folder / "hepmass" / f"1000_{name}.csv").open("w") as file:
            file.write(header + "\n")
            for row in np.hstack([label, values]):
                # The files end every line with one value more than the header names.
                file.write(",".join(f"{value:.9e}" for value in (*row, 7.0)) + "\n")


def _write_mnist(folder: Path, rows: int = 60) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    grey = {
        "train": rng.integers(0, 256, (rows, 784)).astype(np.uint8),
        "test": np.zeros((20, 784), np.uint8),
    }
    np.savez(folder / "images" / "mnist.npz", **grey)


def test_power(folder: Path) -> None:
    _write_power(folder / "uci")  # the archive may lie a folder deeper
    table = data.load_power()
    assert table.features == 6
    assert [len(part) for part in (table.train, table.valid, table.test)] == [243, 27, 30]
    seen = np.vstack([table.train, table.valid])
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=1e-5)
    # Noise of one unit on the meters, a hundredth on the voltage, none on the time.
    raw = np.load(folder / "uci" / "power" / "data.npy")
    assert len(np.unique(table.train[:, 5])) <= len(np.unique(raw[:, 7]))
    assert len(np.unique(table.train[:, 3])) == 243
    again = data.load_power()
    assert np.array_equal(again.train, table.train)


def test_gas(folder: Path) -> None:
    expected = _write_gas(folder)
    table = data.load_gas()
    rows = np.vstack([table.train, table.valid, table.test])
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0, ddof=1)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert [len(part) for part in (table.train, table.valid, table.test)] == [162, 18, 20]


def test_hepmass(folder: Path) -> None:
    _write_hepmass(folder)
    table = data.load_hepmass()
    assert table.features == 3  # the column of equal values is gone, and the labels
    raw = np.loadtxt(folder / "hepmass" / "1000_train.csv", delimiter=",", skiprows=1)
    signal = raw[raw[:, 0] == 1, 1:5]
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0, ddof=1)
    rows = np.vstack([table.train, table.valid])
    np.testing.assert_allclose(rows, signal[:, [0, 1, 3]], atol=1e-5)
    assert len(table.valid) == len(rows) // 10
    raw = np.loadtxt(folder / "hepmass" / "1000_test.csv", delimiter=",", skiprows=1)
    assert len(table.test) == (raw[:, 0] == 1).sum()


def test_miniboone(folder: Path) -> None:
    (folder / "miniboone").mkdir()
    rows = np.random.default_rng(0).normal(size=(100, 5)) * 7 + 3
    np.save(folder / "miniboone" / "data.npy", rows)
    table = data.load_miniboone()
    assert [len(part) for part in (table.train, table.valid, table.test)] == [81, 9, 10]
    mean, std = rows[:90].mean(axis=0), rows[:90].std(axis=0)
    np.testing.assert_allclose(table.test, (rows[90:] - mean) / std, atol=1e-5)


def test_bsds300(folder: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (folder / "BSDS300").mkdir()
    parts = {
        key: np.random.default_rng(i).normal(size=(5 + i, 63)).astype(np.float32)
        for i, key in enumerate(("train", "validation", "test"))
    }
    with h5py.File(folder / "BSDS300" / "BSDS300.hdf5", "w") as file:
        for key, value in parts.items():
            file[key] = value
    table = data.load_bsds300()
    assert np.array_equal(table.valid, parts["validation"])
    assert [len(part) for part in (table.train, table.valid, table.test)] == [5, 6, 7]


def test_mnist(folder: Path) -> None:
    _write_mnist(folder)
    table = data.load_mnist()
    assert [len(part) for part in (table.train, table.valid, table.test)] == [50, 10, 20]
    with np.load(folder / "images" / "mnist.npz") as file:
        grey = file["train"][:50]
    for rows in (table.train, table.redraw(3)):
        pixels = (1 / (1 + np.exp(-rows.astype(np.float64))) - 1e-6) / (1 - 2e-6) * 256
        assert (np.abs(pixels - grey - 0.5) < 0.5 + 1e-3).all()
    assert not np.array_equal(table.redraw(3), table.train)
    assert np.array_equal(table.redraw(3), table.redraw(3))
    assert np.isfinite(table.test).all()
    assert table.test.min() > -14


def test_missing_data_is_named_and_left_out(folder: Path, capsys) -> None:
    for name in data.LOADERS:
        assert data.load_table(name) is None
        assert f"{name}: left out. Expected {folder}" in capsys.readouterr().out
    density.main(["--quick", "--threads", "1"])
    assert "no data, nothing written" in capsys.readouterr().out
    assert not list(folder.rglob("*.md"))


def test_published_rows_are_there_for_every_table() -> None:
    assert PUBLISHED_TABLES == set(data.LOADERS) == set(density.NETWORKS)
    assert data.PUBLISHED["miniboone"]["MAF(5), Papamakarios et al. 2017"] == -11.75


PUBLISHED_TABLES = set(data.PUBLISHED)


def test_page(folder: Path) -> None:
    _write_power(folder)
    density.main(["--quick", "--threads", "1", "--models", "MADE", "MAF-MoG(5)", "RQ-MAF(5)"])
    page = (folder / "output" / "benchmarks" / "density.md").read_text()
    assert "A quick run: its numbers mean nothing" in page
    assert "MAF-MoG(5), made_flows" in page
    assert "RQ-NSF (AR), Durkan et al. 2019" in page
    assert "200, 27, 30" in page
    assert "## gas" not in page
    # Again from what was trained, with no time to train.
    density.main(["--quick", "--threads", "1", "--models", "MADE", "--minutes", "0"])
    assert "MADE, made_flows" in (folder / "output" / "benchmarks" / "density.md").read_text()


def _table() -> data.Table:
    rows = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    return data.Table("made", rows[:40], rows[40:50], rows[50:])


def test_a_run_that_was_interrupted_ends_like_one_that_was_not(tmp_path: Path) -> None:
    table = _table()

    def make() -> torch.nn.Module:
        return mf.MAF(2, transforms=2, hidden_features=(8,), normalize="batch")

    plan = Plan(batch_size=10, max_epochs=4)
    whole = run("whole", make, table, plan, tmp_path)
    for epochs in (1, 3, 4):
        part = run("part", make, table, Plan(batch_size=10, max_epochs=epochs), tmp_path)
        assert part.epochs == epochs
        # As a time limit would: an end for want of epochs is not an end for good.
        saved = torch.load(tmp_path / "made-part.pt", weights_only=True)
        saved["result"]["finished"] = ""
        torch.save(saved, tmp_path / "made-part.pt")
    assert part.scores == whole.scores
    assert part.test == whole.test
    assert whole.parameters == sum(weight.numel() for weight in make().parameters())


def test_no_time_no_training(tmp_path: Path) -> None:
    result = run("idle", lambda: mf.GaussianMADE(2), _table(), Plan(minutes=0), tmp_path)
    assert result.epochs == 0
    assert not list(tmp_path.iterdir())


def test_rate_is_lowered_and_patience_ends_a_run() -> None:
    from benchmarks._density_runs import _note

    plan = Plan(rate=0.9, lower_after=2, patience=5)
    result = Result(rate=plan.rate)
    assert _note(result, 1.0, plan)
    for _ in range(4):
        assert not _note(result, 0.5, plan)
    assert result.rate == pytest.approx(0.1)
    assert not result.finished
    assert not _note(result, 0.5, plan)
    assert result.finished == "patience"
    assert (result.best_epoch, result.epochs, result.valid) == (1, 6, 1.0)
