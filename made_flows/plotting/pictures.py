"""Pictures of training, masks, samples and images (extra ``plot``).

Every function returns a ``matplotlib.figure.Figure``: save it with ``figure.savefig(path)``, or let
a notebook show it. Nothing touches pyplot's state, so no display is needed and none is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from made_flows._checks import expect_type
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.made import MADE
from made_flows.plotting._figures import BLUE, GREY, figure_of, tidy
from made_flows.plotting._image_grid import image_grid
from made_flows.plotting._pair_plot import pair_plot
from made_flows.training.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

__all__ = ["image_grid", "masks", "pair_plot", "training_curve"]


def training_curve(history: History, ax: Axes | None = None) -> Figure:
    """Training and validation NLL by epoch, with the epoch that was kept.

    Args:
        history: what :func:`made_flows.fit` returned.
        ax: axes to draw on; None makes a figure.

    Raises:
        ImportError: without matplotlib.

    Example:
        >>> figure = training_curve(History([1.5, 1.2, 1.1], [1.4, 1.3, 1.35], best_epoch=2))
        >>> figure.axes[0].get_xlabel()
        'epoch'
    """
    if ax is None:
        ax = figure_of(5.6, 3.4).add_subplot()
    curves = {"training": (history.train, GREY), "validation": (history.validation, BLUE)}
    marker = "o" if history.epochs <= 2 else None
    for name, (values, colour) in curves.items():
        if values:
            epochs = range(1, len(values) + 1)
            ax.plot(epochs, values, color=colour, lw=1.6, label=name, marker=marker, ms=4)
    if history.best_epoch:
        colour = BLUE if history.validation else GREY
        label = f"best: {history.best:.4g} (epoch {history.best_epoch})"
        ax.plot(history.best_epoch, history.best, "o", color=colour, ms=6, mec="white", label=label)
        _focus(ax, history)
    ax.set_xlabel("epoch")
    ax.set_ylabel("negative log-likelihood (nats)")
    ax.locator_params(axis="x", integer=True)
    ax.grid(axis="y", color=GREY, alpha=0.25, lw=0.6)
    if history.epochs:
        ax.legend(frameon=False, fontsize=9)
    tidy(ax)
    return ax.figure.figure  # of a subfigure too


def _focus(ax: Axes, history: History) -> None:
    """Leave the first epochs out of view where they would flatten all others."""
    values = np.array(history.train + history.validation)
    low, high = float(values.min()), float(values.max())
    later = np.array(history.train[2:] + history.validation[2:])
    if later.size >= 8 and high - low > 4 * (float(later.max()) - low) > 0:
        margin = 0.3 * (float(later.max()) - low)
        ax.set_ylim(low - 0.25 * margin, float(later.max()) + margin)


def masks(model: nn.Module) -> Figure:
    """The masks of a MADE, and what they leave connected: strictly below the diagonal.

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
    expect_type(hasattr(model, "modules"), "model", "to be a MADE, or to have one", model)
    made = next((module for module in model.modules() if isinstance(module, MADE)), None)
    if made is None:
        raise TypeError(f"Expected model to be a MADE, or to have one; got {type(model).__name__}")
    panels = _mask_panels(made)
    figure = figure_of(2.5 * len(panels) + 0.3, 2.8)
    colours = _sequential()
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        readers = np.broadcast_to(panel.degrees[:, None], panel.mask.shape)
        image = np.ma.masked_array(readers, ~panel.mask)
        ax.imshow(image, cmap=colours, vmin=0, vmax=made.features, aspect="auto")
        ax.set_title(panel.title, fontsize=10)
        ax.set_xlabel(panel.columns, fontsize=8.5)
        ax.set_ylabel(panel.rows, fontsize=8.5)
        _cells(ax, *panel.mask.shape)
    return figure


class _Panel(NamedTuple):
    title: str
    rows: str
    columns: str
    mask: NDArray[np.bool_]
    degrees: NDArray[np.int64]


def _mask_panels(made: MADE) -> list[_Panel]:
    """A panel for every layer, for direct connections and for the reach of the whole network."""
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


def _sequential() -> ListedColormap:
    """From light to dark blue, distinct from the white of no connection at both ends."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["YlGnBu"](np.linspace(0.25, 1.0, 256)))


def _cells(ax: Axes, rows: int, columns: int) -> None:
    """Lines between cells that are large enough, and no numbers: places are not indices."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(GREY)
    if max(rows, columns) <= 40:
        ax.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", lw=0.6)
        ax.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", lw=0.6)
