"""What every test can rely on: one thread, fixed seeds, and global state left as it was found."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch
from torch.distributions import Distribution

SEED = 0

# Without a GPU Triton's interpreter runs its kernels; it reads this when Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Without such devices torch.manual_seed writes the stack of calls down for each kind of them: that
# takes as long as a small test, and comes again in each example of Hypothesis.
for device in (torch.cuda, torch.xpu, getattr(torch, "mtia", None)):
    if device is not None and not device.is_available():
        device.manual_seed_all = lambda seed: None

# Test tensors are small, and tests run in several processes: more threads only get in the way.
torch.set_num_threads(1)

# No deadline: a test may not fail because the machine is busy. In CI the examples are the same in
# every run, so that a red build means a change; elsewhere every run tries new ones.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


class _TorchRandom:
    """Torch's global generator in the form in which Hypothesis resets it before each example."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_torch_random = _TorchRandom()  # Hypothesis keeps a weak reference only
hypothesis.register_random(_torch_random)


@pytest.fixture(autouse=True)
def _fixed_start() -> None:
    """Starts every test from the same seeds, with distributions that check their arguments."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - scikit-learn and other libraries draw from this generator
    torch.manual_seed(SEED)
    # zuko switches this off for the whole process when it is imported.
    Distribution.set_default_validate_args(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that hold an address: processes that share the tests must agree on them."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"Expected ids that are the same in every process; got {named[0]}")


def pytest_collection_finish() -> None:
    """Leave what stays until the end, ten thousand tests and all modules, out of collections.

    Tests that ask for a collection, and Python itself, then look at what the tests made. Python
    itself does so less often than it is used to: compilers make many objects, and keep them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _global_state() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "number of threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def _global_state_unchanged() -> Iterator[None]:
    """Fails the test that leaves torch's global state changed, and repairs it for the next one."""
    before = _global_state()
    yield
    after = _global_state()
    if after == before:
        return
    torch.set_default_dtype(before["default dtype"])
    torch.set_default_device(before["default device"])
    torch.set_grad_enabled(before["grad mode"])
    torch.set_num_threads(before["number of threads"])
    changed = [
        f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]
    ]
    pytest.fail("this test left torch's global state changed: " + "; ".join(changed))
