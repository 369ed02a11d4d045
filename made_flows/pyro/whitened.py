"""A posterior's density over unconstrained variables, of many points, in a guide's units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.transforms import Transform

from made_flows.pyro.layout import LatentSite

_AT_ONCE = 1000
"""Points whose density is computed together."""
_FEWEST = 100
"""Draws from which units are known."""


class Density:
    """The log-density of a model's unconstrained latent variables, of many points at once.

    Args:
        model: the model, with its data.
        nesting: how many dimensions its plates take; None to run it for a point at a time.
        sites: its latent variables, all continuous.
        dtype: of their values.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        nesting: int | None,
        sites: Mapping[str, LatentSite],
        dtype: torch.dtype,
    ) -> None:
        self._model, self._nesting = model, nesting
        self._sites, self._dtype = sites, dtype

    @property
    def size(self) -> int:
        """The number of dimensions D."""
        return sum(site.unconstrained.numel() for site in self._sites.values())

    def unconstrained(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Return draws by site as points (S, D)."""
        parts = []
        for name, site in self._sites.items():
            value = samples[name]
            parts.append(cast(Transform, site.transform).inv(value).reshape(len(value), -1))
        return torch.cat(parts, dim=-1).double()

    def from_prior(self, count: int) -> Tensor:
        """Return draws (N, D) of the prior."""
        if self._nesting is None and count > 1:
            return torch.cat([self.from_prior(1) for _ in range(count)])
        nodes: Any = self._trace(count, {}).nodes
        draws = {n: nodes[n]["value"].reshape(-1, *s.shape) for n, s in self._sites.items()}
        return self.unconstrained(draws)

    def _trace(self, count: int, values: Mapping[str, Tensor]) -> Any:
        """Return the trace of the model, run for all points, with the values of its sites."""

        def together() -> None:
            many = self._nesting is not None
            dim = -1 - (self._nesting or 0)
            with pyro.plate("probed points", count, dim=dim) if many else nullcontext():
                self._model()

        # Points where a distribution's arguments are out of range have no density: no error.
        with poutine.block(), pyro.validation_enabled(False):
            trace: Any = poutine.trace(poutine.condition(together, data=dict(values))).get_trace()
            trace.compute_log_prob()
        return trace

    def __call__(self, u: Tensor) -> Tensor:
        """Return the log-density (N,) at points (N, D)."""
        if self._nesting is None and len(u) > 1:
            return torch.cat([self(point) for point in u.split(1)])
        count, at, total, values = len(u), 0, u.new_zeros(len(u)), {}
        for name, site in self._sites.items():
            transform = cast(Transform, site.transform)
            shape = site.unconstrained
            part = u[:, at : at + shape.numel()].reshape(count, *shape).to(self._dtype)
            at += shape.numel()
            value = transform(part)
            log_det = transform.log_abs_det_jacobian(part, value)
            total = total + log_det.reshape(count, -1).sum(dim=-1)
            between = [1] * ((self._nesting or 0) - site.plates)
            batch = () if self._nesting is None else (count, *between)
            values[name] = value.reshape((*batch, *site.shape))
        nodes: Any = self._trace(count, values).nodes
        for node in nodes.values():
            if node["type"] == "sample":
                log_prob = node["log_prob"]
                nesting = log_prob.dim() if self._nesting is None else self._nesting
                missing = [1] * (nesting + 1 - log_prob.dim())
                log_prob = log_prob.reshape(*missing, *log_prob.shape)
                total = total + log_prob.reshape(len(log_prob), -1).sum(dim=-1)
        return total


class Whitened:
    """A posterior in units in which a guide's weighted draws have mean zero and covariance one.

    Args:
        density: of unconstrained variables.
        draws: of them (N, D).
        weights: of the draws (N,), which sum to one.
    """

    def __init__(self, density: Density, draws: Tensor, weights: Tensor) -> None:
        self._density, self.weights = density, weights
        self._middle = weights @ draws
        self._factor = _factor(draws - self._middle, weights)
        self._log_det = self._factor.diagonal().log().sum()
        self.draws = self.enter(draws)

    def enter(self, u: Tensor) -> Tensor:
        """Return unconstrained points (N, D) in these units."""
        apart = (u - self._middle).mT
        return cast(Tensor, torch.linalg.solve_triangular(self._factor, apart, upper=False).mT)

    def from_prior(self, count: int) -> Tensor:
        """Return draws (N, D) of the prior."""
        return self.enter(self._density.from_prior(count))

    def __call__(self, v: Tensor) -> Tensor:
        """Return the log-density (N,) of points (N, D), which integrates to the evidence."""
        parts = (self._middle + v @ self._factor.mT).split(_AT_ONCE)
        return torch.cat([self._density(part).double() for part in parts]) + self._log_det

    @cached_property
    def heights(self) -> Tensor:
        """The log-density of the draws (N,)."""
        return self(self.draws)


def whitened(
    model: Callable[[], Any],
    nesting: int | None,
    sites: Mapping[str, LatentSite],
    samples: Mapping[str, Tensor],
    weights: Tensor,
) -> Whitened | None:
    """Return a model's posterior in the units of weighted draws.

    Args:
        model: the model, with its data.
        nesting: how many dimensions its plates take; None to run it for one point at a time.
        sites: its latent variables.
        samples: draws by site, each (S, *shape).
        weights: of the draws (S,).

    Returns:
        the posterior; None where it has no gradients, as a latent variable is discrete or torch in
        inference mode, and where less than a hundred draws have finite unconstrained values.
    """
    discrete = any(site.transform is None for site in sites.values())
    if discrete or torch.is_inference_mode_enabled():
        return None
    density = Density(model, nesting, sites, next(iter(samples.values())).dtype)
    draws = density.unconstrained(samples)
    weights = weights.to(draws.device)
    usable = draws.isfinite().all(dim=-1) & (weights > 0)
    if int(usable.sum()) < _FEWEST:
        return None
    return Whitened(density, draws[usable], weights[usable] / weights[usable].sum())


def value_and_gradient(
    density: Callable[[Tensor], Tensor], points: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the density (N,) and its gradient (N, D): minus infinity and zeros for no numbers."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        try:
            value = density(points)
            (gradient,) = torch.autograd.grad(value.sum(), points)
        except (IndexError, RuntimeError, TypeError, ValueError):  # no Cholesky factor, say
            value, gradient = points.new_full((len(points),), math.nan), points
    known = value.isfinite() & gradient.isfinite().all(dim=-1)
    value = torch.where(known, value.detach(), -math.inf)
    return value, torch.where(known.unsqueeze(-1), gradient, 0.0)


def _factor(centred: Tensor, weights: Tensor) -> Tensor:
    """Return the Cholesky factor of the covariance; of its diagonal where draws are too few."""
    covariance = centred.mT @ (weights.unsqueeze(-1) * centred)
    diagonal = covariance.diagonal().clamp(min=1e-300)
    if 5 * centred.shape[-1] <= 1 / float(weights.square().sum()):
        unit = diagonal.rsqrt()
        factor, failed = torch.linalg.cholesky_ex(unit[:, None] * covariance * unit)
        if not int(failed):
            return cast(Tensor, diagonal.sqrt()[:, None] * factor)
    return torch.diag(diagonal.sqrt())
