"""Modes that no draw of a guide fell into: their share, and that none are seen where none are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("pyro")

import pyro
import pyro.distributions as dist

from made_flows.pyro import AutoIAF, diagnose
from made_flows.pyro.unseen import unseen_share
from made_flows.pyro.whitened import Whitened


class Plain:
    """A density of unconstrained variables, and a prior that has no draws."""

    def __init__(self, log_density: Callable[[Tensor], Tensor]) -> None:
        self._log_density = log_density

    def __call__(self, u: Tensor) -> Tensor:
        return self._log_density(u)

    def from_prior(self, count: int) -> Tensor:
        raise NotImplementedError


def share_of(log_density: Callable[[Tensor], Tensor], draws: Tensor, evidence: float) -> float:
    even = torch.full((len(draws),), 1 / len(draws), dtype=torch.float64)
    posterior = Whitened(Plain(log_density), draws.double(), even)  # type: ignore[arg-type]
    found = unseen_share(posterior, evidence, 128, 200)
    assert found is not None
    return found


def two_modes(apart: float, share: float, size: int) -> Callable[[Tensor], Tensor]:
    """The log-density of two normal modes; the second, of other spreads, has the share."""
    place, scales = torch.zeros(size).double(), torch.linspace(0.5, 2.0, size).double()
    place[0] = apart
    first = dist.Normal(torch.zeros(size).double(), 1.0).to_event(1)
    second = dist.Normal(place, scales).to_event(1)

    def log_density(u: Tensor) -> Tensor:
        parts = math.log(1 - share) + first.log_prob(u), math.log(share) + second.log_prob(u)
        return torch.logaddexp(*parts)

    return log_density


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("apart", [6.0, 20.0, 50.0])
@pytest.mark.parametrize("size", [1, 10])
def test_a_mode_that_is_left_out_is_found_with_its_share(
    size: int, apart: float, share: float
) -> None:
    draws = torch.randn(2000, size)
    found = share_of(two_modes(apart, share, size), draws, math.log(1 - share))
    assert found == pytest.approx(share, rel=0.2)


def mirrored(places: float, share: float) -> Callable[[Tensor], Tensor]:
    """The log-density of a mode that is far from normal, and of its mirror image with a share."""

    def gumbel(u: Tensor) -> Tensor:
        return (-(u - places) - torch.exp(-(u - places))).sum(dim=-1)

    return lambda u: torch.logaddexp(math.log(1 - share) + gumbel(u), math.log(share) + gumbel(-u))


@pytest.mark.parametrize(("size", "share"), [(40, 0.5), (40, 0.25), (40, 0.0), (250, 0.5)])
def test_a_mode_of_many_dimensions_is_weighed_beside_its_like(size: int, share: float) -> None:
    """A normal approximation of it is 9 and 57 nats below its mass."""
    draws = 8 - torch.empty(2000, size).exponential_().log()
    both = mirrored(8.0, share or 1e-9)
    assert share_of(both, draws, math.log(1 - share)) == pytest.approx(share, abs=0.03)


def test_a_mode_along_a_narrow_bend_is_climbed_to() -> None:
    """Climbs along the axes alone had not arrived in most tries."""

    def bent(u: Tensor) -> Tensor:
        x, y = u.unbind(dim=-1)
        return -x.square() / 2 - (20 * (y - x.square())).square() / 2 + math.log(20)

    def both(u: Tensor) -> Tensor:
        return torch.logaddexp(bent(u + 8), bent(8 - u)) - math.log(4 * math.pi)

    x = torch.randn(2000)
    draws = torch.stack([x, x.square() + torch.randn(2000) / 20], dim=-1) - 8
    found = [share_of(both, draws, -math.log(2)) for _ in range(3)]
    assert found == pytest.approx([0.5] * 3, abs=0.25)


def test_a_mode_of_no_mass_is_none() -> None:
    draws = torch.randn(2000, 3)
    assert share_of(two_modes(20.0, 0.002, 3), draws, 0.0) == 0


def test_a_mode_with_draws_is_none() -> None:
    """Three modes, two with draws: one between them is found, and not if it has draws itself."""

    def log_density(u: Tensor) -> Tensor:
        places = torch.tensor([-20.0, 0.0, 20.0]).double()
        return dist.Normal(places, 1.0).log_prob(u).logsumexp(dim=-1) - math.log(3)

    draws = torch.randn(1998, 1) + torch.tensor([-20.0, 20.0, 0.0]).repeat(666)[:, None]
    assert share_of(log_density, draws, 0.0) == 0
    without = draws[draws[:, 0].abs() > 10]
    assert share_of(log_density, without, math.log(2 / 3)) == pytest.approx(1 / 3, rel=0.1)


def _funnel(u: Tensor) -> Tensor:
    v, x = u[:, 0], u[:, 1:]
    return dist.Normal(0.0, 3.0).log_prob(v) + dist.Normal(0.0, (v / 2).exp()[:, None]).log_prob(
        x
    ).sum(dim=-1)


def _funnel_draws() -> Tensor:
    v = 3 * torch.randn(2000, 1).double()
    return torch.cat([v, (v / 2).exp() * torch.randn(2000, 4).double()], dim=-1)


def _student(u: Tensor) -> Tensor:
    return dist.StudentT(3.0).log_prob(u).sum(dim=-1)


def _bent(u: Tensor) -> Tensor:
    normal = dist.Normal(0.0, 1.0)
    return (
        normal.log_prob(u[:, 0] / 3)
        - math.log(3)
        + normal.log_prob(4 * (u[:, 1] - u[:, 0].square()))
        + math.log(4)
    )


def _bent_draws() -> Tensor:
    x = 3 * torch.randn(2000).double()
    return torch.stack([x, x.square() + torch.randn(2000).double() / 4], dim=-1)


ONE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]] = {
    "normal": (lambda u: dist.Normal(0.0, 1.0).log_prob(u).sum(-1), lambda: torch.randn(2000, 20)),
    "heavy": (_student, lambda: torch.distributions.StudentT(3.0).sample((2000, 4))),
    "funnel": (_funnel, _funnel_draws),
    "bent": (_bent, _bent_draws),
}


@pytest.mark.parametrize("name", ONE)
def test_one_mode_is_no_alarm(name: str) -> None:
    """Right draws: none in three times 128 climbs; by chance one in ten thousand tests."""
    log_density, draws = ONE[name]
    assert [share_of(log_density, draws(), 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def exchanged(y: Tensor) -> None:
    """Two means without labels; a model that needs ``vectorize=False``."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    assert mu.shape == (2,)
    each = dist.Normal(mu, 1.0).log_prob(y[:, None])
    pyro.factor("y", (each.logsumexp(dim=-1) - math.log(2)).sum())


