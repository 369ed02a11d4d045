"""Rows that are copies of one another: what is learnt of one is known of the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from made_flows.training.loaders import split_indices
from made_flows.training.target import Batch

_CHANCE = 0.05
"""Rows that would be equal to one by chance, from which on it need not be a copy."""

_MEASURED = 2**16
"""Different rows by which chances are measured, at most."""

_COLUMNS = 8
"""Columns that tell most rows apart, and by which chances are measured."""

_PIECE = 2**14
"""Rows that are looked at together."""

_HEAVY, _OFTEN = 0.01, 10.0
"""A row of more than this part of all, and so many times the mean row's, is no copied one."""

_MANY = 0.05
"""Part of the rows that are copies, from which on it is said."""


def hold_out(
    rows: int,
    read: Callable[[Tensor], Batch],
    fraction: float,
    generator: torch.Generator,
    name: str,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw places of the rows to train on, and of those held out: of copies, all or none.

    Args:
        rows, read, known: as for :func:`find_copies`.
        fraction: of the rows to hold out, about.
        generator: draws.
        name: of the rows, for a warning where many are copies.
    """
    copies = find_copies(rows, read, known)
    if copies is not None and known is None:
        count = copied_rows(copies)
        if count >= _MANY * rows:
            warnings.warn(
                f"{count} of the {rows} rows of {name} are exact copies of others: copies of a "
                f"row are held out together, or trained on together",
                stacklevel=6,
            )
    return split_indices(rows, fraction, generator, copies)


def find_copies(
    rows: int, read: Callable[[Tensor], Batch], known: Tensor | None = None
) -> Tensor | None:
    r"""Find of which row each one is a copy, so that a split can keep them together.

    Equal rows of few values are draws of their own: new rows may well be equal to them, too. Rows
    are taken for copies where chance would hardly make any other row equal, columns being
    independent:

    .. math:: N\, p(w) \prod_j p(x_j)\, p(c) \le 0.05

    with the shares p, among different rows, of the value of each column with fractions, of all
    whole numbers together (categories, counts), and of the context. No values of a single column
    are copies by that.

    Args:
        rows: how many there are, N.
        read: returns rows of given places, and their contexts.
        known: (N,) integers that are equal for rows known to be copies, if any are.

    Returns:
        (N,) the place of the first copy of every row, its own where there is no other; None where
        that is so of all.

    Example:
        >>> x = torch.arange(60.0).mul(7).sin().reshape(20, 3)
        >>> x[17] = x[3]
        >>> find_copies(20, lambda places: (x[places], None))[15:]
        tensor([15, 16,  3, 18, 19])
        >>> find_copies(20, lambda places: (x[places].round(), None)) is None
        True
    """
    alone = torch.arange(rows, device="cpu")
    own = alone if known is None else first_of_equal(known)
    x, context = read(alone[:: -(-rows // _MEASURED)])
    columns = _by_kind(x)
    if len(columns[0]) or context is not None:
        equal = _first_equal_rows(rows, read)
        copied = torch.zeros(rows, dtype=torch.bool, device="cpu")
        copied[_hardly_by_chance(equal, read, columns)] = True
        own = torch.where(copied[equal], equal, own)
    return None if bool((own == alone).all()) else own


def copied_rows(copies: Tensor | None) -> int:
    """Count the rows that :func:`find_copies` found to be copies of earlier ones."""
    return 0 if copies is None else int((copies != torch.arange(len(copies), device="cpu")).sum())


def first_of_equal(keys: Tensor) -> Tensor:
    """Return the place (N,) at which each of some integers (N,) is found first."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    new = torch.ones(len(keys), dtype=torch.bool, device="cpu")
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.empty_like(order)
    first[order] = order[new][new.cumsum(0) - 1]
    return first


def _by_kind(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of rows (N, D) with fractions (of many, some), and those without."""
    fits = torch.ones_like(x, dtype=torch.bool)
    if x.is_floating_point():
        fits = x.isnan() | (x == x.floor())
    whole = fits.all(dim=0).cpu()
    fractions = (~whole).nonzero().flatten()
    return fractions[:: max(1, len(fractions) // _COLUMNS)], whole.nonzero().flatten()


def _first_equal_rows(rows: int, read: Callable[[Tensor], Batch]) -> Tensor:
    """Return the place (N,) of the first row that is equal to each one, context and all."""
    first = torch.arange(rows, device="cpu")
    shared = first
    for columns in (_COLUMNS, None):  # few tell most rows of numbers from all others
        keys = [_key(*read(some), columns) for some in shared.split(_PIECE)]
        found = first_of_equal(torch.cat(keys))
        if columns is None:
            return first.scatter(0, shared, shared[found])
        shared = shared[found.bincount(minlength=len(found))[found] > 1]
        if not len(shared):
            break
    return first


def _hardly_by_chance(
    equal: Tensor, read: Callable[[Tensor], Batch], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the places of rows with equal ones that chance would hardly have made equal.

    Args:
        equal: (N,) the place of the first row that is equal to each one.
        read: returns rows of given places, and their contexts.
        columns: those with fractions, and those without.
    """
    counts = equal.bincount(minlength=len(equal))
    different = counts.nonzero().flatten()
    heavy = max(_HEAVY * len(equal), _OFTEN * len(equal) / len(different))
    found = ((counts > 1) & (counts <= heavy)).nonzero().flatten()
    if not len(found):
        return found

    def values(places: Tensor) -> Tensor:
        each = [torch.stack(list(_parts(*read(some), *columns))) for some in places.split(_PIECE)]
        return torch.cat(each, dim=1)

    measured = values(different[:: -(-len(different) // _MEASURED)])
    expected = torch.full_like(found, len(equal), dtype=torch.float64)
    for known, value in zip(measured, values(found), strict=True):
        known = known.sort().values
        left = (expected > _CHANCE).nonzero().flatten()
        first, last = (torch.searchsorted(known, value[left], right=side) for side in (False, True))
        expected[left] *= (last - first).clamp(min=1) / len(known)
    return found[expected <= _CHANCE]


def _parts(x: Tensor, context: Tensor | None, fractions: Tensor, whole: Tensor) -> Iterator[Tensor]:
    """Give keys (N,) of what may vary by itself: columns with fractions, the others, contexts."""
    for column in fractions.tolist():
        yield _key(x[:, column : column + 1])
    if len(whole):
        yield _key(x[:, whole.to(x.device)])
    if context is not None:
        yield _key(context)


def _key(x: Tensor, context: Tensor | None = None, columns: int | None = None) -> Tensor:
    """Return integers (N,), equal for equal rows (to chance, for no others)."""
    key = torch.zeros(len(x), dtype=torch.int64, device="cpu")
    for part in (x, context):
        if part is None:
            continue
        # NaN is one value, and so is zero, of either sign.
        part = part.detach().flatten(1)[:, :columns].cpu()
        if part.is_floating_point():
            part = part.double() + 0.0
            part = torch.where(part.isnan(), torch.nan, part).view(torch.int64)
        for column in part.to(torch.int64).T:
            key = (key ^ column) * -7046029254386353131  # odd, without a pattern
            key = key ^ (key >> 32)  # numbers of few digits differ in their first bits alone
    return key
