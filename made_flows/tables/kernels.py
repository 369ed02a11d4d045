"""A kernel density of a table's rows: a normal around each of them, at more than one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows.tables.columns import CategoryColumn, Column
from made_flows.tables.frames import read

_CELLS = 4_000_000
"""Pairs of rows that are compared at a time."""

_NEIGHBOURS = 5


def scott_bandwidth(rows: int, columns: int) -> float:
    """Return the width of kernels of columns whose deviation is one (Scott 1992, equation 6.42)."""
    return float(rows ** (-1 / (columns + 4)))


class RowKernels:
    r"""A kernel density of rows, with Scott's bandwidth.

    .. math:: k(x) = \frac{1}{n} \sum_r \prod_j h^{-1} \phi\big((x_j - r_j) / (h s_j)\big),
        \qquad h = n^{-1/(D + 4)}

    for numbers, per standard deviation s of their columns. Categories a and b of shares p are
    :math:`\sqrt{(1/p_a + 1/p_b)/(C - 1)}` standard deviations apart (their chi-square distance: two
    rows drawn at random are as far apart as in a column of numbers).

    What a row lacks is left out, and so is one kernel on the very spot of a row: as far as can be
    told it is the row's own, and rows that the kernels are of would score higher than their like.

    Args:
        columns: the columns of the table.
        rows: a table without missing values in them, (n rows).

    References:
        Scott 1992, *Multivariate Density Estimation*, equation 6.42.
    """

    def __init__(self, columns: Sequence[Column], rows: Any) -> None:
        self.columns = list(columns)
        self.numbers = [i for i, c in enumerate(self.columns) if not isinstance(c, CategoryColumn)]
        found = self._values(rows)
        self.bandwidth = scott_bandwidth(len(found), len(self.columns))
        self.center = found[:, self.numbers].mean(dim=0)
        spread = (found[:, self.numbers] - self.center).square().mean(dim=0).sqrt()
        self.spread = torch.where(spread > 0, spread, 1.0) * self.bandwidth
        self.found = found
        self.rows = (found[:, self.numbers] - self.center) / self.spread
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}
        for i, column in enumerate(self.columns):
            if isinstance(column, CategoryColumn):
                shares = torch.tensor([*column.counts, column.others + 1], dtype=torch.float64)
                inverse = shares.sum() / shares
                apart = (inverse[:, None] + inverse) / max(len(column.categories) - 1, 1)
                apart = apart.fill_diagonal_(0.0) / self.bandwidth**2
                logs = torch.log_softmax(-0.5 * apart, dim=0)
                self.tables[i] = logs, found[:, i].long()

    def log_prob(self, table: Any) -> Any:
        """Return the logarithm of the density at a table's rows, (N,); values may be missing."""
        return self.scores(table)[:, 0]

    def scores(self, table: Any) -> Any:
        """Return how near a table's rows are to the others, (N, 3), higher where nearer.

        The log-density; that of kernels of half the width; and minus the mean distance to the five
        nearest rows, whose scale is that of the place.
        """
        x = self._values(table)
        each = [self._of(some) for some in x.split(max(1, _CELLS // len(self.rows)))]
        return torch.cat(each).numpy()

    def _of(self, x: Tensor) -> Tensor:
        z = (x[:, self.numbers] - self.center) / self.spread
        known = (~z.isnan()).double()
        z = z.nan_to_num(0.0)
        squares = (z * z).sum(1, keepdim=True) - 2 * z @ self.rows.T + known @ self.rows.square().T
        logs = -0.5 * squares.clamp(min=0.0)
        for i, (table, codes) in self.tables.items():
            seen = ~x[:, i].isnan()
            logs[seen] += table[x[seen, i].long()][:, codes]
        nearest = logs.argmax(dim=1)
        own = ((self.found[nearest] == x) | x.isnan()).all(dim=1) & (len(self.rows) > 1)
        logs[own, nearest[own]] = -torch.inf
        others, numbers = len(self.rows) - own.double(), known.sum(1)
        densities = [
            torch.logsumexp(logs / width**2, dim=1) - others.log()
            - numbers * (math.log(width * self.bandwidth) + 0.5 * math.log(2 * math.pi))
            for width in (1.0, 0.5)
        ]  # fmt: skip
        count = max(1, min(_NEIGHBOURS, len(self.rows) - 1))
        distance = (-2 * logs.topk(count, dim=1).values).sqrt().mean(dim=1)
        return torch.stack([*densities, -distance], dim=1)

    def _values(self, table: Any) -> Tensor:
        """Return numbers as they are and categories as codes, NaN where one is missing."""
        read_columns, _ = read(table)
        each = [
            c.codes(read_columns[c.name])
            if isinstance(c, CategoryColumn)
            else read_columns[c.name].array.astype(np.float64)
            for c in self.columns
        ]
        return torch.from_numpy(np.stack(each, axis=1))
