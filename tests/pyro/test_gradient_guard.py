"""One bad draw does not end a run: gradients that are no numbers, or far beyond what is usual."""

from __future__ import annotations

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor

from made_flows.pyro import AutoIAF
from made_flows.pyro.gradient_guard import GradientGuard

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("bad", "kept"),
    {
        "NaN": ([NAN, 1.0], [0.0, 0.0]),
        "infinite": ([1.0, -INF], [0.0, 0.0]),
        "squares overflow": ([3e30, -1.5e30], [100.0, -50.0]),
        "huge": ([-400.0, 0.0], [-100.0, 0.0]),
        "large": ([99.0, 1.0], [99.0, 1.0]),
    }.values(),
)
def test_rows_are_limited_one_by_one(bad: list[float], kept: list[float]) -> None:
    rows = torch.tensor([[1.0, -0.5], [-1.0, 0.2], [0.3, 1.0], bad])
    found = GradientGuard()(rows)
    torch.testing.assert_close(found, torch.tensor([[1.0, -0.5], [-1.0, 0.2], [0.3, 1.0], kept]))


def test_a_single_draw_is_held_against_those_before_it() -> None:
    guard = GradientGuard()
    for size in (1.0, 3.0, 2.0):
        torch.testing.assert_close(guard(torch.full((2,), size)), torch.full((2,), size))
    torch.testing.assert_close(guard(torch.full((2,), 1e9)), torch.full((2,), 200.0))
    # What stays larger is what is usual, after a while.
    for _ in range(60):
        found = guard(torch.full((2,), 1e9))
    torch.testing.assert_close(found, torch.full((2,), 1e9))


@pytest.mark.parametrize("value", [0.0, NAN, INF])
def test_batches_without_a_usual_gradient(value: float) -> None:
    found = GradientGuard()(torch.full((4, 3), value))
    torch.testing.assert_close(found, torch.zeros(4, 3))


def test_usual_gradients_are_the_very_same_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = GradientGuard()
    with caplog.at_level(logging.WARNING, "made_flows"):
        for _ in range(20):
            rows = torch.randn(16, 5)
            assert guard(rows) is rows
    assert not caplog.records


def test_gradients_are_held_against_their_weights() -> None:
    """Where an objective weighs draws, one may have all of the gradient, and rightly so."""
    rows = torch.tensor([[1.0, -0.5], [0.3, 1.0], [-400.0, 0.0], [NAN, 1.0], [5e4, 0.0]])
    weights = torch.tensor([1e-2, 1.0, 1e-3, 1e-2, 1e-40])
    kept = torch.tensor([[1.0, -0.5], [0.3, 1.0], [-100.0, 0.0], [0.0, 0.0], [100.0, 0.0]])
    found = GradientGuard()(rows * weights[:, None], weights)
    torch.testing.assert_close(found, kept * weights[:, None], atol=1e-37, rtol=1e-4)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("path_gradient", [True, False])
def test_bounds_that_weigh_draws_train_as_without_a_guard(
    vectorize: bool, path_gradient: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What the best draw said was limited to a hundred times what the worst ones did."""
    y = 1 + 2 * torch.randn(90)

    def model() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        s = pyro.sample("s", dist.InverseGamma(3.0, 2.0))
        with pyro.plate("rows", 90):
            pyro.sample("y", dist.Normal(m, s), obs=y)

    ends = []
    for guarded in (True, False):
        torch.manual_seed(0)
        guide = AutoIAF(model, 1, (8,), init_scale=1.0, path_gradient=path_gradient)
        guide()
        if not guarded:
            guide._guard = None  # type: ignore[assignment]
        elbo = RenyiELBO(0.0, 8, max_plate_nesting=1, vectorize_particles=vectorize)
        optimizer = torch.optim.Adam(guide.parameters(), 0.01)
        for _ in range(5):
            optimizer.zero_grad()
            elbo.loss_and_grads(model, guide)
            optimizer.step()
        ends.append(guide.flow.generate(torch.ones(1, 2)).detach())
    torch.testing.assert_close(*ends)
    assert not caplog.records


def _moving_average(y: Tensor) -> None:
    """An MA(1) model whose residuals explode for |theta| > 1."""
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    residual, total = y[0], torch.zeros(())
    for value in y[1:]:
        residual = value - theta * residual
        total = total - 0.5 * (residual / sigma) ** 2 - sigma.log()
    pyro.factor("likelihood", total)


def test_plain_adam_survives_explosive_draws(caplog: pytest.LogCaptureFixture) -> None:
    noise = 0.2 * torch.randn(150)
    y = noise[1:] + 0.6 * noise[:-1]
    guide = AutoIAF(_moving_average, transforms=1, init_scale=1.0)
    elbo = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(_moving_average, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    with caplog.at_level(logging.WARNING, "made_flows"):
        for _ in range(250):
            svi.step(y)
    assert len(caplog.records) == 1  # such draws were there, and it was said once
    draws = guide.get_posterior().sample((500,))
    assert draws.isfinite().all()
    assert float(draws[:, 0].mean()) == pytest.approx(0.6, abs=0.3)
    assert float(draws[:, 1].exp().mean()) == pytest.approx(0.2, abs=0.1)
