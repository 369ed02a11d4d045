"""How far a guide can be trusted: by its own draws, and by a look beyond them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from made_flows._checks import expect, expect_type, positive_integer
from made_flows._keywords import helpful
from made_flows.pyro.diagnosis import Diagnosis, summary
from made_flows.pyro.layout import LatentSite, layout, traces
from made_flows.pyro.probe import probe_beyond
from made_flows.pyro.unseen import unseen_share
from made_flows.pyro.whitened import whitened

_AT_ONCE = 1000
"""Samples that are drawn together."""
_CLIMBS, _CLIMBS_ALONE = (128, 200), (8, 80)
"""How many climbs to other modes, and their steps: together, and where points go one by one."""
_FEW = 200
"""Draws by which these modes are told from the guide's where points go one by one."""


@helpful
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    samples: int = 1000,
    vectorize: bool = True,
    probe: bool = True,
    **kwargs: Any,
) -> Diagnosis:
    r"""Judge whether a guide can be trusted, by Pareto-smoothed importance sampling.

    Samples :math:`u_s` of the guide have weights :math:`w_s = p(\mathrm{data}, u_s) / q(u_s)`.
    How heavy the tail of the weights is, k-hat, says how many of them an average needs; their mean
    estimates the evidence p(data). It works with every guide whose sites are all in the model.

    Weights are of places that the guide's samples saw. The *probe* looks further: a hundred short
    chains of Hamiltonian Monte Carlo start at weighted samples, of which some trajectories are
    heated on the way, so that they get from mode to mode; in the posterior they would stay where
    they are. It takes about 200 gradients of the model, for all chains at once. Other modes may be
    out of their reach: 128 climbs from prior draws and from places up to a hundred standard
    deviations away look for these, by 200 gradients for all at once and second derivatives at their
    ends (up to 1000 dimensions). A mode with 1 % of the posterior by a bound (10 % beside the
    guide's own, where both are alike), and twenty draws to be expected, in which weighted draws
    have less than a quarter of what they should is *unseen*, and nothing is trusted.

    Args:
        model, guide: a Pyro model and a guide of it.
        args, kwargs: of both.
        samples: number of samples S, at least 100.
        vectorize: whether model and guide can be run for all samples at once, within a plate.
        probe: whether to look beyond the samples, of models whose latent variables are all
            continuous. Without ``vectorize`` there are no chains, and eight climbs of 80 steps.

    Raises:
        ValueError: for fewer samples; for a model with subsampling (whose weights are noise), with
            latent variables that the guide does not sample, or with a density that is NaN.

    References:
        Yao, Vehtari, Simpson & Gelman 2018, *Yes, but Did It Work?: Evaluating Variational
        Inference*; Vehtari et al. 2024, *Pareto Smoothed Importance Sampling*.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> diagnose(model, AutoNormal(model, init_scale=0.99)).trusted
        True
    """
    samples = positive_integer(samples, "samples")
    expect(samples >= 100, "samples", "to be at least 100", samples)
    for name, function in (("model", model), ("guide", guide)):
        expect_type(callable(function), name, "to be a function or module", function)
    model, guide = partial(model, *args, **kwargs), partial(guide, *args, **kwargs)
    with torch.no_grad(), poutine.block():
        nesting, sites = layout(model, guide)
        parts, draws = [], []
        for start in range(0, samples, _AT_ONCE if vectorize else 1):
            if vectorize:
                size = min(_AT_ONCE, samples - start)
                weights, of_model = drawn_together(model, guide, size, nesting)
                parts.append(weights.reshape(-1))
            else:
                of_model, of_guide = traces(model, guide)
                weight = of_model.log_prob_sum() - of_guide.log_prob_sum()
                parts.append(torch.as_tensor(weight).reshape(1))
            draws.append(_latent(of_model, sites, len(parts[-1])))
    together = {name: torch.cat([part[name] for part in draws]) for name in sites}
    found = summary(torch.cat(parts).double().cpu(), together)
    found = replace(found, centred=tuple(name for name in sites if sites[name].centred))
    return _probed(found, model, nesting if vectorize else None, sites) if probe else found


def _probed(
    found: Diagnosis,
    model: Callable[[], Any],
    nesting: int | None,
    sites: Mapping[str, LatentSite],
) -> Diagnosis:
    """Look beyond a guide's draws: where chains from them go, and where climbs from elsewhere end.

    Args:
        found: by its draws.
        model: with its data.
        nesting: how many dimensions its plates take; None to run it for a point at a time.
        sites: its latent variables.
    """
    draws, weights = found.samples, found.weights
    if nesting is None:
        draws, weights = found.resample(_FEW), torch.full((_FEW,), 1 / _FEW).double()
    posterior = whitened(model, nesting, sites, draws, weights)
    if posterior is None:
        return found
    climbs, steps = _CLIMBS_ALONE if nesting is None else _CLIMBS
    looked = None if nesting is None else probe_beyond(posterior)
    unseen = unseen_share(posterior, found.log_evidence, climbs, steps)
    return replace(found, probe=looked, unseen=unseen)


def drawn_together(
    model: Callable[[], Any], guide: Callable[[], Any], samples: int, nesting: int
) -> tuple[Tensor, Trace]:
    """Return log-weights of samples drawn at once, and the model's trace."""
    try:
        weights, of_model, _ = vectorized_importance_weights(
            model, guide, num_samples=samples, max_plate_nesting=nesting
        )
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        # Both have run for one sample before.
        raise ValueError(
            "Expected model and guide to run for all samples at once, within a plate of "
            f"{samples}; got {type(error).__name__}: {_first_words(error)}. Let leading dimensions "
            "broadcast, as x[..., 0] does and X @ b does not: (X * b).sum(-1) in a pyro.plate of "
            "rows, which b then has a dimension for, and (X * b.unsqueeze(-2)).sum(-1) where rows "
            "are an event, of to_event(1), and in no plate; or give vectorize=False"
        ) from error
    return weights, of_model


def _first_words(error: Exception) -> str:
    """Say what went wrong in a line: without the shapes of all sites, which Pyro adds."""
    return " ".join(str(error).split("Trace Shapes:")[0].split()).rstrip(".")


def _latent(of_model: Trace, sites: Mapping[str, LatentSite], count: int) -> dict[str, Tensor]:
    """Return a trace's latent variables by site, (count, *shape): without plates' dimensions."""
    nodes: Any = of_model.nodes
    return {
        name: nodes[name]["value"].detach().reshape(count, *site.shape)
        for name, site in sites.items()
    }
