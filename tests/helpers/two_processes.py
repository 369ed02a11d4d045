"""Train in two processes of gloo, for a test to compare with one: ``python two_processes.py OUT``.

The second is a fork of the first, so that torch is imported once. Each case of CASES is a function
of a folder that returns what the first process found; ``main`` writes all of it as one file.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import made_flows as mf
from made_flows.training.processes import Processes

X = torch.randn(203, 3, generator=torch.Generator().manual_seed(0)) * 3 + 50
OPTIONS = {"max_epochs": 3, "batch_size": 32, "seed": 1, "progress": False}
Outcome = tuple[list[float], list[float], dict[str, Tensor]]


def maf(seed: int = 0, **options: Any) -> mf.MAF:
    torch.manual_seed(seed)
    return mf.MAF(3, transforms=1, hidden_features=(8,), **options)


def outcome(model: Any, data: Any, **options: Any) -> Any:
    history = mf.fit(model, data, **OPTIONS | options)
    return history.train, history.validation, model.state_dict()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class Batches:
    """A stream, some of whose batches have fewer rows than there are processes."""

    def __iter__(self) -> Any:
        return iter(X[:99].split([40, 40, 1, 1, 17]))


def shuffled() -> DataLoader:
    generator = torch.Generator().manual_seed(4)
    return DataLoader(TensorDataset(X), batch_size=32, shuffle=True, generator=generator)


def own_rows() -> DataLoader:
    """A loader whose sampler gives every process its rows: all of them at each total batch."""
    dataset = TensorDataset(X[:192])
    if not dist.is_initialized():
        return DataLoader(dataset, batch_size=32)
    return DataLoader(dataset, batch_size=16, sampler=DistributedSampler(dataset, shuffle=False))


CASES: dict[str, Any] = {
    "rows": lambda _: outcome(maf(rank()), X),  # other weights in every process
    "patience": lambda _: outcome(
        maf(), X, max_epochs=30, patience=1, optimizer=lambda p: torch.optim.SGD(p, 0.3)
    ),
    "average": lambda _: outcome(maf(), X, average=0.9, schedule="cosine", validation=None),
    "stream": lambda _: outcome(maf(), Batches(), validation=X[100:]),
    "loader": lambda _: outcome(maf(), shuffled(), validation=X[:31]),
    "own rows": lambda _: outcome(maf(), own_rows(), validation=X[:31], standardize=False),
    "embedded": lambda _: outcome(
        mf.Embedded(maf(context=2), torch.nn.Linear(4, 2), 4), (X, X.new_ones(203, 4))
    ),
    "score": lambda _: mf.score(maf(), (X - 50) / 3, batch_size=50),
    "score of a stream": lambda _: mf.score(maf(), Batches()),
}  # fmt: skip


def resumed(folder: Path) -> Outcome:
    """Train for an epoch, and once more from the checkpoint, with dropout."""
    for epochs in (1, 3):
        options = {"max_epochs": epochs, "schedule": "constant", "checkpoint": folder / "run"}
        found = outcome(maf(dropout=0.3), X, **options)
    return found


def refused(model: Any) -> str:
    try:
        outcome(model, X)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "nothing"


class Counting(torch.nn.Module):
    """A model with a buffer that depends on the rows that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.model = maf()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self) -> Any:
        self.seen += rank()
        return self.model()


class Seeing(torch.nn.Module):
    """A model that notes the rows that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.seen = maf(), []

    def forward(self) -> Any:
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        self.seen += x[:, 0].tolist()
        return self.model().log_prob(x)


def rows_of_a_loader(_: Path) -> list[float]:
    """Return the rows that both saw, of a loader that shuffles by the global generator."""
    model, rows = Seeing(), torch.arange(203.0)[:, None].expand(203, 3)
    loader = DataLoader(TensorDataset(rows), batch_size=32, shuffle=True)
    mf.fit(model, loader, validation=None, **OPTIONS | {"max_epochs": 2})
    return sorted(row for rows in Processes().gathered(model.seen) for row in rows)


ONLY_TWO = {
    "rows of a loader": rows_of_a_loader,
    "resumed": resumed,
    "not interrupted": lambda _: outcome(maf(dropout=0.3), X, schedule="constant"),
    "batch normalisation": lambda _: refused(maf(normalize="batch")),
    "other buffers": lambda _: refused(Counting()),
}


def dying(folder: Path) -> str:
    """Lose the second process in the second epoch; return what the first one says."""

    def die(model: Any, history: mf.History) -> None:
        if rank() == 1:
            os._exit(9)

    return refused_with(folder, die)


def refused_with(folder: Path, callback: Any) -> str:
    try:
        outcome(maf(), X, checkpoint=folder / "killed", callbacks=callback)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    second = os.fork() == 0
    os.environ.pop("WORLD_SIZE", None)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=int(second),
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    started = time.monotonic()
    found = {name: case(folder) for name, case in (CASES | ONLY_TWO).items()}
    found["dying"] = dying(folder)
    found["seconds"] = time.monotonic() - started
    torch.save(found, folder / "found")
    os._exit(0)  # the group cannot be left without the other


if __name__ == "__main__":
    main(Path(sys.argv[1]))
