"""The exact slow way: equal to the fast one, with derivatives of every order and mode."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.utils import prune

import made_flows as mf
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.inverse.d_pass import SlowInverseWarning, d_pass_inverse
from made_flows.inverse.dispatch import backend
from made_flows.inverse.per_row import sample_row_orders
from made_flows.inverse.steps import BijectionStep
from made_flows.univariate.bijections import Affine
from made_flows.univariate.heads import Head
from tests.helpers.density_models import context_of, made_of, scatter
from tests.helpers.inverse_checks import STEPS, each_backend, made_for, noise_of

F64 = torch.float64


@pytest.mark.parametrize("name", STEPS)
def test_values_are_those_of_the_fast_way(name: str) -> None:
    step = STEPS[name](5)
    made = made_for(step, features=5, order=[3, 0, 4, 1, 2], context=2)
    noise, context = noise_of(step, 4, 5), context_of(made, 4)
    slow = d_pass_inverse(lambda x: made.evaluate(x, context), made.ranks, step, noise)
    fast = sequential_inverse(made, step, noise, context)
    assert slow.dtype == fast.dtype
    torch.testing.assert_close(slow, fast.detach(), rtol=1e-9, atol=1e-9)


def test_ranks_known_and_ranks_of_every_row() -> None:
    step = STEPS["sampling, Gaussian"](4)
    made = made_for(step, features=4)
    noise, known = noise_of(step, 3, 4), torch.randn(3, 4, dtype=F64)
    slow = d_pass_inverse(made.evaluate, made.ranks, step, noise, known=known, prefix=2)
    fast = sequential_inverse(made, step, noise, known=known, prefix=2)
    torch.testing.assert_close(slow, fast, rtol=1e-9, atol=1e-9)
    counts = torch.tensor([0, 4, 2])
    rows = d_pass_inverse(
        made.evaluate, made.ranks.expand(3, 4), step, noise, known=known, prefix=counts
    )
    for row, count in enumerate(counts.tolist()):
        of_row = sequential_inverse(made, step, noise[row], known=known[row], prefix=count)
        torch.testing.assert_close(rows[row], of_row, rtol=1e-9, atol=1e-9)


def _solved(made: mf.MADE) -> Any:
    step = BijectionStep(Affine().double(), "forward")
    return lambda u: d_pass_inverse(made.evaluate, made.ranks, step, u.unsqueeze(-1), dtype=F64)


# Torch compiles a decomposition of its own for forward mode.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_derivatives_of_every_order_and_mode() -> None:
    made = made_of(features=3, activation="tanh", parameters=2)
    solve, u = _solved(made), torch.randn(2, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, u)
    assert torch.autograd.gradgradcheck(solve, u)
    forward = torch.func.jacfwd(solve)(u.detach()[0])
    torch.testing.assert_close(forward, torch.func.jacrev(solve)(u.detach()[0]))


def test_networks_mapped_over() -> None:
    networks = [made_of(features=3, parameters=2) for _ in range(4)]
    weights, buffers = torch.func.stack_module_state(networks)  # type: ignore[no-untyped-call]
    step, u = BijectionStep(Affine().double(), "forward"), torch.randn(5, 3, 1, dtype=F64)

    def solve(weights: Any, buffers: Any) -> Tensor:
        def evaluate(x: Tensor) -> Tensor:
            state = (weights, buffers)
            return torch.as_tensor(torch.func.functional_call(networks[0], state, (x,)))

        return d_pass_inverse(evaluate, buffers["ranks"], step, u)

    mapped = torch.vmap(solve)(weights, buffers)
    for made, x in zip(networks, mapped, strict=True):
        torch.testing.assert_close(x, sequential_inverse(made, step, u).detach())


# ---------------------------------------------------------------------- networks not understood


class Wrapped(nn.Module):
    """A layer and a low-rank update that may read what the layer may, as LoRA has it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.update = nn.Parameter(torch.randn_like(layer.weight) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x) + x @ (self.update * self.layer.mask).T)


