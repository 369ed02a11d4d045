"""Fitting a guide from start to verdict, on posteriors that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints

from made_flows.models.variational import TriangularAffine
from made_flows.pyro import AutoIAF, FlowMixture, diagnose, fit_guide, fitting
from made_flows.pyro.fitting import BUDGETS
from made_flows.pyro.layout import layout
from made_flows.pyro.starts import JointDensity, apart, find_starts
from made_flows.pyro.whitened import Density

F64 = torch.float64


def regression(X: Tensor, y: Tensor) -> None:
    """Flat priors: the posterior of b is a Student t around the least squares."""
    b = pyro.sample("b", dist.ImproperUniform(constraints.real_vector, (), (X.shape[1],)))
    s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
    mean = (b.unsqueeze(-2) @ X.mT).squeeze(-2)
    pyro.sample("y", dist.Normal(mean, s.unsqueeze(-1)).to_event(1), obs=y)


def natural_units() -> tuple[Tensor, Tensor]:
    """A temperature on a year: intercept and slope are correlated by -0.99999."""
    year = torch.arange(1952.0, 2012.0)
    return torch.stack([torch.ones(60), year], 1), 0.02 * year - 20 + 0.6 * torch.randn(60)


def funnel() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    with pyro.plate("four", 4):
        pyro.sample("x", dist.Normal(0.0, (z / 2).exp()))


def joint(model: Callable[..., None], guide: AutoIAF) -> JointDensity:
    return JointDensity(model, layout(model, guide)[1], (), {})


@pytest.fixture(scope="module")
def fitted() -> tuple[AutoIAF, Tensor, Tensor]:
    torch.manual_seed(0)
    X, y = natural_units()
    guide = AutoIAF(regression, transforms=2)
    fit_guide(guide, X, y, budget="fast", seed=0, progress=False)
    return guide, X, y


def test_data_in_natural_units(fitted: tuple[AutoIAF, Tensor, Tensor]) -> None:
    guide, X, y = fitted
    X, y = X.double(), y.double()
    mean = torch.linalg.lstsq(X, y).solution
    free = len(y) - X.shape[1]
    # A flat prior on the deviation: a t distribution with one degree of freedom less.
    covariance = (y - X @ mean).square().sum() / (free - 3) * torch.linalg.inv(X.T @ X)
    deviation = covariance.diagonal().sqrt()
    draws = guide.get_posterior().sample((8000,))[:, :2].double()
    assert ((draws.mean(0) - mean) / deviation).abs().max() < 0.1
    torch.testing.assert_close(draws.std(0) / deviation, torch.ones(2, dtype=F64), atol=0.1, rtol=0)
    assert draws.T.corrcoef()[0, 1] < -0.9999


def test_a_fitted_guide_is_loaded_into_a_new_one(fitted: tuple[AutoIAF, Tensor, Tensor]) -> None:
    guide, X, y = fitted
    new = AutoIAF(regression, transforms=2)
    new(X, y)
    new.load_state_dict(guide.state_dict())
    points = guide.get_posterior().sample((5,))
    torch.testing.assert_close(new.log_prob(points), guide.log_prob(points))


def test_the_mode_of_a_funnel_is_not_where_it_starts() -> None:
    guide = AutoIAF(funnel)
    guide()
    density = joint(funnel, guide)
    assert density.dtype == F64
    points = {"the middle": torch.zeros(5), "outside": torch.tensor([4.0, 5.0, -3.0, 9.0, 1.0])}
    name, start = find_starts(density, points, torch.Generator().manual_seed(0))[0]
    # The density grows without bound towards z = -infinity, x = 0; the mass is at z = 0 +- 3.
    assert abs(float(start.location[0])) < 6
    assert -8 < start.elbo < 0.5
    assert name in points


def test_starts_of_a_normal_posterior_are_exact() -> None:
    covariance = torch.tensor([[1e-8, 0.9e-2], [0.9e-2, 1e4]])
    location = torch.tensor([3.0, -5e4])

    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(location.double(), covariance.double()))

    guide = AutoIAF(model, init_loc_fn=lambda site: torch.zeros(2, dtype=F64))
    guide()
    point = {"zero": torch.zeros(2, dtype=F64)}
    density = joint(model, guide)
    ((_, start),) = find_starts(density, point, torch.Generator().manual_seed(0))
    assert start.elbo == pytest.approx(0.0, abs=1e-3)
    found = start.factor @ start.factor.mT
    torch.testing.assert_close(found, covariance.double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_triangular_map_in_units_of_its_own(shape: tuple[int, ...]) -> None:
    units = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-3.0, 0.1, 4.0]], dtype=F64)
    with torch.random.fork_rng():
        transform = TriangularAffine([1.0, 2.0, 3.0], 0.5, 1.0, [5.0, 0.0, -1.0], units).double()
        with torch.no_grad():
            transform.matrix.add_(0.3 * torch.randn(3, 3))
    z = torch.randn(*shape, 3, dtype=F64)
    x, log_det = transform.to_data(z)
    back, log_back = transform.to_noise(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_back, -log_det)
    rows = z.reshape(-1, 3)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: transform.to_data(v)[0]))(rows)
    torch.testing.assert_close(jacobian.slogdet().logabsdet, log_det.reshape(-1))
    score = torch.randn(len(rows), 3, dtype=F64)
    expected = torch.linalg.solve(jacobian.mT, score.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(transform.pull_back(score), expected.detach())


def labels(y: Tensor) -> None:
    """Two normal distributions whose labels can be exchanged: the posterior has two modes."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    each = [
        dist.Normal(mu[..., k, None], sigma[..., k, None]).log_prob(y) + share[..., None]
        for k, share in enumerate((theta.log(), (-theta).log1p()))
    ]
    pyro.factor("y", torch.logaddexp(*each).sum(-1))


