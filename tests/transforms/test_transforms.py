"""Transforms: both directions, log-determinants, structure, copies, moves and compilation."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.inverse.steps import BijectionStep
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.flow_models import AUTOREGRESSIVE, TRANSFORMS, context_of, data_of

every = pytest.mark.parametrize("name", TRANSFORMS)
autoregressive = pytest.mark.parametrize("name", AUTOREGRESSIVE)


def _jacobian(function, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, x)


@every
@pytest.mark.parametrize("batch", [(), (7,), (2, 1, 3)], ids=str)
def test_round_trip(name: str, batch: tuple[int, ...]) -> None:
    transform = TRANSFORMS[name]()
    x, context = data_of(transform, *batch), context_of(transform, *batch[-1:])
    with torch.no_grad():
        z, log_det = transform.to_noise(x, context)
        back, log_det_back = transform.to_data(z, context)
        generated = transform.generate(z, context)
    assert z.shape == x.shape
    assert log_det.shape == log_det_back.shape == batch
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(generated, back, rtol=0, atol=0)


@every
def test_log_determinant_is_that_of_the_jacobian(name: str) -> None:
    transform = TRANSFORMS[name]()
    for x in data_of(transform, 3):
        context = context_of(transform)
        z, log_det = transform.to_noise(x, context)
        jacobian = _jacobian(lambda x, c=context: transform.to_noise(x, c)[0], x)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
        x, log_det = transform.to_data(z.detach(), context)
        jacobian = _jacobian(lambda z, c=context: transform.to_data(z, c)[0], z.detach())
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)


@autoregressive
def test_jacobian_is_triangular_in_the_order(name: str) -> None:
    """Where the map is sequential its Jacobian may fill the triangle even for a graph."""
    transform = TRANSFORMS[name](5)
    x, context = data_of(transform) / 4, context_of(transform)  # where splines bend
    made = transform.conditioner
    parallel = made.allowed | torch.eye(5, dtype=torch.bool)
    sequential = torch.linalg.matrix_power(parallel.double(), 5) > 0
    towards_noise = _jacobian(lambda x: transform.to_noise(x, context)[0], x) != 0
    towards_data = _jacobian(lambda z: transform.to_data(z, context)[0], x) != 0
    if transform.reads == "noise":
        towards_noise, towards_data = towards_data, towards_noise
    assert not (towards_noise & ~parallel).any()
    assert not (towards_data & ~sequential).any()
    assert towards_noise.sum() > 5  # not the identity
    assert (made.ranks[:, None] >= made.ranks)[sequential].all()


@autoregressive
def test_sequential_direction_and_its_gradients_equal_the_d_pass_reference(name: str) -> None:
    transform = TRANSFORMS[name]()
    made, reads = transform.conditioner, transform.reads
    step = BijectionStep(transform.bijection, "forward" if reads == "data" else "inverse")
    known = data_of(transform, 6).requires_grad_()
    context = context_of(transform, 6)
    if context is not None:
        context.requires_grad_()
    solve = transform.to_data if reads == "data" else transform.to_noise
    weight = torch.randn(6, 4, dtype=torch.float64)
    leaves = [known, *made.parameters()] + ([] if context is None else [context])

    def gradients(values: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad((values * weight).sum(), leaves, allow_unused=True)

    ours = solve(known, context)[0]
    theirs = d_pass_inverse(made, step, known.unsqueeze(-1), context)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
        else:
            assert one is other


# Not splines, where a kink within the step would say nothing, and not the clamped scale, which
# passes gradients straight through its limits.
@pytest.mark.parametrize(
    "name", [name for name in AUTOREGRESSIVE if "spline" not in name and "clamp" not in name]
)
def test_log_determinant_of_the_sequential_direction_has_the_right_gradient(name: str) -> None:
    """The log-determinant moves with the solution too: central differences in the input."""
    transform = TRANSFORMS[name]()
    solve = transform.to_data if transform.reads == "data" else transform.to_noise
    known, context = data_of(transform), context_of(transform)
    leaf = known.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solve(leaf, context)[1], leaf)
    step = 1e-6
    for i, unit in enumerate(step * torch.eye(4, dtype=torch.float64)):
        with torch.no_grad():
            difference = solve(known + unit, context)[1] - solve(known - unit, context)[1]
        torch.testing.assert_close(gradient[i], difference / (2 * step), rtol=1e-4, atol=1e-5)


@every
def test_copies_give_the_same_numbers(name: str, tmp_path) -> None:
    transform = TRANSFORMS[name]()
    x, context = data_of(transform, 4), context_of(transform, 4)
    expected = transform.to_noise(x, context)[0], transform.to_data(x / 4, context)[0]
    stored = io.BytesIO()
    torch.save(transform.state_dict(), stored)
    stored.seek(0)
    renewed = copy.deepcopy(transform)
    renewed.load_state_dict(torch.load(stored))
    mf.save(transform, tmp_path / "transform.safetensors")
    copies = [
        copy.deepcopy(transform),
        pickle.loads(pickle.dumps(transform)),
        renewed,
        mf.load(tmp_path / "transform.safetensors"),
    ]
    for other in copies:
        got = other.to_noise(x, context)[0], other.to_data(x / 4, context)[0]
        for one, two in zip(got, expected, strict=True):
            assert torch.equal(one, two)


@every
def test_every_parameter_has_a_gradient(name: str) -> None:
    transform = TRANSFORMS[name]()
    x, context = data_of(transform, 50), context_of(transform, 50)
    for direction in (transform.to_noise, transform.to_data):
        transform.zero_grad()
        y, log_det = direction(x / 2 if "logit" in name else x, context)
        weight = torch.randn_like(y)
        total = (y * weight).sum() + log_det.sum()
        if total.requires_grad:
            total.backward()
        for parameter in transform.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().sum() > 0 or parameter.numel() == 0


@every
def test_moves_to_another_dtype(name: str) -> None:
    transform = TRANSFORMS[name]()
    x, context = data_of(transform, 20), context_of(transform, 20)
    z, _ = transform.to_noise(x, context)
    transform.float()
    small = transform.to_noise(x.float(), None if context is None else context.float())
    assert small[0].dtype == small[1].dtype == torch.float32
    torch.testing.assert_close(small[0].double(), z, rtol=1e-4, atol=1e-3)
    back = transform.to_data(small[0], None if context is None else context.float())
    assert back[0].dtype == back[1].dtype == torch.float32
    torch.testing.assert_close(back[0].double(), x, rtol=1e-3, atol=1e-3)


@every
def test_vmap_over_rows_equals_the_batch(name: str) -> None:
    transform = TRANSFORMS[name]()
    x, context = data_of(transform, 6), context_of(transform, 6)
    arguments = (x,) if context is None else (x, context)
    with torch.no_grad():
        for function in (transform.to_noise, transform.to_data):
            expected = function(*arguments)
            got = torch.vmap(function)(*arguments)
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other)


def test_permutation_is_the_one_given() -> None:
    permutation = [3, 0, 2, 1]
    x = torch.randn(5, 4)
    z, _ = mf.Permutation(4, permutation).to_noise(x)
    for k, feature in enumerate(permutation):
        assert torch.equal(z[:, k], x[:, feature])


def test_invertible_linear_starts_as_a_rotation() -> None:
    linear = mf.InvertibleLinear(6).double()
    matrix = linear.to_noise(torch.eye(6, dtype=torch.float64))[0]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6).double(), rtol=0, atol=1e-6)


def test_same_generator_same_transform() -> None:
    for make in (lambda g: mf.Permutation(9, "random", g), lambda g: mf.InvertibleLinear(9, g)):
        one, two = (make(torch.Generator().manual_seed(5)) for _ in range(2))
        x = torch.randn(9)
        assert torch.equal(one.to_noise(x)[0], two.to_noise(x)[0])


def test_dropout_drops_in_parallel_training_passes_only() -> None:
    made = mf.MADE(4, hidden_features=(64,), dropout=0.5)
    transform = mf.AutoregressiveTransform(made, mf.Affine()).train()
    x = torch.randn(4)
    assert not torch.equal(transform.to_noise(x)[0], transform.to_noise(x)[0])
    assert torch.equal(transform.to_data(x)[0], transform.to_data(x)[0])


def test_initial_parameters_of_a_bijection_are_the_start() -> None:
    transform = TRANSFORMS["data | own | context"]()
    fresh = type(transform)(mf.MADE(4, parameters=2), transform.bijection)
    start = transform.bijection.initial_parameters()
    torch.testing.assert_close(fresh.conditioner.layers[-1].bias.detach(), start.repeat(4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mf.AutoregressiveTransform(1, mf.Affine()), TypeError, "conditioner to be a MADE"),
        (lambda: mf.AutoregressiveTransform(mf.MADE(3), 1), TypeError, "bijection to be a Biject"),
        (
            lambda: mf.AutoregressiveTransform(mf.MADE(3, parameters=3), mf.Affine()),
            ValueError,
            "conditioner to have parameters=2, as Affine needs; got 3",
        ),
        (
            lambda: mf.AutoregressiveTransform(mf.MADE(3, inputs=2), mf.Affine()),
            ValueError,
            "conditioner to have inputs=1, as Affine needs; got 2",
        ),
        (
            lambda: mf.AutoregressiveTransform(mf.MADE(3), mf.Affine(), "both"),
            ValueError,
            "reads to be 'data' or 'noise'; got 'both'",
        ),
        (lambda: mf.Permutation(3, [0, 1, 1]), ValueError, "order to be a permutation of 0..2"),
        (lambda: mf.Permutation(3, "sorted"), ValueError, "order to be"),
        (lambda: mf.InvertibleLinear(0), ValueError, "features to be a positive integer"),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"Expected {message}"):
        make()


@every
def test_wrong_number_of_features(name: str) -> None:
    transform = TRANSFORMS[name]()
    context = context_of(transform)
    for direction in (transform.to_noise, transform.to_data):
        with pytest.raises(ValueError, match=r"of shape \(\.\.\., 4\); got \(5,\)"):
            direction(torch.ones(5, dtype=torch.float64), context)


def test_wrong_dtype_and_context_are_errors_in_both_directions() -> None:
    for reads in ("data", "noise"):
        transform = mf.AutoregressiveTransform(mf.MADE(3, 2), mf.Affine(), reads)
        for direction in (transform.to_noise, transform.to_data):
            with pytest.raises(TypeError, match=r"of dtype torch\.float32"):
                direction(torch.ones(3, dtype=torch.float64), torch.ones(2))
            with pytest.raises(ValueError, match=r"context of shape \(\.\.\., 2\).*got none"):
                direction(torch.ones(3))
            with pytest.raises(ValueError, match=r"context of shape \(\.\.\., 2\); got \(3,\)"):
                direction(torch.ones(3), torch.ones(3))
