"""The picture of a network's masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
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
    panels = _mask_panels(made)
    figure = figure_of(2.5 * len(panels) + 0.3, 2.8)
    colours = sequential()
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        readers = np.broadcast_to(panel.degrees[:, None], panel.mask.shape)
        image = np.ma.masked_array(readers, ~panel.mask)
        ax.imshow(image, cmap=colours, vmin=0, vmax=made.features, aspect="auto")
        ax.set_title(panel.title, fontsize=10)
        ax.set_xlabel(panel.columns, fontsize=8.5)
        ax.set_ylabel(panel.rows, fontsize=8.5)
        _cells(ax, *panel.mask.shape)
    return figure


def first_made(model: nn.Module) -> MADE:
    """Return a model's first MADE."""
    expect_type(isinstance(model, nn.Module), "model", "to be a MADE, or to have one", model)
    made = next((module for module in model.modules() if isinstance(module, MADE)), None)
    if made is None:
        raise TypeError(f"Expected model to be a MADE, or to have one; got {type(model).__name__}")
    return made


class _Panel(NamedTuple):
    title: str
    rows: str
    columns: str
    mask: NDArray[np.bool_]
    degrees: NDArray[np.int64]


def _mask_panels(made: MADE) -> list[_Panel]:
    """List a panel for every layer, for direct connections and for the network's reach."""
    ranks = made.ranks.cpu()
    degrees = [ranks[made.input_features.cpu()], *(d.cpu() for d in made.degrees)]
    degrees.append(ranks[made.output_features.cpu()])
    hidden = [f"units of hidden {i}, by degree" for i in range(1, len(made.degrees) + 1)]
    names = ["inputs, by rank", *hidden, "outputs, by rank"]
    titles = [f"hidden {i}" for i in range(1, len(made.degrees) + 1)] + ["output"]
    layers = [cast(MaskedLinear, layer).mask for layer in made.layers]
    wires = [(titles[i], i + 1, i, mask) for i, mask in enumerate(layers)]
    if made.direct is not None:
        wires.append(("direct", -1, 0, made.direct.mask))
    panels = [
        _panel(title, names[row], names[column], mask, degrees[row], degrees[column])
        for title, row, column, mask in wires
    ]
    whole = _panel(
        "all together", "features, by rank", "features, by rank", made.reach(), ranks, ranks
    )
    return [*panels, whole]


def _panel(
    title: str, rows: str, columns: str, mask: Tensor, readers: Tensor, read: Tensor
) -> _Panel:
    by_row, by_column = readers.argsort(stable=True), read.argsort(stable=True)
    image = mask.cpu().bool()[by_row][:, by_column]
    return _Panel(title, rows, columns, image.numpy(), readers[by_row].numpy())


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
