"""Locations and scales of training rows, which become a part of the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor

from made_flows._checks import expect, listed
from made_flows.training.data import Rows, Source, Stream
from made_flows.training.moments import (
    NearDependence,
    context_moments,
    is_apart,
    near_dependence,
    resolution_of,
    robust_moments,
    warn_of_contexts,
    warn_of_digits,
    warn_of_outliers,
)
from made_flows.training.target import Batch
from made_flows.transforms.base import Transform
from made_flows.transforms.units import Units

_KEPT = 100_000
"""Rows of a stream that are kept to measure it."""

_MOST = 2**18
"""Rows in memory, or of a file, that are measured: of more, every second, third, ..."""

_PIECE = 2**16

_COMPARED, _UNLIKE = 4096, 10.0
"""Rows that are compared with a model's units, and how many times as wide is unlike them."""

_DETERMINED, _FINEST = 1e-4, 1e-10
"""Variance of a column given those before it under which they determine it; what counts as none."""


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
        resolution = resolution_of(rows)
    varies = is_apart(furthest, location, resolution)
    return torch.where(varies, (total / count.clamp(min=1)).sqrt(), 0.0)


def _pieces(train: Rows) -> Iterator[Batch]:
    for start in range(0, len(train), _PIECE):
        yield train.read(slice(start, start + _PIECE))


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
        other = scale.isinf() & is_apart(away, location, resolution_of(context))
        columns = other.nonzero().flatten().tolist()
        if columns:
            warnings.warn(
                f"Columns of the context of {train.name} have other values than the one that the "
                f"model was trained with at first: {listed(columns)}. It does not look at them; "
                f"train a new one to learn of them",
                stacklevel=3,
            )
            return


@torch.no_grad()
def warn_of_other_units(known: list[Units], train: Source) -> None:
    """Warn of rows unlike those that a model has its units of, which it keeps."""
    known = [units for units in known if units.active]
    if not known or not isinstance(train, Rows):  # a stream would be read once more
        return
    some = train.read(torch.arange(0, len(train), -(-len(train) // _COMPARED)))
    for units in known:
        x, context = some
        if units.location is not None:
            x = x if not units.before else train.target.move(x, None)[0]
            for transform in units.before:
                x = transform.to_noise(x)[0]
        pairs = (
            ("", x, units.location, units.scale),
            ("the context of ", context, units.context_location, units.context_scale),
        )
        for of, rows, location, scale in pairs:
            if rows is None or location is None or scale is None:
                continue
            middle, spread = robust_moments(rows)
            away = (middle - location).abs() > _UNLIKE * scale
            wide = (spread > _UNLIKE * scale) | ((spread > 0) & (spread * _UNLIKE < scale))
            columns = ((away | wide) & scale.isfinite()).nonzero().flatten().tolist()
            if columns:
                warnings.warn(
                    f"Columns of {of}{train.name} are in other units than those that the model was "
                    f"trained on at first, or far from them: {listed(columns)}. It keeps the units "
                    f"of those; train a new one, or expect many more epochs",
                    stacklevel=3,
                )
                return


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
