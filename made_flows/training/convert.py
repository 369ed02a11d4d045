"""Conversion of array-likes to tensors: arrays, nested sequences, rows, batches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows._checks import expect, expect_type


def dimensions(x: Any) -> int | None:
    """Return the number of dimensions of a tensor or of anything that converts to an array."""
    if isinstance(x, Tensor):
        return x.dim()
    return int(np.ndim(x)) if hasattr(x, "__array__") else None


def is_batch(item: Any) -> bool:
    """Tell whether an item is a batch, a matrix or a pair of them, rather than a row."""
    return dimensions(item[0] if isinstance(item, (list, tuple)) and item else item) == 2


def as_batch(batch: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Return a batch, x or (x, context), as a pair of tensors."""
    if isinstance(batch, (list, tuple)) and any(dimensions(part) is not None for part in batch):
        expect(len(batch) <= 2, name, "to be x or (x, context)", f"{len(batch)} parts")
        context = as_tensor(batch[1], f"the context of {name}") if len(batch) == 2 else None
        return as_tensor(batch[0], name), context
    return as_tensor(batch, name), None


def _unmasked(x: Any, name: str) -> Any:
    """Return a masked array with NaN where it is masked: NumPy alone gives what is behind that."""
    if not np.ma.is_masked(x):
        return x.data
    if x.dtype.kind in "biu":
        largest = max(abs(int(x.max())), abs(int(x.min()))) if x.count() else 0
        wanted = "to hold integers of at most 2**53 where some are masked"
        expect(largest <= 2**53, name, wanted, largest)
        x = x.astype(np.float64)
    return x.filled(np.nan) if x.dtype.kind == "f" else x.data  # what is no number is refused


def _columns_together(frame: Any, names: list[Any], name: str) -> Any:
    """Return the columns of a frame of several types as one array.

    NumPy makes objects of integers that may be missing and of truth values beside numbers.

    Raises:
        TypeError: for columns that are no numbers, by name.
    """
    columns = [np.asarray(frame[each]) for each in names]
    strange = [
        f"{each!r} of {getattr(frame[each], 'dtype', column.dtype)}"
        for each, column in zip(names, columns, strict=True)
        if column.dtype.kind not in "biuf"
    ]
    more = f" and {len(strange) - 4} more" if strange[4:] else ""
    got = ", ".join(strange[:4]) + more
    if strange:
        raise TypeError(
            f"Expected every column of {name} to hold numbers; got {got}. fit_table takes columns "
            f"of any kind, and missing values"
        )
    return np.stack(columns, axis=1)


def as_tensor(x: Any, name: str) -> Tensor:
    """Return a tensor of x, without a copy where it can be."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Sequence) and len(x) and all(isinstance(row, Tensor) for row in x):
        shapes = {tuple(row.shape) for row in x}
        expect(len(shapes) == 1, f"the rows of {name}", "to be of one shape", sorted(shapes))
        return torch.stack(list(x))
    try:
        array = _unmasked(x, name) if np.ma.isMaskedArray(x) else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"Expected the rows of {name} to be of one length; {error}") from None
    names = list(getattr(x, "column_names", getattr(x, "columns", ())))  # Arrow's first
    if array.dtype.kind == "O" and array.ndim == 2 and 0 < len(names) == len(set(names)):
        array = _columns_together(x, names, name)
    expect_type(array.dtype.kind in "biuf", name, "to hold numbers", array.dtype)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        largest = int(array.max(initial=0))
        expect(largest < 2**63, name, "to hold integers below 2**63", largest)
        array = array.astype(np.int64)  # torch can hold the other unsigned types, not index them
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def checksum(x: Tensor, start: int = 0) -> int:
    """Return the CRC-32 of a tensor's numbers, continued from another."""
    values = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(values.numpy().data, start) if len(values) else start
