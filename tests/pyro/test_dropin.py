"""Pyro's classes and ours: the same weights, the same numbers, without Pyro's traps."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.distributions.transforms as theirs  # noqa: E402
import pyro.nn as their_networks  # noqa: E402
from pyro.infer import SVI, Predictive, Trace_ELBO  # noqa: E402

import made_flows.pyro as ours  # noqa: E402

FEATURES = 5


def shaken(module: nn.Module, seed: int = 0) -> Any:
    """The module with weights far from their small initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)
    return module


NETWORKS: dict[str, dict[str, Any]] = {
    "one layer": {"hidden_dims": [16]},
    "two layers": {"hidden_dims": [16, 12]},
    "given order": {"hidden_dims": [16], "permutation": torch.tensor([3, 0, 4, 1, 2])},
    "skip connections": {"hidden_dims": [16], "skip_connections": True},
    "tanh": {"hidden_dims": [16], "nonlinearity": nn.Tanh()},
}
PARAM_DIMS = {"two": [1, 1], "pair": [2], "one": [1], "mixed": [1, 5]}


def pair_of_networks(kind: str, **extra: Any) -> tuple[nn.Module, nn.Module]:
    arguments = {**NETWORKS[kind], **extra}
    arguments.setdefault("permutation", torch.randperm(FEATURES))
    their = shaken(their_networks.AutoRegressiveNN(FEATURES, **arguments))
    our = ours.AutoRegressiveNN(FEATURES, **arguments)
    our.load_state_dict(their.state_dict())
    return their, our


