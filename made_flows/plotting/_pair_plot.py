"""A picture of every pair of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from made_flows._checks import expect, positive_integer
from made_flows.plotting._figures import BLUE, ORANGE, figure_of, matrix, names_of, texts, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MASSES = (0.9, 0.5)  # of the regions that contour lines enclose
_MAX_POINTS = 2000  # per panel: more are a blot and a large file


def pair_plot(
    samples: Any,
    other: Any = None,
    names: Sequence[str] | None = None,
    max_features: int = 8,
    labels: Sequence[str] = ("samples", "other"),
) -> Figure:
    """Draw every pair of features: points, and the regions that hold 50% and 90% of them.

    Args:
        samples: (N, D) tensor or array.
        other: (M, D), drawn over it for comparison, such as data beside a model's samples.
        names: of the D features.
        max_features: how many features to draw, from the first.
        labels: names of the two sets, for the legend.

    Raises:
        ValueError: for shapes that do not fit, and for values that are not finite.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> figure = pair_plot(torch.randn(200, 3), names=["a", "b", "c"])
        >>> len(figure.axes)
        6
    """
    sets = [matrix(samples, "samples")]
    if other is not None:
        sets.append(matrix(other, "other"))
    features = sets[0].shape[1]
    expect(sets[-1].shape[1] == features, "other", f"to have {features} columns", sets[-1].shape[1])
    names = names_of(names, features)
    labels = texts(labels, "labels", 2)
    shown = min(features, positive_integer(max_features, "max_features"))
    side = max(1.45 * shown, 3.0)
    figure = figure_of(side, side)
    axes = figure.subplots(shown, shown, squeeze=False)
    limits = [_limits(np.concatenate([rows[:, i] for rows in sets])) for i in range(shown)]
    for i in range(shown):
        for j in range(shown):
            ax = axes[i, j]
            if j > i:
                ax.remove()
                continue
            ax.set_xlim(limits[j])
            for rows, colour in zip(sets, (BLUE, ORANGE), strict=False):
                if i == j:
                    _histogram(ax, rows[:, i], limits[i], colour, filled=rows is sets[0])
                else:
                    _cloud(ax, rows[:, [j, i]], (limits[j], limits[i]), colour)
            ax.locator_params(nbins=3)
            if i == j:
                ax.set_yticks([])
            else:
                ax.set_ylim(limits[i])
            below, left = i == shown - 1, 0 == j < i
            ax.set_xlabel(names[j] if below else "", fontsize=9)
            ax.set_ylabel(names[i] if left else "", fontsize=9)
            ax.tick_params(labelbottom=below, labelleft=left)
            tidy(ax)
    if len(sets) == 2:
        lines = [axes[0, 0].plot([], [], color=colour, lw=2)[0] for colour in (BLUE, ORANGE)]
        figure.legend(lines, labels, loc="upper right", frameon=False, fontsize=10)
    return figure


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return a range that leaves out stray points: they would shrink all others to a dot."""
    low, high = (float(q) for q in np.quantile(values, [0.002, 0.998]))
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _histogram(
    ax: Axes, values: NDArray[np.float64], limits: tuple[float, float], colour: str, filled: bool
) -> None:
    bins = np.linspace(*limits, 41).tolist()
    inside = values[(values >= limits[0]) & (values <= limits[1])]
    if not inside.size:
        return
    if filled:
        ax.hist(inside, bins, density=True, histtype="stepfilled", color=colour, alpha=0.25)
    ax.hist(inside, bins, density=True, histtype="step", color=colour, lw=1.3)
    ax.spines["left"].set_visible(False)


def _cloud(
    ax: Axes, pairs: NDArray[np.float64], limits: tuple[tuple[float, float], ...], colour: str
) -> None:
    """Draw points, and contours of a smoothed histogram around the densest halves of them."""
    points = pairs[:_MAX_POINTS]
    size = float(np.clip(60 / np.sqrt(len(points)), 1.0, 8.0))
    ax.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.3, lw=0, rasterized=True)
    if len(pairs) < 20:
        return
    xs, ys = (np.linspace(*limit, 49) for limit in limits)
    counts: NDArray[np.float64] = np.histogram2d(pairs[:, 0], pairs[:, 1], [xs, ys])[0]
    # Scott's rule for two dimensions, in bins: the range is about six standard deviations.
    width = max(1.0, 48 / 6 * len(pairs) ** (-1 / 6))
    offsets = np.arange(-3 * int(np.ceil(width)), 3 * int(np.ceil(width)) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel, mode="same")
    ordered = np.sort(counts.ravel())[::-1]
    mass = np.cumsum(ordered)
    levels = sorted({float(ordered[np.searchsorted(mass, m * mass[-1])]) for m in _MASSES})
    centres = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    ax.contour(*centres, counts.T, levels=levels, colors=colour, linewidths=1.1)
