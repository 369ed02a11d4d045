"""The commands ``fit``, ``score``, ``sample``, ``impute`` and ``info``."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from made_flows._checks import expect
from made_flows.cli.codes import coded
from made_flows.cli.errors import Code, CommandError, errors_of, reporting, say
from made_flows.cli.reading import ROWS, TableFile, inferred
from made_flows.cli.rows import (
    check_table,
    completed,
    drawn,
    errors_in,
    is_missing,
    loaded,
    matrix,
    opened,
    progress,
    record_of,
    scores,
    watched,
)
from made_flows.cli.writing import check_different, check_output, writing
from made_flows.models.estimate import estimate
from made_flows.serialization import save
from made_flows.tables.model import TableMADE
from made_flows.tables.schema import KINDS
from made_flows.training.defaults import held_out_for
from made_flows.training.optimization import seeded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_HELD = 1_000_000
"""Rows that are held in memory, at most, unless more are asked for."""

_Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="the table: .csv, .parquet, .npy or a folder")
]
_ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="a file that fit wrote")]
_Output = Annotated[
    Path | None, typer.Option("-o", "--output", help=".csv, .parquet or .npy; else on the screen")
]
_Orders = Annotated[int, typer.Option(min=1, help="orders of the columns to mix")]
_Seed = Annotated[
    int | None, typer.Option(min=0, max=2**64 - 1, help="makes what is random repeat")
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")]


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"made-flows {version('made-flows')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="tell which")
    ] = False,
) -> None:
    """Densities of tables in files: CSV, Parquet and matrices of NumPy."""


@app.command(name="fit")
@reporting()
def fit_command(
    data: _Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="the model, .safetensors")],
    columns: Annotated[
        list[str], typer.Option(help="what a column is: fare=zero_inflated, share=bounded:0:1")
    ] = [],  # noqa: B006
    context: Annotated[list[str], typer.Option(help="a column to condition on")] = [],  # noqa: B006
    missing: Annotated[
        list[str], typer.Option(help="text that stands for a missing value, such as ?")
    ] = [],  # noqa: B006
    rows: Annotated[
        int | None, typer.Option(min=2, help="rows to fit to, at most; drawn at random of more")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1)] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.01, help="of training")] = None,
    budget: Annotated[
        Literal["fast", "good", "best"] | None,
        typer.Option(help="a density of columns of numbers by mf.estimate"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="a file from which the same call goes on after a kill")
    ] = None,
    seed: _Seed = None,
    quiet: _Quiet = False,
) -> None:
    """Fit a density to a table, and save the model."""
    check_output(output, table=False)
    kinds = [_said(text) for text in columns]
    said = dict(kinds)
    if len(said) < len(kinds):
        words = "Expected --columns once for each column; got one twice, of"
        raise CommandError(Code.OPTION, f"{words} {', '.join(name for name, _ in kinds)}")
    if budget is not None and (said or context or checkpoint or max_epochs):
        words = "--columns, --context, --checkpoint and --max-epochs"
        raise CommandError(Code.OPTION, f"Expected --budget without {words}")
    check_output(checkpoint, table=False)
    check_different({"DATA": data, "--output": output, "--checkpoint": checkpoint})
    seed = _seed_of(0 if checkpoint and seed is None else seed)
    file = TableFile(data, missing)
    if missing and not file.text:
        raise CommandError(Code.OPTION, f"Expected --missing for files of text; got {data}")
    piece, count = file.sample(rows or _HELD, seed)
    if count < 2:
        raise CommandError(Code.DATA, f"Expected {data} to have two rows or more; got one")
    piece = inferred(piece, said) if file.text else piece
    part = piece.rows.num_rows < count
    whole = part and rows is None and budget is None
    if part:
        drawn_rows = f"{piece.rows.num_rows} of {count} rows, drawn at random"
        say(f"columns by {drawn_rows}; training on all, from a temporary file beside {output}"
            if whole else drawn_rows)  # fmt: skip
    record: dict[str, Any] = {
        "data": data.name, "rows": count if whole else piece.rows.num_rows, "of_rows": count,
        "seed": seed, "columns": piece.rows.column_names, "missing": missing,
    }  # fmt: skip
    bar = not quiet and sys.stderr.isatty()
    model: Any = None
    with errors_in(piece):
        if budget is None:
            limits = {"max_epochs": max_epochs, "max_seconds": max_seconds, "progress": bar,
                      "checkpoint": checkpoint}  # fmt: skip
            with seeded(seed):
                known = dict.fromkeys(file.categories, "category")
                model = TableMADE.from_data(piece.rows, known | said, context)
            typer.echo(f"{model.schema}\n", err=True)
            source = file if whole else piece.rows
            record["history"] = _fitted(model, source, seed, limits, output, quiet)
        else:
            x = matrix(piece, piece.rows.column_names)
            options: Any = {"budget": budget, "max_seconds": max_seconds}
            model = estimate(x, seed=seed, progress=bar, **options)
    model.record = record
    with errors_of(Code.OUTPUT, str(output)):
        save(model, output)
    say(f"wrote {output}" + (f": {_trained(record)}" if "history" in record else ""))


@app.command()
@reporting()
def score(
    model: _ModelFile,
    data: _Data,
    output: _Output = None,
    by_column: Annotated[
        bool, typer.Option("--by-column", help="also of each value given the others")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="write the columns of the table too")
    ] = False,
    least: Annotated[
        int | None, typer.Option(min=1, help="only so many rows, the least likely first")
    ] = None,
    orders: _Orders = 1,
    quiet: _Quiet = False,
) -> None:
    """Write the log-likelihood of every row of a table."""
    found, file = opened(model, data, output)
    if by_column or orders > 1:
        check_table(found, model, "--by-column" if by_column else "--orders")
    total, count, odd = 0.0, 0, None
    with writing(output) as put:
        for given, piece in watched(file, found, "scored", quiet):
            with errors_in(piece):
                likelihood = scores(found, piece, orders)
                each = found.score_columns(piece.rows) if by_column else {}
            columns = {"log_likelihood": likelihood}
            columns |= {f"log_p_{name}": values for name, values in each.items()}
            _expect_free([*columns] if least is None else ["file", "row", *columns], given, keep)
            before = dict(zip(given.column_names, given.columns, strict=True)) if keep else {}
            rows = pa.table(
                before | {name: pa.array(v, from_pandas=True) for name, v in columns.items()}
            )
            if least is None:
                put(rows)
            else:
                rows = rows.add_column(0, "row", pa.array(piece.numbers))
                if data.is_dir():
                    rows = rows.add_column(0, "file", pa.array([piece.file] * len(likelihood)))
                rows = rows if odd is None else pa.concat_tables([odd, rows])
                odd = rows.sort_by("log_likelihood").slice(0, least)
            total, count = total + float(likelihood.sum()), count + len(likelihood)
        if odd is not None:
            put(odd)
    say(f"{total / count:.6g} nats a row, the mean of {count}")


@app.command()
@reporting()
def sample(
    model: _ModelFile,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="how many rows")] = 1,
    output: _Output = None,
    given: Annotated[
        Path | None, typer.Option(help="a table of context columns: so many rows for each of its")
    ] = None,
    orders: _Orders = 1,
    seed: _Seed = None,
    quiet: _Quiet = False,
) -> None:
    """Draw rows from a model."""
    check_output(output)
    check_different({"--given": given, "--output": output})
    found = loaded(model)
    conditional = bool(found.context)
    if conditional != (given is not None) or (conditional and not isinstance(found, TableMADE)):
        words = "with" if conditional else "without"
        raise CommandError(Code.OPTION, f"Expected --given a table {words} context columns, as "
                           f"{model} has {found.context}")  # fmt: skip
    if orders > 1:
        check_table(found, model, "--orders")
    with seeded(_seed_of(seed)), writing(output) as put:
        if given is None:
            with progress(count, "drawn", quiet) as done:
                for start in range(0, count, ROWS):
                    put(drawn(found, min(ROWS, count - start), orders))
                    done(min(ROWS, count - start))
            return
        file = TableFile(given, record_of(found).get("missing", ()))
        few = max(1, ROWS // count)
        for _, piece in watched(file, found, "drawn", quiet):
            for start in range(0, piece.rows.num_rows, few):
                some = piece.from_row(start, few)
                with errors_in(some):
                    put(drawn(found, count, orders, some.rows))


@app.command()
@reporting()
def impute(
    model: _ModelFile,
    data: _Data,
    output: _Output = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="a random draw in place of the best guess")
    ] = False,
    draws: Annotated[
        int | None, typer.Option(min=1, help="draws of a best guess", show_default="50")
    ] = None,
    orders: _Orders = 1,
    seed: _Seed = 0,
    quiet: _Quiet = False,
) -> None:
    """Fill in what a table lacks; what it has stays as it is."""
    if draw and draws is not None:
        raise CommandError(Code.OPTION, "Expected --draw or --draws, of a best guess; got both")
    found, file = opened(model, data, output)
    check_table(found, model, "what is missing")
    names, cells = found.schema.names, 0
    with seeded(_seed_of(seed)), writing(output) as put:
        for before, piece in watched(file, found, "completed", quiet):
            with errors_in(piece):
                given: Any = {"orders": orders, "seed": None, "progress": False}
                filled = (
                    found.impute(piece.rows, **given)
                    if draw
                    else found.fill(piece.rows, draws=draws or 50, **given)
                )
            after = before
            for i, name in enumerate(before.column_names):
                holes = pc.sum(is_missing(piece.rows[name])).as_py()
                if name in names and holes:
                    cells += holes
                    column = completed(before[name], filled[name])
                    after = after.set_column(i, name, column)
            put(after)
    say(f"{cells} cells filled in")


@app.command()
@reporting()
def info(model: _ModelFile) -> None:
    """Say what a model is of, how large it is, and what training said."""
    found = loaded(model)
    record = record_of(found)
    lines = [f"{model}: {type(found).__name__}"]
    if isinstance(found, TableMADE):
        widths = " and ".join(map(str, found.made.hidden_features))
        lines += ["", str(found.schema), "", f"hidden layers of {widths} units, all orders"]
    elif record:
        lines += ["", f"columns: {', '.join(record['columns'])}"]
    lines.append(f"{sum(p.numel() for p in found.parameters())} weights")
    if record:
        part = "" if record["rows"] == record["of_rows"] else f" of {record['of_rows']}"
        lines.append(
            f"fitted to {record['rows']}{part} rows of {record['data']}, seed {record['seed']}"
        )
    if "history" in record:
        lines.append(_trained(record))
    typer.echo("\n".join(lines))


# ---------------------------------------------------------------------- fitting


def _said(text: str) -> tuple[str, Any]:
    """Read what a column is said to be: name=kind, name=kind:number:number."""
    name, equals, what = text.rpartition("=")
    kind, *numbers = what.split(":")
    with errors_of(Code.OPTION, f"--columns {text}"):
        expect(bool(equals), "--columns", "as name=kind, such as fare=zero_inflated", text)
        expect(kind in KINDS, "the kind", f"to be one of {', '.join(KINDS)}", kind)
        ends = tuple(float(number) for number in numbers)
        return name, (kind, *ends) if ends else kind


def _expect_free(names: list[str], table: pa.Table, keep: bool) -> None:
    taken = [name for name in names if keep and name in table.column_names]
    if taken:
        words = "Expected --keep of a table without the columns that are added"
        raise CommandError(Code.OPTION, f"{words}; got one with {taken}")


def _fitted(
    model: TableMADE, source: Any, seed: int, limits: dict[str, Any], output: Path, quiet: bool
) -> dict[str, Any]:
    """Train on rows, few of them without a validation, or on all of a file; return the history."""
    if isinstance(source, TableFile):
        (x, context), held_out = coded(source, model, 0.1, seed, output, quiet)
        history = model.fit_codes(x, context, validation=held_out, seed=seed, **limits)
    else:
        part, limits["max_epochs"] = held_out_for(source.num_rows, 0.1, limits["max_epochs"])
        history = model.fit(source, validation=part, seed=seed, **limits)
    best = history.best_epoch - 1
    return {
        "epochs": history.epochs, "best_epoch": history.best_epoch, "seconds": history.seconds,
        "stop_reason": history.stop_reason,
        "train": history.train[best] if history.best_epoch else None,
        "validation": history.validation[best] if history.validation else None,
    }  # fmt: skip


def _trained(record: dict[str, Any]) -> str:
    """Say what training said."""
    history = record["history"]
    if not history["best_epoch"]:
        return "not one epoch was finished: columns as if they were independent"
    held_out = history["validation"] is not None
    nll = history["validation" if held_out else "train"]
    return (
        f"{-nll:.6g} nats a {'held-out' if held_out else 'training'} row after epoch "
        f"{history['best_epoch']} of {history['epochs']}, which ended by {history['stop_reason']}; "
        f"{history['seconds']:.0f} s"
    )


def _seed_of(seed: int | None) -> int:
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
