"""The sequential inverse: an autoregressive network inverted in about one pass, exactly.

Given noise u, find x with x_r = step(u_r, p_r(x_<r)) for every rank r. Units are sorted by
degree; at rank r the units of degree r are computed, then the parameters of rank r, then x_r.
Every unit is computed once, so that the work is that of half a dense forward pass (only half of
the weights are not masked). Gradients come from the implicit function theorem.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from made_flows._checks import check_broadcast
from made_flows._torch import is_forward_mode, is_untransformed, own_precision
from made_flows.inverse import ops as operators
from made_flows.inverse.batches import context_rows
from made_flows.inverse.higher_order import Inverse, reason_for_passes
from made_flows.inverse.plans import solve_alone
from made_flows.inverse.problem import Conditioner, Problem
from made_flows.inverse.steps import Step
from made_flows.nn.spec import NetworkSpec
from made_flows.nn.validation import NotUnderstoodError


def sequential_inverse(
    conditioner: Conditioner,
    step: Step,
    noise: Tensor,
    context: Tensor | None = None,
    *,
    known: Tensor | None = None,
    prefix: int = 0,
) -> Tensor:
    r"""Solve an autoregressive model for its values: :math:`x_r = g(u_r; p_r(x_{<r}, c))`.

    Args:
        conditioner: the network p.
        step: the elementwise map g: a head's or a bijection's.
        noise: u, (..., D, P).
        context: c, (..., C), broadcast against the noise.
        known: (..., D), values of which those of the first ``prefix`` ranks are kept.
        prefix: how many ranks are known.

    A network whose layers are not all there is to it is inverted by a pass for every rank, with a
    :class:`~made_flows.inverse.d_pass.SlowInverseWarning`; so is any network for derivatives in
    forward mode, second derivatives, and gradients in a trace.

    Returns:
        x, (..., D). It carries gradients to noise, weights, context and known values where they
        ask for one and the step is differentiable. Hidden units are never dropped.
    """
    features = conditioner.features
    batch = noise.shape[:-2]
    if context is not None or known is not None:
        shapes = {"noise": batch}
        if context is not None:
            shapes["context"] = context.shape[:-1]
        if known is not None:
            shapes["known"] = known.shape[:-1]
        batch = check_broadcast(**shapes)
        noise = noise.expand(*batch, *noise.shape[-2:])
        if known is not None:
            known = known.expand(*batch, features)

    call = conditioner, step, noise, context, known, prefix
    inverse, wants_gradient = None, False
    # For values alone this would take as long as they do.
    looked_on = torch.is_grad_enabled() or is_forward_mode() or not is_untransformed(noise)
    if not (looked_on or noise.is_meta):
        x = None if known is not None else solve_alone(conditioner, step, noise, context)
        if x is not None:
            return x
    else:
        inverse = Inverse(*call)
        wants_gradient = step.differentiable and inverse.asks_for_gradient()
        if noise.is_meta:
            return inverse.passes()
        reason = reason_for_passes(inverse, wants_gradient=wants_gradient)
        if reason is not None:
            return inverse.passes(reason)
    try:
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            x, network = _solve(*call)
    except NotUnderstoodError as error:
        return (inverse or Inverse(*call)).passes(error)
    if inverse is None or not wants_gradient:
        return x

    # The implicit function theorem: compute the solution again by one differentiable step from
    # itself; the operator's gradient then accounts for the ranks' dependence on one another.
    parameters = conditioner.as_called(x, context)
    again = step(noise, parameters)
    slopes = _slopes(step, noise.detach(), parameters.detach())
    if known is not None:
        again = torch.where(inverse.kept, known, again)
        slopes = torch.where(inverse.kept.unsqueeze(-1), torch.zeros_like(slopes), slopes)
    solution: Tensor = operators.implicit_solution(
        again.reshape(-1, features),
        x.reshape(-1, features),
        slopes.reshape(-1, *slopes.shape[-2:]),
        network,
        None if torch.compiler.is_compiling() else inverse,
    )
    return solution.reshape(*batch, features)


def _solve(
    conditioner: Conditioner,
    step: Step,
    noise: Tensor,
    context: Tensor | None,
    known: Tensor | None,
    prefix: int,
) -> tuple[Tensor, NetworkSpec]:
    """Solve for the values alone, (..., D), and return the network that was read."""
    batch = noise.shape[:-2]
    # The sweeps' own precision, as the weights have it, whatever products elsewhere take.
    with own_precision(noise.device.type):
        rows = context_rows(context, batch)  # which autocast may have made of half precision
        network = conditioner.spec(None if rows is None else rows.to(conditioner.dtype))
    if len(batch) == 1:
        return operators.solve(Problem(network, step, noise, known, prefix)), network
    flat = noise.reshape(-1, *noise.shape[-2:])
    given = None if known is None else known.reshape(-1, known.shape[-1])
    x = operators.solve(Problem(network, step, flat, given, prefix))
    return x.reshape(*batch, x.shape[-1]), network


def pull_back(
    conditioner: Conditioner, step: Step, noise: Tensor, x: Tensor, gradient: Tensor
) -> Tensor:
    r"""Take a gradient at the solution of a sequential inverse back to its noise, by one sweep.

    .. math:: v = \Bigl(\frac{\partial x}{\partial u}\Bigr)^{\!\top} g

    Args:
        conditioner: the network, without a context.
        step: its step.
        noise: u, (N, D, 1).
        x: the solution (N, D).
        gradient: g, (N, D).

    Returns:
        v, (N, D), a constant.

    Raises:
        NotUnderstoodError: for a network whose layers are not all there is to it.
    """
    with torch.no_grad():
        network = conditioner.spec(None)
        parameters = conditioner.as_called(x)
    with torch.enable_grad():
        leaves = noise.detach().requires_grad_(), parameters.detach().requires_grad_()
        direct, slopes = torch.autograd.grad(step(*leaves).sum(), leaves)
    with torch.no_grad():
        swept = operators.transposed_solve(gradient, slopes, x, network)
        return swept * direct.squeeze(-1)


def _slopes(step: Step, noise: Tensor, parameters: Tensor) -> Tensor:
    """Differentiate every value with respect to its own parameters, (..., D, K)."""
    if is_untransformed(parameters):
        # torch.func refuses to work under hooks on saved tensors, which checkpointing sets.
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            values = step(noise, leaf)
            if not values.requires_grad:  # a step that ignores its parameters
                return torch.zeros_like(parameters)
            return torch.autograd.grad(values.sum(), leaf)[0]
    values, pull, *_ = torch.func.vjp(lambda p: step(noise, p), parameters)
    slopes: Tensor = pull(torch.ones_like(values))[0]
    return slopes
