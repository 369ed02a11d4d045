"""Settings of training that depend on how many rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from made_flows._checks import expect, non_negative_integer, positive_integer, real_number
from made_flows.training.rates import Schedule
from made_flows.training.target import Target

_FEW = 2000
"""Rows up to which tables of mixed columns take the higher rate, and weights may decay."""


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`made_flows.fit` that the rows choose where they are not given."""

    batch_size: int
    learning_rate: float
    max_epochs: int
    weight_decay: float
    dropout: float
    sparsity: float
    average: float
    schedule: Schedule


def checked_settings(**given: Any) -> dict[str, Any]:
    """Check settings by name; None is one that is to be chosen.

    Raises:
        TypeError, ValueError: for what is no number, or out of range.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name == "batch_size":
            given[name] = positive_integer(value, name)
        elif name == "max_epochs":
            given[name] = non_negative_integer(value, name)
        elif name == "learning_rate":
            real_number(value, name, above=0)
        elif name in ("dropout", "average"):
            expect(0 <= real_number(value, name) < 1, name, "to be in [0, 1)", value)
        else:
            expect(real_number(value, name) >= 0, name, "to be >= 0", value)
    return given


def settings_for(
    rows: int | None,
    target: Target,
    given: Mapping[str, Any],
    *,
    own_optimizer: bool,
    patient: bool,
) -> Settings:
    """Choose what was not given.

    Args:
        rows: how many there are to train on; None for a stream.
        target: what the model takes.
        given: settings by name, as :func:`checked_settings` gives them.
        own_optimizer: whether weights are trained by an optimizer of :func:`made_flows.fit`.
        patient: whether training ends for want of progress.
    """
    features, discrete, mixed = target.features, target.discrete, target.mixed
    own_rate = given["learning_rate"] is None  # what goes with the higher rate comes with it alone
    chosen: dict[str, Any] = {
        "batch_size": batch_size_for(rows),
        "learning_rate": learning_rate_for(rows, discrete, mixed),
        "max_epochs": max_epochs_for(rows, given["batch_size"] or batch_size_for(rows)),
        # With a given optimizer too, which has its own: a checkpoint is to name what changed.
        "weight_decay": weight_decay_for(rows, features, discrete) if own_rate else 0.0,
        "dropout": dropout_for(rows, features, discrete),
        "sparsity": sparsity_for(rows, features, discrete),
        "average": average_for(rows, discrete, mixed) if own_rate and own_optimizer else 0.0,
        "schedule": "constant",
    }
    if own_rate and own_optimizer and patient:
        chosen["schedule"] = schedule_for(rows)
    said = {name: value for name, value in given.items() if value is not None}
    return Settings(**chosen | said)


def batch_size_for(rows: int | None) -> int:
    """Choose the rows of a step by the number of rows; None where it is not known.

    Steps, not rows, are what a small table lacks: an epoch has about thirty of them, until a batch
    has 256 rows, from where on larger ones save time alone.

    Example:
        >>> [batch_size_for(rows) for rows in (100, 1_000, 4_000, 100_000, None)]
        [32, 32, 128, 256, 256]
    """
    if rows is None:
        return 256
    size = 32
    while size < 256 and rows / size > 60:
        size *= 2
    return size


def dropout_for(rows: int | None, features: int | None, discrete: bool = False) -> float:
    """Return the probability of dropping a hidden unit: 0.2 below fifty rows for each column.

    Where rows are more, dropout slows training and ends a little worse. Tables of discrete values,
    of 64 columns or more, take 0.5 below a hundred rows for each column and 0.25 above.

    Example:
        >>> dropout_for(200, 30), dropout_for(200, 2), dropout_for(100_000, 30)
        (0.2, 0.0, 0.0)
        >>> dropout_for(5000, 120, discrete=True), dropout_for(50_000, 120, discrete=True)
        (0.5, 0.25)
    """
    if rows is None or features is None:
        return 0.0
    if discrete and features >= 64:
        return 0.5 if rows < 100 * features else 0.25
    return 0.2 if rows < 50 * features else 0.0


def learning_rate_for(rows: int | None, discrete: bool = False, mixed: bool = False) -> float:
    """Return the rate of Adam: three times as high for real values, unless rows are a stream.

    Tables of mixed columns have it up to two thousand rows: on six thousand diamonds it costs
    4.3 nats a row.

    Example:
        >>> learning_rate_for(5000), learning_rate_for(5000, mixed=True), learning_rate_for(None)
        (0.003, 0.001, 0.001)
    """
    return 1e-3 if rows is None or discrete or (mixed and rows > _FEW) else 3e-3


def average_for(rows: int | None, discrete: bool = False, mixed: bool = False) -> float:
    """Return the decay of the average of the weights, 0 for none.

    It takes out the noise that the higher rate brings.

    Example:
        >>> average_for(500), average_for(5000), average_for(500, discrete=True), average_for(None)
        (0.99, 0.99, 0.0, 0.0)
    """
    return 0.99 if learning_rate_for(rows, discrete, mixed) > learning_rate_for(None) else 0.0


def schedule_for(rows: int | None) -> Schedule:
    """Return what becomes of the rate: it falls where it would end training, unless rows stream.

    The noise of the rate hides progress: validation stands still, above all where rows are many
    or columns take few values. Models of discrete values learn rows by heart instead; they gain by
    what goes with it, that training goes on from the best weights.

    Example:
        >>> schedule_for(500), schedule_for(None)
        ('plateau', 'constant')
    """
    return "constant" if rows is None else "plateau"


def weight_decay_for(rows: int | None, features: int | None, discrete: bool = False) -> float:
    """Return the decay of the weights of masked networks, 0 for none.

    From a hundred rows for each column on it gains nothing, and of real values costs up to 0.4
    nats. There it goes with the higher rate, and needs few rows in all, too: of three thousand
    with 36 columns mixtures lost 0.6.

    Example:
        >>> weight_decay_for(500, 8), weight_decay_for(500, 3), weight_decay_for(5000, 80)
        (0.3, 0.0, 0.0)
        >>> weight_decay_for(5000, 80, discrete=True)
        0.3
    """
    if rows is None or features is None or rows >= 100 * features:
        return 0.0
    return 0.3 if discrete or (rows <= _FEW and average_for(rows)) else 0.0


def sparsity_for(rows: int | None, features: int | None, discrete: bool) -> float:
    """Return the threshold of direct connections of discrete values, as a share of their rate.

    Example:
        >>> [sparsity_for(rows, 500, True) for rows in (400, 5000)], sparsity_for(400, 500, False)
        ([0.3, 0.1], 0.0)
    """
    few = rows is not None and features is not None and rows < 2 * features
    return (0.3 if few else 0.1) if discrete else 0.0


def held_out_for(
    rows: int, fraction: float, max_epochs: int | None
) -> tuple[float | None, int | None]:
    """Return the part of a table to stop training by, and when it ends at the latest.

    Of fewer than twenty rows none are held out: training takes thirty epochs, unless it is said.

    Example:
        >>> held_out_for(100, 0.1, None), held_out_for(10, 0.1, None), held_out_for(10, 0.1, 5)
        ((0.1, None), (None, 30), (None, 5))
    """
    if rows >= 20:
        return fraction, max_epochs
    return None, 30 if max_epochs is None else max_epochs


def max_epochs_for(rows: int | None, batch_size: int) -> int:
    """Choose the most passes over the rows: 200, or as many as make 6000 steps, up to 1000.

    Example:
        >>> [max_epochs_for(rows, 32) for rows in (100, 500, 10_000, None)]
        [1000, 375, 200, 200]
    """
    if rows is None:
        return 200
    steps = -(-rows // batch_size)
    return min(1000, max(200, -(-6000 // steps)))
