"""What all tests of accelerated layers share."""

from __future__ import annotations

import pytest

from made_flows.inverse import dispatch


@pytest.fixture(autouse=True)
def _small_layers_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the fast way at the tests' sizes, at which it would often be left to the library."""
    monkeypatch.setattr(dispatch, "_LEAST_FEATURES", 0)
    monkeypatch.setattr(dispatch, "_LEAST_WORK", 0)
