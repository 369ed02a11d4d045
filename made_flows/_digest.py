"""A digest of tensors' values at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

__all__ = ["digest"]


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer to 32-bit words."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.uint32)(address), codegen


@njit(nogil=True)
def digest(addresses: Any, words: Any, steps: Any) -> int:
    """A number that changes when one of the words at some addresses does.

    Args:
        addresses: of the first word of each tensor.
        words: how many words each has.
        steps: look at every how-many-th word.
    """
    total = np.uint64(0)
    for t in range(len(addresses)):
        values = carray(_pointer(addresses[t]), words[t])
        part = np.uint32(0)
        if steps[t] == 1:
            for i in range(words[t]):
                # The place takes part, so that values that change places are noticed as well.
                part += values[i] ^ (np.uint32(i) * np.uint32(2654435761))
        else:
            for i in range(0, words[t], steps[t]):
                part += values[i] ^ (np.uint32(i) * np.uint32(2654435761))
        total = total * np.uint64(6364136223846793005) + np.uint64(part)
    return total  # type: ignore[no-any-return]
