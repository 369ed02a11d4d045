"""The sbi plug-in: sbi's shapes and trainers, exact densities, nothing outside the prior."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Exponential, Gamma, Independent, LogNormal, Normal, constraints

import made_flows as mf

pytest.importorskip("sbi")

from sbi.diagnostics import run_sbc, run_tarp
from sbi.inference import NLE, NPE, likelihood_estimator_based_potential
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.categorical_net import CategoricalMADE
from sbi.neural_nets.net_builders import build_mnle
from sbi.utils import BoxUniform, MultipleIndependent

import made_flows.sbi as ms

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:sbi"),
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:Num"),  # of calibration samples and so on: too few
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

D, C, ROWS = 3, 2, 40
PRIOR = BoxUniform(torch.tensor([-1.0, 0.0, 5.0]), torch.tensor([1.0, 0.7, 9.0]))
MIXED = MultipleIndependent(
    [BoxUniform(torch.zeros(1), torch.ones(1)), Gamma(torch.ones(1), torch.ones(1)),
     Normal(torch.zeros(1), torch.ones(1))],
    validate_args=False,
)  # fmt: skip


def simulations(prior: Any = PRIOR) -> tuple[Tensor, Tensor]:
    theta = prior.sample((ROWS,))
    return theta, theta[:, :C] + 0.3 * torch.randn(ROWS, C)


QUICK: dict[str, Any] = {"max_seconds": 1, "progress": False, "seed": 0}
SMALL: dict[str, Any] = {"hidden_features": 12, "num_transforms": 2}
BUILDERS: dict[str, Callable[..., Callable[..., Any]]] = {
    "maf": lambda **more: ms.maf(**SMALL, **more),
    "spline": lambda **more: ms.spline(**SMALL, num_bins=4, **more),
    "iaf": lambda **more: ms.iaf(**SMALL, **more),
    "made": lambda **more: ms.made(hidden_features=(12,), num_components=3, **more),
    "estimate": lambda **more: partial(ms.estimate, **QUICK, **more),
}


def built(name: str, prior: Any = PRIOR, **more: Any) -> tuple[Any, Tensor, Tensor]:
    """An estimator with weights away from zero, and what it was built by."""
    theta, x = simulations(prior)
    estimator = BUILDERS[name](**more)(theta, x).eval()
    with torch.no_grad():
        for parameter in estimator.parameters() if name != "estimate" else ():  # trained already
            parameter.add_(0.2 * torch.randn_like(parameter))
    return estimator, theta, x


# ---------------------------------------------------------------------- densities and shapes


@pytest.mark.parametrize("support", [None, PRIOR], ids=["everywhere", "box"])
@pytest.mark.parametrize("name", BUILDERS)
def test_shapes_are_sbis(name: str, support: Any) -> None:
    estimator, theta, x = built(name, support=support)
    samples = estimator.sample((5,), x[:4])
    assert samples.shape == (5, 4, D)
    scores = estimator.log_prob(samples, x[:4])
    assert scores.shape == (5, 4)
    for i in range(4):  # every row by itself
        alone = estimator.log_prob(samples[:, i : i + 1], x[i : i + 1])
        torch.testing.assert_close(alone[:, 0], scores[:, i], rtol=1e-4, atol=1e-4)
    assert estimator.log_prob(theta[:4], x[:1]).shape == (1, 4)
    assert estimator.log_prob(theta[:1], x[:4]).shape == (1, 4)
    assert estimator.log_prob(theta[:0], x[:0]).shape == (1, 0)
    assert estimator.sample((5,), x[:0]).shape == (5, 0, D)
    torch.testing.assert_close(
        estimator.loss(theta, x), -estimator.log_prob(theta[None], x).squeeze(0)
    )
    drawn, scores = estimator.sample_and_log_prob((2, 3), x[:4])
    assert drawn.shape == (2, 3, 4, D)
    again = estimator.log_prob(drawn.flatten(0, 1), x[:4]).reshape(2, 3, 4)
    torch.testing.assert_close(scores, again, rtol=1e-3, atol=2e-3)
    with pytest.raises(ValueError, match="Shape of condition"):
        estimator.log_prob(theta, theta)


@pytest.mark.parametrize("name", BUILDERS)
def test_densities_on_a_support_are_normalised_and_none_is_outside(name: str) -> None:
    prior = BoxUniform(torch.tensor([-1.0]), torch.tensor([3.0]))
    estimator, _, x = built(name, prior, support=prior)
    # Fine at the ends, where a density may be steep.
    grid = -1 + 4 * torch.linspace(-30, 30, 10_001, dtype=torch.float64).sigmoid()
    with torch.no_grad():
        double = copy.deepcopy(estimator).double()
        scores = double.log_prob(grid[:, None, None], x[:2].double())
        total = torch.trapezoid(scores.exp(), grid[:, None], dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=2e-3, atol=2e-3)
        samples = estimator.sample((500,), 100 * x[:4])  # far from what it knows
    assert bool(((samples >= -1) & (samples <= 3)).all())
    ends = torch.tensor([[-1.0], [3.0], [-1.1], [3.1]])
    scores = estimator.log_prob(ends[:, None], x[:1])[:, 0]
    assert bool(scores[:2].isfinite().all())
    assert bool((scores[2:] == -torch.inf).all())


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_that_round_to_a_bound_have_scores(name: str) -> None:
    """Of a box that is short for its distance from zero: some samples are on its ends."""
    prior = BoxUniform(torch.tensor([1e4]), torch.tensor([1e4 + 0.01]))
    estimator, _, x = built(name, prior, support=prior)
    samples, scores = estimator.sample_and_log_prob((500,), x[:2])
    assert bool(((samples > 1e4) & (samples < 1e4 + 0.01)).all())
    assert bool(scores.isfinite().all())


SUPPORTS: dict[str, tuple[Any, Any]] = {
    "mixed": (MIXED, MIXED),
    "positive": (Independent(LogNormal(torch.zeros(D), 1.0), 1), None),
    "from a number on": (
        Independent(Exponential(torch.ones(D)), 1),
        constraints.greater_than(-1.0),
    ),
    "everywhere": (Independent(Normal(torch.zeros(D), 1.0), 1), None),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_supports(name: str) -> None:
    prior, given = SUPPORTS[name]
    given = prior if given is None else given
    estimator, theta, x = built("maf", prior, support=given)
    samples = estimator.sample((200,), 10 * x[:4])
    inside = getattr(given, "support", given).check(samples)
    assert bool(inside.all())
    assert bool(estimator.log_prob(samples, x[:4]).isfinite().all())
    # The density of the data, against that of the noise by the Jacobian of autograd.
    noise = estimator.inverse_transform(theta[0], x[0])
    jacobian = torch.func.jacrev(lambda t: estimator.inverse_transform(t, x[0]))(theta[0])
    expected = Normal(0.0, 1.0).log_prob(noise).sum() + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(
        estimator.log_prob(theta[:1], x[:1])[0, 0], expected, rtol=1e-3, atol=1e-3
    )


TEN = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) * 6
TEN[0] = 0
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "simplex": (lambda: built("maf", support=constraints.simplex), "each in an interval"),
    "integers": (lambda: built("maf", support=constraints.nonnegative_integer), "real columns"),
    "from above": (lambda: built("maf", support=constraints.less_than(20.0)), "lower bound"),
    "embedding": (lambda: built("maf", embedding_net=nn.Linear(9, 2)), r"to take rows of shape"),
    "size": (lambda: built("maf", support=BoxUniform(torch.zeros(2), torch.ones(2))), "3 columns"),
    "one row": (lambda: ms.maf()(torch.ones(1, 3), torch.ones(1, 3)), "two rows or more"),
    "constants": (lambda: ms.maf()(torch.ones(9, 3), torch.rand(9, 3)), "theta to vary .*0, 1, 2"),
    "flat rows": (lambda: ms.maf()(torch.rand(9, 3), torch.ones(9)), r"x of shape \(N, ...\)"),
    "other rows": (lambda: ms.maf()(torch.rand(9, 3), torch.ones(8, 3)), "x to be 9 rows"),
    "integers given": (
        lambda: ms.maf()(torch.rand(9, 3), torch.ones(9, 3, dtype=torch.int)),
        "x to be of a floating-point dtype",
    ),
    "embedding of no rows": (lambda: built("maf", embedding_net=nn.Flatten(0)), "one row for each"),
    "rows outside": (lambda: built("maf", support=constraints.unit_interval), "lie in the support"),
    "z-score, numbers": (lambda: ms.maf(z_score_x=torch.ones(3)), "z_score_x to be 'indep"),  # type: ignore[arg-type]
    "likelihood": (lambda: ms.maf(likelihood="no"), "likelihood to be True or False"),  # type: ignore[arg-type]
    "widths": (lambda: ms.maf(hidden_features="ab"), "hidden_features to be a seq"),  # type: ignore[arg-type]
    "z-score": (lambda: ms.maf(z_score_x="transform_to_unconstrained"), "z_score_x"),  # type: ignore[arg-type]
    "text": (lambda: ms.maf(support="prior"), "each in an interval .*got 'prior'"),
    "transforms": (lambda: ms.spline(num_transforms=0), "num_transforms"),
    "components": (lambda: ms.made(num_components=0), "num_components"),
    "blocks": (lambda: ms.maf(num_blocks=-1), "num_blocks"),
    "to estimate: no numbers": (lambda: ms.estimate(["a"], ["b"]), "theta to hold numbers"),
    "to estimate: flat rows": (lambda: ms.estimate(TEN, TEN[:, 0]), r"x of shape \(N, ...\)"),
    "to estimate: other rows": (lambda: ms.estimate(TEN, TEN[:9]), "x to have 10 rows, as theta"),
    "to estimate: few": (lambda: ms.estimate(TEN[:9], TEN[:9]), "theta to have at least ten"),
    "to estimate: not finite": (lambda: ms.estimate(TEN, TEN / TEN[:, :1]), "x .*row 0, column 0"),
    "to estimate: constants": (lambda: ms.estimate(0 * TEN + 2, TEN), "columns of theta to vary"),
    "to estimate: zeros and ones": (lambda: ms.estimate(TEN > 3, TEN), "theta to hold real val"),
    "to estimate: outside": (
        lambda: ms.estimate(TEN, TEN, support=constraints.interval(0, 5)),
        r"theta to lie in the support; got row \[2\]",
    ),
    "to estimate: a budget": (lambda: ms.estimate(TEN, TEN, budget="all"), "budget"),  # type: ignore[arg-type]
    "to estimate: likelihood": (lambda: ms.estimate(TEN, TEN, likelihood="no"), "likelihood"),  # type: ignore[arg-type]
    # of the network, before anything is simulated
    "dropout": (lambda: ms.maf(dropout_probability=1.0), r"dropout_probability to be in \[0, 1\)"),
    "order": (lambda: ms.iaf(order=[0, 0, 1]), "order"),
    "activation": (lambda: ms.spline(activation="swoosh"), "activation"),
    "bins": (lambda: ms.spline(num_bins=0), "bins"),
    "normalize": (lambda: ms.maf(normalize="layer"), "normalize"),  # type: ignore[arg-type]
    "generator": (lambda: ms.made(generator=3), "generator"),  # type: ignore[arg-type]
    "orders": (lambda: ms.made(orders=0), "orders"),
}


def test_first_mistakes_are_named() -> None:
    theta, x = simulations()
    with pytest.raises(TypeError, match=r"Expected density_estimator to be what maf\(\) returns"):
        ms.maf(theta, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"made_flows.sbi.spline takes; got prior.*support"):
        ms.spline(prior=PRIOR)
    with pytest.raises(TypeError, match=r"got num_component. Did you mean num_components"):
        ms.made(num_component=3)
    with pytest.raises(AttributeError, match='sbi calls "nsf" is here spline'):
        ms.nsf  # noqa: B018
    for likelihood in (False, True):  # parameters first, as NPE has them, and last, as NLE has
        pairs = ((theta, theta + 1), (theta + 1, theta))
        estimator = BUILDERS["maf"](likelihood=likelihood)(*pairs[0])
        with pytest.raises(ValueError, match="without it for NPE; got the one for the other"):
            copy.deepcopy(estimator).loss(*pairs[1 - likelihood])
        estimator.loss(*pairs[likelihood])
    estimator = BUILDERS["maf"](support=PRIOR)(theta, x)
    with pytest.raises(TypeError, match=r"got a call of it.*\(NRE\) take a classifier"):
        estimator([theta, x])  # as trainers of ratios do
    with pytest.raises(ValueError, match=r"lie in the support.*got 8 in row 1, column 1"):
        estimator.loss(torch.tensor([[0.0, 0.5, 6.0], [0.0, 8.0, 6.0]]), x[:2])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=REFUSED[name][1]):
        REFUSED[name][0]()


def test_an_embedding_net_of_images_and_structured_scores() -> None:
    theta, images = PRIOR.sample((ROWS,)), torch.randn(ROWS, 4, 5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(20, 6))
    builder = ms.maf(embedding_net=net, z_score_x="structured", **SMALL)
    estimator = builder(theta, images)
    estimator.loss(theta, images).mean().backward()
    assert all(p.grad is not None for p in estimator.embedding_net.parameters())
    assert estimator.condition_shape == (4, 5)
    assert estimator.sample((7,), images[:2]).shape == (7, 2, D)


# Shapes of one simulation, networks, and what they are called with.
EMBEDDINGS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], dict[str, Any]]] = {
    "batch norm": ((2,), lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), {}),
    "a channel": (
        (1, 4, 5),
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(3)
        ),
        {"z_score_x": "structured"},
    ),
    "a number": ((1,), lambda: nn.Linear(1, 2), {"z_score_x": "structured"}),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(name: str) -> None:
    shape, make, more = EMBEDDINGS[name]
    theta, x = PRIOR.sample((ROWS,)), 3 + 5 * torch.randn(ROWS, *shape)
    estimator = ms.maf(embedding_net=make(), **SMALL, **more)(theta, x)
    norms = [m for m in estimator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(int(norm.num_batches_tracked) == 0 and norm.training for norm in norms)
    scored = estimator.embedding_net[0](x)
    torch.testing.assert_close(scored.mean(), torch.tensor(0.0), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(scored.std(), torch.tensor(1.0), atol=0.1, rtol=0.0)
    estimator.loss(theta, x).mean().backward()
    assert estimator.eval().sample((7,), x[:1]).shape == (7, 1, D)


SHARED: dict[str, Callable[[], ms.Builder]] = {
    "embedding": lambda: ms.maf(embedding_net=nn.Linear(C, 4), **SMALL),
    "base": lambda: ms.maf(base=mf.GaussianMADE(D, hidden_features=(8,)), **SMALL),
    "activation": lambda: ms.made(activation=nn.PReLU()),
}


@pytest.mark.parametrize("name", SHARED)
def test_estimators_of_one_builder_share_no_weights(name: str) -> None:
    """Of an ensemble: the second's training had changed the first."""
    builder, rows = SHARED[name](), simulations()
    one, other = builder(*rows), builder(*rows)
    expected = one.loss(*rows)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(one.loss(*rows), expected)


