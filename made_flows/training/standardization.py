"""Locations and scales of training rows, which become a part of the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from made_flows._checks import expect, listed
from made_flows.training.data import Rows, Source, Stream
from made_flows.training.target import Batch
from made_flows.transforms.base import Transform
from made_flows.transforms.units import Units

_KEPT = 100_000
"""Rows of a stream that are kept to measure it."""

_MOST = 2**18
"""Rows in memory, or of a file, that are measured: of more, every second, third, ..."""

_PIECE = 2**16

_FLAT = 1e-6
"""Part of the variance that columns have in a direction in which they are linear in one another."""

_DETERMINED, _FINEST = 1e-4, 1e-10
"""Variance of a column given those before it under which they determine it; what counts as none."""

_COMPARED = 512
"""Columns that are compared with one another, at most: of more, the time would be felt."""

_LOST = 0.1
"""Part of a deviation that samples may be rounded to without a warning."""

_OUTLYING = 100.0
_FAR = 20.0
"""Spreads from the median at which values stop counting: an outlier counts as much as one here."""


def set_units(found: list[Units], train: Source) -> None:
    """Set units from the rows to train on; those of contexts where no network embeds them.

    Raises:
        ValueError: for columns that are constant, by their numbers.
    """
    found = [units for units in found if units.of_data or not units.embedded]
    if not found:
        return
    x, context = _sample(train)
    of_context: tuple[Tensor | None, Tensor | None] = None, None
    if context is not None and any(not units.embedded for units in found):
        of_context = _of_context(train, context)
    known: dict[tuple[Transform, ...], tuple[Tensor | None, ...]] = {}
    for units in found:
        if units.of_data and units.before not in known:
            known[units.before] = _of_data(train, x, units)
        location, scale, factor = known[units.before] if units.of_data else (None, None, None)
        given = (None, None) if units.embedded else of_context
        units.set(location, scale, *given, factor if units.whitens else None)


def _of_context(train: Source, context: Tensor) -> tuple[Tensor, Tensor]:
    """Find location and scale of the contexts of rows to train on, of which some were taken."""
    location, scale = context_moments(context)
    if bool(scale.isinf().any()) and _has_more(train, len(context)):
        of_all = _deviation_of_all(train, location, of_context=True)
        scale = torch.where(scale.isinf() & (of_all > 0), of_all, scale)
    warn_of_contexts(context, location, scale, train.name)
    return location, scale


@torch.no_grad()
def _of_data(train: Source, x: Tensor, units: Units) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find location, scale and factor of rows to train on, of which x (N, D) were taken."""
    if units.before:
        x = train.target.move(x, None)[0]
    for transform in units.before:
        x = transform.to_noise(x)[0]
    location, scale = robust_moments(x)
    if bool((scale == 0).any()) and not units.before and _has_more(train, len(x)):
        scale = torch.where(scale > 0, scale, _deviation_of_all(train, location))
    constant = (scale == 0).nonzero().flatten().tolist()
    if constant:
        each = ", ".join(f"column {i} constant at {location[i]:g}" for i in constant[:5])
        others = f" and {len(constant) - 5} more" if len(constant) > 5 else ""
        raise ValueError(
            f"Expected the training rows of {train.name} to vary in every column; got "
            f"{each}{others}. A density is infinite there: leave such columns out, add noise to "
            f"them, or train with standardize=False"
        )
    u = (x.double() - location) / scale
    warn_of_outliers(u, train.name)
    warn_of_digits(x, location, scale, units.like.dtype, train.name)
    dependence = near_dependence(u, train.name)
    if dependence is not None:
        warnings.warn(dependence.message, stacklevel=5)
    return location, scale, None if dependence is None else _factor(dependence)


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


