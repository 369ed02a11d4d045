"""The learning rate over the epochs, and when training ends for want of progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch

from made_flows._checks import expect
from made_flows.training.history import History

Schedule: TypeAlias = Literal["constant", "plateau", "cosine"]

_FACTOR, _LATEST = 0.3, (0.7, 0.8, 0.9)
"""To what part of it a plateau lowers the rate, and when it falls at the latest, each time."""


def plateaus(curve: Sequence[float], patience: int) -> int:
    """Count plateaus: so many epochs in a row without a lower NLL than before, then half as many.

    Example:
        >>> plateaus([3.0, 2.0, 2.1, 2.2, 2.1, 2.0, 1.9, 2.0, 2.1, 2.0, 2.0], patience=4)
        3
    """
    found, since, best = 0, 0, math.inf
    for nll in curve:
        since = 0 if nll < best else since + 1
        best = min(best, nll)
        if since >= (max(1, patience // 2) if found else patience):
            found, since = found + 1, 0
    return found


class Rates:
    """The learning rates of an optimiser, along a schedule, and its end.

    What they are follows from the history and from where in training one is, so that training that
    goes on from a checkpoint needs nothing else.

    Args:
        optimizer: has the rates.
        schedule: how they change.
        patience: epochs without a lower NLL that end training, None for no end. With plateaus they
            lower the rate instead, so that nothing ends earlier; half of them lower it again, and
            end training when it was lowered three times.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Schedule, patience: int | None
    ) -> None:
        self.optimizer, self.schedule, self.patience = optimizer, schedule, patience
        groups = optimizer.param_groups if schedule != "constant" else []
        has_rates, wanted = all("lr" in group for group in groups), f"with schedule={schedule!r}"
        expect(has_rates, "optimizer", f"to have learning rates {wanted}", type(optimizer).__name__)
        self._start = [group["lr"] for group in groups]
        self._now: list[Any] = []  # what they were set to last

    def plateaus(self, history: History) -> int:
        """Count the plateaus of a history, none where the rates do not fall on them."""
        return self._plateaus(history.curve)

    def ended_plateau(self, history: History) -> bool:
        """Tell whether the last epoch of a history was the last one of a plateau."""
        return self._plateaus(history.curve) > self._plateaus(history.curve[:-1])

    def set(self, progress: float, spent: float, found: int) -> None:
        """Set the rates for a place in training.

        Args:
            progress: the part of the epochs that are behind it.
            spent: the part of the time that is, where that is limited.
            found: how many plateaus are behind it, which change from epoch to epoch alone.

        Raises:
            ValueError: for rates that were changed since, by a callback, which would be lost.
        """
        pairs = zip(self.optimizer.param_groups, self._now, strict=False)
        for number, (group, was) in enumerate(pairs):
            rate = group["lr"]
            if rate != was:  # no words are made in every step
                wanted = f"to be left to schedule={self.schedule!r} (or schedule='constant')"
                got = f"{rate:g} where it was set to {was:g}"
                expect(False, f"learning rates of group {number}", wanted, got)
        if self.schedule == "cosine":
            self._scale(0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        elif self.schedule == "plateau":
            late = sum(max(progress, spent) >= part for part in _LATEST)
            self._scale(_FACTOR ** max(found, late))

    @property
    def now(self) -> float:
        """The rate of the first group; NaN where an optimizer has no such thing."""
        return float(self.optimizer.param_groups[0].get("lr", math.nan))

    def restore(self) -> None:
        """Set the rates they started from."""
        self._scale(1.0)

    def ends(self, history: History) -> bool:
        """Tell whether training is to end after the last epoch of a history."""
        if self.patience is None:
            return False
        if self.schedule == "plateau":
            return self.plateaus(history) > len(_LATEST)
        return history.epochs - history.best_epoch == self.patience

    def _plateaus(self, curve: Sequence[float]) -> int:
        if self.schedule != "plateau" or self.patience is None:
            return 0
        return plateaus(curve, self.patience)

    def _scale(self, factor: float) -> None:
        # Read anew, as loading a state makes others; none of them where rates do not change.
        for group, rate in zip(self.optimizer.param_groups, self._start, strict=False):
            group["lr"] = rate * factor
        self._now = [group["lr"] for group in self.optimizer.param_groups[: len(self._start)]]
