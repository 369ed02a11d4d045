"""ConditionalIAF: posteriors with location, scale and context from an encoder."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO  # noqa: E402

import made_flows as mf  # noqa: E402
import made_flows.inverse.sequential  # noqa: E402
from made_flows.pyro import ConditionalIAF  # noqa: E402
from tests.helpers.flow_models import shaken  # noqa: E402

F64 = torch.float64
C = 3

POSTERIORS: dict[str, dict[str, Any]] = {
    "gated": {},
    "one step": {"transforms": 1},
    "affine": {"bijection": "affine", "order": "random"},
    "spline": {"bijection": "spline", "transforms": 1},
    "residual": {"residual": True, "activation": "elu", "direct": True},
}

every = pytest.mark.parametrize("kind", POSTERIORS)
sizes = pytest.mark.parametrize("features", [1, 4])


def posterior_of(kind: str = "gated", features: int = 4) -> ConditionalIAF:
    return shaken(ConditionalIAF(features, C, **{"hidden_features": (12, 12), **POSTERIORS[kind]}))


def encoded(*batch: int, features: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Location, scale and context."""
    loc, raw, context = torch.randn(*batch, 2 * features + C, dtype=F64).split(
        [features, features, C], dim=-1
    )
    return loc, raw.exp(), context


@sizes
@every
def test_scores_are_those_of_the_steps_of_the_paper(kind: str, features: int) -> None:
    """From noise to z step by step, adding up the logarithms of the scales."""
    posterior, (loc, scale, h) = posterior_of(kind, features), encoded(6, features=features)
    noise = torch.randn(6, features, dtype=F64)
    z = loc + scale * noise
    log_prob = dist.Normal(0.0, 1.0).log_prob(noise).sum(dim=-1) - scale.log().sum(dim=-1)
    for step in reversed(list(posterior.flow.transforms)):
        z, each = step.bijection.forward(z, step.conditioner(z, h))
        log_prob = log_prob - each.sum(dim=-1)
    torch.testing.assert_close(posterior(loc, scale, h).log_prob(z), log_prob)


def test_the_gate_is_that_of_the_paper() -> None:
    posterior, (loc, scale, h) = shaken(ConditionalIAF(4, C, 1, (12,))), encoded(6)
    (step,) = posterior.flow.transforms
    z0 = loc + scale * torch.randn(6, 4, dtype=F64)
    m, s = step.conditioner(z0, h).unbind(-1)
    gate = torch.sigmoid(s + 2) + 1e-3
    z1 = posterior.condition(h)(z0)
    torch.testing.assert_close(z1, gate * z0 + (1 - gate) * m)


@sizes
@every
def test_shapes_broadcast(kind: str, features: int) -> None:
    posterior = posterior_of(kind, features)
    for batch in ((), (3,), (2, 3)):
        loc, scale, h = encoded(*batch, features=features)
        q = posterior(loc, scale, h)
        assert (q.batch_shape, q.event_shape) == (batch, (features,))
        for sample in ((), (5,)):
            z = q.rsample(sample)
            assert z.shape == (*sample, *batch, features)
            assert q.log_prob(z).shape == (*sample, *batch)
    loc, scale, h = encoded(3, features=features)
    assert posterior(loc[0], scale, h[:, None]).batch_shape == (3, 3)
    assert posterior(loc[0], scale[0], h).rsample().shape == (3, features)


