"""A digest of a tensor's values at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["digest"]


@njit(nogil=True)
def _digest(words: Any, step: int) -> int:
    total = np.uint32(0)
    if step == 1:
        for i in range(len(words)):
            # The place takes part, so that values that change places are noticed as well.
            total += words[i] ^ np.uint32(np.uint32(i) * np.uint32(2654435761))
    else:
        for i in range(0, len(words), step):
            total += words[i] ^ np.uint32(np.uint32(i) * np.uint32(2654435761))
    return int(total)


def digest(values: Any, step: int) -> int:
    """A number that changes whenever one value of a float array does (every step-th of them)."""
    result: int = _digest(values.view(np.uint32), step)
    return result
