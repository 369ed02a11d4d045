"""Fitting an AutoIAF from start to verdict: a start of the posterior's own size, then the flow."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide.initialization import init_to_sample, init_to_uniform
from torch import Tensor, nn
from tqdm import tqdm

from made_flows._checks import boolean, checked_seed, expect_type, expect_word, positive_integer
from made_flows._keywords import helpful
from made_flows.pyro.diagnosing import diagnose, drawn_together
from made_flows.pyro.diagnosis import Diagnosis, summary
from made_flows.pyro.guides import AutoIAF
from made_flows.pyro.layout import layout
from made_flows.pyro.mixture_guide import FlowMixture
from made_flows.pyro.starts import (
    JointDensity,
    NormalStart,
    apart,
    expect_proper,
    find_starts,
    init_point,
)
from made_flows.pyro.unseen import highest_ends
from made_flows.pyro.whitened import Density
from made_flows.training.optimization import seeded


class _Budget(NamedTuple):
    steps: int
    particles: int
    starts: int  # random ones, beside the guide's own


BUDGETS = {
    "fast": _Budget(500, 16, 1),
    "good": _Budget(2000, 32, 3),
    "best": _Budget(8000, 64, 6),
}

_RATE = 2e-2
"""Large, since the flow works in the units of a normal approximation: a step moves samples by the
same share of the posterior everywhere. At 0.005, a Gaussian process with Poisson counts is 0.15
nats short after the steps that bring it to 0.05 here."""
_LAST_RATE = 0.01
"""Share of the learning rate at the end of a cosine."""
_WARM_UP = 50
_CLIMBS = (64, 100)
"""How many climbs look for a start, and their steps."""
_CHECKS = 5
_AVERAGED = 0.25
"""Share of the steps over which weights are averaged."""
_MATTERS = 50.0
"""Nats by which the normal approximation of a mode, a rough one, may be below the best one's."""
_EXACT = 0.98
"""Share of effective draws from which training may end early: a guide that is worse still gains by
steps that grow smaller, and by averages."""
_NOTHING = 0.01
"""A rise of the ELBO, in nats, for which nobody trains any longer."""


@dataclass(frozen=True, repr=False)
class GuideFit:
    """What fitting a guide found.

    Args:
        diagnosis: of the fitted guide, by 8000 draws (2000 where they are drawn one by one).
        start: the start that won, by name.
        start_elbo: the ELBO of the normal approximation there.
        elbo: estimates of the ELBO, one for every step (of the best mode's guide).
        seconds: how long it took.
        guide: the fitted guide: the one given, or with several modes a mixture of such.
    """

    diagnosis: Diagnosis
    start: str
    start_elbo: float
    elbo: list[float]
    seconds: float
    guide: AutoIAF | FlowMixture = field(compare=False)

    def __repr__(self) -> str:
        return (
            f"GuideFit: from {self.start} (ELBO {self.start_elbo:.3f}), {len(self.elbo)} steps in "
            f"{self.seconds:.0f} s\n{self.diagnosis}"
        )


