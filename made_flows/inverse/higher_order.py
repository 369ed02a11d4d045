"""Derivatives that the sweeps do not have, by passes of the network: exact, and slow.

The implicit function theorem gives first derivatives in reverse mode. Second derivatives, forward
mode and recorded traces see the inverse as D passes in place of a sweep (see
:mod:`made_flows.inverse.d_pass`), with one warning. What is only known later, that a gradient is
differentiated again, costs nothing until it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._torch import (
    has_gradient_hooks,
    is_forward_mode,
    is_traced,
    is_transformed,
    own_precision,
)
from made_flows.inverse.d_pass import d_pass_inverse, warn_of_passes
from made_flows.inverse.problem import Conditioner
from made_flows.inverse.steps import Step
from made_flows.nn.spec import Structure
from made_flows.nn.validation import NotUnderstoodError

_DIFFERENTIATING = ("Grad", "Jvp")
_AGAIN = "derivatives of its derivatives are taken"


class Inverse:
    """A sequential inverse as a function of all that it can be differentiated by.

    Args:
        conditioner: the network.
        step: the elementwise map.
        noise: (..., D, P), of the whole batch.
        context: (..., C) or None.
        known: (..., D) or None, of which the first ``prefix`` ranks count.
        prefix: how many ranks are known.
        weights: of network and step, None for those that they have.
    """

    def __init__(
        self,
        conditioner: Conditioner,
        step: Step,
        noise: Tensor,
        context: Tensor | None,
        known: Tensor | None,
        prefix: int,
        weights: list[Tensor] | None = None,
    ) -> None:
        self.conditioner, self.step, self.prefix = conditioner, step, prefix
        self.noise, self.context, self.known = noise, context, known
        self._lent = self._weights = weights
        self._constants = _constants(step)
        self.transformed = is_transformed()
        module = conditioner if isinstance(conditioner, nn.Module) else cast(Any, conditioner).net
        self.modules: list[nn.Module] = [module, step.owner]
        """The modules whose weights take part."""

    @property
    def weights(self) -> list[Tensor]:
        """All weights, as they are when first asked for: a call may have lent them."""
        if self._weights is None:
            self._weights = [weight for module in self.modules for weight in module.parameters()]
        return self._weights

    @property
    def inputs(self) -> list[Tensor]:
        """What it is given besides the weights."""
        inputs = (self.noise, self.context, self.known)
        return [tensor for tensor in inputs if tensor is not None]

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is a function of."""
        return [*self.inputs, *self.weights]

    @property
    def leaves(self) -> list[Tensor]:
        """All that asks for a gradient."""
        return [tensor for tensor in self.tensors if tensor.requires_grad]

    def asks_for_gradient(self) -> bool:
        """Tell whether values must carry a gradient."""
        # To list weights takes as long as a small sweep: they are not, where there is no need.
        return torch.is_grad_enabled() and bool(self.leaves)

    def of(self, leaf: Callable[[Tensor], Tensor]) -> Inverse:
        """Return the same function of other leaves, which a function gives for its own."""
        # A weight may stand under two names: it is one leaf.
        leaves = {id(weight): leaf(weight) for weight in self.weights}
        return self.at([*map(leaf, self.inputs), *(leaves[id(w)] for w in self.weights)])

    def at(self, tensors: Sequence[Tensor]) -> Inverse:
        """Return the same function of others in place of :attr:`tensors`."""
        noise, *rest = tensors
        context = None if self.context is None else rest.pop(0)
        known = None if self.known is None else rest.pop(0)
        return Inverse(self.conditioner, self.step, noise, context, known, self.prefix, rest)

    def _with_weights(self, function: Callable[[], Tensor]) -> Tensor:
        """Return what a function gives while network and step have the weights of this inverse."""
        if self._lent is None:
            return function()
        holder = _Holder(self.modules)
        places = [module.named_parameters() for module in holder.held]
        names = [f"held.{index}.{name}" for index, place in enumerate(places) for name, _ in place]
        lent = dict(zip(names, self._lent, strict=True))
        result: Tensor = torch.func.functional_call(holder, lent, (function,))
        return result

    def again(self, x: Tensor) -> Tensor:
        """Return the solution computed once more from itself, by one differentiable step."""

        def compute() -> Tensor:
            again = self.step(self.noise, self.conditioner.as_called(x, self.context))
            return again if self.known is None else torch.where(self.kept, self.known, again)

        return self._with_weights(compute)

    def expect_same(self, structure: Structure, masks: Sequence[Tensor]) -> None:
        """Raise where network or step are others than those that were solved.

        Modules are called once more where gradients are differentiated again, and what they
        compute then is to be what they computed. Weights are lent to them, and do not count.

        Args:
            structure: of the network that was solved.
            masks: its ranks and masks.
        """
        rows = self.context
        try:
            with torch.no_grad(), own_precision(self.noise.device.type):
                if rows is not None:
                    rows = rows.detach().reshape(-1, rows.shape[-1])[:1].to(self.conditioner.dtype)
                network = self.conditioner.spec(rows)
            own = [network.tensors[place] for place in network.structure.mask_places]
            pairs = zip(own, masks, strict=False)
            same = network.structure is structure and all(a is b or a.equal(b) for a, b in pairs)
        except NotUnderstoodError:  # it was understood then
            same = False
        if not (same and _constants(self.step) == self._constants):
            raise RuntimeError(
                "Expected network and map to be what they were when the sequential inverse was "
                "taken, for gradients that are to be differentiated again; got other masks, "
                "hooks, activations or constants"
            )

    @property
    def kept(self) -> Tensor:
        """Which features are known, (D,)."""
        return self.conditioner.ranks < self.prefix

    def passes(self, reason: object = None) -> Tensor:
        """Return the solution by D passes, with a warning if there is a reason."""
        if reason is not None:
            warn_of_passes(self.conditioner, self.conditioner.features, reason)
        return self._with_weights(
            lambda: d_pass_inverse(
                lambda inputs: self.conditioner.as_called(inputs, self.context),
                self.conditioner.ranks,
                self.step,
                self.noise,
                known=self.known,
                prefix=self.prefix,
                dtype=self.conditioner.dtype,
            )
        )


