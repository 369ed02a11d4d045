"""A mode in which nothing may be read back from tensors, as on a device that is not waited for."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READ_BACK = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "item")
"""Operations after which a host has to wait for a device."""


class NothingRead(TorchDispatchMode):
    """Fails where a value is read, or made of numbers on the host."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        indices = arguments[1] if name.startswith("index") and len(arguments) > 1 else ()
        by_mask = isinstance(indices, (list, tuple)) and any(
            isinstance(index, Tensor) and not index.dtype.is_signed for index in indices
        )
        if name in READ_BACK or name == "lift_fresh" or by_mask:
            raise AssertionError(f"{name} waits for the device")
        return function(*arguments, **(keywords or {}))
