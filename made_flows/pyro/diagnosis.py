"""How far a guide can be trusted: importance weights of its own samples, and their tail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from made_flows._checks import expect, expect_type, positive_integer
from made_flows.diagnostics.pareto import smooth_weights

__all__ = ["Diagnosis", "diagnose"]

_AT_ONCE = 1000
"""Samples that are drawn together."""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the importance weights p(data, u) / q(u) of samples u of a guide q say about it.

    Args:
        k_hat: estimated shape of the weights' tail; the weights have a finite variance below 1/2
            and a finite mean below 1.
        threshold: the k-hat below which averages by this many weights are reliable.
        effective_sample_size: how many independent draws of the posterior the samples are worth.
        elbo: average logarithm of the weights, and ``elbo_error`` its standard error.
        log_evidence: estimated logarithm of p(data), and ``log_evidence_error`` its standard
            error (too small where k-hat is above the threshold).
        log_weights: logarithms of the weights (S,), as they were drawn.
    """

    k_hat: float
    threshold: float
    effective_sample_size: float
    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    log_weights: Tensor = field(compare=False)

    @property
    def trusted(self) -> bool:
        """Whether averages over the guide's weighted samples are reliable."""
        return self.k_hat < self.threshold

    @property
    def verdict(self) -> str:
        """A sentence on whether to trust the guide."""
        k = f"k-hat {self.k_hat:.2f}"
        if self.trusted:
            return (
                f"Trust it: {k} is below {self.threshold:.2f}, so that averages over its weighted "
                f"samples are reliable, as those of {self.effective_sample_size:.0f} independent "
                "draws would be (weights do not show a mode that no sample fell into)."
            )
        if self.k_hat < 1:
            return (
                f"Do not trust it yet: {k} is above {self.threshold:.2f}, so that even weighted "
                "averages are biased. Train it longer or with more particles, make it more "
                "flexible, or reparametrise the model."
            )
        return (
            f"Do not trust it: with {k} the weights have no mean that samples could show. The "
            "guide misses much of the posterior; its evidence is worth nothing."
        )

    def __repr__(self) -> str:
        rows = {
            "Pareto k-hat": f"{self.k_hat:.2f} (reliable below {self.threshold:.2f})",
            "effective sample size": f"{self.effective_sample_size:.0f}",
            "ELBO": f"{self.elbo:.3f} +- {self.elbo_error:.3f}",
            "log evidence": f"{self.log_evidence:.3f} +- {self.log_evidence_error:.3f}",
        }
        lines = [f"  {name:<23}{value}" for name, value in rows.items()]
        head = f"Diagnosis of a guide by {len(self.log_weights)} samples"
        return "\n".join([head, *lines, self.verdict])


def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    samples: int = 1000,
    vectorize: bool = True,
    **kwargs: Any,
) -> Diagnosis:
    r"""Whether a guide can be trusted, by Pareto-smoothed importance sampling.

    Samples :math:`u_s` of the guide have weights :math:`w_s = p(\mathrm{data}, u_s) / q(u_s)`.
    How heavy the tail of the weights is, k-hat, says how many of them an average needs; their mean
    estimates the evidence p(data). It works with every guide whose sites are all in the model.

    Args:
        model, guide: a Pyro model and a guide of it.
        args, kwargs: of both.
        samples: number of samples S, at least 100.
        vectorize: whether model and guide can be run for all samples at once, within a plate.

    Raises:
        ValueError: for fewer samples; for a model with subsampling (whose weights are noise), with
            latent variables that the guide does not sample, or with a density that is NaN.

    References:
        Yao, Vehtari, Simpson & Gelman 2018, *Yes, but Did It Work?: Evaluating Variational
        Inference*; Vehtari et al. 2024, *Pareto Smoothed Importance Sampling*.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> diagnose(model, AutoNormal(model, init_scale=0.99)).trusted
        True
    """
    samples = positive_integer(samples, "samples")
    expect(samples >= 100, "samples", "to be at least 100", samples)
    for name, function in (("model", model), ("guide", guide)):
        expect_type(callable(function), name, "to be a function or module", function)
    with torch.no_grad(), poutine.block():
        nesting = _plate_nesting(model, guide, args, kwargs)
        if vectorize:
            parts = [
                vectorized_importance_weights(
                    model,
                    guide,
                    *args,
                    num_samples=min(_AT_ONCE, samples - start),
                    max_plate_nesting=nesting,
                    **kwargs,
                )[0].reshape(-1)
                for start in range(0, samples, _AT_ONCE)
            ]
        else:
            parts = [_log_weight(*_traces(model, guide, args, kwargs)) for _ in range(samples)]
    return _summary(torch.cat(parts).double().cpu())


def _summary(log_weights: Tensor) -> Diagnosis:
    smoothed = smooth_weights(log_weights)
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
    )


def _traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, Trace]:
    """Traces of the model and of the guide that it follows."""
    of_guide = poutine.trace(guide).get_trace(*args, **kwargs)
    of_model = poutine.trace(poutine.replay(model, trace=of_guide)).get_trace(*args, **kwargs)
    return prune_subsample_sites(of_model), prune_subsample_sites(of_guide)


def _log_weight(of_model: Trace, of_guide: Trace) -> Tensor:
    total = of_model.log_prob_sum() - of_guide.log_prob_sum()
    return torch.as_tensor(total).reshape(1)


def _plate_nesting(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> int:
    """How many dimensions the plates take, of a model that was checked."""
    of_model, of_guide = _traces(model, guide, args, kwargs)
    dims = [0]
    for trace in (of_model, of_guide):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            for frame in site["cond_indep_stack"]:
                whole = frame.full_size in (None, frame.size)
                got = f"plate {frame.name!r} with {frame.size} of {frame.full_size}"
                expect(whole, "model", "without subsampling, whose weights are noise", got)
                dims += [frame.dim] if frame.dim is not None else []
            known = trace is of_guide or site["is_observed"] or name in of_guide.nodes
            expect(known, "guide", "to sample every latent variable of the model", f"no {name!r}")
    return -min(dims)
