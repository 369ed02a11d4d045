"""Density models: normalised, sampled as scored, and shaped like torch's own distributions.

Statistical tests raise a false alarm with probability 1e-6 each for a seed drawn anew; seeds are
fixed, so that a test that passed fails only after a change.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

import made_flows as mf
from tests.helpers.density_models import (
    CONTINUOUS,
    DISCRETE,
    MODELS,
    all_vectors,
    context_of,
    scatter,
    values_of,
)

F64 = torch.float64
FALSE_ALARM = 1e-6
DRAWS = 20_000

each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
each_discrete = pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
each_continuous = pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)

# One model of every kind, for checks that do not depend on the architecture.
FEW = [name for name in MODELS if name.endswith("| context, residual, direct")]
FEW += ["Gaussian | plain", "Bernoulli | graph", "mixture | no hidden layer"]
TWO = ["Gaussian | context, residual, direct", "categorical | plain"]
few_models = pytest.mark.parametrize("make", [MODELS[name] for name in FEW], ids=FEW)

Make = Callable[..., nn.Module]


def close(a: Tensor, b: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **{"rtol": 1e-10, "atol": 1e-10, **tolerance})


# ---------------------------------------------------------------------- normalisation


@each_discrete
@pytest.mark.parametrize("features", [1, 2, 5])
def test_probabilities_of_all_vectors_add_up_to_one(make: Make, features: int) -> None:
    model = make(features)
    distribution = model(context_of(model, 3, 1))
    total = distribution.log_prob(all_vectors(distribution)).exp().sum(dim=-1)
    close(total, torch.ones_like(total))


@pytest.mark.parametrize("option", ["plain", "random order", "context, residual, direct"])
def test_probabilities_of_all_binary_vectors_of_ten_add_up_to_one(option: str) -> None:
    model = MODELS[f"Bernoulli | {option}"](10)
    vectors = all_vectors(model(context_of(model)))
    assert vectors.shape == (1024, 10)
    total = model(context_of(model)).log_prob(vectors).exp().sum()
    close(total, torch.ones_like(total))


def grid(features: int, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points sinh(t) for evenly spaced t, the t, and the logarithms of their weights.

    Dense near zero and wide at the ends: the trapezoidal rule then converges exponentially for
    every density that is smooth and has tails.
    """
    t = torch.linspace(-6, 6, points, dtype=F64)
    weights = (t.cosh() * (t[1] - t[0])).log()
    axes = [t.sinh()] * features
    vectors = torch.cartesian_prod(*axes).reshape(-1, features)
    log_weights = torch.cartesian_prod(*[weights] * features).reshape(-1, features).sum(dim=-1)
    return vectors, t, log_weights


@each_continuous
@pytest.mark.parametrize(("features", "points"), [(1, 1000), (2, 250)])
def test_densities_integrate_to_one(make: Make, features: int, points: int) -> None:
    model = scatter(make(features), 0.5)  # no narrower than the grid can see
    vectors, _, log_weights = grid(features, points)
    total = (model(context_of(model)).log_prob(vectors) + log_weights).exp().sum()
    close(total, torch.ones_like(total), rtol=1e-4)


# ---------------------------------------------------------------------- samples


def p_value(observed: NDArray[np.float64], probabilities: NDArray[np.float64]) -> float:
    """Of a chi-square test of counts; cells that are hardly ever visited are one cell."""
    expected = probabilities * observed.sum()
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 10:  # too few altogether: part of the smallest other cell
            smallest = int(expected[:-1].argmin())
            observed[smallest] += observed[-1]
            expected[smallest] += expected[-1]
            observed, expected = observed[:-1], expected[:-1]
    if len(observed) == 1:
        return 1.0
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(statistic, len(observed) - 1))


def test_the_chi_square_test_sees_differences_of_eight_per_cent() -> None:
    generator = np.random.default_rng(0)
    flat = np.full(50, 0.02)
    bent = flat * np.where(np.arange(50) % 2, 1.08, 0.92)
    assert p_value(generator.multinomial(DRAWS, flat).astype(float), flat) > 0.01
    assert p_value(generator.multinomial(DRAWS, bent).astype(float), flat) < FALSE_ALARM


