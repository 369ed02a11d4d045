"""Which calls the kernels may take, and their batches as rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from made_flows._checks import LOST_ON_META, expect
from made_flows._torch import as_rows, is_forward_mode, is_untransformed


def context_rows(context: Tensor | None, batch: torch.Size) -> Tensor | None:
    """Return the context as (rows, C), so that row n of the batch has row n modulo rows of it."""
    if context is None:
        return None
    context = context.detach()
    while context.dim() > 1 and context.shape[0] == 1:
        context = context.squeeze(0)
    shape = context.shape[:-1]
    if shape != batch[len(batch) - len(shape) :]:
        shape = batch
    return as_rows(context, shape)


def shaped(values: Tensor | None, density: Tensor | None, batch: torch.Size) -> Any:
    """Return values (N, D) and densities (N,), where there are such, in the shape of a batch."""
    if len(batch) == 1:
        return values, density
    images = None if values is None else values.reshape(*batch, values.shape[-1])
    return images, None if density is None else density.reshape(batch)


def takes(made: Any, context: Tensor | None) -> bool:
    """Tell whether a context is of the network's (or plan's) size and dtype."""
    if context is None or not made.context:
        return context is None and not made.context
    return (context.shape[-1:], context.dtype) == ((made.context,), made.dtype)


def is_plain_call(x: Tensor) -> bool:
    """Tell whether kernels may read values: no mode, compiler or transform looks on."""
    return (
        not is_forward_mode()
        and not torch.is_autocast_enabled("cpu")
        # What is no tensor, or none of the right shape, is for the pass in torch to refuse.
        and is_untransformed(x)
        and x.layout is torch.strided
    )


def batch_of(x: Tensor, context: Tensor | None) -> torch.Size | None:
    """Return the batch shape of values and context, None where torch operations are to do it."""
    if not is_plain_call(x) or x.dim() == 0:
        return None
    batch = x.shape[:-1]
    if context is None:
        return batch
    if not is_plain_call(context):
        return None
    if context.shape[:-1] != batch:
        try:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        except RuntimeError:
            return None
    return batch


def expect_on_cpu(noise: Tensor, context: Tensor | None = None, *, name: str = "noise") -> None:
    """Raise a ValueError for values on another device: a kernel would read from nowhere."""
    for argument, given in ((name, noise), ("context", context)):
        if given is not None and not given.is_cpu:
            lost = f" ({LOST_ON_META})" if given.is_meta and given is noise else ""
            wanted = "on the device of the weights, cpu"
            expect(False, argument, wanted, f"{given.device}{lost}")
