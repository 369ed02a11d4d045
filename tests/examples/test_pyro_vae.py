"""The parts of the example of a variational autoencoder."""

from __future__ import annotations

import pytest
import torch

pyro = pytest.importorskip("pyro")
import _vae_models  # noqa: E402
import _vae_scores  # noqa: E402


def images(count: int) -> torch.Tensor:
    return (torch.rand(count, _vae_models.PIXELS) < 0.3).float()


@pytest.mark.parametrize("decoder", ["bernoulli", "made"])
@pytest.mark.parametrize("posterior", ["diagonal", "IAF"])
def test_weights_are_those_of_the_densities(posterior: str, decoder: str) -> None:
    vae, x = _vae_models.VAE(posterior, decoder).eval(), images(5)
    torch.manual_seed(1)
    weights = _vae_scores.log_weights(vae, x, 7)
    assert weights.shape == (7, 5)
    torch.manual_seed(1)
    with torch.no_grad():
        q = vae.encoder(x)
        z = q.sample((7,))
        expected = vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z.clone())
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-3)


def test_the_likelihood_is_found_where_it_is_known() -> None:
    """A decoder that does not look at z: pixels are independent of everything."""
    vae, x = _vae_models.VAE("diagonal", "bernoulli").eval(), images(5)
    with torch.no_grad():
        vae.decoder.out.weight.zero_()
    logits = vae.decoder.out.bias.detach()
    exact = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(dim=1)
    weights = _vae_scores.log_weights(vae, x, 4000, chunk=1000)
    found, bound = _vae_scores.log_likelihood(weights), _vae_scores.elbo(weights)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.3)
    assert bool((bound < found).all())
    mean = _vae_scores.estimate(found)
    assert mean.mean == pytest.approx(float(found.mean()))
    assert mean.error == pytest.approx(float(found.std() / 5**0.5))


def test_warmth_scales_the_divergence() -> None:
    vae, x = _vae_models.VAE("IAF", "bernoulli").eval(), images(4)
    loss = pyro.infer.Trace_ELBO()
    values = []
    for warmth in (0.2, 0.6, 1.0):
        pyro.clear_param_store()
        torch.manual_seed(2)
        values.append(loss.loss(vae.model, vae.guide, x, warmth))
    assert values[1] - values[0] == pytest.approx(values[2] - values[1], rel=1e-3)