@each_discrete
def test_discrete_samples_are_as_frequent_as_they_are_probable(make: Make) -> None:
    model = make(3)
    distribution = model(context_of(model))
    vectors = all_vectors(distribution)
    sizes = vectors.amax(dim=0) + 1
    place = torch.tensor([1, 1, 1]).long()
    place[1], place[0] = sizes[2], sizes[2] * sizes[1]
    counts = torch.bincount(
        (distribution.sample((DRAWS,)).long() * place).sum(dim=-1), minlength=len(vectors)
    )
    probabilities = distribution.log_prob(vectors).exp().detach()
    assert p_value(counts.double().numpy(), probabilities.numpy()) > FALSE_ALARM


@each_continuous
def test_continuous_samples_are_as_frequent_as_they_are_probable(make: Make) -> None:
    model, points, parts = scatter(make(2), 0.5), 400, 8
    distribution = model(context_of(model))
    vectors, t, log_weights = grid(2, points)
    mass = (distribution.log_prob(vectors) + log_weights).exp().detach().reshape(points, points)
    # Coarse cells: eight parts of equal probability along either axis.
    labels = [
        (mass.sum(dim=1 - axis).cumsum(dim=0) * parts).long().clamp(max=parts - 1)
        for axis in range(2)
    ]
    cells = (labels[0][:, None] * parts + labels[1]).flatten()
    probabilities = torch.zeros(parts * parts, dtype=F64).index_add_(0, cells, mass.flatten())
    x = distribution.sample((DRAWS,))
    place = ((x.asinh() - t[0]) / (t[1] - t[0])).round().long().clamp(0, points - 1)
    counts = torch.bincount(
        labels[0][place[:, 0]] * parts + labels[1][place[:, 1]], minlength=parts * parts
    )
    assert p_value(counts.double().numpy(), probabilities.numpy()) > FALSE_ALARM


CONDITIONAL: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "Gaussian": lambda head, x, p: Normal(p[..., 0], head.scale(p[..., 1]).exp()).cdf(x),
    "mixture": lambda head, x, p: (
        p.chunk(3, dim=-1)[0].softmax(dim=-1)
        * Normal(p.chunk(3, dim=-1)[1], head.scale(p.chunk(3, dim=-1)[2]).exp()).cdf(x[..., None])
    ).sum(dim=-1),
}
"""Conditional distribution functions, from a head, values and parameters."""


@pytest.mark.parametrize("head", CONDITIONAL)
@pytest.mark.parametrize("option", ["random order", "context, residual, direct", "graph"])
def test_the_probability_integral_transform_of_samples_is_uniform(head: str, option: str) -> None:
    model = MODELS[f"{head} | {option}"](8)
    context = context_of(model)
    x = model(context).sample((DRAWS,))
    uniform = CONDITIONAL[head](model.head, x, model.made(x, context)).detach()
    values = [stats.kstest(uniform[:, feature].numpy(), "uniform").pvalue for feature in range(8)]
    # Together: the sum of squared normal scores of eight independent uniforms is chi-square.
    scores = Normal(0.0, 1.0).icdf(uniform.clamp(1e-12, 1 - 1e-12)).pow(2).sum(dim=-1)
    values.append(stats.kstest(scores.numpy(), stats.chi2(8).cdf).pvalue)
    assert min(values) > FALSE_ALARM / len(values)


@each_model
def test_samples_are_in_the_support_and_have_a_density(make: Make) -> None:
    model = make()
    distribution = model(context_of(model, 3))
    x = distribution.sample((50,))
    assert distribution.support.check(x).shape == x.shape[:-1]
    assert distribution.support.check(x).all()
    assert distribution.log_prob(x).isfinite().all()


@few_models
def test_samples_are_those_of_the_seed(make: Make) -> None:
    model = make()
    distribution = model(context_of(model, 3))

    def draw(method: str) -> Tensor:
        torch.manual_seed(11)
        return getattr(distribution, method)((5,))

    assert torch.equal(draw("sample"), draw("sample"))
    assert not torch.equal(draw("sample"), distribution.sample((5,)))
    if distribution.has_rsample:
        close(draw("rsample"), draw("sample"))


