"""Activations: elementwise, exchanged at any time, and free to work in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import made_flows as mf
from made_flows.inverse.dispatch import backend
from made_flows.nn.activations import activate, is_elementwise, make_activation, may_overwrite
from tests.helpers.density_models import scatter
from tests.helpers.inverse_checks import each_backend

F64 = torch.float64


def _overwriting(z: Tensor) -> Tensor:
    return z.mul_(2).tanh_()


class Overwriting(nn.Module):
    """A module of one's own that works in place."""

    def forward(self, z: Tensor) -> Tensor:
        return _overwriting(z)


def _hooked() -> nn.Module:
    module = nn.Tanh()
    module.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    return module


IN_PLACE: dict[str, Any] = {
    "ReLU": lambda: nn.ReLU(inplace=True),
    "ELU": lambda: nn.ELU(inplace=True),
    "SiLU": lambda: nn.SiLU(inplace=True),
    "leaky ReLU": lambda: nn.LeakyReLU(0.1, inplace=True),
    "hard tanh": lambda: nn.Hardtanh(inplace=True),
    "a function": lambda: torch.relu_,
    "a module of one's own": Overwriting,
    "several": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Tanh()),
}


def _flow(activation: Any, **options: Any) -> mf.MAF:
    options = {"transforms": 2, "hidden_features": (12, 12, 12), **options}
    flow = mf.MAF(4, context=2, activation=activation, **options).double()
    return scatter(flow)


@each_backend
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_activations_overwrite_nothing_that_is_needed(
    name: str, residual: bool, choice: str
) -> None:
    flow = _flow(IN_PLACE[name](), residual=residual)
    context = torch.randn(5, 2, dtype=F64)
    with backend(choice):
        x, log_q = flow(context).rsample_and_log_prob()
        log_p = flow(context).log_prob(x)
        torch.testing.assert_close(log_p, log_q, rtol=1e-8, atol=1e-8)
        weights = list(flow.parameters())
        through_x = torch.autograd.grad(x.sum(), weights, allow_unused=True)
        assert any(g is not None and bool(g.ne(0).any()) for g in through_x)
        torch.autograd.grad(flow(context).log_prob(x.detach()).sum(), weights)


def test_an_in_place_activation_gives_what_its_copy_gives() -> None:
    for residual in (False, True):
        one, other = _flow(nn.ELU(inplace=True), residual=residual), _flow("elu", residual=residual)
        other.load_state_dict(one.state_dict())
        x, context = torch.randn(6, 4, dtype=F64), torch.randn(6, 2, dtype=F64)
        torch.testing.assert_close(one(context).log_prob(x), other(context).log_prob(x))


@pytest.mark.parametrize(("kind", "function"), [(nn.ELU, F.elu), (nn.LeakyReLU, F.leaky_relu)])
@pytest.mark.parametrize("constant", [-0.4, 0.0, 2.5])
def test_any_constant_can_be_trained(kind: Any, function: Any, constant: float) -> None:
    """Torch overwrites by those of which results give the gradient: not by negative ones."""
    own = mf.MADE(4, activation=kind(constant))
    other = mf.MADE(4, activation=lambda z: function(z, constant))
    other.load_state_dict(own.state_dict())
    x = torch.randn(5, 4)
    ours, theirs = (
        torch.autograd.grad(made(x).square().sum(), [*made.parameters()]) for made in (own, other)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [*IN_PLACE, "hooked"])
def test_what_is_needed_is_copied(name: str) -> None:
    module = make_activation(_hooked() if name == "hooked" else IN_PLACE[name]())
    assert may_overwrite(module)
    z = torch.linspace(-2, 2, 5)
    activate(module, z, overwrite=False)
    torch.testing.assert_close(z, torch.linspace(-2, 2, 5), rtol=0, atol=0)


