"""Draws by site: what weights make of their moments, which can be had, and the form of ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from made_flows._checks import expect
from made_flows.diagnostics.pareto import pareto_smooth

_CLOSE = 0.1


class Moved(NamedTuple):
    """How far weights move moments of draws: the largest changes over all variables.

    Args:
        means: in standard deviations of the weighted draws.
        deviations: of standard deviations, in their own size.
    """

    means: float
    deviations: float

    @property
    def close(self) -> bool:
        """Whether both are at most a tenth."""
        return self.means <= _CLOSE and self.deviations <= _CLOSE

    def __str__(self) -> str:
        return f"means by {self.means:.2f} sd, standard deviations by {self.deviations:.0%}"


def moved_by(samples: Mapping[str, Tensor], weights: Tensor) -> Moved:
    """Compare draws by site, each (S, *shape), as they are with the same by weights (S,)."""
    means, deviations = [0.0], [0.0]
    for draws in samples.values():
        x = _columns(draws)
        mean, deviation = weighted_moments(x, weights)
        known = varying(draws)
        if bool(known.any()):
            before, spread = weighted_moments(x, torch.full_like(weights, 1 / len(weights)))
            means.append(float(((before - mean) / deviation)[known].abs().max()))
            deviations.append(float((spread / deviation - 1)[known].abs().max()))
    # A maximum of what is no number is none, and then nothing is close.
    return Moved(float(torch.tensor(means).max()), float(torch.tensor(deviations).max()))


def heaviest_squares(
    samples: Mapping[str, Tensor], log_weights: Tensor, weights: Tensor
) -> dict[str, float]:
    r"""Return by site the largest k-hat of :math:`w_s (x_s - \bar x)^2`, whose mean is a variance.

    Weights whose tail is light do not make every average reliable: that of a function takes a light
    tail of its product with the weights (Vehtari et al. 2024, *Pareto Smoothed Importance
    Sampling*, of which R's ``loo::E_loo`` makes a diagnostic for each function).
    """
    found = {}
    for name, draws in samples.items():
        x = _columns(draws)
        mean, _ = weighted_moments(x, weights)
        logs = log_weights.unsqueeze(-1) + 2 * (x - mean).abs().log()
        usable = varying(draws) & ~logs.isnan().any(dim=0)
        shapes = [pareto_smooth(column).k_hat for column in logs.mT[usable]]
        found[name] = max(shapes, default=0.0)
    return found


def weighted_moments(draws: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations (*shape) of draws (S, *shape) by weights (S,)."""
    weights = weights.to(draws.device)
    x = draws.to(weights.dtype)
    mean: Tensor = torch.tensordot(weights, x, dims=1)
    variance: Tensor = torch.tensordot(weights, (x - mean).square(), dims=1)
    return mean.to(draws.dtype), variance.sqrt().to(draws.dtype)


def quantile_levels(quantiles: Any) -> Tensor:
    """Check the probabilities of quantiles, and return them in double precision, (Q,)."""
    levels = torch.as_tensor(quantiles, dtype=torch.float64)
    inside = levels.dim() == 1 and bool(((levels >= 0) & (levels <= 1)).all())
    expect(inside, "quantiles", "to be a list of numbers between 0 and 1", quantiles)
    return levels


def weighted_quantiles(draws: Tensor, weights: Tensor, wanted: Tensor) -> Tensor:
    """Return quantiles (Q, *shape) of every variable of weighted draws (S, *shape)."""
    values, order = draws.reshape(len(draws), -1).sort(dim=0)
    reached = weights.to(draws.device)[order].cumsum(dim=0).T.contiguous()
    levels = wanted.to(reached).expand(len(reached), -1).contiguous()
    places = torch.searchsorted(reached, levels).clamp(max=len(draws) - 1)
    return values.gather(0, places.T).reshape(len(wanted), *draws.shape[1:])


def _columns(draws: Tensor) -> Tensor:
    return draws.detach().reshape(len(draws), draws[0].numel()).double().cpu()


def varying(draws: Tensor) -> Tensor:
    """Tell which variables of draws (S, *shape) are more than a constant, rounded now and then.

    Sites have constants, such as the 1 in a corner of a Cholesky factor of correlations: their
    deviation is that of rounding, which nothing is to be measured in.
    """
    x = _columns(draws)
    size, spread = x.abs().amax(dim=0), x.amax(dim=0) - x.amin(dim=0)
    digits = torch.finfo(draws.dtype).eps if draws.is_floating_point() else 0.0
    return ~(spread <= 8 * digits * size)  # what is no number varies


def to_arviz(chains: Mapping[str, Tensor]) -> Any:
    """Return draws by site (chains, draws, *shape) as ArviZ keeps them."""
    try:
        import arviz
    except ImportError as error:
        raise ImportError(
            "Expected ArviZ, which to_arviz converts draws to; got none. Install it: "
            "pip install 'made-flows[arviz]'"
        ) from error
    posterior = {name: value.detach().cpu().numpy() for name, value in chains.items()}
    if int(arviz.__version__.split(".")[0]) >= 1:  # groups by name, and no longer by argument
        return arviz.from_dict({"posterior": posterior})
    return arviz.from_dict(posterior=posterior)
