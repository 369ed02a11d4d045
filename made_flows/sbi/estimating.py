"""An estimator without a choice of a network: candidates, mixed by what rows left out say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from made_flows._checks import boolean, check_finite, expect
from made_flows._keywords import helpful
from made_flows.models.base import Model
from made_flows.models.estimate import estimated
from made_flows.models.estimate_rows import Names
from made_flows.models.estimate_run import Budget
from made_flows.models.flows import Flow
from made_flows.sbi.conditions import check_rows
from made_flows.sbi.estimator import Estimator
from made_flows.sbi.support import Bounds
from made_flows.training.convert import as_tensor


@helpful
def estimate(
    theta: Any,
    x: Any,
    *,
    support: Any = None,
    likelihood: bool = False,
    budget: Budget = "good",
    max_seconds: float | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Estimator:
    r"""Train an estimator of posteriors, or of likelihoods, without a choice of a network.

    .. math:: q(\theta \mid x) = \sum_k w_k\, q_k(\theta \mid x)

    is what :func:`made_flows.estimate` makes of the pairs: flows and mixtures of several kinds,
    each trained on several parts of the simulations, with the weights under which those left out
    are most likely. It takes longer than one network, and few simulations go further. There is no
    round after the first: proposals other than the prior are for sbi's trainers.

    Args:
        theta: parameters (N, D).
        x: simulations (N, ...), seen as rows of numbers. Images and the like want an embedding net,
            and :func:`maf` or :func:`spline`.
        support: a distribution, such as the prior, or a constraint, as for :func:`maf`: nothing is
            drawn outside.
        likelihood: whether to model simulations given parameters.
        budget, max_seconds, seed, progress: as for :func:`made_flows.estimate`: ten minutes at
            most.

    Returns:
        What sbi's posteriors take: ``DirectPosterior(estimator, prior)``, or, of a likelihood,
        ``likelihood_estimator_based_potential(estimator, prior, x_o)``.

    Raises:
        TypeError: for what holds no real numbers.
        ValueError: for values that are not finite (named by row and column), columns to model that
            are constant or repeat another, fewer than ten pairs, rows outside the support.

    Warns:
        EstimateWarning, UserWarning: as :func:`made_flows.estimate` does.

    Example:
        >>> import torch
        >>> from sbi.inference import DirectPosterior
        >>> from sbi.utils import BoxUniform
        >>> _ = torch.manual_seed(0)
        >>> prior = BoxUniform(torch.zeros(1), torch.ones(1))
        >>> theta = prior.sample((100,))
        >>> x = theta + 0.05 * torch.randn(100, 1)
        >>> estimator = estimate(theta, x, support=prior, max_seconds=5, progress=False, seed=0)
        >>> posterior = DirectPosterior(estimator, prior)
        >>> samples = posterior.sample((200,), x=torch.tensor([0.5]), show_progress_bars=False)
        >>> bool((samples.mean() - 0.5).abs() < 0.05), bool(samples.std() < 0.1)
        (True, True)
    """
    likelihood, names = boolean(likelihood, "likelihood"), Names("theta", "x")
    pairs = []
    for value, name in zip((theta, x), names, strict=True):
        rows = as_tensor(value, name).detach().cpu()
        pairs.append(rows if rows.is_floating_point() else rows.to(torch.get_default_dtype()))
        check_rows(pairs[-1], name)
        check_finite(pairs[-1].flatten(1), name)
    if likelihood:
        pairs, names = pairs[::-1], Names(*names[::-1])
    modelled, given = (each.flatten(1) for each in pairs)
    values = modelled.flatten()
    real = bool(((values != 0) & (values != 1)).any())
    expect(real, names.x, "to hold real values", "zeros and ones alone")
    bounds = None if support is None else Bounds(support, modelled.shape[1])
    rows, transforms = (modelled, []) if bounds is None else bounds.opened(modelled, names.x)
    options: Any = {"budget": budget, "max_seconds": max_seconds, "seed": seed}
    found: Model = estimated(rows, given, names=names, progress=progress, **options)
    model = Flow(transforms, found) if transforms else found
    estimator = Estimator(model, nn.Identity(), pairs[0][0].shape, pairs[1][0].shape, bounds)
    estimator.eval()
    return estimator
