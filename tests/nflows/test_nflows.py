"""The nflows plug-in: nflows' numbers, nflows' interface, and none of its traps."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import nflows.distributions as nd
import nflows.flows as nfl
import nflows.nn.nde as nde
import nflows.transforms as nt
import pytest
import torch
from nflows.transforms import made as their_made
from torch import Tensor, nn

import made_flows as mf
import made_flows.nflows as ours
from made_flows.inverse import HeadStep
from made_flows.univariate.heads import GaussianMixture
from made_flows.univariate.scales import ScaleRule
from tests.helpers.d_pass import d_pass_inverse

D, C, ROWS = 4, 3, 7

# ---------------------------------------------------------------------- configurations

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "context": {"context_features": C},
    "feedforward": {"use_residual_blocks": False},
    "feedforward, context": {"use_residual_blocks": False, "context_features": C},
    "random masks": {"use_residual_blocks": False, "random_mask": True},
    "random masks, context": {
        "use_residual_blocks": False,
        "random_mask": True,
        "context_features": C,
    },
    "no blocks": {"num_blocks": 0},
    "tanh": {"activation": torch.tanh, "num_blocks": 1},
    "elu module": {"activation": nn.ELU(), "context_features": C},
    "batch norm": {"use_batch_norm": True},
    "batch norm, feedforward": {"use_batch_norm": True, "use_residual_blocks": False},
}
ONLY_OURS: dict[str, dict[str, Any]] = {
    "residual, random masks": {"random_mask": True},
    "residual, random masks, context": {"random_mask": True, "context_features": C},
}

SPLINE = {"tails": "linear", "tail_bound": 2.0, "num_bins": 4}
TRANSFORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "affine": (
        ours.MaskedAffineAutoregressiveTransform,
        nt.MaskedAffineAutoregressiveTransform,
        {},
    ),
    "spline": (
        ours.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        SPLINE,
    ),
    "spline on the unit interval": (
        ours.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        {"num_bins": 4},
    ),
}


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.DependencyWarning)
        return make()


def shake(module: Any, scale: float = 0.4) -> Any:
    """Weights that are not near zero, statistics that are not those of nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.uniform_(-0.5, 0.5)
                part.running_var.uniform_(0.5, 2)
    return module.eval()


def transform(kind: str, name: str, features: int = D, hidden: int = 12) -> Any:
    arguments = {**(CONFIGURATIONS | ONLY_OURS)[name], **TRANSFORMS[kind][2]}
    return quietly(lambda: TRANSFORMS[kind][0](features, hidden, **arguments))


def given(name: str, dtype: torch.dtype = torch.float32, rows: int = ROWS) -> Tensor | None:
    takes = "context_features" in (CONFIGURATIONS | ONLY_OURS)[name]
    return torch.randn(rows, C, dtype=dtype) if takes else None


def data(kind: str, dtype: torch.dtype = torch.float32, features: int = D) -> Tensor:
    x = torch.randn(ROWS, features, dtype=dtype)
    return torch.sigmoid(x) if "unit" in kind else x


