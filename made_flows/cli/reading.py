"""Tables in files, read some rows at a time: CSV, Parquet, and matrices of NumPy.

Cells of a CSV file come as text; :func:`typed` and :func:`inferred` tell what they are.
"""

from __future__ import annotations

import csv
import io
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from made_flows._checks import expect
from made_flows.cli.errors import Code, CommandError, errors_of
from made_flows.tables.frames import expect_different
from made_flows.training.convert import in_double

ROWS = 4096
"""Rows that are read, and scored or completed, at a time."""

MISSING = tuple(pa.csv.ConvertOptions().null_values)
"""Texts of a CSV file that stand for a missing value: nothing, NA, NaN, null and their like."""

_BLOCK = 2**20
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_LONG = r"^-?\d{16,300}$"
_PADDED = r"^\s*0\d+\s*$"
_TRUTH = "(?i)^(true|false)$"
_MOSTLY = 0.9
"""The share of a text column's values that are numbers from which on the others are mistakes."""

_MOST, _FEW = 0.5, 20
"""Likewise where these are one text, and there are more different numbers than so many."""

_READ_AS: dict[Any, tuple[str, ...]] = {
    "date": ("date",),
    **dict.fromkeys((None, "category", "binary", "leave_out"), ("int", "bool", "date")),
}
"""What text is read as where it can be, by what its column is said to be; else as numbers."""

_TYPES: dict[str, tuple[Any, ...]] = {
    "bool": (pa.bool_(),),
    "date": tuple(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")),
    "duration": (),
}
"""What text of other kinds than numbers is read as, tried one after the other."""

_OTHER = {"bool": "int", "int": "bool", "float": "bool"}
"""What a column may be written as instead: truth values as ones and zeros, and the other way."""


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
    """A table in a file, or in a folder of CSV or Parquet files.

    Args:
        path: ``.csv`` (``.tsv``, ``.txt``, or compressed, ``.csv.gz``), ``.parquet``, ``.npy``, or
            a folder.
        missing: texts of a CSV file that stand for a missing value besides :data:`MISSING`.

    Attributes:
        files: the files that it is in.
        text: whether cells come as text.
        count: how many rows there are, where this is known without reading them.
        categories: names of columns of numbers that were of a type of categories in pandas.
    """

    def __init__(self, path: Path, missing: Sequence[str] = ()) -> None:
        self.path, self.missing = path, (*MISSING, *missing)
        self.count: int | None = None
        self.categories: list[str] = []
        self.files, kind = [path], suffix(path)
        if path.is_dir():
            every = sorted(path.rglob("[!._]*"))
            self.files = [each for each in every if each.is_file()]
            kind = "csv" if "csv" in map(suffix, self.files) else "parquet"
        elif not path.is_file():
            raise CommandError(Code.DATA, f"Expected {path} to be a file or a folder; got neither")
        if kind is None:
            words = "to end in .csv, .tsv, .txt, .parquet or .npy, or to be a folder of such files"
            raise CommandError(Code.DATA, f"Expected {path} {words}")
        readers: Any = {"csv": _Csv, "parquet": _Parquet, "npy": _Matrix}
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
                expect_different(batch.schema.names, file)
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


def suffix(path: Path) -> str | None:
    """Return the kind of table that a file name stands for: csv, parquet, npy or None."""
    name = re.sub(r"\.(gz|bz2|zst)$", "", path.name.lower())
    ends = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".npy": "npy"}
    return ends.get(Path(name).suffix)


class _Files:
    """A file, or all of a folder, whose folders' names may say further columns (year=2024)."""

    def __init__(self, path: Path, form: Any) -> None:
        # One file of text has the columns of its header, whatever its folder is called.
        partitioning = "hive" if path.is_dir() or form == "parquet" else None
        self.data: Any = pa.dataset.dataset(
            str(path), format=form, partitioning=partitioning, exclude_invalid_files=False
        )
        self.fragments = list(self.data.get_fragments())

    def names(self, fragment: Any) -> list[str]:
        return cast(list[str], fragment.physical_schema.names)

    def read(self, fragment: Any) -> Iterator[pa.RecordBatch]:
        options = {"batch_size": ROWS, "batch_readahead": 2, "use_threads": False}
        yield from fragment.to_batches(schema=self.data.schema, **options)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, str, int]]:
        first = self.fragments[0]
        for fragment in self.fragments:
            with errors_of(Code.DATA, fragment.path):
                strange = ", ".join(sorted({*self.names(first)} ^ {*self.names(fragment)}))
                words = f"to have the columns of {first.path}"
                expect(not strange, fragment.path, words, f"others: {strange}")
                start = 0
                for batch in self.read(fragment):
                    yield batch, fragment.path, start
                    start += batch.num_rows


