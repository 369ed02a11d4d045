"""Path gradients of plain flows in one function: against autograd through the flow itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.models import affine_path, affine_steps
from made_flows.models.affine_path import sample_plain
from made_flows.models.variational import posterior_flow

F64 = torch.float64
FLOWS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"transforms": 1},
    "relu, not direct": {"activation": "relu", "direct": False},
    "sigmoid, own order": {"activation": "sigmoid", "order": [2, 0, 1, 3]},
    "in units": {
        "origin": torch.randn(4),
        "units": 0.3 * torch.ones(4, 4).tril(-1) + 2 * torch.eye(4),
    },
    "damped": {"gain": 0.1, "hidden_features": (8,)},
}


def _flow(name: str) -> mf.Flow:
    flow = posterior_flow(torch.randn(4), 0.7, **{"hidden_features": (16, 16), **FLOWS[name]})
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return flow.double()


@pytest.mark.parametrize("way", ["compiled", "Jacobian", "sweep"])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_are_those_of_the_flow(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affine_steps, "JACOBIAN_UP_TO", 0 if way == "sweep" else 100)
    monkeypatch.setattr(affine_path, "SMALL", 2**16 if way == "compiled" else 0)
    flow, z = _flow(name), torch.randn(3, 5, 4, dtype=F64, requires_grad=True)
    of_x, of_log_det = torch.randn(3, 5, 4, dtype=F64), torch.randn(3, 5, dtype=F64)
    losses = [
        lambda x, log_det: (of_x * x).sum(),
        lambda x, log_det: (of_log_det * log_det).sum(),
        lambda x, log_det: (of_x * x).sum() + (of_log_det * log_det).sum(),
    ]
    weights = list(flow.parameters())
    sample = sample_plain(flow, z, weights)
    assert sample is not None
    for loss in losses:
        found = torch.autograd.grad(
            loss(sample.x, sample.log_det), [z, *weights], retain_graph=True
        )
        expected = torch.autograd.grad(
            loss(*flow.to_data(z)), [z, *weights], materialize_grads=True
        )
        torch.testing.assert_close(found, expected)


def test_one_vector_has_the_gradients_of_all_weights() -> None:
    flow, z = _flow("default"), torch.randn(5, 4, dtype=F64)
    weights = list(flow.parameters())
    vector = torch.cat([weight.detach().flatten() for weight in weights]).requires_grad_()
    found, expected = (sample_plain(flow, z, weights, given) for given in (vector, None))
    (of_vector,) = torch.autograd.grad(found.x.square().sum(), vector)
    of_weights = torch.autograd.grad(expected.x.square().sum(), weights)
    torch.testing.assert_close(
        of_vector, torch.cat([gradient.flatten() for gradient in of_weights])
    )


def test_weights_may_change_before_the_way_back() -> None:
    flow, z = _flow("default"), torch.randn(5, 4, dtype=F64)
    weights = list(flow.parameters())
    expected = torch.autograd.grad(flow.to_data(z)[0].square().sum(), weights)
    x = sample_plain(flow, z, weights).x.mul_(1)  # samples may be changed in place
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.5)
    torch.testing.assert_close(torch.autograd.grad(x.square().sum(), weights), expected)


def _hooked(flow: mf.Flow) -> mf.Flow:
    flow.transforms[1].conditioner.layers[0].register_forward_hook(lambda module, inputs, out: out)
    return flow


def _over(flow: mf.Flow, base: Any) -> mf.Flow:
    return mf.Flow(list(flow.transforms), base)


def _tied(flow: mf.Flow) -> mf.Flow:
    first, second = (flow.transforms[place].conditioner.layers[0] for place in (2, 3))
    second.weight = first.weight
    return flow


OTHERS = {
    "spline": lambda: posterior_flow(torch.zeros(4), bijection="spline"),
    "residual": lambda: posterior_flow(torch.zeros(4), residual=True),
    "dropout": lambda: posterior_flow(torch.zeros(4), dropout=0.1),
    "silu": lambda: posterior_flow(torch.zeros(4), activation="silu"),
    "hooks": lambda: _hooked(posterior_flow(torch.zeros(4))),
    "tied weights": lambda: _tied(posterior_flow(torch.zeros(4))),
    "MAF": lambda: mf.MAF(4),
    "another base": lambda: _over(posterior_flow(torch.zeros(4)), mf.GaussianMADE(4)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_flows_of_other_kinds_are_left_alone(name: str) -> None:
    flow, z = OTHERS[name](), torch.randn(3, 4)
    weights: list[Tensor] = list(flow.parameters())
    assert sample_plain(flow, z, weights) is None
