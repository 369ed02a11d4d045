"""Density models and flows as Pyro's distributions: plates, losses, priors over weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import (  # noqa: E402
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoNormal  # noqa: E402
from pyro.nn import PyroModule, PyroParam, PyroSample  # noqa: E402
from pyro.nn.module import to_pyro_module_  # noqa: E402

import made_flows as mf  # noqa: E402
import made_flows.pyro as mp  # noqa: E402
from tests.helpers.density_models import scatter  # noqa: E402

ROWS, D, C = 6, 3, 2

MODELS: dict[str, Callable[[int], Any]] = {
    "Gaussian": lambda c: mp.GaussianMADE(D, c, (8,)),
    "mixture": lambda c: mp.GaussianMixtureMADE(D, c, (8,), components=2),
    "Bernoulli": lambda c: mp.BernoulliMADE(D, c, (8,)),
    "categorical": lambda c: mp.CategoricalMADE(D, c, (8,), categories=(2, 3, 2)),
    "wrapped": lambda c: mp.to_pyro(mf.GaussianMADE(D, c, (8,))),
    "MAF": lambda c: mp.to_pyro(mf.MAF(D, c, 2, (8,))),
    "IAF": lambda c: mp.to_pyro(mf.IAF(D, c, 2, (8,))),
}

every = pytest.mark.parametrize("name", MODELS)


def density_of(name: str, context: int = C) -> Any:
    return scatter(MODELS[name](context)).double().eval()


def contexts_of(rows: int) -> Tensor:
    return torch.randn(rows, C, dtype=torch.float64)


def data_of(density: Any, contexts: Tensor) -> Tensor:
    return density(contexts).sample()


def observed(density: Any, **plate: Any) -> Callable[..., Tensor]:
    """A model of rows under contexts."""

    def model(contexts: Tensor, x: Tensor | None = None) -> Tensor:
        pyro.module("density", density)
        with pyro.plate("rows", contexts.shape[0], **plate) as rows:
            obs = None if x is None else x[rows]
            return pyro.sample("x", density(contexts[rows]), obs=obs)

    return model


def no_guide(*_: Any) -> None:
    """A guide of a model without latent variables."""


# ---------------------------------------------------------------------- shapes


@every
def test_plates_give_a_score_for_each_row(name: str) -> None:
    density, contexts = density_of(name), contexts_of(ROWS)
    x = data_of(density, contexts)
    trace = poutine.trace(observed(density)).get_trace(contexts, x)
    trace.compute_log_prob()
    scores = trace.nodes["x"]["log_prob"]
    assert scores.shape == (ROWS,)
    each = torch.stack([density(c).log_prob(row) for c, row in zip(contexts, x, strict=True)])
    torch.testing.assert_close(scores, each)
    assert trace.nodes["x"]["fn"].event_shape == (D,)
    assert "density$$$" in next(iter(trace.param_nodes))


@every
def test_one_distribution_expands_over_a_plate(name: str) -> None:
    density = density_of(name, 0)
    with pyro.plate("outer", 4, dim=-2), pyro.plate("rows", ROWS, dim=-1):
        x = pyro.sample("x", density())
    assert x.shape == (4, ROWS, D)
    assert len(x.reshape(-1, D).unique(dim=0)) > 1  # rows are drawn independently
    expanded = density().expand([4, ROWS])
    assert expanded.batch_shape == (4, ROWS)
    torch.testing.assert_close(expanded.log_prob(x), density().log_prob(x))
    assert density().expand_by([5]).sample().shape == (5, D)
    with pytest.raises(ValueError, match=r"Expected shapes that broadcast together; got expanded"):
        expanded.expand([3])


@every
def test_subsampling_scales_the_score(name: str) -> None:
    density, contexts = density_of(name), contexts_of(ROWS)
    x = data_of(density, contexts)
    model = observed(density, subsample=torch.tensor([0, 4]))
    trace = poutine.trace(model).get_trace(contexts, x)
    expected = density(contexts[[0, 4]]).log_prob(x[[0, 4]]).sum() * ROWS / 2
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@every
def test_masks_scales_and_events(name: str) -> None:
    density, contexts = density_of(name), contexts_of(ROWS)
    x = data_of(density, contexts)
    scores = density(contexts).log_prob(x)
    keep = torch.arange(ROWS) < 2
    torch.testing.assert_close(
        density(contexts).mask(keep).log_prob(x), torch.where(keep, scores, 0.0)
    )
    torch.testing.assert_close(density(contexts).to_event(1).log_prob(x), scores.sum())
    scaled = poutine.scale(observed(density), scale=0.5)
    torch.testing.assert_close(
        poutine.trace(scaled).get_trace(contexts, x).log_prob_sum(), 0.5 * scores.sum()
    )


# ---------------------------------------------------------------------- inference


@every
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_rows(name: str, parallel: bool) -> None:
    density, contexts = density_of(name), contexts_of(ROWS)
    predictive = Predictive(observed(density), num_samples=5, parallel=parallel)
    drawn = predictive(contexts)["x"]
    assert drawn.shape == (5, ROWS, D)
    assert density(contexts).log_prob(drawn).isfinite().all()


LOSSES: dict[str, Any] = {
    "Trace": Trace_ELBO,
    "Trace, particles at once": lambda: Trace_ELBO(num_particles=2, vectorize_particles=True),
    "TraceGraph": TraceGraph_ELBO,
    "TraceMeanField": TraceMeanField_ELBO,
    "JitTrace": lambda: JitTrace_ELBO(ignore_jit_warnings=True),
}


# A trace cannot record the gradient of a sweep, and gets that of whole passes.
@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("loss", LOSSES)
@every
def test_every_loss_of_observed_rows_is_their_likelihood(name: str, loss: str) -> None:
    density, contexts = density_of(name), contexts_of(ROWS)
    x = data_of(density, contexts)
    expected = -density(contexts).log_prob(x).sum()
    gradients = torch.autograd.grad(expected, list(density.parameters()))
    elbo = LOSSES[loss]()
    value = elbo.loss_and_grads(observed(density), no_guide, contexts, x)
    torch.testing.assert_close(value, expected.item(), rtol=1e-6, atol=1e-6)
    for parameter, gradient in zip(density.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


LATENT = ["Gaussian", "MAF", "IAF"]


@pytest.mark.parametrize("loss", ["Trace", "Trace, particles at once", "TraceMeanField"])
@pytest.mark.parametrize("name", LATENT)
def test_a_latent_variable_with_a_learned_prior_and_posterior(name: str, loss: str) -> None:
    """Two models of the library meet: the loss falls, and both are trained."""
    prior, posterior = density_of(name, 0), density_of(name, C)
    contexts = contexts_of(ROWS)

    def model(contexts: Tensor) -> None:
        pyro.module("prior", prior)
        with pyro.plate("rows", ROWS, dim=-1):
            z = pyro.sample("z", prior())
            pyro.sample(
                "c",
                dist.Normal(z[..., :C], torch.full_like(z[..., :C], 0.5)).to_event(1),
                obs=contexts,
            )

    def guide(contexts: Tensor) -> None:
        pyro.module("posterior", posterior)
        with pyro.plate("rows", ROWS, dim=-1):
            pyro.sample("z", posterior(contexts))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), LOSSES[loss]())
    losses = [svi.step(contexts) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("name", ["Gaussian", "MAF"])
def test_nuts_samples_a_latent_variable_under_a_model_of_ours(name: str) -> None:
    density = density_of(name, 0)
    kernel = NUTS(lambda: pyro.sample("z", density()), max_tree_depth=3)
    chain = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    chain.run()
    assert chain.get_samples()["z"].shape == (5, D)


@every
def test_enumeration_is_refused(name: str) -> None:
    density, contexts = density_of(name), contexts_of(ROWS)
    assert not density(contexts).has_enumerate_support

    def asked() -> None:
        pyro.sample("x", density(contexts[0]), infer={"enumerate": "parallel"})

    loss = TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(NotImplementedError, match="Expected a site without enumeration; got one"):
        loss.loss(asked, no_guide)
    # Asking for all sites that can be enumerated passes it by.
    x = data_of(density, contexts)
    trace = poutine.trace(config_enumerate(observed(density))).get_trace(contexts, x)
    assert trace.nodes["x"]["infer"].get("enumerate") is None


@every
def test_contexts_are_enumerated_over(name: str) -> None:
    """A mixture: which context a row has is summed over."""
    density, contexts = density_of(name), contexts_of(2)
    x = data_of(density, contexts_of(ROWS))
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)

    @config_enumerate
    def model() -> None:
        with pyro.plate("rows", ROWS):
            kind = pyro.sample("kind", dist.Categorical(shares))
            pyro.sample("x", density(contexts[kind]), obs=x)

    each = density(contexts[:, None]).log_prob(x) + shares.log()[:, None]
    found = TraceEnum_ELBO(max_plate_nesting=1).loss(model, no_guide)
    torch.testing.assert_close(found, -each.logsumexp(dim=0).sum().item())


# ---------------------------------------------------------------------- priors over weights


class Bayesian(PyroModule):
    """Rows from a model whose weights are under a prior."""

    def __init__(self, density: nn.Module) -> None:
        super().__init__()
        to_pyro_module_(density)
        for module in density.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                prior = dist.Normal(0.0, 0.5).expand(value.shape).to_event(value.dim())
                setattr(module, name, PyroSample(prior))
        self.density = density

    def forward(self, rows: int, x: Tensor | None = None) -> Tensor:
        distribution = self.density()
        with pyro.plate("rows", rows):
            return pyro.sample("x", distribution, obs=x)


def weights_of(trace: Any) -> dict[str, Tensor]:
    return {
        name.removeprefix("density."): node["value"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name.startswith("density.")
    }


@every
def test_weights_under_a_prior_are_those_of_the_trace(name: str) -> None:
    """Rows are scored after the call is over, when reading a weight would draw another one."""
    bayesian = Bayesian(MODELS[name](0))
    x = data_of(MODELS[name](0), None)[None].expand(ROWS, D)
    plain = MODELS[name](0)
    scores = []
    for _ in range(2):
        trace = poutine.trace(bayesian).get_trace(ROWS, x)
        weights = weights_of(trace)
        assert set(weights) == {n for n, _ in plain.named_parameters()}
        plain.load_state_dict(weights, strict=False)
        trace.compute_log_prob()
        scores.append(trace.nodes["x"]["log_prob"])
        torch.testing.assert_close(scores[-1], plain().log_prob(x))
    assert not torch.allclose(*scores)
    trace = poutine.trace(bayesian).get_trace(ROWS)
    plain.load_state_dict(weights_of(trace), strict=False)
    trace.compute_log_prob()
    expected = plain().log_prob(trace.nodes["x"]["value"])
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Gaussian", "Bernoulli", "MAF", "IAF"])
def test_a_bayesian_model_is_fitted_and_predicts(name: str) -> None:
    bayesian = Bayesian(MODELS[name](0))
    x = (torch.rand(40, D) < 0.9).float() if name == "Bernoulli" else 0.3 * torch.randn(40, D) + 1
    guide = AutoNormal(bayesian)
    svi = SVI(bayesian, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(40, x) for _ in range(60)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    drawn = Predictive(bayesian, guide=guide, num_samples=20)(40)["x"]
    assert drawn.shape == (20, 40, D)
    assert (drawn.mean() - x.mean()).abs() < 0.35


def test_a_batch_of_networks_is_refused() -> None:
    bayesian = Bayesian(MODELS["Gaussian"](0))
    loss = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"Expected weight of shape \(8, 3\); got .* a batch of n"):
        loss.loss(bayesian, AutoNormal(bayesian), ROWS, torch.zeros(ROWS, D))


def test_nuts_over_the_weights() -> None:
    bayesian = Bayesian(mp.GaussianMADE(2, hidden_features=()))
    chain = MCMC(NUTS(bayesian, max_tree_depth=4), 10, 10, disable_progbar=True)
    chain.run(30, torch.randn(30, 2))
    samples = chain.get_samples()
    assert samples["density.made.layers.0.weight"].shape == (10, 4, 2)
    assert Predictive(bayesian, samples)(30)["x"].shape == (10, 30, 2)


def test_a_mixture_of_orders_becomes_a_pyro_module_and_scores_as_before() -> None:
    mixture = mf.OrderMixture(mf.BernoulliMADE(4, orders="all"), orders=3)
    x = (torch.rand(5, 4) < 0.5).float()
    before = mixture().log_prob(x)
    to_pyro_module_(mixture)
    assert isinstance(mixture, PyroModule)
    assert torch.equal(mixture().log_prob(x), before)


def test_constrained_weights_keep_their_constraint_and_are_trained() -> None:
    density = mp.GaussianMADE(2, hidden_features=())
    to_pyro_module_(density)
    (layer,) = density.made.layers
    layer.bias = PyroParam(torch.ones(4), constraint=dist.constraints.positive)
    x = torch.randn(50, 2) - 3

    def model() -> None:
        distribution = density()
        with pyro.plate("rows", 50):
            pyro.sample("x", distribution, obs=x)

    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(50)]
    assert losses[-1] < losses[0]
    assert bool((layer.bias > 0).all())
    assert not torch.allclose(layer.bias, torch.ones(4))


def test_a_bayesian_model_is_copied_and_pickled() -> None:
    bayesian = Bayesian(mp.to_pyro(mf.MAF(D, 0, 1, (8,))))
    bayesian(ROWS)
    for again in (copy.deepcopy(bayesian), pickle.loads(pickle.dumps(bayesian))):
        assert again(ROWS).shape == (ROWS, D)
        trace = poutine.trace(again).get_trace(ROWS)
        assert set(weights_of(trace)) == set(weights_of(poutine.trace(bayesian).get_trace(ROWS)))


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
def test_a_transform_refuses_weights_that_are_drawn_anew_at_every_look() -> None:
    network = mp.AutoRegressiveNN(D, [8])
    to_pyro_module_(network)
    last = network.layers[-1]
    last.weight = PyroSample(dist.Normal(0.0, 1.0).expand(last.mask.shape).to_event(2))
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(D), 1.0), [mp.AffineAutoregressive(network)]
    )
    with pytest.raises(ValueError, match=r"Expected weights under a prior .* inside a call"):
        flow.log_prob(torch.zeros(D))
