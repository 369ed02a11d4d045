"""Activations: made of names, modules or functions, and named so that operators can pass them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows._checks import described, expect, expect_type, expect_word
from made_flows._keys import KeyedModule
from made_flows._torch import (
    class_of,
    has_concrete_values,
    is_hooked,
    is_traced,
    is_transformed,
    modes_kept,
)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
"""The activations known by name, each a torch module."""

CONSTANTS = {"elu": "alpha", "leaky_relu": "negative_slope", "softplus": "beta"}
"""What modules and functions call the constant of an activation that has one."""

_NAMES = {kind: name for name, kind in ACTIVATIONS.items()}

_FUNCTIONS: dict[Any, nn.Module] = {
    getattr(place, name): kind()
    for place in (torch, F)
    for name, kind in ACTIVATIONS.items()
    if hasattr(place, name)
}

# Those whose gradient is a function of their result, as it is not below negative constants.
_IN_PLACE: dict[type, Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda _, z: torch.relu_(z),
    nn.Tanh: lambda _, z: torch.tanh_(z),
    nn.Sigmoid: lambda _, z: torch.sigmoid_(z),
    nn.ELU: lambda elu, z: F.elu(z, elu.alpha, inplace=elu.alpha >= 0),
    nn.LeakyReLU: lambda leaky, z: F.leaky_relu(
        z, leaky.negative_slope, inplace=leaky.negative_slope >= 0
    ),
    nn.Identity: lambda _, z: z,
}


class _Wrapped(KeyedModule):
    """A function or module that is not a known one, with a key that operators can pass."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def __repr__(self) -> str:
        return repr(self.function)


def make_activation(activation: Any, argument: str = "activation") -> nn.Module:
    """Make a module of an activation: of a name, a module, a module class or a function.

    Args:
        activation: one of the names in :data:`ACTIVATIONS`, an ``nn.Module`` (or a class of
            them that needs no arguments), or an elementwise function of a tensor.
        argument: what errors call it.

    Raises:
        ValueError: for an unknown name, and for what does not treat every number by itself and
            all alike (a softmax, a layer normalisation, slopes that differ from unit to unit).
        TypeError: for anything that cannot be called.

    Example:
        >>> make_activation("relu")
        ReLU()
    """
    if isinstance(activation, str):
        names = ", ".join(ACTIVATIONS)
        expect_word(activation, ACTIVATIONS, argument, f"to be one of {names}")
        return ACTIVATIONS[activation]()
    kind = activation if isinstance(activation, type) else type(activation)
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        try:
            activation = activation()
        except TypeError:
            expect_type(False, argument, "to be a class that needs no arguments", kind)
    expect_type(callable(activation), argument, "to be a name, module or function", activation)
    if isinstance(activation, _Wrapped):
        return activation
    known = activation_code(activation) is not None
    if not known:
        name = getattr(activation, "__name__", kind.__name__)
        expected = "to be elementwise, every number by itself and all alike"
        expect(is_elementwise(activation), argument, expected, name)
    return activation if known and isinstance(activation, nn.Module) else _Wrapped(activation)


@torch.no_grad()
def is_elementwise(activation: Callable[[Tensor], Tensor]) -> bool:
    """Say whether a module or function treats every number by itself, and all alike.

    It is tried out, a module in evaluation mode: on a matrix, and on some of its numbers in another
    shape.
    """
    modules = list(activation.modules()) if isinstance(activation, nn.Module) else []
    weights = [p for m in modules for p in m._parameters.values() if p is not None]
    like = weights[0] if weights else torch.empty(0, device="cpu")
    if not has_concrete_values(like) or is_transformed():
        return True
    z = torch.linspace(-2, 2, 24, dtype=like.dtype, device=like.device).reshape(4, 6)
    try:
        with modes_kept(modules), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one number there may be no variance, say
            for module in modules:
                module.training = False
            whole, some = activation(z.clone()), activation(z.reshape(24, 1)[7:].clone())
            alike = torch.allclose(
                whole.reshape(24, 1)[7:], some, rtol=1e-4, atol=1e-6, equal_nan=True
            )
        return whole.shape == z.shape and alike
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
        return False