# ---------------------------------------------------------------------- change the import


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_nflows_state_dict_gives_nflows_numbers(kind: str, name: str) -> None:
    own, original, extra = TRANSFORMS[kind]
    arguments = {**CONFIGURATIONS[name], **extra}
    theirs = shake(original(D, 12, **arguments)).double()
    mine = quietly(lambda: own(D, 12, **arguments)).double().eval()
    mine.load_state_dict(theirs.state_dict())
    x, context = data(kind, torch.float64), given(name, torch.float64)
    with torch.no_grad():
        for direction in ("forward", "inverse"):
            expected = getattr(theirs, direction)(x, context)
            actual = getattr(mine, direction)(x, context)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["defaults", "feedforward", "no blocks", "batch norm"])
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_same_seed_gives_the_same_weights_and_masks(kind: str, name: str) -> None:
    own, original, extra = TRANSFORMS[kind]
    states = []
    for constructor in (original, own):
        torch.manual_seed(3)
        states.append(constructor(D, 12, **CONFIGURATIONS[name], **extra).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_our_state_dict_gives_our_numbers_in_nflows(name: str) -> None:
    mine = shake(transform("affine", name))
    theirs = nt.MaskedAffineAutoregressiveTransform(D, 12, **CONFIGURATIONS[name]).eval()
    theirs.load_state_dict(mine.state_dict())
    x, context = data("affine"), given(name)
    torch.testing.assert_close(mine(x, context), theirs(x, context))
    torch.testing.assert_close(mine.inverse(x, context), theirs.inverse(x, context))


@pytest.mark.parametrize("version", ["transforms", "nde"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_networks_alone(name: str, version: str) -> None:
    arguments = CONFIGURATIONS[name]
    if version == "transforms":
        mine = quietly(lambda: ours.MADE(D, 12, output_multiplier=3, **arguments))
        theirs = their_made.MADE(D, 12, output_multiplier=3, **arguments)
    else:
        arguments = {**arguments, "num_mixture_components": 2}
        mine = quietly(lambda: ours.MixtureOfGaussiansMADE(D, 12, **arguments))
        theirs = nde.MixtureOfGaussiansMADE(D, 12, **arguments)
    mine.load_state_dict(shake(theirs).state_dict())
    mine.eval()
    assert isinstance(mine, type(theirs))
    x, context = data("affine"), given(name)
    assert torch.equal(mine(x, context), theirs(x, context))
    if version == "nde":
        assert torch.equal(mine.log_prob(x, context), theirs.log_prob(x, context))


def test_masked_autoregressive_flow() -> None:
    arguments = {
        "features": D,
        "hidden_features": 12,
        "num_layers": 3,
        "num_blocks_per_layer": 2,
        "use_random_permutations": True,
        "batch_norm_between_layers": True,
    }
    theirs = nfl.MaskedAutoregressiveFlow(**arguments)
    with torch.no_grad():
        for _ in range(30):
            theirs.log_prob(torch.randn(64, D))
    mine = ours.MaskedAutoregressiveFlow(**arguments)
    mine.load_state_dict(theirs.state_dict())
    mine.eval(), theirs.eval()
    x = torch.randn(ROWS, D)
    torch.testing.assert_close(mine.log_prob(x), theirs.log_prob(x))
    samples = []
    for flow in (mine, theirs):
        torch.manual_seed(1)
        samples.append(flow.sample(ROWS))
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    assert isinstance(mine, nfl.MaskedAutoregressiveFlow)


def test_flow_drops_log_determinants_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ours.MaskedAffineAutoregressiveTransform(D, 12)
    flow = ours.Flow(nt.CompositeTransform([net, nt.ReversePermutation(D)]), nd.StandardNormal([D]))
    counts = []
    call: Any = nn.Module._call_impl

    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if isinstance(module, ours.MADE):
            counts.append(1)
        return call(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "_call_impl", counted)
    with torch.no_grad():
        flow.sample(3)
        assert not counts
        samples, scores = flow.sample_and_log_prob(3)
        assert len(counts) == 1
    torch.testing.assert_close(scores, flow.log_prob(samples))


def test_composed_with_everything_else_of_nflows() -> None:
    def make(library: Any) -> Any:
        torch.manual_seed(0)
        layers: list[Any] = []
        for _ in range(2):
            layers += [
                nt.RandomPermutation(D),
                library.MaskedAffineAutoregressiveTransform(D, 12, C),
                nt.InverseTransform(
                    library.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                        D, 12, C, **SPLINE
                    )
                ),
                nt.ActNorm(D),
            ]
        net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, C))
        return nfl.Flow(nt.CompositeTransform(layers), nd.StandardNormal([D]), net)

    theirs = make(nt)
    theirs.log_prob(torch.randn(50, D), torch.randn(50, 2))  # ActNorm looks at its first batch
    shake(theirs, 0.1)
    mine = make(ours).eval()
    mine.load_state_dict(theirs.state_dict())
    x, context = torch.randn(ROWS, D), torch.randn(ROWS, 2)
    torch.testing.assert_close(mine.log_prob(x, context), theirs.log_prob(x, context))
    torch.manual_seed(2)
    expected = theirs.sample(5, context)
    torch.manual_seed(2)
    actual = mine.sample(5, context)
    assert actual.shape == (ROWS, 5, D)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- what nflows checks


