"""What importance weights say of a guide: a verdict in words, and weighted draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from made_flows._checks import positive_integer
from made_flows.diagnostics.pareto import pareto_smooth
from made_flows.pyro.draws import (
    Moved,
    heaviest_squares,
    moved_by,
    quantile_levels,
    to_arviz,
    weighted_moments,
    weighted_quantiles,
)
from made_flows.pyro.probe import Probe

Grade = Literal["as drawn", "weighted", "not yet", "no"]
"""What of a guide may be used: its draws, their weighted averages, or nothing so far."""

_AS_DRAWN = 0.8
"""Share of effective draws from which means of unweighted draws are within half a standard
deviation: their error is at most sqrt(S / ESS - 1) of them."""

_WEIGHTED = 0.2
"""Share of effective draws below which weights, too, are not believed."""

_EVEN = 0.95
"""Share of effective draws from which a k-hat below one is enough: the tail of nearly equal weights
holds little, whatever its shape."""

_PARTS = 4

_SEEN = 0.3
"""Share of the way of independent draws below which chains of a probe have not been anywhere."""

_OTHER_MODES = (
    "Give every mode a guide of its own, fit_guide(guide, ..., modes=2) or more; longer training "
    "and MCMC from these draws seldom get there."
)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    r"""What the importance weights p(data, u) / q(u) of samples u of a guide q say about it.

    Args:
        k_hat: estimated shape of the weights' tail; the weights have a finite variance below 1/2
            and a finite mean below 1.
        threshold: the k-hat below which averages by this many weights are reliable.
        effective_sample_size: how many independent draws of the posterior the samples are worth.
        elbo: average logarithm of the weights, and ``elbo_error`` its standard error.
        log_evidence: estimated logarithm of p(data), and ``log_evidence_error`` its standard
            error (too small where k-hat is above the threshold).
        log_weights: logarithms of the weights (S,), as they were drawn.
        smoothed_log_weights: the same with their tail smoothed (S,), by which averages are taken.
        samples: the guide's draws by site, each (S, *shape of the site), constrained.
        k_hat_parts: k-hat of each quarter of the samples: how much it depends on them.
        probe: where short chains went that started at the weighted draws; None without.
        unseen: the share of the posterior that is in a mode which no draw fell into, as climbs
            from elsewhere found it; 0 where they found none, None without.
        centred: sites with a location and a scale that other latent variables set.
    """

    k_hat: float
    threshold: float
    effective_sample_size: float
    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    log_weights: Tensor = field(compare=False)
    smoothed_log_weights: Tensor = field(compare=False)
    samples: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    k_hat_parts: tuple[float, ...] = ()
    probe: Probe | None = None
    unseen: float | None = None
    centred: tuple[str, ...] = ()

    @property
    def bias_bound(self) -> float:
        r"""The largest error of a mean of unweighted draws, in standard deviations of the draws.

        :math:`|E_p f - E_q f| = |\mathrm{Cov}_q(w, f)| \le \mathrm{sd}_q(f) \sqrt{S / ESS - 1}`,
        by Cauchy and Schwarz, for every function f and with weights w of mean one.
        """
        share = self.effective_sample_size / len(self.log_weights)
        return math.sqrt(max(1 / share - 1, 0.0))

    @cached_property
    def moved(self) -> Moved:
        """How far weights move means and standard deviations of the draws, at most."""
        return moved_by(self.samples, self.weights)

    @cached_property
    def without_deviation(self) -> tuple[str, ...]:
        """Sites whose standard deviation the draws, weighted or not, are too few to show."""
        shapes = heaviest_squares(self.samples, self.log_weights, self.weights)
        return tuple(name for name, shape in shapes.items() if not shape < self.threshold)

    @property
    def grade(self) -> Grade:
        """What may be used: draws as they are, weighted draws alone, not yet either, or never."""
        share = self.effective_sample_size / len(self.log_weights)
        parts = sorted(self.k_hat_parts) or [self.k_hat]
        # A k-hat that is low by luck of the draw is not low in most parts.
        reliable = max(self.k_hat, parts[len(parts) // 2]) < self.threshold
        # A shape knows no scale: where weights are nearly equal, a tail of any mean holds little.
        reliable = reliable or (share >= _EVEN and self.k_hat < 1)
        reliable = reliable and not (self._wandered or self.unseen)
        if reliable and share >= _AS_DRAWN and self.moved.close:
            return "as drawn"
        if reliable and share >= _WEIGHTED:
            return "weighted"
        return "not yet" if self.k_hat < 1 else "no"

    @property
    def _wandered(self) -> bool:
        return self.probe is not None and self.probe.wandered

    @property
    def trusted(self) -> bool:
        """Whether averages over the guide's weighted samples are reliable."""
        return self.grade in ("as drawn", "weighted")

    @property
    def verdict(self) -> str:
        """Two sentences on what of the guide may be used, and how."""
        parts = f"{self._quarters} in quarters; " if self.k_hat_parts else ""
        found = (
            f"k-hat is {self.k_hat:.2f} ({parts}reliable below {self.threshold:.2f}) and the draws "
            f"are worth {self.effective_sample_size:.0f} of {len(self.log_weights)}"
        )
        unseen = "Weights do not show a mode that no draw fell into."
        if self.probe is not None:
            went = "stayed where they are" if self.probe.travelled > _SEEN else "hardly moved"
            went = "wandered off" if self.probe.wandered else went
            unseen = f"Chains from its draws {went}: {self.probe}."
        if self.unseen is not None:
            share = f"a mode with about {self.unseen:.0%} of the posterior"
            unseen += f" Climbs from elsewhere found {share if self.unseen else 'no other mode'}."
        if self.grade == "as drawn":
            if self.k_hat >= self.threshold:
                found += ", whose weights are so even that the shape of their tail matters little"
            return (
                f"Trust it: {found}. Means of its draws as they are lie within "
                f"{self.bias_bound:.2f} standard deviations of the posterior's; weights move "
                f"{self.moved}.{self._squares} {unseen}"
            )
        if self.grade == "weighted":
            return (
                f"Trust its weighted draws: {found}. Means of its draws as they are may be "
                f"{self.bias_bound:.1f} standard deviations off, and weights move {self.moved}: "
                "take mean(), quantiles() or resample() of this diagnosis."
                f"{self._squares} {unseen}"
            )
        if self.grade == "not yet":
            averages = "even weighted averages are biased"
            if self.k_hat < self.threshold:
                averages = "weighted averages are of few of them"
            why = f"{found}, so that {averages}"
            if self._wandered or self.unseen:
                why = (
                    f"there is mass where none of its draws fell. {unseen} By weights alone {found}"
                )
            if self.unseen:
                return f"Do not trust it yet: {why}. {_OTHER_MODES}"
            return (
                f"Do not trust it yet: {why}. Train it longer or with more particles, make it more "
                "flexible, or reparametrise the model; an AutoIAF can also refine() its draws by "
                f"MCMC.{self._decentre}"
            )
        return (
            f"Do not trust it: {found}, with a tail so heavy that the weights have no mean that "
            "samples could show. The guide misses much of the posterior; its evidence is worth "
            f"nothing.{f' {unseen} {_OTHER_MODES}' if self.unseen else ''}{self._decentre}"
        )

    @property
    def _quarters(self) -> str:
        return f"{min(self.k_hat_parts):.2f} to {max(self.k_hat_parts):.2f}"

    @property
    def _squares(self) -> str:
        if not self.without_deviation:
            return ""
        return (
            f" But take quantiles and no standard deviation of {', '.join(self.without_deviation)}:"
            " squares of so many draws, weighted or not, do not show it, as few far out decide."
        )

    @property
    def _decentre(self) -> str:
        if not self.centred:
            return ""
        sites = ", ".join(f"{name!r}: LocScaleReparam(0.0)" for name in self.centred)
        return (
            " Other variables set the scale of some, which is easier to fit decentred where data "
            f"say little of each: pyro.poutine.reparam(model, {{{sites}}})."
        )

    # ------------------------------------------------------------------ weighted draws

    @property
    def weights(self) -> Tensor:
        """Smoothed weights of the draws (S,), which sum to one."""
        return torch.softmax(self.smoothed_log_weights, dim=0)

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean of every latent variable, by site."""
        return {name: weighted_moments(x, self.weights)[0] for name, x in self.samples.items()}

    def std(self) -> dict[str, Tensor]:
        """Return the weighted standard deviation of every latent variable, by site."""
        return {name: weighted_moments(x, self.weights)[1] for name, x in self.samples.items()}

    def quantiles(self, quantiles: Sequence[float]) -> dict[str, Tensor]:
        """Return weighted quantiles of every latent variable, by site: (Q, *shape of the site).

        Args:
            quantiles: probabilities (Q,), between 0 and 1.

        Raises:
            ValueError: for probabilities outside [0, 1].
        """
        wanted = quantile_levels(quantiles)
        return {n: weighted_quantiles(x, self.weights, wanted) for n, x in self.samples.items()}

    def resample(
        self, count: int | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw the samples again by their smoothed weights: draws of equal weight, by site.

        Args:
            count: how many, by default as many as there are samples.
            generator: source of randomness.

        Raises:
            ValueError: for a count below one.
        """
        count = len(self.log_weights) if count is None else positive_integer(count, "count")
        places = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return {name: draws[places.to(draws.device)] for name, draws in self.samples.items()}

    def to_arviz(self) -> Any:
        """Return the draws as ArviZ keeps them (extra ``arviz``): resampled by weight, one chain.

        Draws graded *as drawn* are taken as they are. ArviZ knows no weights: the effective sample
        size that it would compute of repeated draws is too large, and that of this object holds.

        Returns:
            an ``InferenceData``, or a ``DataTree`` from ArviZ 1.0 on, with the group ``posterior``.

        Raises:
            ImportError: without ArviZ.
        """
        draws = self.samples if self.grade == "as drawn" else self.resample()
        return to_arviz({name: value.unsqueeze(0) for name, value in draws.items()})

    def __repr__(self) -> str:
        parts = f", quarters {self._quarters}" if self.k_hat_parts else ""
        rows = {
            "Pareto k-hat": f"{self.k_hat:.2f} (reliable below {self.threshold:.2f}{parts})",
            "effective sample size": f"{self.effective_sample_size:.0f}",
            "ELBO": f"{self.elbo:.3f} +- {self.elbo_error:.3f}",
            "log evidence": f"{self.log_evidence:.3f} +- {self.log_evidence_error:.3f}",
        }
        if self.probe is not None:
            rows["probe"] = str(self.probe)
        if self.unseen is not None:
            rows["in unseen modes"] = f"{self.unseen:.0%}"
        lines = [f"  {name:<23}{value}" for name, value in rows.items()]
        head = f"Diagnosis of a guide by {len(self.log_weights)} samples"
        return "\n".join([head, *lines, self.verdict])


def summary(log_weights: Tensor, samples: Mapping[str, Tensor]) -> Diagnosis:
    """Return what log-weights (S,) alone say of draws by site."""
    smoothed = pareto_smooth(log_weights)
    count = len(log_weights)
    return Diagnosis(
        k_hat=smoothed.k_hat,
        threshold=smoothed.threshold,
        effective_sample_size=smoothed.effective_sample_size,
        elbo=float(log_weights.mean()),
        elbo_error=float(log_weights.std()) / math.sqrt(count),
        log_evidence=smoothed.log_evidence,
        log_evidence_error=smoothed.log_evidence_error,
        log_weights=log_weights,
        smoothed_log_weights=smoothed.log_weights,
        samples=samples,
        k_hat_parts=tuple(pareto_smooth(part).k_hat for part in log_weights.chunk(_PARTS)),
    )
