"""Layers of other libraries: what is read of them, and what is left alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import nflows.transforms as nt
import normflows as nf
import pyro.distributions as dist
import pyro.distributions.transforms as pt
import pytest
import torch
import zuko
from nflows.nn.nde import MixtureOfGaussiansMADE
from pyro.nn import AutoRegressiveNN
from pyro.nn.module import PyroSample, to_pyro_module_
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import made_flows as mf
from made_flows.interop.libraries import find
from made_flows.inverse.dispatch import backend, invert_spline
from made_flows.nn.activations import activation_of_name
from made_flows.nn.spec import NetworkSpec
from made_flows.nn.validation import NotUnderstoodError
from tests.helpers.default_dtype import default_dtype
from tests.helpers.foreign_layers import LAYERS, C, D, make, nflows_layer, pyro_layer, zuko_layer

ROWS = 6

# ---------------------------------------------------------------------- what is read


def outputs_of(network: NetworkSpec, x: Tensor) -> Tensor:
    """What a network computes, from its description alone: (rows, outputs)."""
    _, layers, direct = network.structure.unpack(network.tensors, network.bases)
    a, streams = x, []
    for layer in layers:
        z = a @ (layer.weight * layer.mask).T
        for added in (layer.bias, layer.base):
            z = z if added is None else z + added
        z = z if layer.gate is None else z * layer.gate
        z = z + streams[layer.adds_to] if layer.adds_to >= 0 else z
        streams.append(z)
        normed = z if layer.norm_scale is None else z * layer.norm_scale + layer.norm_shift
        a = activation_of_name(layer.activation)(normed)
    return a if direct is None else a + x @ (direct.weight * direct.mask).T


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_read_is_the_network(name: str) -> None:
    row = LAYERS[name]
    fast = mf.accelerate(make(row)).made_flows_current()
    x, context = torch.randn(ROWS, D, dtype=torch.float64), row.given(ROWS, torch.float64)
    with torch.no_grad():
        network = fast.conditioner.spec(context)
        outputs, expected = outputs_of(network, x), fast.conditioner.as_called(x, context)
        if network.structure.parameter_major:
            outputs = outputs.unflatten(-1, (-1, D)).transpose(-1, -2)
    torch.testing.assert_close(outputs.reshape(expected.shape), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_ranks_are_levels_of_the_dependencies(name: str) -> None:
    row = LAYERS[name]
    conditioner = mf.accelerate(make(row)).made_flows_current().conditioner
    context = row.given(1, torch.float64)

    def outputs(x: Tensor) -> Tensor:
        return conditioner.as_called(x[None], context)[0].sum(dim=-1)

    jacobian = torch.autograd.functional.jacobian(outputs, torch.randn(D, dtype=torch.float64))
    earlier = conditioner.ranks[:, None] > conditioner.ranks
    assert torch.equal(jacobian * ~earlier, torch.zeros(D, D, dtype=torch.float64))
    levels = int(conditioner.ranks.max()) + 1
    assert levels == {"nflows, narrow": 3, "zuko, coupling": 2, "zuko, graph": 3}.get(name, D)


@pytest.mark.parametrize("name", LAYERS)
def test_networks_tensors_are_the_same_objects_in_every_call(name: str) -> None:
    row = LAYERS[name]
    conditioner = mf.accelerate(make(row)).made_flows_current().conditioner
    with torch.no_grad():
        first = conditioner.spec(row.given(2, torch.float64))
        second = conditioner.spec(row.given(2, torch.float64))
    assert first.structure is second.structure
    assert all(a is b for a, b in zip(first.tensors, second.tensors, strict=True))


SPLINES = [
    name for name in LAYERS if "spline" in name or ("rational" in name and "circular" not in name)
]


@pytest.mark.parametrize("scale", [0.3, 30.0])
@pytest.mark.parametrize("name", SPLINES)
def test_compiled_splines_are_the_librarys_own(name: str, scale: float) -> None:
    bijection = mf.accelerate(make(LAYERS[name])).made_flows_current().elementwise
    if bijection.spline is None:
        assert name == "zuko, circular spline"
        return
    spline = bijection.spline
    parameters = scale * torch.randn(400, D, bijection.outputs, dtype=torch.float64)
    place = torch.rand(400, D, dtype=torch.float64)
    if spline.tails:
        place = 1.5 * place - 0.25
        place[:2] = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    y = spline.left + spline.width * place
    with torch.no_grad():
        solved = invert_spline(spline, y, parameters)
        assert solved is not None
        # Where parameters are extreme, the libraries' inverses lose their digits: by the forward.
        again, log_derivative = bijection.function(solved[0], parameters, False)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if scale < 1 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(again, y, **tolerance)
    if scale < 1:
        # At the ends, rounding decides whether a value counts as inside.
        torch.testing.assert_close(-log_derivative[2:], solved[1][2:], **tolerance)
        with torch.no_grad():
            expected = bijection.function(y[2:], parameters[2:], True)
        torch.testing.assert_close(solved[0][2:], expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(solved[1][2:], expected[1], rtol=1e-8, atol=1e-8)


def test_compiled_splines_leave_gradients_and_other_dtypes_to_the_library() -> None:
    bijection = mf.accelerate(make(LAYERS["zuko, spline"])).made_flows_current().elementwise
    y, parameters = torch.randn(3, D), torch.randn(3, D, bijection.outputs)
    assert invert_spline(bijection.spline, y, parameters) is None
    with torch.no_grad():
        assert invert_spline(bijection.spline, y.bfloat16(), parameters.bfloat16()) is None
        assert invert_spline(bijection.spline, y, parameters) is not None
        with backend("eager"):
            assert invert_spline(bijection.spline, y, parameters) is None
        unit = mf.accelerate(make(LAYERS["nflows, rational-quadratic"]))
        spline = unit.made_flows_current().elementwise.spline
        assert (
            invert_spline(spline, y + 2, torch.randn(3, D, 13)) is None
        )  # nflows says what is wrong


# ---------------------------------------------------------------------- what is left alone


class ScaledInverse(nt.MaskedAffineAutoregressiveTransform):
    def _elementwise_inverse(self, inputs: Tensor, parameters: Tensor) -> Any:
        outputs, log_det = super()._elementwise_inverse(inputs, parameters)
        return outputs, log_det * 1.0


class OwnForward(nt.made.MADE):
    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(inputs, context) * 2


def _nflows(**kwargs: Any) -> Any:
    return nflows_layer(**kwargs).make()


def _with(layer: Any, change: Callable[[Any], object]) -> Any:
    change(layer)
    return layer


def _own_network() -> Any:
    layer = _nflows()
    layer.autoregressive_net = OwnForward(D, 12, output_multiplier=2)
    return layer


def _unmasked(layer: Any) -> Any:
    for module in layer.modules():
        if hasattr(module, "mask"):
            module.mask.fill_(1)
    return layer


def _without_statistics(layer: Any) -> Any:
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = module.running_var = None
    return layer


def _under_a_prior(layer: Any) -> Any:
    to_pyro_module_(layer)
    for module in [module for module in layer.modules() if hasattr(module, "mask")]:
        module.weight = PyroSample(dist.Normal(module.weight.detach(), 0.1).to_event(2))
        module.bias = PyroSample(dist.Normal(module.bias.detach(), 0.1).to_event(1))
    return layer


_PYRO = pyro_layer().make
LEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "a map of its own": (lambda: ScaledInverse(D, 12), "has a _elementwise_inverse of its own"),
    "a network of its own": (_own_network, "OwnForward has a forward of its own"),
    "no masked network": (
        lambda: _with(_nflows(), lambda t: setattr(t, "autoregressive_net", nn.Linear(D, 2 * D))),
        "masks of a Linear are not known",
    ),
    "forward of one object": (
        lambda: _with(
            _nflows(), lambda t: setattr(t.autoregressive_net.blocks[0], "forward", lambda *a: a[0])
        ),
        "has a forward of its own",
    ),
    "forward hook": (
        lambda: _with(
            _nflows(),
            lambda t: t.autoregressive_net.final_layer.register_forward_hook(lambda *a: 2 * a[2]),
        ),
        "MaskedLinear has forward hooks",
    ),
    "weight norm by hook": (
        lambda: _with(
            _nflows(),
            lambda t: t.autoregressive_net.final_layer.register_forward_pre_hook(lambda *a: None),
        ),
        "MaskedLinear has forward hooks",
    ),
    "not autoregressive": (lambda: _unmasked(_nflows()), "not autoregressive"),
    "spectral norm by hook": (
        lambda: _with(
            _nflows(), lambda t: nn.utils.spectral_norm(t.autoregressive_net.final_layer)
        ),
        "MaskedLinear has forward hooks",
    ),
    "a layer of the context that is a network": (
        lambda: _with(
            _nflows(context=True),
            lambda t: setattr(
                t.autoregressive_net, "context_layer", nn.Sequential(nn.Linear(C, 12))
            ),
        ),
        "not made as its class makes it .AttributeError",
    ),
    "weights under a prior": (lambda: _under_a_prior(_nflows()), "weights are under a prior"),
    "batch norm without statistics": (
        lambda: _without_statistics(_nflows(use_batch_norm=True)),
        "no running statistics",
    ),
    "activation of all units": (
        lambda: _nflows(activation=partial(torch.softmax, dim=-1)),
        "is not elementwise",
    ),
    "mixture of its own": (
        lambda: type("Own", (MixtureOfGaussiansMADE,), {"sample": lambda self, n: n})(D, 12, C),
        "Own has a sample of its own",
    ),
    "normflows, circular": (
        lambda: nf.flows.CircularAutoregressiveRationalQuadraticSpline(D, 1, 12, [0, 2]),
        "features differ in their tails",
    ),
    "Pyro, neural": (
        lambda: pt.NeuralAutoregressive(AutoRegressiveNN(D, [12], param_dims=[4] * 3), 4),
        "Pyro has no inverse",
    ),
    "Pyro, block": (lambda: pt.BlockAutoregressive(D), "Pyro has no inverse"),
    "Pyro, another network": (
        lambda: pt.AffineAutoregressive(nn.Linear(D, 2 * D)),
        "Linear is not a pyro ConditionalAutoRegressiveNN",
    ),
    "Pyro, not autoregressive": (lambda: _unmasked(_PYRO()), "not autoregressive"),
    "zuko, neural": (
        lambda: zuko.flows.NAF(D, transforms=1, hidden_features=(12,)),
        "univariate transform MNN is not known",
    ),
    "zuko, a map of its own": (
        lambda: zuko_layer(univariate=lambda a, b: zuko.transforms.AdditiveTransform(a + b)).make(),
        "univariate transform <lambda> is not known",
    ),
    "zuko, approximate inverse": (
        lambda: _with(zuko_layer().make(), lambda t: setattr(t, "passes", 3)),
        "3 passes leave its 5 levels unfinished",
    ),
    "zuko, layer norm": (
        lambda: zuko_layer(activation=zuko.nn.LayerNorm).make(),
        "LayerNorm is not elementwise",
    ),
    "zuko, activation of its units": (
        lambda: zuko_layer(hidden_features=(12, 12), activation=lambda: nn.PReLU(12)).make(),
        "PReLU is not elementwise",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_layers_that_are_not_understood_are_left_alone(name: str) -> None:
    layer, reason = LEFT[name][0](), LEFT[name][1]
    kinds = [type(module) for module in layer.modules()]
    with pytest.warns(mf.AccelerationWarning, match=reason):
        assert mf.accelerate(layer) is layer
    assert [type(module) for module in layer.modules()] == kinds
    ((_, why),) = mf.acceleration(layer).left.values()
    assert re.search(reason, why)


@pytest.mark.parametrize(
    "module",
    [nn.Linear(2, 2), nt.ReversePermutation(3), pt.Permute(torch.arange(3)), zuko.flows.GMM(2)],
    ids=lambda module: type(module).__name__,
)
def test_modules_without_a_slow_direction_are_none_of_ours(module: Any) -> None:
    assert find(module) is None


# ---------------------------------------------------------------------- changes afterwards


def _nets(layer: Any) -> Any:
    return next(
        net
        for name in ("autoregressive_net", "arn", "hyper")
        if (net := getattr(layer, name, None)) is not None
    )


def _first(net: Any) -> Any:
    return next(module for module in net.modules() if hasattr(module, "mask"))


def _replace_activation(layer: Any) -> None:
    net = _nets(layer)
    if isinstance(net, zuko.nn.MaskedMLP):
        net[1] = nn.Tanh()
    elif isinstance(net, AutoRegressiveNN):
        net.f = nn.Tanh()
    else:
        for block in net.blocks:
            block.activation = torch.tanh


def _normalise(linear: Any) -> None:
    parametrizations.weight_norm(linear)
    with torch.no_grad():
        linear.parametrizations.weight.original0.mul_(1.5)


def _step(layer: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sum((p * p).sum() for p in layer.parameters()).backward()
    optimizer.step()


CHANGES: dict[str, Callable[[Any], object]] = {
    "weights in place": lambda t: _first(t).weight.data.mul_(1.5),
    "weights by an optimiser": _step,
    "new parameters": lambda t: setattr(
        _first(t), "weight", nn.Parameter(_first(t).weight.detach() * 1.5)
    ),
    "another state": lambda t: t.load_state_dict(_other_state(t)),
    "hook": lambda t: _first(t).register_forward_hook(lambda *args: args[2] * 1.5),
    "pruning": lambda t: prune.random_unstructured(_first(t), "weight", 0.3),
    "weight normalisation": lambda t: _normalise(_first(t)),
    "another activation": _replace_activation,
    "another forward": lambda t: setattr(_first(t), "forward", _doubled(_first(t))),
}


def _other_state(layer: Any) -> dict[str, Tensor]:
    """Of the same shapes, but of the features in reversed order."""
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    order = torch.arange(D).flip(0)
    first = next(key for key in state if key.endswith("mask"))
    last = [key for key in state if key.endswith("mask")][-1]
    state[first] = state[first][:, order]
    rows = state[last].shape[0]
    if "layers" in last:  # Pyro's rows are sorted by parameter
        state[last] = state[last].reshape(-1, D, state[last].shape[1])[:, order].reshape(rows, -1)
        key = next(key for key in state if key.endswith("permutation"))
        state[key] = order[state[key]]
    else:
        state[last] = state[last].reshape(D, -1, state[last].shape[1])[order].reshape(rows, -1)
    return state


def _doubled(linear: Any) -> Callable[[Tensor], Tensor]:
    own = linear.forward
    return lambda x: 2 * own(x)


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["nflows", "Pyro", "zuko"])
def test_a_changed_layer_is_never_inverted_as_it_was(name: str, change: str) -> None:
    row = LAYERS[name]
    layer = make(row)
    fast = mf.accelerate(copy.deepcopy(layer))
    u = row.values(ROWS, torch.float64)
    with default_dtype(torch.float64):
        before = row.slow(fast, u, None)[0]
        for each in (layer, fast):
            torch.manual_seed(3)
            CHANGES[change](each)
        expected, actual = row.slow(layer, u.clone(), None), row.slow(fast, u.clone(), None)
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(before, actual[0])


@pytest.mark.parametrize("made", ["before", "after"])
def test_weights_under_a_prior_are_drawn_in_every_pass(made: str) -> None:
    layer, u = make(LAYERS["nflows"]).float(), LAYERS["nflows"].values(ROWS, torch.float32)
    if made == "before":
        to_pyro_module_(mf.accelerate(layer))
    else:
        mf.accelerate(to_pyro_module_(layer) or layer)
    assert layer.made_flows_ready(u) is not None
    _under_a_prior(layer)
    own = mf.undo_acceleration(copy.deepcopy(layer))
    drawn = []
    for each in (layer, own):
        torch.manual_seed(0)
        drawn.append(each.inverse(u))
    torch.testing.assert_close(*drawn)


SETTINGS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "nflows": ("nflows", lambda t: setattr(t, "_epsilon", 0.5)),
    "nflows, another network": (
        "nflows",
        lambda t: setattr(t, "autoregressive_net", make(nflows_layer(), seed=1).autoregressive_net),
    ),
    "nflows, tails": (
        "nflows, rational-quadratic, tails",
        lambda t: setattr(t, "tail_bound", 0.5),
    ),
    "nflows, scale of a spline": (
        "nflows, rational-quadratic",
        lambda t: setattr(t.autoregressive_net, "hidden_features", 2),
    ),
    "zuko, in place": (
        "zuko, spline",
        lambda t: t.univariate.keywords.update(slope=0.5),
    ),
    "Pyro": ("Pyro", lambda t: setattr(t, "log_scale_max_clip", -0.5)),
    "Pyro, spline": ("Pyro, linear spline", lambda t: setattr(t.spline, "bound", 1.0)),
    "Pyro, context": ("Pyro, context", lambda t: t.kwargs.update(log_scale_max_clip=-0.5)),
    "zuko": (
        "zuko",
        lambda t: setattr(
            t, "univariate", partial(zuko.transforms.MonotonicAffineTransform, slope=0.5)
        ),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_changed_settings_count(name: str) -> None:
    key, change = SETTINGS[name]
    row = LAYERS[key]
    layer = make(row)
    fast = mf.accelerate(copy.deepcopy(layer))
    u, context = row.values(ROWS, torch.float64), row.given(ROWS, torch.float64)
    with default_dtype(torch.float64):
        before = row.slow(fast, u, context)[0]
        change(layer), change(fast)
        expected, actual = row.slow(layer, u.clone(), context), row.slow(fast, u.clone(), context)
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(before, actual[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_moved_to_another_dtype(dtype: torch.dtype) -> None:
    row = LAYERS["zuko, context"]
    layer = make(row)
    fast = mf.accelerate(copy.deepcopy(layer))
    row.slow(fast, row.values(ROWS, torch.float64), row.given(ROWS, torch.float64))
    u, context = row.values(ROWS, dtype), row.given(ROWS, dtype)
    actual = row.slow(fast.to(dtype), u, context)
    expected = row.slow(layer.to(dtype), u, context)
    tolerance = {} if dtype is torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(actual, expected, **tolerance)


# ---------------------------------------------------------------------- our networks inside


def test_our_networks_inside_libraries_layers() -> None:
    layers = {
        "nflows": nt.MaskedAffineAutoregressiveTransform(D, 12),
        "Pyro": pt.AffineAutoregressive(mf.MADE(D)),
    }
    layers["nflows"].autoregressive_net = mf.MADE(D, hidden_features=(12,), residual=True)
    del layers["Pyro"]
    for name, layer in layers.items():
        row = LAYERS[name]
        layer = layer.double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-0.5, 0.5)
        u = row.values(ROWS, torch.float64)
        expected = row.slow(layer, u, None)
        fast = mf.accelerate(layer)
        assert fast.made_flows_ready(u) is not None
        torch.testing.assert_close(row.slow(fast, u, None), expected)


def test_reasons_are_errors_of_one_kind() -> None:
    with pytest.raises(NotUnderstoodError, match="no inverse"):
        find(pt.BlockAutoregressive(D))
