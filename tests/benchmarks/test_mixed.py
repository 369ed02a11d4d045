"""The benchmarks of mixed tables and of anomalies: their rows, their baselines, their pages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import anomaly, mixed
from benchmarks._mixed_measures import quality
from benchmarks._mixed_models import Copula, Margins
from made_flows.tables.schema import Schema


@pytest.fixture
def folder(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "anomaly").mkdir()
    x = rng.normal(size=(120, 3))
    x[:20] += 6
    np.savez(folder / "anomaly" / "odd.npz", X=x, y=np.arange(120) < 20)
    (folder / "mixed").mkdir()
    kind = rng.choice(["a", "b"], 200)
    size = np.where(kind == "a", 10, 14) + rng.normal(size=200)
    count = rng.poisson(np.where(kind == "a", 30, 60))
    lines = [f"{k},{s:.6f},{c}" for k, s, c in zip(kind, size, count, strict=True)]
    lines[3] = ",,3"
    (folder / "mixed" / "mine.csv").write_text("\n".join(["kind,size,count", *lines]))
    return folder


def test_the_one_class_setting(folder: Path) -> None:
    x, y = anomaly.load()["odd"]
    train, test, labels = anomaly.cut(x, y, 0)
    assert (len(train), len(test), labels.sum()) == (50, 70, 20)
    assert train.max() < 5, "no anomaly is trained on"


def test_ranks_share_equal_values() -> None:
    results = {"t": {"a": 1.0, "b": 1.0, "c": 0.5}, "unfinished": {"a": 1.0}}
    assert anomaly.ranks(results, ["a", "b", "c"]) == {"a": 1.5, "b": 1.5, "c": 3.0}


def test_anomaly_runs_are_resumed_and_a_page_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    kept = {n: anomaly.DETECTORS[n] for n in ("kNN", "OCSVM")}
    monkeypatch.setattr(anomaly, "DETECTORS", kept)
    options = ["--threads", "1", "--output", str(folder), "--runs", str(folder / "runs")]
    for _ in range(2):
        anomaly.main(["--detectors", "kNN", "OCSVM", *options])
    assert len((folder / "runs" / "results.jsonl").read_text().splitlines()) == 2
    page = (folder / "anomaly.md").read_text()
    assert "| odd" in page
    assert "mean rank" in page


def test_simpler_likelihoods_are_normalised(folder: Path) -> None:
    pytest.importorskip("sklearn")
    table = mixed.load()["mine"]
    assert table["kind"][3] is None
    assert math.isnan(table["size"][3])
    schema = Schema.of(table)
    x = schema.encode(table)[0]
    margins = Margins(schema, x)
    copula = Copula(margins, x, 0)
    # Of the kinds, given size and count missing: the copula of one column is its margin.
    one = torch.full((2, 3), torch.nan, dtype=torch.float64)
    one[:, 0] = torch.arange(2)
    unseen = schema.columns[0].unseen
    for log_prob in (margins.log_prob(one).sum(1), copula.log_prob(one)):
        assert float(log_prob.exp().sum()) == pytest.approx(1 - unseen, abs=1e-6)
    # Of kind and size together, by quadrature over size.
    values = np.linspace(0, 25, 2001)
    total = 0.0
    for kind in ("a", "b"):
        rows = {"kind": [kind] * 2001, "size": values, "count": [math.nan] * 2001}
        p = copula.log_prob(schema.encode(rows)[0]).exp().numpy()
        total += float(np.trapezoid(p, values))
    assert total == pytest.approx(1 - unseen, abs=0.02)


def test_synthetic_rows_are_judged(folder: Path) -> None:
    pytest.importorskip("sklearn")
    table = mixed.load()["mine"]
    schema = Schema.of(table)
    x = schema.encode(table)[0]
    drawn = Copula(Margins(schema, x), x, 0).sample(1000)
    permuted = torch.stack([x[torch.randperm(len(x)), i] for i in range(3)], dim=1)
    own, copula, none = (quality(schema, rows, x, "kind") for rows in (x, drawn, permuted))
    assert own[:3] == [0.0, 0.0, 0.0]
    assert copula[0] < 0.1  # 199 rows: 0.1 is exceeded by one sample in about twenty
    assert copula[2] < none[2] / 2
    assert copula[4] > 0.8 > none[4]


@pytest.mark.slow
def test_a_page_of_mixed_tables_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(mixed, "TARGETS", {"mine": "kind"})
    mixed.main(["--quick", "--threads", "1", "--output", str(folder), "--runs", str(folder / "r")])
    page = (folder / "mixed.md").read_text()
    assert "mine (160 x 3; 1)" in page
    assert "IterativeImputer" in page
    assert "associations" not in page, "one column of categories has none"
    assert "rank correlations" in page
