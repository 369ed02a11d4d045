"""Accelerated layers: the same numbers as their libraries', in a fraction of the passes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nflows.distributions as nd
import nflows.flows as nfl
import nflows.transforms as nt
import normflows as nf
import pyro.distributions as dist
import pyro.distributions.transforms as pt
import pytest
import torch
import zuko
from nflows.transforms import InputOutsideDomain
from pyro.infer.autoguide import AutoIAFNormal
from pyro.nn.module import PyroModule, to_pyro_module_
from torch import Tensor, nn
from torch.nn.utils import parametrize

import made_flows as mf
from made_flows.interop import fast_layer
from made_flows.interop.class_swap import Swapped, original_class
from made_flows.inverse import sequential_inverse
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
)

ROWS = 6
DTYPES = [torch.float64, torch.float32]


def close(actual: Any, expected: Any) -> None:
    """Equal to rounding, up to what D steps in single precision may add."""
    first = expected[0] if isinstance(expected, (tuple, list)) else expected
    single = first.dtype == torch.float32
    tolerance = {"rtol": 1e-3, "atol": 2e-4} if single else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(actual, expected, **tolerance)


def pair(row: ForeignLayer, dtype: torch.dtype) -> tuple[Any, Any]:
    """A layer, and an accelerated copy of it."""
    layer = make(row, dtype)
    return layer, mf.accelerate(copy.deepcopy(layer))


@contextmanager
def passes(kinds: tuple[type, ...]) -> Iterator[Counter[str]]:
    """Counts calls of networks; not by hooks, which would be followed by passes."""
    counts: Counter[str] = Counter()
    call: Any = nn.Module._call_impl

    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        counts["passes"] += isinstance(module, kinds)
        return call(module, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_call_impl", counted)
        yield counts


NETWORKS = (
    nt.made.MADE,
    nf.nets.made.MADE,
    __import__("pyro").nn.ConditionalAutoRegressiveNN,
    zuko.nn.MaskedMLP,
)

# ---------------------------------------------------------------------- equal numbers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_slow_direction_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, dtype)
    u, context = row.values(ROWS, dtype), row.given(ROWS, dtype)
    results = []
    for each in (layer, fast):
        leaves = [t.clone().requires_grad_() for t in (u, context) if t is not None]
        with default_dtype(dtype):
            x, log_det = row.slow(each, leaves[0], leaves[1] if row.context else None)
        weights = torch.linspace(0.5, 1.5, x.numel(), dtype=dtype).view_as(x)
        loss = (weights * x).sum() + (weights[:, 0] * log_det).sum()
        wanted = [*leaves, *each.parameters()]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        results.append((x.detach(), log_det.detach(), *gradients))
    assert results[0][0].isfinite().all()
    if dtype == torch.float32 and "quadratic" in name and "rational" not in name:
        # The library subtracts nearly equal numbers: its gradients are not better than this.
        results = [result[:3] for result in results]
    close(results[1], results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_slow_direction_without_gradients_takes_one_pass(name: str, dtype: torch.dtype) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, dtype)
    u, context = row.values(ROWS, dtype), row.given(ROWS, dtype)
    with torch.no_grad(), default_dtype(dtype):
        with passes(NETWORKS) as before:
            expected = row.slow(layer, u, context)
        with passes(NETWORKS) as after:
            actual = row.slow(fast, u, context)
    close(actual, expected)
    # One pass of the network's own, for the log-determinant.
    assert before["passes"] >= {"zuko, coupling": 2, "zuko, graph": 3}.get(name, D)
    assert after["passes"] == 1


@pytest.mark.parametrize("name", LAYERS)
def test_quick_direction_is_untouched(name: str) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, torch.float32)
    x, context = row.values(ROWS, torch.float32), row.given(ROWS, torch.float32)
    expected, actual = row.quick(layer, x, context), row.quick(fast, x, context)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_there_and_back(name: str) -> None:
    row = LAYERS[name]
    fast = pair(row, torch.float64)[1]
    u, context = row.values(ROWS, torch.float64), row.given(ROWS, torch.float64)
    with default_dtype(torch.float64):
        x, inverse = row.slow(fast, u, context)
        again, forward = row.quick(fast, x, context)
    # zuko inverts polynomials by bisection, to 1e-6; nflows moves the last knot by as much.
    tolerance = 1e-4 if name in ("zuko, polynomial", "nflows, linear") else 1e-8
    torch.testing.assert_close(again, u, rtol=tolerance, atol=tolerance)
    sign = 1 if "Pyro" in name else -1  # its log-determinant is of the quick direction always
    torch.testing.assert_close(sign * inverse, forward, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", ["Pyro", "Pyro, context", "Pyro, linear spline", "zuko, context"])
def test_shapes_of_batches(name: str, shape: tuple[int, ...]) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, torch.float64)
    u = torch.randn(*shape, D, dtype=torch.float64)
    context = torch.randn((*shape[-1:], C), dtype=torch.float64) if row.context else None
    with default_dtype(torch.float64):
        expected, actual = row.slow(layer, u.clone(), context), row.slow(fast, u.clone(), context)
    close(actual, expected)


def test_context_may_be_left_out_where_the_library_ignores_that() -> None:
    row = LAYERS["nflows, context"]
    layer, fast = pair(row, torch.float64)
    u = row.values(ROWS, torch.float64)
    close(fast.inverse(u), layer.inverse(u))


ERRORS: dict[str, tuple[str, Callable[[Any, Any, Any], Any]]] = {
    "features": ("nflows", lambda r, t, u: r.slow(t, u[:, :-1], None)),
    "dtype": ("nflows", lambda r, t, u: r.slow(t, u.double(), None)),
    "context of another size": ("nflows, context", lambda r, t, u: r.slow(t, u, u)),
    "context where there is none": ("nflows", lambda r, t, u: r.slow(t, u, u)),
    "domain": ("nflows, rational-quadratic", lambda r, t, u: r.slow(t, u + 2, None)),
    "context of more rows": ("Pyro, context", lambda r, t, u: r.slow(t, u[0], u[:, :C])),
    "normflows, context": ("normflows, feedforward", lambda r, t, u: r.slow(t, u, u)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_librarys_own(name: str) -> None:
    key, call = ERRORS[name]
    row = LAYERS[key]
    layer, fast = pair(row, torch.float32)
    u = row.values(ROWS, torch.float32)
    kinds = (ValueError, RuntimeError, AttributeError, NotImplementedError, InputOutsideDomain)
    with pytest.raises(kinds) as expected:
        call(row, layer, u)
    with pytest.raises(expected.type):
        call(row, fast, u)


def test_no_rows() -> None:
    row = LAYERS["Pyro"]
    fast = pair(row, torch.float32)[1]
    x, log_det = row.slow(fast, torch.zeros(0, D), None)
    assert x.shape == (0, D)
    assert log_det.shape == (0,)


# ---------------------------------------------------------------------- torch.func and others


def _value(row: ForeignLayer, layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda u: row.slow(layer, u[None], None)[0][0]


def _functions(u: Tensor) -> list[Callable[[Callable[[Tensor], Tensor]], Tensor]]:
    return [lambda f: torch.func.vmap(f)(u), lambda f: torch.func.jacrev(f)(u[0])]


class Inverse(nn.Module):
    """The slow direction as a module's call."""

    def __init__(self, row: ForeignLayer, layer: Any) -> None:
        super().__init__()
        self.row, self.layer = row, layer

    def forward(self, u: Tensor) -> Tensor:
        return self.row.slow(self.layer, u, None)[0]


