"""The benchmark of tables that no setting was chosen by: which they are, and its page."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _untuned_tables as data
from benchmarks import tables, untuned_tables
from benchmarks._tables_data import Split


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A package of the same form: names to values."""
    pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(250, 3))
    first = {"Taken": x, "Panel": x, "Few": x[:100], "Counts": rng.integers(0, 22, (250, 3))}
    columns = {"Panel": ["year", "a", "b"]}
    (tmp_path / "pydataset").mkdir()
    (tmp_path / "pydataset" / "__init__.py").write_text("raise ImportError('not to be imported')")
    folder = tmp_path / "resources" / "rdata" / "csv" / "R"
    folder.mkdir(parents=True)
    for name, values in first.items():
        # Names of rows, values, an identifier, a number that rises, and a cell that is missing.
        rows = [f",{','.join(columns.get(name, 'abc'))},id,place"]
        rows += [f"{k},{','.join(map(str, v))},{(7 * k) % 250},{k}" for k, v in enumerate(values)]
        rows[1] = "0,NA" + rows[1][rows[1].index(",", 2) :]
        (folder / f"{name}.csv").write_text("\n".join(rows))
    with tarfile.open(tmp_path / "pydataset" / "resources.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "resources", arcname="resources")
    monkeypatch.syspath_prepend(str(tmp_path))
    return first


def test_the_rule_takes_tables(package: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    assert data.drawn_by_rule() == ["Taken"]
    monkeypatch.setattr(data, "TABLES", ("Taken",))
    found = data.load_untuned()
    assert set(found) == {"Taken", *data.synthetic()}
    assert set(map(tuple, found["Taken"])) == set(map(tuple, package["Taken"][1:]))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "_PACKAGE", "no_such_package_here")
    with pytest.raises(FileNotFoundError, match="pip install"):
        data.load_untuned()


def test_a_page_compares_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def contender(level: float, noise: float):
        def run(split: Split, seed: int, limit: float | None = None) -> np.ndarray:
            return level + noise * np.random.default_rng(1).normal(size=len(split.test))

        return run

    def failing(split: Split, seed: int) -> np.ndarray:
        raise ValueError("no fit")

    given = {
        "normal": contender(-3.0, 0.0), "zuko MAF": contender(-1.8, 4.0), "zuko NSF": failing,
        "MAF": contender(-2.0, 0.0), "spline MAF": contender(-2.5, 0.0),
        "estimate, good": contender(-1.0, 0.0),
    }  # fmt: skip
    monkeypatch.setattr(tables, "CONTENDERS", given)
    folders = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "page")]
    untuned_tables.main([*folders, "--threads", "1", "--splits", "0"])
    assert not (tmp_path / "page").exists()
    known = {"spiral (synthetic)": data.synthetic()["spiral (synthetic)"]}
    monkeypatch.setattr(untuned_tables, "load_untuned", lambda names: known)
    untuned_tables.main([*folders, "--threads", "1", "--contenders", *given])
    page = (tmp_path / "page" / "untuned_tables.md").read_text()
    rows = [line.replace(" ", "") for line in page.splitlines()]
    spiral = [row for row in rows if row.startswith("|spiral")]
    assert "|estimate,againstallothers|1|1|0|0|" in rows
    assert "|estimate,good|MAF|" in spiral[0]
    assert "ahead" in spiral[0]
    assert "|MAF|zukoMAF|" in spiral[1]
    assert "tied" in spiral[1]  # about 0.1 apart, with an error of 0.3
    assert "radarImage, randu, " in page  # not run yet