@pytest.mark.parametrize("likelihood", [False, True])
def test_units_do_not_matter(likelihood: bool) -> None:
    """sbi's z-scores have a least deviation, of 1e-7: in amperes a network saw next to nothing."""
    of, given = simulations()
    scores = []
    for unit in (1.0, 1e-12):
        torch.manual_seed(0)
        rows = (unit * given, of * unit**2) if likelihood else (of * unit**2, unit * given)
        estimator = ms.maf(**SMALL, likelihood=likelihood)(*rows)
        with torch.no_grad():
            for parameter in estimator.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        inner = rows[::-1] if likelihood else rows
        scores.append(-estimator.loss(*inner) + 2 * D * torch.tensor(unit).log())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", [False, True])
def test_what_is_constant_in_all_simulations_is_nothing_to_an_estimator(likelihood: bool) -> None:
    of, given = simulations()
    given = torch.cat([given, torch.full((ROWS, 1), 0.1)], dim=1)
    theta, x = (given, of) if likelihood else (of, given)
    with pytest.warns(UserWarning, match="constant in all simulations in columns 2. Nothing can"):
        estimator = ms.maf(**SMALL, likelihood=likelihood)(theta, x)
    other = given + torch.tensor([0.0, 0.0, 5.0])
    scores = [estimator.log_prob(of[None], each) for each in (given, other)]
    assert torch.equal(*scores)
    assert bool(scores[0].isfinite().all())


