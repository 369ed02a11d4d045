"""Weights in the order in which kernels read them: one pass over several tensors.

To put all tensors into one and to index that takes three times as long, most of it for memory that
is new in every training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from made_flows._checks import expect
from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.layout import Integers, Written
from made_flows.inverse.compiled.placement import array_of
from made_flows.inverse.compiled.products import SPARE
from made_flows.inverse.compiled.simd import like, long, matrix, plus_product
from made_flows.inverse.compiled.threads import next_tile

_PIECE = 16_384
"""Numbers that a thread takes at once, at most."""

_ALONE = 6
"""Pieces for which another thread is worth its start."""


class Places(NamedTuple):
    """Where every number of an array is found.

    Args:
        places: in its own tensor; -1 stands for a zero.
        pieces: first and last number of a piece, and which tensor it is of, (pieces, 3).
    """

    places: NDArray[np.int32]
    pieces: Integers


def found_in(places: Integers, sizes: Sequence[int]) -> Places:
    """Say where numbers are found whose places are among tensors laid end to end.

    What lies after the last of them stands for a zero.
    """
    most = max(sizes)
    expect(most < 2**31, "a layer", "to have fewer than 2**31 weights, as kernels count them", most)
    starts = np.cumsum([0, *sizes])
    known = places < starts[-1]
    # A zero counts to the tensor before it, so that no piece ends with it.
    last = np.maximum.accumulate(np.where(known, np.arange(len(places)), 0))
    owners = np.searchsorted(starts, np.where(known, places, 0)[last], "right") - 1
    local = np.where(known, places - starts[owners], -1)
    return Places(local.astype(np.int32), _pieces(owners))


def _pieces(owners: Integers) -> Integers:
    firsts = {0, *(np.flatnonzero(np.diff(owners)) + 1), *range(0, len(owners), _PIECE)}
    found = np.array([*sorted(firsts), len(owners)], np.int64)
    return np.stack([found[:-1], found[1:], owners[found[:-1]]], axis=1)


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


def _gather(slot: int, tiles: Any, target: Any, found: Any, tainting: Any, sources: Any) -> None:
    zero, copied = like(target[0], 0.0), len(found.pieces)
    while True:
        job, here, _ = next_tile(tiles, target)
        if here <= 0:
            return
        if job < copied:
            first, last, owner = found.pieces[job, 0], found.pieces[job, 1], found.pieces[job, 2]
            _copy(target, found.places, first, last, matrix(sources[owner], target, 1, 1))
        else:
            piece = job - copied
            source, total = matrix(sources[tainting[piece, 2]], target, 1, 1), zero
            for i in range(tainting[piece, 0], tainting[piece, 1]):
                total = plus_product(total, source[0, i], zero)
            target[len(found.places) + piece] = total


_GATHER = Kernel(_gather)


def gather(tensors: Sequence[Tensor], found: Written, tainting: Written) -> NDArray[Any]:
    """Write an array whose numbers are found among tensors of one type where :class:`Places` say.

    After it stands a zero for every piece of ``tainting``, or NaN where a number is not finite.
    """
    tensors = [tensor.contiguous() for tensor in tensors]
    places, pieces = found.value
    size, jobs = len(places) + len(tainting.value), len(pieces) + len(tainting.value)
    target = array_of(torch.empty(size + SPARE, dtype=tensors[0].dtype, device="cpu"))[:size]
    addresses = np.array([*map(Tensor.data_ptr, tensors)], np.int64)
    threads = min(torch.get_num_threads(), -(-jobs // _ALONE))
    _GATHER(jobs, 1, 0, threads, Written(target), found, tainting, addresses)
    return target
