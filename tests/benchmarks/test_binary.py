"""The benchmark of binary tables: what it trains, keeps, selects and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import _binary_runs as runs
from benchmarks import binarized_mnist, binary
from benchmarks._binary_data import PUBLISHED, TABLES, Table, load_table
from benchmarks._binary_runs import Candidate, Scores, SparseAdam, average

SMALL = Candidate(hidden=(6,), dropout=0.0, batch_size=20, orders_per_batch=2)


def _table(features: int = 5) -> Table:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(120, 1, generator=generator) < 0.5
    rows = (first ^ (torch.rand(120, features, generator=generator) < 0.1)).float()
    return Table("made", rows[:60], rows[60:80], rows[80:])


def _write(folder: Path, table: Table, name: str = "DNA") -> None:
    (folder / "binary").mkdir()
    parts = {part: getattr(table, part).numpy().astype(np.uint8) for part in _PARTS}
    np.savez(folder / "binary" / f"{TABLES[name]}.npz", **parts)


_PARTS = ("train", "valid", "test")


def test_tables_are_read_and_missing_ones_left_out(folder: Path, capsys) -> None:
    _write(folder, _table())
    table = load_table("DNA")
    assert table is not None
    assert torch.equal(table.train, _table().train)
    assert load_table("Adult") is None
    binary.main(["--quick", "--threads", "1", "--data", "Adult"])
    assert "no data, nothing written" in capsys.readouterr().out


def test_every_table_has_published_rows_and_steps() -> None:
    for name in TABLES:
        value, whose = binary.best_published(name)
        assert all(value <= row[name] for row in PUBLISHED.values() if name in row)
        assert PUBLISHED[whose][name] == value
        assert binary.STEPS[name] > 0


@pytest.mark.parametrize("orders", ["all", 3, None])
def test_scores_are_log_probabilities(tmp_path: Path, orders) -> None:
    table = _table(4)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    candidate = replace(SMALL, orders=orders)
    scores = runs.run("c", candidate, Table("t", table.train, table.valid, every), 10, 3, tmp_path)
    assert scores is not None
    assert scores.test.shape == (16, 3 if orders else 1)
    assert torch.allclose(scores.test.double().logsumexp(dim=0).exp(), torch.ones(1).double())
    assert average(scores.test).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_what_is_finished_is_kept_and_other_settings_are_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, trained = _table(), []
    train = runs._train
    monkeypatch.setattr(runs, "_train", lambda *a: trained.append(a) or train(*a))
    first = runs.run("c", SMALL, table, 5, 3, tmp_path)
    again = runs.run("c", SMALL, table, 5, 3, tmp_path)
    assert first is not None
    assert again is not None
    assert len(trained) == 1
    assert torch.equal(first.test, again.test)
    assert (first.seconds, first.steps) == (again.seconds, again.steps)
    assert runs.run("c", replace(SMALL, rate=0.1), table, 5, 3, tmp_path, train=False) is None
    runs.run("c", SMALL, table, 8, 3, tmp_path)
    assert len(trained) == 2


def test_sparse_adam_is_adamw_and_a_soft_threshold() -> None:
    start = torch.tensor([0.5, -0.5, 0.011, -0.3])
    gradient = torch.tensor([1.0, -2.0, 1e-9, 3.0])
    plain, sparse = (torch.nn.Parameter(start.clone()) for _ in range(2))
    adam = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.0)
    ours = SparseAdam([{"params": [sparse], "lr": 0.01, "weight_decay": 0.0, "sparsity": 0.2}])
    for optimizer, weight in ((adam, plain), (ours, sparse)):
        weight.grad = gradient.clone()
        optimizer.step()
    expected = plain.detach().sign() * (plain.detach().abs() - 0.002).clamp(min=0)
    assert torch.allclose(sparse.detach(), expected)


def test_threshold_removes_direct_connections_that_carry_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(400, 6, generator=generator) < 0.5).float()
    rows[:, 1] = rows[:, 0]
    table = Table("t", rows[:300], rows[300:350], rows[350:])
    candidate = replace(SMALL, orders=None, hidden=(), sparsity=0.5, batch_size=100)
    model = runs._train(replace(candidate, hidden=(2,)), table, 300)
    weight = model.made.direct.weight.detach() * model.made.direct.mask
    assert weight[1, 0].item() > 1
    others = weight.abs()
    others[1, 0] = 0
    assert others.max().item() < 0.5


def test_selection_looks_at_the_validation_rows_alone() -> None:
    def scores(valid: float, test: float) -> Scores:
        return Scores(torch.full((10, 3), valid), torch.full((10, 3), test), 0.0, 1, 1)

    ways = binary.selected({"worse": scores(-5.0, -1.0), "better": scores(-4.0, -9.0)})
    for column in ("one order", "mixture of 16", "mixture of 32", "fitted"):
        values, name = ways[column]
        assert name == "better"
        assert torch.allclose(values, torch.full((10,), -9.0).double())
    values, shown = ways["all candidates"]
    assert shown == "0.00 worse, 1.00 better"
    assert values.mean().item() == pytest.approx(-9.0, abs=0.01)


@pytest.mark.parametrize(
    ("benchmark", "data", "published"),
    [
        (binary, "DNA", "79.66 (MADE, mask sampling)"),
        (binarized_mnist, "Binarized MNIST", "MADE, mask sampling 86.64"),
    ],
)
def test_page(folder: Path, benchmark, data: str, published: str) -> None:
    _write(folder, _table(), data)
    names = list(benchmark.CANDIDATES)[:2]
    arguments = ["--quick", "--threads", "1", "--candidates", *names]
    benchmark.main(arguments)
    written = folder / "output" / "benchmarks" / f"{benchmark.__name__.partition('.')[2]}.md"
    page = written.read_text()
    assert "A quick run: its numbers mean nothing" in page
    assert published in page
    assert all(f"| {name}" in page for name in names)
    benchmark.main([*arguments, "--write"])
    assert written.read_text() == page
