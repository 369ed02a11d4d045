"""The sequential inverse as operators of torch, so that compilers and transforms see through it.

* ``made_flows::sequential_inverse``: the values; no gradient of its own.
* ``made_flows::implicit_solution``: the identity on values that were computed again by a
  differentiable step; its gradient solves the transposed system.
* ``made_flows::adjoint_sweep``: that solve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from made_flows.inverse import eager
from made_flows.inverse.plan import plan_for
from made_flows.inverse.steps import step_of_name

__all__ = ["adjoint_sweep", "implicit_solution", "sequential_inverse"]


@torch.library.custom_op("made_flows::sequential_inverse", mutates_args=())
def sequential_inverse(
    noise: Tensor,
    known: Tensor | None,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: str,
    step: str,
    prefix: int,
) -> Tensor:
    """Values (N, D) from noise (N, D, P); see :func:`made_flows.inverse.sequential_inverse`."""
    plan = plan_for(structure, tensors)
    return eager.solve(plan, step_of_name(step), noise, tensors, bases, known, prefix)


@sequential_inverse.register_fake
def _(
    noise: Tensor,
    known: Tensor | None,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: str,
    step: str,
    prefix: int,
) -> Tensor:
    return noise.new_empty(noise.shape[:2], dtype=step_of_name(step).value_dtype(noise.dtype))


@torch.library.custom_op("made_flows::adjoint_sweep", mutates_args=())
def adjoint_sweep(
    gradient: Tensor,
    slopes: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: str,
) -> Tensor:
    """The solution (N, D) of the transposed linearised system, see ``eager.adjoint``."""
    return eager.adjoint(plan_for(structure, tensors), gradient, slopes, x, tensors, bases)


@adjoint_sweep.register_fake
def _(
    gradient: Tensor,
    slopes: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: str,
) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


@torch.library.custom_op("made_flows::implicit_solution", mutates_args=())
def implicit_solution(
    again: Tensor,
    x: Tensor,
    slopes: Tensor,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: str,
) -> Tensor:
    """The solution x; gradients go, through the transposed system, to ``again``."""
    return x.clone()


@implicit_solution.register_fake
def _(
    again: Tensor,
    x: Tensor,
    slopes: Tensor,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: str,
) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, slopes, tensors, bases, structure = inputs
    ctx.save_for_backward(x, slopes, *tensors, *bases)
    ctx.count, ctx.structure = len(tensors), structure


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, slopes, *rest = ctx.saved_tensors
    tensors, bases = rest[: ctx.count], rest[ctx.count :]
    solution = adjoint_sweep(gradient.contiguous(), slopes, x, tensors, bases, ctx.structure)
    return solution, None, None, [None] * len(tensors), [None] * len(bases), None


implicit_solution.register_autograd(_backward, setup_context=_save)