def test_both_modes_of_exchanged_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=60))
    torch.manual_seed(1)
    y = torch.cat([torch.randn(120) - 2.75, torch.randn(80) + 2.75])
    guide = AutoIAF(labels, transforms=2, hidden_features=(16,))
    fit = fit_guide(guide, y, budget="fast", seed=0, progress=False, modes=3)
    assert isinstance(fit.guide, FlowMixture)
    assert fit.diagnosis.trusted, fit
    # Exchanging the labels maps the posterior to itself: each mode has half of it.
    torch.testing.assert_close(fit.guide.weights, torch.tensor([0.5, 0.5]), atol=0.1, rtol=0)
    mu = fit.diagnosis.resample(2000, torch.Generator().manual_seed(0))["mu"]
    assert 0.35 < float((mu[:, 0] > 0).double().mean()) < 0.65
    means = mu.sort(dim=-1).values.mean(dim=0)
    torch.testing.assert_close(means, torch.tensor([-2.75, 2.75]), atol=0.3, rtol=0)
    draws = fit.guide(y)
    assert draws["mu"].shape == (2,)


def test_a_model_that_runs_for_one_point_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its draws are made together: the ELBO of both ways is one, and it trains."""
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=15))
    monkeypatch.setattr(fitting._OneByOne, "judged", 200)
    X = torch.randn(30, 2)

    def model(y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Normal(X @ b, scale), obs=y)

    y = X @ torch.tensor([3.0, -2.0]) + torch.randn(30)
    guide = AutoIAF(model, hidden_features=(8,))
    found = fit_guide(guide, y, budget="fast", seed=0, progress=False, vectorize=False).diagnosis
    assert found.effective_sample_size > 120  # of 200
    assert found.unseen == 0
    bound = partial(model, y)
    sites = layout(bound, partial(guide, y))[1]
    density = Density(bound, None, sites, torch.float32)
    alone = fitting._OneByOne(guide, density).diagnose(200)
    assert alone.elbo == pytest.approx(
        found.elbo, abs=5 * math.hypot(alone.elbo_error, found.elbo_error)
    )


def test_one_mode_is_no_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=60))
    fit = fit_guide(AutoIAF(one), budget="fast", seed=0, progress=False, modes=2)
    assert isinstance(fit.guide, AutoIAF)


def one() -> None:
    pyro.sample("x", dist.Normal(3.0, 1e-3))


@pytest.mark.parametrize("vectorize", [True, False])
def test_it_leaves_no_gradients(vectorize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SVI after it would add its own to them: of the model's parameters, too."""
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=10))
    monkeypatch.setattr(fitting._OneByOne, "judged", 100)

    def learnt() -> None:
        middle = pyro.param("middle", torch.tensor(1.0))
        x = pyro.sample("x", dist.Normal(middle, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(3.0))

    pyro.clear_param_store()
    guide = AutoIAF(learnt)
    fit_guide(guide, budget="fast", seed=0, progress=False, vectorize=vectorize)
    store = pyro.get_param_store()
    assert all(weight.grad is None for weight in [*guide.parameters(), *store._params.values()])
    assert pyro.param("middle").item() == 1.0


@pytest.mark.parametrize(("distance", "modes"), [(8.0, 2), (1.0, 1)])
def test_modes_that_differ_in_one_variable_of_many(distance: float, modes: int) -> None:
    """Their distance, in standard deviations, is small in the mean over all variables."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(20), 5.0).to_event(1))
        first = torch.logaddexp(
            *(dist.Normal(at, 1.0).log_prob(x[..., 0]) for at in (0.0, distance))
        )
        pyro.factor("two", first + dist.Normal(0.0, 1.0).log_prob(x[..., 1:]).sum(dim=-1))

    guide = AutoIAF(model)
    guide()
    density, zeros = joint(model, guide), torch.zeros(20, dtype=F64)
    points = {"one": zeros, "other": zeros + distance * torch.eye(20, dtype=F64)[0]}
    (_, one), (_, other) = find_starts(density, points, torch.Generator().manual_seed(0))
    assert apart(density, one, other) == (modes == 2)


def test_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=20))
    monkeypatch.setattr(fitting, "diagnose", partial(diagnose, probe=False))
    guide = AutoIAF(funnel, transforms=1, hidden_features=(8,))
    state = torch.get_rng_state()
    first = fit_guide(guide, budget="fast", seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    again = fit_guide(guide, budget="fast", seed=3, progress=False)
    assert again.elbo == first.elbo
    assert again.start == first.start
    assert "steps in" in repr(again)


def _nowhere() -> object:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", x * math.nan)

    with pyro.validation_enabled(False):  # which would find the factor, but not every NaN
        return fit_guide(AutoIAF(model), progress=False)


def _masked() -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    mask = torch.tensor([True, True, False])
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Normal(0.0, scale), obs=torch.ones(3), obs_mask=mask)


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "guide": (lambda: fit_guide(AutoNormal(funnel)), TypeError, "guide to be an AutoIAF"),
    "budget": (lambda: fit_guide(AutoIAF(funnel), budget="all"), ValueError, "budget"),
    "budget, numbers": (
        lambda: fit_guide(AutoIAF(funnel), budget=torch.ones(3)),
        ValueError,
        "budget to be one of",
    ),
    "seed": (lambda: fit_guide(AutoIAF(funnel), seed="a"), TypeError, "seed to be a non-negative"),
    "vectorize": (
        lambda: fit_guide(AutoIAF(funnel), vectorize="no"),
        TypeError,
        "vectorize to be True or False",
    ),
    "modes": (lambda: fit_guide(AutoIAF(funnel), modes=0), ValueError, "modes"),
    "density": (_nowhere, ValueError, "finite density"),
    "flat": (lambda: fit_guide(AutoIAF(_masked), progress=False), ValueError, "2 of 3.*'y_unobs"),
    "units": (lambda: TriangularAffine([0.0, 0.0], origin=[0.0, 0.0]), ValueError, "units"),
    "upper": (
        lambda: TriangularAffine([0.0] * 2, origin=[0.0] * 2, units=[[1.0, 2.0], [0.0, 1.0]]),
        ValueError,
        "lower triangular",
    ),
    "origin": (
        lambda: TriangularAffine([0.0] * 2, origin=[0.0] * 3, units=torch.eye(2)),
        ValueError,
        "origin",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def moving(y: Tensor) -> None:
    """A variable whose bounds another one sets, as in GARCH models."""
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0 - a))
    pyro.sample("y", dist.Normal(a + b, 0.1), obs=y)


def test_a_support_that_moves_is_refused() -> None:
    """A guide would cut it off where it was at first, and weights would not show what is lost."""
    guide, y = AutoIAF(moving), torch.tensor(0.9)
    guide(y)
    for judge in (guide.diagnose, lambda y: fit_guide(guide, y, vectorize=False, progress=False)):
        with pytest.raises(ValueError, match=r"supports stay the same.* got 'b', whose support"):
            judge(y)


def test_one_dimension_that_is_far_from_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of ten: a Beta(1, 11), whose unconstrained variable has an exponential tail."""
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=250))
    monkeypatch.setattr(fitting, "diagnose", partial(diagnose, probe=False))

    def model() -> None:
        share = pyro.sample("share", dist.Uniform(0.0, 1.0))
        pyro.sample("count", dist.Binomial(10, share), obs=torch.tensor(0.0))

    guide = AutoIAF(model)
    fit_guide(guide, budget="fast", seed=0, progress=False)
    assert guide.diagnose(samples=4000, probe=False).elbo == pytest.approx(-math.log(11), abs=0.02)
    exact, draws = dist.Beta(1.0, 11.0), guide.get_posterior().sample((20_000,)).sigmoid()
    assert float((draws.mean() - exact.mean) / exact.stddev) == pytest.approx(0, abs=0.1)
    assert float(draws.std() / exact.stddev) == pytest.approx(1, abs=0.1)