FUNCTIONAL = ["nflows", "zuko", "zuko, spline"]


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_transforms_of_functions(name: str) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, torch.float64)
    u = row.values(3, torch.float64)
    expected = [function(_value(row, layer)) for function in _functions(u)]
    for each in (copy.deepcopy(fast), fast):  # a copy has not read its layer yet
        close([function(_value(row, each)) for function in _functions(u)], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's forward mode makes use of its own torch.jit
        actual = torch.func.jvp(_value(row, fast), (u[0],), (u[1],))
        close(actual, torch.func.jvp(_value(row, layer), (u[0],), (u[1],)))


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_other_weights_by_functional_call(name: str) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, torch.float64)
    u = row.values(3, torch.float64)
    weights = {k: 1.2 * v.detach() for k, v in Inverse(row, layer).named_parameters()}
    results = []
    for each in (layer, fast):
        module = Inverse(row, each)

        def loss(weights: dict[str, Tensor], module: nn.Module = module) -> Tensor:
            return torch.func.functional_call(module, weights, (u,)).square().sum()

        results.append([loss(weights), *torch.func.grad(loss)(weights).values()])
        ensemble = {k: torch.stack([v, 0.9 * v]) for k, v in weights.items()}
        results[-1].append(torch.func.vmap(loss)(ensemble))
    close(results[1], results[0])