@few_models
def test_rsample_carries_gradients_where_there_are_any(make: Make) -> None:
    model = make()
    context = context_of(model, 3)
    context = None if context is None else context.requires_grad_()
    distribution = model(context)
    assert not distribution.sample((5,)).requires_grad
    if not distribution.has_rsample:
        with pytest.raises(NotImplementedError, match=r"carry no gradients; use sample\(\)"):
            distribution.rsample((5,))
        return
    x = distribution.rsample((5,))
    assert x.requires_grad
    x.pow(2).sum().backward()
    if context is not None:
        assert bool((context.grad != 0).all())
    # Of the output layer at least, every weight that lives counts.
    output = model.made.layers[-1]
    assert bool((output.bias.grad != 0).all())
    with torch.no_grad():
        assert not distribution.rsample((5,)).requires_grad


@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
def test_samples_never_drop_units(head: str) -> None:
    model = MODELS[f"{head} | dropout"]()

    def draw() -> Tensor:
        torch.manual_seed(3)
        return model().sample((20,))

    expected = draw()
    model.train()
    assert torch.equal(draw(), expected)
    x = values_of(model(), 20)
    assert not torch.equal(model().log_prob(x), model().log_prob(x))  # scores do, in training


# ---------------------------------------------------------------------- shapes, as torch has them

BATCHES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (0,), (2, 0)]
VALUES: list[tuple[int, ...]] = [(), (1,), (3,), (5, 1), (4, 2, 3), (0,), (4, 2, 0)]


def by_torch(batch: tuple[int, ...], features: int) -> Distribution:
    return Independent(Normal(torch.zeros(*batch, features, dtype=F64), 1.0), 1)


@few_models
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_shapes_are_those_of_torch(make: Make, batch: tuple[int, ...]) -> None:
    model = make()
    ours = model(context_of(model, *batch))
    if model.context == 0:
        ours = ours.expand(batch)
    theirs = by_torch(batch, 4)
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
    for sample_shape in [(), (5,), (2, 1), (0,)]:
        x = ours.sample(sample_shape)
        assert x.shape == theirs.sample(sample_shape).shape
        assert ours.log_prob(x).shape == (*sample_shape, *batch)
        if ours.has_rsample:
            assert ours.rsample(sample_shape).shape == x.shape
    assert ours.sample().shape == theirs.sample().shape
    assert ours.sample(torch.Size([2])).shape == theirs.sample(torch.Size([2])).shape


@pytest.mark.parametrize("make", [MODELS[name] for name in TWO], ids=TWO)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("of_value", VALUES, ids=str)
def test_values_broadcast_as_in_torch(
    make: Make, batch: tuple[int, ...], of_value: tuple[int, ...]
) -> None:
    model = make()
    ours = model(context_of(model, *batch))
    if model.context == 0:
        ours = ours.expand(batch)
    value = values_of(ours, *of_value)
    try:
        expected = torch.broadcast_shapes(of_value, batch)
    except RuntimeError:
        with pytest.raises(ValueError, match=r"^Expected shapes that broadcast together; got val"):
            ours.log_prob(value)
        return
    scores = ours.log_prob(value)
    assert scores.shape == expected
    rows = value.expand(*expected, -1).reshape(-1, 4)
    if ours.context is None:
        close(scores.flatten(), model().log_prob(rows))
    else:
        contexts = ours.context.expand(*expected, -1).reshape(-1, model.context)
        close(scores.flatten(), model(contexts).log_prob(rows))


