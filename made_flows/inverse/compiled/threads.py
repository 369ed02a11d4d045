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
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from made_flows.inverse.compiled.simd import VECTOR_BYTES, inner

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
        threads: how many threads of OpenMP there may be.
        parallel: the address of OpenMP's ``GOMP_parallel``.
    """

    counter: int
    rows: int
    lanes: int
    size: int
    threads: int
    parallel: int


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
def _parallel() -> int:
    """Return where the function is by which torch's OpenMP starts its threads; 0 for nowhere."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            function = ctypes.CDLL(str(library)).GOMP_parallel  # of what it is linked with
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def over_tiles(
    run: Callable[[Tiles, int], None], rows: int, lanes: int, size: int, threads: int
) -> None:
    """Call run(tiles, first slot), which takes tiles until there are none, in so many threads.

    Threads use workspaces of ``size`` numbers, those from the first slot on.
    """
    counter = ctypes.c_int64(0)
    place = ctypes.addressof(counter)
    parallel = 0 if threads == 1 or _FORKED else _parallel()
    if parallel or threads == 1:
        run(Tiles(place, rows, lanes, size, threads, parallel), 0)
        return
    tiles = Tiles(place, rows, lanes, size, 1, 0)
    others = [_pool().submit(run, tiles, slot) for slot in range(1, threads)]
    run(tiles, 0)
    for other in others:
        other.result()


@intrinsic
def fetch_rows(typingctx: Any, counter: Any, count: Any) -> Any:
    """Add to the number at an address, which other threads may do too; what it was is returned."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def in_threads(typingctx: Any, slot: Any, tiles: Any, function: Any, arguments: Any) -> Any:
    """Call function(slot, tiles, *arguments), in as many threads of OpenMP as the tiles say.

    One thread has the slot that is given; more have the slots 0, 1, ...
    """
    signature = types.void(slot, tiles, function, arguments)

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        word, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        inner = types.void(types.int64, sig.args[1], *sig.args[3].types)
        compiled = sig.args[2].dispatcher.get_compile_result(inner)
        context.active_code_library.add_linking_library(compiled.library)
        # What all threads share: who comes next, and the arguments.
        shared = ir.LiteralStructType([word, values[1].type, values[3].type])
        place = cgutils.alloca_once(builder, shared)
        for field, value in enumerate((values[0], values[1], values[3])):
            builder.store(value, cgutils.gep_inbounds(builder, place, 0, field))

        kind = ir.FunctionType(ir.VoidType(), [byte])
        name = builder.module.get_unique_name(f"{builder.function.name}.thread")
        thread = ir.Function(builder.module, kind, name)
        thread.linkage = "internal"
        within = ir.IRBuilder(thread.append_basic_block())
        own = within.bitcast(thread.args[0], shared.as_pointer())
        next_slot = cgutils.gep_inbounds(within, own, 0, 0)
        slot = within.atomic_rmw("add", next_slot, ir.Constant(word, 1), "monotonic")
        shares, packed = (within.load(cgutils.gep_inbounds(within, own, 0, n)) for n in (1, 2))
        parts = (slot, shares, *cgutils.unpack_tuple(within, packed))
        context.call_internal_no_propagate(within, compiled.fndesc, inner, parts)
        within.ret_void()

        small = ir.IntType(32)
        start = ir.FunctionType(ir.VoidType(), [kind.as_pointer(), byte, small, small])
        *_, threads, parallel = cgutils.unpack_tuple(builder, values[1])
        data = builder.bitcast(place, byte)
        several = builder.icmp_signed(">", threads, ir.Constant(word, 1))
        with builder.if_else(several) as (many, one):
            with many:
                call = builder.inttoptr(parallel, start.as_pointer())
                count = builder.trunc(threads, small)
                builder.call(call, [thread, data, count, ir.Constant(small, 0)])
            with one:
                builder.call(thread, [data])
        return context.get_dummy_value()

    return signature, codegen


@inner
def next_tile(tiles: Any, work: Any) -> tuple[int, int, int]:
    """Fetch a tile: its first row, how many it has (none: there are no more), and its lanes."""
    row = fetch_rows(tiles.counter, tiles.lanes)
    here = min(tiles.lanes, tiles.rows - row)
    vector = VECTOR_BYTES // work.itemsize
    return row, here, (here + vector - 1) // vector * vector
