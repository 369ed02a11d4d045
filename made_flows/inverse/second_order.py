"""Second derivatives of a sequential inverse: by D passes of the network, when they are asked for.

The implicit function theorem gives the gradient at a solution that is taken as it is; how that
gradient changes with the solution is not in it. A backward pass that is itself recorded
(``create_graph=True``) therefore goes through the inverse by one pass for every rank, which
autograd differentiates as often as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._torch import is_untransformed

__all__ = ["with_second_derivatives"]


def with_second_derivatives(
    solution: Tensor,
    modules: Sequence[nn.Module],
    given: Sequence[Tensor | None],
    again: Callable[[Sequence[Tensor | None]], Tensor],
) -> Tensor:
    """Let derivatives of a solution's derivatives be taken.

    Args:
        solution: (..., D), with a graph that has first derivatives.
        modules: whose weights it depends on.
        given: the other tensors that it depends on.
        again: computes it anew from such tensors, differentiably; it is called where a backward
            pass is recorded.

    Returns:
        The solution. Under transforms of functions, which have derivatives of their own kind, it
        is returned as it is.
    """
    if not is_untransformed(solution):
        return solution

    def anew(tensors: Sequence[Tensor | None]) -> Tensor:
        holder = _Holder(modules)
        names = (name for name, _ in holder.named_parameters())
        # The weights of the forward pass: they may have been lent for that call alone.
        values = cast(Sequence[Tensor], tensors[len(given) :])
        weights = dict(zip(names, values, strict=True))
        result: Tensor = torch.func.functional_call(holder, weights, (again, tensors[: len(given)]))
        return result

    weights = [weight for module in modules for weight in module.parameters()]
    result: Tensor = _SecondDerivatives.apply(solution, anew, *given, *weights)
    return result


class _Holder(nn.Module):
    """Modules whose weights are lent to them for one call."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, function: Callable[[Any], Tensor], argument: Any) -> Tensor:
        return function(argument)


class _SecondDerivatives(torch.autograd.Function):
    """The identity on a solution; where the backward pass is recorded, the way through D passes."""

    @staticmethod
    def forward(
        ctx: Any, solution: Tensor, anew: Callable[..., Tensor], *tensors: Tensor | None
    ) -> Tensor:
        ctx.anew = anew
        ctx.save_for_backward(*tensors)
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * len(tensors)
        if not torch.is_grad_enabled():
            return gradient, None, *gradients
        places = [place for place in range(len(tensors)) if ctx.needs_input_grad[place + 2]]
        wanted = [tensors[place] for place in places]
        found = torch.autograd.grad(
            ctx.anew(tensors), wanted, gradient, create_graph=True, allow_unused=True
        )
        for place, value in zip(places, found, strict=True):
            gradients[place] = value
        return None, None, *gradients