@few_models
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize("larger", [(), (3,), (2, 3), (2, 1), (4,), (0,), (3, 2)], ids=str)
def test_expand_is_that_of_torch(
    make: Make, batch: tuple[int, ...], larger: tuple[int, ...]
) -> None:
    model = make()
    ours = model(context_of(model, *batch))
    if model.context == 0:
        ours = ours.expand(batch)
    try:
        theirs = by_torch(batch, 4).expand(larger)
    except RuntimeError:
        with pytest.raises(ValueError, match=r"^Expected (a shape that batch_shape|shapes tha)"):
            ours.expand(larger)
        return
    expanded = ours.expand(larger)
    assert type(expanded) is type(ours)
    assert expanded.batch_shape == theirs.batch_shape
    assert expanded.event_shape == theirs.event_shape
    value = values_of(ours)
    assert expanded.log_prob(value).shape == theirs.batch_shape
    close(expanded.log_prob(value), ours.log_prob(value).expand(theirs.batch_shape))
    assert expanded.sample((2,)).shape == theirs.sample((2,)).shape


def test_rows_of_an_expanded_batch_are_drawn_apart() -> None:
    x = MODELS["Gaussian | plain"]()().expand((100,)).sample()
    assert len(x[:, 0].unique()) == 100


@few_models
def test_supports_are_those_of_vectors(make: Make) -> None:
    model = make()
    distribution = model(context_of(model))
    assert distribution.support.event_dim == 1
    x = distribution.sample((6,))
    assert distribution.support.check(x).shape == (6,)
    bad = x.double().clone()
    bad[2, 1] = torch.nan
    assert distribution.support.check(bad).tolist() == [True, True, False, True, True, True]


# ---------------------------------------------------------------------- validation

