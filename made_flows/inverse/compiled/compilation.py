"""Compilation: kernels that LLVM compiles when they are first needed, and that are kept on disk.

A file that was cut off, or whose bits have changed, must not break every sample of a user's, nor
run as machine code. Every file therefore carries a digest of itself; one that does not agree with
it is compiled again, and said so once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from made_flows import _llvm
from made_flows._llvm import DOUBLE, LONG, SHORT, SINGLE, Array, Numbers, leaves, machine
from made_flows.inverse.compiled.layout import StepRows, Written, put
from made_flows.inverse.compiled.simd import fetch
from made_flows.inverse.compiled.threads import Tiles, in_threads
from made_flows.inverse.compiled.translation import Program
from made_flows.univariate import step_kernel

_LOG = logging.getLogger("made_flows")
_LOADED: list[Any] = []
"""Engines of LLVM: machine code lives as long as these objects."""

_LOCK = threading.RLock()


def _unlock() -> None:
    """Make a new lock: another thread may have held it when the process was forked."""
    global _LOCK  # noqa: PLW0603
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def has_sources() -> bool:
    """Tell whether kernels can be compiled: applications may come without sources."""
    return Path(step_kernel.__file__).with_suffix(".py").is_file()


def _sources() -> bytes:
    """Hash all that kernels are made of."""
    digest = hashlib.sha256(llvmlite.__version__.encode())
    # Two modules that kernels are made of stand outside of their folder.
    others = Path(step_kernel.__file__), Path(_llvm.__file__)
    for path in (*sorted(Path(__file__).parent.rglob("*.py")), *others):
        digest.update(path.read_bytes())
    return digest.digest()


_SOURCES = _sources() if has_sources() else b""
"""As they were imported: an upgrade of the library changes them under running processes."""


@lru_cache(maxsize=1)
def _announce() -> None:
    """Say, once, that what follows takes seconds: nobody should have to wait and wonder."""
    message = "made_flows: compiling kernels, once: a few seconds"
    _LOG.info(message)
    if sys.stderr.isatty() and not (_LOG.isEnabledFor(logging.INFO) and _LOG.hasHandlers()):
        print(message, file=sys.stderr)  # noqa: T201 (for people at a terminal)


def _folders() -> Iterator[Path]:
    """Return where compiled kernels may be kept; the first that can be written has them."""
    for variable in ("MADE_FLOWS_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "made_flows"
            return
    yield Path(__file__).parent / "__pycache__"
    with suppress(RuntimeError):
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "made_flows"


def _compile(program: Program) -> bytes:
    """Optimise a module, and return its machine code."""
    target = machine()
    code: bytes = target.emit_object(_optimised(program, target))
    return code


def _optimised(program: Program, target: Any) -> Any:
    module = llvm.parse_assembly(str(program.module))
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    passes = llvm.create_pass_builder(target, tuning)
    passes.getModulePassManager().run(module, passes)
    return module


def _kept(path: Path) -> bytes | None:
    """Return the machine code of a file, None where there is none that can be used."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, sources, code = content[:32], content[32:64], content[64:]
    if hashlib.sha256(sources + code).digest() != digest:
        with suppress(OSError):
            path.unlink()  # or it would be read, and spoken of, again
        _LOG.warning("A compiled kernel is compiled again, since %s is damaged", path)
        return None
    return code if sources == _SOURCES else None


def _keep(path: Path, code: bytes) -> bool:
    """Write machine code to a file, whole or not at all; tell whether it could be written."""
    data = _SOURCES + code
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}")
        written.write_bytes(hashlib.sha256(data).digest() + data)
        written.replace(path)
    except OSError:
        return False
    return True


def _address(name: str, write: Callable[[Program], None]) -> int:
    """Return where the machine code of a program's function of a name is."""
    target = (llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features())
    suffix = hashlib.sha256(repr((*target[:2], target[2].flatten())).encode()).hexdigest()[:12]
    with _LOCK:
        places = [folder / f"{name}-{suffix}.o" for folder in _folders()]
        code = next((code for place in places if (code := _kept(place)) is not None), None)
        if code is None:
            if _sources() != _SOURCES:
                raise RuntimeError(
                    "Expected the sources of kernels as they were imported; got others, which "
                    "have been changed since. Start Python anew"
                )
            _announce()
            program = Program()
            write(program)
            code = _compile(program)
            any(_keep(place, code) for place in places)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _LOADED.append(engine)
        address: int = engine.get_function_address(name)
    return address


_HEAD, _TILES = Struct("4q"), Struct("3q")
"""What every kernel is told first: two counters and what comes afterwards; rows, lanes, size."""


