"""What a worker does with a batch of a large table: score its rows, or draw as many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows._checks import checked_device, expect, expect_sequence, non_negative_integer
from made_flows.serialization.files import load
from made_flows.tables.model import TableMADE
from made_flows.training.convert import as_tensor, checksum
from made_flows.training.likelihood import takes_double
from made_flows.training.optimization import seeded
from made_flows.training.target import Target

_BLOCK = 4096
"""Rows that are drawn from one seed, whichever batches Ray makes of them."""


class _Worker:
    """A model that every worker reads from its file once, and the columns that it takes."""

    def __init__(
        self,
        path: str | PathLike[str],
        columns: Sequence[str] | None,
        context: Sequence[str],
        device: torch.device | str | None,
    ) -> None:
        self.model = load(path, checked_device(device)).eval()
        self.is_table = isinstance(self.model, TableMADE)
        if self.is_table:
            expect(columns is None and not context, "columns", "to be those of the table", columns)
            schema = self.model.schema
            schema.frame = "dict"  # as batches are, whatever it was made from
            self.columns = [column.name for column in (*schema.columns, *schema.context)]
            return
        for name, value in (("columns", columns), ("context", context)):
            expect_sequence(value, name, "to be a sequence of names of columns")
        self.columns, self.context = list(columns or ()), list(context)
        every = [*self.columns, *self.context]
        twice = sorted({name for name in every if every.count(name) > 1})
        expect(not twice, "columns and context", "to name each column once", twice)
        self.target = Target.of(self.model, takes_double(self.model))
        wanted = self.model.features
        expect(len(self.columns) == wanted, "columns", f"to name {wanted} features", self.columns)
        wanted = self.model.context
        expect(len(self.context) == wanted, "context", f"to name {wanted} columns", self.context)

    def chosen(self, batch: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        """Return some columns of a batch, by name."""
        missing = [name for name in names if name not in batch]
        expect(not missing, "batch", f"to have the columns {missing}", sorted(batch))
        return {name: batch[name] for name in names}

    def rows(self, batch: Mapping[str, Any], names: list[str]) -> Tensor:
        """Return columns of a batch as (N, columns)."""
        found = self.chosen(batch, names)
        columns = [as_tensor(values, f"column {name!r}") for name, values in found.items()]
        # In NumPy's common dtype: torch's, of integers and single precision, is single precision.
        return torch.from_numpy(np.stack([column.numpy() for column in columns], axis=1))


class Score(_Worker):
    r"""Add the log-likelihood of every row as a column of it, for ``map_batches``.

    Columns that the model does not take, such as names or numbers of rows, are passed on as they
    are, whatever they hold.

    Args:
        path: the file of the model, which every worker can read.
        columns: names of the features, in the order of the model's; None for a
            :class:`~made_flows.TableMADE`, which knows its own by their names.
        context: names of the context's columns.
        output: name of the new column.
        device: where the worker computes; None for the CPU.

    Raises:
        ValueError, TypeError: for other numbers of columns, and, at a batch, for columns that are
            not there, hold no numbers or are not finite (with the row of the batch).

    Example:
        >>> import tempfile, pathlib, numpy as np, made_flows as mf
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "flow.safetensors"
        >>> mf.save(mf.MAF(2, hidden_features=(8,)), path)
        >>> score = Score(path, ["a", "b"])  # ray.data.read_parquet(...).map_batches(Score, ...)
        >>> score({"id": np.arange(3), "a": np.zeros(3), "b": np.zeros(3)})["log_prob"].shape
        (3,)
    """

    def __init__(
        self,
        path: str | PathLike[str],
        columns: Sequence[str] | None = None,
        context: Sequence[str] = (),
        *,
        output: str = "log_prob",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(path, columns, context, device)
        self.output = output

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch, columns by name, with the new one."""
        if self.is_table:
            own = self.chosen(batch, self.columns)
            some = len(next(iter(own.values()))) > 0  # a block may have lost all rows to a filter
            scores = self.model.score_samples(own) if some else np.zeros(0)
        else:
            given = self.rows(batch, self.context) if self.context else None
            checked = self.target.check(self.rows(batch, self.columns), given, "batch")
            x, context = self.target.move(*checked)
            scores = self.model(context).log_prob(x).double().cpu().numpy()
        return _with(batch, {self.output: scores})


class Sample(_Worker):
    """Draw a row for every row, for ``map_batches``.

    Without context, rows are numbered by a column (``ray.data.range(count)`` has "id"): what is
    drawn for a number depends on it and on the seed alone, not on how Ray divides the rows. With a
    context, it depends on the batches too.

    Args:
        path, columns, context, device: as for :class:`Score`.
        seed: of the draws.
        id: the column that numbers the rows, from 0.

    Example:
        >>> import tempfile, pathlib, numpy as np, made_flows as mf
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "flow.safetensors"
        >>> mf.save(mf.MAF(2, hidden_features=(8,)), path)
        >>> sorted(Sample(path, ["a", "b"])({"id": np.arange(3)}))  # ray.data.range(...)
        ['a', 'b', 'id']
    """

    def __init__(
        self,
        path: str | PathLike[str],
        columns: Sequence[str] | None = None,
        context: Sequence[str] = (),
        *,
        seed: int = 0,
        id: str = "id",  # noqa: A002 (as Ray calls it)
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(path, columns, context, device)
        contexts = self.is_table and self.model.context
        expect(not contexts, "the model", "to take no context, as a table", "one that does")
        self.seed, self.id = non_negative_integer(seed, "seed"), id

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch, columns by name, with those of the model."""
        if not self.is_table and self.context:
            given = self.rows(batch, self.context)
            zeros = given.new_zeros(len(given), self.model.features)
            _, context = self.target.move(*self.target.check(zeros, given, "batch"))
            seed = checksum(given, self.seed % 2**32)
            with seeded(seed, self.target.device):
                drawn = self.model(context).sample().cpu().numpy()
            return _with(batch, dict(zip(self.columns, drawn.T, strict=True)))
        expect(self.id in batch, "batch", f"to have the column {self.id!r}", sorted(batch))
        ids = np.asarray(batch[self.id])
        whole = ids.dtype.kind in "iu" and (len(ids) == 0 or int(ids.min()) >= 0)
        expect(whole, f"column {self.id!r}", "to hold numbers of rows, from 0", ids.dtype)
        blocks = {block: self._block(int(block)) for block in np.unique(ids // _BLOCK)}
        if not blocks:  # of no rows the columns are the same
            return _with(batch, {name: values[:0] for name, values in self._block(0).items()})
        names = list(next(iter(blocks.values())))
        new = {
            name: np.array([blocks[i // _BLOCK][name][i % _BLOCK] for i in ids]) for name in names
        }
        return _with(batch, new)

    def _block(self, number: int) -> Mapping[str, Any]:
        seed = (self.seed * 2654435761 + number) % 2**63
        if self.is_table:
            table: Mapping[str, Any] = self.model.sample(_BLOCK, seed=seed, progress=False)
            return {name: np.asarray(table[name]) for name in table}
        with seeded(seed, self.target.device):
            drawn = self.model().sample((_BLOCK,)).cpu().numpy()
        return dict(zip(self.columns, drawn.T, strict=True))


def _with(batch: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with new columns, in the place of none that it has."""
    taken = sorted({*batch} & {*new})
    expect(not taken, "batch", "without the columns that are added", taken)
    return {**batch, **new}