def _factor(dependence: NearDependence) -> Tensor:
    """Find L, (D, D), see :class:`Units`.

    Columns that others nearly determine become what these leave of them, in units of that. The
    others stay as they are: whitened, they would be fitted worse.
    """
    _, correlations, deviations = dependence
    factor, root = torch.eye(len(deviations)).to(deviations), correlations[:, :0]
    chosen: list[int] = []
    for i, deviation in enumerate(deviations):
        # Row by row, Cholesky's factor of the columns that stay.
        shared = correlations[chosen, i, None]
        explained = torch.linalg.solve_triangular(root[chosen], shared, upper=False)
        left = 1.0 - float(explained.square().sum())
        if left < _DETERMINED:
            slopes = torch.linalg.solve_triangular(root[chosen].mT, explained, upper=True)[:, 0]
            factor[i, chosen] = deviation * slopes / deviations[chosen]
            factor[i, i] = deviation * max(left, _FINEST) ** 0.5
        else:
            root = torch.nn.functional.pad(root, (0, 1))
            root[i] = torch.cat([explained[:, 0], root.new_tensor([left**0.5])])
            chosen.append(i)
    return factor


def _correlations(u: Tensor) -> tuple[Tensor, Tensor]:
    """Find correlations (D, D) and deviations (D,) of rows (N, D)."""
    z = u - u.mean(dim=0)
    norms = z.norm(dim=0).clamp(min=torch.finfo(z.dtype).tiny)
    z = z / norms
    # Ones also of a column that is constant but for rows far out: in line with no other.
    return (z.T @ z).fill_diagonal_(1.0), norms / max(len(u) - 1, 1) ** 0.5


def _has_more(train: Source, measured: int) -> bool:
    """Tell whether there may be more rows than so many, which were measured."""
    return len(train) > measured if isinstance(train, Rows) else 2 * measured > _KEPT


def _deviation_of_all(train: Source, location: Tensor, *, of_context: bool = False) -> Tensor:
    """Return every column's deviation from a place, over all rows: of columns that hardly vary."""
    total, count, furthest = (torch.zeros_like(location) for _ in range(3))
    resolution = 0.0
    pieces: Iterable[Batch] = train.read() if isinstance(train, Stream) else _pieces(train)
    for x, context in pieces:
        rows = cast(Tensor, context) if of_context else x
        away = rows.to(location) - location
        total += away.square().nansum(dim=0)
        count += (~away.isnan()).sum(dim=0)
        furthest = torch.maximum(furthest, away.abs().nan_to_num(0.0).amax(dim=0))
        resolution = _resolution(rows)
    varies = _is_apart(furthest, location, resolution)
    return torch.where(varies, (total / count.clamp(min=1)).sqrt(), 0.0)