class Doubled(mf.MADE):
    """A network with a pass of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(*args, **kwargs)


def _hook_layer(made: mf.MADE) -> None:
    made.layers[1].register_forward_hook(lambda module, args, output: output.tanh())


def _pre_hook_layer(made: mf.MADE) -> None:
    made.layers[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def _hook_network(made: mf.MADE) -> None:
    made.register_forward_hook(lambda module, args, output: output * 2)


def _hook_activation(made: mf.MADE) -> None:
    made.activation.register_forward_hook(lambda module, args, output: output * 2)


def _wrap_first(made: mf.MADE) -> None:
    made.layers[0] = Wrapped(made.layers[0])


def _wrap_last(made: mf.MADE) -> None:
    made.layers[2] = Wrapped(made.layers[2])


def _patch_layer(made: mf.MADE) -> None:
    layer = made.layers[1]
    before = layer.forward
    layer.forward = lambda x, mask=None: before(x, mask) + 1  # type: ignore[method-assign]


def _patch_network(made: mf.MADE) -> None:
    before = made.forward
    made.forward = lambda x, context=None: before(x, context) * 2  # type: ignore


def _subclass_layer(made: mf.MADE) -> None:
    base = type(made.layers[1])

    class Shifted(base):  # type: ignore[valid-type, misc]
        def forward(self, x: Tensor, mask: Any = None) -> Tensor:
            return torch.as_tensor(super().forward(x, mask) + 1)

    made.layers[1].__class__ = Shifted


def _subclass_network(made: mf.MADE) -> None:
    made.__class__ = Doubled


CHANGES = {
    "a hook on a layer": _hook_layer,
    "a pre-hook on a layer": _pre_hook_layer,
    "a hook on the network": _hook_network,
    "a hook on the activation": _hook_activation,
    "the first layer wrapped": _wrap_first,
    "the last layer wrapped": _wrap_last,
    "a layer's forward replaced": _patch_layer,
    "the network's forward replaced": _patch_network,
    "a subclass of a layer": _subclass_layer,
    "a subclass of the network": _subclass_network,
}


@each_backend
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [False, True], ids=["at once", "after a sample"])
def test_what_scores_is_what_samples(change: str, before: bool, choice: str) -> None:
    flow = scatter(mf.MAF(4, transforms=1, hidden_features=(8, 8)).double())
    with backend(choice):
        if before:
            flow().sample((2,))
        transform = next(m for m in flow.modules() if isinstance(m, mf.MADE))
        CHANGES[change](transform)
        with pytest.warns(SlowInverseWarning, match=r"4 passes .* because"):
            x, log_q = flow().rsample_and_log_prob((5,))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            x, log_q = flow().rsample_and_log_prob((5,))
    torch.testing.assert_close(log_q, flow().log_prob(x), rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(x.sum(), transform.layers[1].bias)
    assert bool(gradient.ne(0).any())


@pytest.mark.parametrize("change", CHANGES)
def test_samples_of_a_head_follow_what_scores(change: str) -> None:
    model = mf.GaussianMADE(3, hidden_features=(8, 8), dropout=0.5).double()
    scatter(model)
    CHANGES[change](model.made)
    model.train()
    noise = torch.randn(6, 3, 1, dtype=F64)
    with pytest.warns(SlowInverseWarning):
        x = sequential_inverse(model.made, HeadStep(model.head), noise)
    again = model.head.step(noise, model.eval().made(x))
    torch.testing.assert_close(x, again, rtol=1e-8, atol=1e-8)


def test_weights_that_are_computed_are_understood() -> None:
    for computed in (
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):
        made = made_of(features=4, parameters=2, hidden_features=(8, 8))
        step, u = BijectionStep(Affine().double(), "forward"), torch.randn(3, 4, 1, dtype=F64)
        sequential_inverse(made, step, u)
        computed(made.layers[1])  # type: ignore[no-untyped-call, operator]
        x = sequential_inverse(made, step, u)
        torch.testing.assert_close(x, step(u, made(x)), rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------------- heads by feature


class Scaled(Head):
    """Normal values, each feature with a scale of its own."""

    outputs, support = 1, constraints.real

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.scales = scales

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return torch.distributions.Normal(parameters[..., 0], self.scales).log_prob(x)

    def noise(self, shape: Any, like: Tensor) -> Tensor:
        return torch.randn(*shape, 1, dtype=like.dtype)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return parameters[..., 0] + self.scales * noise[..., 0]

    def step_at(self, noise: Tensor, parameters: Tensor, features: Tensor) -> Tensor:
        return parameters[..., 0] + self.scales[features] * noise[..., 0]


def test_a_head_is_told_which_features_it_draws() -> None:
    made = made_of(features=4, parameters=1, order=[2, 0, 3, 1])
    head = Scaled(torch.tensor([1e-3, 1.0, 1e3, 1e6], dtype=F64))
    x = mf.DensityModel(made, head)().sample((500,))
    spread = (x - made(x)[..., 0]).std(dim=0)
    torch.testing.assert_close(spread, head.scales, rtol=0.2, atol=0)


ROW_CHANGES = [name for name in CHANGES if "wrapped" not in name and "forward" not in name]


@pytest.mark.parametrize("change", [None, *ROW_CHANGES])
def test_orders_of_every_row_follow_what_scores(change: str | None) -> None:
    made = made_of(features=4, parameters=1, hidden_features=(8, 8))
    head = Scaled(torch.tensor([1e-3, 1.0, 1e3, 1e6], dtype=F64))
    noise, order = torch.randn(7, 4, 1, dtype=F64), torch.rand(7, 4).argsort(dim=-1)
    values, known = torch.randn(7, 4, dtype=F64), torch.arange(7) % 5
    if change is None:
        x = sample_row_orders(made, head, noise, order, values, known)
    else:
        CHANGES[change](made)
        with pytest.warns(SlowInverseWarning):
            x = sample_row_orders(made, head, noise, order, values, known)
    again = head.step(noise, made(x, order=order))
    expected = torch.where(order.argsort(dim=-1) < known[:, None], values, again)
    torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)