@pytest.mark.parametrize("name", CONFIGURATIONS | ONLY_OURS)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_forward_inverse_consistency(kind: str, name: str) -> None:
    made = shake(transform(kind, name)).double()
    x, context = data(kind, torch.float64), given(name, torch.float64)
    z, log_det = made(x, context)
    again, minus = made.inverse(z, context)
    assert z.shape == x.shape
    assert log_det.shape == minus.shape == (ROWS,)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(minus, -log_det, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CONFIGURATIONS | ONLY_OURS)
@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_log_determinant_is_that_of_the_jacobian(kind: str, name: str) -> None:
    made = shake(transform(kind, name)).double()
    context = given(name, torch.float64, rows=1)
    x = data(kind, torch.float64)[:1]
    for direction in (made.forward, made.inverse):
        jacobian = torch.autograd.functional.jacobian(lambda v: direction(v, context)[0], x)  # noqa: B023
        jacobian = jacobian[0, :, 0]
        assert torch.equal(jacobian, jacobian.tril())
        torch.testing.assert_close(torch.slogdet(jacobian)[1], direction(x, context)[1][0])


@pytest.mark.parametrize("name", CONFIGURATIONS | ONLY_OURS)
def test_connectivity(name: str) -> None:
    for hidden in (3, 12):
        made = shake(transform("affine", name, hidden=hidden)).autoregressive_net
        context = given(name, rows=1)
        mf.check_autoregressive(lambda x: made(x[None], context).reshape(D, 2), D)  # noqa: B023
    if "random" not in name:
        with warnings.catch_warnings():
            warnings.simplefilter("error", mf.DependencyWarning)
            ours.MADE(D, D, **CONFIGURATIONS[name])


