"""Pictures of training, masks, samples and images (extra ``plot``).

Every function returns a ``matplotlib.figure.Figure``: save it with ``figure.savefig(path)``, or let
a notebook show it. Nothing touches pyplot's state, so no display is needed and none is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from made_flows.checks import check_finite, expect, expect_type, positive_integer
from made_flows.history import History
from made_flows.linear import MaskedLinear
from made_flows.made import MADE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

__all__ = ["image_grid", "masks", "pair_plot", "training_curve"]

_BLUE, _ORANGE, _GREY = "#1f5a96", "#d9741a", "#8a8f98"
_PAPER = "#dde3ea"  # between images
_MASSES = (0.9, 0.5)  # of the regions that contour lines enclose
_MAX_POINTS = 2000  # per panel: more are a blot and a large file


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Expected matplotlib, which made_flows.plotting draws with; got none. "
            "Install it: pip install 'made-flows[plot]'"
        ) from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _tidy(ax: Axes) -> None:
    """Axes without a box, in grey, so that the data stands out."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_GREY)
    ax.tick_params(colors=_GREY, labelsize=8, labelcolor="black")


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
        ax = _figure(5.6, 3.4).add_subplot()
    curves = {"training": (history.train, _GREY), "validation": (history.validation, _BLUE)}
    marker = "o" if history.epochs <= 2 else None
    for name, (values, colour) in curves.items():
        if values:
            epochs = range(1, len(values) + 1)
            ax.plot(epochs, values, color=colour, lw=1.6, label=name, marker=marker, ms=4)
    if history.best_epoch:
        colour = _BLUE if history.validation else _GREY
        label = f"best: {history.best:.4g} (epoch {history.best_epoch})"
        ax.plot(history.best_epoch, history.best, "o", color=colour, ms=6, mec="white", label=label)
        _focus(ax, history)
    ax.set_xlabel("epoch")
    ax.set_ylabel("negative log-likelihood (nats)")
    ax.locator_params(axis="x", integer=True)
    ax.grid(axis="y", color=_GREY, alpha=0.25, lw=0.6)
    if history.epochs:
        ax.legend(frameon=False, fontsize=9)
    _tidy(ax)
    return cast("Figure", ax.get_figure(root=True))


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
    figure = _figure(2.5 * len(panels) + 0.3, 2.8)
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
        spine.set_color(_GREY)
    if max(rows, columns) <= 40:
        ax.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", lw=0.6)
        ax.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", lw=0.6)


def pair_plot(
    samples: Any,
    other: Any = None,
    names: Sequence[str] | None = None,
    max_features: int = 8,
    labels: tuple[str, str] = ("samples", "other"),
) -> Figure:
    """Every pair of features, as points and the regions that hold 50% and 90% of them.

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
        >>> figure = pair_plot(torch.randn(200, 3), names=["a", "b", "c"])
        >>> len(figure.axes)
        6
    """
    sets = [_matrix(samples, "samples")]
    if other is not None:
        sets.append(_matrix(other, "other"))
    features = sets[0].shape[1]
    expect(sets[-1].shape[1] == features, "other", f"to have {features} columns", sets[-1].shape[1])
    names = [f"$x_{{{i}}}$" for i in range(features)] if names is None else list(names)
    expect(len(names) == features, "names", f"to have {features} entries", len(names))
    shown = min(features, positive_integer(max_features, "max_features"))
    side = max(1.45 * shown, 3.0)
    figure = _figure(side, side)
    axes = figure.subplots(shown, shown, squeeze=False)
    limits = [_limits(np.concatenate([rows[:, i] for rows in sets])) for i in range(shown)]
    for i in range(shown):
        for j in range(shown):
            ax = axes[i, j]
            if j > i:
                ax.remove()
                continue
            ax.set_xlim(limits[j])
            for rows, colour in zip(sets, (_BLUE, _ORANGE), strict=False):
                if i == j:
                    _histogram(ax, rows[:, i], limits[i], colour, filled=rows is sets[0])
                else:
                    _cloud(ax, rows[:, [j, i]], (limits[j], limits[i]), colour)
            ax.locator_params(nbins=3)
            if i == j:
                ax.set_yticks([])
            else:
                ax.set_ylim(limits[i])
            _edge_labels(ax, names[j] if i == shown - 1 else None, names[i] if 0 == j < i else None)
    if len(sets) == 2:
        lines = [axes[0, 0].plot([], [], color=colour, lw=2)[0] for colour in (_BLUE, _ORANGE)]
        figure.legend(lines, labels, loc="upper right", frameon=False, fontsize=10)
    return figure


def _matrix(values: Any, name: str) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"Expected {name} of shape (N, D); got {array.shape}")
    check_finite(torch.from_numpy(array), name)
    return array


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """A range that leaves out stray points: they would shrink all others to a dot."""
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
    """Points, and contours of a smoothed histogram around the densest halves of them."""
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


def _edge_labels(ax: Axes, below: str | None, left: str | None) -> None:
    _tidy(ax)
    if below is None:
        ax.set_xticklabels([])
    else:
        ax.set_xlabel(below, fontsize=9)
    if left is None:
        ax.set_yticklabels([])
    else:
        ax.set_ylabel(left, fontsize=9)


def image_grid(
    images: Any, shape: Sequence[int], columns: int = 10, titles: Sequence[str] = ()
) -> Figure:
    """Rows of pixels as images, side by side.

    Args:
        images: (N, pixels) tensor or array, dark where large.
        shape: of an image, (height, width) or (height, width, 3) with colours in [0, 1].
        columns: images per row.
        titles: of the first rows of images, written at their left.

    Raises:
        ValueError: for a shape that does not have that many pixels.
        ImportError: without matplotlib.

    Example:
        >>> figure = image_grid(torch.rand(20, 64), (8, 8))
        >>> figure.axes[0].get_images()[0].get_array().shape
        (19, 91)
    """
    pixels = _matrix(images, "images")
    sizes = tuple(positive_integer(size, "shape") for size in shape)
    colour = len(sizes) == 3 and sizes[2] == 3
    expect(colour or len(sizes) == 2, "shape", "to be (height, width) or (height, width, 3)", shape)
    expect(int(np.prod(sizes)) == pixels.shape[1], "shape", f"of {pixels.shape[1]} pixels", shape)
    columns = min(positive_integer(columns, "columns"), len(pixels))
    rows, (height, width) = -(-len(pixels) // columns), sizes[:2]
    # A line of one pixel between images: one for all is sharper and faster than an axis for each.
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *sizes[2:]), np.nan)
    for number, image in enumerate(pixels):
        y, x = number // columns * (height + 1) + 1, number % columns * (width + 1) + 1
        canvas[y : y + height, x : x + width] = image.reshape(sizes)
    canvas = canvas.clip(0, 1) if colour else canvas
    left = 0.9 if titles else 0.0
    across = 7.0 if columns >= 8 else max(2.0, 0.9 * columns)
    figure = _figure(across + left, across * canvas.shape[0] / canvas.shape[1])
    ax = figure.add_subplot()
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    ax.set_facecolor(_PAPER)
    ax.imshow(np.ma.masked_invalid(canvas), cmap="Greys", vmin=low, vmax=high)
    for number, title in enumerate(titles[:rows]):
        middle = number * (height + 1) + 1 + (height - 1) / 2
        ax.text(-0.5 - 0.1 * width, middle, title, ha="right", va="center", fontsize=9)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return figure
