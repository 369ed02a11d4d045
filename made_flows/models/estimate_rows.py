"""What rows to estimate a density from have to be: finite, different, of some kind."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from made_flows._checks import check_finite, expect, listed
from made_flows.distributions.missing import advised
from made_flows.training.convert import Extent, as_tensor
from made_flows.training.moments import (
    FAR,
    near_dependence,
    robust_moments,
    warn_of_digits,
    warn_of_outliers,
)

_SAID = (
    "standard deviations out",
    "nearly linear in one another",
    "hardly vary",
    "are constant",
)
"""Words of warnings of rows."""


class EstimateWarning(UserWarning):
    """Rows whose density is not what it seems: columns of integers or of few values."""


class Names(NamedTuple):
    """What rows and contexts are called in messages."""

    x: str = "x"
    context: str = "context"


NAMES = Names()


def checked_rows(x: Any, context: Any, names: Names) -> tuple[Tensor, Tensor | None]:
    """Return rows and contexts as finite tensors."""
    given: list[Tensor] = []
    for value, name in zip((x, context), names, strict=True):
        if value is None and name == names.context:
            continue
        rows = as_tensor(value, name).detach().cpu()
        columns = "features" if name == names.x else "C"
        fits = rows.dim() == 2 and rows.shape[1] > 0
        one = f". One column is {name}.reshape(-1, 1), of a Series {name}.to_frame()"
        got = f"{tuple(rows.shape)}{one if rows.dim() == 1 else ''}"
        expect(fits, name, f"of shape (N, {columns})", got)
        if rows.is_floating_point():
            try:
                check_finite(rows, name)
            except ValueError as error:
                if name == names.context:
                    raise
                raise ValueError(f"{advised(error, rows)}; fit_table takes holes, too") from None
        extent = Extent(name)
        extent.add(rows, torch.float64)
        extent.warn_of_steps()
        given.append(rows)
    count = len(given[0])
    expect(count >= 10, names.x, "to have at least ten rows", count)
    if len(given) == 2 and len(given[1]) != count:
        raise ValueError(
            f"Expected {names.context} to have {count} rows, as {names.x} has; got {len(given[1])}"
        )
    return given[0], given[1] if len(given) == 2 else None


def kind_of(x: Tensor) -> Literal["binary", "categories", "real"]:
    """Return what the values are."""
    if x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all()):
        return "binary"
    if not x.is_floating_point() and int(x.min()) >= 0 and int(x.max()) < 256:
        return "categories"
    return "real"


def check_columns(x: Tensor, name: str = "x") -> None:
    """Refuse columns that have no density, and warn of those whose density diverges."""
    location, scale = robust_moments(x)
    constant = (scale == 0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"Expected the columns of {name} to vary; got constant ones: {listed(constant)}. Leave "
            f"them out: their density is infinite"
        )
    z = (x.double() - location) / scale
    warn_of_outliers(z, name)
    warn_of_digits(x, location, scale, torch.get_default_dtype(), name)
    found = near_dependence(z, name)
    same = _repeated(z).nonzero().tolist()
    if same:
        first, second = same[0]
        raise ValueError(
            f"Expected columns of {name} that do not repeat one another; got column {second}, "
            f"which is column {first} in other units ({len(same)} such pairs). Leave one of each "
            f"out: their joint density is infinite"
        )
    if found is not None:
        warnings.warn(found.message, EstimateWarning, stacklevel=3)
    whole = (x == x.floor()).all(dim=0)
    integers = whole.nonzero().flatten().tolist()
    if integers:
        warnings.warn(
            f"Columns of {name} hold integers only: {listed(integers)}. Densities diverge at "
            f"values that repeat, so that likelihoods mean little. Spread them first: "
            f"Flow([Dequantize({x.shape[1]}, {integers})], base=model)",
            EstimateWarning,
            stacklevel=3,
        )
    counts = [len(column.unique()) for column in x.T]
    few = [i for i, count in enumerate(counts) if count < len(x) / 10 and i not in integers]
    if few:
        warnings.warn(
            f"Columns of {name} hold few values: {listed(few)} ({counts[few[0]]} in column "
            f"{few[0]}). Densities diverge at values that repeat, so that likelihoods mean little",
            EstimateWarning,
            stacklevel=3,
        )


def _repeated(z: Tensor) -> Tensor:
    """Tell which columns of standardised rows (N, D) are others in other units: (D, D), upper."""
    found = _in_line(z, torch.ones_like(z)) == 1
    if bool(found.any()):
        # A row far out in two columns is all that is seen of them; what do the others say?
        found &= _in_line(z, (z.abs() <= FAR).to(z)) != 0
    return found.triu(1)


def _in_line(z: Tensor, counted: Tensor) -> Tensor:
    """Tell which columns (N, D) are linear in one another, by the values that count in both.

    Returns:
        (D, D): 1 where they are, 0 where not, NaN where one of them is constant.
    """
    count = counted.T @ counted
    z = z - (z * counted).sum(dim=0) / counted.sum(dim=0)
    z = z * counted
    sums = z.T @ counted  # of the one column, where the other counts
    squares = z.square().T @ counted - sums.square() / count
    products = z.T @ z - sums * sums.T / count
    size = (squares * squares.T).sqrt()
    return torch.where(size > 0, (products.abs() > (1 - 1e-12) * size).to(z), torch.nan)


def check_parts(parts: Sequence[Tensor], name: str) -> None:
    """Refuse columns that are constant in some part of the rows on which candidates are trained."""
    for part in parts:
        constant = (robust_moments(part)[1] == 0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"Expected the columns of {name} to vary in every part of the rows that candidates "
                f"are trained on; got some of one value but for few rows: {listed(constant)}. "
                f"Leave them out: their density is all but infinite"
            )


def as_floats(x: Tensor) -> Tensor:
    """Return numbers as they are standardised: integers to the last digit, as far as can be."""
    if x.dtype in (torch.bool, torch.uint8) or x.itemsize == 2:
        return x.to(torch.get_default_dtype())
    return x if x.is_floating_point() else x.double()


@contextmanager
def without_warnings_of_rows() -> Iterator[None]:
    """Leave out the warnings that were given of all rows: each fold of a candidate repeats them."""
    with warnings.catch_warnings():
        for said in _SAID:
            warnings.filterwarnings("ignore", message=f".*{said}")
        yield


def thinned(rows: Tensor, most: int) -> Tensor:
    """Return at most so many of some rows, from the first to the last: files are often sorted.

    Example:
        >>> thinned(torch.arange(10), 4).tolist()
        [0, 2, 5, 7]
    """
    if len(rows) <= most:
        return rows
    return rows[torch.arange(most, device=rows.device) * len(rows) // most]
