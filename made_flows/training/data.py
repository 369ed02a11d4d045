"""Where the rows come from: one view of tensors, arrays, datasets, loaders and iterables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from made_flows._checks import check_finite, check_values, expect, expect_type
from made_flows.distributions.missing import ADVICE
from made_flows.training.convert import as_batch, as_tensor, dimensions, is_batches
from made_flows.training.defaults import batch_size_for
from made_flows.training.loaders import split_indices, split_loader

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""The rows of one step and their contexts."""


@dataclass(frozen=True)
class Target:
    """What a model takes: sizes and a check of values (where it has them), device, dtype.

    ``missing`` says whether NaN is a missing value to it (None for a model that does not know),
    and ``filler`` what it puts there. A model that standardises its data takes them in double
    precision (``takes_double``): a column of 1e9 +- 1 has nothing left in single precision. So
    does one whose head has values of that dtype.
    """

    features: int | None
    context: int | None
    device: torch.device
    dtype: torch.dtype
    check_values: Callable[[Tensor], None] | None = None
    missing: bool | None = None
    filler: float = 0.0
    takes_double: bool = False
    discrete: bool = False

    @classmethod
    def of(cls, model: nn.Module, takes_double: bool = False) -> Target:
        """Read the target off a model: its ``features`` and ``context``, its first float tensor."""
        device, dtype = torch.device("cpu"), torch.get_default_dtype()
        for tensor in chain(model.parameters(), model.buffers()):
            device = tensor.device
            if tensor.is_floating_point():
                dtype = tensor.dtype
                break
        sizes = (getattr(model, name, None) for name in ("features", "context"))
        features, context = (size if isinstance(size, int) else None for size in sizes)
        head = getattr(model, "head", None)
        check_values, filler = getattr(head, "check_values", None), getattr(head, "filler", 0.0)
        missing = getattr(model, "takes_missing", None)
        takes_double = takes_double or getattr(head, "value_dtype", None) is torch.float64
        takes_double = takes_double and device.type != "mps"  # which has no double precision
        return cls(
            features,
            context,
            device,
            dtype,
            check_values,
            missing,
            filler,
            takes_double,
            discrete=bool(getattr(getattr(head, "support", None), "is_discrete", False)),
        )

    def check(self, x: Tensor, context: Tensor | None, name: str) -> Batch:
        """Check the shapes and values of some rows; floats come back in the model's dtype."""
        x = self._check(x, name, "features", self.features)
        if self.check_values is not None:
            # A missing value is to the check what it is to the model.
            missing = self._may_miss(x)
            known = x.nan_to_num(self.filler, torch.inf, -torch.inf) if missing else x
            try:
                self.check_values(known.to(self.device))
            except ValueError as error:  # the model would name a row of a shuffled batch
                raise ValueError(f"{error} of {name}") from None
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
        x = x.detach().to(self._dtype_of(x)) if x.is_floating_point() else x.detach()
        if kind == "features" and self._may_miss(x):
            check_values(x, ~torch.isinf(x), name, "to be finite, or NaN where it is missing")
            return x
        try:
            check_finite(x, name)
        except ValueError as error:
            if kind != "features" or self.missing is None or not bool(torch.isnan(x).any()):
                raise
            raise ValueError(f"{error}. {ADVICE}") from None
        return x

    def _may_miss(self, x: Tensor) -> bool:
        return bool(self.missing) and x.is_floating_point()

    def move(self, x: Tensor) -> Tensor:
        """Return the rows on the model's device, in a dtype that it takes."""
        return x.to(self.device, self._dtype_of(x), non_blocking=True)

    def _dtype_of(self, x: Tensor) -> torch.dtype:
        exact = x.dtype in (torch.float64, torch.int64, torch.int32)
        return torch.float64 if exact and self.takes_double else self.dtype