def test_a_start_that_climbs_find_in_a_lesser_basin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all of the posterior is at 8, where neither the prior's median nor zero leads."""
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=5))
    monkeypatch.setattr(fitting, "diagnose", partial(diagnose, probe=False))

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        wide, narrow = (
            dist.Normal(place, scale).log_prob(x) for place, scale in ((0, 2), (8, 0.5))
        )
        pyro.factor("two", torch.logaddexp(wide - 9, narrow))

    fit = fit_guide(AutoIAF(model), budget="fast", seed=0, progress=False)
    assert fit.start == "climb 1"
    assert float(fit.diagnosis.samples["x"].mean()) == pytest.approx(8, abs=0.2)


def edge(at: float) -> None:
    """A place without a density, which only the likelihood knows."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("inside", torch.where(x > at, 0.0, -math.inf))


def test_an_edge_beside_every_start_is_refused() -> None:
    guide = AutoIAF(edge, init_loc_fn=lambda site: torch.tensor(0.1))
    with pytest.raises(ValueError, match="no guide learns an edge"):
        fit_guide(guide, 0.0, budget="fast", progress=False)


def test_an_elbo_that_was_infinite_from_the_start_is_no_loss(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One draw in eight hundred is beyond the edge."""
    monkeypatch.setitem(BUDGETS, "fast", BUDGETS["fast"]._replace(steps=5))
    fit = fit_guide(AutoIAF(edge), -3.0, budget="fast", seed=0, progress=False)
    assert fit.diagnosis.elbo == -math.inf
    assert fit.diagnosis.grade == "as drawn"
    assert not caplog.records