def test_compiled_by_torch() -> None:
    row = LAYERS["nflows"]
    layer, fast = pair(row, torch.float32)
    u = row.values(ROWS, torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's, about what it cannot trace
        close(torch.compile(fast.inverse, backend="eager")(u), layer.inverse(u))
    torch.compiler.reset()


def test_inference_mode_and_autocast() -> None:
    row = LAYERS["nflows"]
    layer, fast = pair(row, torch.float32)
    u = row.values(ROWS, torch.float32)
    with torch.inference_mode():
        close(fast.inverse(u), layer.inverse(u))
        made_here, its_copy = pair(row, torch.float32)
        close(its_copy.inverse(u), made_here.inverse(u))
    slow = pytest.warns(SlowInverseWarning, match="autocast computes parts of it")
    with slow, torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast.inverse(u)[0], layer.inverse(u)[0])


def test_second_derivatives_say_once_what_they_cost() -> None:
    row = LAYERS["zuko"]
    fast = pair(row, torch.float64)[1]
    u = row.values(ROWS, torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(row.slow(fast, u, None)[0].sum(), u, create_graph=True)
    with pytest.warns(SlowInverseWarning, match="takes 5 passes .* derivatives"):
        torch.autograd.grad(gradient.sum(), u, retain_graph=True)
    torch.autograd.grad(gradient.sum(), u)


# ---------------------------------------------------------------------- training mode

MODES: dict[str, ForeignLayer] = {
    "nflows, dropout": nflows_layer(dropout_probability=0.5),
    "nflows, batch norm": nflows_layer(use_batch_norm=True),
    "nflows, batch norm, feedforward": nflows_layer(use_batch_norm=True, use_residual_blocks=False),
    "normflows, dropout": normflows_layer(dropout_probability=0.5),
}


@pytest.mark.parametrize("name", MODES)
def test_training_mode_is_the_librarys_own_loop(name: str) -> None:
    row = MODES[name]
    layer, fast = pair(row, torch.float64)
    u = row.values(ROWS, torch.float64)
    for mode in (True, False):
        layer.train(mode), fast.train(mode)
        results = []
        for each in (layer, fast):
            torch.manual_seed(5)
            with passes(NETWORKS) as counts:
                results.append(row.slow(each, u, None))
        assert counts["passes"] == (D if mode else 2)  # 2: the gradient's and the determinant's
        close(results[1], results[0])
        for one, other in zip(fast.buffers(), layer.buffers(), strict=True):
            torch.testing.assert_close(one, other)


def test_training_mode_without_randomness_is_fast() -> None:
    row = LAYERS["nflows"]
    fast = pair(row, torch.float32)[1].train()
    with passes(NETWORKS) as counts, torch.no_grad():
        row.slow(fast, row.values(ROWS, torch.float32), None)
    assert counts["passes"] == 1


# ---------------------------------------------------------------------- the same object


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_and_repr_stay(name: str) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, torch.float32)
    row.slow(fast, row.values(2, torch.float32), row.given(2, torch.float32))
    assert repr(fast) == repr(layer)
    assert isinstance(fast, type(layer))
    before, after = layer.state_dict(), fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    layer.load_state_dict(after)
    assert [n for n, _ in layer.named_modules()] == [n for n, _ in fast.named_modules()]


