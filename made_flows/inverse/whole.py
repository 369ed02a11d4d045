"""Whole flows: networks and their maps in a row, in one call without gradients.

What a call costs besides its kernels, more than these for small networks, is paid once and not for
every map: modes, shapes and contexts are looked at once, and values go from one kernel to the next.
It is taken where every map of the row is compiled; elsewhere each goes by itself, with the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from made_flows._torch import as_rows, is_forward_mode, is_untransformed
from made_flows.inverse import dispatch
from made_flows.inverse.sequential import context_rows
from made_flows.inverse.steps import BijectionStep
from made_flows.nn.made import MADE


class Stage(NamedTuple):
    """A network and a map, one way."""

    made: MADE
    step: BijectionStep
    sequential: bool
    """Whether the network reads the result, and not what is given."""


def whole_pass(
    stages: Sequence[Stage], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    r"""Map values through several networks in one call, without gradients.

    Args:
        stages: in the order in which they are taken.
        x: (..., D), what the first is given.
        context: c, (..., C), broadcast against x, for those that take one.

    Returns:
        Their images (..., D), and the sum :math:`\sum \log |\partial y_i / \partial x_i|` (...)
        over those that are parallel. None where each is to be taken by itself.
    """
    batch = None if torch.is_grad_enabled() else batch_of(x, context)
    if batch is None:
        return None
    rows, form = context_rows(context, batch), (x.shape[-1], x.dtype)
    found = []
    for made, step, sequential in stages:
        fits = takes(made, context) if made.context else True
        network = made.plain_spec(rows if made.context else None) if fits else None
        if network is None or (network.structure.features, network.tensors[1].dtype) != form:
            return None
        found.append((step, sequential, network))
    result = dispatch.map_through(found, as_rows(x, batch))
    return None if result is None else shaped(*result, batch)


def shaped(values: Tensor | None, density: Tensor | None, batch: torch.Size) -> Any:
    """Return values (N, D) and densities (N,), where there are such, in the shape of a batch."""
    if len(batch) == 1:
        return values, density
    images = None if values is None else values.reshape(*batch, values.shape[-1])
    return images, None if density is None else density.reshape(batch)


def takes(made: MADE, context: Tensor | None) -> bool:
    """Tell whether a context is of the network's size and dtype."""
    if context is None or not made.context:
        return context is None and not made.context
    return context.shape[-1:] == (made.context,) and context.dtype == made.dtype


def batch_of(x: Tensor, context: Tensor | None) -> torch.Size | None:
    """Return the batch shape of values and context, None where torch operations are to do it."""
    tensors = (x,) if context is None else (x, context)
    if (
        is_forward_mode()
        or torch.is_autocast_enabled("cpu")
        # What is no tensor, or none of the right shape, is for the pass in torch to refuse.
        or not all(is_untransformed(t) and t.layout is torch.strided for t in tensors)
        or x.dim() == 0
    ):
        return None
    batch = x.shape[:-1]
    if context is not None and context.shape[:-1] != batch:
        try:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        except RuntimeError:
            return None
    return batch
