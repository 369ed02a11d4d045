"""From rows to a trained model, without a choice of a model."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from made_flows._checks import boolean, checked_seed, expect_word, real_number
from made_flows._keywords import helpful
from made_flows.models.estimate_rows import (
    NAMES,
    Names,
    check_columns,
    checked_rows,
    kind_of,
    without_warnings_of_rows,
)
from made_flows.models.estimate_run import SECONDS, Budget, Run
from made_flows.models.mixtures import Mixture
from made_flows.training.moments import context_moments, warn_of_contexts
from made_flows.training.optimization import seeded


@helpful
def estimate(
    x: Any,
    context: Any = None,
    *,
    budget: Budget = "good",
    max_seconds: float | None = None,
    seed: int | None = None,
    kernels: bool = True,
    progress: bool = True,
) -> Mixture:
    r"""Estimate a density from rows, without a choice of a model.

    Candidates of different kinds are trained, each on several parts of the rows, and scored on the
    rows left out. The result is their mixture

    .. math:: p(x \mid c) = \sum_k w_k\, p_k(x \mid c)

    with the weights under which the rows left out are most likely (by EM); kinds of hardly any
    weight are left out. On those rows it is never worse than its best part.

    For real values the candidates are a joint normal distribution (with a context: linear in it),
    mixtures of joint normal distributions (averaged over numbers of components and priors), the
    same behind a monotone spline a column, affine and spline autoregressive flows, mixture MADEs
    and, without a context, kernels around rows (at most 3000, which the model then holds, and files
    of it); for zeros and ones and for categories, MADEs in several orders.

    Up to 2000 rows are cut into three, five or ten folds, by the budget: for each fold, candidates
    are trained on the rows outside of it, and the models of all folds are kept. Of more rows, a
    tenth is left out once (at most ten thousand). All candidates are trained for the first fold,
    the quick ones first. Those without weight there are dropped; the others go on to the next
    folds, those of most weight first. When the time is over, a candidate has the models of the
    folds that it has finished, and the weights are those of the rows that all have left out.

    Args:
        x: rows (N, D), as for :func:`~made_flows.fit`. Booleans, or zeros and ones alone, are
            binary; other integers from 0 to 255 are categories (floats are real values).
        context: (N, C), what the density is conditional on.
        budget: how many candidates, and how long at most: ``"fast"`` (a minute), ``"good"`` (ten)
            or ``"best"`` (an hour). Small tables take a fraction of it.
        max_seconds: another limit than the budget's, of the clock; what was trained until then is
            mixed, every model with the weights of its best epoch.
        seed: of splits, weights and training; without, one is drawn from torch's generator.
        kernels: whether kernels around rows are a candidate; without, the model holds no row.
        progress: print what was tried, what was chosen, and what the limit left out.

    Returns:
        The mixture, in evaluation mode, in the units of the data. :func:`~made_flows.save` writes
        it to a file.

    Raises:
        ValueError: for fewer than ten rows, values that are not finite (named by row and column),
            and columns that are constant or repeat another (by their numbers).
        TypeError: for arguments of another type.

    Warns:
        EstimateWarning: for columns of integers, whose density diverges
            (:class:`~made_flows.Dequantize` is the remedy), and of few values.
        UserWarning: for values more than a hundred standard deviations out, and contexts more than
            twenty.

    Example:
        >>> import made_flows as mf
        >>> _ = torch.manual_seed(0)
        >>> angle = 6.28 * torch.rand(200)
        >>> x = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(200, 2)
        >>> model = mf.estimate(x, budget="fast", max_seconds=5, progress=False, seed=0)
        >>> normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
        >>> bool(model().log_prob(x).mean() > normal.log_prob(x).mean() + 0.3)
        True
    """
    options: Any = {"budget": budget, "max_seconds": max_seconds, "seed": seed}
    return estimated(x, context, kernels=kernels, progress=progress, **options)


def estimated(
    x: Any,
    context: Any = None,
    copies: Tensor | None = None,
    names: Names = NAMES,
    *,
    budget: Budget,
    max_seconds: float | None,
    seed: int | None,
    progress: bool,
    kernels: bool = True,
) -> Mixture:
    """Do as :func:`estimate` does, with rows some of which are copies, or that have other names.

    Copies, and rows that are equal by no chance, are left out together: what a model has learnt by
    heart would be in its favour otherwise.

    Args:
        x, context, budget, max_seconds, seed, progress, kernels: as for :func:`estimate`.
        copies: (N,) which row each one is, from 0 on; None where nothing is known of that.
        names: of rows and contexts, for messages.
    """
    expect_word(budget, SECONDS, "budget", "to be 'fast', 'good' or 'best'")
    limit = float(SECONDS[budget])
    if max_seconds is not None:
        limit = real_number(max_seconds, "max_seconds", above=0)
    progress, kernels = boolean(progress, "progress"), boolean(kernels, "kernels")
    seed = checked_seed(seed)
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))
    rows, given = checked_rows(x, context, names)
    kind = kind_of(rows)
    if kind == "real":
        check_columns(rows, names.x)
    if given is not None:
        warn_of_contexts(given, *context_moments(given), names.x)
    end = time.perf_counter() + limit
    run = Run(rows, given, copies, kind, budget, seed, progress, end, kernels, names.x)
    with seeded(seed, run.device), without_warnings_of_rows():
        return run()
