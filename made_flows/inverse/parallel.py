"""The parallel pass: networks whose inputs are known, compiled with their head or bijection.

It is taken where a call of the network is nothing but its layers, on plain tensors of the CPU;
everything else takes the forward pass of :mod:`made_flows.nn.masked_mlp` in torch operations, with
the same numbers. Where gradients are asked for, a second kernel takes them back through the same
blocks; gradients that are to be differentiated again go through torch operations too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows._torch import as_rows, has_gradient_hooks, own_precision
from made_flows.inverse import dispatch
from made_flows.inverse.batches import batch_of, context_rows, expect_on_cpu, shaped, takes
from made_flows.inverse.plans import Plan, map_alone, plan_alone
from made_flows.inverse.steps import BijectionStep, HeadStep
from made_flows.nn.activations import activation_of_name
from made_flows.nn.made import MADE
from made_flows.nn.masked_mlp import dropped_layers, masked_pass
from made_flows.nn.spec import LayerSpec, NetworkSpec, Structure


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
    kernel: Any
    numbers: tuple[float, ...]
    engine: Any
    """The module with the kernels."""
    structure: Structure
    based: int
    """How many of the tensors that follow the values are contributions of context and masks."""
    dropped: dict[int, int]
    """Hidden layers that drop units, each with its number of units."""

    def values(self, x: Tensor) -> Tensor:
        """Return what the kernels read, which encode by themselves what takes several columns."""
        dtype = self.made.dtype
        return x.to(dtype) if self.kernel.one_hot else self.step.encode(x, dtype)

    def network(self, tensors: Sequence[Tensor]) -> NetworkSpec:
        """Return the network of contributions and weights, in this order."""
        return NetworkSpec(self.structure, [*tensors[self.based :]], [*tensors[: self.based]])


class _Recipe(NamedTuple):
    """What a plan keeps for calls with gradients.

    Args:
        call: what those share.
        tensors: ranks, masks and weights.
        empty: what hooks on gradients, and parameters of the step, would stand in.
    """

    call: _Call
    tensors: list[Tensor]
    empty: list[Any]


def _with_gradient(
    made: MADE,
    step: HeadStep | BijectionStep,
    x: Tensor,
    context: Tensor | None,
    batch: torch.Size,
) -> tuple[Tensor | None, Tensor] | None:
    """Compute the pass so that autograd can go back through it."""
    if not len(x) or x.is_inference() or has_gradient_hooks([made]):
        return None
    plan = plan_alone(made, step, dropping=made.drops)
    if plan is None:
        return None
    recipe = plan.kept.get("gradients", plan)
    if recipe is plan:  # nothing is kept yet
        recipe = plan.kept["gradients"] = _recipe(made, step, plan)
    if recipe is None or any(recipe.empty):
        return None
    expect_on_cpu(x, context, name="values")
    call, tensors, _ = recipe
    bases: list[Tensor] = []
    if call.based:
        if context is not None:
            single = context.numel() == context.shape[-1]
            context = context.reshape(1, -1) if single else as_rows(context, batch)
        # What context and masks contribute is recorded by autograd as it is anywhere else.
        bases = plan.reads[0].at(context).bases
        if not all(type(base) is Tensor for base in bases):
            return None
    factors = _drawn_factors(made, call.dropped, len(x)) if call.dropped else {}
    result: Any = _Pass.apply(call, factors, x.contiguous(), *bases, *tensors)
    return (None, result) if isinstance(step, HeadStep) else result


def _recipe(made: MADE, step: HeadStep | BijectionStep, plan: Plan) -> _Recipe | None:
    """Return what calls with gradients share while a plan holds, None where torch is to do it."""
    weights, parts = [*made.parameters()], [*step.owner.modules()]
    if not {Tensor, nn.Parameter}.issuperset(map(type, weights)):
        return None
    if any(tensor.is_inference() for tensor in weights):
        return None
    [read] = plan.reads
    network = read.with_context if made.context else read.network
    found = dispatch.gradients_of(step, network)
    if found is None:
        return None
    kernel, engine = found
    based = sum(letters.count("c") for letters in network.structure.flags)
    layers = made.masked_layers()[:-1] if made.drops else []
    places = dropped_layers(len(layers), made.residual)
    dropped = {place: layers[place].out_features for place in places}
    call = _Call(made, step, kernel, kernel.numbers, engine, network.structure, based, dropped)
    tables = chain.from_iterable((m._backward_hooks, m._backward_pre_hooks) for m in made.modules())
    return _Recipe(call, network.tensors, [*tables, *(part._parameters for part in parts)])


@torch.no_grad()
def _drawn_factors(made: MADE, dropped: dict[int, int], rows: int) -> dict[int, Tensor]:
    """Draw what each unit is multiplied by, (N, units) for each layer: torch's own dropout of ones.

    What it draws is what it would of the activations themselves.
    """
    drop: Any = made.dropout  # one of torch's, where anything is dropped at all
    return {
        place: F.dropout(made.like.new_ones(rows, units), drop.p, training=True)
        for place, units in dropped.items()
    }


class _Pass(torch.autograd.Function):
    """The recorded pass, and its gradients for values, contributions and all weights.

    It keeps all that it was computed by: the way back asks nothing of modules, which may have
    become others since.
    """

    @staticmethod
    def forward(
        ctx: Any, call: _Call, factors: dict[int, Tensor], x: Tensor, *tensors: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        values = call.values(x)
        network = call.network(tensors)
        images, density, spaces, ctx.recorded = call.engine.record(
            call.kernel, network, values, factors
        )
        ctx.call, ctx.factors = call, factors
        ctx.save_for_backward(spaces, x, *tensors)
        return density if images is None else (images, density)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        spaces, x, *tensors = ctx.saved_tensors
        call: _Call = ctx.call
        needed = ctx.needs_input_grad[2:]
        if all(gradient is None for gradient in gradients):
            return (None,) * (2 + len(needed))
        if torch.is_grad_enabled():  # to be differentiated again
            found = _differentiable(call, ctx.factors, [x, *tensors], needed, gradients)
            return None, None, *found
        recorded = ctx.recorded
        of_images = gradients[0] if len(gradients) > 1 else None
        of_density = gradients[-1]
        of_density = spaces.new_zeros(len(x)) if of_density is None else of_density.contiguous()
        of_images = None if of_images is None else of_images.contiguous()
        values = call.values(x)
        bases, weights = tensors[: call.based], tensors[call.based :]
        with own_precision("cpu"):
            # Of categories there is no gradient.
            wants_x = needed[0] and not call.kernel.one_hot
            of_x = recorded.pull(spaces, values, of_images, of_density, wants_x)
            wanted = [n for n, need in enumerate(needed[1 + call.based :]) if need]
            of_weights = recorded.of_weights(spaces, weights, wanted)
            of_bases: Sequence[Tensor | None] = [None] * call.based
            if any(needed[1 : 1 + call.based]):
                widths = [base.shape[-1] for base in bases]
                of_bases = recorded.of_bases(spaces, len(bases[0]), widths)
        return None, None, of_x, *of_bases, *map(of_weights.get, range(len(weights)))


def _differentiable(
    call: _Call,
    factors: dict[int, Tensor],
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Compute gradients that can be differentiated, through the pass in torch operations."""
    kernel = call.engine.kernel_of(call.step)
    if kernel != call.kernel or kernel.numbers != call.numbers:
        raise RuntimeError(
            f"Expected {type(call.step.owner).__name__} to be what it was in the forward pass, for "
            "gradients that are to be differentiated again; got other constants"
        )
    # Of aliases: what these depend on (one another, where transforms share a context) is the
    # engine's to follow, and nothing is counted twice.
    x, *rest = [each.view_as(each) for each in tensors]
    made, network = call.made, call.network(rest)
    with own_precision("cpu"):
        values = call.step.encode(x, made.dtype)
        parameters = made.unpack(_outputs(network, values, factors))
    outputs = [out for out in call.step.score(x, parameters) if out is not None]
    pairs = [(out, g) for out, g in zip(outputs, gradients, strict=True) if g is not None]
    results = iter(
        torch.autograd.grad(
            [out for out, _ in pairs],
            [leaf for leaf, need in zip([x, *rest], needed, strict=True) if need],
            [gradient for _, gradient in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(results) if need else None for need in needed]


def _outputs(network: NetworkSpec, x: Tensor, factors: dict[int, Tensor]) -> Tensor:
    """Compute the outputs (N, ...) of a MADE's network in torch operations."""
    each = iter(factors.values())
    _, layers, direct = network.structure.unpack(network.tensors, network.bases)

    def of(layer: LayerSpec) -> Callable[[Tensor], Tensor]:
        def apply(a: Tensor) -> Tensor:
            z = F.linear(a, layer.weight * layer.mask.to(layer.weight), layer.bias)
            return z if layer.base is None else z + layer.base

        return apply

    return masked_pass(
        [*map(of, layers)],
        activation_of_name(layers[0].activation),
        x,
        direct=None if direct is None else of(direct),
        residual=any(layer.adds_to >= 0 for layer in layers),
        dropout=(lambda a: a * next(each)) if factors else None,
    )