@every
def test_a_sample_is_scored_without_an_inverse(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, given = posterior_of(kind), encoded(5)
    q = posterior(*given)
    z = q.rsample()
    solved: list[str] = []
    own = mf.AutoregressiveTransform._solve
    monkeypatch.setattr(
        mf.AutoregressiveTransform, "_solve", lambda *a: solved.append("once") or own(*a)
    )
    score = q.log_prob(z)
    assert solved == []
    outside = q.log_prob(z.clone())
    assert solved == ["once"] * len(posterior.flow.transforms)
    torch.testing.assert_close(score, outside)


@every
def test_gradients_reach_encoder_and_flow(kind: str) -> None:
    posterior, given = posterior_of(kind), [t.requires_grad_() for t in encoded(5)]
    loc, scale, h = given[0], given[1].detach().requires_grad_(), given[2]
    q = posterior(loc, scale, h)
    z = q.rsample()
    (q.log_prob(z) + z.pow(2).sum(dim=-1)).sum().backward()
    for tensor in (loc, scale, h, *posterior.parameters()):
        assert tensor.grad is not None
        assert bool((tensor.grad != 0).any())


def test_gradients_of_a_score_do_not_depend_on_the_memory() -> None:
    """A sample that is scored from memory, and one that is inverted, agree."""
    posterior, given = posterior_of(), [t.detach().requires_grad_() for t in encoded(5)]
    parts = [*given, *posterior.parameters()]
    found = []
    for remembered in (True, False):
        torch.manual_seed(1)
        q = posterior(*given)
        z = q.rsample()
        loss = q.log_prob(z if remembered else z.clone()).sum()
        found.append(torch.autograd.grad(loss, parts))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_no_score_is_that_of_another_moment() -> None:
    posterior, (loc, scale, h) = posterior_of(), encoded(5)
    q = posterior(loc, scale, h)
    z = q.sample()

    def fresh() -> Tensor:
        return copy.deepcopy(posterior)(loc, scale, h).log_prob(z.clone())

    torch.testing.assert_close(q.log_prob(z), fresh())
    changes = {
        "weights": lambda: [p.data.mul_(1.3) for p in posterior.parameters()],
        "weights, in place": lambda: [p.detach().mul_(0.8) for p in posterior.parameters()],
        "context": lambda: h.add_(0.5),
        "sample": lambda: z.add_(0.1),
    }
    for name, change in changes.items():
        before = q.log_prob(z)
        change()
        torch.testing.assert_close(q.log_prob(z), fresh(), msg=name)
        assert not torch.allclose(q.log_prob(z), before), name


def test_backward_twice_and_a_copy_in_between() -> None:
    posterior, given = posterior_of(), encoded(5)
    q = posterior(*given)
    z = q.rsample()
    q.log_prob(z).sum().backward()
    again = pickle.loads(pickle.dumps(copy.deepcopy(posterior)))
    q.log_prob(z.detach()).sum().backward()
    torch.testing.assert_close(again(*given).log_prob(z.detach()), q.log_prob(z.detach()))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_precision_is_that_of_the_weights(dtype: torch.dtype) -> None:
    posterior = posterior_of().to(dtype)
    loc, scale, h = (t.to(dtype) for t in encoded(5))
    q = posterior(loc, scale, h)
    z = q.rsample()
    assert z.dtype == q.log_prob(z).dtype == q.log_prob(z.clone()).dtype == dtype
    other = torch.float32 if dtype is F64 else F64
    with pytest.raises(TypeError, match=f"Expected loc of dtype {dtype}.*; got {other}"):
        posterior(loc.to(other), scale, h)


WRONG: dict[str, tuple[Any, str]] = {
    "no context": (lambda a, b, c: (a, b, None), "Expected context to be a torch.Tensor"),
    "context's size": (lambda a, b, c: (a, b, c[:, :2]), r"Expected context of shape \(..., 3\)"),
    "loc's size": (lambda a, b, c: (a[:, :2], b, c), r"Expected loc of shape \(..., 4\)"),
    "a number": (lambda a, b, c: (a, 1.0, c), "Expected scale to be a torch.Tensor"),
    "rows": (lambda a, b, c: (a, b, c[:2]), r"broadcast together; got .*context \(2,\)"),
    "a negative scale": (lambda a, b, c: (a, -b, c), "Expected parameter scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_clear_errors(case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        posterior_of()(*change(*encoded(5)))


def test_wrong_constructions_are_clear_errors() -> None:
    with pytest.raises(ValueError, match="Expected context to be a positive integer; got 0"):
        ConditionalIAF(4, 0)
    with pytest.raises(TypeError, match=r"ConditionalIAF takes; got base\. It takes features"):
        ConditionalIAF(4, 2, base=mf.GaussianMADE(4))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Expected bijection to be a Bijection or one of"):
        ConditionalIAF(4, 2, bijection="round")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- in a VAE


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 2 * 2 + C)
        self.posterior = ConditionalIAF(2, C, 2, (8,))

    def forward(self, x: Tensor) -> Any:
        loc, raw, h = self.net(x).split([2, 2, C], dim=-1)
        return self.posterior(loc, nn.functional.softplus(raw) + 0.01, h)


def vae() -> tuple[Any, Any, nn.Module]:
    encoder, decoder = Encoder(), nn.Linear(2, 5)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("rows", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("rows", x.shape[0], dim=-1):
            pyro.sample("z", encoder(x))

    return model, guide, encoder


LOSSES: dict[str, Any] = {
    "one particle": Trace_ELBO,
    "particles": lambda: Trace_ELBO(num_particles=3),
    "particles at once": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean field": lambda: TraceMeanField_ELBO(num_particles=2, vectorize_particles=True),
    "traced": lambda: JitTrace_ELBO(ignore_jit_warnings=True),
    "traced, particles at once": lambda: JitTrace_ELBO(
        num_particles=3, vectorize_particles=True, ignore_jit_warnings=True
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_vae_learns_under_every_loss(loss: str) -> None:
    x = (torch.rand(40, 5) < torch.tensor([0.9, 0.9, 0.1, 0.5, 0.1])).float()
    model, guide, encoder = vae()
    before = [p.clone() for p in encoder.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.04}), LOSSES[loss]())
    losses = [svi.step(x) for _ in range(70)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert all(not torch.equal(p, q) for p, q in zip(encoder.parameters(), before, strict=True))


def test_the_elbo_of_vectorised_particles_is_that_of_single_ones() -> None:
    """The log-density that a traced guide reports is that of a fresh distribution."""
    _, guide, encoder = vae()
    x = torch.rand(7, 5).round()
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == (4, 7, 2)
    expected = encoder(x).log_prob(z.clone())
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected, rtol=1e-4, atol=1e-4)
