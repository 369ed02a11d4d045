"""Tables in files, read some rows at a time: CSV, Parquet, and matrices of NumPy.

Cells of a CSV file come as text; :func:`typed` and :func:`inferred` tell what they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from made_flows._checks import expect
from made_flows.cli.errors import Code, CommandError, errors_of

ROWS = 4096
"""Rows that are read, and scored or completed, at a time."""

MISSING = tuple(pa.csv.ConvertOptions().null_values)
"""Texts of a CSV file that stand for a missing value: nothing, NA, NaN, null and their like."""

_BLOCK = 2**20
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_MOSTLY = 0.9
"""The share of a text column's values that are numbers from which on the others are mistakes."""


class Piece(NamedTuple):
    """Some rows of a file.

    Args:
        rows: an Arrow table.
        file: where they are from.
        numbers: theirs in the file, from 1, without the header.
    """

    rows: pa.Table
    file: str
    numbers: Any

    def from_row(self, start: int, count: int) -> Piece:
        """Return so many of the rows."""
        some = self.rows.slice(start, count)
        return Piece(some, self.file, self.numbers[start : start + count])


class TableFile:
    """A table in a file, or in a folder of Parquet files.

    Args:
        path: ``.csv`` (``.tsv``, ``.txt``, or compressed, ``.csv.gz``), ``.parquet``, ``.npy``, or
            a folder.
        missing: texts of a CSV file that stand for a missing value besides :data:`MISSING`.

    Attributes:
        text: whether cells come as text.
        count: how many rows there are, where this is known without reading them.
    """

    def __init__(self, path: Path, missing: Sequence[str] = ()) -> None:
        self.path, self.missing = path, (*MISSING, *missing)
        self.count: int | None = None
        kind = suffix(path)
        readers: Any = {"csv": _Csv, "parquet": _Parquet, "npy": _Matrix}
        if path.is_dir():
            kind = "parquet"
        elif not path.is_file():
            raise CommandError(Code.DATA, f"Expected {path} to be a file or a folder; got neither")
        if kind is None:
            words = "to end in .csv, .tsv, .txt, .parquet or .npy, or to be a folder of .parquet"
            raise CommandError(Code.DATA, f"Expected {path} {words}")
        with errors_of(Code.DATA, str(path)):
            self._reader = readers[kind](self)
        self.text = kind == "csv"

    def pieces(self) -> Iterator[Piece]:
        """Read the rows, some at a time; at least one piece.

        Raises:
            CommandError: for what cannot be read, naming the file and the row.
        """
        some = False
        with errors_of(Code.DATA, str(self.path)):
            for batch, file, start in self._reader.batches():
                _check_names(batch.schema.names, file)
                for at in range(0, batch.num_rows, ROWS):
                    rows = pa.Table.from_batches([batch.slice(at, ROWS)])
                    some = True
                    yield Piece(rows, file, start + at + 1 + np.arange(rows.num_rows))
            expect(some, str(self.path), "to have at least one row", "none")

    def sample(self, most: int, seed: int) -> tuple[Piece, int]:
        """Read at most so many rows, drawn at random but in their order, and how many there are."""
        rng = np.random.default_rng(seed)
        kept: list[Piece] = []
        keys: list[Any] = []
        read, held = 0, 0
        for piece in self.pieces():
            kept.append(piece)
            keys.append(rng.random(piece.rows.num_rows))
            read += piece.rows.num_rows
            held += piece.rows.num_rows
            if held > 2 * most:
                held = _thin(kept, keys, most)
        if held > most:
            _thin(kept, keys, most)
        with errors_of(Code.DATA, str(self.path)):
            rows = pa.concat_tables([piece.rows for piece in kept], promote_options="permissive")
        files = {piece.file for piece in kept}
        numbers = np.concatenate([piece.numbers for piece in kept])
        if len(files) > 1:  # then a row is named with its file
            numbers = np.array([f"{n} of {piece.file}" for piece in kept for n in piece.numbers])
        return Piece(rows, str(self.path), numbers), read


