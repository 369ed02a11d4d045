"""Draws of rows, and of what rows lack: so many at a time that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

_ROWS = 65_536
"""Rows that are drawn at a time: a million at once take twice as long, and gigabytes."""

_HOLES = 2048
"""Rows, each as often as it is drawn, whose missing values are drawn at a time."""


def bar_of(rows: int, what: str, progress: bool) -> Any:
    """Return a bar over rows, which shows itself once they have taken two seconds."""
    return tqdm(total=rows, desc=what, unit="row", unit_scale=True, delay=2, disable=not progress)


def draw_rows(
    distribution: Callable[[Tensor | None], Any], codes: Tensor | None, count: int, progress: bool
) -> Tensor:
    """Draw rows (count, D); for codes of contexts (N, C), (N * count, D), those of one together.

    Args:
        distribution: gives what to draw from, under codes.
        codes: of the contexts, if there are some.
        count: how many rows; under contexts, how many for each of them.
        progress: whether to show a bar where it takes long.
    """
    groups = [None] if codes is None else codes.split(_ROWS)
    found = []
    with bar_of(count * (1 if codes is None else len(codes)), "sample", progress) as bar:
        for group in groups:
            size, drawn = 1 if group is None else len(group), []
            of_group = distribution(group)
            step = max(_ROWS // max(size, 1), 1)
            for first in range(0, count, step):
                some = min(step, count - first)
                drawn.append(of_group.sample((some,)))
                bar.update(some * size)
            rows = torch.cat(drawn)
            found.append(rows if group is None else rows.transpose(0, 1).flatten(0, 1))
    return torch.cat(found)


def draw_missing(
    model: Any, x: Tensor, context: Tensor | None, draws: int, progress: bool
) -> Tensor:
    """Complete rows (N, D), whose missing values are NaN, by draws: (draws, N, D).

    Args:
        model: has a ``conditional`` distribution of rows.
        x: the rows.
        context: codes of their contexts, if there are some.
        draws: how many of each.
        progress: whether to show a bar where it takes long.
    """
    drawn, step = x.expand(draws, -1, -1).clone(), max(_HOLES // draws, 1)
    with bar_of(len(x), "fill", progress) as bar:
        for first in range(0, len(x), step):
            some = slice(first, first + step)
            given = None if context is None else context[some]
            conditional = model.conditional(x[some], context=given)
            drawn[:, some] = conditional.sample((draws,)).double()
            bar.update(len(x[some]))
    return drawn
