"""The sequential inverse by one whole pass of the network for every rank: exact, and slow.

It asks for nothing but the network's own forward pass, so that it serves where the layers of a
network are not all there is (hooks, subclasses, wrapped layers), and derivatives that the fast way
does not have: autograd sees ordinary passes, and takes second and forward-mode derivatives of them.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from made_flows._checks import check_broadcast
from made_flows._torch import has_concrete_values
from made_flows.inverse.steps import Step


class SlowInverseWarning(UserWarning):
    """A sequential inverse takes one pass of the network for every rank."""


def d_pass_inverse(
    evaluate: Callable[[Tensor], Tensor],
    ranks: Tensor,
    step: Step,
    noise: Tensor,
    *,
    known: Tensor | None = None,
    prefix: int | Tensor = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Solve :math:`x_r = g(u_r; p_r(x_{<r}))` rank by rank, by whole passes of the network p.

    Args:
        evaluate: what the network reads (..., inputs) to its parameters (..., D, K).
        ranks: rank of every feature, (D,), or (..., D) for an order of each row.
        step: the elementwise map g.
        noise: u, (..., D, P), of the whole batch.
        known: (..., D), values of which those of the first ``prefix`` ranks are kept.
        prefix: how many ranks are known: a number, or (...) of them.
        dtype: of the network, by default that of the noise.

    Returns:
        x, (..., D), with derivatives of every order and mode if the step has them.
    """
    batch, features = noise.shape[:-2], noise.shape[-2]
    if known is not None:
        batch = check_broadcast(noise=batch, known=known.shape[:-1])
        noise = noise.expand(*batch, *noise.shape[-2:])
    # Ranks that cannot be read (as under vmap over networks) are all there may be.
    levels = int(ranks.max()) + 1 if ranks.numel() and has_concrete_values(ranks) else features
    first = prefix if isinstance(prefix, int) else 0
    dtype = noise.dtype if dtype is None else dtype
    of_values = step.value_dtype(dtype)
    with nullcontext() if step.differentiable else torch.no_grad():
        # Until a value is known, one of the support stands for it; nothing depends on it.
        x = torch.full((*batch, features), step.filler, dtype=of_values, device=noise.device)
        waiting = ranks
        if known is not None:
            limit = prefix.unsqueeze(-1) if isinstance(prefix, Tensor) else prefix
            x = torch.where(ranks < limit, known.to(of_values), x)
            waiting = torch.where(ranks < limit, -1, ranks)
        for rank in range(first, levels):
            parameters = evaluate(step.encode(x, dtype))
            drawn = waiting == rank
            x = torch.where(drawn, _values_at(drawn, step, noise, parameters).to(of_values), x)
    return x


def _values_at(drawn: Tensor, step: Step, noise: Tensor, parameters: Tensor) -> Tensor:
    """Compute the values of the features drawn at this rank; those of the others are arbitrary."""
    if drawn.dim() > 1 or not has_concrete_values(drawn):
        return step(noise, parameters)
    # The others read values that are not known yet, so that their steps might overflow, and make
    # the gradient of the whole NaN.
    chosen = drawn.nonzero().squeeze(-1)
    fresh = step(noise[..., chosen, :], parameters[..., chosen, :], chosen)
    return fresh[..., (drawn.cumsum(0) - 1).clamp(min=0)]


_WARNED: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def warn_of_passes(network: Any, passes: int, reason: object) -> None:
    """Warn, once for a network and a reason, that its inverse takes many passes.

    Args:
        network: the conditioner.
        passes: how many passes of it one inverse takes.
        reason: a clause that says why.
    """
    if torch.compiler.is_compiling():
        return
    reasons = _WARNED.setdefault(network, set())
    if str(reason) in reasons:
        return
    reasons.add(str(reason))
    warnings.warn(
        f"A sequential inverse takes {passes} passes of the network in place of about one, because "
        f"{reason}. Values and gradients are exact",
        SlowInverseWarning,
        stacklevel=3,
    )
