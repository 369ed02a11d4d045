"""Exact copies of rows stay together where rows are held out; equal rows of few values do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.training.copies import find_copies, hold_out
from made_flows.training.data import reading
from made_flows.training.loaders import split_indices


def drawn(kind: str, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "counts":
        rates = torch.full((rows, columns), 3.0)
        return torch.poisson(rates, generator=generator)
    return torch.randn(rows, columns, generator=generator)


def zero_at_once() -> Tensor:
    x = drawn("normal", 600, 4)
    x[::3] = 0.0
    return x


def with_holes(x: Tensor) -> Tensor:
    return torch.where(drawn("counts", *x.shape) > 4, torch.nan, x)


NORMAL = drawn("normal", 500, 3)
PICKED = torch.randint(500, (500,), generator=torch.Generator().manual_seed(1))
ONE, TWO = NORMAL[:, :1], NORMAL[:, 1:]
BITS = (drawn("normal", 2000, 2) > 0).long()
POSITIVE = torch.cat([torch.zeros(500, 1), TWO], dim=1)
FIVE = torch.arange(500).repeat(5)

CASES = {  # rows, contexts, and how many rows are copies of others
    "rows of their own": (NORMAL, None, 0),
    "each row five times": (NORMAL[FIVE], None, 2000),
    "drawn again": (NORMAL[PICKED], None, 500 - len(PICKED.unique())),
    "beside categories": (torch.cat([TWO, BITS[:500].float()], dim=1)[FIVE], None, 2000),
    "signed zeros": (torch.cat([POSITIVE * torch.tensor([-1.0, 1, 1]), POSITIVE]), None, 500),
    "with holes": (with_holes(drawn("normal", 300, 6)).repeat(2, 1), None, 300),
    "double precision": (NORMAL.double().repeat(2, 1), None, 500),
    "many columns": (drawn("normal", 50, 40).repeat(2, 1), None, 50),
    "given contexts": (ONE.repeat(2, 1), TWO.repeat(2, 1), 500),
    "other contexts": (ONE.repeat(2, 1), torch.cat([TWO, TWO + 1]), 0),
    "the same contexts": (NORMAL, TWO[PICKED], 0),
    "rounded": (drawn("normal", 2000, 3).mul(10).round() / 10, None, 0),
    "a rounded column": (drawn("normal", 2000, 1).mul(100).round() / 100, None, 0),
    "counts": (drawn("counts", 2000, 3), None, 0),
    "counts, twice": (drawn("counts", 200, 9).long().repeat(2, 1), None, 0),
    "bits": (BITS, None, 0),
    "bits given few contexts": (BITS, TWO[torch.arange(2000) % 50], 0),
    "zero at once": (zero_at_once(), None, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_copies_are_told_from_equal_rows(name: str) -> None:
    x, context, count = CASES[name]
    read = reading(x, context, "x")
    copies = find_copies(len(x), read)
    if not count:
        assert copies is None or int((copies != torch.arange(len(x))).sum()) < 0.03 * len(x)
        return
    assert copies is not None
    assert int((copies != torch.arange(len(x))).sum()) == count
    torch.testing.assert_close(x[copies], x, rtol=0, atol=0, equal_nan=True)
    with pytest.warns(UserWarning, match=f"{count} of the {len(x)} rows of x are exact copies"):
        kept, left_out = hold_out(len(x), read, 0.2, torch.Generator().manual_seed(0), "x")
    assert not set(copies[kept].tolist()) & set(copies[left_out].tolist())
    assert sorted([*kept.tolist(), *left_out.tolist()]) == list(range(len(x)))
    assert len(left_out) == pytest.approx(0.2 * len(x), abs=5)


def test_the_default_device_does_not_matter() -> None:
    x = NORMAL.repeat(2, 1)
    with torch.device("meta"):
        copies = find_copies(len(x), reading(x, None, "x"))
        kept, _ = split_indices(len(x), 0.1, torch.Generator("cpu"), copies)
    assert kept.device.type == "cpu"


def test_known_copies_stay_together_whatever_their_values() -> None:
    x = BITS[:40].repeat(3, 1)
    known = torch.arange(40).repeat(3)
    assert find_copies(120, reading(x, None, "x"), known).tolist() == known.tolist()


def test_rows_of_their_own_are_split_as_ever() -> None:
    parts = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = split_indices(500, 0.1, parts[0])
    found = hold_out(500, reading(NORMAL, None, "x"), 0.1, parts[1], "x")
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()


def test_fit_validates_on_rows_that_it_did_not_train_on(tmp_path: Path) -> None:
    """Of a file as of memory; what is learnt of copies by heart is no gain."""
    x = drawn("normal", 40, 3)[torch.arange(40).repeat(10)]
    np.save(tmp_path / "x.npy", x.numpy())
    options = {"validation": 0.2, "max_epochs": 12, "learning_rate": 2e-2, "dropout": 0.0}
    histories = []
    for rows in (x, np.load(tmp_path / "x.npy", mmap_mode="r")):
        torch.manual_seed(0)
        model = mf.GaussianMixtureMADE(3, hidden_features=(64,))
        with pytest.warns(UserWarning, match="copies of a row are held out together"):
            histories.append(mf.fit(model, rows, **options, progress=False, seed=0))
    assert histories[0].validation == histories[1].validation
    assert histories[0].train[-1] < min(histories[0].validation) - 0.3


def test_estimate_leaves_copies_out_together(capsys: pytest.CaptureFixture[str]) -> None:
    x = drawn("normal", 60, 3).repeat(3, 1)
    mf.estimate(x, budget="fast", max_seconds=1, seed=0)
    assert "120 rows are copies, left out with theirs" in capsys.readouterr().out
