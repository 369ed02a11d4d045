"""Score and draw Parquet tables of any size with Ray Data, by as many workers as there are.

    pip install "made-flows[ray]"
    python examples/score_with_ray.py

Ray reads the files, divides the rows and keeps the workers; each of them loads the model once. On a
cluster, give `ray.init(address="auto")`, a shared folder, and `num_gpus=1` with `device="cuda"`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import made_flows as mf
from made_flows.ray import Sample, Score

# Ray starts 32 processes that read the ends of Parquet files, unless told: one machine needs one.
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
try:
    import ray
except ImportError:
    print('This example needs Ray: pip install "made-flows[ray]"')
    sys.exit(0)

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
ROWS = 5_000 if QUICK else 1_000_000
COLUMNS = ["x", "y", "z"]


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.7], [0, 0, 0.3]])
    flow = mf.MAF(features=3, transforms=2, hidden_features=(32, 32))
    mf.fit(flow, rows[:5_000], max_epochs=3 if QUICK else 20, seed=0)
    mf.save(flow, folder / "flow.safetensors")

    (folder / "rows").mkdir()
    for i, part in enumerate(np.array_split(rows[:5_000], 2)):
        table = pa.table(dict(zip(COLUMNS, part.T, strict=True)))
        pq.write_table(table, folder / "rows" / f"{i}.parquet")

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    model = {"path": str(folder / "flow.safetensors"), "columns": COLUMNS}
    # Half a core for each of two workers leaves one to read and write the files.
    workers = {"compute": ray.data.ActorPoolStrategy(size=2), "num_cpus": 0.5}
    scored = ray.data.read_parquet(str(folder / "rows")).map_batches(
        Score, fn_constructor_kwargs=model, batch_size=1024, **workers
    )
    scored.write_parquet(str(folder / "scored"))
    by_ray = np.sort(pq.read_table(folder / "scored")["log_prob"])
    here = flow().log_prob(torch.as_tensor(rows[:5_000])).detach().double().numpy()
    print(f"mean log-likelihood: {by_ray.mean():.4f} by two workers, {here.mean():.4f} here")
    if not np.allclose(by_ray, np.sort(here), atol=1e-4):
        sys.exit("Expected the scores of the workers to be those of one process")

    drawn = ray.data.range(ROWS).map_batches(
        Sample, fn_constructor_kwargs=model | {"seed": 1}, batch_size=4096, **workers
    )
    drawn.write_parquet(str(folder / "drawn"))
    print(f"{len(pq.read_table(folder / 'drawn'))} rows drawn")
    ray.shutdown()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
