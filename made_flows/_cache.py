"""What was made of some tensors, kept while they do not change, and never longer.

A tensor is known by identity, version and place. Writes through ``.data`` leave the version as
it is, so that a digest of sampled values can be compared too.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TensorCache"]

T = TypeVar("T")

WHOLE = 32_768
"""Words up to which all of a tensor is compared. ``gradcheck``, for one, changes weights singly and
through ``.data``."""

WATCHED = 256
"""Words of a larger tensor that are compared. Reading all of a large network takes as long as
inverting it for a row. Changes through ``.data`` of only a few weights of a large tensor can go
unnoticed, those in any other way cannot."""


@lru_cache(maxsize=1)
def _compiled_digest() -> Callable[[Any, Any, Any], int]:
    # Only what was packed for the compiled sweeps is compared, so that Numba is there.
    from made_flows._digest import digest

    return digest  # type: ignore[no-any-return]


@dataclass
class _Watch:
    """Where the values of some tensors lie: 32-bit words, as many, and how far apart to look.

    Tensors must be alive, and at these places, when a digest is taken.
    """

    addresses: NDArray[np.int64]
    words: NDArray[np.int64]
    steps: NDArray[np.int64]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> _Watch | None:
        """A watch on tensors, None where one of them is not laid out in one piece."""
        if not all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors):
            return None
        words = np.array([tensor.numel() * tensor.element_size() // 4 for tensor in tensors])
        return _Watch(
            np.array([tensor.data_ptr() for tensor in tensors]),
            words,
            # Odd steps, so that samples do not stay in a few columns of a matrix.
            np.where(words <= WHOLE, 1, words // WATCHED | 1),
        )

    def digest(self) -> int:
        """A number that changes with the words looked at."""
        return _compiled_digest()(self.addresses, self.words, self.steps)


@dataclass
class _Entry(Generic[T]):
    tensors: list[weakref.ref[Tensor]]
    stamps: list[tuple[int, int]]
    watch: _Watch | None
    digest: int
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

    def get(self, key: Any, tensors: Sequence[Tensor], make: Callable[[], T]) -> T:
        """The value of these tensors, made anew if any of them changed since it was made.

        Args:
            key: what else the value depends on.
            tensors: what it is made of.
            make: makes it.
        """
        try:
            stamps = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
        except RuntimeError:  # tensors made in inference mode do not count their changes
            return make()
        place = (key, *map(id, tensors))
        # An entry goes when one of its tensors does, so that these are the very tensors.
        entry = self._entries.get(place)
        if (
            entry is not None
            and entry.stamps == stamps
            and (entry.watch is None or entry.watch.digest() == entry.digest)
        ):
            return entry.value
        watch, digest = None, 0
        if self.digest:
            watch = _Watch.of(tensors)
            if watch is None:
                return make()
            # Before the value: a change meanwhile leaves it outdated, not unnoticed.
            digest = watch.digest()
        value = make()

        def drop(_: Any) -> None:
            with self._lock:
                self._entries.pop(place, None)

        with self._lock:
            references = [weakref.ref(tensor, drop) for tensor in tensors]
            self._entries[place] = _Entry(references, stamps, watch, digest, value)
            self._entries.move_to_end(place)
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        return value
