"""Draws of the posterior by MCMC on a guide's geometry, for when the guide alone is not enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.reparam import NeuTraReparam
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from made_flows._checks import expect, expect_type, positive_integer
from made_flows.pyro.draws import to_arviz, varying
from made_flows.pyro.layout import expect_known_density

_R_HAT = 1.01
_ENOUGH = 100
"""Effective draws per chain below which R-hat itself is noise (Vehtari et al. 2021, section 4)."""


@dataclass(frozen=True, repr=False)
class Refinement:
    """Draws of a posterior, and whether their chains agree.

    Args:
        samples: draws by site, (chains, draws, *shape of the site), constrained.
        r_hat: split R-hat of every latent variable, by site; 1 where chains agree.
        effective_sample_size: independent draws that the chains are worth, by site.
    """

    samples: Mapping[str, Tensor] = field(compare=False)
    r_hat: Mapping[str, Tensor] = field(compare=False)
    effective_sample_size: Mapping[str, Tensor] = field(compare=False)

    @property
    def converged(self) -> bool:
        """Whether every R-hat is below 1.01 and every chain is worth a hundred draws."""
        chains = len(next(iter(self.samples.values())))
        agree = all(bool((value < _R_HAT).all()) for value in self.r_hat.values())
        sizes = self.effective_sample_size.values()
        return agree and all(bool((size >= _ENOUGH * chains).all()) for size in sizes)

    def to_arviz(self) -> Any:
        """Return the chains as ArviZ keeps them (extra ``arviz``).

        Returns:
            an ``InferenceData``, or a ``DataTree`` from ArviZ 1.0 on, with the group ``posterior``.

        Raises:
            ImportError: without ArviZ.
        """
        return to_arviz(self.samples)

    def __repr__(self) -> str:
        chains, draws = next(iter(self.samples.values())).shape[:2]
        largest = max(float(value.max()) for value in self.r_hat.values())
        fewest = min(float(value.min()) for value in self.effective_sample_size.values())
        words = "chains agree" if self.converged else "do not use them yet: draw more"
        return (
            f"Refinement: {chains} chains of {draws} draws, largest R-hat {largest:.3f}, "
            f"smallest effective sample size {fewest:.0f} ({words})"
        )


def refine(
    model: Callable[..., Any],
    guide: AutoContinuous,
    *args: Any,
    draws: int = 500,
    warmup: int = 300,
    chains: int = 2,
    progress: bool = True,
    **kwargs: Any,
) -> Refinement:
    r"""Draw from the posterior by NUTS in the noise of a trained guide (NeuTra).

    The guide's transform :math:`x = f(z)` warps the posterior to

    .. math:: \pi(z) \propto p(\mathrm{data}, f(z))\, |\det J_f(z)|,

    which is standard normal where the guide is right. Chains explore it far better than the
    posterior itself, and unlike the guide they are exact in the limit.

    Args:
        model: the Pyro model.
        guide: a guide of its continuous latent variables that was trained before.
        args, kwargs: of the model: its data.
        draws: draws kept of every chain, at least 4.
        warmup: steps of adaptation before them.
        chains: number of chains, one after the other, each from a start of its own.
        progress: whether to show a bar for each chain.

    Raises:
        TypeError: for a guide of another kind.
        ValueError: for numbers out of range, a guide that was never called or for other data, and
            a model with subsampling or with draws that the guide cannot see.

    References:
        Hoffman et al. 2019, *NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural
        Transport*; Vehtari et al. 2021, *Rank-Normalization, Folding, and Localization*.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from made_flows.pyro import AutoIAF
        >>> def model():
        ...     pyro.sample("x", dist.Normal(3.0, 1.0))
        >>> guide = AutoIAF(model)
        >>> _ = guide()
        >>> found = refine(model, guide, draws=10, warmup=10, progress=False)
        >>> found.samples["x"].shape
        torch.Size([2, 10])
    """
    expect_type(callable(model), "model", "to be a function or module", model)
    expect_type(isinstance(guide, AutoContinuous), "guide", "to be an AutoContinuous guide", guide)
    warps = type(guide).get_transform is not AutoContinuous.get_transform
    expect_type(warps, "guide", "with a transform from noise, which mixtures have not", guide)
    draws, chains = positive_integer(draws, "draws"), positive_integer(chains, "chains")
    warmup = positive_integer(warmup, "warmup")
    expect(draws >= 4, "draws", "to be at least 4, for R-hat", draws)
    trace: Any = guide.prototype_trace
    expect(trace is not None, "guide", "that was called once", "a new one")
    with torch.no_grad(), poutine.block():
        expect_known_density(partial(model, *args, **kwargs), partial(guide, *args, **kwargs))
    neutra = NeuTraReparam(guide)
    warped = poutine.reparam(model, config=neutra._reparam_config)
    first = next(name for name, _ in trace.iter_stochastic_nodes())
    site = f"{first}_shared_latent"
    found: list[dict[str, Tensor]] = []
    for _ in range(chains):
        start = guide.get_base_dist().sample()
        kernel = NUTS(warped)
        mcmc = MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=warmup,
            initial_params={site: start},
            disable_progbar=not progress,
        )
        mcmc.run(*args, **kwargs)
        with torch.no_grad():
            found.append(_by_site(guide, neutra, mcmc.get_samples()[site]))
    samples = {name: torch.stack([chain[name] for chain in found]) for name in found[0]}
    return Refinement(samples, *agreement(samples))


def agreement(samples: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return split R-hats and effective sample sizes of chains by site, (chains, draws, *shape).

    Chains agree on what is constant in a site. Where nothing varies they never moved, and the
    numbers are none.
    """
    columns = {
        name: value.reshape(value.shape[:2].numel(), value[0, 0].numel())
        for name, value in samples.items()
    }
    varies = {name: varying(each).to(each.device) for name, each in columns.items()}
    moved = any(bool(each.any()) for each in varies.values())
    r_hats, sizes = {}, {}
    for name, value in samples.items():
        some = varies[name] if moved else torch.ones_like(varies[name])
        chains, draws, *shape = value.shape
        agreed, size = columns[name].new_ones(2, len(some))
        size *= chains * draws
        if bool(some.any()):  # alone: pyro's sizes are of all columns together
            each = columns[name][:, some].reshape(chains, draws, -1)
            agreed[some] = split_gelman_rubin(each, 0, 1)
            size[some] = effective_sample_size(each, 0, 1)
        r_hats[name], sizes[name] = agreed.reshape(shape), size.reshape(shape)
    return r_hats, sizes


def _by_site(guide: AutoContinuous, neutra: NeuTraReparam, z: Tensor) -> dict[str, Tensor]:
    """Convert noise (draws, D) to values of the sites, (draws, *shape), draw by draw."""
    trace: Any = guide.prototype_trace
    each = [neutra.transform_sample(row) for row in z]
    shapes = {name: tuple(site["value"].shape) for name, site in trace.iter_stochastic_nodes()}
    return {
        name: torch.stack([values[name].reshape(shape) for values in each])
        for name, shape in shapes.items()
    }
