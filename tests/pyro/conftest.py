"""What all tests of Pyro share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _empty_store() -> None:
    """Forgets the weights of other tests' guides, which have the same names."""
    pytest.importorskip("pyro").clear_param_store()
