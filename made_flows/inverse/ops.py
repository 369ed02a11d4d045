"""The sequential inverse as operators of torch, so that compilers and transforms see through it.

* ``made_flows::sequential_inverse``: the values; no gradient of its own.
* ``implicit_solution``: the identity on values that were computed again by a differentiable step;
  its gradient solves the transposed system.
* ``made_flows::adjoint_sweep``: that solve.

Operators take tensors and plain values only: structures and steps cross them by their keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from made_flows._torch import is_untransformed
from made_flows.inverse import dispatch
from made_flows.inverse.higher_order import (
    Inverse,
    derivatives_at,
    expect_reverse_mode,
    gradients,
    gradients_at,
    is_seen_outside,
)
from made_flows.inverse.problem import Problem, TransposedProblem, value_dtype
from made_flows.inverse.steps import step_of_name
from made_flows.nn.spec import NetworkSpec, Structure


@torch.library.custom_op("made_flows::sequential_inverse", mutates_args=())
def sequential_inverse(
    noise: Tensor,
    known: Tensor | None,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: int,
    step: str,
    prefix: int,
) -> Tensor:
    """Solve for values (N, D); see :func:`made_flows.inverse.sequential_inverse`."""
    network = NetworkSpec(Structure.of_key(structure), tensors, bases)
    return dispatch.solve(Problem(network, step_of_name(step), noise, known, prefix))


@sequential_inverse.register_fake
def _(noise: Tensor, known: Any, tensors: list[Tensor], bases: Any, *static: Any) -> Tensor:
    _, step, _ = static
    dtype = value_dtype(step_of_name(step), tensors)
    return noise.new_empty(noise.shape[:2], dtype=dtype)


@torch.library.custom_op("made_flows::adjoint_sweep", mutates_args=())
def adjoint_sweep(
    gradient: Tensor,
    slopes: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    bases: list[Tensor],
    structure: int,
) -> Tensor:
    """Solve a :class:`~made_flows.inverse.problem.TransposedProblem`, (N, D)."""
    network = NetworkSpec(Structure.of_key(structure), tensors, bases)
    return dispatch.adjoint(TransposedProblem(network, gradient, slopes, x))


@adjoint_sweep.register_fake
def _(gradient: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


class _ImplicitSolution(torch.autograd.Function):
    """The solution x; gradients go, through the transposed system, to ``again``.

    A function and not an operator: torch's function transforms (``torch.func``) see the gradient
    of the one, not of the other. Where a gradient is to be differentiated again, it goes straight
    to all that the inverse depends on, its last ``leaves`` arguments.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        again: Tensor,
        x: Tensor,
        slopes: Tensor,
        structure: int,
        counts: tuple[int, int],
        inverse: Inverse | None,
        *others: Tensor,
    ) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, _, slopes, ctx.structure, ctx.counts, ctx.inverse, *others = inputs
        # The result and not x: it depends on everything, which a second derivative must see.
        ctx.save_for_backward(output, slopes, *others)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:  # autograd's zero, where a recorded pass goes another way
            return (None,) * len(ctx.needs_input_grad)
        expect_reverse_mode(gradient)
        x, slopes, *others = ctx.saved_tensors
        count, total = ctx.counts
        network, leaves = others[:total], others[total:]
        tensors, bases = network[:count], network[count:]
        nothing = (None, None, None, None, None, *(None for _ in network))
        if torch.compiler.is_compiling():  # it does not trace one function inside another
            sweep = adjoint_sweep(gradient.contiguous(), slopes, x, tensors, bases, ctx.structure)
        elif leaves and ctx.inverse.transformed:
            given = (gradient, slopes, x, ctx.structure, ctx.counts, ctx.inverse, *others)
            return None, *nothing, *_TransformedGradients.apply(*given)
        elif leaves and torch.is_grad_enabled():
            structure = Structure.of_key(ctx.structure)
            with torch.no_grad():
                sweep = transposed_solve(
                    gradient, slopes, x, NetworkSpec(structure, [*tensors], [*bases])
                )
            return None, *nothing, *gradients(ctx.inverse, gradient, sweep, x, structure, tensors)
        else:
            sweep = _apply(_AdjointSweep, gradient, slopes, x, ctx.structure, count, *network)
        return sweep, *nothing, *(None for _ in leaves)


