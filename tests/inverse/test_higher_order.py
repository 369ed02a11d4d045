"""Derivatives that the sweeps do not have: equal to those of D passes, with a warning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import made_flows as mf
from made_flows.inverse import HeadStep, Step, sequential_inverse
from made_flows.inverse.d_pass import SlowInverseWarning
from made_flows.inverse.steps import BijectionStep
from made_flows.univariate.bijections import Affine
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import NETWORKS, context_of
from tests.helpers.inverse_checks import STEPS, each_backend, made_for, noise_of

F64 = torch.float64
OPTIONS = ["plain", "context, residual, direct", "graph"]
CASES = ["sampling, Gaussian", "inverse, affine", "forward, spline", "inverse, damped"]

# torch takes some derivatives in forward mode through its own, deprecated, TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def problem(name: str, option: str = "plain") -> tuple[Any, Step, Tensor, Tensor | None]:
    step = STEPS[name](4)
    owner: Any = step.head if isinstance(step, HeadStep) else step.bijection  # type: ignore[attr-defined]
    made = NETWORKS[option](4, parameters=owner.outputs, activation="tanh")
    return made, step, noise_of(step, 3, 4), context_of(made, 3)


Inverse = Callable[..., Tensor]


def loss_of(inverse: Inverse, made: Any, step: Step, context: Tensor | None) -> Any:
    weights = torch.linspace(0.5, 2.0, 12, dtype=F64).reshape(3, 4)
    return lambda noise: (inverse(made, step, noise, context) * weights).pow(2).sum()


TRANSFORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "jvp": lambda f, u: torch.func.jvp(f, (u,), (u,))[1],
    "jacfwd": lambda f, u: torch.func.jacfwd(f)(u),
    "hessian": lambda f, u: torch.func.hessian(f)(u),
    "jacrev of jacrev": lambda f, u: torch.func.jacrev(torch.func.jacrev(f))(u),
    "functional hessian": torch.autograd.functional.hessian,
    "functional jvp": lambda f, u: torch.autograd.functional.jvp(f, u, u)[1],
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_those_of_d_passes(transform: str, name: str, option: str) -> None:
    made, step, noise, context = problem(name, option)
    take = TRANSFORMS[transform]
    expected = take(loss_of(d_pass_inverse, made, step, context), noise)
    with pytest.warns(SlowInverseWarning, match="derivatives") as seen:
        ours = take(loss_of(sequential_inverse, made, step, context), noise)
    assert len(seen) == 1
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


def test_dual_numbers_are_those_of_d_passes() -> None:
    made, step, noise, _ = problem("sampling, Gaussian")
    tangents = []
    for inverse in (sequential_inverse, d_pass_inverse):
        with torch.autograd.forward_ad.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowInverseWarning)
            dual = torch.autograd.forward_ad.make_dual(noise, noise)
            with torch.no_grad() if inverse is sequential_inverse else torch.enable_grad():
                values = inverse(made, step, dual)
            tangents.append(torch.autograd.forward_ad.unpack_dual(values).tangent)
    torch.testing.assert_close(*tangents, rtol=1e-9, atol=1e-10)


def test_samples_beside_dual_numbers_stay_fast() -> None:
    made, step, noise, _ = problem("sampling, Gaussian")
    with torch.autograd.forward_ad.dual_level():
        sequential_inverse(made, step, noise)  # a warning would be an error here


@each_backend
@pytest.mark.parametrize("option", OPTIONS)
def test_a_gradient_penalty_trains_everything(choice: str, option: str) -> None:
    made, step, noise, context = problem("sampling, Gaussian", option)
    noise = noise.requires_grad_()
    leaves = [noise, *made.parameters(), *([] if context is None else [context.requires_grad_()])]

    def penalty(inverse: Inverse) -> list[Tensor | None]:
        values = inverse(made, step, noise, context).pow(2).sum()
        slopes = torch.autograd.grad(values, leaves, create_graph=True)
        size = torch.stack([slope.pow(2).sum() for slope in slopes]).sum()
        return list(torch.autograd.grad(size + values, leaves, allow_unused=True))

    with mf.inverse.dispatch.backend(choice), pytest.warns(SlowInverseWarning) as seen:
        ours = penalty(sequential_inverse)
    assert len(seen) == 1
    for mine, reference in zip(ours, penalty(d_pass_inverse), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-9)


def test_gradgradcheck_with_known_values() -> None:
    step = STEPS["inverse, affine, exp"](3)
    made = made_for(step, features=3, hidden_features=(5,), activation="tanh", context=1)
    noise, known = noise_of(step, 2, 3).requires_grad_(), torch.randn(2, 3, dtype=F64)
    context = context_of(made, 2)
    assert context is not None
    leaves = (noise, known.requires_grad_(), context.requires_grad_(), *made.parameters())

    def call(noise: Tensor, known: Tensor, context: Tensor, *_: Tensor) -> Tensor:
        return sequential_inverse(made, step, noise, context, known=known, prefix=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowInverseWarning)
        assert torch.autograd.gradgradcheck(call, leaves)


def test_what_leads_to_noise_is_counted_once() -> None:
    """Weights that the noise depends on too, as where two transforms share a network."""
    made, step, noise, _ = problem("inverse, affine")
    leaves = list(made.parameters())

    def twice(inverse: Inverse) -> list[Tensor]:
        once = inverse(made, step, noise).unsqueeze(-1)
        loss = inverse(made, step, 0.5 * once).pow(2).sum()
        slopes = torch.autograd.grad(loss, leaves, create_graph=True)
        total = torch.stack([slope.pow(2).sum() for slope in slopes]).sum()
        return list(torch.autograd.grad(total, leaves))

    with pytest.warns(SlowInverseWarning):
        ours = twice(sequential_inverse)
    for mine, reference in zip(ours, twice(d_pass_inverse), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-9)


def test_a_graph_that_is_not_used_costs_no_passes() -> None:
    made, step, noise, _ = problem("sampling, Gaussian")
    leaves = [noise.requires_grad_(), *made.parameters()]
    loss = sequential_inverse(made, step, noise).pow(2).sum()
    ours = torch.autograd.grad(loss, leaves, create_graph=True)  # no warning
    expected = torch.autograd.grad(d_pass_inverse(made, step, noise).pow(2).sum(), leaves)
    for mine, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-10)


class Sampler(nn.Module):
    def __init__(self, made: Any, step: Step) -> None:
        super().__init__()
        self.made, self.step = made, step
        self.inverse: Inverse = sequential_inverse

    def forward(self, noise: Tensor) -> Tensor:
        return self.inverse(self.made, self.step, noise)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_records_gradients() -> None:
    made, step, noise, _ = problem("sampling, Gaussian")
    with pytest.warns(SlowInverseWarning, match="trace"):
        traced = torch.jit.trace(Sampler(made, step), noise, check_trace=False)
    other = torch.randn_like(noise).requires_grad_()
    values, expected = traced(other), d_pass_inverse(made, step, other)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-10)
    [ours] = torch.autograd.grad(values.pow(2).sum(), other)
    [reference] = torch.autograd.grad(expected.pow(2).sum(), other)
    torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", STEPS)
def test_meta_tensors_have_shapes_and_gradients(name: str) -> None:
    step = copy.deepcopy(STEPS[name](4))
    made = made_for(step, features=4, context=2).to("meta")
    step = HeadStep(step.head.to("meta")) if isinstance(step, HeadStep) else BijectionStep(
        step.bijection.to("meta"), step.direction  # type: ignore[attr-defined]
    )  # fmt: skip
    noise = noise_of(step, 3, 4).to("meta")
    values = sequential_inverse(made, step, noise, torch.zeros(3, 2, dtype=F64, device="meta"))
    assert values.shape == (3, 4)
    assert values.is_meta
    if step.differentiable:
        values.sum().backward()


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
def test_third_derivatives() -> None:
    made, step, noise, _ = problem("sampling, Gaussian")
    leaves = [noise.requires_grad_(), *made.parameters()]

    def third(inverse: Inverse) -> list[Tensor]:
        value = inverse(made, step, noise).pow(3).sum()
        for _ in range(2):
            slopes = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            value = torch.stack([slope.sin().sum() for slope in slopes]).sum()
        return list(torch.autograd.grad(value, leaves))

    for mine, reference in zip(third(sequential_inverse), third(d_pass_inverse), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_were_lent_for_the_call(frozen: bool) -> None:
    made, step, noise, _ = problem("sampling, Gaussian")
    noise, sampler = noise.requires_grad_(), Sampler(made, step)
    others = {
        name: (0.5 * p.detach()).requires_grad_(not frozen)
        for name, p in sampler.named_parameters()
    }
    leaves = [noise, *([] if frozen else others.values())]
    found = []
    for inverse in (sequential_inverse, d_pass_inverse):
        sampler.inverse = inverse
        value = torch.func.functional_call(sampler, others, (noise,)).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        total = torch.stack([slope.pow(2).sum() for slope in first]).sum()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowInverseWarning)
            found.append([*first, *torch.autograd.grad(total, leaves)])
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-9)


class Stretched(Affine):
    """A bijection with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, self.stretch * parameters)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().inverse(y, self.stretch * parameters)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_of_the_step(frozen: bool) -> None:
    made, _, noise, _ = problem("inverse, affine")
    made.requires_grad_(not frozen)
    bijection = Stretched().double()
    step, leaf = BijectionStep(bijection, "inverse"), bijection.stretch
    found = []
    for inverse in (sequential_inverse, d_pass_inverse):
        [first] = torch.autograd.grad(inverse(made, step, noise).sum(), leaf, create_graph=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowInverseWarning)
            found.append([first, *torch.autograd.grad(first, leaf)])
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-9)


