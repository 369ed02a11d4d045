"""Tables of the MAF paper: its files, its preprocessing, its published rows.

Files are looked for under the folder that the environment variable MADE_FLOWS_DATA names, as the
paper's archive (https://zenodo.org/records/1161203) lays them out, or in uci/ below it:

    power/data.npy    gas/ethylene_CO.pickle    hepmass/1000_train.csv, 1000_test.csv
    miniboone/data.npy    BSDS300/BSDS300.hdf5    images/mnist.npz

Preprocessing follows Papamakarios et al. 2017, appendix D, and where the text leaves a choice the
authors' published code (https://github.com/gpapamak/maf), so that numbers can be compared.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LOADERS", "PUBLISHED", "Table", "data_folder", "load_table"]

Array = NDArray[Any]

VARIABLE = "MADE_FLOWS_DATA"


@dataclass(frozen=True)
class Table:
    """Rows to fit, to select by and to report on, each (N, D) float32.

    Args:
        name: of the data.
        train, valid, test: the rows.
        redraw: draws the training rows anew from a seed, where they hold noise (dequantisation).
    """

    name: str
    train: Array
    valid: Array
    test: Array
    redraw: Callable[[int], Array] | None = None

    @property
    def features(self) -> int:
        """Number of columns D."""
        return int(self.train.shape[1])


# ---------------------------------------------------------------------- published rows

_MAF = "Papamakarios et al. 2017"
_NSF = "Durkan et al. 2019"
_TRADE = "Fakoor et al. 2020"
_DEFORMER = "Alcorn & Nguyen 2021"

PUBLISHED: dict[str, dict[str, float]] = {
    "power": {
        f"MADE, {_MAF}": -3.08,
        f"MADE-MoG, {_MAF}": 0.40,
        f"MAF(5), {_MAF}": 0.14,
        f"MAF(10), {_MAF}": 0.24,
        f"MAF-MoG(5), {_MAF}": 0.30,
        f"MAF, {_NSF}": 0.45,
        f"RQ-NSF (AR), {_NSF}": 0.66,
        f"TraDE, {_TRADE}": 0.73,
        f"DEformer, {_DEFORMER}": 0.541,
    },
    "gas": {
        f"MADE, {_MAF}": 3.56,
        f"MADE-MoG, {_MAF}": 8.47,
        f"MAF(5), {_MAF}": 9.07,
        f"MAF(10), {_MAF}": 10.08,
        f"MAF-MoG(5), {_MAF}": 9.59,
        f"MAF, {_NSF}": 12.35,
        f"RQ-NSF (AR), {_NSF}": 13.09,
        f"TraDE, {_TRADE}": 13.27,
        f"DEformer, {_DEFORMER}": 13.167,
    },
    "hepmass": {
        f"MADE, {_MAF}": -20.98,
        f"MADE-MoG, {_MAF}": -15.15,
        f"MAF(5), {_MAF}": -17.70,
        f"MAF(10), {_MAF}": -17.73,
        f"MAF-MoG(5), {_MAF}": -17.39,
        f"MAF, {_NSF}": -17.03,
        f"RQ-NSF (AR), {_NSF}": -14.01,
        f"TraDE, {_TRADE}": -12.01,
        f"DEformer, {_DEFORMER}": -11.983,
    },
    "miniboone": {
        f"MADE, {_MAF}": -15.59,
        f"MADE-MoG, {_MAF}": -12.27,
        f"MAF(5), {_MAF}": -11.75,
        f"MAF(10), {_MAF}": -12.24,
        f"MAF-MoG(5), {_MAF}": -11.68,
        f"MAF, {_NSF}": -10.92,
        f"RQ-NSF (AR), {_NSF}": -9.22,
        f"TraDE, {_TRADE}": -9.49,
        f"DEformer, {_DEFORMER}": -9.323,
    },
    "bsds300": {
        f"MADE, {_MAF}": 148.85,
        f"MADE-MoG, {_MAF}": 153.71,
        f"MAF(5), {_MAF}": 155.69,
        f"MAF(10), {_MAF}": 154.93,
        f"MAF-MoG(5), {_MAF}": 156.36,
        f"MAF, {_NSF}": 156.95,
        f"RQ-NSF (AR), {_NSF}": 157.31,
        f"TraDE, {_TRADE}": 160.01,
        f"DEformer, {_DEFORMER}": 157.04,
    },
    "mnist": {
        f"Gaussian, {_MAF}": -1366.9,
        f"MADE, {_MAF}": -1380.8,
        f"MADE-MoG, {_MAF}": -1038.5,
        f"Real NVP(5), {_MAF}": -1323.2,
        f"MAF(5), {_MAF}": -1300.5,
        f"MAF(10), {_MAF}": -1313.1,
        f"MAF-MoG(5), {_MAF}": -1100.3,
    },
}
"""Test log-likelihoods in nats, as published."""

# ---------------------------------------------------------------------- finding files


def data_folder() -> Path | None:
    """The folder of the data, None where the variable is not set."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def _find(*names: str) -> list[Path]:
    """The files of a table; FileNotFoundError says where they were looked for."""
    folder = data_folder()
    if folder is None:
        raise FileNotFoundError(f"Expected {VARIABLE} to name the folder of {names[0]}; got none")
    for root in (folder, folder / "uci"):
        paths = [root / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    raise FileNotFoundError(f"Expected {folder} or its uci/ to hold {' and '.join(names)}")


# ---------------------------------------------------------------------- common steps


def _tenths(rows: Array) -> tuple[Array, Array, Array]:
    """The last tenth for testing, and of the rest the last tenth for validation."""
    rest, test = _cut(rows)
    train, valid = _cut(rest)
    return train, valid, test


def _cut(rows: Array) -> tuple[Array, Array]:
    held_out = len(rows) // 10
    if held_out == 0:
        raise ValueError(f"Expected at least 10 rows to hold out a tenth of; got {len(rows)}")
    return rows[:-held_out], rows[-held_out:]


def _standardized(name: str, train: Array, valid: Array, test: Array) -> Table:
    """By mean and standard deviation of the rows that are not for testing."""
    seen = np.vstack([train, valid])
    mean, std = seen.mean(axis=0), seen.std(axis=0)
    parts = ((part - mean) / std for part in (train, valid, test))
    return Table(name, *(part.astype(np.float32) for part in parts))


# ---------------------------------------------------------------------- tables


def load_power() -> Table:
    """Household electricity: two columns left out, noise of a reading's resolution added."""
    (path,) = _find("power/data.npy")
    # The paper's own generator: other noise and another split would be another table.
    rng = np.random.RandomState(42)
    rows = np.load(path)
    rng.shuffle(rows)
    rows = np.delete(rows, [1, 3], axis=1)  # reactive power, and intensity
    count = len(rows)
    voltage, power, meters = rng.rand(count, 1), rng.rand(count, 1), rng.rand(count, 3)
    noise = [0.001 * power, 0.01 * voltage, meters, np.zeros((count, 1))]
    return _standardized("power", *_tenths(rows + np.hstack(noise)))


def load_gas() -> Table:
    """Gas sensors: of columns that correlate above 0.98 one is kept, the last of each group."""
    (path,) = _find("gas/ethylene_CO.pickle")
    try:
        import pandas
    except ImportError as error:
        raise ImportError("reading gas/ethylene_CO.pickle needs pandas: pip install pandas") from (
            error
        )
    frame = pandas.read_pickle(path).drop(columns=["Meth", "Eth", "Time"])
    rows = frame.to_numpy(dtype=np.float64)
    while True:
        alike = (np.corrcoef(rows, rowvar=False) > 0.98).sum(axis=1) > 1
        if not alike.any():
            break
        rows = np.delete(rows, int(np.argmax(alike)), axis=1)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)  # the test rows too
    return Table("gas", *(part.astype(np.float32) for part in _tenths(rows)))


