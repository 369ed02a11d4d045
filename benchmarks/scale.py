"""Rows a second of an epoch of `fit` and of `score`, and memory, from 1e4 rows of a file to 1e7.

    python -m benchmarks.scale [--quick]

Every case is a process of its own, or two of gloo on this machine, with one thread each. The page
is written after every case; one that would last beyond the ten minutes of all is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import made_flows as mf
from benchmarks._memory import _status
from benchmarks.harness import Settings, markdown_table, parse_settings, write_page

SIZES = [10_000, 100_000, 1_000_000, 10_000_000]
QUICK = [2_000, 8_000]
FEATURES = 8
SECONDS = 600.0
"""What all cases may take together."""

TEXT = f"""A `MAF` of {FEATURES} features, five transforms, two hidden layers of 64 units; rows in
float32 mapped from a file. *fit* is one epoch in batches of 4096, with the check of all rows and
their standardisation, *score* the mean log-likelihood. *Memory* is what the first process took at
its peak beyond what it had before, but for pages of the file, which the system takes back where
they are needed. One thread each; two processes divide every batch."""


@contextmanager
def peak_memory(found: list[int]) -> Iterator[None]:
    """Append by how many bytes the memory of this process rose, but for pages of files."""
    before, highest, stop = _status("RssAnon"), [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            highest[0] = max(highest[0], _status("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        found.append(max(0, highest[0] - before))


def work(path: Path, processes: int) -> list[float]:
    """Rows a second and peak memory of `fit` and of `score`, of rows in a file.

    Processes meet beside it, at a file that is not there yet: what an earlier meeting left is the
    addresses of processes that are gone.
    """
    torch.set_num_threads(1)
    first = not (processes > 1 and os.fork() == 0)
    if processes > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{path}.meeting",
            rank=int(not first),
            world_size=processes,
            timeout=timedelta(minutes=2),  # of one that waits for another that has died
        )
    rows = np.load(path, mmap_mode="r")
    torch.manual_seed(0)
    warm, model = (mf.MAF(FEATURES, transforms=5, hidden_features=(64, 64)) for _ in range(2))
    options = {"max_epochs": 1, "validation": None, "batch_size": 4096, "progress": False}
    mf.fit(warm, rows[:4096], seed=0, **options)  # compiles what is to be compiled
    mf.score(warm, rows[:4096])
    found: list[float] = []
    for call in (lambda: mf.fit(model, rows, seed=0, **options), lambda: mf.score(model, rows)):
        memory: list[int] = []
        start = time.perf_counter()
        with peak_memory(memory):
            call()
        found += [len(rows) / (time.perf_counter() - start), memory[0]]
    if not first:
        os._exit(0)
    return found


def write_rows(path: Path, count: int) -> None:
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, FEATURES))
    rng, mix = np.random.default_rng(0), np.tri(FEATURES, dtype=np.float32)
    for start in range(0, count, 100_000):
        piece = rows[start : start + 100_000]
        piece[:] = rng.normal(size=piece.shape).astype(np.float32) @ mix


def measure(path: Path, processes: int) -> list[float]:
    """The same in a fresh process."""
    Path(f"{path}.meeting").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.scale", "--worker", str(path), str(processes)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return [float(number) for number in done.stdout.split()]


def main(settings: Settings) -> None:
    end, table, slowest = time.monotonic() + SECONDS, [], {}
    sizes = QUICK if settings.quick else SIZES
    headings = ["rows", "processes", "fit: rows/s", "MiB", "score: rows/s", "MiB"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        for count in sizes:
            write_rows(path, count)
            for processes in (1, 2):
                name = [f"{count:.0e}".replace("e+0", "e"), str(processes)]
                if time.monotonic() + count * slowest.get(processes, 0.0) > end:
                    table.append([*name, *["not run: too long"] * 4])
                else:
                    fit, of_fit, score, of_score = measure(path, processes)
                    slowest[processes] = 1 / fit + 1 / score
                    memory = (f"{each / 2**20:.0f}" for each in (of_fit, of_score))
                    table.append([*name, f"{fit:,.0f}", next(memory), f"{score:,.0f}", *memory])
                last = (count, processes) == (sizes[-1], 2)
                sections = [TEXT, markdown_table(headings, table)]
                write_page("scale", "From 1e4 rows to 1e7", sections, settings, finished=last)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(*work(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        main(replace(parse_settings(__doc__), threads=1))