def _saved(layer: Any) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    "name", ["nflows, context", "normflows", "Pyro", "Pyro, stable", "Pyro, context", "zuko"]
)
def test_copies_are_fast_and_independent(name: str, way: str) -> None:
    row = LAYERS[name]
    fast = pair(row, torch.float32)[1]
    u, context = row.values(ROWS, torch.float32), row.given(ROWS, torch.float32)
    with torch.no_grad():
        expected = row.slow(fast, u, context)
        fast.clear_cache() if hasattr(fast, "clear_cache") else None
        copied = COPIES[way](fast)
        assert type(copied) is type(fast)
        with passes(NETWORKS) as counts:
            close(row.slow(copied, u.clone(), context), expected)
        assert counts["passes"] == 1
        for parameter in copied.parameters():
            parameter.mul_(1.5)
        changed = row.slow(copied, u.clone(), context)[0]
        close(row.slow(fast, u.clone(), context), expected)
    assert not torch.allclose(changed, expected[0])


@pytest.mark.parametrize("name", LAYERS)
def test_restore(name: str) -> None:
    row = LAYERS[name]
    layer, fast = pair(row, torch.float64)
    u, context = row.values(ROWS, torch.float64), row.given(ROWS, torch.float64)
    with default_dtype(torch.float64):
        row.slow(fast, u, context)
        assert mf.undo_acceleration(fast) is fast
        assert type(fast) is type(layer)
        assert not any("made_flows" in key for key in vars(fast))
        with passes(NETWORKS) as counts, torch.no_grad():
            actual = row.slow(fast, u.clone(), context)
            expected = row.slow(layer, u.clone(), context)
    assert counts["passes"] % 2 == 0  # both took the library's own loop
    assert counts["passes"] > 2
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    mf.accelerate(fast)
    with passes(NETWORKS) as counts, torch.no_grad():
        row.slow(fast, u.clone(), context)
    assert counts["passes"] == 1


def test_what_else_was_made_of_a_class_is_not_undone() -> None:
    class Doubled(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return 2 * value

    layer = make(LAYERS["nflows"])
    layer.register_parameter("extra", nn.Parameter(torch.ones(2)))
    mf.accelerate(layer)
    parametrize.register_parametrization(layer, "extra", Doubled())
    to_pyro_module_(layer)
    mf.undo_acceleration(layer)
    assert not isinstance(layer, Swapped)
    assert isinstance(layer, PyroModule)
    assert layer.extra.tolist() == [2, 2]


def test_accelerating_twice_is_accelerating_once() -> None:
    layer = make(LAYERS["nflows"])
    kind = type(mf.accelerate(layer))
    assert type(mf.accelerate(layer)) is kind
    assert original_class(layer) is nt.MaskedAffineAutoregressiveTransform


def test_a_users_subclass_that_computes_nothing_of_its_own() -> None:
    class Named(nt.MaskedAffineAutoregressiveTransform):
        def __init__(self) -> None:
            super().__init__(features=D, hidden_features=12)

    layer = Named()
    u = torch.randn(ROWS, D)
    expected = layer.inverse(u)
    fast = mf.accelerate(layer)
    assert isinstance(fast, Named)
    assert fast.made_flows_ready(u) is not None
    close(fast.inverse(u), expected)


# ---------------------------------------------------------------------- whole models


def _nflows_flow(embedding: bool = True) -> Any:
    layers: list[Any] = []
    for _ in range(2):
        layers += [
            nt.RandomPermutation(D),
            nt.MaskedAffineAutoregressiveTransform(D, 12, C),
            nt.InverseTransform(
                nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    D, 12, C, tails="linear", tail_bound=3.0, num_bins=4
                )
            ),
        ]
    net = nn.Linear(2, C) if embedding else None
    return nfl.Flow(nt.CompositeTransform(layers), nd.StandardNormal([D]), net)


def _normflows_flow() -> Any:
    layers: list[Any] = []
    for _ in range(2):
        layers += [
            nf.flows.AutoregressiveRationalQuadraticSpline(D, 1, 12),
            nf.flows.MaskedAffineAutoregressive(D, 12),
            nf.flows.LULinearPermute(D),
        ]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(D, trainable=False), layers)