class _Parquet(_Files):
    def __init__(self, file: TableFile) -> None:
        super().__init__(file.path, "parquet")
        expect(bool(self.fragments), str(file.path), "to hold files of Parquet or CSV", "none")
        file.count = sum(fragment.count_rows() for fragment in self.fragments)
        noted = (self.data.schema.metadata or {}).get(b"pandas", b"{}")  # Parquet has texts alone
        file.categories = [
            column["name"]
            for column in json.loads(noted).get("columns", ())
            if column.get("pandas_type") == "categorical"
            and column.get("name") in self.data.schema.names
            and pa.types.is_primitive(self.data.schema.field(column["name"]).type)
        ]


class _Csv(_Files):
    """Files of text: their delimiter is what parts the first header most often."""

    def __init__(self, file: TableFile) -> None:
        strange = [str(each) for each in file.files if suffix(each) != "csv"]
        expect(not strange, str(file.path), "to hold files of one kind", f"CSV and {strange[:1]}")
        self.delimiter, names = _header(str(file.files[0]))
        self.wrong: list[Any] = []
        super().__init__(file.path, pa.dataset.CsvFileFormat(
            # Of one column, an empty line is a missing value.
            pa.csv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=self._note,
                ignore_empty_lines=len(names) > 1,
            ),
            pa.dataset.CsvFragmentScanOptions(
                pa.csv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    strings_can_be_null=True, null_values=file.missing,
                ),
                pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            ),
        ))  # fmt: skip

    def _note(self, row: Any) -> str:
        self.wrong.append(row)
        return "skip"  # until the rows before it are read

    def names(self, fragment: Any) -> list[str]:
        return _header(fragment.path, self.delimiter)[1]

    def read(self, fragment: Any) -> Iterator[pa.RecordBatch]:
        self.wrong.clear()
        rows, last = 0, None
        for batch in super().read(fragment):
            self._expect_cells(fragment.path)
            rows += batch.num_rows
            last = batch.slice(batch.num_rows - 1) if batch.num_rows else last
            yield batch
        self._expect_cells(fragment.path)
        if last is not None and any("\n" in str(c[0]) for c in last.columns):
            # Where a quote is open, the last cell is all that follows it.
            with pa.input_stream(fragment.path, compression="detect") as stream:
                quotes = sum(block.count(b'"') for block in iter(lambda: stream.read(_BLOCK), b""))
            got = f"one of row {rows} that is open"
            expect(quotes % 2 == 0, fragment.path, "to close every quote", got)

    def _expect_cells(self, path: str) -> None:
        for row in self.wrong:
            text = row.text if len(row.text) < 60 else f"{row.text[:60]}..."
            got = f"{row.actual_columns} in row {row.number - 1}: {text!r}"
            expect(False, path, f"to have {row.expected_columns} cells in every row", got)


def _header(path: str, delimiter: str = "") -> tuple[str, list[str]]:
    """Return the delimiter of a file of text, unless it is given, and the names of its columns."""
    with pa.input_stream(path, compression="detect") as stream:
        raw = stream.read(_BLOCK)
    expect(b"\0" not in raw, path, "to be text in UTF-8", "bytes of zero, as in UTF-16")
    start = raw.decode("utf-8-sig", errors="replace")
    line = next(io.StringIO(start, newline=""), "")  # which any ending ends
    expect(bool(line.strip()), path, "to begin with the names of columns", "nothing")
    delimiter = delimiter or max(",;\t|", key=line.count)
    names = next(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter))
    expect_different(names, path)
    named = not all(re.fullmatch(r"-?\d*\.\d+(e[-+]?\d+)?", name.strip()) for name in names)
    expect(named, path, "to begin with the names of columns", line.strip())
    return delimiter, names


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
            some = some.astype(some.dtype.newbyteorder("="))  # as Arrow takes them
            some = in_double(some, self.path)
            columns = [pa.array(np.ascontiguousarray(column)) for column in some.T]
            yield pa.record_batch(columns, names), self.path, start


# ---------------------------------------------------------------------- what text is


