"""Tiles shared out over threads: those of torch, or plain ones where torch's cannot be had.

After an operation of its own, torch's OpenMP keeps its threads turning for milliseconds. Any other
thread would have to share a processor with one of them, so that two were slower than one: the
kernels ask the same OpenMP for its threads, which are awake and begin within a microsecond. Plain
threads remain for processes that were forked, whose OpenMP has lost its own, and for builds of
torch without ``GOMP_parallel``.

Threads fetch tiles one by one from a counter, so that one that starts late or is held up leaves
its share to the others.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from made_flows.inverse.compiled.simd import VECTOR_BYTES, fetch

_LOCK = threading.Lock()
_POOL: ThreadPoolExecutor | None = None
_FORKED = False


class Tiles(NamedTuple):
    """Rows that threads fetch, a tile after the other.

    Args:
        counter: the address of the first row that nobody has fetched.
        rows: how many there are.
        lanes: rows of a tile.
        size: numbers in the workspace of a thread.
    """

    counter: int
    rows: int
    lanes: int
    size: int


def _forget() -> None:
    """Forget the threads, which do not survive a fork."""
    global _POOL, _LOCK, _FORKED
    _POOL, _LOCK, _FORKED = None, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _pool() -> ThreadPoolExecutor:
    global _POOL  # noqa: PLW0603
    with _LOCK:
        if _POOL is None:
            # As many as the machine has; how many are used is decided call by call.
            _POOL = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="made_flows")
        return _POOL


@lru_cache(maxsize=1)
def _parallel() -> Callable[..., None] | None:
    """Return the function by which torch's OpenMP starts its threads."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            function: Any = ctypes.CDLL(str(library)).GOMP_parallel  # of what it is linked with
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function  # type: ignore[no-any-return]
    return None


@lru_cache(maxsize=64)
def _function(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def in_threads(address: int, block: int, threads: int) -> None:
    """Call the function at an address, in so many threads, with the address of its arguments."""
    parallel = None if threads == 1 or _FORKED else _parallel()
    if parallel is not None:
        parallel(address, block, threads, 0)
        return
    function = _function(address)
    if threads == 1:
        function(block)
        return
    help_ = _Help(partial(function, block))
    try:
        with suppress(RuntimeError):  # no thread can be started: those that there are do it all
            for _ in range(1, threads):
                _pool().submit(help_)
        function(block)
    finally:
        help_.end()


class _Help:
    """What threads of the pool do for a call: while it lasts, and never after it.

    Arguments are addresses of what the caller keeps. When a call ends early, as by Ctrl-C, a thread
    that went on, or began, would read and write memory that is another's by then.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._lasts, self._helping = function, True, 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            if not self._lasts:
                return
            self._helping += 1
        try:
            self._function()
        finally:
            with self._changed:
                self._helping -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Let nobody begin, and wait for those who did, whatever interrupts; then raise that."""
        interrupt: BaseException | None = None
        while True:
            try:
                with self._changed:
                    self._lasts = False
                    self._changed.wait_for(lambda: not self._helping)
                break
            except BaseException as error:  # Ctrl-C, say
                interrupt = error
        if interrupt is not None:
            raise interrupt


def next_tile(tiles: Any, work: Any) -> tuple[int, int, int]:
    """Fetch a tile: its first row, how many it has (none: there are no more), and its lanes."""
    row = fetch(tiles.counter, tiles.lanes)
    here = min(tiles.lanes, tiles.rows - row)
    vector = VECTOR_BYTES // work.itemsize
    return row, here, min(tiles.lanes, (here + vector - 1) // vector * vector)