def _pyro_flow() -> Any:
    base = dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1)
    parts = [
        pt.affine_autoregressive(D, [12]).inv,
        pt.Permute(torch.randperm(D)),
        pt.spline_autoregressive(D, [12], count_bins=4).inv,
        pt.affine_autoregressive(D, [12], stable=True),
    ]
    return dist.TransformedDistribution(base, parts)


WholeModel = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any, Tensor], Tensor], int]
MODELS: dict[str, WholeModel] = {
    "nflows": (
        _nflows_flow,
        lambda flow: flow.sample(ROWS, torch.ones(3, 2)).flatten(0, 1),
        lambda flow, x: flow.log_prob(x, torch.ones(len(x), 2)),
        4,
    ),
    "nflows, MAF": (
        lambda: nfl.MaskedAutoregressiveFlow(D, 12, 3, 1, batch_norm_between_layers=True),
        lambda flow: flow.sample(ROWS),
        lambda flow, x: flow.log_prob(x),
        3,
    ),
    "nflows, samples and scores": (
        lambda: nfl.MaskedAutoregressiveFlow(D, 12, 2, 1),
        lambda flow: torch.cat([p.reshape(ROWS, -1) for p in flow.sample_and_log_prob(ROWS)], 1),
        lambda flow, x: flow.log_prob(x[:, :D]),
        2,
    ),
    "normflows": (
        _normflows_flow,
        lambda flow: flow.sample(ROWS)[0],
        lambda flow, x: flow.log_prob(x),
        4,
    ),
    "Pyro": (
        _pyro_flow,
        lambda flow: flow.sample((ROWS,)),
        lambda flow, x: flow.log_prob(x),
        3,
    ),
    "zuko, MAF": (
        lambda: zuko.flows.MAF(D, C, transforms=2, hidden_features=(12,), randperm=True),
        lambda flow: flow(torch.ones(C)).sample((ROWS,)),
        lambda flow, x: flow(torch.ones(C)).log_prob(x),
        2,
    ),
    "zuko, NSF": (
        lambda: zuko.flows.NSF(D, transforms=2, hidden_features=(12,), bins=4),
        lambda flow: flow().rsample_and_log_prob((ROWS,))[0],
        lambda flow, x: flow().log_prob(x),
        2,
    ),
    "zuko, coupling and circular": (
        lambda: zuko.flows.NCSF(D, transforms=2, hidden_features=(12,), bins=4, passes=2),
        lambda flow: flow().sample((ROWS,)),
        lambda flow, x: flow().log_prob(x),
        2,
    ),
}


def _whole(name: str) -> Any:
    torch.manual_seed(1)
    model = MODELS[name][0]()
    if isinstance(model, nn.Module):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            if name == "nflows, MAF":  # running statistics start at a variance of zero
                for _ in range(30):
                    model.log_prob(torch.randn(64, D))
        model.eval()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_samples_and_scores(name: str) -> None:
    _, sample, score, count = MODELS[name]
    model, fast = _whole(name), mf.accelerate(_whole(name))
    assert len(mf.acceleration(fast).fast) == count
    results = []
    for each in (model, fast):
        torch.manual_seed(2)
        results.append(sample(each).detach())
    close(results[1], results[0])
    x = results[0]
    if name == "nflows":  # nflows' splines lose three digits in single precision
        x = x.double()
        context = torch.ones(len(x), 2, dtype=torch.float64)
        close(fast.double().log_prob(x, context), model.double().log_prob(x, context))
    else:
        close(score(fast, x), score(model, x.clone()))
    mf.undo_acceleration(fast)
    assert not mf.acceleration(fast).fast


