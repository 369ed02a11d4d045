"""A picture of many columns at once: where each lies, in two sets beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from made_flows._checks import expect
from made_flows.plotting._figures import (
    BLUE,
    ORANGE,
    matrix,
    name_rows,
    names_of,
    own_axes,
    texts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def intervals(
    samples: Any,
    reference: Any = None,
    names: Sequence[str] | None = None,
    labels: Sequence[str] = ("samples", "reference"),
    ax: Axes | None = None,
) -> Figure:
    """Draw the median and the central 50% and 90% of every column: a posterior, and a reference.

    With a reference, columns are in its medians and standard deviations, so that variables of all
    sizes fit one axis; a right posterior's bars lie on the reference's.

    Args:
        samples: (N, D), such as a guide's draws.
        reference: (M, D), such as draws of a long chain.
        names: of the D columns.
        labels: names of the two sets, for the legend.
        ax: axes to draw on; None makes a figure.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, and a column of the
            reference that is constant.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> figure = intervals(torch.randn(500, 30), torch.randn(400, 30))
        >>> len(figure.axes[0].get_yticklabels())
        30
    """
    sets = [matrix(samples, "samples")]
    features = sets[0].shape[1]
    names, labels = names_of(names, features), texts(labels, "labels", 2)
    if reference is not None:
        known = matrix(reference, "reference")
        expect(known.shape[1] == features, "reference", f"to have {features} columns", known.shape)
        centre = np.median(known, axis=0)
        largest = np.abs(known - centre).max(axis=0)
        # In units of the largest: squares of 1e200 and of 1e-200 are no numbers.
        scale = ((known - centre) / np.where(largest > 0, largest, 1.0)).std(axis=0) * largest
        expect(bool((scale > 0).all()), "reference", "to vary in every column", "a constant one")
        sets = [(rows - centre) / scale for rows in (sets[0], known)]
    ax = own_axes(ax, 5.6, 0.26 * features + 1.1)
    places = np.arange(features)
    for rows, label, colour, off in zip(sets, labels, (BLUE, ORANGE), (-0.15, 0.15), strict=False):
        low, first, middle, third, high = np.quantile(rows, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        at = places + (off if len(sets) == 2 else 0)
        ax.hlines(at, low, high, color=colour, lw=1.2)
        ax.hlines(at, first, third, color=colour, lw=3.5, alpha=0.8)
        ax.plot(middle, at, "o", color=colour, ms=4, mec="white", mew=0.6, label=label)
    both = len(sets) == 2
    name_rows(ax, names, "in the reference's standard deviations" if both else "value", legend=both)
    return ax.figure.figure
