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


def as_tensor(x: Any, name: str) -> Tensor:
    """Return a tensor of x, without a copy where it can be."""
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
