"""Checks of bijections and heads: the library's own pass, and each kind of mistake is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import made_flows as mf
from tests.helpers.density_models import HEADS
from tests.helpers.flow_models import BIJECTIONS


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijections_are_what_they_say(name: str) -> None:
    report = mf.check_bijection(BIJECTIONS[name](), generator=torch.Generator().manual_seed(0))
    assert report.round_trip < 1e-6
    assert report.log_derivative < 1e-6


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_what_they_say(name: str) -> None:
    torch.manual_seed(0)
    report = mf.check_head(HEADS[name](3), points=1)
    assert report.total < 1e-4


class Laplace(mf.Head):
    outputs, support = 2, constraints.real

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        location, log_scale = parameters.unbind(-1)
        return -((x - location) / log_scale.exp()).abs() - log_scale - math.log(2)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        u = torch.rand(*shape, 1, dtype=like.dtype) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs())

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        location, log_scale = parameters.unbind(-1)
        return location + log_scale.exp() * noise[..., 0]


class Exponential(mf.Head):
    outputs, support = 1, constraints.positive

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return parameters[..., 0] - parameters[..., 0].exp() * x

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return -torch.rand(*shape, 1, dtype=like.dtype).log()

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return noise[..., 0] * (-parameters[..., 0]).exp()


class Uniform(Exponential):
    support = constraints.unit_interval

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return 0 * (x + parameters[..., 0])

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return (-noise[..., 0]).exp() + 0 * parameters[..., 0]


class Weibull(Exponential):
    """With a density as high as one likes beside 0."""

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return math.log(0.4) - 0.6 * x.log() - x**0.4 + 0 * parameters[..., 0]

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return noise[..., 0] ** 2.5 + 0 * parameters[..., 0]


class Geometric(Exponential):
    support = constraints.nonnegative_integer

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        p = torch.sigmoid(parameters[..., 0])
        return p.log() + x * torch.log1p(-p)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        p = torch.sigmoid(parameters[..., 0])
        return (-noise[..., 0] / torch.log1p(-p)).floor()


@pytest.mark.parametrize("head", [Laplace, Exponential, Uniform, Weibull, Geometric])
def test_heads_of_all_supports(head: Callable[[], mf.Head]) -> None:
    torch.manual_seed(0)
    assert mf.check_head(head()).total < 1e-4


class Unnormalised(Laplace):
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return super().log_prob(x, parameters) + 0.01


class Wide(Laplace):
    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return 1.2 * super().step(noise, parameters)


class Tilted(mf.heads.Bernoulli):
    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return super().step(noise, parameters + 0.2)


class Elsewhere(Laplace):
    support = constraints.simplex


HEAD_MISTAKES: dict[str, tuple[type[mf.Head], str]] = {
    "a constant": (Unnormalised, r"probabilities of feature 0 with parameters .* 1; got 1.01005"),
    "wide samples": (Wide, "samples of feature 0 with parameters .* to follow its probabilities"),
    "tilted samples": (Tilted, "samples of feature 0 with parameters .* to follow"),
    "another support": (Elsewhere, "support to be real, bounded, boolean or integers with a least"),
}


@pytest.mark.parametrize("name", HEAD_MISTAKES)
def test_mistakes_of_heads_are_named(name: str) -> None:
    torch.manual_seed(0)
    head, message = HEAD_MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        mf.check_head(head())


class WrongSign(mf.Affine):
    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = super().inverse(y, parameters)
        return x, -log_slope


class Falling(mf.Affine):
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = super().forward(x, parameters)
        return -y, log_slope


class Halved(mf.Bijection):
    """y = e^x + p: of no x is it below p."""

    outputs = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x.exp() + parameters[..., 0], x

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x = (y - parameters[..., 0]).log()
        return x, -x


class Alone(mf.Affine):
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, parameters)[0]  # type: ignore[return-value]


class NoInverse(mf.Affine):
    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = super().inverse(y, parameters)
        return x + 0.01, log_slope


class Summed(mf.Affine):
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = super().forward(x, parameters)
        return y, log_slope.sum()


BIJECTION_MISTAKES: dict[str, tuple[type[mf.Bijection], str]] = {
    "a sign": (WrongSign, r"inverse's log-derivative to be .* at x=.* with parameters .*; got"),
    "falling": (Falling, "the derivative of forward to be above 0 at x=.*; got -"),
    "half of the numbers": (Halved, r"forward\(inverse\(y\)\), whatever the number y, .* got nan"),
    "no log-derivative": (Alone, "forward to return a pair: values and log-derivatives; got"),
    "no inverse": (NoInverse, r"inverse\(forward\(x\)\) to be .* at x=.* with parameters"),
    "a sum": (Summed, r"log-derivatives of forward of shape \(200,\); got \(\)"),
}


@pytest.mark.parametrize("name", BIJECTION_MISTAKES)
def test_mistakes_of_bijections_are_named(name: str) -> None:
    bijection, message = BIJECTION_MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        mf.check_bijection(bijection())


BAD_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "a name": (lambda: mf.check_bijection("affine"), "bijection to be a Bijection; got str"),
    "a class": (lambda: mf.check_head(Laplace), "head to be a Head; got"),
    "parameters": (
        lambda: mf.check_bijection(mf.Affine(), [1.0]),
        r"of shape \(..., 2\); got",
    ),
    "text": (lambda: mf.check_head(Laplace(), "a"), "parameters to hold numbers"),
    "points": (
        lambda: mf.check_bijection(mf.Affine(), points=0),
        "points to be a positive",
    ),
    "tolerance": (
        lambda: mf.check_head(Laplace(), tolerance=0.0),
        "tolerance to be above 0",
    ),
    "a seed": (lambda: mf.check_head(Laplace(), generator=3), "generator to be a torch.Generator"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_values_outside_a_support_are_refused_before_training() -> None:
    model = mf.DensityModel(mf.MADE(2, parameters=1), Exponential())
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    with pytest.raises(ValueError, match=r"support of Exponential, .*; got -4 in row 1, col"):
        mf.fit(model, x, progress=False)
    with pytest.raises(ValueError, match="in the support of Exponential"):
        model().log_prob(x)


def test_given_parameters_are_taken() -> None:
    assert mf.check_bijection(mf.Affine(), [[0.0, 1.0], [5.0, -1.0]]).round_trip < 1e-12
    torch.manual_seed(0)
    assert mf.check_head(Laplace(), [0.0, 1.0]).total < 1e-4


class Bisected(mf.Bijection):
    """y = x + tanh(x) e^p, inverted by bisection: values are right, gradients of them are not."""

    outputs = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        w = parameters[..., 0].exp()
        return x + w * x.tanh(), torch.log1p(w / x.cosh() ** 2)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        w = parameters[..., 0].exp()
        low, high = y - w, y + w
        for _ in range(60):
            x = (low + high) / 2
            below = x + w * x.tanh() < y
            low, high = torch.where(below, x, low), torch.where(below, high, x)
        return self.polished(x, y, parameters)

    def polished(self, x: Tensor, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x, -self.forward(x, parameters)[1]


class Polished(Bisected):
    def polished(self, x: Tensor, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        image, log_slope = self.forward(x.detach(), parameters)
        x = x.detach() + (y - image) * torch.exp(-log_slope)
        return x, -self.forward(x, parameters)[1]


class BentDerivative(Polished):
    def polished(self, x: Tensor, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = super().polished(x, y, parameters)
        return x, log_slope.detach()


def test_gradients_of_an_inverse_are_checked() -> None:
    mf.check_bijection(Polished())
    with pytest.raises(ValueError, match=r"the gradient of inverse with respect to y .* Newton"):
        mf.check_bijection(Bisected())
    with pytest.raises(ValueError, match="the gradient of inverse's log-derivative"):
        mf.check_bijection(BentDerivative())
