"""Normalisation layers: what they learn from batches, and that evaluation and samples are fixed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import made_flows as mf


def _batch(rows: int = 400, offset: float = 3.0) -> Tensor:
    scales = torch.tensor([0.5, 1.0, 20.0], dtype=torch.float64)
    return offset + scales * torch.randn(rows, 3, dtype=torch.float64)


def test_batch_norm_in_training_standardises_its_batch() -> None:
    norm = mf.BatchNorm(3).double()
    x = _batch()
    z, log_det = norm.to_noise(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3).double(), rtol=0, atol=1e-4)
    variance = x.var(0, correction=0) + norm.epsilon
    expected = -0.5 * variance.log().sum()
    torch.testing.assert_close(log_det, expected.expand(400))


def test_batch_norm_is_that_of_torch() -> None:
    ours, theirs = mf.BatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    x = _batch()
    torch.testing.assert_close(ours.to_noise(x)[0], theirs(x))
    # After one batch ours knows its statistics, where torch's running average has just begun.
    torch.testing.assert_close(ours.mean, x.mean(0))
    torch.testing.assert_close(ours.variance, x.var(0))


def test_batch_norm_averages_batches() -> None:
    """The plain mean of the first 1 / momentum batches, then exponential forgetting."""
    norm = mf.BatchNorm(3, momentum=0.25).double()
    batches = [_batch(50, offset) for offset in (0.0, 1.0, 2.0, 3.0, 4.0)]
    for x in batches[:4]:
        norm.to_noise(x)
    torch.testing.assert_close(norm.mean, torch.stack([x.mean(0) for x in batches[:4]]).mean(0))
    before = norm.mean.clone()
    norm.to_noise(batches[4])
    torch.testing.assert_close(norm.mean, 0.75 * before + 0.25 * batches[4].mean(0))


def test_batch_norm_in_evaluation_and_towards_data_is_fixed() -> None:
    norm = mf.BatchNorm(3).double()
    norm.to_noise(_batch())
    x = _batch(7, offset=100.0)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    sampled = norm.to_data(x)[0]
    norm.eval()
    torch.testing.assert_close(norm.to_data(x)[0], sampled, rtol=0, atol=0)
    # A row's noise does not depend on the rows beside it.
    torch.testing.assert_close(norm.to_noise(x)[0][:1], norm.to_noise(x[:1])[0], rtol=0, atol=0)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, state[name])


def test_batch_norm_differentiates_through_the_statistics() -> None:
    norm = mf.BatchNorm(3).double()
    norm.momentum = 1.0
    x = _batch(5).requires_grad_()
    assert torch.autograd.gradcheck(norm.to_noise, (x,))


def test_batch_norm_refuses_a_single_row_in_training() -> None:
    norm = mf.BatchNorm(3)
    with pytest.raises(ValueError, match=r"at least two rows in training mode.*got 1 \(use \.eval"):
        norm.to_noise(torch.ones(1, 3))
    norm.eval().to_noise(torch.ones(1, 3))


def test_actnorm_starts_by_standardising_its_first_batch_only() -> None:
    norm = mf.ActNorm(3).double()
    z, _ = norm.to_noise(_batch())
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.std(0), torch.ones(3).double())
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.to_noise(_batch(offset=50.0))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, state[name])


def test_actnorm_that_was_never_trained_is_the_identity() -> None:
    norm = mf.ActNorm(3).eval()
    x = torch.randn(5, 3)
    z, log_det = norm.to_noise(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))
    assert not bool(norm.initialized)


def test_actnorm_keeps_the_scale_of_a_constant_column() -> None:
    norm = mf.ActNorm(2)
    z, log_det = norm.to_noise(torch.tensor([[7.0, 1.0], [7.0, 3.0]]))
    assert torch.equal(z[:, 0], torch.zeros(2))
    assert torch.isfinite(log_det).all()


def test_actnorm_trained_through_samples_is_not_overwritten_by_data() -> None:
    norm = mf.ActNorm(2)
    norm.to_data(torch.randn(5, 2))[0].sum().backward()
    with torch.no_grad():
        norm.shift.fill_(0.25)
    norm.to_noise(9 + torch.randn(50, 2))
    assert torch.equal(norm.shift, torch.full((2,), 0.25))
    # Samples drawn without gradients, to look at a fresh model, do not count as training.
    fresh = mf.ActNorm(2)
    with torch.no_grad():
        fresh.to_data(torch.randn(5, 2))
    assert not bool(fresh.initialized)


def test_actnorm_survives_saving_with_its_start(tmp_path) -> None:
    norm = mf.ActNorm(3)
    norm.to_noise(_batch().float())
    mf.save(norm, tmp_path / "norm.safetensors")
    loaded = mf.load(tmp_path / "norm.safetensors").train()
    loaded.to_noise(_batch(offset=80.0).float())
    assert torch.equal(loaded.shift, norm.shift)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mf.BatchNorm(3, momentum=0.0), "momentum to be above 0; got 0"),
        (lambda: mf.BatchNorm(3, momentum=1.5), "momentum to be at most 1; got 1.5"),
        (lambda: mf.BatchNorm(3, epsilon=-1e-5), "epsilon to be above 0"),
        (lambda: mf.ActNorm(3).to_noise(torch.ones(1, 3)), "the first batch to have at least two"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


def test_values_that_are_not_finite_do_not_stay_in_the_averages() -> None:
    norm = mf.BatchNorm(3)
    norm.to_noise(torch.randn(8, 3))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for bad in (torch.nan, torch.inf):
        x = torch.randn(8, 3)
        x[4, 1] = bad
        with pytest.raises(ValueError, match=rf"x to be finite; got {bad} in row 4, column 1"):
            norm.to_noise(x)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    assert bool(norm.eval().to_noise(x)[0].isinf().any())  # as what it is, where nothing is kept
