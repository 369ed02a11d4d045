"""What AutoIAF samples from: the posterior of all latent variables, and the values of sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import register_kl
from torch.quasirandom import SobolEngine

from made_flows._cache import Stamp
from made_flows._torch import is_traced, is_untransformed
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.pyro.flat_flow import FlatFlow
from made_flows.pyro.gradient_guard import DrawWeights, GradientGuard

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
_NONE = cast(Tensor, 0)
"""A part of the density that does not enter: Pyro knows the number."""

_DRAWS = 8192
"""Samples for medians and quantiles."""


def normal_noise(base: StandardNormal) -> Any:
    """Return the noise of a flow as a distribution of Pyro."""
    normal: Any = dist.Normal(base.zero, base.one, validate_args=False)
    return normal.to_event(1)


def even_noise(features: int) -> Tensor:
    """Return standard normal noise (8192, D) that is spread evenly, always the same."""
    if features > SobolEngine.MAXDIM:
        return torch.randn(_DRAWS, features, generator=torch.Generator().manual_seed(0))
    uniform = SobolEngine(features, scramble=True, seed=0).draw(_DRAWS, dtype=torch.float64)
    return cast(Tensor, torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)))


class FlowPosterior(dist.TransformedDistribution):
    """The posterior of a guide: a flow over its noise, with path gradients for ELBOs.

    It knows the noise of its last sample for as long as that is true: until a weight changes, or
    a backward pass has gone through the sample.
    """

    def __init__(self, base: StandardNormal, transforms: Any, batch_shape: Any = ()) -> None:
        # Of torch's own, which compares domains and shapes, a tenth of a millisecond later.
        self._base, self.transforms = base, transforms
        torch.distributions.Distribution.__init__(
            self, torch.Size(batch_shape), base.zero.shape, validate_args=False
        )

    has_rsample = True  # not asked of the noise, which it would make every time
    path_gradient: bool = False
    guard: GradientGuard | None = None
    _last: _Sample | None = None

    @property
    def base_dist(self) -> Any:
        """The noise, standard normal."""
        return normal_noise(self._base).expand(self.batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowPosterior:
        """Expand to a larger batch shape."""
        new = FlowPosterior(self._base, self.transforms, batch_shape)
        new.path_gradient, new.guard = self.path_gradient, self.guard
        return new

    @property
    def _transform(self) -> FlatFlow:
        return cast(FlatFlow, self.transforms[0])

    @property
    def flow(self) -> Flow:
        """The flow."""
        return self._transform.shared()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples (*sample_shape, *batch_shape, D) that carry gradients."""
        zero, shape = self._base.zero, self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=zero.dtype, device=zero.device)  # without parameters
        plain = is_untransformed(noise)  # nothing traces or maps
        score: Tensor | None = None
        if self.path_gradient and torch.is_grad_enabled() and plain:
            x, log_det, score = self._transform.sample_with_score(noise)
        else:
            x, log_det = cast(tuple[Tensor, Tensor], self._transform.to_data(noise))
        weights = None
        if self.guard is not None and plain and x.requires_grad:
            weights = DrawWeights()
            x.register_hook(partial(_guarded, self.guard, weights))
        traced = is_traced()
        can_tell = (plain or traced) and not x.is_inference()
        made = self._transform, noise, x, log_det, score, weights, self.guard
        self._last = _Sample(*made) if can_tell else None
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density (...) of points (..., D)."""
        last = self._last
        if last is not None and last.holds(x):
            constant = last.noise.shape[-1] * _HALF_LOG_2_PI
            of_noise = last.noise.square().sum(dim=-1).mul_(-0.5).sub_(constant)
            last.log_prob = of_noise - last.log_det
            last.weigh(last.log_prob)
            return last.log_prob
        noise, log_det = self._transform.to_noise(x)
        return cast(Tensor, self.base_dist.log_prob(noise)) - log_det

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Return the density for Pyro's ELBOs, which differentiate the last part."""
        log_prob, last = self.log_prob(x), self._last
        if last is None or last.score is None or last.log_prob is not log_prob:
            return ScoreParts(log_prob, _NONE, log_prob)
        if not last.score.isfinite().all():  # a Jacobian that is singular, to rounding
            return ScoreParts(log_prob, _NONE, log_prob)
        if last.drowns():
            return ScoreParts(log_prob, _NONE, log_prob)
        path = log_prob.detach() + (last.score * (x - x.detach())).sum(dim=-1)
        last.weigh(path)
        return ScoreParts(log_prob, _NONE, path)


def _guarded(guard: GradientGuard, weights: DrawWeights, gradient: Tensor) -> Tensor:
    found, score = weights.take(), weights.score
    if found is not None and score is not None and found.shape == gradient.shape[:-1]:
        of_model = gradient / found.unsqueeze(-1)
        guard.balance.note(score, of_model - score if weights.by_path else of_model)
    return guard(gradient, found)


class _Sample:
    """A sample, what it was made of, and the state of all that it was made by."""

    def __init__(
        self,
        transform: FlatFlow,
        noise: Tensor,
        x: Tensor,
        log_det: Tensor,
        score: Tensor | None,
        weights: DrawWeights | None,
        guard: GradientGuard | None,
    ) -> None:
        self._guard = guard
        self.noise, self.x, self.log_det, self.score = noise, x, log_det, score
        self._weights = weights
        self._transform = transform
        self._fixed, self._stamp = transform.stamp(), Stamp.of([transform.weights, x])
        self._used = False
        self.log_prob: Tensor | None = None
        if x.grad_fn is not None and not is_traced():
            x.grad_fn.register_prehook(self._forget)

    def _forget(self, *_: Any) -> None:
        self._used = True

    def weigh(self, log_prob: Tensor) -> None:
        """Let the guard know how much each draw counts, by a log-density (...) of the sample."""
        if self._weights is not None and log_prob.requires_grad:
            log_prob.register_hook(self._weights.add)

    def drowns(self) -> bool:
        """Tell whether path gradients are to be left alone for now; let the guard compare both."""
        if self._weights is None or self._guard is None:
            return False
        self._weights.score = self.score
        self._weights.by_path = not self._guard.balance.drowns()
        return not self._weights.by_path

    def holds(self, x: Tensor) -> bool:
        """Tell whether x is the sample, of weights that are what they were."""
        if x is not self.x or self._used or self._stamp is None or self._fixed is None:
            return False
        weights, others = self._transform.state()
        return self._stamp.holds([weights, x]) and self._fixed.holds(*others)


class _SiteValue(dist.Delta):
    """The value of a site, made of the sample of all."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the value."""
        return cast(Tensor, super().rsample(sample_shape) if sample_shape else self.v)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the density: at the value itself there is nothing to compare."""
        return self.log_density if x is self.v else cast(Tensor, super().log_prob(x))


def _kl(p: Any, q: Any) -> Tensor:
    # Pyro's own leaves out the Jacobian of the site's constraint, which is the point's density.
    return cast(Tensor, p.log_density - q.log_prob(p.v))


register_kl(_SiteValue, dist.Distribution)(_kl)


class SiteMessenger(Messenger):
    """Gives the sites of a guide a divergence that TraceMeanField_ELBO can rely on."""

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]) is dist.Delta:
            msg["fn"].__class__ = _SiteValue  # made a moment ago, for this site alone