@pytest.mark.parametrize("name", ["nflows, MAF", "zuko, MAF", "normflows"])
def test_training_goes_the_same_way(name: str) -> None:
    score = MODELS[name][2]
    x = torch.randn(32, D).clamp(-2, 2)
    histories = []
    for accelerated in (False, True):
        model = _whole(name).train()
        if accelerated:
            mf.accelerate(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = -score(model, x).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        histories.append(torch.stack(losses))
    close(histories[1], histories[0])


def test_nflows_samples_without_a_pass_for_log_determinants() -> None:
    flow = mf.accelerate(_whole("nflows, MAF"))
    with passes(NETWORKS) as counts, torch.no_grad():
        flow.sample(ROWS)
    assert counts["passes"] == 0


class Weighted(nt.Transform):
    """Uses the log-determinant of another transform, while sampling too."""

    def __init__(self, inner: nt.Transform) -> None:
        super().__init__()
        self.inner = inner

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> Any:
        outputs, log_det = self.inner.inverse(inputs, context)
        return outputs * log_det[:, None], log_det


def test_log_determinants_are_there_for_who_may_use_them() -> None:
    flow = nfl.Flow(
        nt.CompositeTransform([Weighted(make(LAYERS["nflows"], torch.float32))]),
        nd.StandardNormal([D]),
    )
    results = []
    for change in (lambda model: model, mf.accelerate):
        torch.manual_seed(0)
        results.append(change(flow).sample(ROWS).detach())
    close(results[1], results[0])
    assert results[0].abs().min() > 0


def test_a_pyro_guide() -> None:
    def model() -> None:
        import pyro

        with pyro.plate("features", D):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoIAFNormal(model, num_transforms=2)
    guide()
    mf.accelerate(guide)
    assert len(mf.acceleration(guide).fast) == 2
    posterior = guide.get_posterior()
    z = torch.randn(ROWS, D)
    with passes(NETWORKS) as counts, torch.no_grad():
        scores = posterior.log_prob(z)
    assert counts["passes"] == 2
    mf.undo_acceleration(guide)
    close(scores, guide.get_posterior().log_prob(z.clone()))


def test_conditioned_pyro_transforms_share_what_is_known() -> None:
    row = LAYERS["Pyro, context"]
    fast = pair(row, torch.float32)[1]
    first, second = (fast.condition(torch.randn(ROWS, C)) for _ in range(2))
    fasts = [t.made_flows_current() for t in (first, second)]
    assert fasts[0].conditioner is fasts[1].conditioner
    y = torch.randn(ROWS, D)
    assert not torch.allclose(first.inv(y), second.inv(y))


def test_a_pyro_conditional_flow_and_its_inverse() -> None:
    flow = dist.ConditionalTransformedDistribution(
        dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1),
        [pt.conditional_affine_autoregressive(D, C, [12]).inv, pt.affine_autoregressive(D, [12])],
    )
    context, y = torch.randn(ROWS, C), torch.randn(ROWS, D)
    expected = flow.condition(context).log_prob(y)
    mf.accelerate(flow)
    assert len(mf.acceleration(flow).fast) == 2
    close(flow.condition(context).log_prob(y.clone()), expected)


# ---------------------------------------------------------------------- reports


def test_report() -> None:
    flow = mf.accelerate(_whole("nflows, MAF"))
    report = mf.acceleration(flow)
    assert report.left == {}
    assert list(report.fast) == [f"_transform._transforms.{i}" for i in (1, 4, 7)]
    assert repr(report).startswith("3 fast, 0 left as they are\n  fast  _transform._transforms.1  ")
    assert "nflows MaskedAffineAutoregressiveTransform" in str(report)


def test_report_of_what_is_left() -> None:
    model = nn.ModuleList([make(LAYERS["zuko"]), zuko.flows.NAF(D, transforms=1, signal=4)])
    with pytest.warns(mf.AccelerationWarning, match="left as they are") as caught:
        mf.accelerate(model)
    assert "1.transform.transforms.0" in str(caught[0].message)
    assert caught[0].filename == __file__
    report = mf.acceleration(model)
    assert list(report.fast) == ["0"]
    assert "left  1.transform.transforms.0  zuko MaskedAutoregressiveTransform: " in str(report)
    assert next(iter(mf.acceleration(mf.undo_acceleration(model)).left.values())) == (
        "zuko MaskedAutoregressiveTransform",
        "not accelerated",
    )


