"""The parallel pass: networks whose inputs are known, compiled with their head or bijection.

It is taken where a call of the network is nothing but its layers, on plain tensors of the CPU;
everything else takes the forward pass of :mod:`made_flows.nn.masked_mlp` in torch operations, with
the same numbers. Where gradients are asked for, a second kernel takes them back through the same
blocks; gradients that are to be differentiated again go through torch operations too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from made_flows._torch import as_rows, has_gradient_hooks, own_precision
from made_flows.inverse import dispatch
from made_flows.inverse.plans import batch_of, context_rows, map_alone, shaped, takes
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.nn.made import MADE

_LEAST_ROWS, _LEAST_WORK = 32, 4_500_000
"""Rows, and multiplications of a dense pass, from which on a training step is faster compiled: with
fewer, to pack the weights, which are new in every step, and what a call costs take longer than the
kernels save (measured for 6 to 784 features and 64 to 1024 units)."""


def parallel_pass(
    made: MADE, step: HeadStep | BijectionStep, x: Tensor, context: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    r"""Map known values by the parameters that the network gives for them.

    .. math:: y_i = g(x_i; p_i(x_{<i}, c)), \qquad \sum_i \log |\partial y_i / \partial x_i|

    Args:
        made: the network p.
        step: a bijection's g, or a head, whose log-probability takes the place of the derivative.
        x: (..., D), what the network reads.
        context: c, (..., C), broadcast against x, or None.

    Returns:
        y (..., D), None for a head, and the sum (...).
    """
    return compiled_pass(made, step, x, context) or _plain_pass(made, step, x, context)


def _plain_pass(
    made: MADE, step: HeadStep | BijectionStep, x: Tensor, context: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    return step.score(x, made(step.encode(x, made.dtype), context))


def compiled_pass(
    made: MADE, step: HeadStep | BijectionStep, x: Tensor, context: Tensor | None
) -> tuple[Tensor | None, Tensor] | None:
    """Do what :func:`parallel_pass` says, or return None where torch operations are to."""
    batch = batch_of(x, context)
    if (
        batch is None
        or x.shape[-1:] != (made.features,)
        or (step.identity_encoding and x.dtype != made.dtype)
        or not takes(made, context)
    ):
        return None
    flat = as_rows(x, batch)
    if torch.is_grad_enabled():
        # One by one: to list all weights takes as long as a small pass.
        given = (made.like, x) if context is None else (made.like, x, context)
        leaves = chain(given, made.parameters(), step.owner.parameters())
        if any(leaf.requires_grad for leaf in leaves):
            result = _with_gradient(made, step, flat, context, batch)
            return None if result is None else shaped(*result, batch)
    with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
        found = map_alone(made, step, flat, context_rows(context, batch))
    return None if found is None else shaped(*found, batch)


# ---------------------------------------------------------------------- gradients


class _Call(NamedTuple):
    made: MADE
    step: HeadStep | BijectionStep
    weights: Sequence[Tensor]
    kernel: Any
    engine: Any
    """The module with the kernels."""


def _with_gradient(
    made: MADE,
    step: HeadStep | BijectionStep,
    x: Tensor,
    context: Tensor | None,
    batch: torch.Size,
) -> tuple[Tensor | None, Tensor] | None:
    """Compute the pass so that autograd can go back through it."""
    if len(x) < _LEAST_ROWS or len(x) * made.work < _LEAST_WORK:
        return None
    weights = [*made.parameters()]
    if (
        any(True for _ in step.owner.parameters())
        or has_gradient_hooks(made.modules())
        or not {Tensor, nn.Parameter}.issuperset(map(type, weights))
        or any(tensor.is_inference() for tensor in (x, *weights))
    ):
        return None
    if context is not None:
        single = context.numel() == context.shape[-1]
        context = context.reshape(1, -1) if single else as_rows(context, batch)
    with torch.no_grad():
        found = dispatch.gradients_of(step, x, lambda: made.plain_spec(context))
    if found is None:
        return None
    call = _Call(made, step, weights, *found[:2])
    result: Any = _Pass.apply(call, found[2], x.contiguous(), context, *weights)
    return (None, result) if isinstance(step, HeadStep) else result


class _Pass(torch.autograd.Function):
    """The recorded pass, and its gradients for values, context and all weights."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, network: Any, x: Tensor, context: Tensor | None, *weights: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        values = call.step.encode(x, call.made.dtype)
        images, density, recorded = call.engine.record(call.kernel, network, values)
        # Which tensor of the network is which weight: identities may not outlast hooks on what
        # is saved.
        names = {id(weight): place for place, weight in enumerate(weights)}
        ctx.places = [names.get(id(tensor)) for tensor in network.tensors]
        ctx.call, ctx.based = call, bool(network.bases)
        ctx.recorded = recorded._replace(spaces=None)
        others = [weights[place] for place in {*names.values()}.difference(ctx.places)]
        ctx.save_for_backward(recorded.spaces, x, context, *network.tensors, *others)
        return density if images is None else (images, density)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        spaces, x, context, *saved = ctx.saved_tensors
        call: _Call = ctx.call
        needed = ctx.needs_input_grad[2:]
        if all(gradient is None for gradient in gradients):
            return (None,) * (2 + len(needed))
        if torch.is_grad_enabled():  # to be differentiated again
            leaves = [x, context, *call.weights]
            return None, None, *_differentiable(call, leaves, needed, gradients)
        recorded = ctx.recorded._replace(spaces=spaces)
        of_images = gradients[0] if len(gradients) > 1 else None
        of_density = gradients[-1]
        of_density = spaces.new_zeros(len(x)) if of_density is None else of_density.contiguous()
        of_images = None if of_images is None else of_images.contiguous()
        values = call.step.encode(x, call.made.dtype)
        found: list[Tensor | None] = [None] * len(call.weights)
        with own_precision("cpu"):
            of_x = call.engine.pull(recorded, values, of_images, of_density, needed[0])
            places = enumerate(ctx.places)
            wanted = {n for n, place in places if place is not None and needed[2 + place]}
            for n, gradient in call.engine.of_weights(recorded, saved, wanted).items():
                _add(found, ctx.places[n], gradient)
            based = ctx.based
            of_context = (
                _through_bases(call, recorded, len(x), context, needed, found) if based else None
            )
        return None, None, of_x, of_context, *found


