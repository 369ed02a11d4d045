"""From rows to a trained model: candidates of different kinds, mixed by what held-out rows say."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from made_flows._checks import expect, non_negative_integer
from made_flows.models.autoregressive_flows import MAF
from made_flows.models.base import Model
from made_flows.models.estimate_rows import check_columns, checked_rows, kind_of
from made_flows.models.gaussian_mixture import (
    Gaussians,
    fit_gaussians,
    gaussian_model,
    merged,
)
from made_flows.models.mades import BernoulliMADE, CategoricalMADE
from made_flows.models.mades import GaussianMixtureMADE as MixtureMADE
from made_flows.models.mixture_weights import fit_sparse_weights
from made_flows.models.mixtures import Mixture
from made_flows.training.history import TrainingError
from made_flows.training.loop import fit
from made_flows.training.standardization import robust_moments

Budget = Literal["fast", "good", "best"]

_SECONDS = {"fast": 60.0, "good": 600.0, "best": 3600.0}
_FOLDS = {"fast": 3, "good": 5, "best": 10}
_SMALL = 2000
"""Rows up to which every candidate is trained on each of several folds."""

_LIGHTEST = 0.02
"""Weight under which a kind of model is left out."""

_GAUSSIAN_ROWS = 20_000
"""Rows that joint normal mixtures are fitted to, at most."""

Make = Callable[[], Model]


@dataclass(frozen=True)
class _Prior:
    """What covariances of normal mixtures are shrunk towards, as if by some rows more."""

    rows: float
    correlated: bool

    def fit(self, x: Tensor, components: int, generator: torch.Generator, end: float) -> Gaussians:
        return fit_gaussians(
            x, components, self.rows, generator, correlated=self.correlated, end=end
        )


@dataclass
class _Part:
    """A kind of model, trained on every fold.

    Args:
        name: what it is, for the report.
        models: one a fold, or one for all.
        scores: log-densities (N,) of the rows by models that did not see them; -inf where none
            was trained.
        seconds: of training.
    """

    name: str
    models: list[Model] = field(default_factory=list)
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: float = 0.0


def estimate(
    x: Any,
    context: Any = None,
    *,
    budget: Budget = "good",
    max_seconds: float | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Mixture:
    r"""Estimate a density from rows, for who wants the likelihood and not the choice of a model.

    Candidates of different kinds are trained, each on several parts of the rows, and scored on the
    rows left out. The result is their mixture

    .. math:: p(x \mid c) = \sum_k w_k\, p_k(x \mid c)

    with the weights under which the rows left out are most likely (by EM); kinds of hardly any
    weight are left out. So it is about as good as its best part, or better.

    For real values the candidates are a joint normal distribution (with a context: linear in it),
    mixtures of joint normal distributions, affine and spline autoregressive flows and mixture
    MADEs; for zeros and ones and for categories, MADEs in several orders. Up to 2000 rows are cut
    into three, five or ten folds by the budget, and the models of all folds are kept; of more
    rows, a tenth is left out (at most ten thousand).

    Args:
        x: rows (N, D), as for :func:`~made_flows.fit`. Booleans, or zeros and ones alone, are
            binary; other integers from 0 to 255 are categories (floats are real values).
        context: (N, C), what the density is conditional on.
        budget: how many candidates, and how long at most: ``"fast"`` (a minute), ``"good"`` (ten)
            or ``"best"`` (an hour). Small tables take a fraction of it.
        max_seconds: another limit than the budget's; what was trained until then is mixed.
        seed: of splits, weights and training; without, one is drawn from torch's generator.
        progress: print what was tried and what was chosen.

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
        UserWarning: for values more than a hundred standard deviations out.

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
    expect(budget in _SECONDS, "budget", "to be 'fast', 'good' or 'best'", repr(budget))
    limit = _SECONDS[budget] if max_seconds is None else float(max_seconds)
    expect(limit > 0, "max_seconds", "to be above 0", max_seconds)
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))
    seed = non_negative_integer(seed, "seed")
    rows, given = checked_rows(x, context)
    kind = kind_of(rows)
    if kind == "real":
        check_columns(rows)
    run = _Run(rows, given, kind, budget, seed, progress, time.perf_counter() + limit)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Said once, of all rows: every fold of every candidate would say it again.
        warnings.filterwarnings("ignore", message=".*standard deviations out")
        return run()