@helpful
def fit_guide(
    guide: AutoIAF,
    *args: Any,
    budget: Literal["fast", "good", "best"] = "good",
    seed: int | None = None,
    progress: bool = True,
    vectorize: bool = True,
    modes: int = 1,
    **kwargs: Any,
) -> GuideFit:
    r"""Fit an AutoIAF to its model's posterior, whatever the units of the data.

    First, normal approximations along the way of L-BFGS and Newton steps to the mode, from the
    guide's own start, from random ones and from the highest mode of 64 climbs all at once, are
    compared by their ELBO; the best one becomes the origin and the units in which the flow works.
    Then Adam maximises the ELBO of the flow with a cosine schedule; its weights are averaged, and
    what is kept is whichever of last and average has the higher ELBO. It ends early when draws are
    worth nearly their number and the ELBO has stopped to rise.

    Args:
        guide: the guide; what it learnt before is lost.
        args, kwargs: of the model: its data.
        budget: ``"fast"``, 500 steps of 16 particles; ``"good"``, 2000 of 32; ``"best"``, 8000 of
            64.
        seed: of starts and training; None for torch's own generator.
        progress: whether to show a bar with ELBO and k-hat.
        vectorize: whether the model can be run for all particles at once, within a plate.
        modes: the largest number of modes to fit. With more than one, starts that lead to modes
            apart from each other each get a copy of the guide, from four times as many random
            starts as modes at least, and ``guide`` of what is returned is their mixture, weighted
            by the posterior. A flow of one mode bends only slowly to another.

    Returns:
        the fit, whose ``diagnosis`` says what may be used and how.

    Raises:
        TypeError: for another kind of guide.
        ValueError: for an unknown budget, a guide without its model, and a model whose density is
            no number at every start.

    References:
        Zhang, Carpenter, Gelman & Vehtari 2022, *Pathfinder*; Agrawal & Domke 2024, *Disentangling
        Impact of Capacity, Objective, Batchsize, Estimators, and Step-size on Flow VI*.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1e6))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 3.0), obs=y)
        >>> guide = AutoIAF(model)
        >>> y = torch.tensor([50_001.0, 50_003.0, 49_999.0, 50_002.0])
        >>> fit_guide(guide, y, budget="fast", seed=0, progress=False).diagnosis.grade
        'as drawn'
    """
    expect_type(isinstance(guide, AutoIAF), "guide", "to be an AutoIAF(model)", guide)
    expect_word(budget, BUDGETS, "budget", f"to be one of {', '.join(BUDGETS)}")
    modes = positive_integer(modes, "modes")
    seed = checked_seed(seed)
    progress, vectorize = boolean(progress, "progress"), boolean(vectorize, "vectorize")
    model = guide.model_given()
    began = time.perf_counter()
    bound, bound_guide = (partial(function, *args, **kwargs) for function in (model, guide))
    with ExitStack() as stack:
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(devices=()))
        bound_guide()  # makes it know the model, with draws of its own if it is new
        with torch.no_grad(), poutine.block():
            nesting, sites = layout(bound, bound_guide)  # or refuses, without any verdict
        own = guide._init_loc()
        if seed is not None:
            stack.enter_context(seeded(seed, own.device))
        plan = BUDGETS[budget]
        joint = JointDensity(model, sites, args, kwargs)
        expect_proper(joint, own, sites)
        ends: list[Tensor] = []
        density = Density(bound, nesting if vectorize else None, sites, own.dtype)
        if vectorize:
            with torch.no_grad(), poutine.block(), torch.random.fork_rng(devices=()):
                # Or refuses, before any work.
                drawn_together(bound, bound_guide, 3, nesting)
            ends = list(highest_ends(density, own, *_CLIMBS, modes))
        starts = _starts(guide, joint, plan.starts, modes, ends)
        # Copies first: the guide given is the best mode's.
        guides = [guide, *(copy.deepcopy(guide) for _ in starts[1:])]
        curves = []
        for one, (_, start) in zip(guides, starts, strict=True):
            one.restart(start.location, start.factor)
            draws: _Together | _OneByOne = _OneByOne(one, density)
            if vectorize:
                draws = _Together(bound, partial(one, *args, **kwargs), nesting)
            curves.append(_train(one, draws, plan, progress))
        fitted: AutoIAF | FlowMixture = guide
        if len(guides) > 1:
            fitted = FlowMixture(model, guides)
            fitted.weigh(*args, vectorize=vectorize, **kwargs)
        judged = (_Together if vectorize else _OneByOne).judged
        diagnosis = diagnose(model, fitted, *args, samples=judged, vectorize=vectorize, **kwargs)
    name, start = starts[0]
    seconds = time.perf_counter() - began
    return GuideFit(diagnosis, name, start.elbo, curves[0], seconds, fitted)


def _starts(
    guide: AutoIAF, density: JointDensity, random_starts: int, modes: int, ends: list[Tensor]
) -> list[tuple[str, NormalStart]]:
    """Return normal approximations of modes, the best first."""
    points = {"its own start": guide._init_loc()}
    points.update({f"climb {index + 1}": end for index, end in enumerate(ends)})
    for index in range(random_starts if modes == 1 else max(random_starts, 4 * modes)):
        kind = (init_to_uniform, init_to_sample)[index % 2]
        try:
            point = init_point(guide.prototype_trace, kind)
        except NotImplementedError:  # improper priors cannot be drawn from
            continue
        if bool(point.isfinite().all()):
            points[f"{kind.__name__.removeprefix('init_to_')} start {index + 1}"] = point
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    found = find_starts(density, points, generator)
    chosen = found[:1]
    for name, start in found[1:]:
        near = start.elbo > found[0][1].elbo - _MATTERS
        new = len(chosen) < modes and near
        if new and all(apart(density, start, other) for _, other in chosen):
            chosen.append((name, start))
    return chosen


class _Together:
    """What training asks of a guide whose model runs for all draws at once, within a plate.

    Args:
        model, guide: with their data.
        nesting: how many dimensions their plates take.
    """

    checked = 1000
    """Draws of a check."""
    judged = 8000
    """Draws of the final diagnosis: by 2000, k-hat of a nearly exact guide is 0.1 off by chance."""

    def __init__(self, model: Callable[[], Any], guide: Callable[[], Any], nesting: int) -> None:
        self._model, self._guide, self._nesting = model, guide, nesting

    def loss(self, particles: int) -> Tensor:
        """Return the negative ELBO."""
        elbo = Trace_ELBO(
            num_particles=particles,
            max_plate_nesting=self._nesting,
            vectorize_particles=True,
        )
        return cast(Tensor, elbo.differentiable_loss(self._model, self._guide))

    def diagnose(self, samples: int) -> Diagnosis:
        """Judge the guide without a look beyond its draws."""
        return diagnose(self._model, self._guide, samples=samples, probe=False)


