"""Weights in the order in which kernels read them: one pass over several tensors.

To put all tensors into one and to index that takes three times as long, most of it for memory that
is new in every training step.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows._checks import expect
from made_flows.inverse.compiled.compilation import Kernel, Prepared
from made_flows.inverse.compiled.layout import Integers, Written, numbers_of
from made_flows.inverse.compiled.products import SPARE
from made_flows.inverse.compiled.simd import like, long, matrix, plus_product
from made_flows.inverse.compiled.threads import next_tile

_PIECE = 16_384
"""Numbers that a thread takes at once, at most."""

_ROWS = 16
"""Rows that are copied at once: as many numbers as a line of the cache has."""

_ALONE = 6 * _PIECE
"""Numbers for which another thread is worth its start."""


class Places(NamedTuple):
    """Where every number of an array is found.

    Args:
        places: in its own tensor; -1 stands for a zero.
        pieces: first and last number of a piece, which tensor it is of, how many numbers its rows
            have, where it is found and how far apart its columns are, (pieces, 6). They are -1
            apart where only ``places`` say where they are.
    """

    places: NDArray[np.int32]
    pieces: Integers


def found_in(places: Integers, sizes: Sequence[int], blocks: Sequence[tuple[int, int]]) -> Places:
    """Say where numbers are found whose places are among tensors laid end to end.

    What lies after the last of them stands for a zero.

    Args:
        places: among the tensors.
        sizes: of the tensors.
        blocks: where blocks of numbers of one tensor begin, and how many numbers their rows have;
            the last one goes on to the end.
    """
    most = max(sizes)
    expect(most < 2**31, "a layer", "to have fewer than 2**31 weights, as kernels count them", most)
    starts = np.cumsum([0, *sizes])
    known = places < starts[-1]
    local, pieces = np.full(len(places), -1, np.int32), []
    ends = [*(start for start, _ in blocks[1:]), len(places)]
    for (first, width), last in zip(blocks, ends, strict=True):
        here = places[first:last][known[first:last]]
        owner = int(np.searchsorted(starts, here[0], "right")) - 1 if len(here) else 0
        local[first:last][known[first:last]] = here - starts[owner]
        base, pitch, regular = _regular(local[first:last].reshape(-1, width))
        middle = first + regular * width
        step = max(_PIECE // width, 1) * width
        for start, end, apart in ((first, middle, pitch), (middle, last, -1)):
            for at in range(start, end, step):
                row = base + (at - first) // width
                pieces.append((at, min(at + step, end), owner, width, row, apart))
    return Places(local, np.array(pieces, np.int64).reshape(-1, 6))


def _regular(places: NDArray[np.int32]) -> tuple[int, int, int]:
    """Say where the first rows are found: row i, column u at base + i + u * pitch; and how many."""
    base = int(places[0, 0])
    pitch = int(places[0, -1] - base) // max(places.shape[1] - 1, 1)
    rows, columns = np.arange(len(places)), np.arange(places.shape[1])
    wrong = (places != base + rows[:, None] + columns * pitch).any(axis=1)
    count = int(wrong.argmax()) if wrong.any() else len(places)
    return base, pitch, count if min(base, pitch) >= 0 else 0


def pieces_of(sizes: Sequence[int], places: Sequence[int]) -> Integers:
    """Divide tensors of these sizes, of those at some places, into pieces."""
    found = [
        (first, min(first + _PIECE, sizes[place]), place)
        for place in places
        for first in range(0, sizes[place], _PIECE)
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def _copy(target: Any, places: Any, first: int, last: int, source: Any) -> None:
    zero = like(target[0], 0.0)
    for i in range(first, last):
        place = long(places[i])
        known = max(place, 0)
        target[i] = source[0, known] if place >= 0 else zero


def _transpose(target: Any, piece: Any, source: Any) -> None:
    """Copy a piece a few rows at once, whose numbers are neighbours where they are found."""
    first, last, width, base, pitch = piece[0], piece[1], piece[3], piece[4], piece[5]
    rows = (last - first) // width
    for k in range(0, rows, _ROWS):
        end = min(k + _ROWS, rows)
        for u in range(width):
            for row in range(k, end):
                target[first + row * width + u] = source[0, base + u * pitch + row]


def _gather(slot: int, tiles: Any, target: Any, found: Any, tainting: Any, sources: Any) -> None:
    zero, tainted = like(target[0], 0.0), len(tainting)
    while True:
        job, here, _ = next_tile(tiles, target)
        if here <= 0:
            return
        if job < tainted:  # in one stream: what is copied then comes from a cache
            part, total = tainting[job], zero
            numbers = matrix(sources[part[2]], target, 1, 1)
            for i in range(part[0], part[1]):
                total = plus_product(total, numbers[0, i], zero)
            target[len(found.places) + job] = total
        else:
            piece = found.pieces[job - tainted]
            source = matrix(sources[piece[2]], target, 1, 1)
            if piece[5] < 0:
                _copy(target, found.places, piece[0], piece[1], source)
            else:
                _transpose(target, piece, source)


_GATHER = Kernel(_gather)


class Gathering:
    """Writes arrays whose numbers are found among tensors of one type.

    Args:
        places: where they are found.
        tainting: pieces of what is to be finite.

    Attributes:
        count: how many numbers there are.
        size: the same with one for each of those pieces.
        places: where they are found, as kernels take it.
    """

    def __init__(self, places: Places, tainting: Integers) -> None:
        self.count, self._places, self._tainting = len(places.places), places, tainting
        self.places = Written(places)
        self._jobs = len(places.pieces) + len(tainting)
        self.size = self.count + len(tainting)
        numbers = self.count + int((tainting[:, 1] - tainting[:, 0]).sum())
        self._threads = -(-numbers // _ALONE)
        self._calls: dict[torch.dtype, Prepared] = {}

    def write(self, tensors: Sequence[Tensor]) -> Tensor:
        """Write an array: its numbers, and room that may be read.

        After the numbers stands a zero for every piece of what is to be finite, or NaN where a
        number of it is not.
        """
        dtype = tensors[0].dtype
        call = self._calls.get(dtype)
        if call is None:
            none = torch.empty(0, dtype=dtype, device="cpu")
            given: Any = Written(self._tainting), np.empty(0, np.int64)
            call = self._calls[dtype] = Prepared(_GATHER, numbers_of(none), self.places, *given)
        tensors = [tensor.contiguous() for tensor in tensors]
        target = torch.empty(self.size + SPARE, dtype=dtype, device="cpu")
        sources = array("q", [*map(Tensor.data_ptr, tensors)])
        found, _, _, given_sources = call.places
        threads = min(torch.get_num_threads(), self._threads)
        changes = (
            (found, (target.data_ptr(), self.size)),
            (given_sources, sources.buffer_info()),
        )
        call.run(self._jobs, 1, 0, threads, changes)
        return target
