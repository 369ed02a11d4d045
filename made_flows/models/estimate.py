"""From rows to a trained model: candidates of different kinds, mixed by what held-out rows say."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from made_flows._checks import expect, helpful, non_negative_integer, shown
from made_flows.models.autoregressive_flows import MAF
from made_flows.models.base import Model
from made_flows.models.estimate_gaussians import Fold, Prior, average_gaussians, sparse_weights
from made_flows.models.estimate_rows import check_columns, checked_rows, kind_of
from made_flows.models.flows import Flow
from made_flows.models.gaussian_mixture import gaussian_model
from made_flows.models.mades import BernoulliMADE, CategoricalMADE
from made_flows.models.mades import GaussianMixtureMADE as MixtureMADE
from made_flows.models.mixtures import Mixture
from made_flows.training.history import TrainingError
from made_flows.training.loop import fit
from made_flows.training.standardization import robust_moments

Budget = Literal["fast", "good", "best"]

_SECONDS = {"fast": 60.0, "good": 600.0, "best": 3600.0}
_FOLDS = {"fast": 3, "good": 5, "best": 10}
_SMALL = 2000
"""Rows up to which every candidate is trained on each of several folds."""

_RACED = 20
"""Rows of a first fold that are enough to leave out a candidate without the other folds."""

_GAUSSIAN_ROWS = 20_000
"""Rows that joint normal mixtures are fitted to, at most."""

Make = Callable[[Tensor], Model]
"""Makes a candidate, given the rows that it will be trained on."""


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


@helpful
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
    mixtures of joint normal distributions (averaged over numbers of components and priors), the
    same behind a monotone spline a column, affine and spline autoregressive flows and mixture
    MADEs; for zeros and ones and for categories, MADEs in several orders. Up to 2000 rows are cut
    into three, five or ten folds by the budget, and the models of all folds are kept; a candidate
    of no weight on the first fold is left out. Of more rows, a tenth is left out (at most ten
    thousand).

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
    expect(budget in _SECONDS, "budget", "to be 'fast', 'good' or 'best'", shown(budget))
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


Train = Callable[[str, list[_Part]], _Part]
"""Trains a candidate by its name, given those before it; the first has to be there."""


class _LeftOutError(Exception):
    """A candidate that was not finished, and why."""


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
        self.best = (Prior(1.0), 1)  # of the normal mixtures: prior and components
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
                    raise _LeftOutError("the time is over")
                part = train(name, parts)
            except (_LeftOutError, TrainingError) as error:
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
            yield "linear normal", self._gaussians(1)
        elif self.kind == "real":
            yield "joint normal", self._gaussians(1)
            if len(self.x) >= 4 * features + 4:
                yield "joint normal mixtures", self._gaussians(32)
                yield "normal mixtures behind splines", self._gaussians(32, warped=True)
        for number, (name, make) in enumerate(makers(features, context)):
            yield name, self._trained(make, number)

    def _real(self, features: int, context: int) -> Iterator[tuple[str, Make]]:
        sizes: dict[str, Any] = {"features": features, "context": context}
        yield "mixture MADE", lambda _: MixtureMADE(**sizes)
        yield "MAF", lambda _: MAF(**sizes)
        yield "spline MAF", lambda _: MAF(**sizes, bijection="spline")
        if self.budget == "fast":
            return
        if not context:
            yield "MAF over the normal mixture", self._over_gaussians
        yield "mixture MADE, reversed", lambda _: MixtureMADE(**sizes, order="reversed")
        if len(self.x) > _SMALL:
            wide: dict[str, Any] = {**sizes, "hidden_features": (256, 256)}
            yield "wide spline MAF", lambda _: MAF(**wide, bijection="spline")
            yield "wide mixture MADE", lambda _: MixtureMADE(**wide, components=16)
        for number in range(1, 4 if self.budget == "best" else 1):
            yield (
                f"spline MAF, random orders {number}",
                lambda _: MAF(**sizes, bijection="spline", order="random"),
            )
            yield (
                f"mixture MADE, random order {number}",
                lambda _: MixtureMADE(**sizes, order="random"),
            )

    def _discrete(self, features: int, context: int) -> Iterator[tuple[str, Make]]:
        categories = [int(column.max()) + 1 for column in self.x.T]

        def make(**options: Any) -> Model:
            if self.kind == "binary":
                return BernoulliMADE(features, context, **options)
            return CategoricalMADE(features, context, categories=categories, **options)

        yield "MADE", lambda _: make()
        if self.budget != "fast":
            # Units are divided among the degrees: one layer has to be wide.
            wide = (min(2000, max(64, 16 * features)),)
            yield "wide MADE", lambda _: make(hidden_features=wide)
        for number in range(1, {"fast": 1, "good": 3, "best": 6}[self.budget]):
            yield (
                f"MADE, random order {number}",
                lambda _: make(order="random"),
            )

    def _trained(self, make: Make, number: int) -> Train:
        """Train a model on every fold, stopped early by the rows left out."""

        def train(name: str, before: list[_Part]) -> _Part:
            part = _Part(name, scores=torch.full((len(self.x),), -torch.inf, dtype=torch.float64))
            # Half of the time that is left, so that those that follow have some as well.
            end = time.perf_counter() + max(1.0, (self.end - time.perf_counter()) / 2)
            for k, fold in enumerate(self.folds):
                left = (end - time.perf_counter()) / (len(self.folds) - k)
                if left <= 0 and before:
                    raise _LeftOutError("the time is over")
                torch.manual_seed((self.seed + 1000 * number + k) % 2**63)
                x, context = self._of(self._rest(fold))
                model = make(x)
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
                if k == 0 and before and len(self.folds) > 1 and len(fold) >= _RACED:
                    each = torch.stack([p.scores[fold] for p in (*before, part)], dim=1)
                    if not sparse_weights(each.clamp(min=self.least))[-1]:
                        raise _LeftOutError("of no weight on the first fold")
            return part

        return train

    def _gaussians(self, most: int, warped: bool = False) -> Train:
        """Fit mixtures of joint normal distributions, of the rows or behind a spline a column."""

        def train(name: str, before: list[_Part]) -> _Part:
            end = time.perf_counter() + max(0.0, self.end - time.perf_counter()) / 3
            location, scale = robust_moments(self.x)
            given, of_context = self._standard_context()
            joint = torch.cat([given, (self.x.double() - location) / scale], dim=1)
            splines: list[Flow] = []
            folds: list[Fold] = []
            for k, fold in enumerate(self.folds):
                rest = self._rest(fold)[:_GAUSSIAN_ROWS]
                if warped:
                    left = (end - time.perf_counter()) / (len(self.folds) - k + 1)
                    splines.append(self._splines(fold, location, scale, left))
                    fitted, _ = self._behind(splines[-1], rest)
                    folds.append(Fold(fitted, *self._behind(splines[-1], fold)))
                else:
                    folds.append(Fold(joint[rest], joint[fold], -scale.log().sum()))
            width = given.shape[1]
            found = average_gaussians(
                folds, self._priors(joint.shape[1]), most=most, width=width,
                generator=self.generator, end=end, least=self.least,
            )  # fmt: skip
            part = _Part(name, scores=torch.full((len(self.x),), -torch.inf, dtype=torch.float64))
            for k, (fold, mixture) in enumerate(zip(self.folds, found.mixtures, strict=True)):
                part.scores[fold] = found.scores[k]
                model: Model = gaussian_model(mixture, width)
                found_units = model.standardizable()
                if warped:
                    model = Flow([*splines[k].transforms], base=model)
                    found_units = [model.units]
                for units in found_units:
                    units.set(location, scale, *of_context)
                    units.settle()
                part.models.append(model.eval())
            if not warped:
                self.best = found.best
            return part

        return train

    def _splines(self, fold: Tensor, location: Tensor, scale: Tensor, seconds: float) -> Flow:
        """Fit a monotone spline to every column by itself."""
        features = self.x.shape[1]
        alone = torch.zeros(features, features, dtype=torch.bool)
        flow = MAF(features, hidden_features=(), bijection="spline", adjacency=alone)
        flow.units.set(location, scale)
        fit(
            flow, self.x[self._rest(fold)], validation=self.x[fold], batch_size=256, dropout=0.0,
            learning_rate=2e-2, max_epochs=400, progress=False, seed=self.seed % 2**63,
            max_seconds=max(0.2, seconds),
        )  # fmt: skip
        return flow

    @torch.no_grad()
    def _behind(self, flow: Flow, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows to noise, with the log-determinants."""
        z, log_det = flow.to_noise(self.x[rows])
        return z.double(), log_det.double()

    def _priors(self, features: int) -> list[Prior]:
        """Return what keeps components from collapsing: it matters where rows are few."""
        if len(self.folds) == 1:
            return [Prior(0.5)]
        shapes = (False,) if self.budget == "fast" else (False, True)
        return [Prior(rows, like) for like in shapes for rows in (features + 2.0, 0.5, 1e-3)]

    def _standard_context(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Put contexts (N, C) in standard units, with these; without any, (N, 0) and none."""
        if self.context is None:
            return torch.zeros(len(self.x), 0, dtype=torch.float64), ()
        location, scale = robust_moments(self.context)
        scale = torch.where(scale > 0, scale, 1.0)
        return (self.context.double() - location) / scale, (location, scale)

    def _over_gaussians(self, x: Tensor) -> Model:
        """Return a flow that starts as a joint normal mixture, its base."""
        location, scale = robust_moments(x)
        prior, components = self.best
        u = ((x.double() - location) / scale)[:_GAUSSIAN_ROWS]
        base = gaussian_model(prior.fit(u, components, self.generator, self.end))
        flow = MAF(x.shape[1], transforms=2, base=base)
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
        weights = sparse_weights(scores)
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
