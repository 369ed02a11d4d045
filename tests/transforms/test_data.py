"""Transforms of data: fitted to columns, exact at the ends of intervals, with errors that point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import made_flows as mf


def test_standardize_fits_columns_of_any_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) * [1e-3, 1.0, 1e4] + [0.0, 5.0, -1e5]
    transform = mf.Standardize.fit(x).double()
    z, log_det = transform.to_noise(torch.from_numpy(x))
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0), torch.ones(3).double(), rtol=1e-5, atol=0)
    expected = -np.log(x.std(axis=0, ddof=1)).sum()
    torch.testing.assert_close(log_det[0].item(), expected, rtol=1e-5, atol=1e-5)


def test_fitted_transforms_have_the_default_dtype() -> None:
    x = np.random.default_rng(0).random((10, 2))  # float64, as arrays are
    for transform in (mf.Standardize.fit(x), mf.Logit.fit(x), mf.Log.fit(x), mf.Dequantize.fit(x)):
        z, log_det = transform.to_noise(torch.from_numpy(x).float())
        assert z.dtype == log_det.dtype == torch.float32


def test_a_soft_logit_is_a_line_inside_and_a_logit_when_very_soft() -> None:
    p = torch.linspace(0.2, 0.8, 7, dtype=torch.float64)[:, None]
    line = mf.Logit([0.0], [1.0], 0.0, softness=0.02).double().to_noise(p)[0]
    torch.testing.assert_close(line, (p - 0.5) / 0.02, rtol=0, atol=1e-3)
    soft = mf.Logit([0.0], [1.0], 0.0, softness=1e4).double().to_noise(p)[0]
    torch.testing.assert_close(soft, torch.special.logit(p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logit_keeps_values_near_both_ends(dtype: torch.dtype) -> None:
    logit = mf.Logit([0.0], [1.0], margin=0).to(dtype)
    near = torch.tensor([1e-30, 1e-6, 0.3, 1 - 1e-6], dtype=dtype)[:, None]
    z, log_det = logit.to_noise(near)
    torch.testing.assert_close(logit.to_data(z)[0], near, rtol=1e-5, atol=0)
    torch.testing.assert_close(log_det, -near.log()[:, 0] - (1 - near).log()[:, 0])
    torch.testing.assert_close(logit.to_data(z)[1], -log_det, rtol=1e-3, atol=1e-5)


def test_logit_of_images_is_that_of_the_paper() -> None:
    """Papamakarios et al. 2017: logit(lambda + (1 - 2 lambda) x), x in [0, 1]."""
    pixels = torch.tensor([0.0, 1.0, 128.0, 256.0], dtype=torch.float64)
    z, _ = mf.Logit([0.0] * 4, [256.0] * 4).double().to_noise(pixels)
    torch.testing.assert_close(z, torch.special.logit(1e-6 + (1 - 2e-6) * pixels / 256))


@pytest.mark.parametrize(
    ("margin", "softness"), [(0.0, None), (1e-6, None), (0.05, 0.05), (0.3, None), (0.0, 0.02)]
)
def test_the_density_of_a_logit_integrates_to_one(margin: float, softness: float | None) -> None:
    flow = mf.Flow([mf.Logit([-1.0], [3.0], margin, softness)]).double()
    bounds = flow().support.base_constraint
    low, high = float(bounds.lower_bound), float(bounds.upper_bound)
    assert (low, high) == pytest.approx((-1 - 4 * margin / (1 - 2 * margin), 2 - low))
    x = low + (high - low) * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    total = flow().log_prob(x.unsqueeze(1)).exp().sum() * (high - low) / 100_000
    assert float(total) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("low", [-1.0, 1000.0])
@pytest.mark.parametrize(("margin", "softness"), [(1e-6, None), (0.01, None), (0.01, 0.02)])
def test_extreme_noise_of_a_logit_can_be_scored(
    low: float, margin: float, softness: float | None
) -> None:
    logit = mf.Logit([low], [low + 4], margin, softness)
    x, log_det = logit.to_data(torch.tensor([[-1e6], [-30.0], [30.0], [1e6]]))
    beyond = 4 * margin / (1 - 2 * margin)
    assert bool((x >= low - 1.01 * beyond).all())
    assert bool((x <= low + 4 + 1.01 * beyond).all())
    assert bool(logit.to_noise(x)[0].isfinite().all())
    assert not log_det.isnan().any()


def test_logit_fit_leaves_room() -> None:
    x = torch.tensor([[0.0, -1.0], [10.0, 1.0]])
    logit = mf.Logit.fit(x, widen=0.1)
    torch.testing.assert_close(logit.low, torch.tensor([-1.0, -1.2]))
    torch.testing.assert_close(logit.high, torch.tensor([11.0, 1.2]))


def test_log_fit_takes_positive_columns() -> None:
    x = torch.tensor([[1.0, -1.0, 0.0], [2.0, 1.0, 3.0]])
    log = mf.Log.fit(x)
    assert log.chosen.tolist() == [True, False, False]
    torch.testing.assert_close(log.to_noise(x)[0][:, 1:], x[:, 1:])


def test_unchosen_columns_have_finite_gradients() -> None:
    x = torch.tensor([[-1.0, 2.0]], requires_grad=True)
    for transform in (mf.Log(2, [1]), mf.Logit([-torch.inf, 0.0], [torch.inf, 3.0])):
        z, log_det = transform.to_noise(x)
        (gradient,) = torch.autograd.grad((z + log_det).sum(), x)
        assert torch.isfinite(gradient).all()
        z = torch.tensor([[-1000.0, 0.5]], requires_grad=True)
        x_back, log_det = transform.to_data(z)
        (gradient,) = torch.autograd.grad((x_back + log_det).sum(), z)
        assert torch.isfinite(gradient).all()


def test_dequantize_stays_within_the_integer() -> None:
    """In float32 the sum of a large integer and a number near one rounds to the next integer."""
    x = torch.tensor([0.0, 1.0, 255.0, 2.0**20, 2.0**23, -7.0]).repeat(5000, 1)
    dequantize = mf.Dequantize(6)
    z, log_det = dequantize.to_noise(x)
    assert torch.equal(dequantize.to_data(z)[0], x)
    assert torch.equal(log_det, torch.zeros(5000))
    spread = (z - x)[:, :3]
    # Uniform: mean 1/2 and variance 1/12, within five standard errors of 15000 draws.
    assert abs(float(spread.mean()) - 0.5) < 5 * (1 / 12 / 15000) ** 0.5
    assert abs(float(spread.var()) - 1 / 12) < 5 * (1 / 180 / 15000) ** 0.5
    assert not torch.equal(z, dequantize.to_noise(x)[0])


def test_dequantize_takes_integers_and_leaves_other_columns() -> None:
    z, _ = mf.Dequantize(2).to_noise(torch.tensor([[3, 4]]))
    assert z.dtype == torch.float32
    z, _ = mf.Dequantize(2).double().to_noise(torch.tensor([[3, 4]]))
    assert z.dtype == torch.float64
    some = mf.Dequantize.fit([[3, 0.5], [4, 1.0]])
    x = torch.tensor([[3.0, 0.25]])
    z, _ = some.to_noise(x)
    assert z[0, 1] == 0.25
    assert 3 <= z[0, 0] < 4


def test_flow_over_integers_is_a_bound_of_their_probability() -> None:
    """Uniform integers 0..3, an exact logistic model: the mean log-density is at most log 1/4."""
    flow = mf.Flow([mf.Dequantize(1), mf.Logit([0.0], [4.0], margin=0)])
    x = torch.randint(0, 4, (20000, 1)).float()
    assert float(flow().log_prob(x).mean()) < np.log(0.25)
    samples = flow().sample((1000,))
    assert samples.unique().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not flow().has_rsample
    with pytest.raises(NotImplementedError, match="carry no gradients"):
        flow().rsample()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mf.Standardize([0.0, 1.0], [1.0, 0.0]), "std to be positive; got 0 in column 1"),
        (lambda: mf.Standardize.fit([[1.0, 2.0], [1.0, 3.0]]), "std to be positive.*column 0"),
        (lambda: mf.Standardize([0.0], [1.0, 1.0]), "std to have mean's shape; got 2"),
        (lambda: mf.Standardize.fit([[1.0, float("nan")]] * 2), "x to be finite.*row 0, column 1"),
        (lambda: mf.Standardize.fit([1.0, 2.0]), r"x of shape \(N, D\); got \(2,\)"),
        (lambda: mf.Standardize.fit([[1.0, 2.0]]), "x to have at least two rows; got 1"),
        (lambda: mf.Logit([0.0, 0.0], [1.0, 0.0]), "low to be below high; got 0 in column 1"),
        (lambda: mf.Logit([0.0], [torch.inf]), "low to be infinite where high is.*column 0"),
        (lambda: mf.Logit([0.0], [1.0], margin=0.5), r"margin to be in \[0, 0.5\); got 0.5"),
        (
            lambda: mf.Logit([0.0] * 2, [1.0] * 2).to_noise(torch.tensor([[0.5, 1.5]])),
            "value to be between the bounds of its column; got 1.5 in row 0, column 1",
        ),
        (
            lambda: mf.Logit([0.0], [1.0], margin=0).to_noise(torch.ones(1)),
            "value to be between the bounds of its column; got 1 in column 0",
        ),
        (
            lambda: mf.Log(2).to_noise(torch.tensor([[1.0, 2.0], [1.0, 0.0]])),
            "value to be positive; got 0 in row 1, column 1",
        ),
        (lambda: mf.Log(2, columns=[2]), r"columns\[0\] to be below 2; got 2"),
        (
            lambda: mf.Dequantize(2).to_noise(torch.tensor([1.0, 0.5])),
            "value to be an integer; got 0.5 in column 1",
        ),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()