@pytest.mark.parametrize("features", [1, 2, 40])
def test_sizes(features: int) -> None:
    made = quietly(lambda: ours.MaskedAffineAutoregressiveTransform(features, 9, C))
    x, context = torch.randn(ROWS, features), torch.randn(ROWS, C)
    z, _ = made(x, context)
    torch.testing.assert_close(made.inverse(z, context)[0], x, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- the mixture


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_mixture_samples_solve_the_network(name: str) -> None:
    made = quietly(
        lambda: ours.MixtureOfGaussiansMADE(D, 12, num_mixture_components=3, **CONFIGURATIONS[name])
    )
    shake(made)
    context = given(name)
    torch.manual_seed(4)
    samples = made.sample(5, context)
    assert samples.shape == ((ROWS, 5, D) if context is not None else (5, D))
    head = GaussianMixture(3, ScaleRule("softplus", offset=0.0, floor=made.epsilon))
    conditioner, step = made.made_flows_read().conditioner, HeadStep(head)
    torch.manual_seed(4)
    rows = () if context is None else (ROWS,)
    noise = step.head.noise((5, *rows, D), torch.empty(0))
    with torch.no_grad():
        expected = d_pass_inverse(conditioner, step, noise, context)
    expected = expected if context is None else expected.transpose(0, 1)
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


def test_mixture_samples_follow_its_density() -> None:
    made = shake(ours.MixtureOfGaussiansMADE(1, 12, context_features=C), 0.3).double()
    context = torch.randn(1, C, dtype=torch.float64)
    samples = made.sample(20_000, context).reshape(-1)
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        density = made.log_prob(grid, context.expand(len(grid), C)).exp()
    cumulative = torch.cumulative_trapezoid(density, grid[:, 0])
    assert abs(float(cumulative[-1]) - 1) < 1e-3
    below = torch.searchsorted(samples.sort().values, grid[1:, 0]) / len(samples)
    assert float((below - cumulative).abs().max()) < 0.02


def test_mixture_of_other_epsilon_samples_anew() -> None:
    made = shake(ours.MixtureOfGaussiansMADE(D, 12))
    torch.manual_seed(0)
    before = made.sample(3)
    made.epsilon = 0.5
    torch.manual_seed(0)
    assert not torch.allclose(made.sample(3), before)
    copied = pickle.loads(pickle.dumps(made))
    torch.manual_seed(0)
    expected = made.sample(3)
    torch.manual_seed(0)
    assert torch.equal(copied.sample(3), expected)


# ---------------------------------------------------------------------- traps


def test_trap_1_the_first_feature_reads_the_context() -> None:
    for name in ("context", "feedforward, context", "random masks, context"):
        for seed in range(5):
            torch.manual_seed(seed)
            arguments = {**CONFIGURATIONS[name], "activation": torch.tanh}
            made = shake(quietly(lambda: ours.MADE(D, 12, output_multiplier=2, **arguments)))  # noqa: B023
            context = torch.randn(1, C, requires_grad=True)
            first = made(torch.zeros(1, D), context)[0, :2]
            (gradient,) = torch.autograd.grad(first.sum(), context)
            assert (gradient != 0).all(), name
    # nflows' own does not, and a state dict of its keeps its masks.
    theirs = their_made.MADE(D, 12, C, output_multiplier=2)
    made = ours.MADE(D, 12, C, output_multiplier=2)
    made.load_state_dict(theirs.state_dict())
    context = torch.randn(1, C, requires_grad=True)
    first = made(torch.zeros(1, D), context)[0, :2]
    assert not torch.autograd.grad(first.sum(), context)[0].any()


def test_trap_2_narrow_layers_keep_what_they_can_and_say_what_is_lost() -> None:
    with pytest.warns(mf.DependencyWarning, match="dependencies are lost"):
        made = ours.MADE(20, 6)
    reach = mf.nn.masks.connectivity([made.initial_layer.mask, made.final_layer.mask])
    theirs = their_made.MADE(20, 6)
    lost = mf.nn.masks.connectivity([theirs.initial_layer.mask, theirs.final_layer.mask])
    assert reach[-1, :-1].all()  # the last feature reads all others
    assert not lost[-1, :-1].all()
    assert made.initial_layer.degrees.tolist() == [4, 7, 10, 13, 16, 19]


def test_trap_5_a_model_moved_to_float64_samples_in_float64() -> None:
    flow = ours.MaskedAutoregressiveFlow(D, 12, 2, 1, context_features=C).double()
    context = torch.randn(ROWS, C, dtype=torch.float64)
    samples, scores = flow.sample_and_log_prob(3, context)
    assert samples.dtype == scores.dtype == torch.float64
    assert flow.sample(3, context).shape == (ROWS, 3, D)
    mixture = ours.MixtureOfGaussiansMADE(D, 12).double()
    assert mixture.sample(3).dtype == torch.float64


MISUSES: dict[str, tuple[Callable[[], Any], type, str]] = {
    "context missing": (
        lambda: ours.MADE(D, 12, C)(torch.zeros(2, D)),
        ValueError,
        r"Expected context of shape \(\.\.\., 3\), since the network was made with .*=3",
    ),
    "context superfluous": (
        lambda: ours.MADE(D, 12)(torch.zeros(2, D), torch.zeros(2, C)),
        ValueError,
        "Expected no context",
    ),
    "context of another size": (
        lambda: ours.MADE(D, 12, C)(torch.zeros(2, D), torch.zeros(2, 2)),
        ValueError,
        r"Expected context of shape \(..., 3\)",
    ),
    "context of samples": (
        lambda: ours.MixtureOfGaussiansMADE(D, 12, C).sample(3),
        ValueError,
        "Expected context of shape",
    ),
    "inputs of another size": (
        lambda: ours.MADE(D, 12)(torch.zeros(2, 3)),
        ValueError,
        r"Expected inputs of shape \(..., 4\)",
    ),
    "inputs of another dtype": (
        lambda: ours.MADE(D, 12)(torch.zeros(2, D, dtype=torch.float64)),
        TypeError,
        "Expected inputs of dtype torch.float32",
    ),
    "flow without its context": (
        lambda: ours.MaskedAutoregressiveFlow(D, 12, 1, 1, context_features=C).log_prob(
            torch.zeros(2, D)
        ),
        ValueError,
        "Expected context of shape",
    ),
    "features": (lambda: ours.MADE(0, 12), ValueError, "Expected features"),
    "hidden features": (lambda: ours.MADE(D, (12,)), TypeError, "Expected hidden_features"),
    "context features": (lambda: ours.MADE(D, 12, 0), ValueError, "Expected context_features"),
    "blocks": (lambda: ours.MADE(D, 12, num_blocks=-1), ValueError, "Expected num_blocks"),
    "multiplier": (lambda: ours.MADE(D, 12, output_multiplier=0), ValueError, "Expected output_m"),
    "tails": (
        lambda: ours.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 12, tails="round"),
        ValueError,
        "Expected tails to be None or 'linear'",
    ),
    "bins": (
        lambda: ours.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            D, 12, num_bins=10, min_bin_width=0.2
        ),
        ValueError,
        "Expected min_bin_width",
    ),
    "samples": (lambda: ours.MixtureOfGaussiansMADE(D, 12).sample(0), ValueError, "num_samples"),
    "density model": (lambda: ours.AsDistribution(nn.ReLU()), TypeError, "Expected model"),
    "transform": (lambda: ours.AsTransform(3), TypeError, "Expected transforms"),
    "transforms": (lambda: ours.AsTransform([nn.ReLU()]), TypeError, "Expected transforms"),
    "flow": (lambda: ours.AsFlow(mf.GaussianMADE(3)), TypeError, "Expected flow"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_trap_6_misuse_is_a_clear_error(name: str) -> None:
    call, kind, message = MISUSES[name]
    with pytest.raises(kind, match=message):
        call()


def test_trap_11_samples_are_scored_as_log_prob_scores_them() -> None:
    context = torch.randn(ROWS, C, dtype=torch.float64)
    for flow, c in (
        (ours.MaskedAutoregressiveFlow(D, 12, 3, 1, context_features=C).double(), context),
        (ours.MaskedAutoregressiveFlow(D, 12, 3, 1).double(), None),
        (ours.AsFlow(mf.MAF(D, C, base=mf.GaussianMixtureMADE(D, C))).double(), context),
        (ours.AsFlow(mf.IAF(D)).double(), None),
        (ours.AsDistribution(mf.GaussianMADE(D, C)).double(), context),
    ):
        shake(flow, 0.1)
        samples, scores = flow.sample_and_log_prob(3, c)
        repeated = None if c is None else c.repeat_interleave(3, dim=0)
        again = flow.log_prob(samples.reshape(-1, D), repeated).reshape(scores.shape)
        torch.testing.assert_close(scores, again, rtol=1e-8, atol=1e-8)


def test_trap_14_residual_blocks_may_have_random_masks() -> None:
    torch.manual_seed(0)
    masks = [
        quietly(lambda: ours.MADE(D, 12, num_blocks=1, random_mask=True)).initial_layer.mask
        for _ in range(3)
    ]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


def test_trap_16_batch_norm_in_training_mode_is_not_silent() -> None:
    made = ours.MaskedAffineAutoregressiveTransform(D, 12, use_batch_norm=True)
    x = torch.randn(ROWS, D)
    made(x)  # training: nothing to say
    statistics = [b.clone() for b in made.buffers()]
    with torch.no_grad():
        with pytest.warns(ours.TrainingModeWarning, match=r"Call eval\(\)"):
            made(x)
        with pytest.warns(ours.TrainingModeWarning):
            made.inverse(x)
    made.eval()
    kept = [b.clone() for b in made.buffers()]
    assert not all(torch.equal(a, b) for a, b in zip(statistics, kept, strict=True))
    z, _ = made(x)
    torch.testing.assert_close(made.inverse(z)[0], x, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), kept, strict=True))


