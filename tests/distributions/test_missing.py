"""Missing values: marginals by summing out, conditionals by brute force, training, completion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import LogNormal, constraints

import made_flows as mf
from made_flows._checks import check_values
from made_flows.distributions import conditional
from made_flows.distributions.missing import network_for
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.inverse import per_row as row_inverse
from made_flows.inverse.dispatch import backend
from tests.helpers.density_models import (
    HEADS,
    MODELS,
    NETWORKS,
    all_vectors,
    any_order_model,
    context_of,
    nearly,
    scatter,
    values_of,
)

F64 = torch.float64
NAN = float("nan")


def model_of(head: str = "Bernoulli", **options: Any) -> mf.DensityModel:
    return any_order_model(head, order="random", **options)


def patterns(features: int) -> Tensor:
    """Every pattern of observed features."""
    return torch.cartesian_prod(*[torch.tensor([False, True])] * features).reshape(-1, features)


def with_nan(x: Tensor, observed: Tensor) -> Tensor:
    return torch.where(observed, x.to(F64), NAN)


def observed_first(model: Any, observed: Tensor) -> list[int]:
    order = model.made.order.tolist()
    return [i for i in order if observed[i]] + [i for i in order if not observed[i]]


MODELS_OF_ALL_ORDERS: dict[str, Callable[..., Any]] = {
    "model": model_of,
    "model of all masks": lambda **more: model_of(**more, orders="all", masks="all"),
    "arranged": lambda **more: model_of(**more).arranged("reversed"),
    "orders": lambda **more: mf.OrderMixture(model_of(**more), 3).double(),
    "orders and masks": lambda **more: mf.OrderMixture(
        model_of(**more, orders="all", masks="all"), 3, weights=[1, 0, 2]
    ).double(),
    "models": lambda **more: mf.Mixture(
        [model_of(**more), mf.OrderMixture(model_of(**more), 2)]
    ).double(),
}
each_model = pytest.mark.parametrize("name", MODELS_OF_ALL_ORDERS)
DISCRETE_HEADS = ["Bernoulli", "categorical, various"]
ALL_HEADS = ["Gaussian", "Gaussian, exp", "mixture", *DISCRETE_HEADS]


# ---------------------------------------------------------------------- marginals


@pytest.mark.parametrize("head", ALL_HEADS)
@pytest.mark.parametrize("context", [0, 2])
def test_a_marginal_is_that_of_an_order_that_puts_the_observed_first(
    head: str, context: int
) -> None:
    model = model_of(head, context=context)
    masks = patterns(4)
    c = context_of(model, len(masks))
    x = values_of(model(c), len(masks))
    got = model(c).log_prob(with_nan(x, masks))
    nearly(model(c).log_prob(x, masks), got)
    for n, observed in enumerate(masks):
        view = model.arranged(observed_first(model, observed))
        inputs = model.head.encode(x[n], F64)
        each = model.head.log_prob(x[n], view.made(inputs, None if c is None else c[n]))
        nearly(got[n], each[observed].sum())
    assert got[0] == 0  # nothing observed
    nearly(got[-1], model(c).log_prob(x)[-1])  # everything


@each_model
@pytest.mark.parametrize("head", DISCRETE_HEADS)
def test_marginals_are_normalised(name: str, head: str) -> None:
    model = MODELS_OF_ALL_ORDERS[name](head=head, context=2)
    c = torch.randn(2, dtype=F64)
    vectors = all_vectors(model_of(head, context=2)(c))
    for observed in patterns(4):
        distinct = torch.unique(torch.where(observed, vectors, 0), dim=0)
        total = model(c).log_prob(distinct, observed).exp().sum()
        nearly(total, torch.tensor(1.0, dtype=F64))


@pytest.mark.parametrize("head", DISCRETE_HEADS)
def test_a_marginal_is_the_joint_summed_out(head: str) -> None:
    model = model_of(head)
    vectors = all_vectors(model())
    for observed in patterns(4):
        joint = model.arranged(observed_first(model, observed))().log_prob(vectors.to(F64))
        kept = torch.where(observed, vectors, -1)
        distinct, group = torch.unique(kept, dim=0, return_inverse=True)
        summed = torch.zeros(len(distinct), dtype=F64).index_add(0, group, joint.exp())
        nearly(model().log_prob(distinct.clamp(min=0), observed).exp(), summed)


def test_a_mixture_of_marginals() -> None:
    mixture = mf.OrderMixture(model_of("Gaussian"), 3).double()
    x = with_nan(torch.randn(9, 4, dtype=F64), torch.rand(9, 4) < 0.5)
    each = torch.stack([mixture.component(k)().log_prob(x) for k in range(3)])
    nearly(mixture().log_prob(x), each.logsumexp(dim=0) - math.log(3))
    assert mixture.takes_missing


@pytest.mark.parametrize("kind", ["model", "mixture"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_traced_models_meet_missing_values_later(kind: str) -> None:
    own = model_of("Gaussian")
    model = own if kind == "model" else mf.Mixture([own, model_of("Gaussian")], [0.25, 0.75])

    def score(x: Tensor) -> Tensor:
        return model().log_prob(x)

    x = with_nan(torch.randn(9, 4, dtype=F64), torch.rand(9, 4) < 0.5)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
        compiled(torch.zeros(9, 4, dtype=F64))  # nothing is missing yet
        nearly(compiled(x), score(x))
        nearly(torch.func.vmap(score)(x), score(x))


def test_shapes_and_empty_batches() -> None:
    model = model_of("Gaussian", context=2)
    c = torch.randn(3, 1, 2, dtype=F64)
    x = torch.randn(5, 4, dtype=F64)
    x[::2, 1] = NAN
    assert model(c).log_prob(x).shape == (3, 5)
    assert model(c[:, 0]).log_prob(x[0]).shape == (3,)
    mask = torch.tensor([True, False, True, False])
    nearly(model(c).log_prob(x[1], mask), model(c).log_prob(torch.where(mask, x[1], NAN)))
    assert model(c[:0]).log_prob(x[:1]).shape == (0, 1)
    empty = torch.zeros(0, 4, dtype=F64)
    assert model(c[0]).log_prob(empty, torch.zeros(0, 4, dtype=torch.bool)).shape == (0,)
    rest = model.conditional(empty, context=c[0])
    assert rest.sample((2,)).shape == (2, 0, 4)
    assert rest.log_prob(empty).shape == (0,)
    unconditional = model_of("Gaussian")
    assert unconditional().log_prob(x[:0]).shape == (0,)


@pytest.mark.parametrize("head", ALL_HEADS)
def test_one_feature(head: str) -> None:
    model = model_of(head, features=1)
    x = values_of(model(), 3).to(F64)
    x[1] = NAN
    score = model().log_prob(x)
    assert score[1] == 0
    nearly(score[::2], model().log_prob(x[::2]))
    completed = model.impute(x, 2)
    assert completed.shape == (2, 3, 1)
    assert bool((completed[:, ::2] == x[::2]).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_precision_is_that_of_the_model(dtype: torch.dtype) -> None:
    model = model_of("Gaussian").to(dtype)
    x = torch.tensor([[1.0, NAN, 2.0, NAN]], dtype=dtype)
    assert model().log_prob(x).dtype == model.impute(x).dtype == dtype


def test_gradients_are_finite_and_those_of_the_observed_terms() -> None:
    model = model_of("Gaussian")
    x = with_nan(torch.randn(20, 4, dtype=F64), torch.rand(20, 4) < 0.5).requires_grad_()
    model().log_prob(x).sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert bool((x.grad[torch.isnan(x)] == 0).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


# ---------------------------------------------------------------------- models of one order


def one_order(head: str = "Gaussian", **options: Any) -> mf.DensityModel:
    model = model_of(head, **(options or {"masks": None, "orders": None}))
    return model.arranged([2, 0, 3, 1]) if model.made.graph is None else model


@pytest.mark.parametrize("options", [{"orders": None}, {"orders": 3}, {"masks": "all"}], ids=str)
def test_a_prefix_of_the_order_can_be_asked_for(options: dict[str, Any]) -> None:
    model = model_of("Gaussian", **options).arranged([2, 0, 3, 1])
    x = torch.randn(6, 4, dtype=F64)
    for count in range(5):
        observed = torch.zeros(4, dtype=torch.bool)
        observed[[2, 0, 3, 1][:count]] = True
        parameters = model.made(x)
        each = model.head.log_prob(x, parameters)
        nearly(model().log_prob(x, observed), each[:, observed].sum(-1))
        rest = model.conditional(with_nan(x, observed))
        nearly(rest.log_prob(x), each[:, ~observed].sum(-1))
        samples = rest.sample((3,))
        assert torch.equal(samples[..., observed], x[:, observed].expand(3, -1, -1))


@pytest.mark.parametrize("ask", ["score", "conditional", "impute"])
def test_other_questions_are_refused(ask: str) -> None:
    model = one_order()
    x, observed = torch.randn(3, 4, dtype=F64), torch.ones(3, 4, dtype=torch.bool)
    observed[1, 0] = False
    questions: dict[str, Callable[[], Any]] = {
        "score": lambda: model().log_prob(x, observed),
        "conditional": lambda: model.conditional(with_nan(x, observed)),
        "impute": lambda: model.impute(x, observed=observed),
    }
    message = r"got feature 0 missing in row 1, on which the observed feature 1 depends.*'all'"
    with pytest.raises(ValueError, match=message):
        questions[ask]()
    with pytest.raises(ValueError, match=r"got feature 0 missing, on which"):
        model().log_prob(x[0], observed[1])


@pytest.mark.parametrize("options", [{"orders": None}, {"orders": 3}, {"masks": "all"}], ids=str)
def test_nan_is_an_error_to_a_model_of_one_order(options: dict[str, Any]) -> None:
    model = model_of("Gaussian", **options)
    x = torch.zeros(3, 4, dtype=F64)
    x[1, 2] = NAN
    message = r"value to be finite; got nan in row 1, column 2\. If NaN stands .* orders='all'"
    with pytest.raises(ValueError, match=message):
        model().log_prob(x)
    with pytest.raises(ValueError, match=r"data to be finite; got nan .*orders='all'"):
        mf.fit(model, x, validation=None, max_epochs=1, progress=False)


def test_a_graph_answers_for_features_with_all_their_parents() -> None:
    model = MODELS["Gaussian | graph, context, residual"](6)
    c, x = torch.randn(5, 2, dtype=F64), torch.randn(5, 6, dtype=F64)
    graph = model.made.allowed
    each = model.head.log_prob(x, model.made(x, c))
    answered = 0
    for observed in patterns(6):
        closed = not bool((graph[observed][:, ~observed]).any())
        if not closed:
            with pytest.raises(ValueError, match="with all their parents"):
                model.conditional(x, observed, context=c)
            continue
        answered += 1
        nearly(model(c).log_prob(x, observed), each[:, observed].sum(-1))
        rest = model.conditional(x, observed, context=c)
        nearly(rest.log_prob(x), each[:, ~observed].sum(-1))
        torch.manual_seed(0)
        samples = rest.sample()
        assert torch.equal(samples[:, observed], x[:, observed])
        # Whatever the levels, a sample is noise through the parameters of its own values.
        torch.manual_seed(0)
        noise = model.head.noise((1, 5, 6), x)
        again = model.head.step(noise[0], model.made(samples, c))
        nearly(samples[:, ~observed], again[:, ~observed])
    assert 2 < answered < 64


# ---------------------------------------------------------------------- conditionals


@each_model
@pytest.mark.parametrize("head", DISCRETE_HEADS)
def test_a_conditional_is_joint_over_marginal(name: str, head: str) -> None:
    model = MODELS_OF_ALL_ORDERS[name](head=head, context=2)
    c = torch.randn(2, dtype=F64)
    vectors = all_vectors(model_of(head, context=2)(c))
    for observed in patterns(4):
        x = vectors[7]
        rest = model.conditional(with_nan(x, observed), context=c)
        agree = vectors[(vectors == x)[:, observed].all(dim=-1)]
        score = rest.log_prob(agree)
        nearly(score.exp().sum(), torch.tensor(1.0, dtype=F64))
        nearly(rest.log_prob(torch.where(observed, 0, agree)), score)  # observed: not looked at


def brute_force(model: Any, x: Tensor, observed: Tensor, vectors: Tensor) -> Tensor:
    """The conditional distribution over all vectors, from joint probabilities alone."""
    if isinstance(model, mf.DensityModel):
        joint = model.arranged(observed_first(model, observed))().log_prob(vectors).exp()
    else:  # the posterior over components is that of whole joint tables
        weights = model.weights / model.weights.sum()
        joint = torch.stack(
            [
                weights[k]
                * model.component(k)
                .arranged(observed_first(model.component(k), observed))()
                .log_prob(vectors)
                .exp()
                for k in range(len(model))
            ]
        ).sum(dim=0)
    joint = torch.where((vectors == x)[:, observed].all(dim=-1), joint, 0.0)
    return joint / joint.sum()


@pytest.mark.parametrize("name", ["model", "model of all masks", "orders", "orders and masks"])
def test_conditionals_and_samples_are_those_of_brute_force(name: str) -> None:
    model = MODELS_OF_ALL_ORDERS[name]()
    vectors = all_vectors(model_of()()).to(F64)
    count = 4000
    for observed, x in zip(patterns(4), vectors, strict=True):
        expected = brute_force(model, x, observed, vectors).detach()
        rest = model.conditional(with_nan(x, observed))
        possible = expected > 0
        nearly(rest.log_prob(vectors[possible]).exp(), expected[possible])
        samples = rest.sample((count,))
        places = (samples @ (2.0 ** torch.arange(3, -1, -1, dtype=F64))).long()
        counts = torch.bincount(places, minlength=16)
        assert bool((counts[~possible] == 0).all())
        mean = expected[possible] * count
        statistic = float(((counts[possible] - mean) ** 2 / mean).sum())
        freedom = max(int(possible.sum()) - 1, 1)
        assert statistic < freedom + 8 * math.sqrt(2 * freedom)


def linear_gaussian(features: int) -> tuple[mf.DensityModel, Tensor, Tensor]:
    """A linear network: a normal distribution, with its mean and covariance."""
    model = mf.GaussianMADE(features, hidden_features=(), scale="exp").double()
    scatter(model)
    with torch.no_grad():  # scales do not depend on x
        model.made.layers[0].weight[1::2] = 0
    zero = torch.zeros(features, dtype=F64)
    offset, log_scale = model.made(zero).unbind(-1)
    slopes = model.made(torch.eye(features, dtype=F64))[..., 0] - offset
    inverse = torch.linalg.inv(torch.eye(features, dtype=F64) - slopes.T)
    root = inverse * log_scale.exp()
    return model, (inverse @ offset).detach(), (root @ root.T).detach()


def test_the_conditional_of_a_normal_distribution() -> None:
    model, mean, covariance = linear_gaussian(5)
    joint = torch.distributions.MultivariateNormal(mean, covariance)
    x = torch.randn(5, dtype=F64)
    nearly(model().log_prob(x), joint.log_prob(x))
    known = 3
    before, after = slice(0, known), slice(known, 5)
    observed = torch.arange(5) < known
    gain = covariance[after, before] @ torch.linalg.inv(covariance[before, before])
    exact = torch.distributions.MultivariateNormal(
        mean[after] + gain @ (x[before] - mean[before]),
        covariance[after, after] - gain @ covariance[before, after],
    )
    rest = model.conditional(torch.where(observed, x, NAN))
    values = torch.randn(7, 5, dtype=F64)
    nearly(rest.log_prob(values), exact.log_prob(values[:, after]))
    samples = model.impute(torch.where(observed, x, NAN), 40_000)
    error = (exact.covariance_matrix.diagonal() / 40_000).sqrt()
    assert bool(((samples[:, after].mean(0) - exact.mean).abs() < 6 * error).all())
    nearly(samples[:, after].T.cov(), exact.covariance_matrix, 0.1)
    assert torch.equal(samples[:, before], x[before].expand(40_000, -1))


OPTIONS_OF_SWEEPS = ["context, residual, direct", "no hidden layer", "no hidden layer, direct",
                     "one unit", "deep", "random degrees", "own activation", "narrow",
                     "reversed"]  # fmt: skip


@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
@pytest.mark.parametrize("option", OPTIONS_OF_SWEEPS)
@pytest.mark.parametrize("chunk", [2**24, 300])
def test_rows_of_all_patterns_together_are_rows_one_by_one(
    option: str, head: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_inverse, "_CHUNK", chunk)
    made_head = HEADS[head](4).double()
    made = NETWORKS[option](
        4, mask_weights=True, parameters=made_head.outputs, inputs=made_head.inputs
    )
    model = scatter(mf.DensityModel(made, made_head, orders="all")).eval()
    masks = patterns(4)
    c = context_of(model, 16)
    x = values_of(model(c), 16)
    noise = made_head.noise((16, 4), torch.empty(0, dtype=F64))
    orders = torch.tensor([observed_first(model, mask) for mask in masks])
    with torch.no_grad():
        together = row_inverse.sample_row_orders(
            made, made_head, noise, orders, x, masks.sum(-1), c
        )
        for n, mask in enumerate(masks):
            network, prefix = network_for(made, mask)
            row = sequential_inverse(
                network, HeadStep(made_head), noise[n], None if c is None else c[n],
                known=x[n], prefix=prefix,
            )  # fmt: skip
            nearly(together[n].to(F64), row.to(F64))


@pytest.mark.parametrize("choice", ["auto", "eager", "by rank"])
@pytest.mark.parametrize("head", ALL_HEADS)
@pytest.mark.parametrize("context", [0, 2])
def test_completions_in_one_batch_are_those_of_each_row(
    head: str, context: int, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "_PATTERNS", 0 if choice == "by rank" else 100)
    model = model_of(head, context=context)
    masks = patterns(4)
    c = context_of(model, len(masks))
    x = values_of(model(c), len(masks))
    with backend("eager" if choice == "eager" else "auto"):
        completed = model.impute(x, 3, masks, context=c)
    assert completed.shape == (3, 16, 4)
    assert completed.dtype == model(c).sample().dtype
    assert bool((completed == x)[:, masks].all())
    assert bool(torch.isfinite(completed.double()).all())
    rest = model.conditional(x, masks, context=c)
    nearly(rest.log_prob(completed) + model(c).log_prob(x, masks),
           torch.stack([
               model.arranged(observed_first(model, mask))(None if c is None else c[n]).log_prob(
                   completed[:, n].to(x.dtype)
               )
               for n, mask in enumerate(masks)
           ], dim=1))  # fmt: skip


def test_completions_carry_gradients() -> None:
    model = model_of("Gaussian", context=2)
    c = torch.randn(6, 2, dtype=F64, requires_grad=True)
    masks = torch.rand(6, 4) < 0.5
    masks[0], masks[1] = True, False
    x = torch.randn(6, 4, dtype=F64, requires_grad=True)

    def completed(x: Tensor, c: Tensor) -> Tensor:
        torch.manual_seed(0)
        return model.conditional(x, masks, context=c).rsample((2,))

    assert torch.autograd.gradcheck(completed, (x, c), atol=1e-6)
    with pytest.raises(NotImplementedError, match="carry no gradients"):
        model_of().conditional(torch.ones(4, dtype=F64)).rsample()


def test_values_of_conditionals_in_their_shapes() -> None:
    model = model_of("Gaussian", context=2)
    x = with_nan(torch.randn(5, 4, dtype=F64), torch.rand(5, 4) < 0.5)
    rest = model.conditional(x, context=torch.randn(3, 1, 2, dtype=F64))
    assert rest.batch_shape == (3, 5)
    assert rest.event_shape == (4,)
    assert rest.sample((2,)).shape == (2, 3, 5, 4)
    assert rest.log_prob(torch.randn(7, 1, 1, 4, dtype=F64)).shape == (7, 3, 5)
    assert rest.has_rsample
    assert "batch_shape=(3, 5)" in repr(rest)
    mixture = mf.OrderMixture(model, 2).double()
    rest = mixture.conditional(x, context=torch.randn(3, 1, 2, dtype=F64))
    assert rest.sample((2,)).shape == (2, 3, 5, 4)
    assert rest.log_prob(torch.randn(7, 1, 1, 4, dtype=F64)).shape == (7, 3, 5)
    nearly(rest.log_weights.exp().sum(-1), torch.ones(3, 5, dtype=F64))
    assert mixture.impute(x, 2, context=torch.zeros(2, dtype=F64)).shape == (2, 5, 4)


# ---------------------------------------------------------------------- training


def correlated(rows: int, features: int = 4) -> Tensor:
    common = torch.randn(rows, 1)
    return common + 0.3 * torch.randn(rows, features)


def test_training_draws_orders_for_rows_with_missing_values() -> None:
    model = model_of("Gaussian").train()
    observed = torch.tensor([True, False, True, True])
    x = with_nan(torch.randn(4, dtype=F64), observed)
    possible = torch.stack(
        [model.arranged([*first, 1])().log_prob(x) for first in itertools.permutations([0, 2, 3])]
    )
    drawn = model().log_prob(x.expand(200, 4))
    distance = (drawn[:, None] - possible).abs().min(dim=1)
    assert distance.values.max() < 1e-9
    assert len(set(distance.indices.tolist())) > 1


@pytest.mark.parametrize(
    ("masks", "per_batch"), [(None, 1), (None, "row"), ("all", 2), ("all", "row"), (2, 1)]
)
def test_fitting_rows_with_missing_values(masks: Any, per_batch: Any) -> None:
    torch.manual_seed(0)
    x = correlated(600)
    holes = torch.where(torch.rand(600, 4) < 0.3, NAN, x)
    over: dict[str, Any] = {"orders": "all", "masks": masks, "orders_per_batch": per_batch}
    model = mf.GaussianMADE(4, 0, (24,), activation="relu", **over)
    history = mf.fit(
        model, holes, max_epochs=18, batch_size=50, learning_rate=1e-2, progress=False, seed=0
    )
    assert history.best < history.validation[0]
    model.eval()
    complete = correlated(300)
    # Independent normals of the right mean and variance: 4 * 1.46.
    assert -model().log_prob(complete).mean() < 0.8 * 4 * 1.46
    complete[:, 2] = NAN
    error = model.impute(complete, 50).mean(dim=0)[:, 2] - complete[:, [0, 1, 3]].mean(dim=1)
    assert error.std() < 0.5


def test_fitting_a_mixture_and_integers_with_missing_values() -> None:
    torch.manual_seed(0)
    x = torch.randint(3, (200, 1)).expand(200, 3).double()
    holes = torch.where(torch.rand(200, 3) < 0.2, NAN, x)
    mixture = mf.OrderMixture(mf.CategoricalMADE(3, 0, (16,), categories=3, orders="all"), 2)
    before = -mixture().log_prob(holes.float()).mean()
    mf.fit(mixture, holes, max_epochs=5, learning_rate=1e-2, progress=False, seed=0)
    assert -mixture().log_prob(holes.float()).mean() < before


class _Positive(mf.Head):
    """Log-normal: zero, the usual filler, is not a value of it."""

    outputs, support, filler = 2, constraints.positive, 1.0

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return LogNormal(parameters[..., 0], parameters[..., 1].exp()).log_prob(x)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return like.new_empty(*shape, 1).normal_()

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return (parameters[..., 0] + parameters[..., 1].exp() * noise[..., 0]).exp()

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.log().to(dtype)

    def check_values(self, x: Tensor) -> None:
        check_values(x, x > 0, "value", "to be positive")


def test_fitting_missing_values_where_zero_is_not_a_value() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 3).exp()
    holes = torch.where(torch.rand(100, 3) < 0.3, NAN, x)
    model = mf.DensityModel(mf.MADE(3), _Positive(), orders="all")
    options: dict[str, Any] = {"max_epochs": 2, "progress": False, "seed": 0}
    mf.fit(model, holes, **options)
    assert torch.isfinite(model().log_prob(holes)).all()
    holes[4, 1] = 0.0
    with pytest.raises(ValueError, match="to be positive; got 0 in row 4, column 1"):
        mf.fit(model, holes, **options)


FIT_MISTAKES: dict[str, tuple[float, type[mf.DensityModel], str]] = {
    "infinity": (math.inf, mf.GaussianMADE, "to be finite, or NaN where it is missing; got inf"),
    "outside the support": (2.0, mf.BernoulliMADE, "value to be 0 or 1; got 2 in row 1, column 2"),
}


@pytest.mark.parametrize("name", FIT_MISTAKES)
def test_other_values_stay_errors_to_fit(name: str) -> None:
    value, kind, message = FIT_MISTAKES[name]
    x = torch.zeros(3, 4)
    x[0, 0], x[1, 2] = NAN, value
    model = kind(4, orders="all")
    with pytest.raises(ValueError, match=message):
        mf.fit(model, x, validation=None, max_epochs=1, progress=False)


def test_a_context_is_never_missing() -> None:
    model = mf.GaussianMADE(4, 1, orders="all")
    with pytest.raises(ValueError, match="context of data to be finite; got nan"):
        mf.fit(model, torch.zeros(3, 4), torch.full((3, 1), NAN), validation=None, progress=False)


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a mask of floats": (
        lambda: model_of()().log_prob(torch.zeros(4, dtype=F64), torch.ones(4)), TypeError,
        "observed to be of dtype torch.bool; got dtype torch.float32",
    ),
    "a mask of another shape": (
        lambda: model_of()().log_prob(torch.zeros(4, dtype=F64), torch.ones(3).bool()), ValueError,
        r"observed of shape \(..., 4\); got \(3,\)",
    ),
    "masks of other rows": (
        lambda: model_of().conditional(torch.zeros(2, 4, dtype=F64), torch.ones(3, 4) < 1),
        ValueError, "that broadcast together",
    ),
    "NaN that is said to be observed": (
        lambda: model_of("Gaussian").conditional(
            torch.full((4,), NAN, dtype=F64), torch.tensor([True, False, True, True])
        ), ValueError, "value to be finite; got nan in column 0",
    ),
    "a value outside the support": (
        lambda: model_of().conditional(torch.tensor([2.0, NAN, 0.0, 1.0], dtype=F64)), ValueError,
        "value to be 0 or 1; got 2 in column 0",
    ),
    "no samples": (
        lambda: model_of().impute(torch.zeros(4, dtype=F64), 0), ValueError, "samples to be a pos",
    ),
    "a flow in a mixture": (
        lambda: mf.Mixture([mf.MAF(4)]).conditional(torch.zeros(4)), TypeError,
        "components to be density models, which know missing values",
    ),
    "marginals of a flow": (
        lambda: mf.Mixture([mf.MAF(4)])().log_prob(torch.zeros(4), torch.ones(4) < 1), TypeError,
        "components to be density models, which know missing values",
    ),
    "a missing context": (
        lambda: model_of(context=2).conditional(torch.zeros(4, dtype=F64)), ValueError,
        r"context of shape \(..., 2\)",
    ),
    "the width of values": (
        lambda: model_of().conditional(torch.zeros(3, dtype=F64)), ValueError, r"\(..., 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name: str) -> None:
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        call()


def test_observed_values_keep_their_precision() -> None:
    model = mf.GaussianMADE(3, orders="all")
    x = torch.tensor([[1 / 3, math.nan, 2.0], [math.nan, 0.1, math.nan]], dtype=F64)
    rows = model.impute(x, 2)
    assert rows.dtype == F64
    known = ~x.isnan()
    assert torch.equal(rows[0][known], x[known])
