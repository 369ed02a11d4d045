"""The exact slow way: equal to the fast one, with derivatives of every order and mode."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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
from made_flows.nn.linear import MaskedLinear
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


def _hook_all(made: mf.MADE) -> None:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return output.tanh() if isinstance(module, MaskedLinear) else None

    nn.modules.module.register_module_forward_hook(hook)


def _pre_hook_all(made: mf.MADE) -> None:
    def hook(module: nn.Module, args: Any) -> Any:
        return (args[0] + 1, *args[1:]) if isinstance(module, MaskedLinear) else None

    nn.modules.module.register_module_forward_pre_hook(hook)


@pytest.fixture(autouse=True)
def _no_hook_stays() -> Iterator[None]:
    yield
    hooks = nn.modules.module
    for table in (hooks._global_forward_hooks, hooks._global_forward_pre_hooks):
        table.clear()
    for table in (hooks._global_backward_hooks, hooks._global_backward_pre_hooks):
        table.clear()


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


class Evaluating(mf.MADE):
    """A network whose pass makes use of the class's public methods."""

    def forward(self, x: Tensor, context: Any = None, order: Any = None) -> Tensor:
        made = self if order is None else self.arranged(order[0])
        return made.evaluate(x, context).tanh()


def _subclass_evaluates(made: mf.MADE) -> None:
    made.__class__ = Evaluating


def _hook_evaluates(made: mf.MADE) -> None:
    made.register_forward_hook(lambda made, args, output: output + made.evaluate(*args[:1]))


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
    "a subclass that evaluates itself": _subclass_evaluates,
    "a hook that evaluates the network": _hook_evaluates,
    "a hook on all modules": _hook_all,
    "a hook before all modules": _pre_hook_all,
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


# ---------------------------------------------------------------------- hooks on gradients


def _halved(module: nn.Module, inputs: Any, outputs: Any = None) -> Any:
    given = inputs if outputs is None else outputs
    return tuple(None if gradient is None else gradient / 2 for gradient in given)


GRADIENT_HOOKS = {
    "a layer": lambda made: made.layers[1].register_full_backward_hook(
        lambda layer, inputs, outputs: _halved(layer, inputs)
    ),
    "before a layer": lambda made: made.layers[1].register_full_backward_pre_hook(_halved),
    "the activation": lambda made: made.activation.register_full_backward_hook(
        lambda layer, inputs, outputs: _halved(layer, inputs)
    ),
    "the network": lambda made: made.register_full_backward_pre_hook(_halved),
    "all modules": lambda made: nn.modules.module.register_module_full_backward_pre_hook(_halved),
}


@pytest.mark.filterwarnings("ignore:Full backward hook")  # of data, which ask for no gradient
@pytest.mark.parametrize("place", GRADIENT_HOOKS)
def test_hooks_on_gradients_are_followed(place: str) -> None:
    made = made_of(features=3, parameters=2, hidden_features=(8, 8), activation="tanh")
    step, u = BijectionStep(Affine().double(), "forward"), torch.randn(3, 3, 1, dtype=F64)
    without = _gradients(made, sequential_inverse(made, step, u))
    GRADIENT_HOOKS[place](made)
    with pytest.warns(SlowInverseWarning, match="backward hooks"):
        x = sequential_inverse(made, step, u)
    right = d_pass_inverse(made, made.ranks, step, u)
    assert _gradients(made, x) != without
    assert _gradients(made, x) == pytest.approx(_gradients(made, right), rel=1e-9)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # values do not depend on them
        torch.testing.assert_close(sequential_inverse(made, step, u), x)


def _gradients(made: mf.MADE, x: Tensor) -> list[float]:
    weights = [layer.weight for layer in made.layers]
    gradients = torch.autograd.grad(x.square().sum(), weights, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).tolist()


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


ROW_CHANGES = [name for name in CHANGES if "network's forward" not in name and "eval" not in name]


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