@pytest.mark.parametrize("name", BUILDERS)
def test_copies_and_state_dicts(name: str) -> None:
    estimator, theta, x = built(name, support=PRIOR)
    expected = estimator.log_prob(theta, x)
    fresh = BUILDERS[name](support=PRIOR)(theta, x).eval()
    fresh.load_state_dict(estimator.state_dict())
    for each in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator)), fresh):
        torch.testing.assert_close(each.log_prob(theta, x), expected)
    for trained in (fresh, copy.deepcopy(estimator)):
        if trained is not fresh:
            trained.loss(theta, x)
        assert trained._built_on is None  # no pickle of it holds simulations
    pickle.dumps(BUILDERS[name](support=PRIOR))


# ---------------------------------------------------------------------- with sbi


@pytest.fixture(scope="module", params=["maf", "spline", "estimate"])
def posterior(request: pytest.FixtureRequest) -> Iterator[Any]:
    torch.manual_seed(0)
    theta, x = simulations()
    if request.param == "estimate":
        return DirectPosterior(ms.estimate(theta, x, support=PRIOR, **QUICK), PRIOR)
    trainer = NPE(PRIOR, density_estimator=BUILDERS[request.param](support=PRIOR))
    trainer.append_simulations(theta, x).train(
        max_num_epochs=2, training_batch_size=20, show_train_summary=False
    )
    return trainer.build_posterior()


