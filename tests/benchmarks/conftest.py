"""What all tests of the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the data and the results, which is the working directory."""
    monkeypatch.setenv("MADE_FLOWS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path
