"""What torch is doing: whether values may be read, whether a transform or a mode looks on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_PLAIN_STATE: Any = getattr(object, "__getstate__", None)  # Python 3.10's objects have none
Module = TypeVar("Module", bound=nn.Module)
Rows = TypeVar("Rows", Tensor, None, Tensor | None)


def is_traced() -> bool:
    """Tell whether ``torch.jit.trace`` records what is done."""
    return torch._C._get_tracing_state() is not None


def is_transformed() -> bool:
    """Tell whether tensors may stand for others: while compiling, and under ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def class_of(module: object) -> type:
    """Return the class of a module, and not that of what ``torch.export`` puts in its place."""
    kind = type(module)
    stands_in = kind.__bases__[0].__name__ == "AttrProxy" if kind.__bases__ else False
    return kind.__bases__[-1] if stands_in else kind


def has_global_hooks() -> bool:
    """Tell whether hooks take part in the forward pass of every module of the process."""
    hooks = nn.modules.module
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)


def has_gradient_hooks(modules: Iterable[nn.Module]) -> bool:
    """Tell whether hooks take part in the gradients of some modules: their own, or those of all."""
    hooks = nn.modules.module
    return bool(hooks._global_backward_hooks or hooks._global_backward_pre_hooks) or any(
        module._backward_hooks or module._backward_pre_hooks for module in modules
    )


def is_hooked(module: nn.Module) -> bool:
    """Tell whether hooks take part in a call of a module, or in its gradients."""
    own = module._forward_hooks or module._forward_pre_hooks
    return bool(own) or has_global_hooks() or has_gradient_hooks([module])


def is_forward_mode() -> bool:
    """Tell whether forward-mode derivatives are being taken (``jvp``, ``jacfwd``, dual tensors)."""
    return bool(torch.autograd.forward_ad._current_level >= 0)


def is_recorded(x: Tensor) -> bool:
    """Tell whether a CUDA graph records what is done on a tensor's device, and nothing is done."""
    cuda = torch.cuda
    return x.is_cuda and cuda.is_initialized() and cuda.is_current_stream_capturing()


def has_concrete_values(x: Tensor) -> bool:
    """Tell whether a tensor's values may be read.

    Not while compiling, tracing (``torch.jit``, ``make_fx``), in ``torch.func``, while a CUDA graph
    records, nor of meta and fake tensors.
    """
    return not (
        torch.compiler.is_compiling()
        or is_traced()
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or x.is_meta
        or is_recorded(x)
        or (type(x) not in (Tensor, nn.Parameter) and hasattr(x, "fake_mode"))
        or (torch._C._len_torch_dispatch_stack() > 0 and _has_stand_ins())
    )


def _has_stand_ins() -> bool:
    """Tell whether a mode of torch has tensors without values, or records what is done to them."""
    keys, mode_of = torch._C._TorchDispatchModeKey, torch._C._get_dispatch_mode
    return mode_of(keys.FAKE) is not None or mode_of(keys.PROXY) is not None


def has_finite_sum(x: Tensor) -> bool:
    """Tell whether the sum is finite, as it is only if all values are: a tenth of their time."""
    return math.isfinite(x.detach().sum().item())


def is_untransformed(x: Tensor) -> bool:
    """Tell whether a tensor is what it seems: no compiler, transform or mode looks on."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and not is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and not is_traced()
    )


def module_of_same_parts(module: Module) -> Module:
    """Make a module of the same tensors and modules, in which others can take their places.

    What ``copy.copy`` would make, which shares their dictionaries, refuses parametrized layers, and
    which ``torch.compile`` does not trace. As there, a class says by ``__getstate__`` what is of
    one module alone.
    """
    other: Module = object.__new__(type(module))
    other.__dict__.update(_state_of(module))
    for name in ("_parameters", "_buffers", "_modules"):
        other.__dict__[name] = dict(other.__dict__[name])
    return other


def has_lent_weights(module: nn.Module) -> bool:
    """Tell whether ``torch.func.functional_call`` has put tensors in the place of weights.

    Without gradients and transforms, where every microsecond counts, by the first weights alone:
    who asks for a model of other weights then gives all of them.
    """
    quick = not torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
    every: list[nn.Module | None] = [module]
    for each in every:
        if each is None:
            continue
        weights: dict[str, Any] = each._parameters
        if weights:
            for weight in weights.values():
                # Those of other classes (DTensor, say) are parameters by their mark.
                if type(weight) is nn.Parameter or isinstance(weight, nn.Parameter):
                    if quick:
                        return False
                elif weight is not None:
                    return True
        if inner := each._modules:
            every += inner.values()
    return False


def keeping_weights(module: Module) -> Module:
    """Make a module of the tensors that another has now, whatever it is given later."""
    made: dict[int, Any] = {}

    def keep(each: Any) -> Any:
        if each is not None and id(each) not in made:
            other = made[id(each)] = module_of_same_parts(each)
            other._modules.update({name: keep(one) for name, one in each._modules.items()})
        return made.get(id(each))

    kept: Module = keep(module)
    return kept


def _state_of(module: nn.Module) -> dict[str, Any]:
    own: Any = getattr(type(module), "__getstate__", None)
    whole = own is _PLAIN_STATE or is_parametrized(module)  # which refuses
    return vars(module) if whole else own(module)


@contextmanager
def modes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules back into the mode, training or evaluation, that each was in."""
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def is_autocast(x: Tensor) -> bool:
    """Tell whether autocast chooses the precision of products on a tensor's device."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def own_precision(device: str) -> AbstractContextManager[None]:
    """Return a context in which products keep their tensors' dtype, whatever autocast says."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def exceeds(size: Any, limit: int) -> bool:
    """Tell whether a size is beyond a limit; a symbol, as while exporting for any, is not."""
    return isinstance(size, int) and size > limit


def as_rows(x: Rows, batch: torch.Size) -> Rows:
    """Return what broadcasts to (*batch, N), such as a context, as (rows, N); None stays None."""
    if x is None or (x.dim() == 2 and x.shape[:-1] == batch):  # type: ignore[redundant-expr]
        return x
    return x.expand(*batch, -1).reshape(-1, x.shape[-1])


def in_groups(
    group: Tensor, compute: Callable[[int, Tensor], Tensor], groups: int | None = None
) -> Tensor:
    """Compute rows (N, ...) group by group, and return them in their own order.

    Args:
        group: number of each row's group, (N,).
        compute: rows (n, ...) from a group's number and the places of its rows; of no rows at all
            those of group 0.
        groups: how many there are, by which all rows of each are computed where the numbers cannot
            be read.
    """
    if groups is not None and not has_concrete_values(group):
        places = torch.arange(len(group), device=group.device)
        each = torch.stack([compute(number, places) for number in range(groups)])
        return each[group, places]
    by_group = torch.argsort(group, stable=True)
    used, counts = torch.unique(group, return_counts=True)
    pieces = zip(used.tolist(), by_group.split(counts.tolist()), strict=True)
    parts = [compute(number, places) for number, places in pieces]
    return torch.cat(parts).index_select(0, by_group.argsort()) if parts else compute(0, group)
