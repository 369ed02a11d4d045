"""Images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from made_flows._checks import expect, expect_sequence, positive_integer
from made_flows.plotting._figures import figure_of, matrix, texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER = "#dde3ea"  # between images
_MISSING = "#f0c48a"  # pixels without a value
_TITLE, _GAP = 9, 5  # points: size of the titles, and room on both sides of them


def image_grid(
    images: Any, shape: Sequence[int], columns: int = 10, titles: Sequence[str] = ()
) -> Figure:
    """Draw rows of pixels as images, side by side.

    Args:
        images: (N, pixels) tensor or array, dark where large, orange where NaN.
        shape: of an image, (height, width) or (height, width, 3) with colours in [0, 1].
        columns: images per row.
        titles: of the first rows of images, written at their left.

    Raises:
        ValueError: for a shape that does not have that many pixels, and infinite ones.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> figure = image_grid(torch.rand(20, 64), (8, 8))
        >>> figure.axes[0].get_images()[0].get_array().shape
        (19, 91)
    """
    pixels = matrix(images, "images", missing=True)
    expect_sequence(shape, "shape", "to be (height, width) or (height, width, 3)")
    titles = texts(titles, "titles")
    sizes = tuple(positive_integer(size, "shape") for size in shape)
    colour = len(sizes) == 3 and sizes[2] == 3
    expect(colour or len(sizes) == 2, "shape", "to be (height, width) or (height, width, 3)", shape)
    expect(int(np.prod(sizes)) == pixels.shape[1], "shape", f"of {pixels.shape[1]} pixels", shape)
    columns = min(positive_integer(columns, "columns"), len(pixels))
    canvas = _side_by_side(pixels.reshape(-1, *sizes), columns, np.nan)
    missing: NDArray[np.bool_] = np.isnan(pixels)
    holes = missing.reshape(len(pixels), *sizes[:2], -1).max(axis=-1)
    known = pixels[~missing]
    low, high = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0

    height, rows = sizes[0], -(-len(pixels) // columns)
    expect(len(titles) <= rows, "titles", f"to have {rows} entries at most, one a row", len(titles))
    across = 7.0 if columns >= 8 else max(2.0, 0.9 * columns)
    ax = _axes(across, across * canvas.shape[0] / canvas.shape[1], titles)
    ax.set_facecolor(_PAPER)
    if colour:
        canvas = canvas.clip(0, 1)
    ax.imshow(np.ma.masked_invalid(canvas), cmap="Greys", vmin=low, vmax=high)
    if missing.any():
        from matplotlib.colors import ListedColormap

        marks = np.ma.masked_equal(_side_by_side(holes, columns, False), False)
        ax.imshow(marks, cmap=ListedColormap([_MISSING]))
    for number, title in enumerate(titles):
        middle = (-0.5, number * (height + 1) + 1 + (height - 1) / 2)
        ax.annotate(
            title, middle, (-_GAP, 0), textcoords="offset points", ha="right", va="center",
            fontsize=_TITLE,
        )  # fmt: skip
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.figure.figure


def _side_by_side(images: NDArray[Any], columns: int, between: float) -> NDArray[Any]:
    """Join images (N, height, width, ...) to one, with lines of one pixel around each."""
    # One picture for all is sharper and faster than axes for each.
    rows, (height, width) = -(-len(images) // columns), images.shape[1:3]
    shape = (rows * (height + 1) + 1, columns * (width + 1) + 1, *images.shape[3:])
    canvas = np.full(shape, between, images.dtype)
    for number, image in enumerate(images):
        y, x = number // columns * (height + 1) + 1, number % columns * (width + 1) + 1
        canvas[y : y + height, x : x + width] = image
    return canvas


def _axes(across: float, down: float, titles: Sequence[str]) -> Axes:
    """Make axes of a size in inches, in a figure with room for titles at their left."""
    figure = figure_of(across, down)
    from matplotlib.textpath import TextPath

    widths = [TextPath((0, 0), t, size=_TITLE).get_extents().width for t in titles if t.strip()]
    left = (max(widths) + 2 * _GAP) / 72 if widths else 0.0
    figure.set_layout_engine("none")
    figure.set_size_inches(left + across, down)
    return figure.add_axes((left / (left + across), 0, across / (left + across), 1))
