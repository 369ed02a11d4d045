"""Holding out some of the items that a data loader reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from made_flows._checks import expect

_KEPT = (
    "batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
    "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers",
)  # fmt: skip
"""What a loader over a part of the items has of the whole one's."""


def split_loader(
    loader: DataLoader[Any], fraction: float, generator: torch.Generator
) -> tuple[DataLoader[Any], DataLoader[Any]] | None:
    """Split a loader's items at random in two loaders; None for one that is not plain.

    Raises:
        ValueError: for a sampler that reads an item several times: it would be on both sides.
    """
    wanted = (
        "to be rows of their own (or None) for a loader that may read a row several times, since "
        "a fraction would validate on rows that were trained on"
    )
    got = f"the fraction {fraction:g} and a {type(loader.sampler).__name__}"
    expect(not _repeats(loader.sampler), "validation", wanted, got)
    if not _is_plain(loader):
        return None
    kept, held_out = split_indices(len(loader.dataset), fraction, generator)  # type: ignore[arg-type]
    shuffled = isinstance(loader.sampler, RandomSampler)
    return _over_items(loader, kept, shuffled, False), _over_items(loader, held_out, False, True)


def split_indices(
    rows: int, fraction: float, generator: torch.Generator, copies: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw places of the rows to train on, and of those held out.

    Rows for which ``copies`` (N,) has the same number stay together.
    """
    held_out = max(1, round(fraction * rows))
    expect(held_out < rows, "validation", "to leave rows to train on", f"{fraction} of {rows} rows")
    if copies is None:
        order = torch.randperm(rows, generator=generator, device="cpu")
        return order[held_out:], order[:held_out]
    different, which, counts = copies.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(different), generator=generator, device="cpu")
    ends = counts[order].cumsum(0)
    many = min(int((ends < held_out).sum()) + 1, len(different) - 1)
    left_out = torch.isin(which, order[:many])
    return (~left_out).nonzero().flatten(), left_out.nonzero().flatten()


def _repeats(sampler: Any) -> bool:
    """Tell whether a sampler may give an item several times in an epoch."""
    if isinstance(sampler, WeightedRandomSampler):
        return bool(sampler.replacement)
    if isinstance(sampler, RandomSampler):
        return bool(sampler.replacement) or sampler.num_samples > len(sampler.data_source)
    return False


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader reads every item of a sized dataset once: some can be held out."""
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    return whole and type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler


def _over_items(
    loader: DataLoader[Any], rows: Tensor, shuffle: bool, held_out: bool
) -> DataLoader[Any]:
    """Return the same loader over some of its items."""
    kept: dict[str, Any] = {name: getattr(loader, name) for name in _KEPT}
    last = loader.drop_last and not held_out
    items = Subset(loader.dataset, sorted(rows.tolist()))
    return DataLoader(items, shuffle=shuffle, drop_last=last, **kept)
