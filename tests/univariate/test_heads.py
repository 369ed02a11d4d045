"""Heads and scale rules: against torch.distributions, and at the edges of floating point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    constraints,
)

import made_flows as mf
from made_flows.inverse import HeadStep
from made_flows.univariate import heads
from made_flows.univariate.scales import SCALE_RULES
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import HEADS, made_of, scatter

F64 = torch.float64


def close(a: Tensor, b: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


# ---------------------------------------------------------------------- scale rules

# The logarithm of the scale, as the field writes it.
LOG_SCALES: dict[str, tuple[mf.ScaleRule, Callable[[float], float]]] = {
    "bounded": (mf.ScaleRule(), lambda a: 7 * math.tanh(a / 7)),
    "bounded by 2": (mf.ScaleRule("bounded", bound=2), lambda a: 2 * math.tanh(a / 2)),
    "softsign": (mf.ScaleRule("softsign", bound=3), lambda a: a / (1 + abs(a / 3))),
    "exp": (mf.ScaleRule("exp"), lambda a: a),
    "softplus": (
        mf.ScaleRule("softplus", floor=0.01, offset=0.5),
        lambda a: math.log(math.log1p(math.exp(a + 0.5)) + 0.01),
    ),
    "softplus, no floor": (
        mf.ScaleRule("softplus", floor=0, offset=0),
        lambda a: math.log(math.log1p(math.exp(a))),
    ),
    "sigmoid": (
        mf.ScaleRule("sigmoid", floor=0.001, offset=1),
        lambda a: math.log(1 / (1 + math.exp(-a - 1)) + 0.001),
    ),
    "sigmoid, no floor": (mf.ScaleRule("sigmoid"), lambda a: -math.log1p(math.exp(-a - 2))),
    "clamp": (mf.ScaleRule("clamp", low=-1, high=2), lambda a: min(max(a, -1), 2)),
}


@pytest.mark.parametrize(("rule", "formula"), LOG_SCALES.values(), ids=LOG_SCALES)
def test_scale_rules_are_their_formulas(
    rule: mf.ScaleRule, formula: Callable[[float], float]
) -> None:
    a = torch.linspace(-20, 20, 401, dtype=F64)
    close(rule(a), torch.tensor([formula(value) for value in a.tolist()], dtype=F64))
    assert bool((rule(a).diff() >= 0).all())  # more in, more out


def test_every_rule_is_in_the_table() -> None:
    assert {rule.rule for rule, _ in LOG_SCALES.values()} == set(SCALE_RULES)


@pytest.mark.parametrize("name", SCALE_RULES)
def test_a_fresh_network_starts_with_a_scale_of_about_one(name: str) -> None:
    scale = mf.ScaleRule(name)(torch.zeros(1, dtype=F64)).exp()
    expected = torch.sigmoid(torch.tensor(2.0)) if name == "sigmoid" else torch.tensor(1.0)
    close(scale[0], expected.to(F64), rtol=1e-7)


EXTREMES = [1e2, 1e3, 1e4, 1e8, 1e30]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("rule", [r for r, _ in LOG_SCALES.values()], ids=LOG_SCALES)
def test_extreme_inputs_give_finite_log_scales_and_gradients(
    rule: mf.ScaleRule, dtype: torch.dtype
) -> None:
    a = torch.tensor([*EXTREMES, 0.0, *(-x for x in EXTREMES)], dtype=dtype, requires_grad=True)
    log_scale = rule(a)
    assert log_scale.isfinite().all()
    [slope] = torch.autograd.grad(log_scale.sum(), a)
    assert slope.isfinite().all()
    assert bool(((slope >= 0) & (slope <= 1)).all())  # no rule steepens a gradient


@pytest.mark.parametrize("name", ["bounded", "softsign"])
def test_bounded_rules_keep_within_their_bound(name: str) -> None:
    log_scale = mf.ScaleRule(name, bound=4)(torch.tensor([-1e30, -50, 50, 1e30]))
    assert log_scale.abs().max() <= 4
    assert log_scale.abs().min() > 3.6


def test_clamp_is_exact_far_beyond_its_limits() -> None:
    rule = mf.ScaleRule("clamp")
    assert rule(torch.tensor([-1e8, -6.0, 0.1, 7.0, 1e30])).tolist() == pytest.approx(
        [-5, -5, 0.1, 3, 3]
    )
    a = torch.tensor([-9.0, 0.0, 9.0], requires_grad=True)
    [slope] = torch.autograd.grad(rule(a).sum(), a)
    assert slope.tolist() == [1, 1, 1]  # straight through


BAD_RULES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown": (lambda: mf.ScaleRule("log"), ValueError, "scale rule to be one of bounded, softs"),
    "unknown to a head": (lambda: heads.Gaussian("log"), ValueError, "scale rule to be one of bou"),
    "none": (lambda: heads.Gaussian(None), ValueError, "scale to be a ScaleRule or one of bounded"),
    "bound of 0": (lambda: mf.ScaleRule(bound=0), ValueError, "bound to be above 0; got 0"),
    "bound of text": (lambda: mf.ScaleRule(bound="7"), TypeError, "bound to be a number; got str"),
    "negative floor": (
        lambda: mf.ScaleRule("softplus", floor=-1), ValueError, "floor to be non-negative; got -1",
    ),
    "floor of 1": (
        lambda: mf.ScaleRule("softplus", floor=1), ValueError, "floor to be below 1; got 1",
    ),
    "limits swapped": (
        lambda: mf.ScaleRule("clamp", low=3, high=-5), ValueError, "low to be below high; got",
    ),
    "infinite limit": (
        lambda: mf.ScaleRule("clamp", high=math.inf), ValueError, "high to be finite; got inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), BAD_RULES.values(), ids=BAD_RULES)
def test_bad_scale_rules(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^Expected {message}"):
        make()


@pytest.mark.parametrize("name", SCALE_RULES)
def test_a_rule_prints_its_constants(name: str) -> None:
    rule = mf.ScaleRule(name)
    assert repr(rule).startswith(f"ScaleRule({name}")
    used = {
        "bounded": "bound=7",
        "softsign": "bound=7",
        "softplus": "floor=0.001",
        "clamp": "low=-5",
    }
    assert used.get(name, "") in repr(rule)


# ---------------------------------------------------------------------- densities


def _mixture(head: heads.GaussianMixture, parameters: Tensor) -> Distribution:
    logits, means, raw = parameters.chunk(3, dim=-1)
    return MixtureSameFamily(Categorical(logits=logits), Normal(means, head.scale(raw).exp()))


TORCH: dict[type, Callable[[Any, Tensor], Distribution]] = {
    heads.Gaussian: lambda h, p: Normal(p[..., 0], h.scale(p[..., 1]).exp()),
    heads.GaussianMixture: _mixture,
    heads.Bernoulli: lambda h, p: Bernoulli(logits=p[..., 0]),
    heads.Categorical: lambda h, p: Categorical(logits=p),
}
"""The same distribution by torch, from a head and its parameters (..., D, K)."""

each_head = pytest.mark.parametrize("name", HEADS)


def parameters_of(head: heads.Head, *batch: int, spread: float = 2.0) -> Tensor:
    """Random parameters (..., 3, K), with -inf where a feature has fewer."""
    counts = head.outputs if isinstance(head.outputs, tuple) else (head.outputs,) * 3
    parameters = spread * torch.randn(*batch, 3, max(counts), dtype=F64)
    for feature, count in enumerate(counts):
        parameters[..., feature, count:] = -torch.inf
    return parameters


def draw(head: heads.Head, parameters: Tensor) -> Tensor:
    return head.step(head.noise(parameters.shape[:-1], parameters), parameters)


@each_head
def test_log_probabilities_are_those_of_torch(name: str) -> None:
    head = HEADS[name](3).double()
    parameters = parameters_of(head, 50)
    x = draw(head, parameters)
    reference = TORCH[type(head)](head, parameters)
    close(head.log_prob(x, parameters), reference.log_prob(x))


@each_head
def test_log_probabilities_broadcast(name: str) -> None:
    head = HEADS[name](3).double()
    parameters = parameters_of(head, 4)
    x = draw(head, parameters_of(head, 5, 1))
    each = head.log_prob(x, parameters)
    assert each.shape == (5, 4, 3)
    close(each[2, 3], head.log_prob(x[2, 0], parameters[3]))


@each_head
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_gradients_are_finite_at_extreme_parameters(name: str, dtype: torch.dtype) -> None:
    head = HEADS[name](3).to(dtype)
    # Scales without a bound underflow further out.
    size = 50.0 if name in ("Gaussian, exp", "Gaussian, sigmoid") else 1e4
    signs = torch.randn(200, *parameters_of(head).shape).sign().to(dtype)
    parameters = parameters_of(head).to(dtype).sign() * size
    parameters = (torch.where(parameters.isinf(), parameters, signs * size)).requires_grad_()
    x = draw(head, parameters.detach())
    log_prob = head.log_prob(x, parameters)
    [gradient] = torch.autograd.grad(log_prob.sum(), parameters)
    assert log_prob.isfinite().all()
    assert gradient.isfinite().all()


# ---------------------------------------------------------------------- steps


@each_head
def test_noise_is_of_the_dtype_asked_for(name: str) -> None:
    head = HEADS[name](3)
    for dtype in (torch.float32, F64):
        noise = head.noise((5, 3), torch.zeros(0, dtype=dtype))
        assert noise.shape == (5, 3, head.noise_parts)
        assert noise.dtype == dtype


@pytest.mark.parametrize("name", [name for name in HEADS if name.startswith("Gaussian")])
def test_a_gaussian_step_undoes_its_standardisation(name: str) -> None:
    head = HEADS[name](3).double()
    parameters = parameters_of(head, 50)
    noise = head.noise((50, 3), parameters)
    reference = TORCH[type(head)](head, parameters)
    x = head.step(noise, parameters)
    close((x - reference.mean) / reference.stddev, noise[..., 0], rtol=1e-9)


UNIFORM = (torch.arange(4000, dtype=F64) + 0.5) / 4000  # every part of (0, 1) alike


def test_a_bernoulli_step_gives_ones_as_often_as_it_should() -> None:
    parameters = parameters_of(heads.Bernoulli(), 20)
    ones = heads.Bernoulli().step(UNIFORM[:, None, None, None], parameters).mean(dim=0)
    close(ones, parameters[..., 0].sigmoid(), rtol=0, atol=1 / 4000)


@pytest.mark.parametrize("categories", [1, 2, 5, [2, 4, 3]], ids=str)
def test_a_categorical_step_gives_categories_as_often_as_it_should(categories: Any) -> None:
    head = heads.Categorical(categories, 3)
    parameters = parameters_of(head, 20)
    drawn = head.step(UNIFORM[:, None, None, None], parameters)
    assert drawn.dtype == torch.int64
    often = (drawn.unsqueeze(-1) == torch.arange(parameters.shape[-1])).double().mean(dim=0)
    close(often, parameters.softmax(dim=-1), rtol=0, atol=1.01 / 4000)


def test_a_category_of_no_probability_is_never_drawn() -> None:
    off = -torch.inf
    logits = torch.tensor([[off, 0, 0], [0, off, 0], [0, 0, off], [off, 0, off], [-1e5, 0, -1e5]])
    head = heads.Categorical(3, 5)
    for dtype in (torch.float32, F64):
        largest = 1 - torch.finfo(dtype).eps / 2
        for uniform in (0.0, 0.4, 0.6, largest):
            drawn = head.step(torch.full((5, 1), uniform, dtype=dtype), logits.to(dtype))
            assert (logits.gather(1, drawn[:, None]) > -1e4).all()


@pytest.mark.parametrize("name", ["mixture", "mixture, softplus"])
def test_a_mixture_step_gives_components_as_often_as_it_should(name: str) -> None:
    head = HEADS[name](3).double()
    parameters = parameters_of(head, 20)
    logits, means, raw = parameters.chunk(3, dim=-1)
    noise = torch.stack([UNIFORM, torch.full_like(UNIFORM, 0.7)], dim=-1)[:, None, None]
    drawn = head.step(noise.expand(-1, 20, 3, -1), parameters.expand(4000, -1, -1, -1))
    of_component = means + 0.7 * head.scale(raw).exp()
    often = torch.isclose(drawn.unsqueeze(-1), of_component, rtol=1e-12).double().mean(dim=0)
    close(often, logits.softmax(dim=-1), rtol=0, atol=1.01 / 4000)


def test_means_of_a_fresh_mixture_are_spread_over_quantiles() -> None:
    model = mf.GaussianMixtureMADE(2, hidden_features=(8,), components=4)
    start = model.head.initial_parameters()
    assert start is not None
    close(Normal(0.0, 1.0).cdf(start[4:8]), torch.tensor([0.125, 0.375, 0.625, 0.875]), rtol=1e-5)
    bias = model.made.layers[-1].bias
    assert torch.equal(bias, start.repeat(2))


# ---------------------------------------------------------------------- encodings


def test_categories_are_read_as_one_hot_vectors() -> None:
    head = heads.Categorical([2, 3], 2)
    columns = head.encode(torch.tensor([[0, 2], [1, 0]]), torch.float32)
    assert columns.tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    same = heads.Categorical(2, 2)
    assert same.encode(torch.tensor([1, 0]), F64).tolist() == [0, 1, 1, 0]


INTEGERS = [torch.uint8, torch.int8, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", ["Bernoulli", "categorical"])
def test_discrete_values_may_be_of_any_dtype(name: str, dtype: torch.dtype) -> None:
    head = HEADS[name](3)
    model = scatter(mf.DensityModel(made_of(
        features=3, parameters=head.outputs, inputs=head.inputs, hidden_features=(8,)
    ), head))  # fmt: skip
    x = torch.cartesian_prod(*[torch.arange(2)] * 3)
    expected = model().log_prob(x.double())
    assert expected.dtype == F64
    close(model().log_prob(x.to(dtype)), expected)


@pytest.mark.parametrize("name", ["Bernoulli", "categorical"])
def test_samples_of_discrete_heads_have_their_dtype(name: str) -> None:
    head = HEADS[name](3)
    made = made_of(features=3, parameters=head.outputs, inputs=head.inputs).float()
    drawn = mf.DensityModel(made, head)().sample((4,))
    assert drawn.dtype == (torch.int64 if name == "categorical" else torch.float32)


BAD_HEADS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no component": (lambda: heads.GaussianMixture(0), ValueError, "components to be a positive"),
    "no category": (lambda: heads.Categorical(0, 3), ValueError, "categories to be a positive int"),
    "too few numbers": (
        lambda: heads.Categorical([2, 3], 3), ValueError, "categories to have 3 entries; got 2",
    ),
    "a feature without": (
        lambda: heads.Categorical([2, 0], 2), ValueError, r"categories\[1\] to be a positive int",
    ),
    "no feature": (lambda: heads.Categorical(2, 0), ValueError, "features to be a positive int"),
    "too few parameters": (
        lambda: mf.DensityModel(mf.MADE(3, parameters=1), heads.Gaussian()),
        ValueError, "made to have parameters=2, as its head Gaussian needs; got 1",
    ),
    "too few inputs": (
        lambda: mf.DensityModel(mf.MADE(3, parameters=4), heads.Categorical(4, 3)),
        ValueError, r"made to have inputs=\(4, 4, 4\), as its head Categorical needs; got 1",
    ),
    "no head": (lambda: mf.DensityModel(mf.MADE(3), None), TypeError, "head to be a Head; got No"),
    "no MADE": (
        lambda: mf.DensityModel(torch.nn.Linear(1, 1), heads.Gaussian()),
        TypeError, "made to be a MADE; got Linear",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), BAD_HEADS.values(), ids=BAD_HEADS)
def test_bad_heads(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^Expected {message}"):
        make()


# ---------------------------------------------------------------------- a head of one's own


class OwnLaplace(heads.Head):
    outputs, support = 2, constraints.real

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        location, log_scale = parameters.unbind(-1)
        return -((x - location) / log_scale.exp()).abs() - log_scale - math.log(2)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        u = torch.rand(*shape, 1, dtype=like.dtype, device=like.device) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs())

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        location, log_scale = parameters.unbind(-1)
        return location + log_scale.exp() * noise[..., 0]


class OwnLogNormal(OwnLaplace):
    """Positive values, which the network reads by their logarithms."""

    support = constraints.positive

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return LogNormal(parameters[..., 0], parameters[..., 1].exp()).log_prob(x)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(*shape, 1, dtype=like.dtype, device=like.device)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return super().step(noise, parameters).exp()

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.log()


OWN = {"Laplace": OwnLaplace, "log-normal": OwnLogNormal}


def own_model(kind: type[heads.Head]) -> mf.DensityModel:
    made = made_of(features=4, context=2, hidden_features=(16,), order="reversed")
    return scatter(mf.DensityModel(made, kind()), 0.5)


@pytest.mark.parametrize("kind", OWN.values(), ids=OWN)
def test_a_head_of_ones_own_is_scored_and_sampled(kind: type[heads.Head]) -> None:
    model = own_model(kind)
    context = torch.randn(5, 2, dtype=F64)
    distribution = model(context)
    x = distribution.sample((7,))
    assert distribution.support.check(x).all()
    location, log_scale = model.made(model.head.encode(x, F64), context).unbind(-1)
    by_torch = {OwnLaplace: Laplace, OwnLogNormal: LogNormal}[kind](location, log_scale.exp())
    close(distribution.log_prob(x), by_torch.log_prob(x).sum(-1))
    noise = model.head.noise((7, 5, 4), x)
    step = HeadStep(model.head)
    ours = mf.inverse.sequential_inverse(model.made, step, noise, context)
    close(ours, d_pass_inverse(model.made, step, noise, context))


@pytest.mark.parametrize("kind", OWN.values(), ids=OWN)
def test_a_head_of_ones_own_has_exact_gradients_or_refuses(kind: type[heads.Head]) -> None:
    model = own_model(kind)
    context = torch.randn(5, 2, dtype=F64, requires_grad=True)
    if not model(context).has_rsample:
        with pytest.raises(NotImplementedError, match="carry no gradients"):
            model(context).rsample()
        return
    noise = model.head.noise((5, 4), context)
    step = HeadStep(model.head)
    inputs = [context, *model.parameters()]
    ours = mf.inverse.sequential_inverse(model.made, step, noise, context)
    theirs = d_pass_inverse(model.made, step, noise, context)
    weights = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        close(mine, reference, rtol=1e-8)


# ---------------------------------------------------------------------- half precision

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rare_values_are_as_rare_in_half_precision(dtype: torch.dtype) -> None:
    logit = torch.full((200_000, 1, 1), -8.0, dtype=dtype)
    head = heads.Bernoulli()
    x = head.step(head.noise((200_000, 1), logit), logit)
    assert x.dtype == dtype
    # 67 are expected; in steps of 1/256 there were none, or eight hundred.
    assert 30 <= int(x.float().sum()) <= 120


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["categorical", "mixture"])
def test_every_component_is_drawn_in_half_precision(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, -7.0, 0.0], dtype=dtype)
    if name == "categorical":
        head: Any = heads.Categorical(3, features=1)
        drawn = head.step(head.noise((100_000, 1), logits), logits.expand(100_000, 1, 3))
    else:
        head = heads.GaussianMixture(3, scale="exp")
        parameters = torch.cat(
            [logits, torch.arange(3).to(dtype), torch.full((3,), -9.0).to(dtype)]
        )
        drawn = head.step(head.noise((100_000, 1), logits), parameters.expand(100_000, 1, 9))
        assert drawn.dtype == dtype
    counts = torch.bincount(drawn.float().round().long().flatten(), minlength=3)
    assert 15 <= int(counts[1]) <= 85  # 46 are expected
    assert abs(int(counts[0] - counts[2])) < 1500


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_models_draw_in_half_precision_as_they_score(dtype: torch.dtype) -> None:
    model = mf.BernoulliMADE(2, hidden_features=())
    with torch.no_grad():
        model.made.layers[0].bias.fill_(-8.0)  # type: ignore[union-attr, operator]
    x = model.to(dtype)().sample((100_000,))
    assert x.dtype == dtype
    assert 30 <= int(x.float().sum()) <= 120


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_mixtures_are_made_in_half_precision(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        start = heads.GaussianMixture(5).initial_parameters()
    finally:
        torch.set_default_dtype(before)
    assert start.dtype == dtype
    close(start.float(), heads.GaussianMixture(5).initial_parameters(), rtol=1e-2, atol=1e-6)