def _add(found: list[Tensor | None], place: int, gradient: Tensor | None) -> None:
    known = found[place]
    if gradient is not None:
        found[place] = gradient if known is None else known + gradient


def _through_bases(
    call: _Call,
    recorded: Any,
    rows: int,
    context: Tensor | None,
    needed: Sequence[bool],
    found: list[Tensor | None],
) -> Tensor | None:
    """Take gradients back through what context and masks contribute, in torch operations."""
    with torch.enable_grad():
        leaf = None if context is None else context.detach().requires_grad_()
        bases = call.made.spec(leaf).bases
    pulled = call.engine.of_bases(recorded, len(bases[0]), rows, [base.shape[-1] for base in bases])
    places = [place for place, need in enumerate(needed[2:]) if need]
    leaves = [call.weights[place] for place in places] + ([] if leaf is None else [leaf])
    pairs = [(base, g) for base, g in zip(bases, pulled, strict=True) if base.requires_grad]
    if not pairs or not leaves:
        return None
    results = torch.autograd.grad(
        [base for base, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True
    )
    for place, gradient in zip(places, results, strict=False):
        _add(found, place, gradient)
    return None if leaf is None else results[-1]


def _differentiable(
    call: _Call,
    leaves: Sequence[Any],
    needed: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Compute gradients that can be differentiated, through the pass in torch operations."""
    outputs = [out for out in _plain_pass(call.made, call.step, *leaves[:2]) if out is not None]
    pairs = [(out, g) for out, g in zip(outputs, gradients, strict=True) if g is not None]
    results = iter(
        torch.autograd.grad(
            [out for out, _ in pairs],
            [leaf for leaf, need in zip(leaves, needed, strict=True) if need],
            [gradient for _, gradient in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(results) if need else None for need in needed]