def typed(piece: Piece, holds: Mapping[str, str]) -> Piece:
    """Return rows of text as what their columns are known to hold; others stay text.

    Raises:
        CommandError: for text of another kind, naming file, row and column.
    """
    rows = piece.rows
    for i, name in enumerate(rows.column_names):
        kind = holds.get(name, "text")
        if kind != "text":
            other = _OTHER.get(kind, kind)
            column = next((c for k in (kind, other) if (c := _as(rows[name], k)) is not None), None)
            if column is None:
                raise _unlike(piece, name, kind)
            rows = rows.set_column(i, name, column)
    return piece._replace(rows=rows)


def inferred(piece: Piece, said: Mapping[str, Any]) -> Piece:
    """Return rows of text as numbers, truth values or dates, where all of a column are.

    Raises:
        CommandError: for a column that is said to hold numbers or dates and has other text, and
            for one nearly all of whose values are numbers, unless it is said what it is; naming
            file, row and column.
    """
    rows = piece.rows
    for i, name in enumerate(rows.column_names):
        column = rows[name].cast(pa.string())
        what = said.get(name)
        what = what[0] if isinstance(what, tuple) else what
        kinds = _READ_AS.get(what, ("int",))
        # 01234 is no number but a text of digits, as of a place or a product, unless it is said.
        padded = len(kinds) > 1 and pc.any(pc.match_substring_regex(column, _PADDED)).as_py()
        kinds = tuple(kind for kind in kinds if not (padded and kind == "int"))
        each = (found for kind in kinds if (found := _as(column, kind)) is not None)
        found = days(next(each, column))
        if found is column and len(column.drop_null()):
            numbers = pc.match_substring_regex(column, _NUMBER)
            share = pc.mean(pc.cast(numbers, pa.float64())).as_py()
            # One text beside many numbers stands for a missing value, most likely.
            marked = (
                share > _MOST and pc.count_distinct(column.filter(pc.invert(numbers))).as_py() == 1
            )
            marked = marked and pc.count_distinct(column.filter(numbers)).as_py() > _FEW
            mostly = share > _MOSTLY or marked
            if len(kinds) == 1 or (what is None and mostly and not padded):
                why = "numbers in all others" if marked else "numbers in nearly all others"
                why = why if what is None else f"--columns {name}={what}"
                why += ", for dates such as 2024-05-31" if what == "date" else ""
                advice = (
                    "Mend it, or say --missing for what stands for a missing value, or --columns"
                )
                advice = f", and {why}. {advice} {name}=category"
                raise _unlike(piece, name, kinds[0], advice)
        rows = rows.set_column(i, name, found)
    return piece._replace(rows=rows)


def days(column: Any) -> Any:
    """Return moments that are all midnight as days, which are written without a time."""
    if not pa.types.is_timestamp(column.type) or column.type.tz is not None:
        return column
    midnights = pc.all(pc.equal(pc.floor_temporal(column, unit="day"), column), min_count=0)
    return column.cast(pa.date32()) if midnights.as_py() else column


def _as(column: Any, kind: str) -> Any:
    """Return a column of text as numbers, truth values or dates; None where it is not."""
    column = pc.utf8_trim_whitespace(column.cast(pa.string()))
    if kind == "bool" and not pc.all(pc.match_substring_regex(column, _TRUTH), min_count=0).as_py():
        return None
    if kind in ("int", "float"):
        column = pc.replace_substring_regex(column, r"^\+", "")
        long = column.filter(pc.match_substring_regex(column, _LONG)).to_pylist()
        if any(map(_is_rounded, long)):
            return None
    for type_ in _TYPES.get(kind, (pa.int64(), pa.float64())):
        with suppress(pa.ArrowInvalid):
            return column.cast(type_)
    return None


def _is_rounded(text: str) -> bool:
    """Tell whether double precision cannot hold an integer."""
    return int(float(text)) != int(text)


def _unlike(piece: Piece, name: str, kind: str, advice: str = "") -> CommandError:
    """Return the error of a column's first value that is not of a kind."""
    column = piece.rows[name]
    prefixes = range(1, len(column) + 1)
    row = bisect_left(prefixes, True, key=lambda rows: _as(column.slice(0, rows), kind) is None)
    durations = "durations, which a file .parquet can"
    known = {"bool": "true or false", "date": "dates", "duration": durations}
    got = column[row].as_py()
    long = "integers below 2**53" if re.search(_LONG, got) else "numbers"
    words = f"Expected column {name!r} of {piece.file} to hold {known.get(kind, long)}"
    return CommandError(Code.DATA, f"{words}; got {got!r} in row {piece.numbers[row]}{advice}")
