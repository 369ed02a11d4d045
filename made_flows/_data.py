"""Where the rows come from: one view of tensors, arrays, datasets, loaders and iterables."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from made_flows.checks import check_finite, expect, expect_type

__all__ = ["Batch", "Rows", "Source", "Stream", "Target", "open_data", "split"]

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""The rows of one step and their contexts."""


@dataclass(frozen=True)
class Target:
    """What a model takes: sizes (None where it does not say), device, dtype."""

    features: int | None
    context: int | None
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module) -> Target:
        """Read the target off a model: its ``features`` and ``context``, its first float tensor."""
        device, dtype = torch.device("cpu"), torch.get_default_dtype()
        for tensor in chain(model.parameters(), model.buffers()):
            device = tensor.device
            if tensor.is_floating_point():
                dtype = tensor.dtype
                break
        sizes = (getattr(model, name, None) for name in ("features", "context"))
        features, context = (size if isinstance(size, int) else None for size in sizes)
        return cls(features, context, device, dtype)

    def check(self, x: Tensor, context: Tensor | None, name: str) -> Batch:
        """Check the shapes and values of some rows; floats come back in the model's dtype."""
        x = self._check(x, name, "features", self.features)
        if context is None:
            if self.context:
                raise ValueError(
                    f"Expected {name} to come with a context of shape (N, {self.context}); "
                    f"got no context"
                )
            return x, None
        expect(self.context != 0, name, "without a context, as the model takes none", "a context")
        context = self._check(context, f"the context of {name}", "context", self.context)
        if len(context) != len(x):
            raise ValueError(
                f"Expected the context of {name} to have {len(x)} rows, as {name} has; "
                f"got {len(context)}"
            )
        return x, context

    def _check(self, x: Tensor, name: str, kind: str, size: int | None) -> Tensor:
        expect_type(not x.is_complex(), name, "to be real", x.dtype)
        expect_type(x.layout == torch.strided, name, "to be dense", x.layout)
        shape = f"(N, {kind if size is None else size})"
        if x.dim() != 2 or (size is not None and x.shape[1] != size):
            raise ValueError(f"Expected {name} of shape {shape}; got {tuple(x.shape)}")
        # Floats are cast before they are checked (1e300 is no float32), integers as they are
        # used: all of them at once would take four times the memory of bytes.
        x = x.detach().to(self.dtype) if x.is_floating_point() else x.detach()
        check_finite(x, name)
        return x

    def move(self, x: Tensor) -> Tensor:
        """The rows on the model's device, in its dtype."""
        return x.to(self.device, self.dtype, non_blocking=True)


