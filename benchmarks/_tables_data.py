"""Continuous tables of a few hundred to some thousand rows, and how they are split.

Files are looked for under the folder that the environment variable MADE_FLOWS_DATA names:

    tables/NAME.npz    X: rows of real numbers
    anomaly/NAME.npz   X and y: rows, and 1 for those that are anomalies (left out here)

Tables that come with scikit-learn are there wherever it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._density_data import data_folder

__all__ = ["SMALLEST", "Split", "cut", "load_tables", "with_density"]

Array = NDArray[np.float64]

SMALLEST = 2
"""Columns that a table needs to have left."""
_FEWEST = 20
_SPIKE = 0.2
_FLAT = 1e-6
_TESTED = 2000
_SHIPPED = ("iris", "wine", "breast_cancer", "diabetes")


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to test, in units of the mean and deviation of the former."""

    train: Array
    test: Array


def load_tables(names: Sequence[str] | None = None) -> dict[str, Array]:
    """The tables at hand, by name: rows that differ, columns that have a density.

    Columns with fewer than twenty values, with a fifth of the rows at one value, or linear in those
    before have none: the likelihood of a model that sees this is as high as it cares to make it.
    """
    found: dict[str, Array] = {}
    found |= _shipped()
    folder = data_folder()
    if folder is not None:
        for path in sorted((folder / "tables").glob("*.npz")):
            found[path.stem] = _read(path)
        for path in sorted((folder / "anomaly").glob("*.npz")):
            found.setdefault(path.stem, _read(path))
    kept = {name: with_density(rows) for name, rows in found.items()}
    wanted = list(kept) if names is None else names
    return {name: kept[name] for name in wanted if kept[name].shape[1] >= SMALLEST}


def cut(rows: Array, seed: int, most: int = 10_000) -> Split:
    """A random fifth of the rows to test (two thousand at most), the rest to train on, or most."""
    order = np.random.default_rng(seed).permutation(len(rows))
    tested = min(len(rows) // 5, _TESTED)
    test, train = rows[order[:tested]], rows[order[tested:]][:most]
    mean, scale = train.mean(axis=0), train.std(axis=0)
    return Split((train - mean) / scale, (test - mean) / scale)


def _shipped() -> dict[str, Array]:
    try:
        from sklearn import datasets
    except ImportError:
        return {}
    tables: Any = {name: getattr(datasets, f"load_{name}")().data for name in _SHIPPED}
    return {name: np.asarray(rows, dtype=np.float64) for name, rows in tables.items()}


def _read(path: Path) -> Array:
    with np.load(path) as saved:
        rows = np.asarray(saved["X"], dtype=np.float64)
        return rows[saved["y"] == 0] if "y" in saved else rows


def with_density(rows: Array) -> Array:
    """Rows that differ, of columns that have a density (see :func:`load_tables`)."""
    rows = np.unique(rows, axis=0)
    counts = [np.unique(column, return_counts=True)[1] for column in rows.T]
    rows = rows[:, [len(c) >= _FEWEST and c.max() < _SPIKE * len(rows) for c in counts]]
    chosen: list[int] = []
    for i, column in enumerate(rows.T):
        others = np.column_stack([np.ones(len(rows)), rows[:, chosen]])
        rest = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
        if rest.var() > _FLAT * column.var():
            chosen.append(i)
    return rows[:, chosen]
