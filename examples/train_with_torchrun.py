r"""Train one model by several processes, on one machine or many.

    python examples/train_with_torchrun.py                  # starts two processes by itself
    torchrun --nproc-per-node=8 examples/train_with_torchrun.py
    torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 \
        examples/train_with_torchrun.py                     # on each of four machines

The call of `fit` is that of one process. Every process takes its part of each batch, gradients are
added up, and all of them end with the same model: that of one process with these batches, but for
rounding. Killed at any moment, the same command goes on from the checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import made_flows as mf

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
ROWS = 4_000 if QUICK else 200_000


def main() -> None:
    folder = Path(os.environ.get("TRAIN_FOLDER", "train_with_torchrun"))  # all processes see it
    folder.mkdir(exist_ok=True)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    first = dist.get_rank() == 0
    if first:
        np.save(folder / "rows.npy", made_up_rows())
    dist.barrier()

    # Mapped to memory: processes of a machine share the pages that they read.
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    model = mf.MAF(features=6, transforms=3, hidden_features=(64, 64))
    history = mf.fit(
        model,
        rows,
        batch_size=512,  # of all processes together
        max_epochs=3 if QUICK else 20,
        checkpoint=folder / "run.checkpoint",
        device="cuda" if on_gpu else "cpu",
        seed=0,
    )
    log_likelihood = mf.score(model, rows)
    if first:
        mf.save(model, folder / "flow.safetensors")
        print(f"{dist.get_world_size()} processes: {history}")
        print(f"log-likelihood of all rows: {log_likelihood:.3f} nats")
    dist.destroy_process_group()


def made_up_rows() -> np.ndarray:
    """Rows of two rings in three planes."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, (ROWS, 3))
    radius = rng.choice([1.0, 2.0], (ROWS, 3)) + 0.1 * rng.normal(size=(ROWS, 3))
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)


def start_two() -> None:
    """Do what ``torchrun --nproc-per-node=2`` does."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = {"OMP_NUM_THREADS": "1", "TRAIN_FOLDER": folder} | dict(os.environ)
        command += ["--nproc-per-node=2", __file__]
        sys.exit(subprocess.run(command, check=False, env=environment).returncode)


if __name__ == "__main__":
    main() if "LOCAL_RANK" in os.environ else start_two()
