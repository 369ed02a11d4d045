"""What training changes and puts back: weights, modes, random generators, optimisers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from made_flows._checks import expect, expect_type
from made_flows.nn.made import MADE
from made_flows.training.defaults import Settings

Optimizer: TypeAlias = (
    torch.optim.Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
)


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's parameters and buffers (those outside the state dict too)."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model)}


@torch.no_grad()
def restore_weights(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write a copy back in place, so that ties and optimisers keep their tensors."""
    for name, tensor in named_tensors(model):
        value = values[name].to(tensor.device)
        if not torch.equal(tensor, value):  # an expanded constant has no room
            tensor.copy_(value)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's parameters and buffers, by name."""
    return chain(model.named_parameters(), model.named_buffers())


class Average:
    """An exponential moving average of the weights, put in their place to validate."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.values = [parameter.detach().clone() for parameter in parameters]

    def update(self) -> None:
        # A short memory at first, or the start would weigh for 1 / (1 - decay) steps.
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self.values, [p.detach() for p in self.parameters], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the place of the weights, for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            current = parameter.clone()
            parameter.copy_(value)
            value.copy_(current)


class Dropping:
    """Dropout of hidden units, in networks that have none of their own, while they are trained.

    In between, such as when callbacks copy or save the model, it is what it was.
    """

    def __init__(self, model: nn.Module, probability: float) -> None:
        made = [m for m in model.modules() if isinstance(m, MADE) and m.dropout is None]
        self.layers = [(network, nn.Dropout(probability)) for network in made if probability]

    @contextmanager
    def applied(self) -> Iterator[None]:
        for network, layer in self.layers:
            network.dropout = layer.train(network.training)
        try:
            yield
        finally:
            for network, _ in self.layers:
                network.dropout = None


@contextmanager
def left_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode afterwards, in which its scores are not random."""
    try:
        yield
    finally:
        model.eval()


_CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int | None, device: torch.device = _CPU) -> Iterator[torch.Generator]:
    """Seed the global generators (for dropout, loaders) and put them back afterwards.

    Without a seed they go on as they are.
    """
    if seed is None:
        yield torch.default_generator
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_generators(seed, device)
        yield torch.Generator().manual_seed(seed)


@contextmanager
def moved(model: nn.Module, device: torch.device | None) -> Iterator[Callable[[], None]]:
    """Move a model to a device, and back on an error, until the function given is called."""
    devices = (tensor.device for _, tensor in named_tensors(model))
    before = None if device is None else next(devices, None)
    stays: list[bool] = []
    try:
        if before is not None:
            model.to(device)
        yield lambda: stays.append(True)
    except BaseException:
        if before is not None and not stays:
            model.to(before)
        raise


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of a device."""
    # Not torch.manual_seed, which would seed every other device for good.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class SparseAdam(torch.optim.AdamW):
    """AdamW whose weights can also shrink to zero: a decoupled soft threshold after every step.

    A group's ``sparsity`` is the threshold in units of its learning rate. As a step of Adam is at
    most about the rate, a weight lives if its gradient points one way more often than not.

    Attributes:
        slowed: parameters, and the part of a step that each of their rows takes.
    """

    slowed: Sequence[tuple[nn.Parameter, Tensor]] = ()

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        before = [weight.detach().clone() for weight, _ in self.slowed]
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                if group.get("sparsity"):
                    for weight in group["params"]:
                        weight.copy_(F.softshrink(weight, group["lr"] * group["sparsity"]))
            for (weight, part), old in zip(self.slowed, before, strict=True):
                weight.copy_(torch.lerp(old, weight, part.to(weight)))
        return loss


_DIRECT, _FASTEST = 20.0, 0.02
"""Rate of direct connections, whose gradients are small, over the others'; and the highest."""


def _fast(rate: float) -> float:
    return max(rate, min(_DIRECT * rate, _FASTEST))