QUIET = {"show_progress_bars": False}


def test_direct_posteriors(posterior: Any) -> None:
    x = torch.zeros(C)
    samples = posterior.sample((50,), x=x, **QUIET)
    assert bool(PRIOR.support.check(samples).all())
    raw = posterior.posterior_estimator.log_prob(samples[:, None], x[None])[:, 0]
    torch.testing.assert_close(posterior.log_prob(samples, x=x), raw)  # no leakage to correct
    assert posterior.sample_batched((5,), x=torch.zeros(4, C), **QUIET).shape == (5, 4, D)
    again = pickle.loads(pickle.dumps(posterior))
    torch.testing.assert_close(again.log_prob(samples, x=x), raw)
    outside = torch.tensor([[-2.0, 0.1, 6.0]])
    assert posterior.log_prob(outside, x=x).item() == -torch.inf


def test_calibration_checks(posterior: Any) -> None:
    theta, x = simulations()
    number = {"num_posterior_samples": 10, "show_progress_bar": False}
    ranks, dap = run_sbc(theta[:20], x[:20], posterior, **number)
    assert ranks.shape == dap.shape == (20, D)
    ecp, alpha = run_tarp(theta[:20], x[:20], posterior, **number)
    assert ecp.shape == alpha.shape


def test_likelihoods_by_mcmc_and_variational_posteriors() -> None:
    theta, x = simulations()
    builder = BUILDERS["maf"](likelihood=True, z_score_theta="structured")
    trainer = NLE(PRIOR, density_estimator=builder).append_simulations(theta, x)
    estimator = trainer.train(max_num_epochs=1, training_batch_size=20)
    assert estimator.input_shape == (C,)
    mcmc = trainer.build_posterior(
        sample_with="mcmc", mcmc_method="slice_np_vectorized",
        mcmc_parameters={"warmup_steps": 2, "num_chains": 4, "init_strategy": "proposal"},
    )  # fmt: skip
    assert mcmc.sample((8,), x=torch.zeros(C), **QUIET).shape == (8, D)
    vi = trainer.build_posterior(sample_with="vi", vi_method="rKL")
    vi.set_default_x(torch.zeros(1, C)).train(
        max_num_iters=3, n_particles=8, warm_up_rounds=1, quality_control=False, **QUIET
    )
    assert vi.sample((8,), **QUIET).shape == (8, D)


