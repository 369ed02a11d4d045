"""Whether what was read off a foreign network is still the same."""

from __future__ import annotations

import torch
from torch import Tensor

from made_flows.nn.validation import NotUnderstoodError, Watch, expect_own

__all__ = ["Kept", "NotUnderstoodError", "Watch", "expect_own"]


class Kept:
    """Tensors that are made anew in every call, but given out as the same objects if equal.

    The sequential inverse knows a network by the identity of its tensors, so that what is made of
    a host's tensors, a part of a weight or a scale, may not be another object in every call.
    Values are compared, rather than versions of what they are made of: those do not count every
    change (running statistics of batch normalisation, writes through ``.data``).
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, ...] = ()

    def same(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """What was given out before, if it equals what is given now."""
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, fresh)):
            return fresh
        if len(fresh) != len(self._kept) or not all(map(_equal, self._kept, fresh)):
            self._kept = fresh
        return self._kept


def _equal(one: Tensor, other: Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.device == other.device
    return same_kind and torch.equal(one, other)
