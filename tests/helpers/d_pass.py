"""The D-pass reference: what every other library does, and what ours must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from made_flows.inverse import Conditioner, Step


def d_pass_inverse(
    conditioner: Conditioner,
    step: Step,
    noise: Tensor,
    context: Tensor | None = None,
    known: Tensor | None = None,
    prefix: int = 0,
) -> Tensor:
    """Solve x_r = step(u_r, p_r(x_<r, c)) rank by rank, with one full pass for each.

    Plain autograd runs through all passes, so that its gradients are an oracle too.
    """
    batch = noise.shape[:-2]
    if context is not None:
        batch = torch.broadcast_shapes(batch, context.shape[:-1])
    noise = noise.expand(*batch, *noise.shape[-2:])
    dtype = step.value_dtype(conditioner.dtype)
    # What is not known yet may be anything, as long as the step can encode it.
    x = torch.full((*batch, conditioner.features), 0.5).to(dtype)
    if known is not None:
        x = torch.where(conditioner.ranks < prefix, known, x)
    for rank in range(prefix, int(conditioner.ranks.max()) + 1):
        parameters = conditioner.as_called(step.encode(x, conditioner.dtype), context)
        x = torch.where(conditioner.ranks == rank, step(noise, parameters), x)
    return x