def as_tuple(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("dims", PARAM_DIMS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_network_of_pyros_weights_gives_pyros_outputs(kind: str, dims: str) -> None:
    their, our = pair_of_networks(kind, param_dims=PARAM_DIMS[dims])
    x = torch.randn(7, FEATURES)
    expected, output = as_tuple(their(x)), as_tuple(our(x))
    assert isinstance(our(x), tuple) == isinstance(their(x), tuple)
    assert len(output) == len(expected)
    for one, other in zip(output, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(our.get_permutation(), their.get_permutation())


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_affine_transform_equals_pyros_in_both_directions(kind: str, stable: bool) -> None:
    their_network, our_network = pair_of_networks(kind)
    their = theirs.AffineAutoregressive(their_network, stable=stable)
    our = ours.AffineAutoregressive(our_network, stable=stable)
    x = torch.randn(7, FEATURES)
    y = our(x)
    torch.testing.assert_close(y, their(x))
    torch.testing.assert_close(
        our.log_abs_det_jacobian(x, y), their.log_abs_det_jacobian(x, their(x))
    )
    outside = torch.randn(7, FEATURES)
    torch.testing.assert_close(our.inv(outside), their.inv(outside), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["linear", "quadratic"])
def test_spline_transform_equals_pyros_in_both_directions(order: str) -> None:
    bins = 4
    dims = [bins, bins, bins - 1] + ([bins] if order == "linear" else [])
    their_network, our_network = pair_of_networks("one layer", param_dims=dims)
    their = theirs.SplineAutoregressive(FEATURES, their_network, count_bins=bins, order=order)
    our = ours.SplineAutoregressive(FEATURES, our_network, count_bins=bins, order=order)
    x = 2 * torch.randn(9, FEATURES)
    y = our(x)
    torch.testing.assert_close(y, their(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        our.log_abs_det_jacobian(x, y),
        their.log_abs_det_jacobian(x, their(x)),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(our.inv(y), x, rtol=1e-3, atol=1e-4)


def test_pyros_network_works_inside_our_transform() -> None:
    network = shaken(their_networks.AutoRegressiveNN(FEATURES, [16]))
    their, our = theirs.AffineAutoregressive(network), ours.AffineAutoregressive(network)
    outside = torch.randn(4, FEATURES)
    torch.testing.assert_close(our.inv(outside), their.inv(outside), rtol=1e-4, atol=1e-5)


def test_our_network_works_inside_pyros_transform() -> None:
    network = shaken(ours.AutoRegressiveNN(FEATURES, [16]))
    their, our = theirs.AffineAutoregressive(network), ours.AffineAutoregressive(network)
    x = torch.randn(4, FEATURES)
    torch.testing.assert_close(their(x), our(x))


def test_conditional_transform_uses_its_context() -> None:
    their = theirs.conditional_affine_autoregressive(FEATURES, 3, hidden_dims=[16])
    our = ours.conditional_affine_autoregressive(FEATURES, 3, hidden_dims=[16])
    shaken(their)
    our.load_state_dict(their.state_dict())
    x, context = torch.randn(6, FEATURES), torch.randn(6, 3)
    torch.testing.assert_close(our.condition(context)(x), their.condition(context)(x))
    other = our.condition(context + 1)(x)
    assert not torch.allclose(other, our.condition(context)(x))


def test_trap_7_cache_does_not_survive_a_change_of_the_weights() -> None:
    transform = ours.affine_autoregressive(FEATURES, hidden_dims=[16])
    shaken(transform)
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(FEATURES), 1).to_event(1), [transform]
    )
    x = flow.sample((4,))
    before = flow.log_prob(x)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(2.0)
    fresh = copy.deepcopy(transform)
    expected = dist.TransformedDistribution(flow.base_dist, [fresh]).log_prob(x.clone())
    torch.testing.assert_close(flow.log_prob(x), expected)
    assert not torch.allclose(before, expected)


def test_trap_7_one_tensor_can_be_scored_in_every_step() -> None:
    transform = ours.affine_autoregressive(FEATURES, hidden_dims=[16])
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(FEATURES), 1).to_event(1), [transform]
    )
    x = torch.randn(20, FEATURES)
    optimizer = torch.optim.Adam(transform.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_trap_7_deepcopy_after_use() -> None:
    transform = shaken(ours.affine_autoregressive(FEATURES, hidden_dims=[16]))
    x = torch.randn(3, FEATURES, requires_grad=True)
    y = transform(x)
    torch.testing.assert_close(copy.deepcopy(transform)(x), y)


@pytest.mark.parametrize("kind", [ours.MAF, ours.IAF])
def test_trap_8_flows_of_either_direction_pickle_copy_and_save(kind: Any) -> None:
    transform = shaken(kind(FEATURES, hidden_features=(16,), transforms=2))
    x = torch.randn(3, FEATURES)
    y = transform(x)
    for again in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        torch.testing.assert_close(again(x), y)
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    other = kind(FEATURES, hidden_features=(16,), transforms=2)
    other.load_state_dict(torch.load(buffer))
    torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(transform.inv(y), x, rtol=1e-3, atol=1e-4)


def test_trap_5_double_networks_invert_under_a_single_default() -> None:
    transform = ours.affine_autoregressive(FEATURES, hidden_dims=[16]).double()
    shaken(transform)
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    y = transform(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(transform.inv(y.clone()), x, rtol=1e-9, atol=1e-9)


def test_log_determinant_is_that_of_the_jacobian() -> None:
    transform = shaken(ours.affine_autoregressive(FEATURES, hidden_dims=[16]).double())
    x = torch.randn(FEATURES, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(transform, x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), expected)


def test_density_model_is_fitted_by_svi_and_predicts() -> None:
    pyro.set_rng_seed(0)
    density = ours.GaussianMADE(3, hidden_features=(16,))
    data = torch.randn(200, 3) * 0.5 + 1

    def model(x: Tensor | None = None) -> Tensor:
        pyro.module("density", density)
        with pyro.plate("rows", 200):
            return pyro.sample("x", density(), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    first = svi.step(data)
    for _ in range(150):
        last = svi.step(data)
    assert last < first - 50
    samples = Predictive(model, {}, num_samples=4, guide=lambda: None)()["x"]
    assert samples.shape == (4, 200, 3)
    assert (samples.mean(dim=(0, 1)) - 1).abs().max() < 0.3


def test_networks_share_no_activation() -> None:
    """A hook on that of one would be on those of all."""
    first, second = (ours.affine_autoregressive(2) for _ in range(2))
    assert first.arn.f is not second.arn.f
