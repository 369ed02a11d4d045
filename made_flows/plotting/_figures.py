"""What the pictures share: figures, colours, data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from made_flows._checks import as_numbers, check_finite, expect, expect_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5a96", "#d9741a", "#8a8f98"


def figure_of(width: float, height: float) -> Figure:
    """Make a figure of a size in inches, on no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Expected matplotlib, which made_flows.plotting draws with; got none. "
            "Install it: pip install 'made-flows[plot]'"
        ) from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def own_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the axes given, or those of a new figure of a size in inches."""
    expect_type(ax is None or hasattr(ax, "plot"), "ax", "to be axes of matplotlib, or None", ax)
    return figure_of(width, height).add_subplot() if ax is None else ax


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes for each of some columns, in rows of six at most."""
    across = min(count, 6)
    down = -(-count // across)
    figure = figure_of(max(1.6 * across, 2.2), 1.6 * down + 0.4)
    axes = list(figure.subplots(down, across, squeeze=False, sharex=True).flat)
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[max(count - across, 0) : count]:
        ax.tick_params(labelbottom=True)
    return figure, axes[:count]


def tidy(ax: Axes) -> None:
    """Draw axes without a box, in grey, so that the data stands out."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GREY)
    ax.tick_params(color=GREY, labelsize=8)


def name_rows(ax: Axes, names: Sequence[str], label: str, *, legend: bool = True) -> None:
    """Give axes a row for each name, the first at the top, with a grid and a legend above."""
    # Longer ones would leave no room for the axes.
    shown = [name if len(name) <= 40 else name[:39] + "…" for name in names]
    ax.set_yticks(range(len(names)), shown)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.grid(axis="x", color=GREY, alpha=0.25, lw=0.6)
    if legend:
        ax.figure.figure.legend(loc="outside upper right", frameon=False, fontsize=9, ncols=2)
    tidy(ax)


def matrix(values: Any, name: str, *, missing: bool = False) -> NDArray[np.float64]:
    """Convert values of shape (N, D) to a finite array, with NaN where some may be missing."""
    array = as_numbers(values, name).cpu().double().numpy()
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"Expected {name} of shape (N, D); got {array.shape}")
    known = torch.from_numpy(array)
    check_finite(known.nan_to_num(0.0, torch.inf, -torch.inf) if missing else known, name)
    return array


def texts(values: Any, name: str, count: int | None = None) -> list[str]:
    """Return names as a list, of a number if one is given."""
    several = isinstance(values, Sequence) and not isinstance(values, str)
    several = several and all(isinstance(value, str) for value in values)
    expect_type(several, name, "to be a sequence of strings", values)
    given = len(values)
    expect(count is None or given == count, name, f"to have {count} entries", given)
    return list(values)


def names_of(names: Any, features: int) -> list[str]:
    """Return the names of D columns: those given, or x with a number."""
    if names is None:
        return [f"$x_{{{i}}}$" for i in range(features)]
    return texts(names, "names", features)
