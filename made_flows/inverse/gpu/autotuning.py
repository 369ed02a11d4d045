"""How the sweeps are cut up on a GPU: a few configurations, timed once for a kind of problem.

The fastest is kept, in memory and in Triton's cache on disk. All of them add up equally many inputs
at a time, so that sums do not depend on the choice. Nothing is timed in the interpreter, nor while
a CUDA graph records, when the host may wait for nothing: then the first is taken, if none is known.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.cache import get_cache_manager

from made_flows._torch import is_recorded

_REPETITIONS = 3
"""Timed launches, of which the fastest counts."""

_FILE = "tiles.json"

_FOUND: dict[tuple[object, ...], Config | TritonError] = {}
"""What is fastest; where nothing could be built, why: to try again would take as long."""


class Config(NamedTuple):
    """How the work is cut up; every number but the warps is a power of two, and 16 at least.

    Args:
        rows: rows of a tile.
        block: units of a block before a panel.
        step: units of a block inside a panel.
        inputs: inputs of a product, the same in all configurations.
        warps: of 32 threads each, that a program has.
    """

    rows: int
    block: int
    step: int
    inputs: int
    warps: int


_Launch = Callable[[Config], None]


@contextmanager
def launching() -> Iterator[None]:
    """Turn what goes wrong in a launch, be it a missing compiler, into an error of Triton's.

    Triton does so for some of it only. What broke the device itself stays.
    """
    try:
        yield
    except (TritonError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, OSError, ImportError, AssertionError, subprocess.SubprocessError) as why:
        raise TritonError(f"{type(why).__name__}: {why}") from why


def configs(rows: int, like: Tensor) -> list[Config]:
    """List configurations for so many rows; what should do without a measurement comes first.

    Every multiprocessor should have a tile before tiles grow: a large one reuses every weight that
    it reads more often.
    """
    most = 16 if like.dtype == torch.float64 else 64
    height = 16
    while height < most and rows >= 2 * height * processors(like.device):
        height *= 2
    inputs = 32 if like.dtype == torch.float32 else 16
    found = [Config(height, 32, 16, inputs, 4)]
    found += [Config(h, 32, 16, inputs, 4) for h in (height // 2, 2 * height) if 16 <= h <= most]
    found.append(Config(height, 64, 16, inputs, 8))
    if height < 64:  # where two warps have registers enough (seen when compiled)
        found.append(Config(height, 32, 16, inputs, 2))
    return found


@lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; one, for the interpreter."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def fastest(
    kind: tuple[object, ...], configs: Sequence[Config], like: Tensor, launch: _Launch
) -> Config:
    """Return the configuration that launches fastest for problems of a kind.

    Args:
        kind: what the kernel is compiled for, and how large the problem is, about.
        configs: among which to choose.
        like: a tensor on the device.
        launch: does all the work by one of them.

    Raises:
        TritonError: where none can be built.
    """
    kind = (*kind, like.device)
    found = _FOUND.get(kind)
    if found is None:
        if not _may_be_timed(like):
            return configs[0]
        try:
            found = _kept_or_timed(kind[:-1], configs, like, launch)
        except TritonError as failure:
            found = failure
        _FOUND[kind] = found
    if isinstance(found, TritonError):
        raise found.with_traceback(None)  # which else would grow
    return found


def _may_be_timed(like: Tensor) -> bool:
    return like.is_cuda and not is_recorded(like)


def _kept_or_timed(
    kind: tuple[object, ...], configs: Sequence[Config], like: Tensor, launch: _Launch
) -> Config:
    identity = repr((kind, tuple(configs), triton.__version__, _name_of(like.device)))
    key = hashlib.sha256(identity.encode()).hexdigest()
    kept = _read(key)
    if kept is not None and kept in configs:  # not cut off, say
        return kept
    times = {config: _attempt(partial(launch, config), like) for config in configs}
    best = min(configs, key=lambda config: times[config][0])
    failure = times[best][1]
    if failure is not None:
        raise failure
    with suppress(OSError):  # no room, or read-only: the next process times anew
        get_cache_manager(key).put(json.dumps(best), _FILE, binary=False)
    return best


def _read(key: str) -> Config | None:
    try:
        path = Path(get_cache_manager(key).get_file(_FILE) or "")
        return Config(*json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _attempt(launch: Callable[[], None], like: Tensor) -> tuple[float, Exception | None]:
    try:
        with launching():
            return milliseconds(launch, like), None
    except (TritonError, torch.OutOfMemoryError) as failure:  # too large a workspace, say
        return math.inf, failure


def _name_of(device: torch.device) -> object:
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def milliseconds(launch: Callable[[], None], like: Tensor) -> float:
    """Time what is launched on the current stream of a tensor's device."""
    launch()  # compiles
    stream, best = torch.cuda.current_stream(like.device), math.inf
    for _ in range(_REPETITIONS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        launch()
        end.record(stream)
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return best