def test_a_version_of_a_library_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("cannot import name 'MaskedMLP'")

    monkeypatch.setattr("made_flows.interop.libraries.import_module", missing)
    with pytest.warns(mf.AccelerationWarning, match="this version of zuko is not known"):
        mf.accelerate(make(LAYERS["zuko"]))


def test_nothing_to_accelerate() -> None:
    coupling = nt.AffineCouplingTransform(torch.tensor([0, 1]), nn.Linear)
    for model in (nn.Linear(2, 2), nfl.Flow(coupling, nd.StandardNormal([2]))):
        with pytest.warns(mf.AccelerationWarning, match="no autoregressive layer of a known lib"):
            mf.accelerate(model)
        assert type(model) in (nn.Linear, nfl.Flow)


@pytest.mark.parametrize("function", [mf.accelerate, mf.undo_acceleration, mf.acceleration])
def test_what_cannot_be_searched(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="Expected model to be a module"):
        function("model")


@dataclass
class Experiment:
    """What people keep their flows in."""

    flow: Any
    notes: str = "none"


class Slotted:
    __slots__ = ("flow",)

    def __init__(self, flow: Any) -> None:
        self.flow = flow


class Trainer:
    """Holds a flow, in a cycle and far down, and much that is none."""

    def __init__(self, flow: Any) -> None:
        self.data, self.callback = torch.zeros(3), print
        self.state = {"best": [None, (1, Experiment(flow))]}
        self.parent = self


class Wrapper(nn.Module):
    """Keeps a flow where torch does not look for modules."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.parts = {"flow": flow}


HOLDERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda flow: [1, flow], "1"),
    "dictionary": (lambda flow: {"a": 2, "flow": flow}, "flow"),
    "dataclass": (Experiment, "flow"),
    "slots": (Slotted, "flow"),
    "trainer": (Trainer, "state.best.1.1.flow"),
    "module": (Wrapper, "parts.flow"),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", ["nflows", "zuko", "Pyro"])
def test_whatever_holds_a_flow_is_searched_through(name: str, holder: str) -> None:
    layer = make(LAYERS[name])
    held, path = HOLDERS[holder][0](layer), HOLDERS[holder][1]
    assert mf.accelerate(held) is held
    assert list(mf.acceleration(held).fast) == [path]
    assert type(layer) is not original_class(layer)
    mf.undo_acceleration(held)
    assert not mf.acceleration(held).fast
    assert type(layer) is original_class(layer)


@pytest.mark.parametrize(
    "nothing",
    [[], {}, Experiment(None), object()],
    ids=["list", "dict", "dataclass", "object"],
)
def test_where_there_is_nothing_the_error_says_what_to_give(nothing: Any) -> None:
    with pytest.raises(TypeError, match=r"in which there are none\. Give the flow itself"):
        mf.accelerate(nothing)


def test_this_librarys_own_flows_need_nothing() -> None:
    flow = mf.accelerate(mf.MAF(3, transforms=1))
    assert mf.acceleration(flow) == mf.AccelerationReport()


def test_no_library_is_imported_that_is_not_there_already() -> None:
    program = """
        import sys
        import warnings
        import torch
        import made_flows as mf
        warnings.simplefilter("ignore")
        mf.accelerate(torch.nn.Linear(2, 2))
        libraries = {"nflows", "normflows", "pyro", "zuko"}
        assert not libraries & set(sys.modules), libraries & set(sys.modules)
        import zuko
        mf.accelerate(zuko.flows.MAF(3))
        assert not (libraries - {"zuko"}) & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_a_small_layer_without_a_kernel_is_left_to_its_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # sizes count as they are
    taken: list[int] = []

    def counted(conditioner: Any, *given: Any) -> Tensor:
        taken.append(conditioner.features)
        return sequential_inverse(conditioner, *given)

    monkeypatch.setattr(fast_layer, "sequential_inverse", counted)
    for features, activation in ((3, nn.Tanh), (3, nn.Hardswish), (300, nn.Hardswish)):
        flow = zuko.flows.MAF(features, transforms=1, activation=activation)
        x = mf.accelerate(flow)().sample((2,))
        assert x.isfinite().all()
    assert taken == [3, 300]
