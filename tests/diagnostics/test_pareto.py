"""Pareto-smoothed importance weights: beside arviz, and what a Pareto tail must give."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from made_flows.diagnostics.pareto import SmoothedWeights, fit_pareto, pareto_smooth


def _places(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _normal(count: int, scale: float) -> Tensor:
    return scale * torch.special.ndtri(_places(count))


def _shuffled(log_weights: Tensor) -> Tensor:
    return log_weights[torch.randperm(len(log_weights), generator=torch.Generator().manual_seed(0))]


# Log-weights; k-hat and the logarithm of the sum of the smoothed weights, as arviz 0.23.4 has them.
WEIGHTS: dict[str, tuple[Callable[[], Tensor], float, float]] = {
    "narrow": (lambda: _normal(1000, 0.3), 0.0361266028908, 6.953489549103481),
    "log-normal": (lambda: _normal(2000, 1.5), 0.4593370586874, 8.718844767139174),
    "wide": (lambda: _normal(500, 6.0), 2.298181373169797, 18.683395609295975),
    "Pareto, 0.5": (lambda: -0.5 * torch.log(_places(4000)), 0.4983134530821, 8.98213113511427),
    "bounded": (lambda: torch.log(_places(300)), -0.7040549553133, 5.012519702164047),
    "far below": (lambda: _normal(1000, 2.0) - 5000, 0.6664972902741, -4991.149992749311),
    "zeros": (
        lambda: torch.cat([_normal(900, 1.0), torch.full((100,), -math.inf, dtype=torch.float64)]),
        0.2926796257946,
        7.303128650833743,
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_as_arviz(name: str) -> None:
    make, k_hat, total = WEIGHTS[name]
    smoothed = pareto_smooth(_shuffled(make()))
    assert smoothed.k_hat == pytest.approx(k_hat, abs=1e-9)
    assert float(smoothed.log_weights.logsumexp(0)) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("efficiency", [1.0, 0.4])
def test_each_weight_as_arviz(scale: float, efficiency: float) -> None:
    arviz = pytest.importorskip("arviz", exc_type=ImportError)
    log_weights = scale * torch.randn(1500, dtype=torch.float64)
    expected, k_hat = arviz.psislw(log_weights.numpy().copy(), reff=efficiency, normalize=False)
    own = pareto_smooth(log_weights, efficiency)
    assert own.k_hat == pytest.approx(float(k_hat), abs=1e-9)
    torch.testing.assert_close(own.log_weights, torch.from_numpy(expected))


def test_results_do_not_depend_on_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    log_weights = torch.randn(200)
    alone = pareto_smooth(log_weights)
    monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(psislw=lambda *_, **__: 1 / 0))
    beside = pareto_smooth(log_weights)
    assert beside.k_hat == alone.k_hat
    assert torch.equal(beside.log_weights, alone.log_weights)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.2, 0.5, 0.9])
def test_shape_and_scale_of_exact_quantiles(k: float) -> None:
    # A long sample, so that the prior of the shape hardly counts.
    log_survival = torch.log1p(-_places(20_000))
    x = -log_survival if k == 0 else torch.expm1(-k * log_survival) / k
    found, scale = fit_pareto(3 * x)
    assert found == pytest.approx(k, abs=0.02)
    assert scale == pytest.approx(3, rel=0.02)


def test_body_stays_and_tail_keeps_its_order() -> None:
    log_weights = 2 * torch.randn(1000, dtype=torch.float64)
    smoothed = pareto_smooth(log_weights).log_weights
    order = log_weights.argsort()
    tail = math.ceil(3 * math.sqrt(1000))
    torch.testing.assert_close(smoothed[order[:-tail]], log_weights[order[:-tail]])
    assert bool((smoothed[order].diff() >= 0).all())
    assert smoothed.max() <= log_weights.max()


def test_scale_of_weights_does_not_matter() -> None:
    log_weights = torch.randn(500, dtype=torch.float64)
    one, other = pareto_smooth(log_weights), pareto_smooth(log_weights - 1e4)
    assert one.k_hat == pytest.approx(other.k_hat, abs=1e-6)
    assert one.log_evidence - 1e4 == pytest.approx(other.log_evidence)
    assert one.effective_sample_size == pytest.approx(other.effective_sample_size)


def test_evidence_and_its_error() -> None:
    # Weights of a normal guide for a normal target: their mean is one, exactly.
    draws = torch.randn(400, 1000, dtype=torch.float64)
    log_weights = draws.square() / 2 - (draws / 0.8).square() / 2 - math.log(0.8)
    found = [pareto_smooth(each) for each in log_weights]
    estimates = torch.tensor([each.log_evidence for each in found])
    errors = torch.tensor([each.log_evidence_error for each in found])
    assert abs(float(estimates.mean())) < 4 * float(estimates.std()) / 20
    assert float(errors.mean()) == pytest.approx(float(estimates.std()), rel=0.15)
    assert all(each.reliable for each in found)


def test_equal_weights() -> None:
    equal = pareto_smooth(torch.full((100,), -7.0))
    assert equal.k_hat == -math.inf
    assert equal.reliable
    assert equal.effective_sample_size == pytest.approx(100)
    assert equal.log_evidence == pytest.approx(-7.0)
    assert equal.log_evidence_error == pytest.approx(0.0, abs=1e-6)


def test_one_weight_has_everything() -> None:
    log_weights = torch.full((100,), -math.inf)
    log_weights[3] = 0.0
    single = pareto_smooth(log_weights)
    assert single.k_hat == math.inf
    assert not single.reliable
    assert single.effective_sample_size == pytest.approx(1)


@pytest.mark.parametrize(
    ("count", "threshold"),
    {
        "ten": (10, 0.0),
        "hundred": (100, 0.5),
        "thousand": (1000, 2 / 3),
        "many": (10**5, 0.7),
    }.values(),
)
def test_threshold(count: int, threshold: float) -> None:
    assert pareto_smooth(torch.randn(count)).threshold == pytest.approx(threshold)
    assert SmoothedWeights(torch.zeros(count), threshold - 0.01, threshold).reliable
    assert not SmoothedWeights(torch.zeros(count), threshold, threshold).reliable


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a list": (lambda: pareto_smooth([0.0, 1.0]), TypeError, "log_weights to be a tensor"),  # type: ignore[arg-type]
    "a matrix": (lambda: pareto_smooth(torch.zeros(5, 5)), ValueError, "shape"),
    "one weight": (lambda: pareto_smooth(torch.zeros(1)), ValueError, "S > 1"),
    "NaN": (lambda: pareto_smooth(torch.tensor([0.0, math.nan])), ValueError, "without NaN"),
    "all zero": (lambda: pareto_smooth(torch.full((9,), -math.inf)), ValueError, "finite"),
    "infinite": (lambda: pareto_smooth(torch.tensor([0.0, math.inf])), ValueError, "finite"),
    "efficiency": (lambda: pareto_smooth(torch.zeros(9), 0.0), ValueError, "relative_efficiency"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
