"""Tables written to files piece by piece, whole or not at all: CSV, Parquet, matrices of NumPy."""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from made_flows._files import expect_place, replacing
from made_flows.cli.errors import Code, CommandError
from made_flows.cli.reading import suffix


def check_output(path: Path | None, *, table: bool = True) -> None:
    """Raise a CommandError, before any work, for a file that could not be written in the end."""
    if path is None:
        return
    if table and not path.name.endswith((".csv", ".csv.gz", ".parquet", ".npy")):
        words = "to end in .csv, .csv.gz, .parquet or .npy"
        raise CommandError(Code.OPTION, f"Expected the output {words}; got {path}")
    with _refusing(path):
        expect_place(path.resolve())
        with NamedTemporaryFile(dir=path.resolve().parent):
            pass


def check_different(paths: dict[str, Path | None]) -> None:
    """Raise a CommandError where two arguments name one file, one of which would be lost."""
    named: dict[Path, str] = {}
    for name, path in paths.items():
        if path is not None and (other := named.setdefault(path.resolve(), name)) != name:
            words = f"Expected {other} and {name} to be different files"
            raise CommandError(Code.OPTION, f"{words}; got {path} for both")


@contextmanager
def writing(path: Path | None) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that writes the next rows, to standard output without a path.

    Raises:
        CommandError: for what cannot be written, with the file's name; nothing is left of it.
    """
    kinds: Any = {"csv": _Csv, "parquet": _Parquet, "npy": _Matrix}
    kind = "csv" if path is None else str(suffix(path))
    with _refusing(path), nullcontext() if path is None else replacing(path.resolve()) as place:
        sink = kinds[kind](place, path)
        with closing(sink):
            yield sink.put


@contextmanager
def _refusing(path: Path | None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or error
        raise CommandError(
            Code.OUTPUT, f"Expected {path or 'output'} to be written; got: {why}"
        ) from error


class _Csv:
    def __init__(self, place: Path | None, path: Path | None) -> None:
        self.file: Any = sys.stdout
        if place is not None and path is not None:
            opened: Any = gzip.open if path.suffix == ".gz" else open
            self.file = opened(place, "wt", encoding="utf-8", newline="")
        # Not Arrow's own writer, which quotes all text: quotes only where they are needed.
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.header = True

    def put(self, rows: pa.Table) -> None:
        if self.header:
            self.writer.writerow(rows.column_names)
        self.header = False
        columns = [column.cast(pa.string()).to_pylist() for column in rows.columns]
        self.writer.writerows(zip(*columns, strict=True))

    def close(self) -> None:
        self.file.flush() if self.file is sys.stdout else self.file.close()


class _Parquet:
    def __init__(self, place: Path, path: Path) -> None:
        self.place = place
        self.writer: Any = None

    def put(self, rows: pa.Table) -> None:
        if self.writer is None:
            self.writer = pa.parquet.ParquetWriter(self.place, rows.schema)
        self.writer.write_table(rows.cast(self.writer.schema))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _Matrix:
    def __init__(self, place: Path, path: Path) -> None:
        self.file = place.open("wb")
        self.shape = (0, 0)

    def put(self, rows: pa.Table) -> None:
        texts = [f.name for f in rows.schema if not (pa.types.is_integer(f.type)
                 or pa.types.is_floating(f.type) or pa.types.is_boolean(f.type))]  # fmt: skip
        if texts:
            words = "Expected numbers alone for a file .npy"
            raise CommandError(Code.OPTION, f"{words}; got column {texts[0]!r}: write .csv")
        columns = [rows[name].cast(pa.float64()).to_numpy() for name in rows.column_names]
        if not self.shape[0]:
            self._write_header(len(columns))
        self.file.write(np.stack(columns, axis=1).tobytes())
        self.shape = (self.shape[0] + rows.num_rows, len(columns))

    def _write_header(self, columns: int) -> None:
        # NumPy leaves room in it for a larger number of rows.
        header = {"descr": "<f8", "fortran_order": False, "shape": (self.shape[0], columns)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def close(self) -> None:
        with self.file:
            self.file.seek(0)
            self._write_header(self.shape[1])
