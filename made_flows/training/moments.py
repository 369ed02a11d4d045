"""What rows of real values are like, column by column, and warnings of those hard to learn from."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from made_flows._checks import listed

_FLAT = 1e-6
"""Part of the variance that columns have in a direction in which they are linear in one another."""

_COMPARED = 512
"""Columns that are compared with one another, at most: of more, the time would be felt."""

_LOST = 0.1
"""Part of a deviation that samples may be rounded to without a warning."""

_OUTLYING = 100.0
"""Standard deviations from which on a value is said to rule the likelihood."""

FAR = 20.0
"""Spreads from the median from which on values count as if they were there, or not at all."""


def robust_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Estimate mean and deviation of every column of rows (N, D), whatever a few hold.

    Values further from the median than twenty times the spread (that of a normal distribution
    with the same distance between its 5th and 95th percentile) count as if they were there.
    Without such values, these are the plain mean and standard deviation. NaN does not count. A
    constant column has scale 0, and so has one that rounding alone tells from a constant.

    Example:
        >>> x = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1e9])])
        >>> location, scale = robust_moments(x[:, None])
        >>> location.abs() < 0.02, scale < 1
        (tensor([True]), tensor([True]))
    """
    rows = x.detach().double()
    low, middle, high = _quantiles(rows)
    spread = (high - low) / 3.29
    limit = torch.where(spread > 0, FAR * spread, torch.inf)
    # The difference first: a square of 1e9 leaves nothing of 1.
    away = torch.maximum(torch.minimum(rows - middle, limit), -limit)
    # By a power of two, which rounds nothing: squares of 1e200 and 1e-200 are no numbers.
    unit = torch.exp2(away.abs().nan_to_num(0.0).amax(dim=0).frexp().exponent.double())
    away = away / unit
    count = (~away.isnan()).sum(dim=0).clamp(min=1)
    mean = away.nansum(dim=0) / count
    variance = (away - mean).square().nansum(dim=0) / (count - 1).clamp(min=1)
    scale, mean = variance.sqrt() * unit, mean * unit
    noise = resolution_of(x) * torch.maximum(middle.abs(), mean.abs())
    scale = torch.where(scale > 0.5 * noise, scale, 0.0)
    return middle + mean, scale


