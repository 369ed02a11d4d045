"""The picture of a network's masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor, nn

from made_flows._checks import expect_type
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.made import MADE
from made_flows.plotting._figures import GREY, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure


def masks(model: nn.Module) -> Figure:
    """Draw the masks of a MADE, and what they leave connected: strictly below the diagonal.

    Rows are the units that read, columns the units they read, both sorted by degree (inputs and
    outputs by rank); a connection has the colour of its reader's degree.

    Args:
        model: a :class:`made_flows.MADE`, or a model with one inside (the first is drawn).

    Raises:
        TypeError: for a model without a MADE.
        ImportError: without matplotlib.

    Example:
        >>> figure = masks(MADE(4, hidden_features=(8, 8)))
        >>> [ax.get_title() for ax in figure.axes]
        ['hidden 1', 'hidden 2', 'output', 'all together']
    """
    made = first_made(model)
    hidden = [f"hidden {i}" for i in range(1, len(made.degrees) + 1)]
    names = ["inputs, by rank", *(f"units of {name}, by degree" for name in hidden)]
    names += ["outputs, by rank", "features, by rank"]
    degrees = [*unit_degrees(made), made.ranks.cpu()]
    layers = zip([*hidden, "output"], made.layers, strict=True)
    # Titles, which units read, which units are read, and the mask.
    panels = [
        (title, i + 1, i, cast(MaskedLinear, each).mask) for i, (title, each) in enumerate(layers)
    ]
    if made.direct is not None:
        panels.append(("direct", len(hidden) + 1, 0, made.direct.mask))
    panels.append(("all together", -1, -1, made.reach()))
    figure = figure_of(2.5 * len(panels) + 0.3, 2.8)
    colours = sequential()
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, row, column, mask) in zip(every, panels, strict=True):
        readers, by_column = degrees[row].sort(stable=True), degrees[column].argsort(stable=True)
        connected = mask.cpu().bool()[readers.indices][:, by_column].numpy()
        image = np.broadcast_to(readers.values.numpy()[:, None], connected.shape)
        image = np.ma.masked_array(image, ~connected)
        ax.imshow(image, cmap=colours, vmin=0, vmax=made.features, aspect="auto")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(names[column], fontsize=8.5)
        ax.set_ylabel(names[row], fontsize=8.5)
        _cells(ax, *connected.shape)
    return figure


def first_made(model: nn.Module) -> MADE:
    """Return a model's first MADE."""
    expect_type(isinstance(model, nn.Module), "model", "to be a MADE, or to have one", model)
    made = next((module for module in model.modules() if isinstance(module, MADE)), None)
    if made is None:
        raise TypeError(f"Expected model to be a MADE, or to have one; got {type(model).__name__}")
    return made


def unit_degrees(made: MADE) -> list[Tensor]:
    """List the degrees of the units, from inputs to outputs, whose degree is their rank."""
    ranks, ends = made.ranks.cpu(), (made.input_features.cpu(), made.output_features.cpu())
    return [ranks[ends[0]], *(degrees.cpu() for degrees in made.degrees), ranks[ends[1]]]


def sequential() -> ListedColormap:
    """Make colours from light to dark blue, both distinct from the white of no connection."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["YlGnBu"](np.linspace(0.25, 1.0, 256)))


def _cells(ax: Axes, rows: int, columns: int) -> None:
    """Draw lines between cells that are large enough, without numbers: places, not indices."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(GREY)
    if max(rows, columns) <= 40:
        ax.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", lw=0.6)
        ax.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", lw=0.6)
