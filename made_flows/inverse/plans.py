"""Networks and their maps in a row, in one compiled call without gradients.

What a call costs besides its kernels is more than these take for a small network. It is paid once
for the whole row, be it the transforms of a flow or one network and its head: a :class:`Plan` is
all that kernels are told besides the rows, kept while the networks are what they were. Where a map
of the row is not compiled, each goes by itself, with the same numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from made_flows._cache import Proof, Stamp
from made_flows._torch import as_rows
from made_flows.inverse import dispatch
from made_flows.inverse.batches import (
    batch_of,
    context_rows,
    expect_on_cpu,
    is_plain_call,
    shaped,
    takes,
)
from made_flows.inverse.compiled.placement import context_of, knows
from made_flows.inverse.steps import BijectionStep, HeadStep, fits
from made_flows.nn.activations import activation_code
from made_flows.nn.linear import MaskedLinear, is_weight_hook
from made_flows.nn.made import MADE, METHODS
from made_flows.nn.made_spec import MADESpec, expect_layer
from made_flows.nn.validation import NotUnderstoodError, Watch
from made_flows.univariate.step_kernel import StepKernel

_PLANS = 8
"""Plans kept with a network: for each direction, by itself and as the first of a row."""


class Stage(NamedTuple):
    """A network and a map, one way."""

    made: MADE
    step: HeadStep | BijectionStep
    sequential: bool
    """Whether the network reads the result, and not what is given."""

    def fits(self) -> bool:
        """Tell whether the network has the inputs and outputs that the map reads."""
        return fits(self.step, self.made.inputs, self.made.outputs)


class _Packed(NamedTuple):
    """What a plan makes of the weights."""

    stamp: Stamp
    calls: list[Any]
    symbolic: list[Any]
    weights: Tensor | None
    """Weights of contexts, (units, C), for the sorted units of one network after the other."""
    sizes: list[int]
    """How many of these units each network has."""


class Plan:
    """Networks and their maps in a row, as the kernels take them.

    It holds while the same modules, tensors, methods, hooks and constants take part, and packs the
    weights again where they have changed.

    Args:
        cpu: the module with the kernels.
        stages: networks and maps, in the order in which they are taken.
        around: the transforms that they are of, if they are of some.
        way: the method by which those are asked.
        parts: parts of noise of a feature.
        dropping: whether it is of networks that drop units, with gradients, and of no others.

    Attributes:
        reads: the networks as they were read.
        kept: what others keep with it, under their names.

    Raises:
        NotUnderstoodError: for networks and maps that the kernels do not know.
    """

    def __init__(
        self,
        cpu: Any,
        stages: Sequence[Stage],
        around: Sequence[Any],
        way: str,
        parts: int,
        dropping: bool,
    ) -> None:
        self._cpu, self._stages = cpu, stages
        self._told: list[Any] = [self._ask(stage) for stage in stages]
        if not stages or None in self._told or not all(map(Stage.fits, stages)):
            raise NotUnderstoodError("there is no map, one without a kernel, or of another network")
        mades = [stage.made for stage in stages]
        reads: list[Any] = [made.plain_read(dropping=dropping) for made in mades]
        if not all(read is not None and knows(read.network) for read in reads):
            raise NotUnderstoodError("a network is not its layers alone, or they are not known")
        self.features, self.dtype = mades[0].features, mades[0].dtype
        self.context = max(made.context for made in mades)
        forms = {(made.features, made.dtype, made.context or self.context) for made in mades}
        if len(forms) > 1:
            raise NotUnderstoodError("networks are of several sizes")
        self._parts, self.count = parts, len(stages)
        self.reads, self._around = reads, [*around]

        self._ways = [*map(_ways, mades, reads)]
        ways = list(chain.from_iterable(ways.values() for ways in self._ways if ways))
        owners = [step.owner.modules() for _, step, _ in stages]
        self._drops = [made.dropout for made in mades if made.dropout is not None]
        self._dropping = dropping
        watched = [*(read.modules for read in reads), self._drops if dropping else []]
        self._watch = Watch(chain(self._around, *watched, *owners, ways), allowed=is_weight_hook)
        everywhere = nn.modules.module
        self._hooks: list[Any] = [
            everywhere._global_backward_hooks, everywhere._global_backward_pre_hooks,
            *(hooks for made in mades for hooks in (made._backward_hooks, made._backward_pre_hooks))
        ]  # fmt: skip
        self._reading = [each.reads for each in self._around]

        absent = [(vars(each), way) for each in self._around]
        absent += [(vars(made), method) for made in mades for method in METHODS]
        self._owners, self._absent = zip(*absent, strict=True)
        places = [place for read in reads for place in read.places]
        for layer in ways:
            places += [(layer._parameters, "weight"), (layer._buffers, "mask")]
        self._tables, self._names = zip(*places, strict=True)
        self._held = [*map(dict.get, self._tables, self._names)]
        self._tensors: list[Any] = [tensor for tensor in self._held if tensor is not None]

        # Attributes where they say all that a kernel is told, and elsewhere the kernel itself.
        self._own: list[dict[str, Any]] = []
        self._asked: list[Any] = [
            (MADE.is_plain, made, True) for made in mades if type(made) is not MADE
        ]
        of_steps = [(stage.step.owner, self._ask, stage, self._ask(stage)) for stage in stages]
        layers = [made.activation for made in mades]
        of_activations = [(each, activation_code, each, activation_code(each)) for each in layers]
        for owner, *asked in of_steps + of_activations:
            own = _attributes(owner)
            if own is None:
                self._asked.append(asked)
            else:
                self._own += own
        self._said = [own.copy() for own in self._own]
        self._packed: _Packed | None = None
        self.kept: dict[str, Any] = {}

    def _ask(self, stage: Stage) -> tuple[StepKernel, tuple[float, ...]] | None:
        """Return the kernel of a step and its numbers, which may change; None without one."""
        ask = self._cpu.kernel_of if stage.sequential else self._cpu.score_kernel_of
        kernel = ask(stage.step)
        return None if kernel is None else (kernel, kernel.numbers)

    def holds(self, around: Sequence[Any]) -> bool:
        """Tell whether the row begins with the same transforms, and all is what it was."""
        try:
            return self._holds(around)
        except (RuntimeError, ValueError):  # an attribute has become a tensor, or an array
            return False

    def _holds(self, around: Sequence[Any]) -> bool:
        return (
            [*around[: len(self._around)]] == self._around
            and not any(self._hooks)
            and self._watch.unchanged()
            and self._own == self._said
            and not any(map(dict.__contains__, self._owners, self._absent))
            and all(map(operator.is_, map(dict.get, self._tables, self._names), self._held))
            and [each.reads for each in self._around] == self._reading
            and (not self._drops or self._dropping == any(d.training for d in self._drops))
            and (not self._asked or all(ask(of) == answer for ask, of, answer in self._asked))
        )

    def _weights(self, proofs: list[Proof] | None) -> _Packed | None:
        """Return what the weights are packed into; None where kernels cannot read them."""
        packed = self._packed  # another thread may pack, too
        if packed is None or not packed.stamp.unchanged(self._tensors, proofs):
            stamp = Stamp.of(self._tensors)  # before the rest, so that no change goes unnoticed
            packed = self._packed = None if stamp is None else self._pack(stamp)
        return packed

    def _pack(self, stamp: Stamp) -> _Packed | None:
        if not all(tensor.is_cpu for tensor in self._tensors):
            return None
        calls, symbolic, rows, sizes = [], [], [], []
        for stage, (kernel, _), read, ways in zip(
            self._stages, self._told, self.reads, self._ways, strict=True
        ):
            ready = self._cpu.ready_for(read.with_context if stage.made.context else read.network)
            if ready is None:
                return None
            calls.append(ready.call("step" if stage.sequential else "score", kernel, self._parts))
            symbolic.append(ready.symbolic)
            found = [
                (way.weight * way.factors()).index_select(0, ready.symbolic.layers[index].units)
                for index, way in sorted((ways or {}).items())
            ]
            rows += found
            sizes.append(sum(map(len, found)))
        weights = torch.cat(rows).detach() if rows else None
        return _Packed(stamp, calls, symbolic, weights, sizes)

    def run(
        self, x: Tensor, context: Tensor | None, *, believes: bool = True
    ) -> tuple[Tensor | None, Tensor | None] | None:
        """Map values (N, D), or noise (N, D, P), under a context (rows, C).

        Weights that take long to read are believed to be what they were until the end, and all is
        computed again where they are not: threads that have no rows read them meanwhile.

        Returns:
            Images (N, D) and densities (N,), where there are such. None where kernels cannot read
            the weights, or the context.
        """
        proofs: list[Proof] | None = [] if believes and torch.get_num_threads() > 1 else None
        packed = self._weights(proofs)
        if packed is None:
            return None
        name = "noise" if self._stages[0].sequential else "values"
        expect_on_cpu(x, context, name=name)
        contexts: list[Any] = []
        parts: Any = ()
        if packed.weights is not None and context is not None:
            parts = torch.mm(packed.weights, context.mT).split(packed.sizes)
        for place, (stage, read, ways) in enumerate(
            zip(self._stages, self.reads, self._ways, strict=True)
        ):
            if ways:
                contexts.append((parts[place], context.shape[0]))  # type: ignore[union-attr]
            elif stage.made.context or read.offsets:
                network = read.at(context if stage.made.context else None)
                contexts.append(context_of(packed.symbolic[place], network))
            else:
                contexts.append(None)
        proof = proofs[0] if proofs else None
        found: tuple[Tensor | None, Tensor | None]
        found = self._cpu.run(packed.calls, x, contexts, proof)
        if proof is not None and not proof.holds():
            return self.run(x, context, believes=False)
        return found


def _ways(made: MADE, read: MADESpec) -> dict[int, MaskedLinear] | None:
    """Return the layers that contexts come in by, by where; None where they are to be called."""
    if not made.context or read.offsets:
        return None
    try:
        for way in read.contexts.values():
            expect_layer(way)
            Watch([way])
    except NotUnderstoodError:
        return None
    tables = ((way._parameters, way.bias) for way in read.contexts.values())
    plain = all(table.get("weight") is not None and bias is None for table, bias in tables)
    return read.contexts if plain else None


_OWN = frozenset(vars(nn.Module())) | {"_arguments"}
"""Attributes that every module has, or every module that is saved."""

_FIXED = (int, float, str, tuple, type, type(None), torch.dtype)
"""Types of attributes whose values do not change in place."""


def _attributes(owner: Any) -> list[dict[str, Any]] | None:
    """Return the attributes of a module, and those within, by which its kernel is chosen.

    None where it may be chosen by something else: of other classes than the library's and torch's,
    of weights, and of attributes that may change in place.
    """
    found = []
    for module in owner.modules():
        own = vars(module)
        kinds = (isinstance(own[name], _FIXED) for name in own.keys() - _OWN)
        library = type(module).__module__.partition(".")[0] in ("made_flows", "torch")
        if not library or module._parameters or module._buffers or not all(kinds):
            return None
        found.append(own)
    return found


def plan_for(
    made: MADE,
    name: Any,
    stages: Callable[[], Sequence[Stage]],
    *,
    around: Sequence[Any] = (),
    way: str = "",
    parts: int = 1,
    dropping: bool = False,
) -> Plan | None:
    """Return the plan that is kept of a row, made anew where it holds no more.

    Whether kernels may read the values (:func:`is_plain_call`) is for callers to say.

    Args:
        made: the first network, which keeps it.
        name: what it is kept under.
        stages: names the networks and maps.
        around: what begins with the transforms that these are of, if they are of some.
        way, parts, dropping: those of the plan.

    Returns:
        None where each is to be taken by itself.
    """
    cpu = dispatch.for_plans(made.like)
    if cpu is None:
        return None
    plan: Plan | None = made._plans.get(name)
    if plan is None or not plan.holds(around):
        row = stages()
        try:
            plan = Plan(cpu, row, around[: len(row)], way, parts, dropping)
        except NotUnderstoodError:
            return None
        if len(made._plans) >= _PLANS:
            made._plans.clear()
        made._plans[name] = plan
    return plan


def plan_alone(
    made: MADE, step: HeadStep | BijectionStep, *, dropping: bool = False
) -> Plan | None:
    """Return the plan of one network whose values are known; None where torch is to do it."""
    name = step.name, "known, and dropping" if dropping else "known"
    return plan_for(made, name, lambda: [Stage(made, step, False)], dropping=dropping)


def map_alone(
    made: MADE, step: HeadStep | BijectionStep, x: Tensor, context: Tensor | None
) -> tuple[Tensor | None, Tensor | None] | None:
    """Map known values (N, D) by one network under a context (rows, C), without gradients."""
    plan = plan_alone(made, step)
    return None if plan is None else plan.run(x, context)


def solve_alone(made: Any, step: Any, noise: Tensor, context: Tensor | None) -> Tensor | None:
    """Solve for values (..., D) by one network, without gradients; None where others are to."""
    if not (
        isinstance(made, MADE)
        and isinstance(step, (HeadStep, BijectionStep))
        and noise.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and takes(made, context)
    ):
        return None
    *batch, _, parts = noise.shape
    name = step.name, "solved", parts
    # One that is asked only once is not worth a plan. What a context contributes would be another
    # sum, in its last digit, from the second call on.
    if name not in made._plans and not made.context:
        made._plans[name] = None
        return None
    plan = plan_for(made, name, lambda: [Stage(made, step, True)], parts=parts)
    if plan is None:
        return None
    flat = noise if len(batch) == 1 else noise.reshape(-1, *noise.shape[-2:])
    found = plan.run(flat, context_rows(context, noise.shape[:-2]))
    if found is None:
        return None
    values: Tensor = found[0].to(step.value_dtype(noise.dtype))  # type: ignore[union-attr]
    return values if len(batch) == 1 else values.reshape(*batch, plan.features)


def map_all(
    made: MADE,
    stages: Callable[[], Sequence[Stage]],
    transforms: Sequence[Any],
    way: str,
    x: Tensor,
    context: Tensor | None,
) -> tuple[int, Tensor, Tensor | None] | None:
    r"""Map values by the first of some transforms in one call, without gradients.

    Args:
        made: the network of the first.
        stages: names the networks and maps of those that may go together.
        transforms: the transforms.
        way: how they are asked.
        x: (..., D), what the first is given.
        context: c, (..., C), broadcast against x, for those that take one.

    Returns:
        How many, their images (..., D), and the sum :math:`\sum \log |\partial y_i / \partial
        x_i|` (...) over those that are parallel. None where each is to be taken by itself.
    """
    if not is_plain_call(x):
        return None
    plan = plan_for(made, (way, id(transforms[0])), stages, around=transforms, way=way)
    if plan is None or (x.shape[-1:], x.dtype) != ((plan.features,), plan.dtype):
        return None
    context = context if plan.context else None
    if not takes(plan, context):
        return None
    batch = x.shape[:-1] if context is None else batch_of(x, context)
    if batch is None:
        return None
    found = plan.run(as_rows(x, batch), context_rows(context, batch))
    return None if found is None else (plan.count, *shaped(*found, batch))
