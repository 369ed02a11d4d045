"""All rows of a table as codes in temporary files, to train on more than are held in memory."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows.cli.errors import Code, errors_of
from made_flows.cli.reading import TableFile
from made_flows.cli.rows import errors_in, watched
from made_flows.tables.model import TableMADE


class _Codes:
    """Codes (N, C) in a file without a name, of which nothing is left whatever happens."""

    def __init__(self, folder: Path, columns: int) -> None:
        self.file, self.shape = TemporaryFile(dir=folder), (0, columns)  # noqa: SIM115

    def add(self, codes: Tensor) -> None:
        self.file.write(codes.numpy().tobytes())
        self.shape = (self.shape[0] + len(codes), self.shape[1])

    def mapped(self) -> Any:
        self.file.flush()
        return np.memmap(self.file, np.float64, "r", shape=self.shape) if self.shape[1] else None


def coded(
    file: TableFile, model: TableMADE, fraction: float, seed: int, output: Path, quiet: bool
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Read a table once, and map the codes of its rows and contexts: to train on, and held out.

    Args:
        file: the table.
        model: of its columns.
        fraction: of the rows that is held out, each by a draw of its own.
        seed: of those draws.
        output: a file beside which the codes are written.
        quiet: shows no progress.

    Raises:
        CommandError: for values that the columns cannot have, by row, and for a full disk.
    """
    rng, schema = np.random.default_rng(seed), model.schema
    widths = len(schema.columns), len(schema.context)
    writing = partial(errors_of, Code.OUTPUT, str(output))
    with ExitStack() as stack:
        with writing():
            parts = [[_Codes(output.resolve().parent, width) for width in widths] for _ in range(2)]
            for each in (*parts[0], *parts[1]):
                stack.enter_context(each.file)
        for _, piece in watched(file, model, "read", quiet):
            with errors_in(piece):
                codes = schema.encode(piece.rows)
            held_out = torch.from_numpy(rng.random(piece.rows.num_rows) < fraction)
            for part, rows in zip(parts, (~held_out, held_out), strict=True):
                for each, of_all in zip(part, codes, strict=True):
                    if of_all is not None:
                        with writing():
                            each.add(of_all[rows])
        with writing():
            (x, context), others = ((one.mapped(), other.mapped()) for one, other in parts)
    return (x, context), others
