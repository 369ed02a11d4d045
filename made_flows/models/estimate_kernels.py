"""Kernel densities as a candidate: of several shapes and widths, weighted by rows left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from made_flows.models.estimate_gaussians import FittedFolds, sparse_weights
from made_flows.models.estimate_rows import thinned
from made_flows.models.flows import Flow
from made_flows.models.kernels import Kernel, KernelDensity
from made_flows.training.moments import robust_moments

_WIDTHS = tuple(0.05 * 1.35**i for i in range(14))
_KINDS = [Kernel(*each) for each in product((False, True), (False, True), _WIDTHS)]

_ROWS = 3000
"""Rows that kernels are put around, at most: a score looks at all of them."""

_WEIGHED = 1000
"""Rows of a single fold that weights of kinds are found by, at most."""


@torch.no_grad()
def fit_kernels(
    x: Tensor, folds: Sequence[tuple[Tensor, Tensor]], least: float, end: float
) -> FittedFolds:
    """Fit a kernel density to rows: its kinds and their weights by those left out.

    To choose one width loses up to a nat and more where rows are in clusters of several sizes.

    Args:
        x: rows (N, D).
        folds: places of the rows to fit to, and of those that are left out, fold by fold.
        least: log-density below which all rows are alike.
        end: on the clock of ``time.perf_counter``, when the folds so far have to do for weights.

    Returns:
        One model, of all rows, in place of one a fold.
    """
    location, scale = robust_moments(x)
    u, volume = (x.double() - location) / scale, scale.log().sum()
    parts = [(u[thinned(rest, _ROWS)], fold) for rest, fold in folds]
    weighed = _WEIGHED if len(folds) == 1 else len(x)
    each = []
    for seen, fold in parts:
        each.append(KernelDensity.around(seen, _KINDS).each(u[fold[:weighed]]) - volume)
        if time.perf_counter() > end:
            break
    weights = sparse_weights(torch.cat(each).clamp(min=least))
    kinds = [kind for kind, weight in zip(_KINDS, weights.tolist(), strict=True) if weight]
    weights = weights[weights > 0]
    scores = []
    for seen, fold in parts:
        found = KernelDensity.around(seen, kinds, weights)
        scores.append((found().log_prob(u[fold]) - volume).clamp(min=least))
    every = u[thinned(torch.arange(len(u)), _ROWS)]
    model = Flow([], base=KernelDensity.around(every, kinds, weights))
    model.units.set(location, scale)
    model.units.settle()
    return FittedFolds([model.eval()], scores, cut=False)