class _TransformedGradients(torch.autograd.Function):
    """Gradients of all that an inverse depends on, whose own derivatives are those of passes.

    All tensors are arguments, since every level of ``torch.func`` has wrappers of its own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        slopes: Tensor,
        x: Tensor,
        structure: int,
        counts: tuple[int, int],
        inverse: Inverse,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        count, total = counts
        tensors, bases = list(others[:count]), list(others[count:total])
        sweep = adjoint_sweep(gradient.contiguous(), slopes, x, tensors, bases, structure)
        return gradients_at(inverse.at(others[total:]), sweep, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        gradient, _, _, _, (_, ctx.total), ctx.inverse, *others = inputs
        ctx.save_for_backward(gradient, *others[ctx.total :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        gradient, *tensors = ctx.saved_tensors
        of_gradient, *rest = derivatives_at(ctx.inverse.at(tensors), gradient, cotangents)
        return of_gradient, *(None,) * (5 + ctx.total), *rest


class _AdjointSweep(torch.autograd.Function):
    """The transposed solve, which refuses to be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor, slopes: Tensor, x: Tensor, structure: int, count: int, *network: Tensor
    ) -> Tensor:
        tensors, bases = list(network[:count]), list(network[count:])
        spec = NetworkSpec(Structure.of_key(structure), tensors, bases)
        return transposed_solve(gradient, slopes, x, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "Expected first derivatives of a sequential inverse; got second ones, which are not "
            "available. Differentiate the parallel pass instead"
        )


_function: Any
for _function in (_ImplicitSolution, _AdjointSweep):
    # torch binds arguments to the signature in every call, and would read it anew, in 20 us.
    _function.forward.__signature__ = inspect.signature(_function.forward)


def transposed_solve(gradient: Tensor, slopes: Tensor, x: Tensor, network: NetworkSpec) -> Tensor:
    """Solve a :class:`~made_flows.inverse.problem.TransposedProblem`, (N, D)."""
    if is_untransformed(gradient):
        return dispatch.adjoint(TransposedProblem(network, gradient.contiguous(), slopes, x))
    key = network.structure.key
    solution: Tensor = adjoint_sweep(
        gradient.contiguous(), slopes, x, network.tensors, network.bases, key
    )
    return solution


def implicit_solution(
    again: Tensor, x: Tensor, slopes: Tensor, network: NetworkSpec, inverse: Inverse | None = None
) -> Tensor:
    """Pass the gradient of a solution x (N, D), by the transposed system, to ``again``.

    It can be differentiated twice where ``inverse`` says what it is a function of.
    """
    tensors, bases = network.tensors, network.bases
    counts = (len(tensors), len(tensors) + len(bases))
    leaves: Sequence[Tensor] = ()
    if inverse is not None and not inverse.transformed:
        leaves = inverse.leaves
    elif inverse is not None and any(map(is_seen_outside, inverse.tensors)):
        leaves = inverse.tensors
    others = (*tensors, *bases, *leaves)
    key = network.structure.key
    return _apply(_ImplicitSolution, again, x, slopes, key, counts, inverse, *others)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


def solve(problem: Problem) -> Tensor:
    """Call the operator ``sequential_inverse``, or straight what it does where nothing looks on.

    An operator's way through torch takes 50 us, as long as a small inverse.
    """
    network, step, noise, known, prefix = problem
    if is_untransformed(noise):
        return dispatch.solve(problem)
    key = network.structure.key
    values: Tensor = sequential_inverse(
        noise, known, network.tensors, network.bases, key, step.name, prefix
    )
    return values


# ---------------------------------------------------------------------- vmap


def _folded(
    operator: Callable[..., Tensor], count: int, info: Any, places: Sequence[Any], *given: Any
) -> tuple[Tensor, int]:
    """Apply an operator over a mapped dimension: folded into rows, or in a loop over networks.

    Args:
        operator: takes arguments with a row for each row of the result, tensors and bases of the
            network (row n has row n modulo their number), and others.
        count: how many arguments with rows there are.
        info: says how large the mapped dimension is.
        places: for each of the arguments, where its mapped dimension is, or None.
        given: the arguments.
    """
    *rows, tensors, bases = given[: count + 2]
    *of_rows, of_tensors, of_bases = places[: count + 2]
    static, size = given[count + 2 :], info.batch_size

    def at(values: Sequence[Any], dims: Sequence[Any], index: int) -> list[Any]:
        pairs = zip(values, dims, strict=True)
        return [value if place is None else value.select(place, index) for value, place in pairs]

    if any(place is not None for place in of_tensors):
        results = [
            operator(*at(rows, of_rows, i), at(tensors, of_tensors, i), at(bases, of_bases, i),
                     *static)
            for i in range(size)
        ]  # fmt: skip
        return torch.stack(results), 0

    def each(value: Tensor, place: int | None) -> Tensor:
        return value.expand(size, *value.shape) if place is None else value.movedim(place, 0)

    every = [None if v is None else each(v, p) for v, p in zip(rows, of_rows, strict=True)]
    first: Any = every[0]
    number = first.shape[1]
    if any(place is not None for place in of_bases):  # else their rows divide those of every part
        bases = [each(base, place) for base, place in zip(bases, of_bases, strict=True)]
        bases = [b.repeat(1, number // max(b.shape[1], 1), 1).flatten(0, 1) for b in bases]
    flat = (None if value is None else value.flatten(0, 1) for value in every)
    return operator(*flat, tensors, bases, *static).unflatten(0, (size, number)), 0


sequential_inverse.register_vmap(partial(_folded, sequential_inverse, 2))
adjoint_sweep.register_vmap(partial(_folded, adjoint_sweep, 3))
