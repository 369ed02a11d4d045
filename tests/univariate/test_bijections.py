"""Bijections: inverses, derivatives, and what they do with extreme values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import made_flows as mf
from tests.helpers.flow_models import BIJECTIONS

names = pytest.mark.parametrize("name", BIJECTIONS)

EXTREME = [0.0, 1e-30, 1.0, -1.5, 1.5, -5.0, 5.0, 4.9999995, 5.0000005, 1e3, -1e6, 1e6]


def _case(name: str, dtype: torch.dtype, rows: int = 2000, spread: float = 1.0):
    bijection = BIJECTIONS[name]().to(dtype)
    parameters = spread * torch.randn(rows, bijection.outputs, dtype=dtype)
    return bijection, parameters, 2 * torch.randn(rows, dtype=dtype)


@names
def test_inverse_undoes_forward(name: str) -> None:
    bijection, parameters, x = _case(name, torch.float64)
    y, log_derivative = bijection.forward(x, parameters)
    back, log_derivative_back = bijection.inverse(y, parameters)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_derivative_back, -log_derivative, rtol=1e-7, atol=1e-7)


@names
def test_log_derivative_is_that_of_autograd(name: str) -> None:
    bijection, parameters, x = _case(name, torch.float64)
    for function in (bijection.forward, bijection.inverse):
        at = x.clone().requires_grad_()
        value, log_derivative = function(at, parameters)
        (slope,) = torch.autograd.grad(value.sum(), at)
        torch.testing.assert_close(log_derivative, slope.log(), rtol=1e-8, atol=1e-8)


# A clamped scale passes gradients straight through its limits, on purpose.
@pytest.mark.parametrize("name", [name for name in BIJECTIONS if name != "affine, clamp"])
def test_gradients_are_those_of_central_differences(name: str) -> None:
    bijection, parameters, x = _case(name, torch.float64, rows=200, spread=0.5)
    for function in (bijection.forward, bijection.inverse):
        at, theta = x.clone().requires_grad_(), parameters.clone().requires_grad_()
        value, log_derivative = function(at, theta)
        gradient = torch.autograd.grad((value + log_derivative).sum(), (at, theta))

        def total(x: Tensor, p: Tensor, function=function) -> Tensor:
            value, log_derivative = function(x, p)
            return value + log_derivative

        step = 1e-6
        by_x = (total(x + step, parameters) - total(x - step, parameters)) / (2 * step)
        # Where a kink lies within the step, differences mean nothing: at most a few rows.
        agrees = torch.isclose(by_x, gradient[0], rtol=1e-4, atol=1e-4)
        assert agrees.float().mean() > 0.98
        for k in range(bijection.outputs):
            shift = torch.zeros_like(parameters)
            shift[:, k] = step
            by_k = (total(x, parameters + shift) - total(x, parameters - shift)) / (2 * step)
            agrees = torch.isclose(by_k, gradient[1][:, k], rtol=1e-4, atol=1e-4)
            assert agrees.float().mean() > 0.98


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_values_stay_finite_and_invertible(name: str, dtype: torch.dtype) -> None:
    """Values up to 1e6, under parameters as networks give them, in both directions."""
    x = torch.tensor(EXTREME, dtype=dtype).repeat_interleave(200).requires_grad_()
    bijection, parameters, _ = _case(name, dtype, rows=len(x))
    parameters.requires_grad_()
    tolerance = 50 * torch.finfo(dtype).eps
    for there, back in (
        (bijection.forward, bijection.inverse),
        (bijection.inverse, bijection.forward),
    ):
        y, log_derivative = there(x, parameters)
        again, _ = back(y, parameters)
        gradients = torch.autograd.grad((y + log_derivative + again).sum(), (x, parameters))
        for tensor in (y, log_derivative, again, *gradients):
            assert torch.isfinite(tensor).all()
        # What rounding y alone does to x grows with dx/dy.
        scale = (1 + x.abs() + (1 + y.abs()) * torch.exp(-log_derivative)).detach()
        # Near a kink the derivative on one side says nothing about the other.
        slack = 1.0 if name.startswith(("affine", "gated")) else 1e3
        assert ((again - x).abs() <= slack * tolerance * scale).all()


@names
def test_extreme_parameters_never_give_nan(name: str) -> None:
    if name in ("affine, exp", "affine, sigmoid", "gated, no floor", "own"):
        bijection, parameters, x = _case(name, torch.float32, spread=10.0)
    else:
        bijection, parameters, x = _case(name, torch.float32, spread=300.0)
    parameters.requires_grad_()
    x.requires_grad_()
    for function in (bijection.forward, bijection.inverse):
        y, log_derivative = function(x, parameters)
        gradients = torch.autograd.grad((y + log_derivative).sum(), (x, parameters))
        for tensor in (y, log_derivative, *gradients):
            assert torch.isfinite(tensor).all()


@names
def test_increasing(name: str) -> None:
    bijection, parameters, _ = _case(name, torch.float64, rows=50)
    x = torch.linspace(-7, 7, 1001, dtype=torch.float64)
    y, _ = bijection.forward(x[:, None], parameters)
    assert (y.diff(dim=0) > 0).all()


@names
def test_zero_parameters_are_near_the_identity(name: str) -> None:
    bijection = BIJECTIONS[name]().double()
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    parameters = torch.zeros(13, bijection.outputs, dtype=torch.float64)
    y, log_derivative = bijection.forward(x, parameters)
    far = 0.15 if "sigmoid" in name or "gated" in name else 1e-6  # a forget gate of 0.88
    torch.testing.assert_close(y, x, rtol=far, atol=1e-6)
    assert (log_derivative.abs() < 2 * far).all()


@names
def test_parameters_and_values_broadcast(name: str) -> None:
    bijection, parameters, x = _case(name, torch.float64, rows=6)
    both = bijection.forward(x[:, None], parameters[None])
    for tensor in both:
        assert tensor.shape == (6, 6)
    each = bijection.forward(x.repeat_interleave(6), parameters.repeat(6, 1))
    for one, other in zip(both, each, strict=True):
        torch.testing.assert_close(one.flatten(), other)


@names
def test_vmap(name: str) -> None:
    bijection, parameters, x = _case(name, torch.float64, rows=20)
    for function in (bijection.forward, bijection.inverse):
        for one, other in zip(
            torch.vmap(function)(x, parameters), function(x, parameters), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_spline_is_the_identity_outside_its_bound_and_at_its_ends() -> None:
    spline = mf.RationalQuadraticSpline(bins=5, bound=2.0).double()
    x = torch.tensor([-7.0, -2.0, 2.0, 2.5, 1e5], dtype=torch.float64)
    y, log_derivative = spline.forward(x, torch.randn(5, spline.outputs, dtype=torch.float64))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=1e-9)


def test_spline_passes_through_its_knots_with_their_derivatives() -> None:
    spline = mf.RationalQuadraticSpline(bins=6, bound=3.0, min_derivative=0.01).double()
    parameters = 2 * torch.randn(spline.outputs, dtype=torch.float64)
    x, y, derivatives = spline.knots(parameters)
    assert (x.diff() >= 6.0 * spline.min_width * (1 - 1e-9)).all()
    assert (y.diff() >= 6.0 * spline.min_height * (1 - 1e-9)).all()
    value, log_derivative = spline.forward(x, parameters.expand(7, -1))
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(log_derivative.exp(), derivatives)


def test_spline_matches_nflows() -> None:
    splines = pytest.importorskip("nflows.transforms.splines")
    spline = mf.RationalQuadraticSpline(bins=7, bound=4.0).double()
    parameters = torch.randn(500, spline.outputs, dtype=torch.float64)
    x = 3 * torch.randn(500, dtype=torch.float64)
    widths, heights, raw = parameters.split([7, 7, 6], dim=-1)
    # Ours are offset so that zeros give the identity.
    raw = raw + torch.tensor(1 - spline.min_derivative).expm1().log()
    theirs = splines.unconstrained_rational_quadratic_spline(
        x, widths, heights, raw, tails="linear", tail_bound=4.0
    )
    for one, other in zip(spline.forward(x, parameters), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_gate_is_that_of_kingma() -> None:
    gate = mf.GatedAffine(mf.ScaleRule("sigmoid", offset=1.0)).double()
    x, parameters = torch.randn(9).double(), torch.randn(9, 2).double()
    s = torch.sigmoid(parameters[:, 1] + 1)
    y, log_derivative = gate.forward(x, parameters)
    torch.testing.assert_close(y, s * x + (1 - s) * parameters[:, 0])
    torch.testing.assert_close(log_derivative, s.log())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mf.Affine("cubic"), "scale rule to be one of .*'cubic'"),
        (lambda: mf.GatedAffine("exp"), "scale to be a sigmoid rule"),
        (lambda: mf.RationalQuadraticSpline(bins=0), "bins to be a positive integer; got 0"),
        (lambda: mf.RationalQuadraticSpline(bins=1), "bins to be at least 2; got 1"),
        (lambda: mf.RationalQuadraticSpline(bound=-1.0), "bound to be above 0; got -1"),
        (lambda: mf.RationalQuadraticSpline(10, min_width=0.1), "min_width to be below .*0.1"),
        (lambda: mf.RationalQuadraticSpline(10, min_height=0.2), "min_height to be below .*0.1"),
        (lambda: mf.RationalQuadraticSpline(min_derivative=2.0), "min_derivative to be below 1"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_spline_in_half_precision_is_off_by_its_own_rounding_alone(dtype: torch.dtype) -> None:
    spline = mf.RationalQuadraticSpline(bins=3, bound=2.0)
    x, parameters = torch.randn(2000).to(dtype), (1.5 * torch.randn(2000, 8)).to(dtype)
    for way in (spline.forward, spline.inverse):
        pairs = zip(way(x, parameters), way(x.double(), parameters.double()), strict=True)
        for got, right in pairs:
            assert got.dtype is dtype
            torch.testing.assert_close(got.double(), right, rtol=torch.finfo(dtype).eps, atol=1e-4)
