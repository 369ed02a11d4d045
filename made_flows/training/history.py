"""What a training run leaves: its curves, or the error that ended it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

StopReason = Literal["max_epochs", "max_seconds", "patience", "callback", "interrupted", "failed"]

# Losses are read this many steps at a time: reading one makes an accelerator wait for it.
_READ_EVERY = 50


@dataclass(repr=False)
class History:
    """What happened in a call of :func:`fit`; negative log-likelihoods in nats per row.

    Attributes:
        train: mean training NLL of each finished epoch, over its steps as they were taken.
        validation: validation NLL after each epoch; empty without validation data.
        best_epoch: the epoch, from 1, whose weights the model has; 0 for those it came with.
        seconds: wall-clock time.
        stop_reason: ``"max_epochs"``, ``"max_seconds"``, ``"patience"`` (no better NLL for that
            many epochs), ``"callback"`` (one returned True), ``"interrupted"`` (Ctrl-C) or
            ``"failed"`` (on a :class:`TrainingError`).
        rates: the learning rate at the end of each finished epoch, of the optimizer's first group.

    Example:
        >>> History([1.5, 1.2, 1.1], [1.4, 1.3, 1.35], 2, 0.8, "max_epochs")
        History(epochs=3, best_epoch=2, train=1.2, validation=1.3, seconds=0.8, \
stop_reason='max_epochs')
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    stop_reason: StopReason = "max_epochs"
    rates: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """The number of epochs finished."""
        return len(self.train)

    @property
    def best(self) -> float:
        """The NLL at the best epoch: validation's where there is any, else training's."""
        return self.curve[self.best_epoch - 1] if self.best_epoch else math.nan

    @property
    def curve(self) -> list[float]:
        """The NLL by which epochs are judged: validation's where there is any, else training's."""
        return self.validation or self.train

    @property
    def falls(self) -> list[int]:
        """The epochs, from 1, that ended at half the rate of the one before, or less."""
        pairs = enumerate(pairwise(self.rates), 2)
        return [epoch for epoch, (before, now) in pairs if now <= 0.5 * before]

    def add(self, train: float, validation: float | None, rate: float) -> bool:
        """Add an epoch; True when it is the best one so far."""
        nll = train if validation is None else validation
        better = not self.best_epoch or nll < self.best
        self.train.append(train)
        self.rates.append(rate)
        if validation is not None:
            self.validation.append(validation)
        if better:
            self.best_epoch = self.epochs
        return better

    def latest(self) -> dict[str, str]:
        """Return the last epoch's numbers as short texts, for a progress bar."""
        curves = {"train": self.train, "validation": self.validation}
        latest = {name: f"{values[-1]:.4g}" for name, values in curves.items() if values}
        if self.best_epoch:
            latest["best"] = str(self.best_epoch)
        if self.falls:
            latest["rate"] = f"{self.rates[-1]:.2g}"
        return latest

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the curves: :func:`made_flows.plotting.training_curve`."""
        from made_flows import plotting

        return plotting.training_curve(self, ax)

    def __repr__(self) -> str:
        curves = {"train": self.train, "validation": self.validation} if self.best_epoch else {}
        parts = [
            f"epochs={self.epochs}",
            f"best_epoch={self.best_epoch}",
            *(f"{name}={nll[self.best_epoch - 1]:.5g}" for name, nll in curves.items() if nll),
            *([f"falls={self.falls}"] if self.falls else []),
            f"seconds={self.seconds:.3g}",
            f"stop_reason={self.stop_reason!r}",
        ]
        return f"History({', '.join(parts)})"


class TrainingError(RuntimeError):
    """Training met a loss or gradient that is not finite; the model has its best weights so far.

    Attributes:
        epoch, step: where, both from 1 (step 0: in the validation after the epoch).
        last_finite: the last finite value of the loss, None when there was none.
        history: the epochs finished.
    """

    def __init__(
        self, what: str, value: float, epoch: int, step: int, last: float | None, history: History
    ) -> None:
        where = f"step {step} of epoch {epoch}" if step else f"the validation after epoch {epoch}"
        before = "no finite value before it" if last is None else f"last finite loss {last:.6g}"
        weights = f"of epoch {history.best_epoch}" if history.best_epoch else "it came with"
        super().__init__(
            f"Expected a finite {what}; got {value:g} in {where} ({before}). The model has its "
            f"best weights, those {weights}. A lower learning_rate or clip_norm may help"
        )
        self.epoch, self.step, self.last_finite, self.history = epoch, step, last, history


class Losses:
    """The losses and gradient norms of an epoch, read from the device some steps at a time."""

    def __init__(self, epoch: int, last: float | None, history: History) -> None:
        self.epoch, self.last, self.history = epoch, last, history
        self.pending: list[tuple[Tensor, Tensor, int]] = []
        self.step = self.rows = 0
        self.total = 0.0

    def add(self, loss: Tensor, norm: Tensor, rows: int) -> bool:
        """Note a step; True when the values were read."""
        self.pending.append((loss.detach(), norm.detach(), rows))
        if len(self.pending) == _READ_EVERY:
            self.read()
            return True
        return False

    def read(self) -> None:
        """Check what is pending and add it up."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        losses, norms, rows = zip(*pending, strict=True)
        values = zip(torch.stack(losses).tolist(), torch.stack(norms).tolist(), rows, strict=True)
        for loss, norm, count in values:
            self.step += 1
            self._expect_finite("training loss", loss)
            self.last = loss
            self._expect_finite("gradient norm", norm)
            self.total += loss * count
            self.rows += count

    def _expect_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(what, value, self.epoch, self.step, self.last, self.history)

    @property
    def mean(self) -> float:
        """The mean loss of a row, over the steps read."""
        return self.total / self.rows
