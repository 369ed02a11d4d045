"""Peak memory of a gradient through the slow direction, in a process of its own.

    python -m benchmarks._memory NAME D H B THREADS

prints the bytes by which the resident memory rose at its peak.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._peers import Layer, NFlows, Ours, Pyro, Zuko

__all__ = ["CONTENDERS", "measure_peak"]

CONTENDERS: dict[str, Callable[[int, int], Layer]] = {
    "made_flows": Ours,
    "made_flows (eager)": lambda features, hidden: Ours(features, hidden, "eager"),
    "Pyro": Pyro,
    "nflows": NFlows,
    "zuko": Zuko,
}
FAST = "made_flows, fast direction"


def measure_peak(name: str, size: tuple[int, int, int], threads: int) -> int:
    """Bytes by which one gradient raises the resident memory of a fresh process."""
    command = [sys.executable, "-m", "benchmarks._memory", name, *map(str, (*size, threads))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def gradient(layer: Layer, rows: int, fast: bool) -> None:
    x = torch.randn(rows, layer.features).requires_grad_()
    layer.module.zero_grad(set_to_none=True)
    value = layer.log_density(x).mean() if fast else layer.slow(x).square().mean()
    value.backward()


def _status(field: str) -> int:
    """A field of Linux' account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"Expected {field} in /proc/self/status; got none")


def _start() -> int:
    """Resident memory now; from here on, the peak counts anew where the system can do that."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _highest()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return _highest()


def _highest() -> int:
    """The peak since the process began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    name, *numbers = sys.argv[1:]
    features, hidden, rows, threads = map(int, numbers)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = CONTENDERS.get(name, Ours)(features, hidden)
    gradient(layer, 2, name == FAST)  # imports, compilation, plans
    before = _start()
    gradient(layer, rows, name == FAST)
    print(_peak() - before)


if __name__ == "__main__":
    main()