def _constants(step: Step) -> Any:
    """Return what tells a step from others, and from what it becomes by another constant."""
    kernel = None if torch.compiler.is_compiling() else step.kernel()
    return None if kernel is None else (kernel, kernel.numbers)


class _Holder(nn.Module):
    """Modules whose weights are lent to them for one call."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        return function()


def reason_for_passes(inverse: Inverse, *, wants_gradient: bool) -> str | None:
    """Say why derivatives have to see D passes, as a clause; None where they need not."""
    if not inverse.step.differentiable:
        return None
    if torch.compiler.is_compiling():
        expect_reverse_mode()
        exported = wants_gradient and torch.compiler.is_exporting()
        return "torch.export records its gradient, as it need not in no_grad" if exported else None
    if is_forward_mode() and any(map(_may_have_tangent, inverse.tensors)):
        return "forward-mode derivatives are taken of it"
    stack: Sequence[Any] = torch._C._functorch.get_interpreter_stack() or ()
    if sum(level.key().name in _DIFFERENTIATING for level in stack) > 1:
        return _AGAIN
    if wants_gradient and is_traced():
        return "torch.jit.trace records its gradient"
    parts = (part for module in inverse.modules for part in module.modules())
    if wants_gradient and has_gradient_hooks(parts):
        return "backward hooks take part in its gradient"
    return None


def expect_reverse_mode(*tensors: Tensor) -> None:
    """Raise where forward-mode derivatives would be dropped silently, of these tensors if any."""
    if not is_forward_mode():
        return
    if not tensors or any(map(_may_have_tangent, tensors)):
        raise NotImplementedError(
            "Expected reverse-mode derivatives of what is compiled, and of a backward pass of a "
            "sequential inverse; got forward mode. Use torch.func.vjp or jacrev, or take forward "
            "mode of the inverse itself"
        )


def _may_have_tangent(tensor: Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


# --- Derivatives of a gradient --------------------------------------------------------------------


def gradients(
    inverse: Inverse,
    gradient: Tensor,
    total: Tensor,
    x: Tensor,
    structure: Structure,
    tensors: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    """Return the gradients of all leaves of an inverse, which can be differentiated again.

    Args:
        inverse: the function.
        gradient: (N, D), of the loss with respect to every value alone.
        total: (N, D), the solution of the transposed system for it.
        x: (N, D), the values.
        structure, tensors: of the network that was solved.

    Raises:
        RuntimeError: where the modules are others than they were.
    """
    masks = [tensors[place] for place in structure.mask_places]
    inverse.expect_same(structure, masks)
    alone = inverse.of(lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))
    again = alone.again(x.detach().reshape(inverse.noise.shape[:-1])).reshape(x.shape)
    known = torch.autograd.grad(
        again, alone.leaves, total.detach().to(again.dtype), allow_unused=True
    )
    results: tuple[Tensor | None, ...] = _Known.apply(
        inverse, known, structure, gradient, *masks, *inverse.leaves
    )
    return results


class _Known(torch.autograd.Function):
    """Gradients that are known already; where they are differentiated, passes are."""

    @staticmethod
    def forward(
        ctx: Any,
        inverse: Inverse,
        known: Sequence[Tensor | None],
        structure: Structure,
        gradient: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.inverse, ctx.structure = inverse, structure
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, *others)
        return tuple(known)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, *others = ctx.saved_tensors  # raises if one of them was written to
        nothing = (None,) * (4 + len(others))
        count = len(ctx.structure.mask_places)
        ctx.inverse.expect_same(ctx.structure, others[:count])
        further = torch.is_grad_enabled()
        # Of aliases: what leaves depend on (one another, where transforms share a network) is the
        # engine's to follow, and nothing is counted twice.
        with torch.enable_grad():
            alone = ctx.inverse.of(_alias)
            own = _alias(gradient if gradient.requires_grad else gradient.detach().requires_grad_())
            values = alone.passes(_AGAIN).reshape(gradient.shape)
            first = torch.autograd.grad(
                values, alone.leaves, own, create_graph=True, allow_unused=True
            )
            pairs = [
                (result, cotangent)
                for result, cotangent in zip(first, cotangents, strict=True)
                if cotangent is not None and result is not None and result.requires_grad
            ]
            if not pairs:
                return nothing
            chosen, given = zip(*pairs, strict=True)
            second = torch.autograd.grad(
                chosen, [own, *alone.leaves], given, create_graph=further, allow_unused=True
            )
        of_gradient, *of_leaves = second
        return None, None, None, of_gradient, *(None,) * count, *of_leaves


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)


def is_seen_outside(tensor: Tensor) -> bool:
    """Tell whether somebody outside of the innermost transform asks for a gradient."""
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(tensor):
        return tensor.requires_grad
    inner = functorch.get_unwrapped(tensor)
    return inner.requires_grad or (
        functorch.is_functorch_wrapped_tensor(inner) and is_seen_outside(inner)
    )


def gradients_at(inverse: Inverse, total: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of all tensors of an inverse, under ``torch.func``; see `gradients`."""

    def again(*tensors: Tensor) -> Tensor:
        alone = inverse.at(tensors)
        return alone.again(x.reshape(alone.noise.shape[:-1])).reshape(x.shape)

    values, pull, *_ = torch.func.vjp(again, *inverse.tensors)
    return tuple(pull(total.to(values.dtype)))


def derivatives_at(
    inverse: Inverse, gradient: Tensor, cotangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Pull cotangents of :func:`gradients_at` back, to the gradient and to all tensors."""

    def first(gradient: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        def passes(*tensors: Tensor) -> Tensor:
            return inverse.at(tensors).passes(_AGAIN).reshape(gradient.shape)

        return tuple(torch.func.vjp(passes, *tensors)[1](gradient))

    return tuple(torch.func.vjp(first, gradient, *inverse.tensors)[1](cotangents))