def _resolution(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0


def _is_apart(away: Tensor, location: Tensor, resolution: float) -> Tensor:
    """Tell whether values so far from a place are others than that, and not rounded from it."""
    return away > 2 * resolution * location.abs()


def _pieces(train: Rows) -> Iterator[Batch]:
    for start in range(0, len(train), _PIECE):
        yield train.read(slice(start, start + _PIECE))


def warn_of_outliers(u: Tensor, name: str) -> None:
    """Warn of values that will rule the likelihood: a normal tail hardly knows them possible."""
    said = _far_out(u, _OUTLYING, f"rows of {name} to train on", "")
    if said:
        warnings.warn(
            f"{said}. Few rows will rule the likelihood: leave them out, or take logarithms of "
            f"such columns",
            stacklevel=5,
        )


def context_moments(context: Tensor) -> tuple[Tensor, Tensor]:
    """Return location and scale of contexts (N, C); the scale of a constant column is infinite.

    Whatever it is at use is nothing to the network then, whose weights of it no row has trained.
    """
    middle, spread = robust_moments(context)
    return middle, torch.where(spread > 0, spread, torch.inf)


def warn_of_contexts(context: Tensor, location: Tensor, scale: Tensor, name: str) -> None:
    """Warn of contexts far from most others, and of columns that are constant."""
    u = (context.double() - location) / scale
    said = _far_out(u, _FAR, f"contexts of {name}", " of the context")
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


def warn_of_unseen_contexts(known: list[Units], train: Source) -> None:
    """Warn of contexts that vary now and were constant where the units of a model were set."""
    blind = [units for units in known if units.context_scale is not None]
    blind = [units for units in blind if bool(cast(Tensor, units.context_scale).isinf().any())]
    context = _sample(train)[1] if blind else None
    if context is None:
        return
    for units in blind:
        location, scale = cast(Tensor, units.context_location), cast(Tensor, units.context_scale)
        away = (context.to(location) - location).abs().amax(dim=0)
        other = scale.isinf() & _is_apart(away, location, _resolution(context))
        columns = other.nonzero().flatten().tolist()
        if columns:
            warnings.warn(
                f"Columns of the context of {train.name} have other values than the one that the "
                f"model was trained with at first: {listed(columns)}. It does not look at them; "
                f"train a new one to learn of them",
                stacklevel=3,
            )
            return


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
    given = _resolution(x) * location.abs()
    lost = ((step > _LOST * scale) & (step > given)).nonzero().flatten().tolist()
    if lost:
        warnings.warn(
            f"Columns of {name} hardly vary for how large they are, or are no numbers of "
            f"{dtype}, the model's: {listed(lost)}. Scores are exact, but samples are rounded to "
            f"steps of more than a tenth of a standard deviation. Those of model.double() "
            f"are not",
            stacklevel=5,
        )


def near_dependence(u: Tensor, name: str) -> NearDependence | None:
    """Find which columns of standardised rows (N, D) are nearly linear in one another, if some are.

    Flows learn such a direction to some digits alone, and lose nats a row for those that lack.
    """
    if u.shape[1] > _COMPARED:
        return None
    # Rows far out would be in line with all others; those of NaN go with them.
    u = u[(u.abs() <= _FAR).all(dim=1)]
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
    resolution = _resolution(x)
    low, middle, high = _quantiles(rows)
    spread = (high - low) / 3.29
    limit = torch.where(spread > 0, _FAR * spread, torch.inf)
    # The difference first: a square of 1e9 leaves nothing of 1.
    away = torch.maximum(torch.minimum(rows - middle, limit), -limit)
    # By a power of two, which rounds nothing: squares of 1e200 and 1e-200 are no numbers.
    unit = torch.exp2(away.abs().nan_to_num(0.0).amax(dim=0).frexp().exponent.double())
    away = away / unit
    count = (~away.isnan()).sum(dim=0).clamp(min=1)
    mean = away.nansum(dim=0) / count
    variance = (away - mean).square().nansum(dim=0) / (count - 1).clamp(min=1)
    scale, mean = variance.sqrt() * unit, mean * unit
    noise = resolution * torch.maximum(middle.abs(), mean.abs())
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


def _sample(train: Source) -> tuple[Tensor, Tensor | None]:
    """Take rows in memory, or as many of a stream's as can be kept, from all of one pass."""
    if isinstance(train, Rows):
        step = -(-len(train) // _MOST)
        return train.read(torch.arange(0, len(train), step) if step > 1 else slice(0, len(train)))
    xs: list[Tensor] = []
    contexts: list[Tensor] = []
    stride, seen = 1, 0
    for x, context in train.read():
        rows = torch.arange(-seen % stride, len(x), stride)
        seen += len(x)
        xs.append(x.cpu()[rows])
        if context is not None:
            contexts.append(context.cpu()[rows])
        if sum(map(len, xs)) > _KEPT:
            xs = [torch.cat(xs)[::2]]
            contexts = [torch.cat(contexts)[::2]] if contexts else []
            stride *= 2
    expect(len(xs) > 0, train.name, "to give at least one row", "none")
    return torch.cat(xs), torch.cat(contexts) if contexts else None