class Rows:
    """Rows in memory: checked once, shuffled by index."""

    def __init__(self, x: Tensor, context: Tensor | None, target: Target, name: str) -> None:
        self.x, self.context = target.check(x, context, name)
        self.target = target
        expect(len(self.x) > 0, name, "to have at least one row", "none")

    def __len__(self) -> int:
        return len(self.x)

    def steps(self, batch_size: int) -> int:
        """The number of batches in an epoch."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of equal size (to one row), shuffled where there is a generator."""
        steps = self.steps(batch_size)
        if generator is None:
            chunks: Iterable[Any] = (
                slice(i * len(self) // steps, (i + 1) * len(self) // steps) for i in range(steps)
            )
        else:
            # Equal sizes rather than a small last batch: a row counts the same whichever batch it
            # falls in, and no batch of one row meets a batch normalisation.
            shuffled = torch.randperm(len(self), generator=generator).to(self.x.device)
            chunks = shuffled.tensor_split(steps)
        for rows in chunks:
            context = None if self.context is None else self.target.move(self.context[rows])
            yield self.target.move(self.x[rows]), context

    def split(self, fraction: float, generator: torch.Generator) -> tuple[Rows, Rows]:
        """Two random parts, the second of the given fraction."""
        kept, held_out = _split_indices(len(self), fraction, generator)
        return self._take(kept), self._take(held_out)

    def _take(self, rows: Tensor) -> Rows:
        part = object.__new__(Rows)  # the values have been checked
        rows = rows.to(self.x.device)
        part.x, part.target = self.x[rows], self.target
        part.context = None if self.context is None else self.context[rows]
        return part


class Stream:
    """Batches read anew in every epoch from an iterable, and checked as they come."""

    def __init__(self, source: Iterable[Any], target: Target, name: str) -> None:
        self.source, self.target, self.name = source, target, name

    def steps(self, batch_size: int) -> int | None:
        """The number of batches in an epoch, where the iterable says."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    def read(self) -> Iterator[Batch]:
        """One pass over the batches, where they are."""
        empty = True
        for number, batch in enumerate(self.source, 1):
            name = f"batch {number} of {self.name}"
            x, context = self.target.check(*_as_batch(batch, name), name)
            if len(x):
                empty = False
                yield x, context
        if empty:
            raise ValueError(
                f"Expected {self.name} to give at least one row in every pass; got none. An "
                f"iterable that can be read only once can be given as list({self.name})"
            )

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass over the batches, on the model's device (their sizes are the iterable's)."""
        for x, context in self.read():
            yield self.target.move(x), None if context is None else self.target.move(context)

    def collect(self) -> Rows:
        """One pass over the batches, kept in memory."""
        xs, contexts = zip(*self.read(), strict=True)
        missing = [i for i, context in enumerate(contexts, 1) if context is None]
        if missing and len(missing) < len(contexts):
            raise ValueError(
                f"Expected all batches of {self.name} to have a context, or none; "
                f"got none in batch {missing[0]}"
            )
        context = None if missing else torch.cat(contexts)
        return Rows(torch.cat(xs), context, self.target, self.name)

    def split(self, fraction: float, generator: torch.Generator) -> tuple[Source, Source]:
        """Two random parts: of a loader's dataset, else of the rows of one pass."""
        loader = self.source
        if isinstance(loader, DataLoader) and _is_plain(loader):
            kept, held_out = _split_indices(len(loader.dataset), fraction, generator)  # type: ignore[arg-type]
            shuffled = isinstance(loader.sampler, RandomSampler)
            parts = _over(loader, kept, shuffled), _over(loader, held_out, False)
            return tuple(Stream(part, self.target, self.name) for part in parts)  # type: ignore[return-value]
        warnings.warn(
            f"One pass over {self.name} is kept in memory, to hold out a fraction of its rows for "
            f"validation. Give validation=... as data (or None) to read {self.name} as a stream",
            stacklevel=4,
        )
        return self.collect().split(fraction, generator)


Source: TypeAlias = Rows | Stream


def open_data(
    data: Any,
    context: Any,
    target: Target,
    name: str,
    batch_size: int,
    generator: torch.Generator | None,
) -> Source:
    """Look at data of any accepted kind as a source of batches.

    Args:
        data: (N, D) tensor, array or rows; a pair (rows, contexts) as a tuple; a ``Dataset``;
            a ``DataLoader``, list or any other iterable of batches, each x or (x, context).
        context: None or (N, C), for rows only.
        target: what the model takes.
        name: the argument's name, for errors.
        batch_size: rows per batch of a dataset.
        generator: shuffles a dataset; None reads it in order.

    Raises:
        TypeError: for anything else.
        ValueError: for a wrong shape, no rows, or (in memory) a value that is not finite.
    """
    expect_type(
        isinstance(data, (Tensor, Dataset, Iterable)) or hasattr(data, "__array__"),
        name,
        "to be a tensor, an array, rows, a Dataset or an iterable of batches",
        data,
    )
    expect_type(
        not isinstance(data, (str, bytes, dict, nn.Module)), name, "to hold rows of numbers", data
    )
    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        data = data.tensors if len(data.tensors) == 2 else data.tensors[0]
    if isinstance(data, tuple) and len(data) == 2 and all(_dim(part) == 2 for part in data):
        _no_context(context, name, "a pair (x, context)")
        return Rows(_tensor(data[0], name), _tensor(data[1], f"{name}[1]"), target, name)
    if _dim(data) is not None or (isinstance(data, Sequence) and not _is_batches(data)):
        context = None if context is None else _tensor(context, "context")
        return Rows(_tensor(data, name), context, target, name)
    _no_context(context, name, "an iterable of batches, each of them x or (x, context)")
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        shuffle = generator is not None and not isinstance(data, IterableDataset)
        data = DataLoader(data, batch_size, shuffle=shuffle or None, generator=generator)
    if isinstance(data, (list, tuple, Iterator)):
        # In memory already, or readable only once.
        return Stream(data, target, name).collect()
    return Stream(data, target, name)


def split(source: Source, fraction: float, generator: torch.Generator) -> tuple[Source, Source]:
    """Hold out a random fraction of the rows."""
    return source.split(fraction, generator)


def _no_context(context: Any, name: str, kind: str) -> None:
    expect(context is None, "context", f"to be None when {name} is {kind}", type(context).__name__)


def _dim(x: Any) -> int | None:
    """The number of dimensions of a tensor or of anything that converts to an array."""
    if isinstance(x, Tensor):
        return x.dim()
    return int(np.ndim(x)) if hasattr(x, "__array__") else None


def _is_batches(data: Sequence[Any]) -> bool:
    """Whether a sequence holds batches, matrices or pairs of them, rather than rows."""
    first = data[0] if len(data) else None
    return _dim(first[0] if isinstance(first, (list, tuple)) and first else first) == 2


def _as_batch(batch: Any, name: str) -> Batch:
    if isinstance(batch, (list, tuple)) and any(_dim(part) is not None for part in batch):
        expect(len(batch) <= 2, name, "to be x or (x, context)", f"{len(batch)} parts")
        context = _tensor(batch[1], f"the context of {name}") if len(batch) == 2 else None
        return _tensor(batch[0], name), context
    return _tensor(batch, name), None


def _tensor(x: Any, name: str) -> Tensor:
    """A tensor of x, without a copy where it can be."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Sequence) and len(x) and all(isinstance(row, Tensor) for row in x):
        shapes = {tuple(row.shape) for row in x}
        expect(len(shapes) == 1, f"the rows of {name}", "to be of one shape", sorted(shapes))
        return torch.stack(list(x))
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"Expected the rows of {name} to be of one length; {error}") from None
    expect_type(array.dtype.kind in "biuf", name, "to hold numbers", array.dtype)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch can hold the other unsigned types, not index them
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _split_indices(rows: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    held_out = max(1, round(fraction * rows))
    expect(held_out < rows, "validation", "to leave rows to train on", f"{fraction} of {rows} rows")
    order = torch.randperm(rows, generator=generator)
    return order[held_out:], order[:held_out]


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether a loader reads every item of a sized dataset once, so that items can be held out."""
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    return whole and type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler


def _over(loader: DataLoader[Any], rows: Tensor, shuffle: bool) -> DataLoader[Any]:
    """The same loader over some of its items."""
    return DataLoader(
        Subset(loader.dataset, rows.tolist()),
        batch_size=loader.batch_size,
        shuffle=shuffle,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last and shuffle,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
