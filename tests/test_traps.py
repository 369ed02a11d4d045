"""What goes wrong elsewhere: one regression test for each trap, named after what it guards."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.nn import masks as mk
from tests.helpers.default_dtype import default_dtype
from tests.helpers.density_models import CONTINUOUS, MODELS, NETWORKS, context_of, made_of, scatter

F64 = torch.float64


# 1. The context enters through hidden units only, and the outputs of rank 0 read none of them.


@pytest.mark.parametrize(
    "option", ["context", "context, no hidden layer", "context, residual, direct", "one unit"]
)
def test_the_first_feature_reads_the_context(option: str) -> None:
    made = NETWORKS[option]()
    first = int(made.order[0])
    context = context_of(made)
    assert context is not None
    jacobian = torch.autograd.functional.jacobian(
        lambda c: made(torch.zeros(5, dtype=F64), c), context
    )
    assert bool((jacobian[first] != 0).all())


def test_the_first_feature_reads_the_context_through_hidden_units_too() -> None:
    made = made_of(features=3, context=1, activation="tanh")
    context = torch.linspace(-3, 3, 101, dtype=F64).unsqueeze(-1)
    output = made(torch.zeros(3, dtype=F64), context)[:, 0, 0]
    curvature = output.diff().diff()
    assert curvature.abs().max() > 1e-4  # a straight line would show what is linear only


def test_a_posterior_of_one_feature_depends_on_its_context() -> None:
    model = MODELS["Gaussian | context"](1)
    means = model.made(torch.zeros(1, dtype=F64), torch.randn(9, 2, dtype=F64))[:, 0, 0]
    assert means.std() > 0.01


# 2. Layers narrower than D - 1 lose dependencies in silence.


def test_narrow_layers_spread_their_degrees_and_say_what_is_lost() -> None:
    with pytest.warns(mf.DependencyWarning, match="too narrow for 100 features"):
        made = mf.MADE(100, hidden_features=(16, 16))
    last = made.reach()[99]
    assert int(last.sum()) == 99  # the last feature still sees all
    degrees = made.degrees[0].tolist()
    assert max(degrees) == 99
    assert max(b - a for a, b in itertools.pairwise([0, *degrees])) <= math.ceil(99 / 16)
    report = mf.check_autoregressive(made, points=1)
    assert len(report.missing) == int((made.allowed & ~made.reach()).sum()) > 0


def test_direct_connections_make_narrow_layers_complete() -> None:
    made = mf.MADE(100, hidden_features=(16, 16), direct=True)  # no warning
    assert mf.check_autoregressive(made, points=1).missing == []


# 3. The output mask has >= where the paper has >.


@pytest.mark.parametrize("hidden", [(), (20,), (20, 20)])
def test_no_output_reads_its_own_input(hidden: tuple[int, ...]) -> None:
    made = made_of(features=6, hidden_features=hidden, activation="tanh", direct=True)
    jacobian = torch.autograd.functional.jacobian(made.evaluate, torch.randn(6, dtype=F64))
    diagonal = torch.stack([jacobian[i, :, i] for i in range(6)])
    assert bool((diagonal == 0).all())
    with_equality = mk.degree_masks(torch.arange(6), made.degrees, torch.arange(6))
    with_equality[-1] = torch.arange(6)[:, None] >= (
        made.degrees[-1] - 1 if hidden else torch.arange(6)
    )
    assert mk.connectivity(with_equality).diagonal().any()  # what the mistake would look like


# 4. An order that is no permutation is accepted.


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [0, 1], [0.0, 1.0, 2.0], [0, 1, -1]])
def test_an_order_that_is_no_permutation_is_refused(order: list[float]) -> None:
    with pytest.raises(ValueError, match=r"Expected order to be a permutation of 0\.\.2"):
        mf.MADE(3, order=order)
    with pytest.raises(ValueError, match=r"Expected order to be a permutation of 0\.\.2"):
        mf.MADE(3)(torch.zeros(3), order=order)


# 5. Precision follows the global default instead of the model.

SEVERAL = ["Gaussian", "mixture", "Bernoulli", "categorical, various"]


@pytest.mark.parametrize("head", SEVERAL)
@pytest.mark.parametrize("default", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_precision_is_that_of_the_model_whatever_the_default(
    head: str, default: torch.dtype, dtype: torch.dtype
) -> None:
    model = MODELS[f"{head} | context, residual, direct"]().to(dtype)
    context = context_of(model, 3, dtype=dtype).requires_grad_()
    with default_dtype(default):
        distribution = model(context)
        x = distribution.sample((5,))
        assert x.dtype == (torch.int64 if head.startswith("cat") else dtype)
        assert distribution.log_prob(x).dtype == dtype
        if distribution.has_rsample:
            draws = distribution.rsample((5,))
            assert draws.dtype == dtype
            draws.sum().backward()
            assert context.grad.dtype == dtype


def test_a_model_made_under_one_default_works_under_another() -> None:
    with default_dtype(F64):
        model = mf.GaussianMADE(3)
    assert model.made.dtype == F64
    assert model().sample((4,)).dtype == F64
    assert model.float()().sample((4,)).dtype == torch.float32
    assert model.double()().log_prob(torch.zeros(3, dtype=F64)).dtype == F64


def test_double_precision_is_not_lost_on_the_way() -> None:
    model = MODELS["Gaussian | residual"](6)
    x = torch.randn(40, 6, dtype=F64)
    mean, raw = model.made(x).unbind(-1)
    noise = ((x - mean) / model.head.scale(raw).exp()).unsqueeze(-1)
    again = mf.inverse.sequential_inverse(model.made, mf.inverse.HeadStep(model.head), noise)
    torch.testing.assert_close(again, x, rtol=1e-10, atol=1e-10)


# 6. A configured context that is not passed is ignored; one that is not configured is an
#    AttributeError deep inside.


@pytest.mark.parametrize("head", SEVERAL)
def test_a_missing_or_superfluous_context_is_a_clear_error(head: str) -> None:
    with pytest.raises(ValueError, match=r"Expected context of shape \(..., 2\).*; got none"):
        MODELS[f"{head} | context"]()()
    with pytest.raises(ValueError, match=r"Expected no context, since .* context=0; got one of sh"):
        MODELS[f"{head} | plain"]()(torch.zeros(4, 2, dtype=F64))


# 10. Clamped log-scales explode gradients, unbounded ones overflow.


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_scores_of_far_outliers_have_finite_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for model in (mf.GaussianMADE(4), mf.GaussianMixtureMADE(4)):
        model = scatter(model.to(dtype), 3.0)
        x = (1e4 * torch.randn(50, 4, dtype=dtype)).requires_grad_()
        score = model().log_prob(x)
        score.mean().backward()
        assert score.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert x.grad.isfinite().all()


def test_a_fresh_model_is_near_the_standard_normal() -> None:
    x = torch.randn(1000, 6)
    for rule in ("bounded", "softsign", "exp", "softplus"):
        score = mf.GaussianMADE(6, scale=rule)().log_prob(x)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(dim=-1)
        assert (score - expected).abs().mean() < 0.3


def test_a_scale_far_too_large_finds_its_way_back() -> None:
    """From a log-scale parameter of 1000 a few steps of training still have a direction."""
    rule = mf.ScaleRule("softsign")
    raw = torch.tensor([1000.0, -1000.0], requires_grad=True)
    rule(raw).sum().backward()
    assert bool((raw.grad > 0).all())


# 12. Averages of logits over orders are no normalised model.


def _logits_of_orders(model: mf.DensityModel, vectors: Tensor) -> Tensor:
    orders = list(itertools.permutations(range(4)))
    return torch.stack([model.made(vectors, order=order)[..., 0] for order in orders])


def test_an_ensemble_over_orders_is_a_mean_of_joint_probabilities() -> None:
    model = scatter(MODELS["Bernoulli | tanh"](4), 3.0)
    vectors = torch.cartesian_prod(*[torch.arange(2)] * 4).to(F64)
    logits = _logits_of_orders(model, vectors)
    joint = model.head.log_prob(vectors, logits.unsqueeze(-1)).sum(dim=-1)
    torch.testing.assert_close(joint.exp().sum(dim=-1), torch.ones(24, dtype=F64))
    mean = joint.logsumexp(dim=0) - math.log(24)  # the log-mean-exp of whole vectors
    torch.testing.assert_close(mean.exp().sum(), torch.tensor(1.0, dtype=F64))
    # Orders disagree, so that averaged logits are indeed not normalised.
    assert (joint[0] - joint[1]).abs().max() > 0.1
    averaged = model.head.log_prob(vectors, logits.mean(dim=0).unsqueeze(-1)).sum(dim=-1)
    assert (averaged.exp().sum() - 1).abs() > 1e-3


# 13. One feature alone: another class, a division by zero, a refusal.


@pytest.mark.parametrize("name", list(MODELS))
def test_one_feature_alone_is_a_model_like_any_other(name: str) -> None:
    model = MODELS[name](1)
    assert type(model) is type(MODELS[name](4))
    context = context_of(model, 3)
    distribution = model(context)
    x = distribution.sample((5,))
    assert x.shape == (5, *distribution.batch_shape, 1)
    assert distribution.log_prob(x).shape == x.shape[:-1]
    assert mf.check_autoregressive(model.made).missing == []


def test_one_feature_without_context_is_a_gaussian() -> None:
    model = CONTINUOUS["Gaussian | plain"](1)
    mean, raw = model.made(torch.zeros(1, dtype=F64))[0]
    gaussian = torch.distributions.Normal(mean, model.head.scale(raw).exp())
    x = torch.linspace(-3, 3, 20, dtype=F64).unsqueeze(-1)
    torch.testing.assert_close(model().log_prob(x), gaussian.log_prob(x)[:, 0])


# 14. A residual block under random degrees, and no hidden layer at all.


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_residual_blocks_under_random_degrees(blocks: int) -> None:
    for seed in range(10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mf.DependencyWarning)
            made = mf.MADE(
                5,
                hidden_features=(12,) * (blocks + 1),
                residual=True,
                degrees="random",
                activation="tanh",
                generator=torch.Generator().manual_seed(seed),
            )
        made = scatter(made.double())
        mf.check_autoregressive(made, points=1)
        made.resample_masks(torch.Generator().manual_seed(seed))
        mf.check_autoregressive(made, points=1)
        # Blocks count: their weights have gradients.
        made(torch.randn(9, 5, dtype=F64)).pow(2).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in made.layers[1].parameters())


WITHOUT_HIDDEN = [{}, {"direct": True}, {"residual": True}, {"context": 2}, {"order": "random"}]


@pytest.mark.parametrize("arguments", WITHOUT_HIDDEN, ids=str)
def test_no_hidden_layer_at_all(arguments: dict[str, Any]) -> None:
    made = made_of(features=4, hidden_features=(), **arguments)
    assert mf.check_autoregressive(made).missing == []
    model = scatter(mf.DensityModel(made, mf.univariate.heads.Gaussian()))
    x = model(context_of(model)).rsample((3,))
    assert model(context_of(model)).log_prob(x).isfinite().all()
