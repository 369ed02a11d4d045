"""Joint normal mixtures as a candidate: averaged over what they are fitted by, not chosen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from made_flows.models.autoregressive_flows import MAF
from made_flows.models.base import Model
from made_flows.models.estimate_rows import thinned
from made_flows.models.flows import Flow
from made_flows.models.gaussian_mixture import (
    Gaussians,
    fit_gaussians,
    gaussian_model,
    merged,
)
from made_flows.models.mixture_weights import fit_sparse_weights
from made_flows.training.loop import fit
from made_flows.training.moments import context_moments, robust_moments

_LIGHTEST = 0.02
"""Weight under which a part of a mixture is left out."""

_NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST = _NUMBERS[-1]
"""Numbers of components, of which the last is the most."""

_ROWS = 20_000
"""Rows that mixtures are fitted to, at most."""


@dataclass(frozen=True)
class _Prior:
    """What covariances of normal mixtures are shrunk towards, as if by some rows more."""

    rows: float
    correlated: bool = False

    def fit(self, x: Tensor, components: int, generator: torch.Generator, end: float) -> Gaussians:
        """Fit a mixture, see :func:`fit_gaussians`."""
        return fit_gaussians(
            x, components, self.rows, generator, correlated=self.correlated, end=end
        )


@dataclass(frozen=True)
class _Fold:
    """Rows of one fold, where a normal mixture sees them.

    Args:
        fitted: rows to fit to, (N, W + D), those of a context first.
        held_out: rows to score, (M, W + D).
        log_det: what is to be added to their scores, (M,) or one number.
    """

    fitted: Tensor
    held_out: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class _Averaged:
    """What was found: a mixture a fold, scores of the rows that it did not see, the best single."""

    mixtures: list[Gaussians]
    scores: list[Tensor]
    best: tuple[_Prior, int]


def _score(found: Gaussians, fold: _Fold, width: int) -> Tensor:
    score = found.log_prob(fold.held_out) + fold.log_det
    return score - found.leading(width).log_prob(fold.held_out[:, :width]) if width else score


@dataclass(frozen=True)
class FittedFolds:
    """A model a fold, what each says of rows that it did not see, and if time ended training."""

    models: list[Model]
    scores: list[Tensor]
    cut: bool


class NormalMixtures:
    """Normal mixtures of rows as candidates: as they are, behind a spline a column, under a flow.

    Args:
        x: rows (N, D).
        context: (N, C), None without.
        folds: places of the rows to fit to, and of those that are left out, fold by fold.
        seed, generator: of what is random.
        correlated: whether covariances are shrunk towards correlated ones, too.
        least: log-density below which all rows are alike.
    """

    def __init__(
        self,
        x: Tensor,
        context: Tensor | None,
        folds: Sequence[tuple[Tensor, Tensor]],
        seed: int,
        generator: torch.Generator,
        *,
        correlated: bool,
        least: float,
    ) -> None:
        self.x, self.context, self.folds = x, context, folds
        self.seed, self.generator = seed, generator
        self.correlated, self.least = correlated, least
        self.best = (_Prior(1.0), 1)  # prior and components

    def joint(self, most: int, end: float) -> FittedFolds:
        """Fit mixtures to the rows, conditional on a context if there is one."""
        location, scale = robust_moments(self.x)
        given, of_context = self._standard_context()
        joint = torch.cat([given, (self.x.double() - location) / scale], dim=1)
        folds = [
            _Fold(joint[thinned(rest, _ROWS)], joint[fold], -scale.log().sum())
            for rest, fold in self.folds
        ]
        found = self._averaged(folds, most, given.shape[1], end)
        self.best = found.best
        models: list[Model] = []
        for mixture in found.mixtures:
            model = gaussian_model(mixture, given.shape[1])
            for units in model.standardizable():
                units.set(location, scale, *of_context)
                units.settle()
            models.append(model.eval())
        return FittedFolds(models, found.scores, most > 1 and time.perf_counter() > end)

    def behind_splines(self, end: float) -> FittedFolds:
        """Fit mixtures behind a spline a column, without a context."""
        units = robust_moments(self.x)
        splines: list[Flow] = []
        folds = []
        for k, (rest, fold) in enumerate(self.folds):
            left = (end - time.perf_counter()) / (len(self.folds) - k + 1)
            x, held_out = self.x[rest], self.x[fold]
            splines.append(_column_splines(x, held_out, units, max(0.2, left), self.seed))
            folds.append(_behind(splines[-1], thinned(x, _ROWS), held_out))
        found = self._averaged(folds, MOST, 0, end)
        models: list[Model] = []
        for spline, mixture in zip(splines, found.mixtures, strict=True):
            model = Flow([*spline.transforms], base=gaussian_model(mixture))
            model.units.set(*units)
            model.units.settle()
            models.append(model.eval())
        return FittedFolds(models, found.scores, time.perf_counter() > end)

    def under_flow(self, x: Tensor, end: float) -> Model:
        """Return a flow that starts as the best joint mixture of rows x, its base."""
        location, scale = robust_moments(x)
        prior, components = self.best
        u = (thinned(x, _ROWS).double() - location) / scale
        base = gaussian_model(prior.fit(u, components, self.generator, end))
        flow = MAF(x.shape[1], transforms=2, base=base, direct=False)
        flow.units.set(location, scale)
        return flow

    def _averaged(self, folds: Sequence[_Fold], most: int, width: int, end: float) -> _Averaged:
        """Fit mixtures by every prior and number of components, weighted by rows left out.

        To choose one loses tenths of a nat on hundreds of rows, and several in many columns.

        Args:
            folds: the rows.
            most: components, at most.
            width: columns of context, W. With some, the best single mixture is taken: weights of
                what is conditional would depend on the condition.
            end: on the clock of ``time.perf_counter``, when fits have to end.
        """
        tried: list[tuple[_Prior, int]] = []
        fits: list[list[Gaussians]] = []
        scores: list[Tensor] = []
        rows, columns = folds[0].fitted.shape
        for prior in self._priors(columns):
            worse, highest = 0, -torch.inf
            for components in _NUMBERS:
                many = components > 1 and components * (2 * columns + 2) > rows
                if components > most or many or worse == 2:
                    break
                if fits and time.perf_counter() > end:
                    break
                found = [prior.fit(fold.fitted, components, self.generator, end) for fold in folds]
                each = [_score(fit, fold, width) for fit, fold in zip(found, folds, strict=True)]
                score = torch.cat(each).clamp(min=self.least)
                mean = float(score.mean())
                worse, highest = (0, mean) if mean > highest else (worse + 1, highest)
                tried.append((prior, components))
                fits.append(found)
                scores.append(score)
        together = torch.stack(scores, dim=1)
        best = int(together.mean(dim=0).argmax())
        weights = torch.nn.functional.one_hot(torch.tensor(best), len(fits)).double()
        if not width:
            weights = sparse_weights(together)
        mixed = (together + weights.log()).logsumexp(dim=1).clamp(min=self.least)
        return _Averaged(
            [merged([found[k] for found in fits], weights) for k in range(len(folds))],
            list(mixed.split([len(fold.held_out) for fold in folds])),
            tried[best],
        )

    def _priors(self, columns: int) -> list[_Prior]:
        """Return what keeps components from collapsing: it matters where rows are few."""
        if len(self.folds) == 1:
            return [_Prior(0.5)]
        shapes = (False, True) if self.correlated else (False,)
        return [_Prior(rows, like) for like in shapes for rows in (columns + 2.0, 0.5, 1e-3)]

    def _standard_context(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Put contexts (N, C) in standard units, with these; without any, (N, 0) and none."""
        if self.context is None:
            return torch.zeros(len(self.x), 0, dtype=torch.float64), ()
        location, scale = context_moments(self.context)
        return (self.context.double() - location) / scale, (location, scale)


