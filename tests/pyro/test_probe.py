"""The probe beyond a guide's draws: what it finds, and that it finds nothing where all is right."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("pyro")

import pyro
import pyro.distributions as dist

from made_flows.pyro import Diagnosis, Probe, Refinement, diagnose
from made_flows.pyro.layout import LatentSite
from made_flows.pyro.probe import _Chains, _NormalScores, probe_beyond
from made_flows.pyro.whitened import whitened


def correlated(x: Tensor) -> Tensor:
    """The log-density of two normal numbers that are correlated by 0.9."""
    return -(x[..., 0].square() + (x[..., 1] - 0.9 * x[..., 0]).square() / 0.19) / 2


def plates() -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Normal(0.0, scale))
        pyro.sample("share", dist.Dirichlet(torch.full((3,), 4.0)))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Normal(theta, 1.0))


def own(scale: float = 1.0) -> None:
    """A guide that is the model; with a scale below one, its effects are too narrow."""
    spread = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Normal(0.0, scale * spread))
        pyro.sample("share", dist.Dirichlet(torch.full((3,), 4.0)))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Normal(theta, scale))


def modes(apart: float) -> None:
    """Two modes of standard deviation 0.5, and three normal numbers."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))
    pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    left, right = (-2 * (x + side * apart / 2).square() for side in (-1, 1))
    pyro.factor("modes", torch.logaddexp(left, right))


def one_mode(apart: float) -> None:
    pyro.sample("x", dist.Normal(apart / 2, 0.48))
    pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_a_right_guide_is_left_alone() -> None:
    """By chance, one in five hundred wanders."""
    found = diagnose(plates, own)
    assert found.probe is not None
    assert not found.probe.wandered
    assert found.probe.travelled > 0.5
    assert found.grade == "as drawn"
    assert "stayed where they are" in found.verdict


def test_a_guide_in_one_of_two_modes() -> None:
    """Modes eight standard deviations apart: its weights are nearly one, and do not show it."""
    assert diagnose(modes, one_mode, 4.0, probe=False).grade == "as drawn"
    found = diagnose(modes, one_mode, 4.0)
    assert found.probe is not None
    assert found.probe.wandered
    assert not found.trusted
    assert found.probe.beyond > 0.1
    assert "wandered off" in found.verdict
    assert "mass where none of its draws fell" in found.verdict


def test_a_narrow_guide() -> None:
    found = diagnose(plates, lambda: own(0.4))
    assert found.probe is not None
    assert found.probe.wandered
    assert not found.trusted
    assert f"{found.probe.moved:.2f} sd" in str(found)


def test_no_probe() -> None:
    def coin() -> None:
        pyro.sample("side", dist.Bernoulli(0.5))

    def single() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    assert diagnose(coin, coin).probe is None  # no gradient
    assert diagnose(single, single, probe=False).probe is None
    assert diagnose(single, single, vectorize=False, samples=100).probe is None


def test_where_chains_cannot_go_there_is_no_error() -> None:
    """Points without a Cholesky factor are walls."""

    def wall() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if bool((x > 3.5).any()):
            raise RuntimeError("not positive definite")

    def narrow() -> None:
        pyro.sample("x", dist.Normal(0.0, 0.7))

    found = diagnose(wall, narrow)
    assert found.probe is not None


@pytest.mark.parametrize("heat", [0.0, 0.2])
def test_chains_leave_a_density_as_it_is(heat: float) -> None:
    """Moments of 4000 chains; a false alarm in 10^4 runs."""
    start = torch.randn(4000, 2, dtype=torch.float64)
    start[:, 1] = 0.9 * start[:, 0] + 0.19**0.5 * start[:, 1]
    chains = _Chains(correlated, start)
    shares = [chains.advance(0.3, heat, 12) for _ in range(6)]
    assert 0.5 < min(shares) < 1
    moments = torch.cat([chains.points, chains.points.square(), chains.points.prod(1, True)], 1)
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.9], dtype=torch.float64)
    errors = moments.std(dim=0) / 4000**0.5
    assert ((moments.mean(dim=0) - expected) / errors).abs().max() < 4.3
    assert (chains.points - start).norm(dim=-1).mean() > 0.8
    torch.testing.assert_close(chains.value, correlated(chains.points))


