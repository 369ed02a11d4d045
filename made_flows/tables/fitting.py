"""From a table to a trained model of it, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from made_flows._checks import checked_device, checked_seed, expect_type
from made_flows._keywords import helpful
from made_flows.tables.model import TableMADE, TableOptions
from made_flows.training.loop import FitOptions
from made_flows.training.optimization import seeded

if TYPE_CHECKING:
    from typing_extensions import Unpack


@helpful
def fit_table(
    table: Any,
    columns: Mapping[str, Any] | None = None,
    context: Sequence[str] = (),
    *,
    options: TableOptions | None = None,
    validation: Any = 0.1,
    average: float | None = 0.99,
    **training: Unpack[FitOptions],
) -> TableMADE:
    """Fit a density model to a table of any columns, and return it trained.

    Args:
        table, columns, context: as for :meth:`TableMADE.from_data`.
        options: of :class:`TableMADE`, by name.
        validation, average, training: as for :meth:`TableMADE.fit`.

    Example:
        >>> import numpy as np, made_flows as mf
        >>> rng = np.random.default_rng(0)
        >>> table = {"size": rng.lognormal(size=200), "kind": rng.choice(["a", "b"], 200)}
        >>> model = mf.fit_table(table, max_epochs=1, progress=False, seed=0)
        >>> sorted(model.sample(2))
        ['kind', 'size']
    """
    given, seed = {} if options is None else options, checked_seed(training.get("seed"))
    checked_device(training.get("device"))
    expect_type(isinstance(given, Mapping), "options", "to be a mapping of names", options)
    with seeded(seed):
        model = TableMADE.from_data(table, columns, context, **given)
    model.fit(table, validation=validation, average=average, **training)
    return model