class Rows:
    """Rows in memory: checked once, shuffled by index."""

    def __init__(self, x: Tensor, context: Tensor | None, target: Target, name: str) -> None:
        self.x, self.context = target.check(x, context, name)
        self.target, self.name = target, name
        expect(len(self.x) > 0, name, "to have at least one row", "none")

    def __len__(self) -> int:
        return len(self.x)

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        steps = -(-len(self) // batch_size)
        # Nor a batch of one row, which has no variance: of an odd number in pairs, one is of three.
        return steps if batch_size == 1 else min(steps, max(1, len(self) // 2))

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Cut batches of equal size (to one row), shuffled where there is a generator."""
        steps = self.steps(batch_size)
        if generator is None:
            chunks: Iterable[Any] = (
                slice(i * len(self) // steps, (i + 1) * len(self) // steps) for i in range(steps)
            )
        else:
            # Equal sizes rather than a small last batch: a row counts the same whichever batch it
            # falls in, and no batch of one row meets a batch normalisation.
            shuffled = torch.randperm(len(self), generator=generator, device="cpu")
            chunks = shuffled.to(self.x.device).tensor_split(steps)
        for rows in chunks:
            context = None if self.context is None else self.target.move(self.context[rows])
            yield self.target.move(self.x[rows]), context

    def split(self, fraction: float, generator: torch.Generator) -> tuple[Rows, Rows]:
        """Split at random in two parts, the second of the given fraction."""
        kept, held_out = split_indices(len(self), fraction, generator)
        return self._take(kept), self._take(held_out)

    def _take(self, rows: Tensor) -> Rows:
        part = object.__new__(Rows)  # the values have been checked
        rows = rows.to(self.x.device)
        part.x, part.target, part.name = self.x[rows], self.target, self.name
        part.context = None if self.context is None else self.context[rows]
        return part


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
        if empty:
            raise ValueError(
                f"Expected {self.name} to give at least one row in every pass; got none. An "
                f"iterable that can be read only once can be given as list({self.name})"
            )

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Read the batches once, to the model's device (their sizes are the iterable's)."""
        for x, context in self.read():
            yield self.target.move(x), None if context is None else self.target.move(context)

    def collect(self) -> Rows:
        """Read the batches once and keep them in memory."""
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


Source: TypeAlias = Rows | Stream


def open_data(
    data: Any,
    context: Any,
    target: Target,
    name: str,
    batch_size: int | None,
    generator: torch.Generator | None,
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
    if isinstance(data, tuple) and len(data) == 2 and all(dimensions(part) == 2 for part in data):
        _no_context(context, name, "a pair (x, context)")
        return Rows(as_tensor(data[0], name), as_tensor(data[1], f"{name}[1]"), target, name)
    if dimensions(data) is not None or (isinstance(data, Sequence) and not is_batches(data)):
        context = None if context is None else as_tensor(context, "context")
        return Rows(as_tensor(data, name), context, target, name)
    _no_context(context, name, "an iterable of batches, each of them x or (x, context)")
    if isinstance(data, Dataset):
        shuffle = generator is not None and not isinstance(data, IterableDataset)
        rows = len(data) if isinstance(data, Sized) else None
        size = None if _holds_batches(data) else batch_size or batch_size_for(rows)
        data = DataLoader(data, size, shuffle=shuffle or None, generator=generator)
    if isinstance(data, (list, tuple, Iterator)):
        # In memory already, or readable only once.
        return Stream(data, target, name).collect()
    return Stream(data, target, name)


def split(source: Source, fraction: float, generator: torch.Generator) -> tuple[Source, Source]:
    """Hold out a random fraction of the rows."""
    return source.split(fraction, generator)


def _holds_batches(data: Dataset[Any]) -> bool:
    """Tell whether a dataset's items are batches, of one size or not, in place of rows."""
    try:
        first = next(iter(data), None) if isinstance(data, IterableDataset) else data[0]
    except (LookupError, TypeError):  # an empty one, or one of other keys
        return False
    return dimensions(first[0] if isinstance(first, (list, tuple)) and first else first) == 2


def _no_context(context: Any, name: str, kind: str) -> None:
    expect(context is None, "context", f"to be None when {name} is {kind}", type(context).__name__)
