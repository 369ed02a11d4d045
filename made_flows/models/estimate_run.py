"""Candidates of different kinds, trained fold by fold and mixed by what rows left out say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from made_flows._checks import expect
from made_flows.models.autoregressive_flows import MAF
from made_flows.models.base import Model
from made_flows.models.estimate_gaussians import (
    MOST,
    FittedFolds,
    NormalMixtures,
    sparse_weights,
)
from made_flows.models.estimate_kernels import fit_kernels
from made_flows.models.estimate_rows import as_floats, check_parts
from made_flows.models.mades import BernoulliMADE, CategoricalMADE
from made_flows.models.mades import GaussianMixtureMADE as MixtureMADE
from made_flows.models.mixtures import Mixture
from made_flows.training.copies import copied_rows, find_copies
from made_flows.training.history import TrainingError
from made_flows.training.loop import fit
from made_flows.training.optimization import seed_generators

Budget = Literal["fast", "good", "best"]

SECONDS = {"fast": 60.0, "good": 600.0, "best": 3600.0}
_FOLDS = {"fast": 3, "good": 5, "best": 10}
_SMALL = 2000
"""Rows up to which every candidate is trained on each of several folds."""

_RACED = 20
"""Rows of a first fold that are enough to leave out a candidate without the other folds."""

Make = Callable[[Tensor], Model]
"""Makes a candidate, given the rows that it will be trained on."""


@dataclass
class _Part:
    """A kind of model, trained on one fold after the other.

    Args:
        name: what it is, for the report.
        make: makes it; None for what is fitted on all folds at once.
        number: of its seeds.
        models: one a fold, or one of all rows.
        scores: log-densities of the rows of each fold, by the model that did not see them.
        seconds: that the first fold took; infinite where the limit cut it.
    """

    name: str
    make: Make | None = None
    number: int = 0
    models: list[Model] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """One call of :func:`~made_flows.estimate`, its arguments checked."""

    def __init__(
        self,
        x: Tensor,
        context: Tensor | None,
        copies: Tensor | None,
        kind: str,
        budget: Budget,
        seed: int,
        progress: bool,
        end: float,
        kernels: bool,
        name: str = "x",
    ) -> None:
        self.x = x if kind == "categories" else as_floats(x)
        self.context = None if context is None else as_floats(context)
        self.kernels, self.name = kernels, name
        self.kind, self.budget = kind, budget
        self.seed, self.progress, self.end = seed, progress, end
        self.generator = torch.Generator().manual_seed(seed)
        self.device = torch.empty(0).device  # where models are made
        self.least = -1e4 - 100.0 * x.shape[1]  # log-density below which all rows are alike
        self.folds = self._cut(len(x))
        copies = find_copies(len(x), self._of, copies)
        self.copied = copied_rows(copies)
        if copies is not None:
            different = copies.unique()
            count = len(different)
            expect(count >= 10, name, "to have at least ten different rows", count)
            folds = self._cut(count)
            self.folds = [torch.isin(copies, different[fold]).nonzero().flatten() for fold in folds]
        self.rests = [self._rest(fold) for fold in self.folds]
        if kind == "real":
            check_parts([self.x[rest] for rest in self.rests], name)
        self.normals = NormalMixtures(
            self.x, self.context, list(zip(self.rests, self.folds, strict=True)), seed,
            self.generator, correlated=budget != "fast", least=self.least,
        )  # fmt: skip
        self.parts: list[_Part] = []
        self.missed: list[str] = []  # what the limit left out

    def __call__(self) -> Mixture:
        started = time.perf_counter()
        self._say(
            f"{len(self.x)} rows of {self.x.shape[1]} {self.kind} features"
            + (f", given {self.context.shape[1]}" if self.context is not None else "")
            + f"; {len(self.folds)} folds"
            + (f"; {self.copied} rows are copies, left out with theirs" if self.copied else "")
        )
        # What takes no time comes first, so that there is always something to return.
        for part, train in self._candidates():
            begun = time.perf_counter()
            if self.parts and begun > self.end:
                self.missed.append(f"{part.name} not tried")
            elif (cut := self._tried(part, partial(train, part))) is not None:
                taken = time.perf_counter() - begun
                part.seconds = math.inf if cut else taken
                score = float(part.scores[0].mean())
                self._say(f"{part.name}: {score:.3f} nats a row left out, {taken:.1f} s")
                if self._has_weight(part):
                    self.parts.append(part)
                else:
                    self._say(f"{part.name}: left out: of no weight on the first fold")
        self._other_folds()
        mixture = self._mixed()
        if self.missed:
            self._say(f"the time was over: {', '.join(self.missed)}")
        self._say(f"{time.perf_counter() - started:.0f} s in all")
        return mixture.eval()

    # ------------------------------------------------------------------ rows

    def _cut(self, rows: int) -> list[Tensor]:
        """Return which of so many rows are left out, fold by fold."""
        order = torch.randperm(rows, generator=self.generator)
        if rows <= _SMALL:
            return list(order.tensor_split(min(_FOLDS[self.budget], rows // 3)))
        return [order[: min(rows // 10, 10_000)]]

    def _rest(self, fold: Tensor) -> Tensor:
        kept = torch.ones(len(self.x), dtype=torch.bool)
        kept[fold] = False
        return kept.nonzero().flatten()

    def _of(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.x[rows], None if self.context is None else self.context[rows]

    # ------------------------------------------------------------------ candidates

    def _candidates(self) -> Iterator[tuple[_Part, Callable[[_Part], bool]]]:
        """Return what may be a part, and how to train it first; that says whether it was cut."""
        features = self.x.shape[1]
        context = 0 if self.context is None else self.context.shape[1]
        makers = self._real if self.kind == "real" else self._discrete
        trained = [
            (_Part(*each, k), self._first) for k, each in enumerate(makers(features, context))
        ]
        if self.kind == "real":
            one = partial(self.normals.joint, 1)
            yield _Part("linear normal" if context else "joint normal"), self._fitted(one)
        if self.kind == "real" and not context and len(self.x) >= 4 * features + 4:
            several = partial(self.normals.joint, MOST)
            yield _Part("joint normal mixtures"), self._fitted(several)
            if self.kernels:
                around = partial(fit_kernels, self.x, self.normals.folds, self.least)
                yield _Part("kernels around rows"), self._fitted(around)
            yield from trained[:1]  # a mixture MADE, which is quick as well
            trained = trained[1:]
            behind = self.normals.behind_splines
            yield _Part("normal mixtures behind splines"), self._fitted(behind)
        yield from trained

    def _real(self, features: int, context: int) -> Iterator[tuple[str, Make]]:
        sizes: dict[str, Any] = {"features": features, "context": context}
        yield "mixture MADE", lambda _: MixtureMADE(**sizes)
        yield "MAF", lambda _: MAF(**sizes)
        yield "spline MAF", lambda _: MAF(**sizes, bijection="spline")
        if self.budget == "fast":
            return
        if not context:
            yield "MAF over the normal mixture", lambda x: self.normals.under_flow(x, self.end)
        yield "mixture MADE, reversed", lambda _: MixtureMADE(**sizes, order="reversed")
        # The folds of few rows bring several models of a kind, which other orders bring here.
        orders = 3 if self.budget == "best" else int(len(self.x) > _SMALL)
        drawn: dict[str, Any] = {**sizes, "order": "random"}
        for number in range(1, 1 + orders):
            yield f"spline MAF, order {number}", lambda _: MAF(**drawn, bijection="spline")
            yield f"mixture MADE, order {number}", lambda _: MixtureMADE(**drawn)
        if len(self.x) > _SMALL:
            wide: dict[str, Any] = {**sizes, "hidden_features": (256, 256)}
            yield "wide spline MAF", lambda _: MAF(**wide, bijection="spline")
            yield "wide mixture MADE", lambda _: MixtureMADE(**wide, components=16)

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
            yield f"MADE, order {number}", lambda _: make(order="random")

    def _tried(self, part: _Part, train: Callable[[], bool]) -> bool | None:
        """Return whether the limit cut training short; None where it failed."""
        try:
            cut = train()
        except TrainingError as error:
            self._say(f"{part.name}: left out: {error}")
            return None
        self.missed += [f"{part.name} cut short"] if cut else []
        return cut

    def _first(self, part: _Part) -> bool:
        # Half of the time that is left, so that those that follow have some as well.
        return self._train(part, 0, (self.end - time.perf_counter()) / 2)

    def _train(self, part: _Part, k: int, seconds: float) -> bool:
        """Train a model, stopped early by the rows left out; return whether the limit ended it."""
        seed_generators((self.seed + 1000 * part.number + k) % 2**63, self.device)
        x, context = self._of(self.rests[k])
        held_out = self._of(self.folds[k])
        model = cast(Make, part.make)(x)
        history = fit(
            model,
            x,
            context,
            validation=held_out[0] if context is None else held_out,
            max_seconds=max(0.2, seconds),
            progress=False,
            seed=(self.seed + k) % 2**63,
        )
        part.models.append(model)
        part.scores.append(self._scored(model, self.folds[k]))
        return history.stop_reason == "max_seconds"

    def _has_weight(self, part: _Part) -> bool:
        """Return whether a part has some weight beside the others on the first fold."""
        if part.make is None or len(self.folds) == 1 or len(self.folds[0]) < _RACED:
            return True
        each = torch.stack([p.scores[0] for p in (*self.parts, part)], dim=1)
        return bool(sparse_weights(each)[-1])

    def _other_folds(self) -> None:
        """Train the parts on further folds: in each those of most weight first.

        A part whose time is over keeps the models that it has. One that was cut counts for none: it
        would be averaged with the part's others.
        """
        weights = sparse_weights(self._scores(1)).tolist()
        ranked = sorted(zip(weights, self.parts, strict=True), key=lambda one: -one[0])
        slow = [(weight, part) for weight, part in ranked if part.make]
        for k in range(1, len(self.folds)):
            for weight, part in tuple(slow):
                left = self.end - time.perf_counter()
                over = part.seconds > left
                cut = over or self._tried(part, partial(self._train, part, k, left))
                if cut or cut is None:
                    slow.remove((weight, part))
                    del part.models[k:], part.scores[k:]
                if over and part.seconds < math.inf:
                    self.missed.append(f"{part.name} on {k} of {len(self.folds)} folds")
                if cut is None or (over and not weight):
                    self.parts.remove(part)

    def _fitted(self, fit: Callable[[float], FittedFolds]) -> Callable[[_Part], bool]:
        """Fit a candidate to all folds at once, in a third of the time that is left."""

        def train(part: _Part) -> bool:
            now = time.perf_counter()
            found = fit(now + max(0.0, self.end - now) / 3)
            part.models, part.scores = found.models, found.scores
            return found.cut

        return train

    @torch.no_grad()
    def _scored(self, model: Model, rows: Tensor) -> Tensor:
        pieces = []
        for some in rows.split(4096):
            x, context = self._of(some)
            distribution = model.distribution(context)
            pieces.append(distribution.log_prob(x).double())
        # A row that one candidate finds impossible is no reason to find the candidate so.
        return torch.cat(pieces).clamp(min=self.least)

    # ------------------------------------------------------------------ the mixture

    def _scores(self, folds: int) -> Tensor:
        """Return what the parts say of the rows of the first folds, (N, parts)."""
        return torch.stack([torch.cat(part.scores[:folds]) for part in self.parts], dim=1)

    def _mixed(self) -> Mixture:
        """Weight the parts by the rows that all of them have left out, those of the first folds."""
        found = bool(self.parts)
        expect(found, self.name, "to be rows that some candidate can be trained on", "none")
        scores = self._scores(min(len(part.scores) for part in self.parts))
        weights = sparse_weights(scores)
        mixed = float((scores + weights.log()).logsumexp(dim=1).mean())
        means = scores.mean(dim=0).tolist()
        each = zip(weights.tolist(), means, self.parts, strict=True)
        chosen = sorted((one for one in each if one[0] > 0), key=lambda one: -one[0])
        for weight, mean, part in chosen:
            self._say(f"  weight {weight:.2f}: {part.name}, {mean:.3f}")
        best = max(means)
        self._say(f"mixture: {mixed:.3f} nats a row left out; the best of its parts {best:.3f}")
        models = [model for *_, part in chosen for model in part.models]
        shares = [w / len(part.models) for w, _, part in chosen for _ in part.models]
        return Mixture(models, weights=shares)

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, flush=True)  # noqa: T201 (what a caller asked for)
