"""Steps of the sequential inverse, and its comparison with D passes of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import made_flows as mf
from made_flows.interop.races import RacedCategory, RacedMixture
from made_flows.inverse import Conditioner, HeadStep, Step, sequential_inverse
from made_flows.inverse.dispatch import backend
from made_flows.inverse.steps import BijectionStep
from made_flows.models.variational import DampedAffine
from made_flows.univariate.bijections import Affine, GatedAffine
from made_flows.univariate.splines import RationalQuadraticSpline
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import HEADS, made_of, scatter

F64 = torch.float64

BACKENDS = ("auto", "eager")  # compiled where it can be, and never
each_backend = pytest.mark.parametrize("choice", BACKENDS)

# ---------------------------------------------------------------------- steps

BIJECTIONS: dict[str, Callable[[], Any]] = {
    "affine": Affine,
    "affine, softsign": lambda: Affine("softsign"),
    "affine, exp": lambda: Affine("exp"),
    "affine, softplus": lambda: Affine("softplus"),
    "affine, sigmoid": lambda: Affine("sigmoid"),
    "affine, clamp": lambda: Affine(mf.ScaleRule("clamp", low=-0.2, high=0.3)),
    "gated": GatedAffine,
    "spline": RationalQuadraticSpline,
    "spline, narrow": lambda: RationalQuadraticSpline(3, 1.0, min_width=0.1, min_derivative=0.2),
    "damped": lambda: DampedAffine(0.4, "softplus"),
}

STEPS: dict[str, Callable[[int], Step]] = {
    **{
        f"sampling, {name}": lambda D, make=make: HeadStep(make(D).double())
        for name, make in HEADS.items()
    },
    **{
        f"{direction}, {name}": lambda D, make=make, direction=direction: BijectionStep(
            make().double(), direction
        )
        for name, make in BIJECTIONS.items()
        for direction in ("forward", "inverse")
    },
}  # fmt: skip
"""What a rank does: constructors from the number of features."""

RACES: dict[str, Callable[[int], Step]] = {
    "raced category": lambda D: HeadStep(RacedCategory(3).double()),
    "raced mixture": lambda D: HeadStep(RacedMixture(3, "bounded").double()),
}
"""Steps of accelerated libraries, which sample on CPUs and have no score of their own."""

SMOOTH = [name for name, make in STEPS.items() if make(2).differentiable]


def owner_of(step: Any) -> Any:
    """The head or bijection of a step."""
    return step.head if isinstance(step, HeadStep) else step.bijection


def noise_of(step: Any, *shape: int) -> Tensor:
    """Noise of shape (*shape, P) for a step."""
    like = torch.zeros(0, dtype=F64)
    if isinstance(step, HeadStep):
        return step.head.noise(shape, like)
    return torch.randn(*shape, 1, dtype=F64)


def made_for(step: Any, **arguments: Any) -> mf.MADE:
    """A network with the parameters of a step, tame enough for scales without a bound."""
    owner = owner_of(step)
    made = made_of(parameters=owner.outputs, inputs=getattr(owner, "inputs", 1), **arguments)
    return scatter(made, 0.6)


# ---------------------------------------------------------------------- comparison


def same(ours: Tensor, reference: Tensor, tolerance: float = 1e-10) -> None:
    """Equal to a tolerance relative to the largest value of the same vector."""
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    if not ours.dtype.is_floating_point:
        assert torch.equal(ours, reference)
        return
    assert reference.isfinite().all()
    size = reference.detach().abs()
    size = size.amax(dim=-1, keepdim=True) if size.dim() and size.numel() else size
    assert bool(((ours - reference).abs() <= tolerance * (1 + size)).all()), (
        f"largest difference {(ours - reference).abs().max():.3g}, "
        f"largest value {reference.abs().max():.3g}"
    )


def check_values(
    conditioner: Conditioner,
    step: Step,
    noise: Tensor,
    context: Tensor | None = None,
    *,
    choices: Sequence[str] = BACKENDS,
    **more: Any,
) -> Tensor:
    """Of all backends against D passes; the values. Rows that overflow are not compared."""
    with torch.no_grad():
        reference = d_pass_inverse(conditioner, step, noise, context, **more)
        finite = reference.isfinite().all(dim=-1)
        assert finite.any() or not finite.numel()
        for choice in choices:
            with backend(choice):
                ours = sequential_inverse(conditioner, step, noise, context, **more)
            assert ours.shape == reference.shape
            same(ours[finite], reference[finite])
    return ours


def check_gradients(
    conditioner: nn.Module,
    step: Step,
    noise: Tensor,
    context: Tensor | None = None,
    *,
    known: Tensor | None = None,
    prefix: int = 0,
    choices: Sequence[str] = BACKENDS,
) -> None:
    """Of all weights, noise, context and known values, against autograd through D passes."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().clone().requires_grad_()

    inputs = {"noise": leaf(noise), "context": leaf(context), "known": leaf(known)}
    leaves = {
        **{name: tensor for name, tensor in inputs.items() if tensor is not None},
        **{name: p for name, p in conditioner.named_parameters() if p.requires_grad},
    }
    arguments = (conditioner, step, inputs["noise"], inputs["context"])
    theirs = d_pass_inverse(*arguments, known=inputs["known"], prefix=prefix)
    weights = torch.randn_like(theirs)

    def pull(values: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(
            (values * weights).sum(), list(leaves.values()), allow_unused=True
        )
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for gradient, tensor in zip(gradients, leaves.values(), strict=True)
        ]

    references = pull(theirs)
    for choice in choices:
        with backend(choice):
            ours = sequential_inverse(*arguments, known=inputs["known"], prefix=prefix)
            same(ours, theirs)
            gradients = pull(ours)
        for name, mine, reference in zip(leaves, gradients, references, strict=True):
            assert reference.isfinite().all()
            if mine.numel():
                size = 1 + reference.abs().max()
                worst = (mine - reference).abs().max()
                assert worst <= 1e-8 * size, f"{name}, {choice}: off by {worst:.3g} of {size:.3g}"
