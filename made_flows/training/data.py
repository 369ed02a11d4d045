"""Where the rows come from: one view of tensors, arrays, datasets, loaders and iterables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from made_flows._checks import expect, expect_type
from made_flows.training.convert import Extent, as_batch, as_tensor, checksum, dimensions, is_batch
from made_flows.training.copies import hold_out
from made_flows.training.defaults import batch_size_for
from made_flows.training.loaders import split_loader
from made_flows.training.target import Batch, Target, expect_paired

_PIECE = 65_536
"""Rows of a file that are looked at together."""


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process takes, where several train together."""

    rank: int = 0
    processes: int = 1

    def of(self, rows: Any) -> Any:
        """Return its part of rows, which are a slice, a tensor or None."""
        if self.processes == 1 or rows is None:
            return rows
        if isinstance(rows, slice):
            count = rows.stop - rows.start
            ends = (rows.start + (self.rank + i) * count // self.processes for i in (0, 1))
            return slice(*ends)
        return rows.tensor_split(self.processes)[self.rank]


_WHOLE = Share()


class Rows:
    """Rows in memory or mapped from a file, checked once and shuffled by index.

    Those of a file (``numpy.memmap``) stay there: they are checked in pieces, and read and
    converted batch by batch, to the same numbers as if they were in memory.
    """

    def __init__(self, x: Any, context: Any, target: Target, name: str) -> None:
        self.target, self.name, self.places = target, name, None
        self.x, self.context = x, context
        extents = Extent(name), Extent(f"the context of {name}")
        if self._mapped and context is not None:
            expect_paired(x, context, name)
        if self._mapped:
            for start in range(0, len(x), _PIECE):
                piece = self._read(slice(start, start + _PIECE))
                target.check(*piece, name, start)
                target.measure(*piece, *extents)
        else:
            checked = target.check(x, context, name)
            expect(len(x) > 0, name, "to have at least one row", "none")
            target.measure(x, context, *extents)
            self.x, self.context = target.settle(*checked)
        for extent in extents:
            extent.warn_of_steps()

    x: Tensor | np.memmap[Any, Any]
    context: Tensor | np.memmap[Any, Any] | None
    places: Tensor | None  # which rows, where it is not all of them

    def __len__(self) -> int:
        return len(self.x) if self.places is None else len(self.places)

    @property
    def _mapped(self) -> bool:
        return any(isinstance(part, np.memmap) for part in (self.x, self.context))

    def read(self, rows: slice | Tensor) -> Batch:
        """Return some rows and their contexts, floats in a dtype that the model takes."""
        x, context = self._read(rows if self.places is None else self.places[rows])
        return self.target.cast(x, context) if self._mapped else (x, context)

    def _read(self, rows: slice | Tensor) -> Batch:
        return reading(self.x, self.context, self.name)(rows)

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        steps = -(-len(self) // batch_size)
        # Nor a batch of one row, which has no variance: of an odd number in pairs, one is of three.
        return steps if batch_size == 1 else min(steps, max(1, len(self) // 2))

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        share: Share = _WHOLE,
        skip: int = 0,
    ) -> Iterator[Batch]:
        """Cut batches of equal size (to one row), shuffled where there is a generator.

        Args:
            batch_size: rows of a batch, at most.
            generator: shuffles.
            share: which part of every batch.
            skip: how many batches to leave out at the start.
        """
        steps = self.steps(batch_size)
        if generator is None:
            chunks: Iterable[Any] = (
                slice(i * len(self) // steps, (i + 1) * len(self) // steps) for i in range(steps)
            )
        else:
            # Equal sizes rather than a small last batch: a row counts the same whichever batch it
            # falls in, and no batch of one row meets a batch normalisation.
            shuffled = torch.randperm(len(self), generator=generator, device="cpu")
            chunks = shuffled.tensor_split(steps)
        for rows in islice(chunks, skip, None):
            yield self.target.move(*self.read(share.of(rows)))

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators of its own that say which rows come next: none."""
        return []

    def described(self) -> str:
        """Say how many rows there are, and a checksum of all of them."""
        total = 0
        for start in range(0, len(self.x), _PIECE):
            for part in self.target.cast(*self._read(slice(start, start + _PIECE))):
                total = total if part is None else checksum(part, total)
        return f"{len(self)} of {len(self.x)} rows (checksum {total:08x})"

    def split(self, fraction: float, generator: torch.Generator) -> tuple[Rows, Rows]:
        """Split at random in two parts, the second of the given fraction; copies stay together."""
        kept, held_out = hold_out(len(self), self.read, fraction, generator, self.name)
        parts = copy(self), copy(self)  # views, of one memory
        for part, rows in zip(parts, (kept, held_out), strict=True):
            part.places = rows
        return parts


def reading(x: Any, context: Any, name: str) -> Callable[[slice | Tensor], Batch]:
    """Return what gives some rows, and their contexts, of tensors or files."""

    def read(rows: slice | Tensor) -> Batch:
        of_context = None if context is None else _taken(context, rows, name)
        return _taken(x, rows, name), of_context

    return read


def split_rows(
    x: Any, context: Any, fraction: float, generator: torch.Generator, name: str
) -> tuple[Batch, Batch]:
    """Return rows to train on and those held out, with their contexts; copies stay together."""
    read = reading(x, context, name)
    kept, held_out = hold_out(len(x), read, fraction, generator, name)
    return read(kept), read(held_out)


def _taken(source: Any, rows: slice | Tensor, name: str) -> Tensor:
    if isinstance(source, np.memmap):
        return as_tensor(source[rows if isinstance(rows, slice) else rows.numpy()], name)
    return cast(Tensor, source[rows if isinstance(rows, slice) else rows.to(source.device)])


class Stream:
    """Batches read anew in every epoch from an iterable, and checked as they come."""

    def __init__(self, source: Iterable[Any], target: Target, name: str) -> None:
        self.source, self.target, self.name = source, target, name

    def steps(self, batch_size: int) -> int | None:
        """Return the number of batches in an epoch, where the iterable says."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    def read(self) -> Iterator[Batch]:
        """Read the batches once, where they are."""
        empty = True
        for number, batch in enumerate(self.source, 1):
            name = f"batch {number} of {self.name}"
            x, context = self.target.check(*as_batch(batch, name), name)
            if len(x):
                empty = False
                yield x, context
        advice = f"An iterable that can be read only once can be given as list({self.name})"
        expect(not empty, self.name, "to give at least one row in every pass", f"none. {advice}")

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        share: Share = _WHOLE,
        skip: int = 0,
    ) -> Iterator[Batch]:
        """Read the batches once, to the model's device (their sizes are the iterable's).

        A single row that is left over becomes a part of the batch before it: alone, it would have
        no variance for a batch normalisation.
        """
        if isinstance(getattr(self.source, "sampler", None), DistributedSampler):
            share = _WHOLE  # the loader gives each process rows of its own
        for batch in islice(self._joined(), skip, None):
            yield self.target.move(*map(share.of, batch))

    def _joined(self) -> Iterator[Batch]:
        held: Batch | None = None
        for batch in self.read():
            joined = None if held is None else _joined(held, batch)
            if held is not None and joined is None:
                yield held
            held = joined or batch
        if held is not None:
            yield held

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators of a loader's own that say what it gives next."""
        loader: Any = self.source
        batches = getattr(loader, "batch_sampler", None)  # its sampler may be no other's
        drawing = (loader, getattr(loader, "sampler", None), batches,
                   getattr(batches, "sampler", None))  # fmt: skip
        found = (getattr(each, "generator", None) for each in drawing)
        return list(dict.fromkeys(each for each in found if isinstance(each, torch.Generator)))

    def described(self) -> str:
        """Say how many batches there are, where that is known."""
        return f"a stream of {self.steps(0) or 'some'} batches"

    def collect(self) -> Rows:
        """Read the batches once and keep them in memory."""
        xs, contexts = zip(*self.read(), strict=True)
        missing = [i for i, context in enumerate(contexts, 1) if context is None]
        alike = len(missing) in (0, len(contexts))
        first = f"none in batch {min(missing, default=0)}"
        expect(alike, f"all batches of {self.name}", "to have a context, or none", first)
        context = None if missing else torch.cat(contexts)
        return Rows(torch.cat(xs), context, self.target, self.name)

    def split(self, fraction: float, generator: torch.Generator) -> tuple[Source, Source]:
        """Split at random in two: a loader's dataset, else the rows of one pass."""
        parts = None
        if isinstance(self.source, DataLoader):
            parts = split_loader(self.source, fraction, generator)
        if parts is not None:
            kept, held_out = parts
            return Stream(kept, self.target, self.name), Stream(held_out, self.target, self.name)
        warnings.warn(
            f"One pass over {self.name} is kept in memory, to hold out a fraction of its rows for "
            f"validation. Give validation=... as data (or None) to read {self.name} as a stream",
            stacklevel=4,
        )
        return self.collect().split(fraction, generator)


def _joined(one: Batch, other: Batch) -> Batch | None:
    """Put two batches together where one of them, not both, has a single row."""
    (x, context), (more, of_more) = one, other
    if not min(len(x), len(more)) == 1 < max(len(x), len(more)):
        return None
    if context is None or of_more is None:
        return None if context is not of_more else (torch.cat([x, more]), None)
    return torch.cat([x, more]), torch.cat([context, of_more])


Source: TypeAlias = Rows | Stream


def open_data(
    data: Any,
    context: Any,
    target: Target,
    name: str,
    batch_size: int | None,
    generator: torch.Generator | None,
    *,
    once: bool = False,
) -> Source:
    """Look at data of any accepted kind as a source of batches.

    Args:
        data: (N, D) tensor, array or rows; a pair (rows, contexts) as a tuple; a ``Dataset``;
            a ``DataLoader``, list or any other iterable of batches, each x or (x, context).
        context: None or (N, C), for rows only.
        target: what the model takes.
        name: the argument's name, for errors.
        batch_size: rows per batch of a dataset; None for a number that depends on its size.
        generator: shuffles a dataset; None reads it in order.
        once: whether one pass is all that is needed, so that an iterator is not kept.

    Raises:
        TypeError: for anything else.
        ValueError: for a wrong shape, no rows, or (in memory) a value that is not finite.
    """
    wanted = "to be a tensor, an array, rows, a Dataset or an iterable of batches"
    known = isinstance(data, (Tensor, Dataset, Iterable)) or hasattr(data, "__array__")
    expect_type(known, name, wanted, data)
    raw = hasattr(data, "__array__") and not isinstance(data, (Tensor, np.memmap))
    wanted = "to be codes, as model.schema.encode(table)[0] gives (or: model.fit, score_samples)"
    expect_type(not (raw and target.mixed), name, wanted, data)
    other = isinstance(data, (str, bytes, dict, nn.Module))
    expect_type(not other, name, "to hold rows of numbers", data)
    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        data = data.tensors if len(data.tensors) == 2 else data.tensors[0]
    if isinstance(data, tuple) and len(data) == 2 and data[1] is None and dimensions(data[0]) == 2:
        data = data[0]  # rows of a model without a context
    if isinstance(data, tuple) and len(data) == 2 and _is_pair(data):
        _no_context(context, name, "a pair (x, context)")
        return Rows(_as_rows(data[0], name), _as_rows(data[1], f"{name}[1]"), target, name)
    if dimensions(data) is not None or (isinstance(data, Sequence) and not _of_batches(data)):
        context = None if context is None else _as_rows(context, "context")
        return Rows(_as_rows(data, name), context, target, name)
    _no_context(context, name, "an iterable of batches, each of them x or (x, context)")
    if isinstance(data, Dataset):
        shuffle = generator is not None and not isinstance(data, IterableDataset)
        rows = len(data) if isinstance(data, Sized) else None
        size = None if _holds_batches(data) else batch_size or batch_size_for(rows)
        data = DataLoader(data, size, shuffle=shuffle or None, generator=generator)
    if isinstance(data, (list, tuple, Iterator)) and not once:
        # In memory already, or readable only once.
        return Stream(data, target, name).collect()
    return Stream(data, target, name)


def _is_pair(data: tuple[Any, ...]) -> bool:
    """Tell whether two things are rows and their contexts, rather than two batches or rows."""
    x, context = map(dimensions, data)
    return x == 2 and context is not None and context >= 2


def _as_rows(x: Any, name: str) -> Any:
    """Return rows as a tensor, those of a file as they are."""
    if not isinstance(x, np.memmap):
        return as_tensor(x, name)
    expect(x.ndim > 0, name, "to have rows", "a single number")
    as_tensor(x[:1], name)  # whether they are numbers
    return x


def _of_batches(data: Sequence[Any]) -> bool:
    """Tell whether a sequence holds batches rather than rows."""
    return len(data) > 0 and is_batch(data[0])


def _holds_batches(data: Dataset[Any]) -> bool:
    """Tell whether a dataset's items are batches, of one size or not, in place of rows."""
    try:
        first = next(iter(data), None) if isinstance(data, IterableDataset) else data[0]
    except (LookupError, TypeError):  # an empty one, or one of other keys
        return False
    return is_batch(first)


def _no_context(context: Any, name: str, kind: str) -> None:
    expect(context is None, "context", f"to be None when {name} is {kind}", type(context).__name__)
