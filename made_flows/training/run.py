"""The epochs of one run of training: steps, validation, early stopping, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from made_flows.training.checkpoint import Checkpoint, random_state, set_random_state
from made_flows.training.data import Rows, Source
from made_flows.training.defaults import Settings
from made_flows.training.history import History, Losses, TrainingError
from made_flows.training.likelihood import mean_nll, negative_log_likelihood
from made_flows.training.optimization import (
    Average,
    Dropping,
    copied_weights,
    restore_weights,
    seed_generators,
)
from made_flows.training.processes import Processes, starts_from_data
from made_flows.training.rates import Rates
from made_flows.training.target import Batch
from made_flows.transforms.units import Units

Callback: TypeAlias = Callable[[nn.Module, History], Any]
"""What is called after every epoch, with the model in evaluation mode; True ends training."""


_TOTALS = ("step", "rows", "total", "last")
"""What the losses of a part of an epoch come to."""


@dataclass(frozen=True)
class Options:
    """Further arguments of a run that say how long it goes on and how it steps."""

    clip_norm: float
    max_seconds: float
    progress: bool | str
    callbacks: tuple[Callback, ...]


@dataclass
class Run:
    """One call of :func:`made_flows.fit`, its arguments checked."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    rates: Rates
    average: Average | None
    generator: torch.Generator
    options: Options
    settings: Settings
    seed: int
    units: list[Units]
    processes: Processes
    checkpoint: Checkpoint
    loss: Callable[[nn.Module, Batch], Tensor]
    dropping: Dropping
    history: History = field(default_factory=History)
    steps: int | None = None  # in an epoch, once counted
    step: int = 0  # those taken in the epoch that goes on
    spent: float = 0.0  # the part of the time there is, after the last epoch
    last: float | None = None
    end: float = math.inf
    order: Tensor = field(default_factory=lambda: torch.empty(0))
    losses: Losses | None = None
    sources: list[torch.Generator] = field(default_factory=list)

    def __call__(self, train: Source, held_out: Source | None) -> History:
        self.start, self.sources = time.perf_counter(), train.generators
        self.order, self.best = self.generator.get_state(), copied_weights(self.model)
        saved, history, options = self.checkpoint.saved, self.history, self.options
        bar = tqdm(disable=True)
        try:
            if saved is not None:
                self._resume(saved)
            else:
                self._begin(train)
                self._save()
            self.end = self.start + options.max_seconds
            said, kind = options.progress, type(self.model).__name__
            bar = tqdm(
                total=self.settings.max_epochs,
                initial=history.epochs,
                disable=not said or self.processes.rank > 0,
                desc=said if isinstance(said, str) else kind,
                unit="epoch",
            )
            late = saved is not None and time.perf_counter() > self.end
            over = history.stop_reason in ("patience", "callback")
            if history.epochs < self.settings.max_epochs and not over:
                history.stop_reason, over = ("max_seconds", True) if late else ("max_epochs", False)
            while history.epochs < self.settings.max_epochs and not over:
                over = self._epoch(train, held_out, bar)
        except KeyboardInterrupt:
            history.stop_reason = "interrupted"
        except BaseException:
            history.stop_reason = "failed"
            raise
        finally:
            restore_weights(self.model, self.best)
            self.optimizer.zero_grad()
            self.rates.restore()
            history.seconds = time.perf_counter() - self.start
            bar.close()
        return history

    def _epoch(self, train: Source, held_out: Source | None, bar: Any) -> bool:
        """Train for one epoch and validate; True where it is the last."""
        history, epoch = self.history, self.history.epochs + 1
        with self.dropping.applied():
            losses = self._train(train, epoch, bar)
        self.last = losses.last
        with nullcontext() if self.average is None else self.average.applied():
            nll = losses.mean
            if held_out is not None:
                size, device = max(self.settings.batch_size, 1024), self.parameters[0].device
                nll = mean_nll(self.model, held_out, size, self.processes, device)
            if not math.isfinite(nll):
                raise TrainingError("validation NLL", nll, epoch, 0, self.last, history)
            if history.add(losses.mean, None if held_out is None else nll, self.rates.now):
                self.best = copied_weights(self.model)
            self.model.eval()
            stopped = [bool(callback(self.model, history)) for callback in self.options.callbacks]
        self.processes.check_alike(self.model)
        bar.set_postfix(history.latest())
        bar.update()
        now, limit = time.perf_counter(), self.options.max_seconds
        numbers = [float(any(stopped)), float(now > self.end), (now - self.start) / limit]
        stop, late_too, spent = self.processes.added(numbers, self.parameters[0].device)
        self.spent = spent / self.processes.count  # the same in all, as their rates are
        if late_too:
            history.stop_reason = "max_seconds"
        elif self.rates.ends(history):
            history.stop_reason = "patience"
        elif stop:
            history.stop_reason = "callback"
        over = history.stop_reason != "max_epochs"
        self.step, self.order, self.losses = 0, self.generator.get_state(), None
        last = over or epoch == self.settings.max_epochs
        if self.checkpoint.place and self.processes.same(last or self.checkpoint.is_due):
            self._save()
        return over

    def _train(self, source: Source, epoch: int, bar: Any) -> Losses:
        """Train for one epoch, or for what is left of it."""
        self.model.train()
        losses = self.losses or Losses(epoch, self.last, self.history)
        steps = source.steps(self.settings.batch_size) or self.steps
        plateaus = self.rates.plateaus(self.history)
        # What came after the best weights may be learnt by heart. Averages stay: with them going
        # back gained nothing for certain.
        if self.step == 0 and self.average is None and self.rates.ended_plateau(self.history):
            restore_weights(self.model, self.best)
        for taken, batch in enumerate(self._batches(source, epoch), self.step):
            done = epoch - 1 + (min(taken / steps, 1.0) if steps else 0.0)
            self.rates.set(done / self.settings.max_epochs, self.spent, plateaus)
            late = time.perf_counter() > self.end
            due = self.checkpoint.is_due and isinstance(source, Rows)
            try:
                loss, rows, late, due = self._gradients(batch, late, due)
            except Exception:
                losses.read()  # an earlier loss that was not finite is the cause: name that
                raise
            if not rows:
                break
            norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            if losses.add(loss, norm, rows):
                bar.set_postfix(self.history.latest() | {"train": f"{losses.mean:.4g}"})
            self.steps = self.step = taken + 1
            if due:
                losses.read()
                self.losses = losses
                self._save()
            if late or (self.processes.alone and time.perf_counter() > self.end):
                break
        losses.read()
        return losses

    def _batches(self, source: Source, epoch: int) -> Iterator[Batch | None]:
        """Return this process's parts of the batches that are left of an epoch.

        Where there are several processes, None follows: some may have more batches than others.
        """
        self.generator.set_state(self.order)
        share = self.processes.share
        batches = source.batches(self.settings.batch_size, self.generator, share, self.step)
        if self.processes.alone:
            return batches
        if self.step:
            return chain(batches, repeat(None))
        # A loader shuffles by the global generator, for all processes alike; what a model draws
        # is different in each.
        self._seed(self.seed + 7919 * epoch)
        first = next(batches, None)
        self._seed(self.seed + 7919 * epoch + 104729 * (self.processes.rank + 1))
        return chain([first], batches, repeat(None))

    def _seed(self, seed: int) -> None:
        seed_generators(seed % 2**63, self.parameters[0].device)

    def _gradients(
        self, batch: Batch | None, late: bool, due: bool
    ) -> tuple[Tensor, int, bool, bool]:
        """Set the gradients of a batch, of which each process has its part.

        Returns:
            The mean loss, the number of rows, and whether any process is late or has a checkpoint
            that is due.
        """
        rows = 0 if batch is None else len(batch[0])
        if self.processes.alone and batch is not None:
            loss = self.loss(self.model, batch).mean()
            self.optimizer.zero_grad()
            loss.backward()
            return loss, rows, late, due
        self.optimizer.zero_grad()
        total = torch.zeros(())
        if batch is not None and rows:
            total = self.loss(self.model, batch).sum()
            total.backward()
        present = [float(p.grad is not None) for p in self.parameters]
        numbers = [total.detach(), rows, late, due, *present]
        added = self.processes.added(numbers, self.parameters[0].device)
        count = int(added[1])
        if count:
            self.processes.add_gradients(self.parameters, count, added[4:])
        mean = torch.tensor(added[0] / max(count, 1))
        return mean, count, added[2] > 0, added[3] > 0

    def _begin(self, train: Source) -> None:
        """Give all processes one model; what a first batch is to set, it sets for all alike."""
        if (train.target.compiled or not self.processes.alone) and starts_from_data(self.model):
            device = self.parameters[0].device
            state = random_state(self.sources, device)
            first = next(train.batches(self.settings.batch_size, self.generator))
            with self.dropping.applied():
                self.model.train()
                negative_log_likelihood(self.model, first)
            self.generator.set_state(self.order)
            set_random_state(state, self.sources, device)
        self.processes.align(self.model)
        self.best = copied_weights(self.model)

    # ------------------------------------------------------------------ where it stands

    def _save(self) -> None:
        if self.checkpoint.place is None:
            return
        random = random_state(self.sources, self.parameters[0].device)
        history = asdict(self.history) | {"seconds": time.perf_counter() - self.start}
        losses, average = self.losses, self.average
        state = {
            "seed": str(self.seed),  # of 64 bits, without a sign
            "units": [each.numbers() for each in self.units],
            "weights": copied_weights(self.model),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "average": None if average is None else (average.steps, average.values),
            "order": self.order,
            "random": self.processes.gathered(random),
            "history": history,
            "steps": (self.step, self.steps, self.last),
            "losses": None if losses is None else {name: getattr(losses, name) for name in _TOTALS},
        }
        self.checkpoint.write(state)

    def _resume(self, saved: dict[str, Any]) -> None:
        """Put back all that :meth:`_save` wrote."""
        restore_weights(self.model, saved["weights"])
        self.best = saved["best"]
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.steps, values = saved["average"]
            for mine, value in zip(self.average.values, values, strict=True):
                mine.copy_(value)
        self.order = saved["order"]
        self.generator.set_state(self.order)
        states = saved["random"]
        if self.processes.rank < len(states):
            mine = states[self.processes.rank]
            set_random_state(mine, self.sources, self.parameters[0].device)
        vars(self.history).update(saved["history"])
        before = self.history.epochs - len(self.history.rates)  # of a release without rates
        self.history.rates[:0] = [math.nan] * before
        self.start -= self.history.seconds
        self.spent = self.history.seconds / self.options.max_seconds
        self.step, self.steps, self.last = saved["steps"]
        if saved["losses"] is not None:
            losses = self.losses = Losses(self.history.epochs + 1, self.last, self.history)
            vars(losses).update(saved["losses"])
