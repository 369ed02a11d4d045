"""Our transforms in Pyro's own guide and in NeuTra, where they meet funnels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormalizingFlow  # noqa: E402
from pyro.infer.reparam import NeuTraReparam  # noqa: E402

import made_flows.pyro as mp  # noqa: E402

DIMENSIONS = 3

FLOWS: dict[str, Any] = {
    "affine": lambda D: mp.affine_autoregressive(D, hidden_dims=[16]),
    "spline": lambda D: mp.spline_autoregressive(D, hidden_dims=[16], count_bins=4),
    "IAF": lambda D: mp.IAF(D, transforms=2, hidden_features=(16,)),
    "IAF, gated": lambda D: mp.IAF(D, transforms=2, hidden_features=(16,), bijection="gated"),
    "MAF": lambda D: mp.MAF(D, transforms=2, hidden_features=(16,)),
    "inverse of affine": lambda D: mp.affine_autoregressive(D, hidden_dims=[16]).inv,
}


def funnel() -> None:
    """Neal's funnel: a log-variance, and values of that variance."""
    v = pyro.sample("v", dist.Normal(0.0, 2.0))
    scale = (v / 2).exp().unsqueeze(-1)
    pyro.sample("x", dist.Normal(torch.zeros(DIMENSIONS - 1), scale).to_event(1))


def trained(flow: Any, steps: int) -> tuple[Any, float, float]:
    """Pyro's guide of a flow, and its divergence from the funnel before training and after.

    The funnel is normalised, so that the loss is that divergence.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormalizingFlow(funnel, flow)
    many = Trace_ELBO(num_particles=2000, vectorize_particles=True)
    before = many.loss(funnel, guide)
    loss = Trace_ELBO(num_particles=32, vectorize_particles=True)
    rate = {"lr": 0.03, "lrd": 0.02 ** (1 / steps)}
    svi = SVI(funnel, guide, pyro.optim.ClippedAdam(rate), loss)
    for _ in range(steps):
        svi.step()
    return guide, before, many.loss(funnel, guide)


@pytest.mark.parametrize("name", FLOWS)
def test_pyros_guide_of_any_flow_learns_a_funnel(name: str) -> None:
    guide, before, after = trained(FLOWS[name], 150)
    assert after < 0.8 * before
    posterior = guide.get_posterior()
    z = posterior.rsample((50,))
    torch.testing.assert_close(
        posterior.log_prob(z), posterior.log_prob(z.clone()), rtol=1e-3, atol=1e-3
    )
    drawn = Predictive(funnel, guide=guide, num_samples=7)()
    assert (drawn["v"].shape, drawn["x"].shape) == ((7,), (7, DIMENSIONS - 1))
    names = {f"AutoNormalizingFlow.transform$$${n}" for n, _ in guide.transform.named_parameters()}
    assert names <= set(pyro.get_param_store().keys())


def test_pyros_guide_under_other_losses_is_scored_the_same() -> None:
    guide = trained(FLOWS["IAF"], 20)[0]
    values = []
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        pyro.set_rng_seed(3)
        values.append(loss.loss(funnel, guide))
    assert abs(values[0] - values[1]) < 1e-4


SMOOTH: dict[str, Any] = {
    "affine": lambda D: mp.AffineAutoregressive(
        mp.AutoRegressiveNN(D, [32], permutation=torch.arange(D)), scale="bounded"
    ),
    "IAF": lambda D: mp.IAF(D, transforms=1, hidden_features=(32,), activation="elu"),
}


@pytest.mark.parametrize(("name", "jit"), [("affine", False), ("IAF", True)])
def test_neutra_on_a_funnel_recovers_the_moments(name: str, jit: bool) -> None:
    """NUTS in the noise of a trained flow (Hoffman et al. 2019); v is normal with scale 2.

    Draws are nearly independent: of 200, the standard error of the mean of v is 0.14, of its
    scale 0.1, of the scale of the 400 values of x / exp(v / 2) 0.035. Tolerances are at least
    four of them.
    """
    guide, _, after = trained(SMOOTH[name], 400)
    assert after < 0.1
    neutra = NeuTraReparam(guide.requires_grad_(False))
    model = poutine.reparam(funnel, config=lambda _: neutra)
    kernel = NUTS(model, max_tree_depth=5, jit_compile=jit, ignore_jit_warnings=True)
    chain = MCMC(kernel, num_samples=200, warmup_steps=80, disable_progbar=True)
    chain.run()
    (latent,) = chain.get_samples().values()
    samples = neutra.transform_sample(latent)
    v, x = samples["v"], samples["x"]
    assert abs(float(v.mean())) < 0.6
    assert 1.5 < float(v.std()) < 2.5
    # Plain NUTS gets neither deep into the neck nor far up the mouth.
    assert float(v.min()) < -3
    assert float(v.max()) > 3
    unit = x * (-v / 2).exp().unsqueeze(-1)
    assert abs(float(unit.mean())) < 0.25
    assert 0.8 < float(unit.std()) < 1.2
