"""Whatever worked before a layer was accelerated, or replaced by a drop-in, works after it.

Subjects (a layer of a library, and the same one accelerated, or a drop-in of the same state) are
crossed with ways to use a layer. Where the original fails by itself, there is nothing to keep.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune

import made_flows as mf
import made_flows.nflows as mn
import made_flows.pyro as mp
from made_flows.inverse.d_pass import SlowInverseWarning
from tests.helpers.default_dtype import default_dtype
from tests.helpers.foreign_layers import (
    LAYERS,
    C,
    D,
    ForeignLayer,
    make,
    nflows_layer,
    normflows_layer,
    zuko_layer,
)

ROWS = 4

Subject = tuple[ForeignLayer, Callable[[nn.Module], nn.Module]]


def _dropin(new: Callable[[], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def replace(layer: nn.Module) -> nn.Module:
        drop_in = new().to(next(layer.parameters()).dtype).eval()
        drop_in.load_state_dict(layer.state_dict())
        return drop_in

    return replace


def _accelerated(layer: nn.Module) -> nn.Module:
    return mf.accelerate(copy.deepcopy(layer))


def _network(*sizes: int) -> mp.AutoRegressiveNN:
    return mp.AutoRegressiveNN(D, [12, 10], param_dims=sizes or (1, 1))


SUBJECTS: dict[str, Subject] = {
    **{
        f"accelerated {name}": (LAYERS[name], _accelerated)
        for name in (
            "nflows",
            "nflows, context",
            "nflows, rational-quadratic, tails",
            "normflows",
            "Pyro",
            "Pyro, context",
            "Pyro, linear spline",
            "zuko",
            "zuko, context",
            "zuko, spline",
        )
    },
    "drop-in for Pyro": (
        LAYERS["Pyro"],
        _dropin(lambda: mp.AffineAutoregressive(_network())),
    ),
    "drop-in for Pyro, stable": (
        LAYERS["Pyro, stable"],
        _dropin(lambda: mp.AffineAutoregressive(_network(), stable=True)),
    ),
    "drop-in for Pyro, context": (
        LAYERS["Pyro, context"],
        _dropin(
            lambda: mp.ConditionalAffineAutoregressive(
                mp.ConditionalAutoRegressiveNN(D, C, [12, 10])
            )
        ),
    ),
    "drop-in for Pyro, spline": (
        LAYERS["Pyro, linear spline"],
        _dropin(lambda: mp.SplineAutoregressive(D, _network(4, 4, 3, 4), count_bins=4)),
    ),
    "drop-in for nflows": (
        LAYERS["nflows"],
        _dropin(lambda: mn.MaskedAffineAutoregressiveTransform(D, 12)),
    ),
    "drop-in for nflows, context": (
        LAYERS["nflows, context"],
        _dropin(lambda: mn.MaskedAffineAutoregressiveTransform(D, 12, C)),
    ),
}


class Slow(nn.Module):
    """The slow direction as a module's call."""

    def __init__(self, row: ForeignLayer, layer: Any) -> None:
        super().__init__()
        self.row, self.layer = row, layer

    def forward(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        return self.row.slow(self.layer, u, context)[0]


def _arguments(u: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    # Pyro gives a value again for a tensor it has seen, whatever has changed since.
    return (u.clone(),) if context is None else (u.clone(), context)


def _gradients(value: Tensor, *wanted: Any, **more: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True, **more)


def _one(slow: Slow, context: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda u: slow(*_arguments(u[None], None if context is None else context[:1]))[0]


# ---------------------------------------------------------------------- ways to use a layer


def _second_derivatives(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    u, *rest = _arguments(u, context)
    u.requires_grad_()
    (first,) = _gradients(slow(u, *rest).square().sum(), u, create_graph=True)
    return _gradients(first.square().sum(), u, *slow.parameters())


def _gradient_penalty(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    weights = list(slow.parameters())
    first = _gradients(slow(*_arguments(u, context)).square().sum(), *weights, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first)
    return _gradients(penalty, *weights)  # type: ignore[arg-type]


def _gradient_of_func(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    v = u[0].clone().requires_grad_()
    gradient = torch.func.grad(lambda v: _one(slow, context)(v).square().sum())(v)
    return _gradients(gradient.square().sum(), v, *slow.parameters())


def _mapped_jacobian(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    jacobians = torch.func.vmap(torch.func.jacrev(_one(slow, context)))(u.clone())
    return _gradients(jacobians.square().sum(), *slow.parameters())


def _forward_mode(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    ad = torch.autograd.forward_ad
    with ad.dual_level():
        u, *rest = _arguments(u, context)
        return tuple(ad.unpack_dual(slow(ad.make_dual(u, torch.ones_like(u)), *rest)))


def _stacked(slow: Slow, u: Tensor, context: Tensor | None, derivative: Any) -> Any:
    weights = {k: torch.stack([v, 0.9 * v]).detach() for k, v in slow.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(slow, weights, _arguments(u, context)).square().sum()

    result = torch.func.vmap(derivative(loss))(weights)
    return tuple(result.values()) if isinstance(result, dict) else result


def _functional_call(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    weights = {name: 1.2 * weight.detach() for name, weight in slow.named_parameters()}
    return torch.func.functional_call(slow, weights, _arguments(u, context))


def _traced(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer's, about Python values
        trace = torch.jit.trace(slow, _arguments(u, context), check_trace=False)
    x = trace(*_arguments(0.5 * u, context))
    gradients = _gradients(x.square().sum(), *slow.parameters()) if x.requires_grad else ()
    return x.detach(), *gradients


def _traced_without_gradients(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    with torch.no_grad():
        return _traced(slow, u, context)


def _on_meta(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    rest = [] if context is None else [context.to("meta")]
    return torch.zeros(slow.to("meta")(u.to("meta"), *rest).shape)


def _read_in_inference_mode(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    if hasattr(slow.layer, "made_flows_forget"):
        slow.layer.made_flows_forget()
    return _inference_first(slow, u, context)


def _inference_first(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    with torch.inference_mode():
        slow(*_arguments(u, context))
    u, *rest = _arguments(u, context)
    x = slow(u.requires_grad_(), *rest)
    return x.detach(), *_gradients(x.square().sum(), u, *slow.parameters())


def _made_in_inference_mode(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    with torch.inference_mode():
        made = copy.deepcopy(slow)
        if hasattr(made.layer, "made_flows_forget"):
            made.layer.made_flows_forget()
        first = made(*_arguments(u, context)).clone()
    with torch.no_grad():
        return first, made(*_arguments(u, context))


def _default_device(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    arguments = _arguments(u, context)
    with torch.device("meta"):
        return slow(*arguments)


def _resized(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    u, *rest = _arguments(u, context)
    x = slow(u, *rest).detach()
    u.resize_(2 * ROWS, D)
    for weight in slow.parameters():
        size = weight.untyped_storage().nbytes()
        weight.untyped_storage().resize_(0)  # as sharded training does between its uses
        weight.untyped_storage().resize_(size)
    return x


def _not_finite(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    u, *rest = _arguments(u, context)
    u[0, 1], u[1, 2], u[2, 0] = torch.nan, torch.inf, -torch.inf
    return slow(u, *rest).detach()


def _autocast(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        x = slow(*_arguments(u, context)).detach()
        return x, *(part.detach() for part in slow.row.quick(slow.layer, u.clone(), context))


WAYS: dict[str, Callable[[Slow, Tensor, Tensor | None], Any]] = {
    "autocast": _autocast,
    "autograd of a gradient of torch.func": _gradient_of_func,
    "autograd of jacrev, mapped": _mapped_jacobian,
    "jvp of grad": lambda s, u, c: torch.func.jvp(
        torch.func.grad(lambda v: _one(s, c)(v).square().sum()), (u[0],), (torch.ones_like(u[0]),)
    ),
    "second derivatives": _second_derivatives,
    "gradient penalty": _gradient_penalty,
    "hessian of torch.func": lambda s, u, c: torch.func.hessian(
        lambda v: _one(s, c)(v).square().sum()
    )(u[0]),
    "jacrev twice": lambda s, u, c: torch.func.jacrev(torch.func.jacrev(_one(s, c)))(u[0]),
    "jacfwd": lambda s, u, c: torch.func.jacfwd(_one(s, c))(u[0]),
    "forward mode": _forward_mode,
    "stacked weights": lambda s, u, c: _stacked(s, u, c, lambda loss: loss),
    "gradients of stacked weights": lambda s, u, c: _stacked(s, u, c, torch.func.grad),
    "other weights for a call": _functional_call,
    "torch.jit.trace": _traced,
    "torch.jit.trace without gradients": _traced_without_gradients,
    "meta device": _on_meta,
    "inference mode, then training": _inference_first,
    "read in inference mode, then training": _read_in_inference_mode,
    "made in inference mode": _made_in_inference_mode,
    "another default device": _default_device,
    "storage resized": _resized,
    "values that are not finite": _not_finite,
}


def _tuple(result: Any) -> Sequence[Tensor]:
    return result if isinstance(result, tuple) else (result,)


@lru_cache(maxsize=1)  # the same for the first use as for a later one
def _of_the_original(name: str, way: str) -> tuple[Tensor, Tensor | None, Sequence[Tensor] | str]:
    """Values, a context, and what a way to use a layer gives of the original, or why it fails."""
    row, _ = SUBJECTS[name]
    layer = make(row)
    u, context = row.values(ROWS, torch.float64), row.given(ROWS, torch.float64)
    with default_dtype(torch.float64), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return u, context, _tuple(WAYS[way](Slow(row, layer), u, context))
        except (RuntimeError, NotImplementedError, AssertionError, TypeError) as error:
            return u, context, f"the original fails: {error!s:.60}"


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's forward mode makes use of its own
@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("used_before", [False, True], ids=["first use", "used before"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_what_worked_before_works_after(name: str, way: str, used_before: bool) -> None:
    u, context, expected = _of_the_original(name, way)
    if isinstance(expected, str):
        pytest.skip(expected)
    row, change = SUBJECTS[name]
    layer = make(row)
    with default_dtype(torch.float64):
        changed = change(layer)
        if used_before:
            with torch.no_grad():
                row.slow(changed, u.clone(), context)
        actual = WAYS[way](Slow(row, changed), u, context)
    tolerance = {"rtol": 1e-7, "atol": 1e-8}
    for one, other in zip(_tuple(actual), expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **tolerance)


# ---------------------------------------------------------------------- values that cannot be read


def _recorded(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    return make_fx(slow)(*_arguments(u, context))(*_arguments(0.5 * u, context))


def _fake(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        shape = slow(*_arguments(u, context)).shape
    return torch.zeros(shape)


def _ensemble(slow: Slow, u: Tensor, context: Tensor | None) -> Any:
    """Several networks at once, masks and all."""
    stacked = torch.func.stack_module_state([slow, copy.deepcopy(slow)])
    call = partial(torch.func.functional_call, slow)
    return torch.func.vmap(lambda *state: call(state, _arguments(u, context)))(*stacked)


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("way", [_recorded, _fake, _ensemble])
@pytest.mark.parametrize("name", ["nflows, context", "normflows", "zuko"])
def test_values_and_masks_that_cannot_be_read(name: str, way: Callable[..., Any]) -> None:
    layer = make(LAYERS[name])
    u, context = LAYERS[name].values(ROWS, torch.float64), LAYERS[name].given(ROWS, torch.float64)
    with torch.no_grad():
        fast = Slow(LAYERS[name], _accelerated(layer))
        expected = way(Slow(LAYERS[name], layer), u, context)
        torch.testing.assert_close(way(fast, u, context), expected)
        fast(*_arguments(u, context))  # which knows the network afterwards
        torch.testing.assert_close(way(fast, u, context), expected)


# ---------------------------------------------------------------------- changes of a layer


class LowRank(nn.Module):
    """What low-rank adaptation makes of a layer."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = linear
        self.added = nn.Parameter(torch.full_like(linear.weight, 0.2))

    weight = property(lambda self: self.linear.weight)
    mask = property(lambda self: self.linear.mask)
    bias = property(lambda self: self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ (self.added * self.linear.mask).T


class Shifted(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.3


def _linears(layer: nn.Module) -> list[Any]:
    return [module for module in layer.modules() if hasattr(module, "mask")]


def _wrap(layer: nn.Module) -> None:
    for module in list(layer.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "mask"):
                module._modules[name] = LowRank(child)


def _prune(layer: nn.Module) -> None:
    torch.manual_seed(3)
    prune.random_unstructured(_linears(layer)[-1], "weight", 0.3)


def _spectral(layer: nn.Module) -> None:
    _spectral_in_training(layer)
    layer.eval()


def _spectral_in_training(layer: nn.Module) -> None:
    """Every look at the weight improves its estimate of the norm."""
    torch.manual_seed(3)
    parametrizations.spectral_norm(_linears(layer)[-1])
    layer.train()


def _spectral_by_hook(layer: nn.Module) -> None:
    torch.manual_seed(3)
    nn.utils.spectral_norm(_linears(layer)[-1])
    layer.train()


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "hook on a layer": lambda t: _linears(t)[0].register_forward_hook(lambda *args: 1.5 * args[2]),
    "hook before a layer": lambda t: _linears(t)[1].register_forward_pre_hook(
        lambda _, arguments: (arguments[0] * 1.5,)
    ),
    "pruning": _prune,
    "spectral norm": _spectral,
    "spectral norm in training": _spectral_in_training,  # of as many passes as there were
    "spectral norm by a hook, in training": _spectral_by_hook,
    "parametrization": lambda t: parametrize.register_parametrization(
        _linears(t)[-1], "weight", Shifted()
    ),
    "layers wrapped": _wrap,
}


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_changed_layer_computes_what_the_original_does(name: str, change: str) -> None:
    if name.startswith("drop-in") and change.endswith("in training"):
        pytest.skip("a drop-in takes fewer passes")
    row, replace = SUBJECTS[name]
    layer = make(row)
    u, context = row.values(ROWS, torch.float64), row.given(ROWS, torch.float64)
    with default_dtype(torch.float64):
        changed = replace(layer)
        with torch.no_grad():
            row.slow(changed, u.clone(), context)
        results = []
        for each in (layer, changed):
            CHANGES[change](each)
            slow, quick = row.slow(each, u.clone(), context), row.quick(each, u.clone(), context)
            results.append((*slow, *quick))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


# ---------------------------------------------------------------------- activations in place

IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "leaky relu": lambda: nn.LeakyReLU(inplace=True),
}

NETWORKS: dict[str, Callable[[Any], ForeignLayer]] = {
    "nflows": lambda a: nflows_layer(activation=a),
    "nflows, feedforward": lambda a: nflows_layer(activation=a, use_residual_blocks=False),
    "nflows, batch norm": lambda a: nflows_layer(activation=a, use_batch_norm=True),
    "nflows, context": lambda a: nflows_layer(activation=a, context=True),
    "normflows": lambda a: normflows_layer(activation=a),
    "zuko": lambda a: zuko_layer(activation=lambda: a),
    "zuko, residual": lambda a: zuko_layer(
        activation=lambda: a, residual=True, hidden_features=(12, 12, 9)
    ),
}


@pytest.mark.filterwarnings("ignore::made_flows.AccelerationWarning")
@pytest.mark.parametrize("activation", IN_PLACE)
@pytest.mark.parametrize("network", NETWORKS)
def test_activations_in_place(network: str, activation: str) -> None:
    row = NETWORKS[network](IN_PLACE[activation]())
    layer = make(row)
    u, context = row.values(ROWS, torch.float64), row.given(ROWS, torch.float64)
    fast = mf.accelerate(copy.deepcopy(layer))
    with torch.no_grad():
        for direction in (row.slow, row.quick):
            expected, actual = direction(layer, u, context), direction(fast, u, context)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", IN_PLACE)
def test_activations_in_place_of_the_drop_ins(activation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, D, dtype=torch.float64)
    t = mn.MaskedAffineAutoregressiveTransform(D, 12, activation=IN_PLACE[activation]()).double()
    with torch.no_grad():
        for weight in t.parameters():
            weight.uniform_(-0.5, 0.5)
        noise = t(x)[0]
        with pytest.warns(SlowInverseWarning, match="works in place"):
            torch.testing.assert_close(t.inverse(noise)[0], x)
    network = mp.AutoRegressiveNN(D, [12, 12], nonlinearity=IN_PLACE[activation]())
    t = mp.AffineAutoregressive(network).double()
    with torch.no_grad():
        for weight in t.parameters():
            weight.uniform_(-0.5, 0.5)
        torch.testing.assert_close(t.inv(t(x)), x)


def test_a_setting_of_an_activation_counts() -> None:
    row = nflows_layer(activation=nn.ELU(), use_residual_blocks=False)
    layer = make(row)
    u = row.values(ROWS, torch.float64)
    fast = mf.accelerate(copy.deepcopy(layer))
    with torch.no_grad():
        before = fast.inverse(u)[0]
        for each in (layer, fast):
            each.autoregressive_net.blocks[0].activation.alpha = 0.3
        torch.testing.assert_close(fast.inverse(u), layer.inverse(u))
    assert not torch.allclose(before, fast.inverse(u)[0])


class Marked(Tensor):
    """As programs mark their tensors."""


def test_maps_whose_derivatives_are_autograds_work_where_it_does_not_record() -> None:
    layer, u = make(LAYERS["zuko, polynomial"]), LAYERS["zuko, polynomial"].values(3, torch.float64)
    fast, expected = _accelerated(layer), layer().inv(u).detach()
    with torch.inference_mode():
        torch.testing.assert_close(fast().inv(u), expected)
    with torch.no_grad():
        found = fast().inv(u.as_subclass(Marked))  # which goes through an operator
        torch.testing.assert_close(found.as_subclass(Tensor), expected)


def test_pruned_layers_stay_fast_and_hooks_are_named_once() -> None:
    row = LAYERS["nflows"]
    u = row.values(ROWS, torch.float64)
    fast = mf.accelerate(make(row))
    _prune(fast)
    with torch.no_grad():
        assert fast.made_flows_ready(u) is not None
        _linears(fast)[0].register_forward_hook(lambda *args: args[2])
        with pytest.warns(SlowInverseWarning, match="5 passes .* MaskedLinear has forward hooks"):
            fast.inverse(u)
        fast.inverse(u)