def test_likelihoods_without_a_choice_of_a_network() -> None:
    theta, images = PRIOR.sample((ROWS,)), torch.rand(ROWS, 2, 2)
    images = images * theta[:, None, :2] ** 2
    estimator = ms.estimate(
        theta, images, likelihood=True, support=constraints.nonnegative, **QUICK
    )
    assert (estimator.input_shape, estimator.condition_shape) == ((2, 2), (D,))
    assert bool((estimator.sample((50,), theta[:3]) > 0).all())
    assert estimator.log_prob(-images[None], theta).eq(-torch.inf).all()
    potential, _ = likelihood_estimator_based_potential(estimator, PRIOR, images[:1])
    torch.testing.assert_close(
        potential(theta),
        estimator.log_prob(images[:1].expand(1, ROWS, 2, 2), theta)[0] + PRIOR.log_prob(theta),
    )


# ---------------------------------------------------------------------- accelerating sbi's own

KINDS = {"maf": 2, "maf_rqs": 2, "made": 1, "zuko_maf": 2, "zuko_nsf": 2}


@pytest.mark.parametrize("name", KINDS)
def test_accelerated_posteriors(name: str) -> None:
    theta, x = simulations()
    estimator = posterior_nn(name, **SMALL, num_bins=4, num_components=3)(theta, x).eval()
    plain = DirectPosterior(estimator, PRIOR)
    fast = mf.accelerate(copy.deepcopy(plain))
    assert len(mf.acceleration(fast).fast) == KINDS[name]
    assert all("posterior_estimator" in key for key in mf.acceleration(fast).fast)
    results = []
    for each in (plain, fast):
        torch.manual_seed(1)
        samples = each.posterior_estimator.sample((20,), x[:2])
        scores = each.posterior_estimator.log_prob(samples, x[:2])
        results.append((samples, scores, each.sample((10,), x=x[0], **QUIET)))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for each in ([plain], {"posterior": plain}, (plain,)):
        mf.accelerate(each)
        assert len(mf.acceleration(each).fast) == KINDS[name]


