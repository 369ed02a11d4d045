"""The picture of a network's units and of what each of them reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from made_flows._checks import expect, non_negative_integer
from made_flows.nn.linear import MaskedLinear
from made_flows.plotting._figures import figure_of
from made_flows.plotting._masks import first_made, sequential, unit_degrees

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def connections(model: nn.Module, feature: int | None = None) -> Figure:
    """Draw the units of a MADE from inputs to outputs, and the connections that masks leave.

    Units stand by their degrees (inputs and outputs by rank), and have the colours of them. With a
    feature, only what reaches its parameters is drawn in colour.

    Args:
        model: a :class:`made_flows.MADE`, or a model with one inside (the first is drawn).
        feature: whose parameters to follow; None draws every connection.

    Raises:
        TypeError: for a model without a MADE.
        ValueError: for a feature that there is not.
        ImportError: without matplotlib.

    Example:
        >>> import made_flows as mf
        >>> figure = connections(mf.MADE(4, hidden_features=(6, 6)), feature=2)
        >>> len(figure.axes)
        1
    """
    made = first_made(model)
    if feature is not None:
        feature = non_negative_integer(feature, "feature")
        expect(feature < made.features, "feature", f"to be one of 0..{made.features - 1}", feature)
    degrees = unit_degrees(made)
    masks = [cast(MaskedLinear, layer).mask.cpu().bool().numpy() for layer in made.layers]
    followed: list[NDArray[np.bool_]] = [np.ones(len(units), bool) for units in degrees]
    if feature is not None:
        followed[-1] = (made.output_features.cpu() == feature).numpy()
        for i in reversed(range(len(masks))):
            followed[i] = np.any(masks[i][followed[i + 1]], axis=0)
    figure = figure_of(1.7 * len(degrees), 3.6)
    ax = figure.add_subplot()
    from matplotlib.collections import LineCollection

    colours = sequential()
    # Equal degrees side by side, every layer as tall as the others.
    heights = [np.empty(len(units)) for units in degrees]
    for height, units in zip(heights, degrees, strict=True):
        height[units.argsort(stable=True).numpy()] = (np.arange(len(units)) + 0.5) / len(units)
    thin = float(np.clip(40 / max(map(len, degrees)), 0.3, 1.2))
    for i, mask in enumerate(masks):
        readers, read = np.nonzero(mask & followed[i + 1][:, None])
        ends = [((i, heights[i][b]), (i + 1, heights[i + 1][a]))
                for a, b in zip(readers, read, strict=True)]  # fmt: skip
        shades = colours(degrees[i + 1].numpy()[readers] / made.features)
        ax.add_collection(LineCollection(ends, colors=shades, lw=thin, zorder=1))
    size = float(np.clip(2000 / max(map(len, degrees)), 6, 110))
    for i, (height, units) in enumerate(zip(heights, degrees, strict=True)):
        shades = colours(units.numpy() / made.features)
        shades[~followed[i], :3] = 0.87
        ax.scatter(np.full(len(height), i), height, s=size, c=shades, ec="white", lw=0.6, zorder=2)
    hidden = [f"hidden {i}" for i in range(1, len(made.degrees) + 1)]
    ax.set_xticks(range(len(degrees)), ["inputs", *hidden, "outputs"], fontsize=9)
    ax.set(yticks=[], ylim=(1.02, -0.02), xlim=(-0.3, len(degrees) - 0.7))
    ax.set_ylabel("rank, and degree: first at the top", fontsize=9)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure
