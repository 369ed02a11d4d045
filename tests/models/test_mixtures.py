"""Mixtures of models and of orders: normalised, sampled as scored, weights by EM."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import made_flows as mf
from made_flows.distributions import mixture as mixture_module
from made_flows.models.mixture_weights import mixture_weights
from tests.helpers.density_models import (
    CONTINUOUS,
    MODELS,
    all_vectors,
    any_order_model,
    context_of,
    made_of,
    nearly,
    values_of,
)

F64 = torch.float64


def model_of(head: str = "Bernoulli", **options: Any) -> mf.DensityModel:
    return any_order_model(head, spread=2.0, **options)


MIXTURES: dict[str, Callable[..., Any]] = {
    "orders": lambda **more: mf.OrderMixture(model_of(**more), 5),
    "given orders": lambda **more: mf.OrderMixture(
        model_of(**more), [[0, 1, 2, 3], [3, 1, 0, 2]], weights=[1, 3]
    ),
    "orders and masks": lambda **more: mf.OrderMixture(
        model_of(**more, orders="all", masks="all"), 4
    ),
    "masks": lambda **more: mf.OrderMixture(model_of(**more, masks=3), 6),
    "masks of no layers": lambda **more: mf.OrderMixture(
        model_of(**more, masks="all", hidden_features=()), 3
    ),
    "fixed orders": lambda **more: mf.OrderMixture(model_of(**more, orders=3, masks=2)),
    "models": lambda **more: mf.Mixture([model_of(**more), model_of(**more)], [0.2, 0.8]),
    "one model": lambda **more: mf.Mixture([model_of(**more)]),
    "mixtures": lambda **more: mf.Mixture([mf.OrderMixture(model_of(**more), 2), model_of(**more)]),
    "a weight of zero": lambda **more: mf.OrderMixture(model_of(**more), 3, weights=[0, 1, 2]),
}
each_mixture = pytest.mark.parametrize("name", MIXTURES)


@each_mixture
@pytest.mark.parametrize("head", ["Bernoulli", "categorical, various"])
def test_probabilities_of_all_vectors_sum_to_one(name: str, head: str) -> None:
    mixture = MIXTURES[name](head=head, context=2).double()
    c = torch.randn(2, dtype=F64)
    vectors = all_vectors(mixture.component(0)(c))
    nearly(mixture(c).log_prob(vectors).exp().sum(), torch.tensor(1.0, dtype=F64))


def test_probabilities_of_ten_features_sum_to_one() -> None:
    mixture = mf.OrderMixture(model_of(features=10), 7)
    vectors = all_vectors(mixture().mixture.component(0)())
    nearly(mixture().log_prob(vectors).exp().sum(), torch.tensor(1.0, dtype=F64), 1e-6)


@each_mixture
@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical"])
@pytest.mark.parametrize("context", [0, 2])
def test_the_logarithm_is_outside_the_average(name: str, head: str, context: int) -> None:
    mixture = MIXTURES[name](head=head, context=context).double()
    c = context_of(mixture, 7)
    x = values_of(mixture.component(0)(c), 7)
    each = torch.stack([mixture.component(k)(c).log_prob(x) for k in range(len(mixture))], -1)
    weights = mixture.weights / mixture.weights.sum()
    nearly(mixture(c).log_prob(x), (each + weights.log()).logsumexp(dim=-1))
    used = mixture.weights > 0
    nearly(mixture.component_log_probs(x, c)[:, used], each[:, used])
    # Jensen: never below the weighted mean of logarithms.
    assert bool((mixture(c).log_prob(x) >= each @ weights - 1e-9).all())


def test_averaged_logits_are_another_thing_and_not_normalised() -> None:
    """Trap 12: the ensemble of pytorch-made."""
    model = model_of()
    mixture = mf.OrderMixture(model, 6)
    vectors = all_vectors(model()).double()
    logits = torch.stack([model.made(vectors, order=order)[..., 0] for order in mixture.orders])
    averaged = model.head.log_prob(vectors, logits.mean(dim=0).unsqueeze(-1)).sum(-1)
    assert (averaged.exp().sum() - 1).abs() > 1e-3
    nearly(mixture().log_prob(vectors).exp().sum(), torch.tensor(1.0, dtype=F64))


@each_mixture
def test_samples_follow_the_density(name: str) -> None:
    mixture = MIXTURES[name](context=2).double()
    c = torch.randn(2, dtype=F64)
    vectors = all_vectors(mixture.component(0)(c))
    probabilities = mixture(c).log_prob(vectors.double()).exp().detach()
    count = 20_000
    samples = mixture(c).sample((count,))
    places = (samples @ (2.0 ** torch.arange(3, -1, -1, dtype=F64))).long()
    expected = probabilities * count
    counts = torch.bincount(places, minlength=16)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 15 + 6 * math.sqrt(2 * 15)  # 15 degrees of freedom, 6 standard deviations


def of_zeros_and_ones() -> mf.Mixture:
    models = [mf.BernoulliMADE(3, 1, hidden_features=()) for _ in range(2)]
    for model, logit in zip(models, (-40.0, 40.0), strict=True):
        for weight in model.parameters():
            weight.data.fill_(logit if weight.dim() == 1 else 0.0)
    return mf.Mixture(models, [0.3, 0.7]).requires_grad_(False)


RECORDERS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "make_fx": lambda draw, c: make_fx(draw)(c),
    "make_fx, fake": lambda draw, c: make_fx(
        draw, tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(c),
    "torch.jit.trace": lambda draw, c: torch.jit.trace(draw, c, check_trace=False),
    "vmap": lambda draw, c: lambda c: torch.vmap(draw, randomness="different")(c.unsqueeze(0))[0],
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("recorder", RECORDERS)
def test_components_are_drawn_anew_in_every_replay(recorder: str) -> None:
    """Of 16 rows Binomial(16, 0.7) are ones; mean and variance of 100 replays, 5 deviations."""
    mixture, c = of_zeros_and_ones(), torch.zeros(16, 1)
    replay = RECORDERS[recorder](lambda c: mixture(c).sample(), c)
    drawn = torch.stack([replay(c) for _ in range(100)])
    assert (drawn == drawn[..., :1]).all()
    ones = drawn[..., 0].sum(-1)
    assert abs(float(ones.mean()) - 11.2) < 5 * (3.36 / 100) ** 0.5
    assert abs(float(ones.var()) - 3.36) < 5 * 3.36 * (2 / 100) ** 0.5


EXPORTED: dict[str, Callable[[], Any]] = {
    "mixture": of_zeros_and_ones,
    "all orders": model_of,
    "mixture of orders": lambda: mf.OrderMixture(model_of(), 2),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_scores_export_for_any_number_of_rows(name: str) -> None:
    class Score(torch.nn.Module):
        model = EXPORTED[name]()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x[:, :1] if name == "mixture" else None).log_prob(x)

    rows, features = {"x": {0: torch.export.Dim("rows")}}, 3 if name == "mixture" else 4
    with torch.no_grad():
        few, many = torch.ones(5, features), torch.ones(9, features)
        exported = torch.export.export(Score(), (few,), dynamic_shapes=rows).module()
        nearly(exported(many), Score()(many))


@pytest.mark.parametrize("name", ["orders and masks", "models"])
def test_mixtures_compile_whole(name: str) -> None:
    mixture = MIXTURES[name](head="Gaussian", context=2).double().eval()
    x, context = torch.randn(5, 4, dtype=F64), torch.randn(5, 2, dtype=F64)

    def score(x: Tensor, context: Tensor) -> Tensor:
        return mixture(context).log_prob(x)

    torch.compiler.reset()
    compiled = torch.compile(score, fullgraph=True, backend="eager")
    nearly(compiled(x, context), score(x, context))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_missing_features_are_not_recorded() -> None:
    """Which are observed decides what is computed, and may be others in a replay."""
    x = torch.tensor([[1.0, torch.nan, 0.0, torch.nan]], dtype=F64)
    mixture = mf.OrderMixture(model_of(), 2).requires_grad_(False)

    def draw(x: Tensor) -> Tensor:
        return mixture.conditional(x).sample()

    for record in (make_fx(draw), lambda x: torch.jit.trace(draw, x, check_trace=False)):
        with pytest.raises(NotImplementedError, match="which features are observed"):
            record(x)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("name", ["orders", "models", "mixtures"])
def test_shapes(name: str, batch: tuple[int, ...], context: int) -> None:
    mixture = MIXTURES[name](context=context)
    c = context_of(mixture, *batch)
    distribution = mixture(c)
    batch = batch if context else ()
    assert distribution.batch_shape == batch
    assert distribution.event_shape == (4,)
    assert distribution.sample().shape == (*batch, 4)
    samples = distribution.sample((5, 2))
    assert samples.shape == (5, 2, *batch, 4)
    assert distribution.log_prob(samples).shape == (5, 2, *batch)
    wider = distribution.expand((6, *batch))
    assert wider.batch_shape == (6, *batch)
    assert wider.sample((2,)).shape == (2, 6, *batch, 4)
    assert wider.log_prob(torch.zeros(4, dtype=F64)).shape == (6, *batch)
    value = torch.zeros(5, 1, *[1] * len(batch), 4, dtype=F64)
    assert wider.log_prob(value).shape == (5, 6, *batch)
    with pytest.raises(ValueError, match="broadcast together"):
        wider.log_prob(torch.zeros(7, *batch, 4, dtype=F64))
    with pytest.raises(ValueError, match="broadcast"):
        wider.expand((5, *batch))
    assert "components" in repr(distribution)
    uneven = not torch.allclose(mixture.weights, mixture.weights[0])
    assert ("\n  weights=(" in repr(mixture)) == uneven
    holes = samples[0, 0].double().masked_fill(torch.arange(4) > 1, torch.nan)
    for rows in (holes, holes.new_empty(0, *batch, 4)):
        rest = mixture.conditional(rows, context=c)
        assert rest.sample((2, 0)).shape == (2, 0, *rows.shape)
        assert rest.log_prob(rest.sample((3,))).shape == (3, *rows.shape[:-1])


def test_a_mixture_is_in_the_mode_of_its_models() -> None:
    model = model_of()
    assert not mf.OrderMixture(model, 2).training
    assert not mf.Mixture([model]).training
    assert mf.Mixture([model, copy.deepcopy(model).train()]).training
    assert not model.training


def test_rows_in_chunks_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = MIXTURES["orders"](context=2)
    c, x = torch.randn(10, 2, dtype=F64), torch.randint(2, (3, 10, 4)).double()
    whole = mixture(c).log_prob(x)
    monkeypatch.setattr(mixture_module, "_ROWS", 4)
    nearly(mixture(c).log_prob(x), whole)
    nearly(mixture(c[0]).log_prob(x), mixture(c[:1]).log_prob(x))


def test_flows_and_models_mix_and_train() -> None:
    torch.manual_seed(0)
    mixture = mf.Mixture([mf.MAF(3, hidden_features=(8,)), mf.GaussianMADE(3, orders="all")])
    x = torch.randn(200, 3) * 2 + 1
    before = -mixture().log_prob(x).mean()
    mf.fit(mixture, x, max_epochs=10, learning_rate=1e-2, progress=False, seed=0)
    assert -mixture().log_prob(x).mean() < before
    assert mixture().sample((4,)).shape == (4, 3)


def test_gradients_reach_the_one_network_of_all_orders() -> None:
    mixture = MIXTURES["orders and masks"]()
    mixture().log_prob(torch.randint(2, (6, 4)).double()).sum().backward()
    assert all(parameter.grad is not None for parameter in mixture.model.parameters())


# ---------------------------------------------------------------------- weights


def planted() -> tuple[Any, Tensor, Tensor]:
    """A mixture of six models, and rows from the second and fifth of them."""
    torch.manual_seed(3)
    mixture = mf.Mixture([model_of("Gaussian", context=1, orders=1) for _ in range(6)]).double()
    c = torch.randn(3000, 1, dtype=F64)
    x = torch.cat([mixture.component(1)(c[:900]).sample(), mixture.component(4)(c[900:]).sample()])
    return mixture, x, c


def test_expectation_maximization_never_loses() -> None:
    mixture, x, c = planted()
    fit = mixture.fit_weights(x, c, threshold=0.0)
    steps = torch.tensor(fit.log_likelihood)
    assert bool((steps.diff() >= -1e-12).all())
    assert steps[-1] > steps[0]
    nearly(mixture(c).log_prob(x).mean(), steps[-1].to(F64), 1e-6)
    assert fit.weights == tuple(mixture.weights.tolist())


def test_weights_are_found_and_sparse_ones_dropped() -> None:
    mixture, x, c = planted()
    fit = mixture.fit_weights(x, c, threshold=0.02)
    assert abs(fit.weights[1] - 0.3) < 0.05
    assert abs(fit.weights[4] - 0.7) < 0.05
    assert fit.kept == sum(weight > 0 for weight in fit.weights) < 6
    assert abs(sum(fit.weights) - 1) < 1e-9
    scores = mixture.component_log_probs(x, c)
    assert bool(torch.isinf(scores[:, [w == 0 for w in fit.weights]]).all())
    again = mixture.fit_weights(x, c, threshold=0.0)  # dropped ones may come back
    assert again.log_likelihood[-1] >= fit.log_likelihood[-1] - 1e-6


def test_weights_are_fitted_in_evaluation_mode_and_modes_kept() -> None:
    made = made_of(features=4, parameters=1, dropout=0.5)
    mixture = mf.OrderMixture(
        mf.DensityModel(made, mf.univariate.heads.Bernoulli(), orders="all"), 3
    )
    mixture.train()
    x = torch.randint(2, (50, 4)).double()
    first, second = mixture.fit_weights(x), mixture.fit_weights(x)
    assert first == second
    assert mixture.training
    assert made.training
    assert mixture.gain(x) == mixture.gain(x)


def test_the_gain_of_a_mixture() -> None:
    mixture, x, c = planted()
    gain = mixture.gain(x, c)
    each = [mixture.component(k)(c).log_prob(x).mean().item() for k in range(6)]
    assert gain.components == pytest.approx(each)
    assert gain.mixture == pytest.approx(mixture(c).log_prob(x).mean().item())
    assert gain.best == pytest.approx(max(each))
    assert gain.mean == pytest.approx(sum(each) / 6)
    assert gain.mixture > gain.mean
    assert "mixture of 6: " in str(gain)


# ---------------------------------------------------------------------- as modules


@each_mixture
def test_mixtures_are_saved_and_copied(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixture = MIXTURES[name](context=2)
    x, c = torch.randint(2, (6, 4)).double(), torch.randn(2, dtype=F64)
    mf.save(mixture, tmp_path / "mixture.safetensors")
    for twin in (
        mf.load(tmp_path / "mixture.safetensors"),
        copy.deepcopy(mixture),
        pickle.loads(pickle.dumps(mixture)),
    ):
        assert torch.equal(twin(c).log_prob(x), mixture(c).log_prob(x))
        assert repr(twin) == repr(mixture)


def test_precision_is_that_of_the_models() -> None:
    for dtype in (torch.float32, F64):
        mixture = MIXTURES["orders"](head="Gaussian").to(dtype)
        x = mixture().sample((3,))
        assert x.dtype == mixture().log_prob(x).dtype == dtype


def test_orders_are_drawn_from_the_generator() -> None:
    model = model_of(orders="all", masks="all")

    def orders(seed: int) -> list[Any]:
        mixture = mf.OrderMixture(model, 5, generator=torch.Generator().manual_seed(seed))
        return [mixture.orders.tolist(), mixture.degrees.tolist()]

    assert orders(1) == orders(1) != orders(2)
    assert len(mf.OrderMixture(model)) == 16


def test_a_number_of_numpy_takes_the_orders_that_were_trained() -> None:
    for model in (model_of(orders=3), model_of(masks=np.int64(3))):
        mixtures = [mf.OrderMixture(model, count) for count in (2, np.int64(2))]
        assert torch.equal(mixtures[0].orders, mixtures[1].orders)
    with pytest.raises(ValueError, match="orders to be 3 at most"):
        mf.OrderMixture(model_of(orders=3), np.int64(4))


def test_a_mixture_of_one_feature() -> None:
    mixture = mf.OrderMixture(model_of("Gaussian", features=1), 3)
    x = torch.randn(5, 1, dtype=F64)
    nearly(mixture().log_prob(x), mixture.model().log_prob(x))


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no model": (lambda: mf.OrderMixture(mf.MAF(3)), TypeError, "model to be a DensityModel"),
    "a graph": (
        lambda: mf.OrderMixture(MODELS["Bernoulli | graph"]()), ValueError, "the model of a graph",
    ),
    "orders": (
        lambda: mf.OrderMixture(model_of(), [[0, 0, 1, 2]]), ValueError, "order to be a permut",
    ),
    "no orders": (lambda: mf.OrderMixture(model_of(), 0), ValueError, "orders to be a positive"),
    "empty orders": (lambda: mf.OrderMixture(model_of(), []), ValueError, "at least one order"),
    "a word": (lambda: mf.OrderMixture(model_of(), "all"), TypeError, "orders to be a number of"),
    "too many": (
        lambda: mf.OrderMixture(model_of(orders=3), 4), ValueError, "orders to be 3 at most",
    ),
    "weights": (
        lambda: mf.OrderMixture(model_of(), 3, weights=[1, 2]), ValueError, r"weights of shape",
    ),
    "negative": (
        lambda: mf.OrderMixture(model_of(), 2, weights=[1, -2]), ValueError, "weights to be >= 0",
    ),
    "zeros": (
        lambda: mf.OrderMixture(model_of(), 2, weights=[0, 0]), ValueError, "not all 0",
    ),
    "no components": (lambda: mf.Mixture([]), ValueError, "components to hold at least one"),
    "one component": (lambda: mf.Mixture(model_of()), TypeError, "components to be a sequence"),
    "a layer": (
        lambda: mf.Mixture([model_of(), torch.nn.Linear(4, 4)]), TypeError,
        r"components\[1\] to be a model with features",
    ),
    "features": (
        lambda: mf.Mixture([model_of(), model_of(features=3)]), ValueError,
        r"components\[1\] to have features=4; got 3",
    ),
    "contexts": (
        lambda: mf.Mixture([model_of(), model_of(context=3)]), ValueError,
        r"components\[1\] to have context=0; got 3",
    ),
    "a value": (
        lambda: MIXTURES["orders"]()().log_prob(torch.zeros(2, 3)), ValueError, r"\(..., 4\)",
    ),
    "no rows": (
        lambda: MIXTURES["orders"]().fit_weights(torch.zeros(0, 4, dtype=F64)), ValueError, "N > 0",
    ),
    "threshold": (
        lambda: MIXTURES["orders"]().fit_weights(torch.zeros(2, 4, dtype=F64), threshold=1.0),
        ValueError, r"threshold to be in \[0, 1\)",
    ),
    "a missing context": (
        lambda: MIXTURES["orders"](context=2)(None), ValueError, r"context of shape \(..., 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name: str) -> None:
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("name", ["Gaussian | plain", "mixture | plain"])
def test_a_model_of_one_order_has_no_mixture_of_orders(name: str) -> None:
    with pytest.raises(ValueError, match=r"made with orders or masks, .* got a model of one"):
        mf.OrderMixture(CONTINUOUS[name](4), 3)


def test_rows_more_of_every_component_count_as_rows_do() -> None:
    prior = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    says_nothing = torch.zeros(5, 3, dtype=torch.float64)
    torch.testing.assert_close(
        mixture_weights(says_nothing, prior=prior), prior / 3, atol=1e-3, rtol=0
    )
    rows = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    found = mixture_weights(rows.expand(2, 3), prior=prior)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64))