def categories(**more: Any) -> Any:
    sizes = torch.tensor([3, 5, 2, 4])
    values = [10.0 + 2.0 * torch.arange(size) for size in sizes]
    made = CategoricalMADE(sizes, 12, values, num_context_features=C, **more).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


CATEGORIES: dict[str, dict[str, Any]] = {
    "residual": {},
    "feedforward": {"use_residual_blocks": False, "activation": torch.tanh},
    "embedded": {"embedding_net": nn.Linear(C, C)},
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_the_same_seed_draws_the_same_categories(name: str) -> None:
    made = categories(**CATEGORIES[name])
    fast = mf.accelerate(copy.deepcopy(made))
    assert list(mf.acceleration(fast).fast.values()) == ["sbi CategoricalMADE"]
    for rows in (1, 3):
        results = []
        for each in (made, fast):
            torch.manual_seed(1)
            results.append((each.sample((5, 8), torch.randn(rows, C)), torch.get_rng_state()))
        assert results[0][0].shape == (5, 8, rows, 4)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_mixed_estimators() -> None:
    theta = torch.randn(ROWS, C)
    x = torch.cat([torch.rand(ROWS, 3), torch.randint(0, 3, (ROWS, 2)).float()], dim=1)
    plain = build_mnle(x, theta, flow_model="zuko_maf", hidden_features=8).eval()
    fast = mf.accelerate(copy.deepcopy(plain))
    found = mf.acceleration(fast).fast
    assert found["discrete_net.net"] == "sbi CategoricalMADE"
    assert len(found) == 3
    results = []
    for each in (plain, fast):
        torch.manual_seed(1)
        samples = each.sample((6,), theta[:1])
        results.append((samples, each.log_prob(samples, theta[:1])))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


BASE = mf.GaussianMADE(D, C, hidden_features=(8,))
FITTING: dict[str, Callable[[], ms.Builder]] = {  # arguments that only fit one size
    "order": lambda: ms.maf(order=[2, 0, 1], **SMALL),
    "adjacency": lambda: ms.maf(adjacency=torch.ones(D, D).tril(-1).bool(), **SMALL),
    "orders": lambda: ms.made(orders=torch.tensor([[2, 0, 1], [0, 1, 2]])),
    "base": lambda: ms.maf(base=BASE, **SMALL),
    "a distribution": lambda: ms.iaf(base=Independent(Normal(torch.zeros(D), 1.0), 1), **SMALL),
}


@pytest.mark.parametrize("name", FITTING)
def test_what_fits_is_built_and_draws_nothing_before(name: str) -> None:
    theta, x = simulations()
    before = torch.get_rng_state()
    builder = FITTING[name]()
    assert torch.equal(before, torch.get_rng_state())
    assert builder(theta, x).input_shape == (D,)