def _thin(kept: list[Piece], keys: list[Any], most: int) -> int:
    """Leave the rows with the smallest keys."""
    bound = np.partition(np.concatenate(keys), most - 1)[most - 1]
    for i, (piece, key) in enumerate(zip(kept, keys, strict=True)):
        stay = key <= bound
        kept[i] = Piece(piece.rows.filter(pa.array(stay)), piece.file, piece.numbers[stay])
        keys[i] = key[stay]
    return most


def _check_names(names: Sequence[str], file: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, file, "to have columns of different names", ", ".join(twice))


def suffix(path: Path) -> str | None:
    """Return the kind of table that a file name stands for: csv, parquet, npy or None."""
    name = re.sub(r"\.(gz|bz2|zst)$", "", path.name.lower())
    ends = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".npy": "npy"}
    return ends.get(Path(name).suffix)


class _Csv:
    """A file of text: its delimiter is what parts its header most often."""

    def __init__(self, file: TableFile) -> None:
        self.file = file
        with pa.input_stream(str(file.path), compression="detect") as stream:
            raw = stream.read(_BLOCK)
        expect(
            b"\0" not in raw, str(file.path), "to be text in UTF-8", "bytes of zero, as in UTF-16"
        )
        start = raw.decode("utf-8-sig", errors="replace")
        line = next(iter(io.StringIO(start)), "")
        expect(bool(line.strip()), str(file.path), "to begin with the names of columns", "nothing")
        self.delimiter = max(",;\t|", key=line.count)
        self.names = next(csv.reader(io.StringIO(start), delimiter=self.delimiter))
        _check_names(self.names, str(file.path))

    def batches(self) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        wrong: list[Any] = []

        def note(row: Any) -> str:
            wrong.append(row)
            return "error"

        path, start, last = str(self.file.path), 0, None
        options: dict[str, Any] = {
            "read_options": pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            # Of one column, an empty line is a missing value.
            "parse_options": pa.csv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=note,
                ignore_empty_lines=len(self.names) > 1,
            ),
            "convert_options": pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in self.names},
                strings_can_be_null=True, null_values=self.file.missing,
            ),
        }  # fmt: skip
        try:
            with pa.input_stream(path, compression="detect") as stream:
                for batch in pa.csv.open_csv(stream, **options):
                    if batch.num_rows:
                        last = batch.slice(batch.num_rows - 1)
                    yield batch, path, start
                    start += batch.num_rows
            if last is not None and any("\n" in (c[0].as_py() or "") for c in last.columns):
                self._expect_quotes_closed(start)
        except pa.ArrowInvalid as error:
            if not wrong:
                raise
            [row] = wrong[:1]
            text = row.text if len(row.text) < 60 else f"{row.text[:60]}..."
            words = f"to have {row.expected_columns} cells in every row"
            got = f"{row.actual_columns} in row {row.number - 1}: {text!r}"
            raise ValueError(f"Expected {path} {words}; got {got}") from error

    def _expect_quotes_closed(self, row: int) -> None:
        """Refuse a file whose last cell begins with a quote that no other ends."""
        quotes = 0
        with pa.input_stream(str(self.file.path), compression="detect") as stream:
            while block := stream.read(_BLOCK):
                quotes += block.count(b'"')
        path = str(self.file.path)
        expect(quotes % 2 == 0, path, "to close every quote", f"one of row {row} that is open")


class _Parquet:
    """A Parquet file, or all of a folder, whose names may say further columns (year=2024)."""

    def __init__(self, file: TableFile) -> None:
        self.data: Any = pa.dataset.dataset(
            str(file.path), format="parquet", partitioning="hive", exclude_invalid_files=False
        )
        self.fragments = list(self.data.get_fragments())
        expect(bool(self.fragments), str(file.path), "to hold files of Parquet", "none")
        file.count = sum(fragment.count_rows() for fragment in self.fragments)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        first = self.fragments[0]
        for fragment in self.fragments:
            names = [set(each.physical_schema.names) for each in (first, fragment)]
            strange = ", ".join(sorted(names[0] ^ names[1]))
            words = f"to have the columns of {first.path}"
            expect(not strange, fragment.path, words, f"others: {strange}")
            start = 0
            for batch in fragment.to_batches(
                schema=self.data.schema, batch_size=ROWS, batch_readahead=2, use_threads=False
            ):
                yield batch, fragment.path, start
                start += batch.num_rows


