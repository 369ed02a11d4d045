"""Models in files, and what they say of rows of files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from made_flows._checks import expect
from made_flows.cli.errors import Code, CommandError, errors_of, say
from made_flows.cli.reading import Piece, TableFile, days, typed
from made_flows.cli.writing import check_different, check_output
from made_flows.models.base import Model
from made_flows.serialization import load
from made_flows.tables.frames import expect_columns
from made_flows.tables.model import TableMADE


def loaded(path: Path) -> Any:
    """Load a model, in double precision, so that a row's score does not depend on others."""
    with errors_of(Code.MODEL, str(path)):
        model = load(path, dtype=torch.float64)
        expect(isinstance(model, Model), str(path), "to hold a density model", type(model).__name__)
    if isinstance(model, TableMADE):
        model.schema.frame = "pyarrow"
        # Rows are drawn some at a time: all are to be of one type, whatever integers they hold.
        types = {name: said for name, said in model.schema.types.items() if "pyarrow" in said}
        whole = {
            name for name, said in types.items() if str(said["pyarrow"]).strip("u")[:3] == "int"
        }
        model.schema.types = {name: said for name, said in types.items() if name not in whole}
    return model.eval()


def opened(model: Path, data: Path, output: Path | None) -> tuple[Any, TableFile]:
    """Check the output, load the model, and open the table."""
    check_output(output)
    check_different({"DATA": data, "--output": output})
    found = loaded(model)
    if found.context and not isinstance(found, TableMADE):
        raise CommandError(Code.MODEL, f"Expected a model without a context in {model}; got one")
    return found, TableFile(data, record_of(found).get("missing", ()))


def check_table(model: Any, path: Path, what: str) -> None:
    """Refuse a model of numbers alone, for what only a model of a table can do."""
    if not isinstance(model, TableMADE):
        words = f"Expected a model of a table in {path} for {what}"
        raise CommandError(Code.MODEL, f"{words}; got {type(model).__name__}")


def record_of(model: Any) -> dict[str, Any]:
    """Return what fit noted of its table and training."""
    record = getattr(model, "record", {})
    return record if isinstance(record, dict) else {}


def names_of(model: Any) -> list[str]:
    """Return the names of the columns of a model of numbers alone."""
    names = record_of(model).get("columns", [])
    return names if len(names) == model.features else [f"x{i}" for i in range(model.features)]


def watched(
    file: TableFile, model: Any, what: str, quiet: bool
) -> Iterator[tuple[pa.Table, Piece]]:
    """Give the rows of a file as they are, and as the model's columns are, with a bar."""
    if isinstance(model, TableMADE):
        columns = [*model.schema.columns, *model.schema.context]
        holds = {c.name: c.holds for c in columns}
        for column in columns if file.text else ():
            lost = sorted({*getattr(column, "categories", ())} & {*file.missing})
            if lost:
                say(
                    f"warning: column {column.name!r} has the value {lost[0]!r} in the model, "
                    f"which means missing in {file.path}: it is read as none. A file .parquet "
                    f"keeps it"
                )
    else:
        holds = dict.fromkeys(names_of(model), "float")
    with progress(file.count, what, quiet) as done:
        for piece in file.pieces():
            yield piece.rows, typed(piece, holds) if file.text else piece
            done(piece.rows.num_rows)


@contextmanager
def progress(count: int | None, what: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and give a function that moves it on."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.completed} rows " + what), BarColumn(), TimeElapsedColumn())
    with Progress(*parts, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=count)
        yield lambda rows: bar.advance(task, rows)


@contextmanager
def errors_in(piece: Piece) -> Iterator[None]:
    """Report what the library refuses of some rows, by their numbers in the file."""

    def number(found: re.Match[str]) -> str:
        return f"in row {piece.numbers[int(found[1])]}"

    try:
        yield
    except (TypeError, ValueError) as error:
        message = re.sub(r"\bin row (\d+)", number, str(error))
        at = "" if piece.file in message else f" ({piece.file})"
        raise CommandError(Code.DATA, message + at) from error


def matrix(piece: Piece, names: Sequence[str]) -> Any:
    """Return columns of numbers without holes as a matrix."""
    expect_columns(piece.rows.column_names, names, "the table")
    columns = []
    for name in names:
        column = piece.rows[name]
        tests = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
        numeric = any(test(column.type) for test in tests)
        expect(numeric, f"column {name!r}", "to hold numbers", column.type)
        values = column.cast(pa.float64()).to_numpy()
        wrong = ~np.isfinite(values)
        row = int(wrong.argmax())
        got = f"{values[row]:g} in row {row}"
        expect(not wrong.any(), f"column {name!r}", "to hold a finite number in every row", got)
        columns.append(values)
    return np.stack(columns, axis=1)


def scores(model: Any, piece: Piece, orders: int) -> Any:
    """Return the log-likelihoods of rows."""
    if isinstance(model, TableMADE):
        return model.score_samples(piece.rows, orders=orders)
    with torch.no_grad():
        return model().log_prob(torch.from_numpy(matrix(piece, names_of(model)))).numpy()


def drawn(model: Any, count: int, orders: int, context: Any = None) -> pa.Table:
    """Draw rows; of dates whose times are all midnight, the days."""
    if isinstance(model, TableMADE):
        rows = model.sample(count, context=context, orders=orders, progress=False)
        for i, column in enumerate(model.schema.columns):
            if column.whole_days and column.name not in model.schema.types:
                rows = rows.set_column(i, column.name, rows[column.name].cast(pa.date32()))
        left_out = list(model.schema.left_out)
        if left_out and all(re.fullmatch(r"x\d+", name) for name in rows.column_names + left_out):
            # Of a matrix, whose columns have places in place of names.
            for name in left_out:
                rows = rows.append_column(name, pa.nulls(len(rows), pa.float64()))
            rows = rows.select(sorted(rows.column_names, key=lambda name: int(name[1:])))
        return rows
    with torch.no_grad():
        x = model().sample((count,)).double().numpy()
    return pa.table({name: x[:, i] for i, name in enumerate(names_of(model))})


def _categories(values: Any, before: Any) -> Any:
    """Return values as the categories of a column, in their order, and others after these."""
    kind = before.type
    if values.type != kind.value_type:
        return values
    known = before.unify_dictionaries().combine_chunks().dictionary
    others = pc.unique(values.filter(pc.invert(pc.is_in(values, value_set=known))))
    every = pa.concat_arrays([known, others.drop_null()])
    try:
        places = pc.index_in(values.combine_chunks(), value_set=every).cast(kind.index_type)
    except pa.ArrowInvalid:  # more of them than it can number
        return values
    return pa.DictionaryArray.from_arrays(places, every, ordered=kind.ordered)


def is_missing(column: Any) -> Any:
    """Tell which values of a column are missing."""
    return pc.is_null(column, nan_is_null=True)


def completed(before: Any, filled: Any) -> Any:
    """Put what was filled in where a column lacks a value, as what the column holds."""
    kind = before.type
    if pa.types.is_dictionary(kind):
        return _categories(completed(before.cast(kind.value_type), filled), before)
    if pa.types.is_string(kind) and pa.types.is_boolean(filled.type):
        known = before.drop_null()
        if len(known) and known[0].as_py()[0].isupper():  # True, as Python writes it
            filled = pc.utf8_capitalize(filled.cast(kind))
    filled = days(filled) if pa.types.is_string(kind) else filled
    if pa.types.is_integer(kind):
        filled = pc.round(filled)
    try:
        filled = filled.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        before = before.cast(filled.type)
    return pc.if_else(is_missing(before), filled, before)
