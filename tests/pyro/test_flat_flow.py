"""A flow whose weights are one vector: who changes whom, gradients, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from made_flows.models.variational import posterior_flow
from made_flows.pyro import AutoIAF
from made_flows.pyro.flat_flow import FlatFlow

FLOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "spline": {"bijection": "spline"},
    "residual": {"residual": True},
}


def _flat(name: str = "plain") -> FlatFlow:
    flow = posterior_flow(torch.randn(3), 0.7, hidden_features=(8, 8), **FLOWS[name])
    transform = FlatFlow(flow)
    with torch.no_grad():
        transform.weights.add_(0.1 * torch.randn_like(transform.weights))
    return transform


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "to data": lambda t, z: t.to_data(z)[0],
    "to noise": lambda t, z: t.to_noise(z)[0],
    "density": lambda t, z: t.to_noise(z)[1],
    "with its score": lambda t, z: t.sample_with_score(z).x,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FLOWS)
def test_the_vector_has_the_gradient_of_the_flow(name: str, way: str) -> None:
    transform, z = _flat(name).double(), torch.randn(4, 3, dtype=torch.float64)
    value = WAYS[way](transform, z)
    (found,) = torch.autograd.grad(value.square().sum(), transform.weights)
    flow = copy.deepcopy(transform.flow).requires_grad_()
    value = flow.to_data(z)[0] if way in ("to data", "with its score") else flow.to_noise(z)
    value = value if isinstance(value, torch.Tensor) else value[way == "density"]
    expected = torch.autograd.grad(value.square().sum(), list(flow.parameters()))
    torch.testing.assert_close(found, torch.cat([gradient.flatten() for gradient in expected]))


CHANGES: dict[str, Callable[[FlatFlow], Any]] = {
    "the vector": lambda t: t.weights.detach().mul_(1.2),
    "the vector's data": lambda t: setattr(t.weights, "data", t.weights.data * 1.2),
    "another vector": lambda t: setattr(t, "weights", torch.nn.Parameter(t.weights.detach() * 1.2)),
    "the flow's weights": lambda t: [w.mul_(1.2) for w in t.flow.parameters()],
    "their data": lambda t: [setattr(w, "data", w.data * 1.2) for w in t.flow.parameters()],
    "a state dict": lambda t: t.load_state_dict(
        {
            **t.state_dict(),
            **{f"flow.{name}": weight * 1.2 for name, weight in t.flow.named_parameters()},
        }
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_the_other_follows(change: str) -> None:
    transform, z = _flat(), torch.randn(4, 3)
    expected = transform.weights.detach() * 1.2
    CHANGES[change](transform)
    x = transform.to_data(z)[0]  # with the vector's gradients
    torch.testing.assert_close(transform.weights.detach(), expected)
    torch.testing.assert_close(transform.flow.to_data(z)[0], x.detach())
    with torch.no_grad():
        torch.testing.assert_close(transform.to_data(z)[0], x)


def test_copies_are_their_own() -> None:
    transform, z = _flat(), torch.randn(4, 3)
    x = transform.to_data(z)[0]
    written = pickle.dumps(transform)
    for again in (pickle.loads(written), copy.deepcopy(transform)):
        torch.testing.assert_close(again.to_data(z)[0], x)
        torch.testing.assert_close(again.flow.to_data(z)[0], x.detach())
        again.double().weights.data.add_(1.0)
        torch.testing.assert_close(transform.to_data(z)[0], x)
    shared = copy.copy(transform)  # as for a memory of its own
    shared.weights.data.mul_(1.2)
    torch.testing.assert_close(transform.to_data(z), shared.to_data(z))
    assert len(written) < 6 * transform.weights.numel() * 4 + 40_000


def test_torch_func_sees_the_vector() -> None:
    transform, z = _flat(), torch.randn(4, 3)
    other = {"weights": transform.weights.detach() * 1.2}
    found = torch.func.functional_call(transform, other, (z,))
    with torch.no_grad():
        transform.weights.mul_(1.2)
    torch.testing.assert_close(found, transform.to_data(z)[0])


def test_svi_trains_one_parameter() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    for kind in (None, "spline"):
        pyro.clear_param_store()
        guide = AutoIAF(model, hidden_features=(8,), bijection=kind)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        svi.step()
        before = guide.transform.weights.detach().clone()
        svi.step()
        assert list(pyro.get_param_store()) == ["AutoIAF.transform$$$weights"]
        assert not torch.equal(guide.transform.weights, before)
        assert [name for name, _ in guide.named_parameters()] == ["transform.weights"]


def _points() -> None:
    pyro.sample("x", dist.Normal(torch.ones(3), 0.5).to_event(1))


def _loss(guide: AutoIAF) -> torch.Tensor:
    return Trace_ELBO(8, vectorize_particles=True).differentiable_loss(_points, guide)


def _trained(weights: Callable[[AutoIAF], Any]) -> tuple[AutoIAF, torch.Tensor]:
    """A guide after three steps of an optimiser over some weights, with clipped gradients."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    guide = AutoIAF(_points, hidden_features=(8,))
    guide()
    optimizer = torch.optim.Adam(weights(guide), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(guide).backward()
        torch.nn.utils.clip_grad_norm_(weights(guide), 0.5)
        optimizer.step()
    return guide, guide.transform.weights.detach()


def test_an_optimiser_may_have_the_flow_s_weights_or_the_guide_s() -> None:
    guide, expected = _trained(lambda g: g.parameters())
    assert sum(w.numel() for w in guide.parameters()) == len(expected)
    other, found = _trained(lambda g: g.flow.parameters())
    assert sum(w.numel() for w in other.flow.parameters() if w.requires_grad) == len(found)
    torch.testing.assert_close(found, expected)
    # Clipped by the one, trained by the other: gradients are in one memory.
    other.zero_grad()
    _loss(other).backward()
    torch.nn.utils.clip_grad_norm_(other.flow.parameters(), 1e-3)
    assert float(other.transform.weights.grad.norm()) == pytest.approx(1e-3, rel=0.01)


def test_a_loss_of_the_flow_itself_trains_the_guide() -> None:
    guide = AutoIAF(_points, hidden_features=(8,))
    guide()
    x = torch.randn(20, 3)
    for _ in range(2):  # the second adds to the first
        (-guide.flow().log_prob(x).mean()).backward()
    other = copy.deepcopy(guide)
    (-2 * other.log_prob(x).mean()).backward()
    torch.testing.assert_close(guide.transform.weights.grad, other.transform.weights.grad)


def test_frozen_weights() -> None:
    guide = AutoIAF(_points, hidden_features=(8,))
    guide()
    guide.flow.requires_grad_(False)
    assert not guide()["x"].requires_grad
    next(iter(guide.flow.parameters())).requires_grad_(True)
    with pytest.raises(ValueError, match="all weights trained or none"):
        guide()
    guide.flow.requires_grad_(True)
    _loss(guide).backward()
    guide.requires_grad_(False).eval()
    assert not guide()["x"].requires_grad


def test_a_weight_in_two_places_is_refused() -> None:
    transform = _flat()
    first, second = (flow.conditioner.layers[0] for flow in list(transform.flow.transforms)[-2:])
    second.weight = first.weight
    with pytest.raises(ValueError, match=r"Expected guide\.flow to have each weight in one place"):
        transform.to_data(torch.randn(4, 3))


def _load_store(guide: AutoIAF, folder: Any) -> None:
    pyro.clear_param_store()
    pyro.get_param_store().load(folder / "store")
    pyro.module("AutoIAF.transform", guide.transform, update_module_params=True)


def test_the_store_and_pickles_keep_what_was_trained(tmp_path: Any) -> None:
    guide, weights = _trained(lambda g: g.flow.parameters())
    again = pickle.loads(pickle.dumps(guide))
    torch.testing.assert_close(again.transform.weights.detach(), weights)
    _ = again.flow
    (-again.log_prob(torch.randn(4, 3)).mean()).backward()
    assert all(w.grad is not None for w in again.flow.parameters())
    svi = SVI(_points, guide, pyro.optim.ClippedAdam({"lr": 0.01}), Trace_ELBO())
    svi.step()
    pyro.get_param_store().save(tmp_path / "store")
    kept, median = guide.transform.weights.detach().clone(), guide.median()["x"]
    svi.step()
    newer, newer_median = copy.deepcopy(guide.state_dict()), guide.median()["x"]
    assert not torch.equal(newer_median, median)
    _load_store(guide, tmp_path)
    assert torch.equal(guide.median()["x"], median)  # whatever is asked first
    _load_store(guide, tmp_path)
    guide.load_state_dict(newer)
    assert torch.equal(guide.median()["x"], newer_median)
    _load_store(guide, tmp_path)
    torch.testing.assert_close(guide.transform.weights.detach(), kept)
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(guide.flow.parameters()), kept)