Train = Callable[[str, bool], _Part]
"""Trains a candidate by its name; whether it is the first, which has to be there."""


class _OutOfTimeError(Exception):
    """A candidate that was not finished."""


class _Run:
    """One call of :func:`estimate`, its arguments checked."""

    def __init__(
        self,
        x: Tensor,
        context: Tensor | None,
        kind: str,
        budget: Budget,
        seed: int,
        progress: bool,
        end: float,
    ) -> None:
        default = torch.get_default_dtype()
        self.x = x if x.is_floating_point() or kind == "categories" else x.to(default)
        # Real values are standardised, contexts with them; what is not has the network's dtype.
        exact = kind == "real" and context is not None and context.dtype == torch.float64
        self.context = context if context is None or exact else context.to(default)
        self.kind, self.budget = kind, budget
        self.seed, self.progress, self.end = seed, progress, end
        self.generator = torch.Generator().manual_seed(seed)
        self.chosen = (_Prior(1.0, False), 1)  # the best normal mixture
        self.least = -1e4 - 100.0 * x.shape[1]  # log-density below which all rows are alike
        self.folds = self._cut()
        left_out = torch.cat(self.folds)
        self.scored = torch.zeros(len(x), dtype=torch.bool).index_fill(0, left_out, True)

    def __call__(self) -> Mixture:
        parts: list[_Part] = []
        started = time.perf_counter()
        self._say(
            f"{len(self.x)} rows of {self.x.shape[1]} {self.kind} features"
            + (f", given {self.context.shape[1]}" if self.context is not None else "")
            + f"; {len(self.folds)} folds"
        )
        # What takes no time comes first, so that there is always something to return.
        for name, train in self._candidates():
            begun = time.perf_counter()
            try:
                if parts and begun > self.end:
                    raise _OutOfTimeError
                part = train(name, not parts)
            except _OutOfTimeError:
                self._say(f"{name}: left out, as the time is over")
                continue
            except TrainingError as error:
                self._say(f"{name}: left out: {error}")
                continue
            # A row that one candidate finds impossible is no reason to find the candidate so.
            part.scores.clamp_(min=self.least)
            part.seconds = time.perf_counter() - begun
            score = float(part.scores[self.scored].mean())
            self._say(f"{name}: {score:.3f} nats a row left out, {part.seconds:.1f} s")
            parts.append(part)
        mixture = self._mixed(parts)
        self._say(f"{time.perf_counter() - started:.0f} s in all")
        return mixture.eval()

    # ------------------------------------------------------------------ rows

    def _cut(self) -> list[Tensor]:
        """Return the rows that are left out, fold by fold."""
        order = torch.randperm(len(self.x), generator=self.generator)
        if len(self.x) <= _SMALL:
            return list(order.tensor_split(min(_FOLDS[self.budget], len(self.x) // 3)))
        return [order[: min(len(self.x) // 10, 10_000)]]

    def _rest(self, fold: Tensor) -> Tensor:
        kept = torch.ones(len(self.x), dtype=torch.bool)
        kept[fold] = False
        return kept.nonzero().flatten()

    def _of(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.x[rows], None if self.context is None else self.context[rows]

    # ------------------------------------------------------------------ candidates

    def _candidates(self) -> Iterator[tuple[str, Train]]:
        features = self.x.shape[1]
        context = 0 if self.context is None else self.context.shape[1]
        makers = self._real if self.kind == "real" else self._discrete
        if self.kind == "real" and context:
            yield "linear normal", self._gaussians((1,))
        elif self.kind == "real":
            yield "joint normal", self._gaussians((1,))
            if len(self.x) >= 4 * features + 4:
                yield "joint normal mixtures", self._gaussians((1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
        for number, (name, make) in enumerate(makers(features, context)):
            yield name, self._trained(make, number)

    def _real(self, features: int, context: int) -> Iterator[tuple[str, Make]]:
        sizes: dict[str, Any] = {"features": features, "context": context}
        yield "spline MAF", lambda: MAF(**sizes, bijection="spline")
        yield "mixture MADE", lambda: MixtureMADE(**sizes)
        yield "MAF", lambda: MAF(**sizes)
        if self.budget == "fast":
            return
        if not context:
            yield "MAF over the normal mixture", self._over_gaussians
        yield "mixture MADE, reversed", lambda: MixtureMADE(**sizes, order="reversed")
        if len(self.x) > _SMALL:
            wide: dict[str, Any] = {**sizes, "hidden_features": (256, 256)}
            yield "wide spline MAF", lambda: MAF(**wide, bijection="spline")
            yield "wide mixture MADE", lambda: MixtureMADE(**wide, components=16)
        for number in range(1, 4 if self.budget == "best" else 1):
            yield (
                f"spline MAF, random orders {number}",
                lambda: MAF(**sizes, bijection="spline", order="random"),
            )
            yield (
                f"mixture MADE, random order {number}",
                lambda: MixtureMADE(**sizes, order="random"),
            )

    def _discrete(self, features: int, context: int) -> Iterator[tuple[str, Make]]:
        categories = [int(column.max()) + 1 for column in self.x.T]

        def make(**options: Any) -> Model:
            if self.kind == "binary":
                return BernoulliMADE(features, context, **options)
            return CategoricalMADE(features, context, categories=categories, **options)

        yield "MADE", lambda: make(direct=True)
        if self.budget != "fast":
            # Units are divided among the degrees: one layer has to be wide.
            wide = (min(2000, max(64, 16 * features)),)
            yield "wide MADE", lambda: make(hidden_features=wide, direct=True)
        for number in range(1, {"fast": 1, "good": 3, "best": 6}[self.budget]):
            yield (
                f"MADE, random order {number}",
                lambda: make(direct=True, order="random"),
            )

    def _trained(self, make: Make, number: int) -> Train:
        """Train a model on every fold, stopped early by the rows left out."""

        def train(name: str, first: bool) -> _Part:
            part = _Part(name, scores=torch.full((len(self.x),), -torch.inf, dtype=torch.float64))
            # Half of the time that is left, so that those that follow have some as well.
            end = time.perf_counter() + max(1.0, (self.end - time.perf_counter()) / 2)
            for k, fold in enumerate(self.folds):
                left = (end - time.perf_counter()) / (len(self.folds) - k)
                if left <= 0 and not first:
                    raise _OutOfTimeError
                torch.manual_seed((self.seed + 1000 * number + k) % 2**63)
                model = make()
                x, context = self._of(self._rest(fold))
                held_out = self._of(fold)
                fit(
                    model,
                    x,
                    context,
                    validation=held_out[0] if context is None else held_out,
                    max_seconds=max(0.2, left),
                    progress=False,
                    seed=(self.seed + k) % 2**63,
                )
                part.models.append(model)
                part.scores[fold] = self._scored(model, fold)
            return part

        return train

    def _gaussians(self, numbers: tuple[int, ...]) -> Train:
        """Fit mixtures of joint normal distributions, and mix those as rows left out ask for.

        Numbers of components and priors are not chosen but averaged over: a single choice loses
        some tenths of a nat on hundreds of rows, and several in many columns.
        """

        def train(name: str, first: bool) -> _Part:
            location, scale = robust_moments(self.x)
            u = (self.x.double() - location) / scale
            given, of_context = self._standard_context()
            width = given.shape[1]
            joint = torch.cat([given, u], dim=1)
            end = time.perf_counter() + max(0.0, self.end - time.perf_counter()) / 4
            tried: list[tuple[_Prior, int]] = []
            fits: list[list[Gaussians]] = []
            scores: list[Tensor] = []
            for prior in self._priors(joint.shape[1]):
                worse, highest = 0, -torch.inf
                for components in numbers:
                    many = components > 1 and components * (2 * u.shape[1] + 2) > len(u)
                    if many or worse == 2 or (fits and time.perf_counter() > end):
                        break
                    found = []
                    score = torch.full((len(u),), -torch.inf, dtype=torch.float64)
                    for fold in self.folds:
                        rest = joint[self._rest(fold)[:_GAUSSIAN_ROWS]]
                        fitted = prior.fit(rest, components, self.generator, end)
                        score[fold] = fitted.log_prob(joint[fold])
                        if width:
                            score[fold] -= fitted.leading(width).log_prob(given[fold])
                        found.append(fitted)
                    mean = float(score[self.scored].clamp(min=self.least).mean())
                    worse, highest = (0, mean) if mean > highest else (worse + 1, highest)
                    tried.append((prior, components))
                    fits.append(found)
                    scores.append((score - scale.log().sum()).clamp(min=self.least))
            all_scores = torch.stack(scores, dim=1)
            best = int(all_scores[self.scored].mean(dim=0).argmax())
            self.chosen = tried[best]
            weights = torch.zeros(len(fits), dtype=torch.float64)
            weights[best] = 1.0
            if not width:  # weights of what is conditional would depend on the condition
                weights = _weights(all_scores[self.scored])
            models: list[Model] = [
                gaussian_model(merged([found[k] for found in fits], weights), width)
                if not width
                else gaussian_model(fits[best][k], width)
                for k in range(len(self.folds))
            ]
            for units in (units for model in models for units in model.standardizable()):
                units.set(location, scale, *of_context)
                units.settle()
            mixed = (all_scores + weights.log()).logsumexp(dim=1)
            return _Part(name, [model.eval() for model in models], mixed)

        return train

    def _priors(self, features: int) -> list[_Prior]:
        """Return what keeps components from collapsing: it matters where rows are few."""
        if len(self.folds) == 1:
            return [_Prior(0.5, False)]
        shapes = (False,) if self.budget == "fast" else (False, True)
        return [_Prior(rows, like) for like in shapes for rows in (features + 2.0, 0.5, 1e-3)]

    def _standard_context(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Put contexts (N, C) in standard units, with these; without any, (N, 0) and none."""
        if self.context is None:
            return torch.zeros(len(self.x), 0, dtype=torch.float64), ()
        location, scale = robust_moments(self.context)
        scale = torch.where(scale > 0, scale, 1.0)
        return (self.context.double() - location) / scale, (location, scale)

    def _over_gaussians(self) -> Model:
        """Return a flow that starts as a joint normal mixture, its base."""
        location, scale = robust_moments(self.x)
        u = ((self.x.double() - location) / scale)[:_GAUSSIAN_ROWS]
        prior, components = self.chosen
        base = gaussian_model(prior.fit(u, components, self.generator, self.end))
        flow = MAF(self.x.shape[1], transforms=2, base=base)
        flow.units.set(location, scale)
        return flow

    @torch.no_grad()
    def _scored(self, model: Model, rows: Tensor) -> Tensor:
        pieces = []
        for some in rows.split(4096):
            x, context = self._of(some)
            distribution = model.distribution(context)
            pieces.append(distribution.log_prob(x).double())
        return torch.cat(pieces)

    # ------------------------------------------------------------------ the mixture

    def _mixed(self, parts: list[_Part]) -> Mixture:
        expect(bool(parts), "x", "to be rows that some candidate can be trained on", "none")
        scores = torch.stack([part.scores for part in parts], dim=1)[self.scored]
        weights = _weights(scores)
        mixed = float((scores + weights.log()).logsumexp(dim=1).mean())
        chosen = [
            (part, float(weight))
            for part, weight in zip(parts, weights, strict=True)
            if float(weight) > 0
        ]
        best = max(float(scores[:, k].mean()) for k in range(len(parts)))
        for part, weight in sorted(chosen, key=lambda each: -each[1]):
            self._say(f"  weight {weight:.2f}: {part.name}")
        self._say(f"mixture: {mixed:.3f} nats a row left out; the best of its parts {best:.3f}")
        models = [model for part, _ in chosen for model in part.models]
        each = [weight / len(part.models) for part, weight in chosen for _ in part.models]
        return Mixture(models, weights=each)

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, flush=True)  # noqa: T201 (what a caller asked for)


def _weights(scores: Tensor) -> Tensor:
    """Find weights (K,) under which rows are likely, given scores (N, K); small ones are zero."""
    return fit_sparse_weights(scores, iterations=1000, tolerance=1e-7, threshold=_LIGHTEST)[0]
