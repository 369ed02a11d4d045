"""Pictures of calibration: where the data lie among a model's draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from made_flows._checks import as_numbers, check_finite, expect, positive_integer
from made_flows.plotting._figures import (
    BLUE,
    GREY,
    ORANGE,
    matrix,
    names_of,
    own_axes,
    panels,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAND = 2.576  # standard deviations: 99% of a normal distribution are inside


def pit_histogram(
    values: Any, draws: Any, names: Sequence[str] | None = None, bins: int = 10
) -> Figure:
    r"""Draw, column by column, where values lie among a model's draws: flat if the model is right.

    .. math:: u_n = \frac{\#\{s : y_{sn} < x_n\} + v_n (1 + \#\{s : y_{sn} = x_n\})}{S + 1},
        \qquad v_n \sim U(0, 1)

    the probability integral transform by ranks, exactly uniform under a right model, of counts and
    categories too. The band holds 99% of its bars. High in the middle: predicted too wide; at both
    ends: too narrow; at one end: biased.

    Args:
        values: (N, D), such as held-out rows.
        draws: (S, D) of one distribution, or (S, N, D) of one for each row's context.
        names: of the D columns.
        bins: number of bars.

    Raises:
        ValueError: for shapes that do not fit, and values that are not finite.
        ImportError: without matplotlib.

    References:
        Talts et al. 2018, *Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration*.

    Example:
        >>> import torch
        >>> figure = pit_histogram(torch.randn(500, 2), torch.randn(100, 2), ["a", "b"])
        >>> [ax.get_title() for ax in figure.axes]
        ['a', 'b']
    """
    ranks, noise = _ranks(values, draws)
    count, features = ranks.shape
    names = names_of(names, features)
    bins = positive_integer(bins, "bins")
    spread = _BAND * np.sqrt((bins - 1) * noise)
    figure, axes = panels(features)
    for ax, column, name in zip(axes, ranks.T, names, strict=True):
        ax.axhspan(max(0.0, 1 - spread), 1 + spread, color=GREY, alpha=0.25, lw=0)
        ax.axhline(1, color=GREY, lw=0.8)
        heights = np.histogram(column, bins, (0, 1))[0] * bins / count
        ax.stairs(heights, np.linspace(0, 1, bins + 1), fill=True, color=BLUE, alpha=0.75)
        ax.set_title(name if len(name) <= 18 else name[:17] + "…", fontsize=9)
        ax.set(xlim=(0, 1), ylim=(0, max(2.0, 1.05 * float(heights.max()))), xticks=[0, 0.5, 1])
        tidy(ax)
    figure.supxlabel("share of draws below the value", fontsize=9)
    return figure


def coverage(
    values: Any, draws: Any, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Figure:
    """Draw how much of the data central intervals hold, against how much they should.

    A line is a column; the band holds 99% of the lines of a right model at every place. Below the
    diagonal intervals are too short, above it too long. The three columns farthest from the
    diagonal are named.

    Args:
        values: (N, D), such as held-out rows.
        draws: (S, D) of one distribution, or (S, N, D) of one for each row's context.
        names: of the D columns.
        ax: axes to draw on; None makes a figure.

    Raises:
        ValueError: for shapes that do not fit, and values that are not finite.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> figure = coverage(torch.randn(500, 2), torch.randn(100, 2))
        >>> figure.axes[0].get_ylabel()
        'share of values inside'
    """
    ranks, noise = _ranks(values, draws)
    features = ranks.shape[1]
    names = names_of(names, features)
    ax = own_axes(ax, 4.2, 4.0)
    levels = np.linspace(0, 1, 101)
    central: NDArray[np.float64] = np.abs(2 * ranks - 1)
    held = (central[:, :, None] <= levels).mean(axis=0)
    spread = _BAND * np.sqrt(levels * (1 - levels) * noise)
    ax.fill_between(levels, levels - spread, levels + spread, color=GREY, alpha=0.25, lw=0)
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    worst = np.abs(held - levels).max(axis=1).argsort()[::-1][:3].tolist()
    styles = dict(zip(worst, ("-", "--", ":"), strict=False))
    for i, line in enumerate(held):
        if i not in styles:
            ax.plot(levels, line, color=BLUE, lw=1.0, alpha=0.5)
    for i, style in styles.items():
        ax.plot(levels, held[i], style, color=ORANGE if features > 3 else BLUE, label=names[i])
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="central interval", ylabel="share of values inside")
    ax.set_aspect("equal")
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    tidy(ax)
    return ax.figure.figure


def _ranks(values: Any, draws: Any) -> tuple[NDArray[np.float64], float]:
    """Return the places (N, D) of values among draws, from 0 to 1, ties broken at random.

    Also the variance of a share of them, by that of one draw: draws that all values share add
    their own noise to that of the values.
    """
    x = matrix(values, "values")
    given = as_numbers(draws, "draws").cpu().double()
    expect(given.dim() in (2, 3), "draws", "of shape (S, D) or (S, N, D)", tuple(given.shape))
    shared = given.dim() == 2
    wanted = (len(given), x.shape[1]) if shared else (len(given), *x.shape)
    words = f"of shape (S, {x.shape[1]}) or (S, {len(x)}, {x.shape[1]})"
    expect(len(given) > 0 and given.shape == wanted, "draws", words, tuple(given.shape))
    check_finite(given.reshape(-1, x.shape[1]), "draws")
    y = given.numpy()
    if shared:
        columns = list(zip(np.sort(y, axis=0).T, x.T, strict=True))
        below, until = (
            np.stack([np.searchsorted(drawn, values, side) for drawn, values in columns], axis=1)
            for side in ("left", "right")
        )
    else:
        below, until = (y < x).sum(axis=0), (y <= x).sum(axis=0)
    # Always the same random places, so that a picture of the same numbers is the same.
    share: NDArray[np.float64] = np.random.default_rng(0).random(x.shape)
    places: NDArray[np.float64] = (below + share * (until - below + 1)) / (len(y) + 1)
    return places, 1 / len(x) + (1 / len(y) if shared else 0)
