"""Conversion of array-likes to tensors: arrays, nested sequences, rows, batches."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows._checks import described, expect, expect_type, listed


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


def in_double(array: Any, name: str) -> Any:
    """Return an array, what has more than double precision in that; refuse what is lost in it."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 8:
        return array
    with np.errstate(over="ignore"):  # what is infinite is named by row and column
        rounded = array.astype(np.float64)
    if array.size and array.ndim:
        spread, error = np.ptp(array, axis=0), np.abs(array - rounded).max(axis=0)
        lost = np.flatnonzero((spread > 0) & (_DISTINCT * error > spread))
        wanted = "to hold numbers that double precision tells apart"
        got = f"others in column {lost[:1].sum()}. Subtract what its values have in common"
        expect(not len(lost), name, wanted, got)
    return rounded


def as_tensor(x: Any, name: str) -> Tensor:
    """Return a tensor of x, without a copy where it can be.

    Raises:
        TypeError: for what holds no real numbers, or none that can be read.
        ValueError: for rows of different lengths, and integers too large for 64 bits.
    """
    if isinstance(x, Tensor):
        return _readable(x, name)
    if isinstance(x, Sequence) and len(x) and all(isinstance(row, Tensor) for row in x):
        shapes = {tuple(row.shape) for row in x}
        expect(len(shapes) == 1, f"the rows of {name}", "to be of one shape", sorted(shapes))
        return torch.stack([_readable(row, name) for row in x])
    try:
        array = _unmasked(x, name) if np.ma.isMaskedArray(x) else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"Expected the rows of {name} to be of one length; {error}") from None
    names = list(getattr(x, "column_names", getattr(x, "columns", ())))  # Arrow's first
    if array.dtype.kind == "O" and array.ndim == 2 and 0 < len(names) == len(set(names)):
        array = _columns_together(x, names, name)
    if array.dtype.kind not in "biuf":
        got = (
            described(x)
            if isinstance(x, (str, bytes, Mapping))
            else f"values of dtype {array.dtype}"
        )
        raise TypeError(f"Expected {name} to hold numbers; got {got}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        largest = int(array.max(initial=0))
        expect(largest < 2**63, name, "to hold integers below 2**63", largest)
        array = array.astype(np.int64)  # torch can hold the other unsigned types, not index them
    array = in_double(array, name)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _readable(x: Tensor, name: str) -> Tensor:
    """Return a tensor whose numbers torch can compute with."""
    expect_type(not x.is_complex(), name, "to be real", x.dtype)
    expect_type(x.layout == torch.strided, name, "to be dense", x.layout)
    expect_type(not x.is_quantized, name, "to be dequantized", x.dtype)
    expect_type(not x.is_meta, name, "to hold numbers", x.device)
    if x.is_floating_point() and x.itemsize == 1:
        return x.float()
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        x, dtype = x.to(torch.int64), x.dtype
        fits = dtype != torch.uint64 or not bool((x < 0).any())
        expect(fits, name, "to hold integers below 2**63", f"larger ones of {dtype}")
    return x.resolve_neg()


def as_array(x: Tensor, name: str) -> Any:
    """Return a tensor's numbers as an array of NumPy's.

    Raises:
        TypeError: for numbers of a kind that NumPy lacks; in another they are other decimals.
    """
    known = not x.is_floating_point() or (x.itemsize > 1 and x.dtype != torch.bfloat16)
    expect_type(known, name, "of a dtype that NumPy has, such as x.float()", x.dtype)
    return _readable(x.detach(), name).cpu().numpy()


_DISTINCT = 50
"""Steps of a dtype that the values of a column should span, or it is all but constant in it."""


class Extent:
    """The least and the largest values of columns, where they will be rounded.

    Args:
        name: of the rows, which are looked at one after another.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.held = torch.float64

    def add(self, x: Tensor, held: torch.dtype) -> None:
        """Look at some rows, which will be held in a dtype."""
        if not held.is_floating_point or x.dtype == torch.bool or not len(x):
            return
        digits = torch.finfo(x.dtype).eps if x.is_floating_point() else 2.0 ** (-8 * x.itemsize)
        if digits >= torch.finfo(held).eps:
            return
        low, high, self.held = x.amin(dim=0), x.amax(dim=0), held
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def warn_of_steps(self) -> None:
        """Warn of columns that are all but constant when they are rounded."""
        if self.low is None or self.high is None:
            return
        low, high = self.low.double(), self.high.double()
        step = torch.finfo(self.held).eps * torch.maximum(low.abs(), high.abs())
        coarse = (self.high > self.low) & (high - low < _DISTINCT * step)
        columns = coarse.flatten().nonzero().flatten().tolist()
        if columns:
            warnings.warn(
                f"Columns of {self.name} hardly vary for how large they are in {self.held}, to "
                f"which they are rounded: {listed(columns)}. Subtract what their values have in "
                f"common",
                stacklevel=5,
            )


def checksum(x: Tensor, start: int = 0) -> int:
    """Return the CRC-32 of a tensor's numbers, continued from another."""
    values = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(values.numpy().data, start) if len(values) else start