def activation_code(activation: Any) -> tuple[str, float] | None:
    """Return the name and constant of an activation, None where it is not one of the known ones.

    The constant is ELU's alpha, leaky ReLU's slope, softplus' beta; 0 elsewhere. Exact types
    only: a subclass may compute something else.
    """
    if isinstance(activation, _Wrapped):
        return activation_code(activation.function)
    if not isinstance(activation, nn.Module):
        activation = _FUNCTIONS.get(activation)
    name = _NAMES.get(class_of(activation))
    if name is None or (name == "gelu" and activation.approximate != "none"):
        return None
    # Above its threshold torch's softplus is the identity: at 20, to rounding in float32, to 2e-9
    # in float64. The kernel follows the same rule.
    if name == "softplus" and activation.threshold != 20:
        return None
    return name, float(getattr(activation, CONSTANTS[name])) if name in CONSTANTS else 0.0


def code_of(value: Any) -> tuple[str, float] | None:
    """Return the code of an activation as arguments have it: a name, class, module or function."""
    if isinstance(value, str):
        value = ACTIVATIONS.get(value)
    if isinstance(value, type):  # a class is what it makes without arguments
        value = value() if value in _NAMES else None
    return activation_code(value) if callable(value) and isinstance(value, Hashable) else None


def activate(activation: nn.Module, z: Tensor, *, overwrite: bool) -> Tensor:
    """Apply an activation.

    Args:
        activation: an activation of :func:`make_activation`.
        z: what it is applied to.
        overwrite: whether nothing else needs z. Then it is overwritten where the gradient allows:
            at 512 units and 1024 rows the two copies that this saves take a fifth of a forward
            pass, most of it for pages of fresh memory. Otherwise z stays as it is, whatever the
            activation does to its argument.
    """
    apply = cast(Callable[[Tensor], Tensor], activation)
    if not overwrite:
        return apply(z.clone() if may_overwrite(activation) else z)
    # What nothing else needs here may be needed where a trace of torch.jit is run.
    kept = is_hooked(activation) or is_traced()
    in_place = None if kept else _IN_PLACE.get(class_of(activation))
    return apply(z) if in_place is None else in_place(activation, z)


def may_overwrite(activation: Any) -> bool:
    """Say whether an activation may write on its argument.

    Modules and functions that are not known may, and so may hooks.
    """
    if isinstance(activation, _Wrapped) and not is_hooked(activation):
        return may_overwrite(activation.function)
    if isinstance(activation, nn.Module) and is_hooked(activation):
        return True
    return activation_code(activation) is None or bool(getattr(activation, "inplace", False))


def activation_name(activation: nn.Module) -> str:
    """Name an activation so that :func:`activation_of_name` finds it again."""
    code = activation_code(activation)
    if code is not None:
        return f"{code[0]}:{code[1]!r}"
    if isinstance(activation, _Wrapped):
        return f"key:{activation.key}"
    raise TypeError(f"Expected an activation made by make_activation; got {described(activation)}")


def activation_of_name(name: str) -> nn.Module:
    """Return the activation that a name of :func:`activation_name` stands for."""
    kind, constant = name.split(":")
    if kind == "key":
        wrapped: nn.Module = KeyedModule.of_key(int(constant))
        return wrapped
    options = {CONSTANTS[kind]: float(constant)} if kind in CONSTANTS else {}
    return ACTIVATIONS[kind](**options)


def keyed_activation(name: str) -> nn.Module | None:
    """Return the activation of a model's own that a name stands for while it lives, if it does."""
    kind, constant = name.split(":")
    return KeyedModule.living(int(constant)) if kind == "key" else None