def _groups(
    model: nn.Module, parameters: list[nn.Parameter], rate: float, sparsity: float, sparing: bool
) -> list[dict[str, Any]]:
    """Return groups of parameters: direct connections, which are sparse, and biases of outputs.

    Where that is all that decays, weights of masked networks are in groups of their own.
    """
    made = [module for module in model.modules() if isinstance(module, MADE)]
    connected = [m for m in made if m.direct is not None and sparsity]
    fast: dict[str, Any] = {"lr": _fast(rate)}
    kinds = {id(m.layers[-1].bias): (1, fast) for m in connected}
    sparse = 2, fast | {"sparsity": sparsity}
    kinds |= {id(p): sparse for m in connected if m.direct for p in m.direct.parameters()}
    weights = {id(p) for m in made for p in m.layers.parameters() if p.dim() > 1}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for p in parameters:
        number, options = kinds.get(id(p), (0, {}))
        spared = sparing and id(p) not in weights
        options = options | {"weight_decay": 0.0} if spared else options
        groups.setdefault((number, spared), {"params": [], **options})["params"].append(p)
    return [groups[key] for key in sorted(groups)]


def _slowed(model: nn.Module, rate: float) -> list[tuple[nn.Parameter, Tensor]]:
    """Return what would learn too fast: parameters whose rows are not all of logits."""
    found = []
    for module in model.modules():
        made, head = getattr(module, "made", None), getattr(module, "head", None)
        logits = getattr(head, "logits", None)
        if isinstance(made, MADE) and made.direct is not None and logits is not None:
            part = torch.where(logits.to(made.ranks.device), 1.0, rate / _fast(rate))
            found += [(p, part[:, None]) for p in made.direct.parameters()]
            found += [(p, part) for n, p in made.layers[-1].named_parameters() if n == "bias"]
    return found


def _is_elsewhere(parameter: Tensor, state: dict[str, Any]) -> bool:
    """Tell whether what an optimizer keeps of a parameter has stayed on another device."""
    kept = [each for each in state.values() if isinstance(each, Tensor) and each.dim()]
    return any(each.device != parameter.device for each in kept)


def make_optimizer(
    optimizer: Optimizer | None,
    model: nn.Module,
    settings: Settings,
    *,
    shrinks_all: bool,
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """Return the optimizer to train a model with, and the parameters that it changes.

    Where it does not shrink all of them, weights of masked networks alone decay.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    expect(bool(parameters), "model", "to have parameters that require gradients", "none")
    if optimizer is None:
        rate, decay, sparsity = settings.learning_rate, settings.weight_decay, settings.sparsity
        kind = torch.optim.AdamW if decay else torch.optim.Adam
        # One kernel for all tensors: on a CPU several times faster than one call per operation.
        # It assumes that parameters and gradients have one memory layout.
        fused = all(p.device.type in ("cpu", "cuda") and p.is_contiguous() for p in parameters)
        kind = SparseAdam if sparsity else kind
        groups = _groups(model, parameters, rate, sparsity, decay > 0 and not shrinks_all)
        optimizer = kind(groups, lr=rate, weight_decay=decay, fused=fused)
        if isinstance(optimizer, SparseAdam):
            optimizer.slowed = _slowed(model, rate)
    elif not isinstance(optimizer, torch.optim.Optimizer):
        wanted = "to be a torch.optim.Optimizer, or a function that makes one from parameters"
        expect_type(callable(optimizer), "optimizer", wanted, optimizer)
        optimizer = optimizer(parameters)
    kind_given = type(optimizer).__name__
    if any(_is_elsewhere(p, state) for p, state in optimizer.state.items()):
        optimizer.load_state_dict(optimizer.state_dict())  # which moves it to the parameters
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    optional = closure is None or closure.default is not inspect.Parameter.empty
    wanted = "to be one that steps by the gradients it is given, such as Adam or SGD"
    got = f"{kind_given}, which evaluates the loss again in every step"
    expect(optional, "optimizer", wanted, got)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    known = not held.isdisjoint(map(id, parameters))
    expect(known, "optimizer", "to hold parameters of the model", kind_given)
    return optimizer, parameters
