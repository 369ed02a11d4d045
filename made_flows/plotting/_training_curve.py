"""The picture of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from made_flows._checks import expect_type
from made_flows.plotting._figures import BLUE, GREY, own_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@runtime_checkable
class Curves(Protocol):
    """What is drawn of a training run, as :class:`made_flows.History` has it."""

    train: list[float]
    validation: list[float]
    best_epoch: int

    @property
    def falls(self) -> list[int]:
        """The epochs in which the learning rate fell."""

    @property
    def best(self) -> float:
        """The negative log-likelihood at the best epoch."""

    @property
    def epochs(self) -> int:
        """The number of epochs finished."""


def training_curve(history: Curves, ax: Axes | None = None) -> Figure:
    """Draw training and validation NLL by epoch, the epoch that was kept, and falls of the rate.

    Args:
        history: what :func:`made_flows.fit` returned.
        ax: axes to draw on; None makes a figure.

    Raises:
        ImportError: without matplotlib.

    Example:
        >>> import made_flows as mf
        >>> figure = training_curve(mf.History([1.5, 1.2, 1.1], [1.4, 1.3, 1.35], best_epoch=2))
        >>> figure.axes[0].get_xlabel()
        'epoch'
    """
    expect_type(isinstance(history, Curves), "history", "to be what fit returned", history)
    ax = own_axes(ax, 5.6, 3.4)
    curves = {"training": (history.train, GREY), "validation": (history.validation, BLUE)}
    marker = "o" if history.epochs <= 2 else None
    for name, (values, colour) in curves.items():
        if values:
            epochs = range(1, len(values) + 1)
            ax.plot(epochs, values, color=colour, lw=1.6, label=name, marker=marker, ms=4)
    for number, epoch in enumerate(history.falls):
        label = "learning rate falls" if number == 0 else None
        ax.axvline(epoch - 0.5, color=GREY, lw=0.8, ls=":", label=label, zorder=0)
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


def _focus(ax: Axes, history: Curves) -> None:
    """Leave the first epochs out of view where they would flatten all others."""
    values = np.array(history.train + history.validation)
    low, high = float(values.min()), float(values.max())
    later = np.array(history.train[2:] + history.validation[2:])
    if later.size >= 8 and high - low > 4 * (float(later.max()) - low) > 0:
        margin = 0.3 * (float(later.max()) - low)
        ax.set_ylim(low - 0.25 * margin, float(later.max()) + margin)