class Kernel:
    """A function over tiles of rows, compiled at its first call for numbers of a precision.

    Its first arguments are a slot, which says which of the workspaces is its thread's, the
    :class:`~made_flows.inverse.compiled.threads.Tiles`, and the workspaces. A thread for which no
    tiles are left does something else, if it is told what.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self._addresses: dict[Any, int] = {}

    def __call__(
        self,
        rows: int,
        lanes: int,
        size: int,
        threads: int,
        spaces: Written,
        *arguments: Any,
        afterwards: tuple[int, int] = (0, 0),
    ) -> None:
        """Call it for a batch of rows, in so many threads.

        Args:
            rows: number of rows.
            lanes: rows of a tile.
            size: numbers in the workspace of a tile, or of a thread.
            threads: how many.
            spaces: all workspaces.
            arguments: the others: integers, arrays, and named tuples of both.
            afterwards: address of a function that every thread calls at its end, and its argument.
        """
        words = array("q", (0, 0, *afterwards, rows, lanes, size))
        for argument in (spaces, *arguments):
            put(argument, words)
        in_threads(self.address(spaces, *arguments), words.buffer_info()[0], threads)

    def address(self, spaces: Written, *arguments: Any) -> int:
        """Return where its machine code is for arguments such as these."""
        single = spaces.value.dtype == np.float32
        address = self._addresses.get(single)
        if address is None:
            address = self._addresses[single] = self._compiled(single, (spaces, *arguments))
        return address

    def _compiled(self, single: bool, arguments: Any) -> int:
        name = _name(self.function, single)

        def write(program: Program) -> None:
            words, builder = _entry(program, name, [LONG.as_pointer()])
            [first] = words
            slot = fetch(Numbers(builder), builder.ptrtoint(first, LONG), 1)
            given = (builder.load(builder.gep(first, [LONG(i)])) for i in range(2, 1000))
            afterwards, argument = next(given), next(given)
            counter = builder.ptrtoint(builder.gep(first, [LONG(1)]), LONG)
            tiles = Tiles(counter, next(given), next(given), next(given))
            values = (slot, tiles, *_taken(builder, arguments, given))
            builder.call(program.function(self.function, values), leaves(values))
            with builder.if_then(builder.icmp_signed("!=", afterwards, LONG(0))):
                kind = ir.FunctionType(ir.VoidType(), [LONG])
                builder.call(builder.inttoptr(afterwards, kind.as_pointer()), [argument])
            builder.ret_void()

        return _address(name, write)


class Prepared:
    """A call of a kernel that is written down once, for all but what differs from call to call.

    Args:
        kernel: the kernel.
        spaces, arguments: what it takes; those that differ may be any of their kind.
    """

    def __init__(self, kernel: Kernel, spaces: Written, *arguments: Any) -> None:
        self._address = kernel.address(spaces, *arguments)
        self._kept = spaces, arguments  # whose memory is written down
        self._words = array("q", bytes(_HEAD.size + _TILES.size))
        self.places = []
        for argument in (spaces, *arguments):
            self.places.append(len(self._words))
            put(argument, self._words)

    def run(
        self,
        rows: int,
        lanes: int,
        size: int,
        threads: int,
        changes: Iterable[tuple[int, Sequence[int]]],
    ) -> None:
        """Call it as a :class:`Kernel` is called.

        Args:
            rows, lanes, size, threads: those of the kernel.
            changes: what differs, each with the place, in integers, where it begins. ``places``
                has those of the arguments.
        """
        words = self._words[:]
        _TILES.pack_into(words, _HEAD.size, rows, lanes, size)
        for place, numbers in changes:
            words[place : place + len(numbers)] = array("q", numbers)
        in_threads(self._address, words.buffer_info()[0], threads)


def _name(function: Any, single: bool) -> str:
    return f"{function.__module__}.{function.__name__}.{'single' if single else 'double'}"


def _entry(program: Program, name: str, kinds: list[Any]) -> tuple[Any, Any]:
    """Begin the function by which a program is called, and return its arguments."""
    function = ir.Function(program.module, ir.FunctionType(ir.VoidType(), kinds), name)
    return function.args, ir.IRBuilder(function.append_basic_block())


def _taken(builder: Any, sample: Any, words: Iterator[Any]) -> Any:
    """Read arguments, made as a sample is, from what ``words_of`` wrote."""
    if isinstance(sample, Written):
        return _taken(builder, sample.value, words)
    if isinstance(sample, tuple):
        parts = [_taken(builder, part, words) for part in sample]
        return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)
    if isinstance(sample, np.ndarray):
        kinds = {"float32": SINGLE, "float64": DOUBLE, "int64": LONG, "int32": SHORT}
        kind = kinds[sample.dtype.name]
        start = builder.inttoptr(next(words), kind.as_pointer())
        return Array(start, tuple(next(words) for _ in sample.shape))
    return next(words)


@lru_cache(maxsize=256)
def address_of(
    function: Callable[..., None], single: bool, rows: Any = StepRows, *, weights: bool = False
) -> int:
    """Compile a function by itself, and return where its machine code is.

    Args:
        function: takes a workspace, numbers and places in the workspace.
        single: whether the workspace is of single precision.
        rows: the class of the places, a tuple of integers.
        weights: whether the numbers are weights, of the workspace's precision, and not constants.
    """
    number, name = SINGLE if single else DOUBLE, _name(function, single)

    def write(program: Program) -> None:
        kinds = [number.as_pointer(), (number if weights else DOUBLE).as_pointer()]
        (work, numbers, *places), builder = _entry(
            program, name, kinds + [LONG] * len(rows._fields)
        )
        unknown = (ir.Constant(LONG, ir.Undefined),)
        values = Array(work, unknown), Array(numbers, unknown), rows(*places)
        builder.call(program.function(function, values), leaves(values))
        builder.ret_void()

    return _address(name, write)
