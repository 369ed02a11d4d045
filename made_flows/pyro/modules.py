"""Weights under Pyro's effects: PyroModules of this library's classes, and their values in a trace.

``pyro.nn.module.to_pyro_module_`` makes a class of a module's own class and PyroModule's. Classes
that declare abstract methods have a metaclass, as PyroModule has one, and Python asks for a third
that is both.

A weight under a prior has a value only while the module that holds it is being called; at any other
time, reading it draws another one. Distributions are scored later, so that they keep the values.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

from pyro.nn import PyroModule
from torch import nn

from made_flows.models.mixtures import MixtureModel
from made_flows.nn.linear import MaskedLinear
from made_flows.transforms.base import Transform
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.heads import Head

_PyroMeta: Any = type(PyroModule)


class _AbstractPyroMeta(_PyroMeta, ABCMeta):
    """The metaclass of PyroModules with abstract methods."""


def _admit(kind: type[nn.Module]) -> None:
    """Tell Pyro which class stands for an abstract one; those of its subclasses then follow.

    Args:
        kind: the abstract class.
    """
    known = _PyroMeta._pyro_mixin_cache
    if kind in known:
        return
    parents = [PyroModule[base] for base in kind.__bases__ if issubclass(base, nn.Module)]
    known[kind] = _AbstractPyroMeta(f"Pyro{kind.__name__}", (kind, *parents), {})


for _kind in (Bijection, Head, MixtureModel, Transform):
    _admit(_kind)


def materialized(model: nn.Module) -> nn.Module:
    """Return the model as it is in this call: weights under Pyro's effects are tensors.

    Args:
        model: of any kind; one without a PyroModule in it is returned itself.

    Raises:
        ValueError: for a batch of weights, as vectorised particles draw them: a network has one.

    Example:
        >>> import pyro.distributions as dist, made_flows as mf
        >>> from pyro.nn.module import PyroSample, to_pyro_module_
        >>> model = mf.GaussianMADE(3, hidden_features=(8,))
        >>> to_pyro_module_(model)
        >>> last = model.made.layers[-1]
        >>> last.weight = PyroSample(dist.Normal(0, 1).expand(last.mask.shape).to_event(2))
        >>> weights = [materialized(model).made.layers[-1].weight for _ in range(2)]
        >>> (weights[0] == weights[1]).all().item()
        False
    """
    if any(isinstance(module, PyroModule) for module in model.modules()):
        return _plain(model, {})
    return model


def _plain(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy without effects, which shares everything but what is under them."""
    if module in done:
        return done[module]
    modules = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    own = next(kind for kind in modules if not issubclass(kind, PyroModule))
    plain = done[module] = own.__new__(own)
    # What is derived from the weights (some modules leave it out of their state) is not copied.
    state: dict[str, Any] = dict(
        module.__getstate__() if hasattr(own, "__getstate__") else vars(module)
    )
    state = {name: value for name, value in state.items() if not name.startswith("_pyro_")}
    effects = [*vars(module).get("_pyro_params", ()), *vars(module).get("_pyro_samples", ())]
    hidden = {f"{name}_unconstrained" for name in effects}
    names = [*(name for name in module._parameters if name not in hidden), *effects]
    state["_parameters"] = {name: getattr(module, name) for name in names}
    state["_modules"] = {
        name: None if child is None else _plain(child, done)
        for name, child in module._modules.items()
    }
    vars(plain).update(state)
    if isinstance(plain, MaskedLinear) and plain.weight.shape != plain.mask.shape:
        raise ValueError(
            f"Expected weight of shape {tuple(plain.mask.shape)}; got {tuple(plain.weight.shape)}, "
            f"a batch of networks. Draw one at a time: vectorize_particles=False, parallel=False, "
            f"and no plate around the module"
        )
    return plain
