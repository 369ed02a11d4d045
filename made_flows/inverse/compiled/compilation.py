"""Compilation: kernels that Numba compiles when they are first needed, and keeps on disk.

A file of the cache that was cut off, or whose bits have changed, must not break every sample of
a user's, nor run as machine code. Every file therefore carries a digest of itself; one that does
not agree with it is compiled again, and said so once.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba import njit, types
from numba.core.caching import IndexDataCacheFile
from numba.core.ccallback import CFunc

from made_flows.inverse.compiled.layout import StepRows
from made_flows.univariate import step_kernel

_LOG = logging.getLogger("made_flows")
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_OPTIONS["_nrt"] = False  # nothing is allocated, and no reference counted


@lru_cache(maxsize=1)
def _sources() -> str:
    """Hash all that kernels are made of: Numba itself looks at one file only."""
    digest = hashlib.sha256(numba.__version__.encode())
    # A constant of kernels' stands outside of their folder.
    for path in (*sorted(Path(__file__).parent.rglob("*.py")), Path(step_kernel.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _announce() -> None:
    """Say, once, that what follows takes seconds: nobody should have to wait and wonder."""
    message = "made_flows: compiling kernels, once: a few seconds"
    _LOG.info(message)
    if sys.stderr.isatty() and not (_LOG.isEnabledFor(logging.INFO) and _LOG.hasHandlers()):
        print(message, file=sys.stderr)  # noqa: T201 (for people at a terminal)


class _CheckedFiles(IndexDataCacheFile):  # type: ignore[misc]
    """The files of Numba's cache of a function, each with a digest in front."""

    def load(self, key: Any) -> Any:
        found = super().load(key)
        if found is None:
            _announce()
        return found

    def _load_index(self) -> dict[Any, Any]:
        try:
            stamp, overloads = self._read(self._index_path)
        except FileNotFoundError:
            return {}
        except Exception as error:
            self._drop(self._index_path, error)
            return {}
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, Any]) -> None:
        self._write(self._index_path, (self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)
        try:
            return self._read(path)
        except FileNotFoundError:
            return None
        except Exception as error:
            self._drop(path, error)
            return None

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _read(self, path: str) -> Any:
        content = Path(path).read_bytes()
        digest, data = content[:32], content[32:]
        if hashlib.sha256(data).digest() != digest:
            raise pickle.UnpicklingError("its contents are not what was written")
        return pickle.loads(data)

    def _write(self, path: str, value: Any) -> None:
        data = self._dump(value)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(data).digest() + data)

    def _drop(self, path: str, error: Exception) -> None:
        with suppress(OSError):
            Path(path).unlink()  # or it would be read, and spoken of, again
        _LOG.warning("A compiled kernel is compiled again, since %s is damaged: %s", path, error)


def _keep_on_disk(compiled: Any) -> None:
    """Let a function that Numba compiles be kept in files that are checked."""
    cache = compiled._cache
    files = cache._cache_file
    base = files._index_name.removesuffix(".nbi")
    cache._cache_file = _CheckedFiles(cache.cache_path, base, _sources())


class Kernel:
    """A function compiled at its first call, and kept on disk where a folder can be written."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.call = self._with_cache()

    def _with_cache(self) -> Callable[..., None]:
        try:
            compiled: Any = njit(cache=True, **_OPTIONS)(self.function)
            _keep_on_disk(compiled)
        except (RuntimeError, OSError, AttributeError):
            return self._without_cache()
        return compiled  # type: ignore[no-any-return]

    def _without_cache(self) -> Callable[..., None]:
        _announce()
        compiled: Callable[..., None] = njit(**_OPTIONS)(self.function)
        return compiled

    def __call__(self, *arguments: Any) -> None:
        try:
            self.call(*arguments)
        except OSError:  # the cache could not be written after all
            self.call = self._without_cache()
            self.call(*arguments)


_COMPILED: list[Any] = []
"""Compiled functions: their machine code lives as long as these objects."""


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
    number = types.float32 if single else types.float64
    places = types.NamedUniTuple(types.int64, len(rows._fields), rows)
    numbers = types.CPointer(number if weights else types.float64)
    signature = types.void(types.CPointer(number), numbers, places)
    definition = (signature.args, signature.return_type)
    compiled: Any = CFunc(function, definition, {}, {"error_model": "numpy"})
    try:
        compiled.enable_caching()
        _keep_on_disk(compiled)
        compiled.compile()
    except (RuntimeError, OSError, AttributeError):
        compiled = CFunc(function, definition, {}, {"error_model": "numpy"})
        compiled.compile()
    _COMPILED.append(compiled)
    address: int = compiled.address
    return address