def load_hepmass() -> Table:
    """Particle collisions, signal only; columns with repeated values are left out."""
    signal = []
    for path in _find("hepmass/1000_train.csv", "hepmass/1000_test.csv"):
        with path.open() as file:
            columns = len(file.readline().split(","))
        # Lines may be longer than the header says.
        rows = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(columns), ndmin=2)
        signal.append(rows[rows[:, 0] == 1, 1:])
    train, test = signal
    test = test[:, :-1]  # its header has a column more than that of the training rows
    mean, std = train.mean(axis=0), train.std(axis=0, ddof=1)
    train, test = (train - mean) / std, (test - mean) / std
    # As the paper's code decides it: by how often the smallest value of a column occurs.
    repeated = [np.unique(column, return_counts=True)[1][0] > 5 for column in train.T]
    kept = ~np.array(repeated)
    parts = (*_cut(train[:, kept]), test[:, kept])
    return Table("hepmass", *(part.astype(np.float32) for part in parts))


def load_miniboone() -> Table:
    """Neutrinos; the archive's file has been cleaned already."""
    (path,) = _find("miniboone/data.npy")
    return _standardized("miniboone", *_tenths(np.load(path)))


def load_bsds300() -> Table:
    """Patches of natural images, 8 x 8 less one pixel, in the archive's own split."""
    (path,) = _find("BSDS300/BSDS300.hdf5")
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading BSDS300.hdf5 needs h5py: pip install h5py") from error
    with h5py.File(path) as file:
        parts = [np.asarray(file[key], np.float32) for key in ("train", "validation", "test")]
    return Table("bsds300", *parts)


def load_mnist() -> Table:
    """Digits: uniform noise, scaled to [0, 1], logit with margin 1e-6; the last 10000 validate.

    Noise is drawn once for validation and test rows; training rows can be drawn anew.
    """
    (path,) = _find("images/mnist.npz")
    with np.load(path) as file:
        grey, test = file["train"], file["test"]
    held_out = min(10000, len(grey) // 6)
    train, valid = grey[:-held_out], grey[-held_out:]

    def logits(rows: Array, seed: int) -> Array:
        rng = np.random.default_rng(seed)
        result = np.empty(rows.shape, np.float32)
        for start in range(0, len(rows), 5000):  # in double precision, a part at a time
            part = rows[start : start + 5000]
            p = 1e-6 + (1 - 2e-6) * (part + rng.random(part.shape)) / 256
            result[start : start + 5000] = np.log(p) - np.log1p(-p)
        return result

    return Table(
        "mnist",
        logits(train, 1),
        logits(valid, 2),
        logits(test, 3),
        redraw=lambda seed: logits(train, 1000 + seed),
    )


LOADERS: dict[str, Callable[[], Table]] = {
    "power": load_power,
    "gas": load_gas,
    "hepmass": load_hepmass,
    "miniboone": load_miniboone,
    "bsds300": load_bsds300,
    "mnist": load_mnist,
}
"""Tables by name."""


def load_table(name: str) -> Table | None:
    """A table, or None where its files are not there."""
    try:
        table = LOADERS[name]()
    except FileNotFoundError as error:
        print(f"{name}: left out. {error}", flush=True)
        return None
    for part in (table.train, table.valid, table.test):
        if not np.isfinite(part).all():
            warnings.warn(f"{name} has values that are not finite", stacklevel=2)
    return table
