"""The parallel pass: networks whose inputs are known, compiled with their head or bijection.

It is taken where a call of the network is nothing but its layers, on plain tensors of the CPU, and
no gradient is asked for; everything else takes the forward pass of :mod:`made_flows.nn.masked_mlp`
in torch operations, with the same numbers.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from made_flows._torch import as_rows, is_forward_mode, is_untransformed
from made_flows.inverse import dispatch
from made_flows.inverse.sequential import context_rows
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.nn.made import MADE


def parallel_pass(
    made: MADE, step: HeadStep | BijectionStep, x: Tensor, context: Tensor | None
) -> tuple[Tensor | None, Tensor] | None:
    r"""Map known values by the parameters that the network gives for them.

    .. math:: y_i = g(x_i; p_i(x_{<i}, c)), \qquad \sum_i \log |\partial y_i / \partial x_i|

    Args:
        made: the network p.
        step: a bijection's g, or a head, whose log-probability takes the place of the derivative.
        x: (..., D), what the network reads.
        context: c, (..., C), broadcast against x, or None.

    Returns:
        y (..., D), None for a head, and the sum (...); None where the call is to be made in torch
        operations, which raise what there is to raise.
    """
    dtype = made.dtype
    tensors = (x,) if context is None else (x, context)
    if (
        is_forward_mode()
        or torch.is_autocast_enabled("cpu")
        or x.shape[-1:] != (made.features,)
        or (step.identity_encoding and x.dtype != dtype)
        or (0 if context is None else context.shape[-1]) != made.context
        or not all(map(is_untransformed, tensors))
        or (context is not None and context.dtype != dtype)
    ):
        return None
    if torch.is_grad_enabled():
        # One by one: to list all weights takes as long as a small pass.
        leaves = chain(tensors, made.parameters(), step.owner.parameters())
        if any(leaf.requires_grad for leaf in leaves):
            return None
    batch = x.shape[:-1]
    if context is not None and context.shape[:-1] != batch:
        try:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        except RuntimeError:
            return None
    with torch.no_grad():
        compiled = dispatch.score(
            step, as_rows(x, batch), lambda: made.plain_spec(context_rows(context, batch))
        )
    if compiled is None:
        return None
    images, density = compiled
    return None if images is None else images.reshape(*batch, made.features), density.reshape(batch)
