"""Kill processes that train or save, at random moments, and see what they leave.

    python -m tools.kill_processes fit 20     # SIGKILL twenty times: the weights of a whole run?
    python -m tools.kill_processes save 20    # a whole file after every one?

Each child is a fork, so that torch is imported once. A failure exits with its reason.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import made_flows as mf
from made_flows.training import checkpoint
from made_flows.training.history import History

ROWS = torch.randn(600, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    3, 3, generator=torch.Generator().manual_seed(1)
)


def train(place: Path | None) -> tuple[mf.MAF, History]:
    """Train a small model with all that has a state: dropout, averages, a schedule, actnorm."""
    torch.manual_seed(0)
    model = mf.MAF(3, transforms=2, hidden_features=(16,), normalize="actnorm", dropout=0.2)
    history = mf.fit(
        model, ROWS + 100, checkpoint=place, max_epochs=8, batch_size=16, average=0.9,
        schedule="cosine", seed=3, progress=False,
    )  # fmt: skip
    return model, history


def killed_after(work: Callable[[], None], seconds: float) -> bool:
    """Start some work in a child, kill it, and tell whether it was still at it."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def kill_fit(times: int, folder: Path) -> str:
    reference, expected = train(None)
    started = time.monotonic()
    train(None)  # once more, as what is compiled takes no time then
    seconds, place = time.monotonic() - started, folder / "run.checkpoint"
    kills = runs = resumed = 0
    while kills < times:
        for _ in range(random.randint(1, 4)):
            known = place.exists()
            if kills < times and killed_after(lambda: train(place), random.uniform(0, seconds)):
                kills += 1
                resumed += known
        model, history = train(place)
        for (name, value), other in zip(
            reference.state_dict().items(), model.state_dict().values(), strict=True
        ):
            if not torch.equal(value, other):
                sys.exit(f"Expected the weights of a run that was not killed; got another {name}")
        if (history.train, history.validation) != (expected.train, expected.validation):
            sys.exit("Expected the curves of a run that was not killed")
        if {path.name for path in folder.iterdir()} != {place.name}:
            sys.exit(f"Expected one file; got {sorted(map(str, folder.iterdir()))}")
        place.unlink()
        runs += 1
    return f"{kills} kills in {runs} runs, {resumed} of them of runs that had been resumed"


def kill_save(times: int, folder: Path) -> str:
    models = [mf.MAF(8, transforms=4, hidden_features=(width,)) for width in (64, 128)]
    place, kills, left = folder / "model.safetensors", 0, 0

    def work() -> None:
        while True:
            for model in models:
                mf.save(model, place)

    mf.save(models[0], place)
    while kills < times:
        kills += killed_after(work, random.uniform(0, 0.3))
        model = mf.load(place)  # refuses a file that is not whole
        like = models[model.transforms[0].conditioner.hidden_features[0] == 128]
        if any(
            not torch.equal(a, b)
            for a, b in zip(like.parameters(), model.parameters(), strict=True)
        ):
            sys.exit("Expected one of the two models")
        others = [path for path in folder.iterdir() if path != place]
        if not all(path.name.startswith(".") for path in others):  # safetensors has some, too
            sys.exit(f"Expected hidden files at most; got {others}")
        left += len(others)
        for path in others:
            path.unlink()
    return f"{kills} kills, {left} unfinished files, all of them hidden"


if __name__ == "__main__":
    what, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    random.seed(int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns())
    checkpoint._SHARE = 0.5  # write often
    for each in ("fit", "save") if what == "both" else (what,):
        with tempfile.TemporaryDirectory() as temporary:
            kill = {"fit": kill_fit, "save": kill_save}[each]
            print(f"{each}: {kill(count, Path(temporary))}")