def _other_mask(made: Any, step: Any) -> None:
    made.layers[0].mask = torch.zeros_like(made.layers[0].mask)


def _mask_written(made: Any, step: Any) -> None:
    made.layers[0].mask.zero_()


def _other_activation(made: Any, step: Any) -> None:
    made.activation = "relu"


def _hook(made: Any, step: Any) -> None:
    made.layers[0].register_forward_hook(lambda layer, given, result: 2 * result)


def _other_scale(made: Any, step: Any) -> None:
    step.owner.scale = mf.ScaleRule("exp")


def _other_bound(made: Any, step: Any) -> None:
    step.owner.scale.bound = 0.5


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize(
    "change", [_other_mask, _mask_written, _other_activation, _hook, _other_scale, _other_bound]
)
def test_networks_that_became_others_are_refused(change: Any, differentiated: bool) -> None:
    made = NETWORKS["context"](4, parameters=2, activation="tanh")
    step, context = STEPS["sampling, Gaussian"](4), context_of(made, 3)
    noise = noise_of(step, 3, 4).requires_grad_()
    total = sequential_inverse(made, step, noise, context).sum()
    if differentiated:
        [first] = torch.autograd.grad(total, noise, create_graph=True)
        total = (first * first).sum()
    change(made, step)
    with pytest.raises(RuntimeError, match=r"to be what they were|inplace operation"):
        torch.autograd.grad(total, noise, create_graph=True)