def _column_splines(
    x: Tensor, held_out: Tensor, units: tuple[Tensor, Tensor], seconds: float, seed: int
) -> Flow:
    """Fit a monotone spline to every column by itself."""
    alone = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    flow = MAF(x.shape[1], hidden_features=(), bijection="spline", adjacency=alone, base=None)
    flow.units.set(*units)
    fit(
        flow, x, validation=held_out, batch_size=256, dropout=0.0, learning_rate=2e-2,
        max_epochs=400, progress=False, seed=seed % 2**63, max_seconds=seconds,
    )  # fmt: skip
    return flow


@torch.no_grad()
def _behind(flow: Flow, x: Tensor, held_out: Tensor) -> _Fold:
    """Map the rows of a fold to noise, where normal mixtures are to see them."""
    (fitted, _), (z, log_det) = flow.to_noise(x), flow.to_noise(held_out)
    return _Fold(fitted.double(), z.double(), log_det.double())


def sparse_weights(scores: Tensor) -> Tensor:
    """Find weights (K,) under which rows are likely, given scores (N, K); small ones are zero.

    Rows are never less likely than under the best alone, which small weights together might be.
    """
    weights = fit_sparse_weights(scores, iterations=1000, tolerance=1e-7, threshold=_LIGHTEST)[0]
    means = scores.mean(dim=0)
    if (scores + weights.log()).logsumexp(dim=1).mean() >= means.max():
        return weights
    return torch.nn.functional.one_hot(means.argmax(), len(means)).to(weights)
