"""What was made of some tensors, kept while they do not change, and never longer.

A tensor is known by identity, version and place. Writes through ``.data`` leave the version as
it is, so that on the CPU a digest of the values is compared too. On other devices, where that
would wait for the device, only what depends on masks is kept.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["TensorCache"]

T = TypeVar("T")


@lru_cache(maxsize=1)
def _compiled_digest() -> Callable[[Any, int], int] | None:
    try:
        from made_flows.inverse.digest import digest
    except ImportError:
        return None
    return digest


def _digest(tensor: Tensor, step: int) -> int:
    """A number that changes when any value (every ``step``-th) does."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return 0
    flat = tensor.detach().reshape(-1)
    compiled = _compiled_digest()
    if compiled is not None and tensor.dtype in (torch.float32, torch.float64):
        return compiled(flat.numpy(), step)
    return hash(flat[::step].double().sum().item())


def _stamp(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


@dataclass
class _Entry(Generic[T]):
    tensors: list[weakref.ref[Tensor]]
    stamps: list[tuple[int, int]]
    digests: dict[int, list[int]]
    value: T


class TensorCache(Generic[T]):
    """Values made of lists of tensors.

    Args:
        digest: whether values of tensors are compared too.
        size: how many values are kept; the one not used for longest goes first.
    """

    def __init__(self, *, digest: bool, size: int = 64) -> None:
        self.digest = digest
        self.size = size
        self._entries: OrderedDict[tuple[Any, ...], _Entry[T]] = OrderedDict()
        # Reentrant: a tensor may die, and its callback run, while this thread holds the lock.
        self._lock = RLock()

    def get(self, key: Any, tensors: Sequence[Tensor], make: Callable[[], T], step: int = 1) -> T:
        """The value of these tensors, made anew if any of them changed since it was made.

        Args:
            key: what else the value depends on.
            tensors: what it is made of.
            make: makes it.
            step: compare every step-th value of large tensors only.
        """
        if any(tensor.is_inference() for tensor in tensors):
            return make()  # such tensors do not count their changes
        place = (key, *map(id, tensors))
        stamps = [_stamp(tensor) for tensor in tensors]
        with self._lock:
            entry = self._entries.get(place)
        if (
            entry is not None
            and entry.stamps == stamps
            and all(ref() is tensor for ref, tensor in zip(entry.tensors, tensors, strict=True))
            and self._digests(tensors, step) == entry.digests.get(step)
        ):
            return entry.value
        # Digests first: a change while the value is made leaves it outdated, not unnoticed.
        digests = {each: self._digests(tensors, each) for each in {1, step, SPARSE}}
        value = make()

        def drop(_: Any) -> None:
            with self._lock:
                self._entries.pop(place, None)

        with self._lock:
            references = [weakref.ref(tensor, drop) for tensor in tensors]
            self._entries[place] = _Entry(references, stamps, digests, value)
            self._entries.move_to_end(place)
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        return value

    def _digests(self, tensors: Sequence[Tensor], step: int) -> list[int]:
        if not self.digest:
            return []
        return [_digest(tensor, step if tensor.numel() > LARGE else 1) for tensor in tensors]


LARGE = 32_768
"""Tensors of more values than this may be compared at every ``SPARSE``-th value."""

SPARSE = 61
"""Step of sparse comparisons, a prime, so that they do not stay in one column of a matrix."""
