"""Where Pyro and torch trip: one regression test for each trap, named after what it guards."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.distributions.transforms as theirs  # noqa: E402
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormalizingFlow  # noqa: E402

import made_flows as mf  # noqa: E402
import made_flows.pyro as mp  # noqa: E402
from made_flows.pyro.transforms import ClippedScale  # noqa: E402
from tests.helpers.default_dtype import default_dtype  # noqa: E402
from tests.helpers.density_models import scatter  # noqa: E402
from tests.helpers.pyro_layers import CONDITIONAL, CONTEXT, TRANSFORMS, conditional, transform  # noqa: E402

F64 = torch.float64
DTYPES = [torch.float32, F64]

every = pytest.mark.parametrize("name", TRANSFORMS)
every_conditional = pytest.mark.parametrize("name", CONDITIONAL)


def density(t: Any, features: int = 4, dtype: torch.dtype = F64) -> Any:
    base = dist.Normal(torch.zeros(features, dtype=dtype), torch.ones(features, dtype=dtype))
    return dist.TransformedDistribution(base.to_event(1), [t])


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


# 5. Precision follows the global default instead of the model.


@pytest.mark.parametrize("default", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every
def test_trap_5_precision_is_that_of_the_weights_both_ways(
    name: str, dtype: torch.dtype, default: torch.dtype
) -> None:
    t = transform(name).to(dtype)
    with default_dtype(default):
        x = torch.randn(5, 4, dtype=dtype)
        for direction in (t, t.inv):
            y = direction(x)
            back = direction.inv(y.clone())
            log_det = direction.log_abs_det_jacobian(x, y)
            assert y.dtype == back.dtype == log_det.dtype == dtype
            exact = 1e-9 if dtype is F64 else 1e-3
            torch.testing.assert_close(back, x, rtol=exact, atol=exact)
        flow = density(t, dtype=dtype)
        assert flow.sample().dtype == flow.log_prob(x).dtype == dtype


@pytest.mark.parametrize("default", DTYPES, ids=str)
@every_conditional
def test_trap_5_precision_of_conditional_transforms(name: str, default: torch.dtype) -> None:
    with default_dtype(default):
        for dtype in DTYPES:
            t = conditional(name).to(dtype).condition(torch.randn(5, CONTEXT, dtype=dtype))
            x = torch.randn(5, 4, dtype=dtype)
            assert t(x).dtype == t.inv(x.clone()).dtype == dtype
            assert t.log_abs_det_jacobian(x, t(x)).dtype == dtype


@pytest.mark.parametrize("name", ["affine", "spline, linear", "IAF", "MAF"])
def test_trap_5_a_transform_made_under_one_default_works_under_another(name: str) -> None:
    with default_dtype(F64):
        t = TRANSFORMS[name](4)
        assert {p.dtype for p in t.parameters()} == {F64}
    assert density(t).rsample((3,)).dtype == F64
    assert density(t.float(), dtype=torch.float32).rsample((3,)).dtype == torch.float32


@pytest.mark.parametrize("name", ["affine", "IAF", "MAF", "linear"])
def test_trap_5_values_of_another_precision_are_a_clear_error(name: str) -> None:
    t = transform(name)
    for direction in (t, t.inv):
        with pytest.raises(TypeError, match=r"of dtype torch.float64, .*; got torch.float32"):
            direction(torch.zeros(4))


# 6. A context that is missing or superfluous goes unnoticed, or fails deep inside.


MISSING: dict[str, Any] = {
    "network": lambda c: mp.ConditionalAutoRegressiveNN(4, CONTEXT, [8])(torch.zeros(4), c),
    "MADE network": lambda c: mp.MADENetwork(mf.MADE(4, CONTEXT))(torch.zeros(4), c),
    "affine": lambda c: mp.conditional_affine_autoregressive(4, CONTEXT).condition(c),
    "spline": lambda c: mp.conditional_spline_autoregressive(4, CONTEXT).condition(c),
    "MAF": lambda c: mp.ConditionalMAF(4, CONTEXT).condition(c),
    "IAF": lambda c: mp.ConditionalIAF(4, CONTEXT).condition(c),
    "transform": lambda c: mp.FlowTransform(mf.MAF(4, CONTEXT), c),
    "posterior": lambda c: mp.ConditionalIAF(4, CONTEXT)(torch.zeros(4), torch.ones(4), c),
    "model": mp.GaussianMADE(4, CONTEXT),
    "flow": mp.to_pyro(mf.MAF(4, CONTEXT)),
}


@pytest.mark.parametrize("case", MISSING)
@pytest.mark.parametrize(
    "context", [None, torch.zeros(5, CONTEXT + 1), torch.zeros(())], ids=["none", "size", "number"]
)
def test_trap_6_a_missing_context_is_a_clear_error(case: str, context: Tensor | None) -> None:
    with pytest.raises((ValueError, TypeError), match=r"Expected context (of shape|to be a torch)"):
        MISSING[case](context)


SUPERFLUOUS: dict[str, Any] = {
    "network": lambda c: mp.AutoRegressiveNN(4, [8])(torch.zeros(4), context=c),
    "MADE network": lambda c: mp.MADENetwork(mf.MADE(4))(torch.zeros(4), c),
    "transform": lambda c: mp.FlowTransform(mf.MAF(4), c),
    "model": mp.GaussianMADE(4),
    "flow": mp.to_pyro(mf.MAF(4)),
    "conditional": lambda c: mp.ConditionalFlowTransform(mf.MAF(4)).condition(c),
    "affine": lambda c: mp.ConditionalAffineAutoregressive(mp.AutoRegressiveNN(4, [8])).condition(
        c
    ),
}


@pytest.mark.parametrize("case", SUPERFLUOUS)
def test_trap_6_a_superfluous_context_is_a_clear_error(case: str) -> None:
    message = "Expected (no context|context to be left out|flow to take a context|.* a context)"
    with pytest.raises(ValueError, match=message):
        SUPERFLUOUS[case](torch.zeros(5, CONTEXT))


# 7. What is remembered by the identity of a tensor outlives what it was computed from.


def check_freshness(t: Any, x: Tensor, change: Any) -> None:
    """After a change, all that a transform says is what a copy without a memory says."""
    flow = density(t)
    before = flow.log_prob(x)
    y = t(x)
    change()
    plain = copy.copy(t.with_cache(0))
    torch.testing.assert_close(flow.log_prob(x), density(plain).log_prob(x.clone()))
    torch.testing.assert_close(t(x), plain(x))
    torch.testing.assert_close(
        t.log_abs_det_jacobian(x, y), plain.log_abs_det_jacobian(x, y.clone())
    )
    assert not torch.allclose(flow.log_prob(x), before)


@every
def test_trap_7_no_score_survives_a_change_of_the_weights(name: str) -> None:
    t = transform(name)

    @torch.no_grad()
    def in_place() -> None:
        for parameter in t.parameters():
            parameter.mul_(1.2)

    def through_data() -> None:
        for parameter in t.parameters():
            parameter.data.add_(0.1)

    def signs_through_data() -> None:
        for parameter in t.parameters():
            parameter.data.neg_()

    def data_replaced() -> None:
        for parameter in t.parameters():
            parameter.data = parameter.data * 1.1

    def loaded() -> None:
        t.load_state_dict(copy.deepcopy(transform(name)).state_dict())

    for change in (in_place, through_data, signs_through_data, data_replaced, loaded):
        check_freshness(t, points(5, 4).clamp(-2, 2), change)


@every_conditional
def test_trap_7_no_score_survives_a_change_of_the_context(name: str) -> None:
    context = points(5, CONTEXT)
    t = conditional(name).condition(context)
    check_freshness(t, points(5, 4).clamp(-2, 2), lambda: context.mul_(2).add_(0.3))


@every
def test_trap_7_no_score_survives_a_change_of_the_values(name: str) -> None:
    t, y = transform(name), points(5, 4)
    before = t.inv(y).clone()
    y.add_(0.5)
    torch.testing.assert_close(t.inv(y), t.with_cache(0).inv(y.clone()))
    assert not torch.allclose(t.inv(y), before)


@every
def test_trap_7_one_tensor_can_go_backward_any_number_of_times(name: str) -> None:
    t, y = transform(name), points(5, 4)
    flow = density(t)
    gradients = []
    for _ in range(3):
        t.zero_grad()
        (-flow.log_prob(y)).sum().backward()
        gradients.append([p.grad.clone() for p in t.parameters()])
    for later in gradients[1:]:
        for one, other in zip(later, gradients[0], strict=True):
            torch.testing.assert_close(one, other)


@every
def test_trap_7_a_sample_can_be_scored_and_go_backward_twice(name: str) -> None:
    t = transform(name)
    flow = density(t)
    z = flow.rsample((5,))
    flow.log_prob(z).sum().backward(retain_graph=True)
    flow.log_prob(z).sum().backward()
    assert all(p.grad.isfinite().all() for p in t.parameters())


@every
def test_trap_7_what_was_computed_without_gradients_is_not_reused_with_them(name: str) -> None:
    t, y = transform(name), points(5, 4)
    with torch.no_grad():
        density(t).log_prob(y)
    score = density(t).log_prob(y)
    assert score.requires_grad


@every_conditional
def test_trap_7_a_copy_after_a_call(name: str) -> None:
    module, context = conditional(name), points(5, CONTEXT)
    conditioned = module.condition(context)
    x = points(5, 4).requires_grad_()
    y = conditioned(x)
    for again in (copy.deepcopy(conditioned), pickle.loads(pickle.dumps(conditioned))):
        torch.testing.assert_close(again(x), y)


# 8. A MAF is written t.inv, and a copy or pickle of t.inv is Inverse(None).


@pytest.mark.parametrize("name", ["MAF", "MAF, normalised", "inverse of affine", "inverse of MAF"])
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_trap_8_a_density_in_one_pass_keeps_its_weights(name: str, way: str) -> None:
    flow = density(transform(name))
    x = points(6, 4)
    expected = flow.log_prob(x)
    if way == "pickle":
        again = pickle.loads(pickle.dumps(flow))
    elif way == "deepcopy":
        again = copy.deepcopy(flow)
    else:
        buffer = io.BytesIO()
        torch.save(flow, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(again.log_prob(x.clone()), expected)
    torch.testing.assert_close(again.transforms[0].inv(x), flow.transforms[0].inv(x))
    assert list(again.transforms[0].parameters())


# 9. JitTrace_ELBO fails with flows in the guide. (It still does in Pyro's AutoNormalizingFlow, with
#    any flow, because that guide keeps one of the flow's weights under a second name.)


JITTED: dict[str, Any] = {
    "affine": lambda: mp.affine_autoregressive(3, hidden_dims=[8]),
    "inverse of affine": lambda: mp.affine_autoregressive(3, hidden_dims=[8]).inv,
    "spline": lambda: mp.spline_autoregressive(3, hidden_dims=[8], count_bins=4),
    "IAF": lambda: mp.IAF(3, transforms=2, hidden_features=(8,)),
    "IAF, gated": lambda: mp.IAF(
        3, transforms=1, hidden_features=(8,), bijection="gated", activation="elu"
    ),
}


def funnel() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("w", dist.Normal(torch.zeros(2), (z / 2).exp()).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))


def guide_with(t: Any) -> Any:
    def guide() -> None:
        pyro.module("flow", t)
        flow = density(t, 3, torch.float32)
        latent = pyro.sample("latent", flow, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(latent[..., 0]))
        pyro.sample("w", dist.Delta(latent[..., 1:], event_dim=1))

    return guide


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("name", JITTED)
def test_trap_9_a_traced_loss_is_the_loss(name: str) -> None:
    t = scatter(JITTED[name](), 0.3)
    guide = guide_with(t)
    traced = JitTrace_ELBO(ignore_jit_warnings=True)
    traced.loss_and_grads(funnel, guide)  # is traced now
    found = []
    for _ in range(2):
        for loss in (traced, Trace_ELBO()):
            t.zero_grad()
            pyro.set_rng_seed(1)
            value = loss.loss_and_grads(funnel, guide)
            found.append([torch.tensor(value), *(p.grad.clone() for p in t.parameters())])
        torch.testing.assert_close(found[-2], found[-1], rtol=1e-4, atol=1e-5)
        scatter(t, 0.3)  # the second time with other weights
    assert not torch.allclose(found[0][0], found[-1][0])


# A MAF is sampled by a sequential inverse, whose gradient a trace records as that of whole passes.
@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("kind", [mp.IAF, mp.MAF])
def test_trap_9_a_traced_loss_trains(kind: Any) -> None:
    t = kind(3, transforms=2, hidden_features=(8,))
    loss = JitTrace_ELBO(ignore_jit_warnings=True)
    svi = SVI(funnel, guide_with(t), pyro.optim.Adam({"lr": 0.02}), loss)
    losses = torch.tensor([svi.step() for _ in range(300)])
    assert losses[-100:].mean() < losses[:100].mean()


# 10. Clamped log-scales explode gradients, unbounded ones overflow.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every
def test_trap_10_extreme_weights_and_values_stay_finite(name: str, dtype: torch.dtype) -> None:
    """In the direction of one pass, in which a transform is trained."""
    t = scatter(transform(name), 3.0).to(dtype)
    far = (1e3 * torch.randn(20, 4, dtype=dtype)).requires_grad_()
    if name in ("MAF", "MAF, normalised", "inverse of affine"):
        result = density(t, dtype=dtype).log_prob(far)
    else:
        image = t(far)
        result = image.sum(dim=-1) + t.log_abs_det_jacobian(far, image)
    assert result.isfinite().all()
    gradients = torch.autograd.grad(result.sum(), [far, *t.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_trap_10_a_clipped_scale_has_no_gradient_further_out() -> None:
    """Pyro passes it on, so that a parameter that is out of range runs away without bound."""
    raw = torch.tensor([-9.0, -9.0, 0.5, 7.0, 7.0], requires_grad=True)
    gradient = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    log_scale = ClippedScale(-5.0, 3.0)(raw)
    assert log_scale.tolist() == [-5.0, -5.0, 0.5, 3.0, 3.0]
    log_scale.backward(gradient)
    assert raw.grad.tolist() == [0.0, -1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"linear", "affine, network of Pyro"}))
def test_trap_10_a_fresh_transform_is_near_the_identity(name: str) -> None:
    t, x = TRANSFORMS[name](4), torch.randn(100, 4).clamp(-2.5, 2.5)
    y = t(x)
    if name == "affine, stable" or "gated" in name:  # a gate of 0.88 in every step
        y = y / (torch.sigmoid(torch.tensor(2.0)) ** (2 if "IAF" in name else 1))
    assert (y - x).abs().mean() < 0.2


# 13. One feature alone: another class, a warning, a refusal.


ALONE: dict[str, Any] = {
    "affine": lambda: mp.affine_autoregressive(1),
    "spline": lambda: mp.spline_autoregressive(1),
    "spline, quadratic": lambda: mp.spline_autoregressive(1, order="quadratic"),
    "IAF": lambda: mp.IAF(1, transforms=2),
    "MAF": lambda: mp.MAF(1, transforms=2),
}


@pytest.mark.parametrize("name", ALONE)
def test_trap_13_a_guide_of_one_latent_variable(name: str) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=torch.tensor(1.0))

    guide = AutoNormalizingFlow(model, lambda features: scatter(ALONE[name](), 0.1))
    loss = Trace_ELBO(num_particles=64, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.99}), loss)
    for _ in range(140):
        svi.step()
    z = guide.get_posterior().sample((4000,))
    assert z.shape == (4000, 1)
    # The posterior is normal: mean 0.8, standard deviation 0.447.
    assert abs(float(z.mean()) - 0.8) < 0.1
    assert abs(float(z.std()) - 0.447) < 0.1


def test_trap_13_one_affine_feature_without_context_is_a_gaussian() -> None:
    for name in ("affine", "IAF", "MAF"):
        t = transform(name, 1)
        loc = t(torch.zeros(1, dtype=F64))
        scale = t(torch.ones(1, dtype=F64)) - loc
        x = points(50, 1)
        expected = dist.Normal(loc, scale).log_prob(x)[:, 0]
        torch.testing.assert_close(density(t, 1).log_prob(x), expected)


@pytest.mark.parametrize("kind", ["BernoulliMADE", "GaussianMADE", "GaussianMixtureMADE"])
def test_trap_13_a_density_model_of_one_feature(kind: str) -> None:
    model = getattr(mp, kind)(1, context=2)
    with pyro.plate("rows", 5):
        x = pyro.sample("x", model(torch.randn(5, 2)))
    assert x.shape == (5, 1)
    assert model(torch.randn(5, 2)).log_prob(x).shape == (5,)


# 15. A log-determinant that ignores its arguments, weights that are saved twice.


@every
def test_trap_15_log_determinants_are_those_of_their_arguments(name: str) -> None:
    t = transform(name)
    other = copy.deepcopy(t)
    x, elsewhere = points(5, 4), points(5, 4)
    t(x)  # what is remembered now belongs to another pair
    pair = (elsewhere, other(elsewhere))
    torch.testing.assert_close(t.log_abs_det_jacobian(*pair), other.log_abs_det_jacobian(*pair))
    if name != "linear":
        assert not torch.allclose(t.log_abs_det_jacobian(*pair), t.log_abs_det_jacobian(x, t(x)))


@pytest.mark.parametrize("table", ["transforms", "conditional transforms"])
def test_trap_15_no_weight_is_saved_twice(table: str) -> None:
    constructors = TRANSFORMS if table == "transforms" else CONDITIONAL
    for name in constructors:
        module = transform(name) if table == "transforms" else conditional(name)
        state = module.state_dict(keep_vars=True)
        weights = [tensor for tensor in state.values() if isinstance(tensor, torch.nn.Parameter)]
        assert len({id(weight) for weight in weights}) == len(weights), name
        assert len(weights) == len(list(module.parameters())), name


@pytest.mark.parametrize("order", ["linear", "quadratic"])
def test_trap_15_state_dicts_of_pyros_splines_load_all_the_same(order: str) -> None:
    their = theirs.spline_autoregressive(4, hidden_dims=[8], count_bins=4)
    if order == "quadratic":  # Pyro's constructor always takes a network for linear splines
        network = pyro.nn.AutoRegressiveNN(4, [8], param_dims=[4, 4, 3])
        their = theirs.SplineAutoregressive(4, network, count_bins=4, order=order)
    state = scatter(their).state_dict()
    assert any(name.startswith("spline.nn.") for name in state)
    our = mp.spline_autoregressive(4, hidden_dims=[8], count_bins=4, order=order)
    our.load_state_dict(state)
    assert not any(name.startswith("spline.nn.") for name in our.state_dict())
    x = torch.randn(6, 4)
    torch.testing.assert_close(our(x), their(x), rtol=1e-4, atol=1e-5)
