"""What other libraries document, small, as it is and with ours: the same numbers, and how fast.

Every client trains something for a moment and gives a function that draws from it. Times are
printed, and nothing depends on them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import nflows.distributions as nd
import nflows.flows as nfl
import nflows.transforms as nt
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pt
import pyro.nn as pn
import pytest
import torch
import zuko
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor, nn

import made_flows as mf
import made_flows.pyro as mp

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ROWS, SAMPLES, D = 300, 1000, 8

Client = tuple[Any, Callable[[Any], Any]]


def train(parameters: Any, loss: Callable[[], Tensor], steps: int = 20) -> None:
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def sbi_posterior(density_estimator: Any) -> Client:
    sbi = pytest.importorskip("sbi.inference")
    prior = pytest.importorskip("sbi.utils").BoxUniform(-3 * torch.ones(D), 3 * torch.ones(D))
    theta = prior.sample((ROWS,))
    x = theta + torch.randn(ROWS, D)
    trainer = sbi.NPE(prior, density_estimator=density_estimator, show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=2, training_batch_size=100)
    draw = partial(_sample_posterior, x=x[0])
    return trainer.build_posterior(), draw


def _sample_posterior(posterior: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    samples = posterior.sample(
        (SAMPLES,), x=x, reject_outside_prior=False, show_progress_bars=False
    )
    estimator = posterior.posterior_estimator
    return samples, estimator.log_prob(samples[:, None], x[None])


def nflows_readme() -> Client:
    transform = nt.CompositeTransform(
        [nt.MaskedAffineAutoregressiveTransform(D, 16), nt.RandomPermutation(D)] * 2
    )
    flow = nfl.Flow(transform, nd.StandardNormal([D]))
    x = torch.randn(ROWS, D).cumsum(1)
    train(flow.parameters(), lambda: -flow.log_prob(x).mean())
    return flow, lambda flow: flow.sample_and_log_prob(SAMPLES)


def zuko_readme() -> Client:
    flow = zuko.flows.NSF(D, 5, transforms=3, hidden_features=[64] * 3)
    c = torch.randn(ROWS, 5)
    x = torch.randn(ROWS, D).cumsum(1) + c[:, :1]
    train(flow.parameters(), lambda: -flow(c).log_prob(x).mean())
    return flow, lambda flow: flow(c[0]).rsample_and_log_prob((SAMPLES,))


def lampe_npe() -> Client:
    inference = pytest.importorskip("lampe.inference")
    npe = inference.NPE(D, 5, transforms=3, build=zuko.flows.MAF, hidden_features=[64] * 3)
    loss, x = inference.NPELoss(npe), torch.randn(ROWS, 5)
    theta = x[:, :1] + torch.randn(ROWS, D)
    train(npe.parameters(), lambda: loss(theta, x))
    return npe, lambda npe: npe.flow(x[0]).rsample_and_log_prob((SAMPLES,))


CLIENTS: dict[str, Callable[[], Client]] = {
    **{
        f"sbi, NPE, {name}": partial(sbi_posterior, name)
        for name in ("maf", "maf_rqs", "made", "zuko_maf", "zuko_nsf")
    },
    "nflows, README": nflows_readme,
    "zuko, README": zuko_readme,
    "lampe, NPE": lampe_npe,
}


def timed(draw: Callable[[Any], Any], model: Any) -> tuple[Any, float]:
    with torch.no_grad():
        draw(model)  # what is compiled, is compiled now
        torch.manual_seed(1)
        start = time.perf_counter()
        return draw(model), time.perf_counter() - start


@pytest.mark.parametrize("name", CLIENTS)
def test_the_same_numbers_after_acceleration(name: str) -> None:
    model, draw = CLIENTS[name]()
    fast = mf.accelerate(copy.deepcopy(model))
    assert mf.acceleration(fast).fast
    assert not mf.acceleration(fast).left
    (expected, plain), (actual, quick) = timed(draw, model), timed(draw, fast)
    times = f"{plain * 1e3:.0f} ms, {quick * 1e3:.0f} accelerated: {plain / quick:.1f} times"
    print(f"{name}: {times}")  # noqa: T201
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4)


# ---------------------------------------------------------------------- Pyro, by the import

Z, H, STEPS = 4, 6, 3


class DMM(nn.Module):
    """Pyro's deep Markov model with inverse autoregressive flows in its guide, small."""

    def __init__(self, transforms: Any, networks: Any) -> None:
        super().__init__()
        self.emission, self.transition = nn.Linear(Z, 5), nn.Linear(Z, Z)
        self.rnn, self.combine = nn.RNN(5, H, batch_first=True), nn.Linear(Z + H, 2 * Z)
        self.iafs = nn.ModuleList(
            transforms.AffineAutoregressive(networks.AutoRegressiveNN(Z, [12])) for _ in range(2)
        )

    def model(self, x: Tensor) -> None:
        pyro.module("dmm", self)
        z = x.new_zeros(len(x), Z)
        with pyro.plate("rows", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(self.transition(z), 1.0).to_event(1))
                pyro.sample(
                    f"x_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t]
                )

    def guide(self, x: Tensor) -> None:
        pyro.module("dmm", self)
        states, z = self.rnn(x)[0], x.new_zeros(len(x), Z)
        with pyro.plate("rows", len(x)):
            for t in range(x.shape[1]):
                location, raw = self.combine(torch.cat([z, states[:, t]], -1)).chunk(2, -1)
                base = dist.Normal(location, nn.functional.softplus(raw)).to_event(1)
                z = pyro.sample(f"z_{t}", dist.TransformedDistribution(base, list(self.iafs)))


def test_pyros_deep_markov_model() -> None:
    x = torch.bernoulli(torch.full((10, 4, 5), 0.4))
    theirs, ours = DMM(pt, pn), DMM(mp, mp)
    ours.load_state_dict(theirs.state_dict())
    losses = []
    for dmm in (theirs, ours):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = SVI(dmm.model, dmm.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        losses.append([svi.step(x) for _ in range(STEPS)])
    pyro.clear_param_store()
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]))


def test_pyros_neutra() -> None:
    def model() -> None:
        y = pyro.sample("y", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(3), torch.exp(y / 2)).to_event(1))

    samples, state = [], {}
    for transforms in (pt, mp):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormalizingFlow(
            model,
            partial(pt.iterated, 2, partial(transforms.affine_autoregressive, hidden_dims=[8])),
        )
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        assert all(torch.isfinite(torch.tensor(svi.step())) for _ in range(20))
        state = state or copy.deepcopy(guide.state_dict())
        guide.load_state_dict(state)  # the same, so that the chains are
        neutra = NeuTraReparam(guide.requires_grad_(False))
        pyro.set_rng_seed(1)
        kernel = NUTS(neutra.reparam(model), max_tree_depth=3)
        mcmc = MCMC(kernel, num_samples=4, warmup_steps=4, disable_progbar=True)
        mcmc.run()
        samples.append(mcmc.get_samples()[next(iter(mcmc.get_samples()))])
    pyro.clear_param_store()
    assert samples[0].shape == (4, 4)
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-3, atol=1e-3)