def test_what_a_hook_keeps_is_not_overwritten() -> None:
    made = mf.MADE(4, hidden_features=(8,), activation="relu")
    kept: list[Tensor] = []
    made.layers[0].register_forward_hook(lambda module, args, output: kept.append(output))
    made.layers[0].register_full_backward_hook(lambda module, to_input, to_output: None)
    x = torch.randn(50, 4, requires_grad=True)
    made(x).sum().backward()
    assert bool((kept[0] < 0).any())


# ---------------------------------------------------------------------- elementwise alone

NOT_ELEMENTWISE: dict[str, Any] = {
    "softmax": lambda: nn.Softmax(dim=-1),
    "layer normalisation": lambda: nn.LayerNorm(8),
    "batch normalisation": lambda: nn.BatchNorm1d(8),
    "gated linear unit": nn.GLU,
    "slopes of every unit": lambda: nn.PReLU(8),
    "slopes of six units": lambda: nn.PReLU(6),
    "a softmax function": lambda: lambda z: F.softmax(z, dim=-1),
    "a sum": lambda: lambda z: z.sum(-1),
    "centred rows": lambda: lambda z: z - z.mean(),
    "centred columns": lambda: lambda z: z - z.mean(0),
    "noise": lambda: lambda z: z + torch.randn_like(z),
    "a linear layer": lambda: nn.Linear(8, 8),
    "no tensor": lambda: lambda z: None,
}


@pytest.mark.parametrize("name", NOT_ELEMENTWISE)
def test_what_is_not_elementwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"Expected activation to be elementwise.*; got "):
        mf.MADE(4, hidden_features=(8, 8), activation=NOT_ELEMENTWISE[name]())
    made = mf.MADE(4, hidden_features=(8, 8))
    with pytest.raises(ValueError, match=r"Expected activation to be elementwise.*; got "):
        made.activation = NOT_ELEMENTWISE[name]()
    assert type(made.activation) is nn.ReLU


ELEMENTWISE: dict[str, Any] = {
    **IN_PLACE,
    "one slope": nn.PReLU,
    "double slope": lambda: nn.PReLU().double(),
    "a class": lambda: nn.Hardswish,
    "logarithm": lambda: torch.log,
    "random slopes": nn.RReLU,
    "sine": lambda: torch.sin,
    "several modules": lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_is_elementwise_is_taken(name: str) -> None:
    activation = ELEMENTWISE[name]()
    state = torch.get_rng_state()
    module = make_activation(activation)
    assert torch.equal(torch.get_rng_state(), state)
    assert not isinstance(activation, nn.Module) or activation.training
    assert is_elementwise(module)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown name": ("rleu", ValueError, "Expected activation to be one of relu, "),
    "a number": (3, TypeError, "Expected activation to be a name, module or function; got int 3"),
    "nothing": (None, TypeError, "Expected activation to be a name, module or function; got None"),
    "a class with arguments": (nn.Threshold, TypeError,
                               "Expected activation to be a class that needs no arguments"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_activations(name: str) -> None:
    activation, error, message = BAD[name]
    with pytest.raises(error, match=message):
        mf.MADE(4, activation=activation)
    with pytest.raises(error, match=message):
        mf.MADE(4).activation = activation


# ---------------------------------------------------------------------- exchanged later


@each_backend
@pytest.mark.parametrize(
    "new",
    [nn.Tanh(), "tanh", torch.tanh, nn.Softsign(), torch.sin],
    ids=["Tanh()", "tanh", "torch.tanh", "Softsign()", "torch.sin"],
)
def test_an_activation_assigned_later_is_followed_everywhere(new: Any, choice: str) -> None:
    flow = _flow("relu")
    context = torch.randn(5, 2, dtype=F64)
    with backend(choice):
        flow(context).sample()
        for module in flow.modules():
            if isinstance(module, mf.MADE):
                module.activation = new
        x, log_q = flow(context).rsample_and_log_prob()
        torch.testing.assert_close(flow(context).log_prob(x), log_q, rtol=1e-8, atol=1e-8)
    other = _flow(new)
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other(context).log_prob(x), log_q, rtol=1e-8, atol=1e-8)