def test_normal_scores_of_weighted_draws() -> None:
    draws = torch.randn(20_000, 1, dtype=torch.float64) * 2 + 1
    weights = (-(draws[:, 0]).square() / 2 + (draws[:, 0] - 1).square() / 8).exp()
    scores = _NormalScores(draws, weights / weights.sum())
    points = torch.tensor([[-1.5], [0.0], [0.7]], dtype=torch.float64)
    torch.testing.assert_close(scores(points), points, atol=0.08, rtol=0)
    assert scores(torch.full((1, 1), 1e9, dtype=torch.float64)).isfinite()


def test_a_density_without_a_gradient_is_no_error() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))
        pyro.factor("height", -x.detach().square() / 2)

    assert diagnose(model, lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).probe is None


def test_draws_on_the_edge_of_a_support_are_left_out() -> None:
    prior = dist.LogNormal(0.0, 1.0)
    site = {"x": LatentSite(prior, torch.tensor(0.5))}
    draws, weights = torch.zeros(200), torch.full((200,), 1 / 200)
    sample = partial(pyro.sample, "x", prior)
    assert whitened(sample, 0, site, {"x": draws}, weights.double()) is None
    draws[:150] = prior.sample((150,))
    posterior = whitened(sample, 0, site, {"x": draws}, weights.double())
    assert posterior is not None
    assert len(posterior.draws) == 150
    found = probe_beyond(posterior)
    assert found is not None
    assert not found.wandered


def test_chains_that_hardly_moved_say_so() -> None:
    probe = Probe(moved=0.0, moved_noise=0.0, beyond=0.0, beyond_noise=0.05, travelled=0.1)
    assert "hardly moved" in replace(_diagnosis(4.0), probe=probe).verdict


# ---------------------------------------------------------------------- ArviZ


def _diagnosis(effective: float) -> Diagnosis:
    log_weights = torch.tensor([0.0, 0.0, 0.0 if effective == 4 else -1e9, 0.0]).double()
    samples = {"x": torch.arange(4.0), "y": torch.arange(8.0).reshape(4, 2)}
    return Diagnosis(
        0.1, 0.7, effective, 0.0, 0.0, 0.0, 0.0, log_weights, log_weights, samples, (0.1,)
    )


@pytest.mark.parametrize(("version", "key"), [("0.23.4", "keywords"), ("1.2.0", "positions")])
def test_draws_for_arviz(monkeypatch: pytest.MonkeyPatch, version: str, key: str) -> None:
    """By a module that keeps what it is given: either interface of ArviZ."""
    kept: dict[str, Any] = {}

    def from_dict(*args: Any, **kwargs: Any) -> str:
        kept.update(positions=args[0] if args else None, keywords=kwargs)
        return "converted"

    fake = types.SimpleNamespace(__version__=version, from_dict=from_dict)
    monkeypatch.setitem(sys.modules, "arviz", fake)  # type: ignore[arg-type]
    assert _diagnosis(4.0).to_arviz() == "converted"
    posterior = kept[key]["posterior"]
    assert posterior["x"].tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert posterior["y"].shape == (1, 4, 2)
    _diagnosis(2.0).to_arviz()  # by weight: never the draw that has none
    assert 2.0 not in kept[key]["posterior"]["x"]
    chains = {"x": torch.zeros(3, 5)}
    assert Refinement(chains, {}, {}).to_arviz() == "converted"
    assert kept[key]["posterior"]["x"].shape == (3, 5)


def test_arviz_itself() -> None:
    arviz = pytest.importorskip("arviz")
    tree = _diagnosis(4.0).to_arviz()
    assert tree["posterior"]["y"].shape == (1, 4, 2)
    assert arviz.summary(tree).shape[0] == 3


def test_without_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"made-flows\[arviz\]"):
        _diagnosis(4.0).to_arviz()