def test_exposing_no_width_that_would_rescale_splines() -> None:
    assert not hasattr(ours.MADE(D, 12), "hidden_features")


# ---------------------------------------------------------------------- our models in nflows

DENSITIES: dict[str, tuple[Callable[[], Any], bool]] = {
    "Gaussian": (lambda: mf.GaussianMADE(D), False),
    "Gaussian, context": (lambda: mf.GaussianMADE(D, C), True),
    "mixture, context": (lambda: mf.GaussianMixtureMADE(D, C, components=3), True),
    "Bernoulli": (lambda: mf.BernoulliMADE(D), False),
    "MAF, context": (lambda: mf.MAF(D, C, transforms=2), True),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_as_distributions(name: str) -> None:
    make, takes = DENSITIES[name]
    model = shake(make(), 0.1)
    distribution = ours.AsDistribution(model)
    context = torch.randn(ROWS, C) if takes else None
    samples = distribution.sample(5, context)
    assert samples.shape == ((ROWS, 5, D) if takes else (5, D))
    x = samples[:, 0] if takes else samples
    expected = model(context).log_prob(x) if takes else model().log_prob(x)
    assert torch.equal(distribution.log_prob(x, context), expected)
    assert dict(distribution.named_parameters()).keys() == {
        f"model.{key}" for key, _ in model.named_parameters()
    }
    if takes:
        with pytest.raises(ValueError, match="Expected context"):
            distribution.log_prob(x)
    else:
        assert distribution.sample(5, batch_size=2).shape == (5, D)
        # As nflows' own bases do: one set of samples for each row of a context.
        assert distribution.sample(5, torch.zeros(3, 2)).shape == (3, 5, D)


def test_samples_in_batches_stay_those_of_their_context() -> None:
    flow = mf.MAF(D, context=1, transforms=1)
    context = torch.tensor([[-3.0], [3.0]])
    base = ours.StandardNormal([D])
    for each in (ours.AsDistribution(flow), ours.AsFlow(flow), base):
        assert each.sample(6, context, batch_size=3).shape == (2, 6, D)
        assert each.sample(5, context, batch_size=2).shape == (2, 5, D)
    assert base.sample(5, batch_size=2).shape == (5, D)
    with pytest.raises(ValueError, match="batch_size"):
        base.sample(5, batch_size=0)


def test_rows_of_a_context_belong_to_their_samples() -> None:
    model = shake(mf.GaussianMADE(D, 1))
    context = torch.tensor([[-3.0], [3.0]])
    torch.manual_seed(0)
    samples = ours.AsDistribution(model).sample(6, context)
    torch.manual_seed(0)
    expected = model(context).sample((6,))
    assert torch.equal(samples, expected.transpose(0, 1))


def test_a_density_as_the_base_of_an_nflows_flow() -> None:
    base = ours.AsDistribution(mf.GaussianMixtureMADE(D, C))
    flow = nfl.Flow(ours.MaskedAffineAutoregressiveTransform(D, 12, C), base, nn.Linear(2, C))
    x, context = torch.randn(ROWS, D), torch.randn(ROWS, 2)
    (-flow.log_prob(x, context).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    assert flow.sample(3, context).shape == (ROWS, 3, D)


FLOWS: dict[str, tuple[Callable[[], Any], bool]] = {
    "MAF": (lambda: mf.MAF(D, transforms=2), False),
    "IAF, context": (lambda: mf.IAF(D, C, transforms=2), True),
    "MAF-MoG, context": (lambda: mf.MAF(D, C, base=mf.GaussianMixtureMADE(D, C)), True),
    "spline MAF": (lambda: mf.MAF(D, transforms=1, bijection="spline"), False),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_as_flows(name: str) -> None:
    make, takes = FLOWS[name]
    model = shake(make(), 0.1).double()
    flow = ours.AsFlow(model)
    context = torch.randn(ROWS, C, dtype=torch.float64) if takes else None
    x = torch.randn(ROWS, D, dtype=torch.float64)
    expected = (model(context) if takes else model()).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x, context), expected)
    noise = flow.transform_to_noise(x, context)
    again, _ = flow._transform.inverse(noise, context)
    torch.testing.assert_close(again, x)
    torch.manual_seed(0)
    samples = flow.sample(5, context)
    assert samples.shape == ((ROWS, 5, D) if takes else (5, D))
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = flow._distribution.sample(5, context).reshape(-1, D)
        repeated = None if context is None else context.repeat_interleave(5, dim=0)
        x, _ = flow._transform.inverse(drawn, repeated)
    torch.testing.assert_close(samples.reshape(-1, D), x)
    assert len(list(flow.parameters())) == len(list(model.parameters()))
    state = flow.state_dict()
    other = ours.AsFlow(make().double())
    other.load_state_dict(state)
    torch.testing.assert_close(
        other.log_prob(torch.zeros(1, D, dtype=torch.float64), None if not takes else context[:1]),
        flow.log_prob(torch.zeros(1, D, dtype=torch.float64), None if not takes else context[:1]),
    )


def test_our_transforms_between_those_of_nflows() -> None:
    composite = nt.CompositeTransform(
        [
            nt.ReversePermutation(D),
            ours.AsTransform(mf.MAF(D, transforms=1)),
            ours.AsTransform([mf.ActNorm(D), mf.Permutation(D)]),
            ours.AsTransform(mf.InvertibleLinear(D)),
        ]
    )
    x = torch.randn(ROWS, D)
    composite(x)
    composite.eval()
    z, log_det = composite(x)
    again, minus = composite.inverse(z)
    torch.testing.assert_close(again, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(minus, -log_det, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- objects


@pytest.mark.parametrize("way", [copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_copies(way: Callable[[Any], Any]) -> None:
    flow = shake(ours.MaskedAutoregressiveFlow(D, 12, 2, 1), 0.1)
    flow.sample(2)
    copied = way(flow)
    x = torch.randn(ROWS, D)
    with torch.no_grad():
        assert torch.equal(copied.log_prob(x), flow.log_prob(x))
        for parameter in copied.parameters():
            parameter.mul_(1.3)
        z = copied.transform_to_noise(x)
        torch.testing.assert_close(copied._transform.inverse(z)[0], x, rtol=1e-3, atol=1e-3)
        assert not torch.equal(copied.log_prob(x), flow.log_prob(x))


def test_accelerate_leaves_our_classes_and_knows_them() -> None:
    flow = ours.MaskedAutoregressiveFlow(D, 12, 2, 1)
    kinds = [type(module) for module in flow.modules()]
    mf.accelerate(flow)
    assert [type(module) for module in flow.modules()] == kinds
    assert len(mf.acceleration(flow).fast) == 2


def test_training_reaches_what_plain_nflows_reaches() -> None:
    x = torch.randn(256, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.5]]) + 1
    losses = []
    for library in (nfl, ours):
        torch.manual_seed(0)
        flow = library.MaskedAutoregressiveFlow(2, 16, 2, 1)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            loss = -flow.log_prob(x).mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
