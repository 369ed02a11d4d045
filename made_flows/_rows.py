"""Batches of any shape as lists of rows."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

__all__ = ["as_rows"]


@overload
def as_rows(x: Tensor, batch: torch.Size) -> Tensor: ...
@overload
def as_rows(x: None, batch: torch.Size) -> None: ...
@overload
def as_rows(x: Tensor | None, batch: torch.Size) -> Tensor | None: ...
def as_rows(x: Tensor | None, batch: torch.Size) -> Tensor | None:
    """What broadcasts to (*batch, N), such as a context, as (rows, N); None stays None."""
    return None if x is None else x.expand(*batch, -1).reshape(-1, x.shape[-1])
