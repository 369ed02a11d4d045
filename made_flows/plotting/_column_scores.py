"""A picture of the columns of a row: which of its values is odd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from made_flows._checks import (
    as_numbers,
    expect,
    expect_type,
    non_negative_integer,
    positive_integer,
    shown,
)
from made_flows.plotting._figures import BLUE, ORANGE, matrix, name_rows, own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def column_scores(
    scores: Mapping[str, Any],
    row: int,
    max_columns: int = 30,
    ax: Axes | None = None,
) -> Figure:
    """Draw how likely each value of a row is, given its others, beside those of all rows.

    Columns come by how odd the row's value is: by its place among the scores of all rows. A dot is
    the row; the bar is where the middle 90% of the rows are.

    Args:
        scores: log-probabilities (N,) by column, as ``TableMADE.score_columns`` gives; NaN where a
            value is missing.
        row: which of the N rows.
        max_columns: how many columns to draw, the oddest first.
        ax: axes to draw on; None makes a figure.

    Raises:
        TypeError, ValueError: for something else than columns of N scores, and no such row.
        ImportError: without matplotlib.

    Example:
        >>> figure = column_scores({"rooms": [-1.0, -9.0, -1.2], "price": [-2.0, -2.1, -2.2]}, 1)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['rooms', 'price']
    """
    expect_type(isinstance(scores, Mapping), "scores", "to be arrays by column", scores)
    expect(len(scores) > 0, "scores", "to have a column", "none")
    columns = [as_numbers(column, f"scores[{name!r}]").cpu() for name, column in scores.items()]
    one = all(column.shape == columns[0].shape and column.dim() == 1 for column in columns)
    expect(one, "scores", "to be of one length", [tuple(column.shape) for column in columns])
    values = matrix(torch.stack(columns, dim=1), "scores", missing=True)
    rows = len(values)
    expect(non_negative_integer(row, "row") < rows, "row", f"to be one of {rows}", row)
    names = np.array([str(name) for name in scores])
    known = ~np.isnan(values[row])
    expect(bool(known.any()), "row", "to have a value that is not missing", shown(row))
    names, values = names[known], values[:, known]
    order = (values < values[row]).mean(axis=0).argsort(kind="stable")
    order = order[: positive_integer(max_columns, "max_columns")]
    names, values = names[order], values[:, order]
    low, middle, high = np.nanquantile(values, [0.05, 0.5, 0.95], axis=0)
    ax = own_axes(ax, 5.6, 0.26 * len(order) + 0.9)
    places = np.arange(len(order))
    ax.hlines(places, low, high, color=BLUE, lw=5, alpha=0.35, label="middle 90% of all rows")
    ax.plot(middle, places, "|", color=BLUE, ms=9)
    ax.plot(values[row], places, "o", color=ORANGE, ms=6, mec="white", label=f"row {row}")
    name_rows(ax, names.tolist(), "log-probability given the row's other values (nats)")
    return ax.figure.figure
