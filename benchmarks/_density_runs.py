"""Training that can be stopped after any epoch and taken up again, within a budget of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import made_flows as mf
from benchmarks._density_data import Table


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Args:
        rate: learning rate of Adam at the start.
        batch_size: rows per step.
        lower_after: epochs without a better validation score after which the rate is lowered to
            a third.
        patience: epochs without a better validation score after which training ends.
        max_epochs: at most.
        minutes: of training in one call, at most; ends with the epoch.
    """

    rate: float = 1e-3
    batch_size: int = 100
    lower_after: int = 6
    patience: int = 15
    max_epochs: int = 1000
    minutes: float = 60.0


@dataclass
class Result:
    """Where a model stands.

    Args:
        epochs: passes over the training rows so far.
        best_epoch: the epoch with the best validation score, whose weights are kept.
        valid: that score, the mean log-likelihood in nats.
        seconds: of training so far.
        rate: the learning rate now.
        waited: epochs since the rate was lowered or the score improved.
        finished: why training ended for good, empty where it can go on.
        test, error: mean log-likelihood of the test rows, and twice its standard error.
        parameters: of the model.
    """

    epochs: int = 0
    best_epoch: int = 0
    valid: float = -math.inf
    seconds: float = 0.0
    rate: float = math.nan
    waited: int = 0
    finished: str = ""
    test: float = math.nan
    error: float = math.nan
    parameters: int = 0
    scores: list[float] = field(default_factory=list)


def run(name: str, make: Callable[[], nn.Module], table: Table, plan: Plan, folder: Path) -> Result:
    """Train a model from where an earlier call left it, and score its best weights.

    Args:
        name: of the model, for its file.
        make: makes the model; called with torch's generator seeded.
        table: the data.
        plan: how.
        folder: of the files, one for each model and table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.name}-{name}.pt"
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.rate)
    result, best = Result(rate=plan.rate), _copy(model)
    result.parameters = sum(weight.numel() for weight in model.parameters())
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        best, result = saved["best"], Result(**saved["result"])

    valid, test = torch.from_numpy(table.valid), torch.from_numpy(table.test)
    train = torch.from_numpy(table.train)
    start, before = time.perf_counter(), result.seconds
    while not result.finished and time.perf_counter() - start < 60 * plan.minutes:
        if table.redraw is not None and result.epochs:
            train = torch.from_numpy(table.redraw(result.epochs))
        for group in optimizer.param_groups:
            group["lr"] = result.rate
        try:
            history = mf.fit(
                model,
                train,
                validation=valid,
                optimizer=optimizer,
                batch_size=plan.batch_size,
                max_epochs=1,
                progress=False,
                seed=result.epochs,
            )
        except mf.TrainingError as error:
            result.finished = f"stopped: {error}"
        else:
            if _note(result, -history.validation[-1], plan):
                best = _copy(model)
        result.seconds = before + time.perf_counter() - start
        _save(path, model, optimizer, best, result)
        print(
            f"{table.name}, {name}: epoch {result.epochs}, validation {result.scores[-1:]}, "
            f"best {result.valid:.3f}, {result.seconds / 60:.1f} min {result.finished}",
            flush=True,
        )
    if result.epochs:
        last = _copy(model)
        model.load_state_dict(best)
        each = _scores(model.eval(), test)
        result.test = float(each.mean())
        result.error = 2 * float(each.std()) / math.sqrt(len(each))
        model.load_state_dict(last)
        _save(path, model, optimizer, best, result)
    return result


def _note(result: Result, score: float, plan: Plan) -> bool:
    """Note an epoch's validation score; whether it is the best so far."""
    result.epochs += 1
    result.scores.append(score)
    better = score > result.valid
    if better:
        result.valid, result.best_epoch, result.waited = score, result.epochs, 0
    else:
        result.waited += 1
        if result.waited >= plan.lower_after:
            result.rate, result.waited = result.rate / 3, 0
    if result.epochs - result.best_epoch >= plan.patience:
        result.finished = "patience"
    elif result.epochs >= plan.max_epochs:
        result.finished = "epochs"
    return better


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    result: Result,
) -> None:
    """All at once: an interrupted save leaves the one before."""
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
        "result": asdict(result),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


@torch.no_grad()
def _scores(model: nn.Module, rows: Tensor) -> Tensor:
    """Log-likelihoods of rows, in double precision."""
    return torch.cat([model().log_prob(part).double() for part in rows.split(1000)])