class _OneByOne:
    """The same, where the model runs for one draw after the other.

    The draws are made together all the same, which is most of the work for a small model.

    Args:
        guide: the guide.
        density: of its model, for a point at a time.
    """

    checked, judged = 300, 2000

    def __init__(self, guide: AutoIAF, density: Density) -> None:
        self._guide, self._density = guide, density

    def _log_weights(self, count: int) -> Tensor:
        """Return logarithms of weights (N,), with the gradients that an ELBO takes."""
        posterior = self._guide.get_posterior()
        u = posterior.rsample((count,))
        return self._density(u) - posterior.score_parts(u).entropy_term

    def loss(self, particles: int) -> Tensor:
        """Return the negative ELBO."""
        return -self._log_weights(particles).mean()

    @torch.no_grad()
    def diagnose(self, samples: int) -> Diagnosis:
        """Judge the guide by weights alone."""
        return summary(self._log_weights(samples).double().cpu(), {})


def _train(
    guide: AutoIAF, draws: _Together | _OneByOne, plan: _Budget, progress: bool
) -> list[float]:
    """Maximise the ELBO; the guide ends with the best weights that were seen at a check."""
    weights = [weight for weight in guide.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan.steps))
    average = [weight.detach().clone() for weight in weights]
    kept = _Kept(partial(draws.diagnose, draws.checked), weights)
    curve: list[float] = []
    newest = 1 / (_AVERAGED * plan.steps)
    with tqdm(total=plan.steps, desc="fit_guide", disable=not progress, leave=progress) as bar:
        for step in range(1, plan.steps + 1):
            loss = draws.loss(plan.particles)
            # Not by backward(): parameters of the model would keep a sum of gradients, to which the
            # first step of an SVI after this would add its own.
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            schedule.step()
            curve.append(-float(loss.detach()))
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], newest)
            bar.update()
            if step % max(plan.steps // _CHECKS, 1) > 0:
                continue
            kept.check()
            if step > plan.steps // 2:
                kept.check_average(average)
            recent = [value for value in curve[-50:] if math.isfinite(value)]
            shown = sum(recent) / len(recent) if recent else math.nan
            bar.set_postfix_str(f"ELBO {shown:.3f}, k-hat {kept.last.k_hat:.2f}")
            # A tail that few draws fall into shows in many.
            if kept.settled and draws.diagnose(draws.judged).grade == "as drawn":
                break
            if kept.lost:
                logging.getLogger("made_flows").warning(
                    "fit_guide: the ELBO fell from %.4g to %.4g at step %d; the best weights "
                    "before are taken again, at a tenth of the learning rate",
                    kept.best.elbo,
                    kept.last.elbo,
                    step,
                )
                kept.restore()
                for group in optimizer.param_groups:
                    group["initial_lr"] *= 0.1
                schedule.base_lrs = [rate * 0.1 for rate in schedule.base_lrs]
                optimizer.state.clear()
    kept.restore()
    optimizer.zero_grad()
    return curve


def _rate(step: int, steps: int) -> float:
    """Return the learning rate's share: a warm-up, then a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    return min(1.0, (step + 1) / _WARM_UP) * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


class _Kept:
    """The weights of the highest ELBO at any check.

    Args:
        diagnose: judges the guide as it is.
        weights: its weights.
    """

    def __init__(self, diagnose: Callable[[], Diagnosis], weights: list[nn.Parameter]) -> None:
        self._diagnose, self._weights = diagnose, weights
        self.last = self.best = self._diagnose()
        self._before = -math.inf
        self._values = self._now()

    def _now(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)

    def check(self) -> None:
        """Diagnose the weights as they are."""
        self._before, self.last = self.best.elbo, self._diagnose()
        self._keep(self.last)

    def check_average(self, values: list[Tensor]) -> None:
        """Diagnose an average of the weights, which takes their place for so long."""
        now, before = self._now(), self.best.elbo
        self._put(values)
        if self._keep(self._diagnose()):
            self._before = before
        self._put(now)

    def _keep(self, found: Diagnosis) -> bool:
        """Keep the weights as they are, if they are the best so far."""
        better = found.elbo > self.best.elbo
        if better:
            self.best, self._values = found, self._now()
        return better

    @property
    def settled(self) -> bool:
        """Whether draws are nearly exact, and the ELBO has not risen by more than noise."""
        risen = self.best.elbo - self._before
        share = self.best.effective_sample_size / len(self.best.log_weights)
        exact = self.best.grade == "as drawn" and share > _EXACT
        return exact and risen < max(2 * self.best.elbo_error, _NOTHING)

    @property
    def lost(self) -> bool:
        """Whether the last ELBO is far below the best."""
        margin = 1.0 + 10 * self.best.elbo_error
        return self.best.elbo > -math.inf and not self.last.elbo > self.best.elbo - margin

    def restore(self) -> None:
        """Take the best weights again."""
        self._put(self._values)