def one_of_two(y: Tensor) -> None:
    low, high = y[y < 0], y[y >= 0]
    middle = torch.stack([low.mean(), high.mean()])
    spread = torch.tensor([len(low), len(high)]).rsqrt()
    pyro.sample("mu", dist.Normal(middle, spread).to_event(1))


def test_the_verdict_of_models_that_run_one_point_at_a_time() -> None:
    y = torch.cat([torch.randn(15) - 5, torch.randn(15) + 5])
    assert diagnose(exchanged, one_of_two, y, samples=300, vectorize=False, probe=False).trusted
    found = diagnose(exchanged, one_of_two, y, samples=300, vectorize=False)
    assert found.unseen == pytest.approx(0.5, abs=0.1)
    assert found.grade == "not yet"
    assert "a mode with about 5" in found.verdict
    assert "modes=2" in found.verdict


def test_the_verdict_on_a_guide() -> None:
    """Twenty deviations apart: chains from the guide's own draws do not get there."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        right, wrong = (dist.Normal(m, 0.5).log_prob(x).sum(dim=-1) for m in (-3.0, 3.0))
        pyro.factor("modes", torch.logaddexp(right, wrong))

    guide = AutoIAF(model, init_loc_fn=lambda site: torch.full((2,), 3.0), init_scale=0.5)
    guide()
    found = guide.diagnose(samples=500)
    assert found.unseen == pytest.approx(0.5, abs=0.1)
    assert not found.trusted
    assert "in unseen modes" in repr(found)


def test_points_without_a_density_are_no_error_for_the_others() -> None:
    def log_density(u: Tensor) -> Tensor:
        if bool((u[:, 1].abs() > 30).any()):
            raise RuntimeError("not positive definite")
        return two_modes(20.0, 0.5, 2)(u)

    found = share_of(log_density, torch.randn(500, 2), math.log(0.5))
    assert found == pytest.approx(0.5, rel=0.2)


def test_where_there_is_nothing_to_climb_by() -> None:
    assert share_of(lambda u: -u.abs().sum(dim=-1), torch.randn(200, 2), 0.0) == 0
    many = torch.randn(200, 201).double()  # with few climbs, second derivatives are too many
    posterior = Whitened(Plain(two_modes(9.0, 0.5, 201)), many, torch.full((200,), 0.005).double())  # type: ignore[arg-type]
    assert unseen_share(posterior, 0.0, 4, 10) is None
