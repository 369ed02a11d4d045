"""The binary tables of Larochelle and Murray 2011, in their usual splits, and published results.

Read from ``binary/<name>.npz`` under the folder that the environment variable MADE_FLOWS_DATA
names: arrays ``train``, ``valid`` and ``test`` of zeros and ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks._density_data import data_folder

__all__ = ["PUBLISHED", "TABLES", "Table", "load_table"]


@dataclass(frozen=True)
class Table:
    """Rows to fit, to select by and to report on, each (N, D) of zeros and ones.

    Args:
        name: of the data.
        train, valid, test: the rows.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor

    @property
    def features(self) -> int:
        """Number of columns D."""
        return self.train.shape[1]

    def first(self, rows: int) -> Table:
        """The first rows of every part."""
        return Table(self.name, self.train[:rows], self.valid[:rows], self.test[:rows])


TABLES: dict[str, str] = {
    "Adult": "adult",
    "Connect4": "connect4",
    "DNA": "dna",
    "Mushrooms": "mushrooms",
    "NIPS-0-12": "nips",
    "OCR-letters": "ocr_letters",
    "Binarized MNIST": "binarized_mnist",
}
"""Names of the tables, and of their files."""

_SIX = list(TABLES)[:6]
_ROWS: dict[str, tuple[float, ...]] = {
    "Mixture of Bernoullis": (20.44, 23.41, 98.19, 14.46, 290.02, 40.56),
    "RBM": (16.26, 22.66, 96.74, 15.15, 277.37, 43.05),
    "FVSBN": (13.17, 12.39, 83.64, 10.27, 276.88, 39.30),
    "NADE, fixed order": (13.19, 11.99, 84.81, 9.81, 273.08, 27.22),
    "EoNADE, 16 orders": (13.19, 12.58, 82.31, 9.69, 272.39, 27.32),
    "DARN": (13.19, 11.91, 81.04, 9.55, 274.68, 28.17),
    "MADE": (13.12, 11.90, 83.63, 9.68, 280.25, 28.34),
    "MADE, mask sampling": (13.13, 11.90, 79.66, 9.69, 277.28, 30.04),
}
PUBLISHED: dict[str, dict[str, float]] = {
    name: dict(zip(_SIX, row, strict=True)) for name, row in _ROWS.items()
}
"""Test NLL in nats: the table of Germain et al. 2015. Binarized MNIST (static), as far as known."""

for _name, _value in {
    "NADE, fixed order": 88.33,
    "MADE": 88.40,
    "MADE, mask sampling": 86.64,
    "DARN": 84.1,
}.items():
    PUBLISHED[_name]["Binarized MNIST"] = _value
PUBLISHED["EoNADE, 2 layers, 128 orders"] = {"Binarized MNIST": 85.10}


def load_table(name: str) -> Table | None:
    """A table by its name, None where its file is not there."""
    folder = data_folder()
    path = None if folder is None else folder / "binary" / f"{TABLES[name]}.npz"
    if path is None or not path.exists():
        return None
    with np.load(path) as parts:
        rows = (torch.from_numpy(parts[part]).float() for part in ("train", "valid", "test"))
        return Table(name, *rows)