class _Matrix:
    """A matrix of numbers, whose columns are named x0, x1 and so on."""

    def __init__(self, file: TableFile) -> None:
        try:
            self.x = np.load(file.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            words = "to be a complete .npy file of numbers"
            raise ValueError(f"Expected {file.path} {words}; got {error}") from error
        valid = self.x.ndim == 2 and self.x.dtype.kind in "fiub" and self.x.shape[1] > 0
        got = f"{self.x.dtype} of shape {self.x.shape}"
        expect(valid, str(file.path), "to hold a matrix of numbers", got)
        self.path, file.count = str(file.path), len(self.x)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        names = [f"x{i}" for i in range(self.x.shape[1])]
        for start in range(0, len(self.x), ROWS):
            some = self.x[start : start + ROWS]
            columns = [np.ascontiguousarray(some[:, i]) for i in range(len(names))]
            yield (
                pa.RecordBatch.from_arrays([pa.array(c) for c in columns], names),
                self.path,
                start,
            )


# ---------------------------------------------------------------------- what text is


def typed(piece: Piece, holds: Mapping[str, str]) -> Piece:
    """Return rows of text as what their columns are known to hold; others stay text.

    Raises:
        CommandError: for text of another kind, naming file, row and column.
    """
    rows = piece.rows
    for i, name in enumerate(rows.column_names):
        kind = holds.get(name, "text")
        if kind == "text":
            continue
        column = _as(rows[name], kind)
        if column is None:
            k = next(
                k for k, value in enumerate(rows[name]) if _as(pa.array([value]), kind) is None
            )
            _refuse(piece, name, {"bool": "true or false", "date": "dates"}.get(kind, "numbers"), k)
        rows = rows.set_column(i, name, column)
    return piece._replace(rows=rows)


def inferred(piece: Piece, said: Mapping[str, Any]) -> Piece:
    """Return rows of text as numbers, truth values or dates, where all of a column are.

    Raises:
        CommandError: for a column nearly all of whose values are numbers, unless it is said what
            it is; naming file, row and column.
    """
    rows = piece.rows
    for i, name in enumerate(rows.column_names):
        column = rows[name].cast(pa.string())
        each = (
            found for kind in ("int", "bool", "date") if (found := _as(column, kind)) is not None
        )
        found = next(each, column)
        if found is column and name not in said and len(column.drop_null()):
            numbers = pc.match_substring_regex(column, _NUMBER)
            if pc.mean(pc.cast(numbers, pa.float64())).as_py() > _MOSTLY:
                k = pc.index(numbers, False).as_py()
                advice = (
                    f", and numbers in nearly all others. Mend it, or say --missing for what "
                    f"stands for a missing value, or --columns {name}=category"
                )
                _refuse(piece, name, "numbers", k, advice)
        rows = rows.set_column(i, name, found)
    return piece._replace(rows=rows)


def _as(column: Any, kind: str) -> Any:
    """Return a column of text as numbers, truth values or dates; None where it is not."""
    column = pc.utf8_trim_whitespace(column.cast(pa.string()))
    dates = [pa.timestamp("us"), pa.timestamp("us", "UTC")]
    types = {"bool": [pa.bool_()], "date": dates, "duration": []}
    if (
        kind == "bool"
        and not pc.all(pc.match_substring_regex(column, r"(?i)^(true|false)$")).as_py()
    ):
        return column.cast(pa.bool_()) if column.null_count == len(column) else None
    if kind in ("int", "float"):
        column = pc.replace_substring_regex(column, r"^\+", "")
    for type_ in types.get(kind, [pa.int64(), pa.float64()]):
        if (found := _cast(column, type_)) is not None:
            return found
    return None


def _cast(column: Any, kind: Any) -> Any:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return None


def _refuse(piece: Piece, name: str, expected: str, row: int, advice: str = "") -> None:
    value = piece.rows[name][row].as_py()
    raise CommandError(
        Code.DATA,
        f"Expected column {name!r} of {piece.file} to hold {expected}; got {value!r} in row "
        f"{piece.numbers[row]}{advice}",
    )
