"""fit and score in two processes of gloo, against one process at the same total batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import made_flows as mf
from tests.helpers import two_processes as two

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    root = Path(__file__).parents[2]
    call = [sys.executable, str(root / "tests/helpers/two_processes.py"), str(folder)]
    given = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        call, cwd=root, env=given, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    results: dict[str, Any] = torch.load(folder / "found", weights_only=True)
    return results


@pytest.mark.parametrize("name", two.CASES)
def test_two_processes_do_as_one(name: str, found: dict[str, Any], tmp_path: Path) -> None:
    """Sums over halves of a batch, added, are those of the whole but for rounding."""
    one, both = two.CASES[name](tmp_path), found[name]
    if isinstance(one, float):
        assert both == pytest.approx(one, rel=1e-6)
        return
    for i in (0, 1):
        assert both[i] == pytest.approx(one[i], rel=1e-4)
    for key, value in one[2].items():
        torch.testing.assert_close(both[2][key], value, atol=2e-3, rtol=1e-3, msg=key)


def test_a_run_of_two_goes_on_from_its_checkpoint(found: dict[str, Any]) -> None:
    one, other = found["resumed"], found["not interrupted"]
    assert one[:2] == other[:2]
    assert all(torch.equal(value, other[2][name]) for name, value in one[2].items())


def test_a_loader_that_shuffles_gives_each_row_to_one_process(found: dict[str, Any]) -> None:
    assert found["rows of a loader"] == [row for row in range(203) for _ in range(2)]


def test_what_cannot_be_divided_is_refused(found: dict[str, Any]) -> None:
    assert found["batch normalisation"].startswith("Expected model without batch normalisation")
    assert "different values of seen" in found["other buffers"]


def test_a_process_that_dies_is_an_error_and_the_checkpoint_whole(
    found: dict[str, Any], folder: Path
) -> None:
    assert found["dying"].startswith("Expected all 2 processes to go on training; process 0 lost")
    model = two.maf()
    history = mf.fit(model, two.X, checkpoint=folder / "killed", **two.OPTIONS)  # in one
    whole = two.outcome(two.maf(), two.X)
    assert history.train == pytest.approx(whole[0], rel=1e-4)


def test_torchrun_without_a_group_is_a_warning(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.warns(UserWarning, match="torchrun started 2 processes, and torch.distributed is"):
        mf.fit(two.maf(), two.X, **two.OPTIONS | {"max_epochs": 1})