def _quantiles(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find every column's 5th, 50th and 95th percentile, wider apart where those are equal."""
    middle = rows.nanmedian(dim=0).values.nan_to_num()
    ordered = rows.sort(dim=0).values  # NaN last
    count = (~rows.isnan()).sum(dim=0)
    last = (count - 1).clamp(min=0)
    low = high = middle
    for part in (0.0, 0.01, 0.05):
        places = torch.stack([(part * last).floor(), ((1 - part) * last).ceil()]).long()
        ends = ordered.gather(0, places).nan_to_num()
        wider = ends[1] > ends[0]
        # The narrowest that is not empty: the ends alone would let an outlier set the scale.
        low, high = torch.where(wider, ends[0], low), torch.where(wider, ends[1], high)
    return low, middle, high


def context_moments(context: Tensor) -> tuple[Tensor, Tensor]:
    """Return location and scale of contexts (N, C); the scale of a constant column is infinite.

    Whatever it is at use is nothing to the network then, whose weights of it no row has trained.
    """
    middle, spread = robust_moments(context)
    return middle, torch.where(spread > 0, spread, torch.inf)


def resolution_of(x: Tensor) -> float:
    """Return the relative distance of neighbouring numbers of a tensor's dtype; 0 of integers."""
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0


def is_apart(away: Tensor, location: Tensor, resolution: float) -> Tensor:
    """Tell whether values so far from a place are others than that, and not rounded from it."""
    return away > 2 * resolution * location.abs()


def warn_of_outliers(u: Tensor, name: str) -> None:
    """Warn of values that will rule the likelihood: a normal tail hardly knows them possible."""
    said = _far_out(u, _OUTLYING, f"rows of {name} to train on", "")
    if said:
        warnings.warn(
            f"{said}. Few rows will rule the likelihood: leave them out, or take logarithms of "
            f"such columns",
            stacklevel=5,
        )


def warn_of_contexts(context: Tensor, location: Tensor, scale: Tensor, name: str) -> None:
    """Warn of contexts far from most others, and of columns that are constant."""
    u = (context.double() - location) / scale
    said = _far_out(u, FAR, f"contexts of {name}", " of the context")
    if said:
        warnings.warn(
            f"{said}. Beside them a network hardly tells the others apart: take logarithms of such "
            f"columns",
            stacklevel=4,
        )
    constant = scale.isinf().nonzero().flatten().tolist()
    if constant:
        warnings.warn(
            f"Columns of the context of {name} are constant: {listed(constant)}. Nothing can be "
            f"learnt of them: scores and samples will be the same for other values",
            stacklevel=4,
        )


def _far_out(u: Tensor, limit: float, rows: str, of: str) -> str:
    """Say which standardised rows are further out than a limit, "" where none are."""
    size = u.abs().nan_to_num(0.0)
    if not bool(size.max() > limit):
        return ""
    row, column = divmod(int(size.argmax()), u.shape[1])
    count = int((size > limit).any(dim=1).sum())
    return (
        f"{count} of the {rows} {'is' if count == 1 else 'are'} more than {limit:g} standard "
        f"deviations out: the furthest {float(size.max()):.3g}, in column {column}{of} (row {row} "
        f"of those measured)"
    )


def warn_of_digits(
    x: Tensor, location: Tensor, scale: Tensor, dtype: torch.dtype, name: str
) -> None:
    """Warn of columns of rows x that a model's dtype cannot hold, though they score as they are."""
    held = torch.finfo(dtype)
    step = (held.eps * location.abs()).clamp(min=held.tiny * held.eps)
    step = torch.where(location.abs() + 10 * scale > held.max, torch.inf, step)
    given = resolution_of(x) * location.abs()
    lost = ((step > _LOST * scale) & (step > given)).nonzero().flatten().tolist()
    if lost:
        warnings.warn(
            f"Columns of {name} hardly vary for how large they are, or are no numbers of "
            f"{dtype}, the model's: {listed(lost)}. Scores are exact, but samples are rounded to "
            f"steps of more than a tenth of a standard deviation. Those of model.double() "
            f"are not",
            stacklevel=5,
        )


class NearDependence(NamedTuple):
    """Columns that are nearly linear in one another.

    Args:
        message: names them, for a warning.
        correlations: of all columns, (D, D).
        deviations: of all columns, (D,).
    """

    message: str
    correlations: Tensor
    deviations: Tensor


def near_dependence(u: Tensor, name: str) -> NearDependence | None:
    """Find which columns of standardised rows (N, D) are nearly linear in one another, if some are.

    Flows learn such a direction to some digits alone, and lose nats a row for those that lack.
    """
    if u.shape[1] > _COMPARED:
        return None
    # Rows far out would be in line with all others; those of NaN go with them.
    u = u[(u.abs() <= FAR).all(dim=1)]
    if len(u) <= u.shape[1]:
        return None
    correlations, deviations = _correlations(u)
    values, vectors = torch.linalg.eigh(correlations)
    if float(values[0]) >= _FLAT:
        return None
    flat = vectors[:, values < _FLAT]
    involved = (flat.abs() > 0.1).any(dim=1).nonzero().flatten().tolist()
    count = "one" if flat.shape[1] == 1 else flat.shape[1]
    message = (
        f"Columns of {name} are nearly linear in one another: {listed(involved)}. Their joint "
        f"density is as high as they are close; leave {count} of them out"
    )
    return NearDependence(message, correlations, deviations)


def _correlations(u: Tensor) -> tuple[Tensor, Tensor]:
    """Find correlations (D, D) and deviations (D,) of rows (N, D)."""
    z = u - u.mean(dim=0)
    norms = z.norm(dim=0).clamp(min=torch.finfo(z.dtype).tiny)
    z = z / norms
    # Ones also of a column that is constant but for rows far out: in line with no other.
    return (z.T @ z).fill_diagonal_(1.0), norms / max(len(u) - 1, 1) ** 0.5