NAN, INF = float("nan"), float("inf")
BAD_VALUES: dict[str, tuple[str, Any, str]] = {
    "not a number": (
        "Gaussian", [[0, 0, 0, 0], [0, 0, NAN, 0]], "value to be finite; got nan in row 1, column 2"
    ),
    "infinite": ("mixture", [[0, -INF, 0, 0]], "value to be finite; got -inf in row 0, column 1"),
    "not binary": (
        "Bernoulli", [[0, 1, 1, 0], [1, 1, 0, 2]], "value to be 0 or 1; got 2 in row 1, column 3"
    ),
    "between": ("Bernoulli", [[0, 0.5, 1, 0]], "value to be 0 or 1; got 0.5 in row 0, column 1"),
    "one vector": ("Bernoulli", [0, 1, -1, 0], "value to be 0 or 1; got -1 in column 2"),
    "three dimensions": (
        "Bernoulli",
        [[[0, 0, 0, 0]] * 3, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, NAN, 0]]],
        "value to be 0 or 1; got nan in row 1, 2, column 2",
    ),
    "no such category": (
        "categorical",
        [[0, 0, 0, 3]],
        "value to be an integer from 0 to below 3 of categories; got 3 in row 0, column 3",
    ),
    "a category of another feature": (
        "categorical, various",
        [[1, 2, 3, 1], [2, 0, 0, 0]],
        "value to be an integer from 0 to below the feature's own number of categories; got 2 in "
        "row 1, column 0",
    ),
    "half a category": (
        "categorical",
        [[0, 0.5, 0, 0]],
        "value to be an integer from 0 to below 3 of categories; got 0.5 in row 0, column 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("head", "value", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_outside_the_support_are_named(head: str, value: Any, message: str) -> None:
    model = MODELS[f"{head} | plain"]()
    advice = r"(?:\. If NaN stands for a missing value, .*)?"
    with pytest.raises(ValueError, match=f"^Expected {message}{advice}$"):
        model().log_prob(torch.tensor(value, dtype=F64))


@each_model
def test_bad_calls(make: Make) -> None:
    model = make()
    value = values_of(model(context_of(model)), 3)
    with pytest.raises(ValueError, match=r"Expected value of shape \(..., 4\); got \(3, 5\)"):
        model(context_of(model)).log_prob(torch.cat([value, value[:, :1]], dim=1))
    with pytest.raises(TypeError, match=r"Expected value to be a torch.Tensor; got list"):
        model(context_of(model)).log_prob(value.tolist())
    if model.context:
        with pytest.raises(ValueError, match=r"Expected context of shape .*; got none"):
            model()
        with pytest.raises(ValueError, match=r"Expected context of shape \(..., \d\); got \(9,\)"):
            model(torch.zeros(9, dtype=F64))
    else:
        with pytest.raises(ValueError, match=r"Expected no context, .* got one of shape \(2,\)"):
            model(torch.zeros(2, dtype=F64))


def test_checks_are_switched_off_as_in_torch() -> None:
    model = MODELS["Bernoulli | plain"]()
    value = torch.full((4,), 0.5, dtype=F64)
    unchecked = partial(mf.AutoregressiveDistribution, model.made, model.head)
    assert unchecked(validate_args=False).log_prob(value).isfinite()
    assert unchecked(validate_args=False).expand((2,)).log_prob(value).shape == (2,)
    with pytest.raises(ValueError, match="to be 0 or 1"):
        unchecked(validate_args=True).expand((2,)).log_prob(value)
    Distribution.set_default_validate_args(False)
    assert model().log_prob(value).isfinite()


# ---------------------------------------------------------------------- as parts of torch


@few_models
def test_distributions_are_copied_and_pickled(make: Make) -> None:
    model = make()
    distribution = model(context_of(model, 3))
    x = distribution.sample((5,))
    for other in (copy.deepcopy(distribution), pickle.loads(pickle.dumps(distribution))):
        close(other.log_prob(x), distribution.log_prob(x))
        assert other.sample((5,)).shape == x.shape


@few_models
def test_a_model_is_copied_with_its_own_weights(make: Make) -> None:
    model = make()
    context = context_of(model, 3)
    x = model(context).sample((5,))
    other = copy.deepcopy(model)
    close(other(context).log_prob(x), model(context).log_prob(x))
    scatter(other)
    assert not torch.equal(other(context).log_prob(x), model(context).log_prob(x))


@few_models
def test_models_compile_whole(make: Make) -> None:
    model = make()
    context = context_of(model, 3)
    x = model(context).sample((5,))

    def score(x: Tensor, context: Tensor | None) -> Tensor:
        return model(context).log_prob(x)

    torch.compiler.reset()
    compiled = torch.compile(score, fullgraph=True, backend="eager")
    close(compiled(x, context), score(x, context))


@few_models
def test_scores_under_function_transforms(make: Make) -> None:
    model = make()
    x = values_of(model(context_of(model)), 5)
    context = context_of(model, 5)
    expected = model(context).log_prob(x)
    if context is None:
        close(torch.vmap(lambda value: model().log_prob(value))(x), expected)
        return
    close(torch.vmap(lambda value, c: model(c).log_prob(value))(x, context), expected)
    leaf = context.clone().requires_grad_()
    [reference] = torch.autograd.grad(model(leaf).log_prob(x).sum(), leaf)
    per_row = torch.vmap(torch.func.grad(lambda c, value: model(c).log_prob(value)))
    close(per_row(context, x), reference)


@few_models
def test_scores_of_stacked_models(make: Make) -> None:
    class Score(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
            return self.model(context).log_prob(x)

    models = [Score(make()) for _ in range(2)]
    context = context_of(models[0].model, 5)
    x = values_of(models[0].model(context_of(models[0].model)), 5)
    state = torch.func.stack_module_state(models)
    call = partial(torch.func.functional_call, models[0])
    scores = torch.vmap(lambda *each: call(each, (x, context)))(*state)
    close(scores, torch.stack([model(x, context) for model in models]))


@few_models
@pytest.mark.parametrize("given", ["all", "one"])
def test_other_weights_for_a_call_stay_with_the_distribution(make: Make, given: str) -> None:
    """It is asked after the call: scores were the model's own, and gradients zero."""
    model, other = make(), make()
    context = context_of(model, 5)
    x = values_of(model(context_of(model)), 5)
    weights = {name: weight.detach() for name, weight in other.named_parameters()}
    if given == "one":
        weights = dict([next((n, w) for n, w in weights.items() if w.numel())])

    def score(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (context,)).log_prob(x)

    got = [score(weights), torch.vmap(score)({n: w[None] for n, w in weights.items()})[0]]
    gradients = torch.func.grad(lambda each: score(each).sum())(weights)
    with torch.no_grad():
        got += [score(weights)] if given == "all" else []
        sampled = torch.func.functional_call(model, weights, (context,)).sample((2,))
    model.load_state_dict({**model.state_dict(), **weights})
    expected = model(context).log_prob(x)
    for each in got:
        close(each, expected)
    assert sampled.shape == model(context).sample((2,)).shape
    leaves = [weight for name, weight in model.named_parameters() if name in weights]
    found = torch.autograd.grad(expected.sum(), leaves, allow_unused=True)
    for gradient, wanted in zip(gradients.values(), found, strict=True):
        close(gradient, torch.zeros_like(gradient) if wanted is None else wanted)


# Clamped scales pass gradients straight through, which is not their derivative.
EXACT = [name for name in FEW if "clamp" not in name]


@pytest.mark.parametrize("make", [MODELS[name] for name in EXACT], ids=EXACT)
def test_scores_have_exact_gradients(make: Make) -> None:
    model = make(3)
    context = context_of(model, 2)
    distribution = model(context)
    x = distribution.sample()
    weights = [p for p in model.parameters() if p.numel()][:3]

    def score(*_: Tensor) -> Tensor:
        return model(context).log_prob(x)

    assert torch.autograd.gradcheck(score, weights)
    if not distribution.support.is_discrete:
        assert torch.autograd.gradcheck(model(context).log_prob, x.clone().requires_grad_())


def test_it_prints() -> None:
    model = MODELS["Gaussian | context"]()
    text = repr(model(torch.zeros(7, 2, dtype=F64)))
    assert "batch_shape=(7,)" in text
    assert "event_shape=(4,)" in text
    assert "scale" in repr(model)


@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
def test_float32_models_give_float32(head: str) -> None:
    model = MODELS[f"{head} | context"]()
    context = context_of(model, 3)
    x = model(context).sample((5,))
    expected = model(context).log_prob(x)
    model = model.float()
    scores = model(context.float()).log_prob(x if head[0] in "Bc" else x.float())
    assert scores.dtype == torch.float32
    close(scores.double(), expected, rtol=1e-4, atol=1e-4)
    drawn = model(context.float()).sample((5,))
    assert drawn.dtype == (torch.int64 if head[0] == "c" else torch.float32)


# ---------------------------------------------------------------------- named constructors

NAMED: dict[str, Callable[..., mf.DensityModel]] = {
    "GaussianMADE": mf.GaussianMADE,
    "GaussianMixtureMADE": lambda *args, **more: mf.GaussianMixtureMADE(
        *args, components=3, **more
    ),
    "BernoulliMADE": mf.BernoulliMADE,
    "CategoricalMADE": lambda *args, **more: mf.CategoricalMADE(
        *args, categories=[2, 3, 4], **more
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_models_are_a_made_and_a_head(name: str) -> None:
    model = NAMED[name](3, 2, (16, 8), order="reversed", residual=True, activation="tanh")
    assert type(model).__name__ == name
    assert (model.features, model.context) == (3, 2)
    assert model.made.hidden_features == (16, 8)
    assert model.made.order.tolist() == [2, 1, 0]
    assert model.made.residual
    x = model(torch.zeros(2)).sample((50,))
    assert model(torch.zeros(2)).log_prob(x).shape == (50,)
    report = mf.check_autoregressive(model.made)
    assert report.missing == []


def test_named_models_pass_on_their_own_arguments() -> None:
    assert mf.GaussianMADE(2, scale="softplus").head.scale.rule == "softplus"
    mixture = mf.GaussianMixtureMADE(2, components=5, scale="exp").head
    assert (mixture.components, mixture.scale.rule) == (5, "exp")
    assert mf.CategoricalMADE(2, categories=4).head.categories == (4, 4)
    with pytest.raises(TypeError, match="categories"):
        mf.CategoricalMADE(2)
    with pytest.raises(TypeError, match="unknown"):
        mf.GaussianMADE(2, unknown=1)
    with pytest.raises(ValueError, match=r"^Expected categories to have 3 entries; got 2"):
        mf.CategoricalMADE(3, categories=[2, 3])
