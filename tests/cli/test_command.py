"""The command on files of every kind: what it writes, and what it says of what is wrong."""

from __future__ import annotations

import csv
import gzip
import os
import random
import re
import resource
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from typer.testing import CliRunner

import made_flows as mf
from made_flows.cli import app
from made_flows.cli.codes import coded
from made_flows.cli.reading import TableFile, inferred, typed

N = 60
RNG = np.random.default_rng(0)
TABLE = pa.table({
    "size": RNG.normal(size=N),
    "count": pa.array([None if i == 5 else int(n) for i, n in enumerate(RNG.poisson(30, N))]),
    "kind": pa.array([[None, "a, b", 'c"d'][i % 3] for i in range(N)]),
    "day": pa.array(np.datetime64("2024-01-01") + RNG.integers(0, 900, N)),
    "ok": pa.array([None if i == 7 else i % 4 == 0 for i in range(N)]),
})  # fmt: skip
FIT = ("--max-epochs", "1", "--seed", "0")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def done(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return str(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table in every format, bad files, and a model of each kind."""
    place = tmp_path_factory.mktemp("command")
    pa.csv.write_csv(TABLE, place / "good.csv")
    text = (place / "good.csv").read_text().replace("true", "True").replace("false", "False")
    (place / "good.csv").write_text(text)
    (place / "good.csv.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(TABLE, place / "good.parquet")
    parts = place / "parts" / "year=2024"
    parts.mkdir(parents=True)
    texts = place / "texts" / "year=2024"
    texts.mkdir(parents=True)
    header, *lines = text.splitlines(keepends=True)
    for i in range(3):
        pq.write_table(TABLE.slice(20 * i, 20), parts / f"{i}.parquet")
        some = "".join([header, *lines[20 * i : 20 * i + 20]]).encode()
        (texts / f"{i}.csv").write_bytes(some)
    np.save(place / "good.npy", RNG.normal(size=(N, 2)))
    torch.manual_seed(0)
    done("fit", place / "good.csv", "-o", place / "table.safetensors", *FIT)
    numbers = mf.GaussianMADE(2, hidden_features=(8,))
    mf.save(numbers, place / "numbers.safetensors")
    mf.save(mf.GaussianMADE(2, 3), place / "context.safetensors")
    whole = (place / "table.safetensors").read_bytes()
    (place / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    for name, content in BAD.items():
        (place / name).write_bytes(content(text.splitlines(keepends=True)))
    for name in ("good.parquet", "good.npy", "good.csv.gz"):
        whole = (place / name).read_bytes()
        (place / f"short.{name.partition('.')[2]}").write_bytes(whole[: len(whole) - 40])
    np.save(place / "vector.npy", np.zeros(3))
    np.save(place / "infinite.npy", np.array([[1.0, 2.0], [1.0, np.inf]]))
    np.save(place / "wide.npy", np.zeros((3, 3)))
    np.save(place / "complex.npy", np.ones((3, 2), complex))
    small = np.arange(2 * N).reshape(N, 2).astype(np.longdouble) * np.longdouble(2) ** -60
    np.save(place / "fine.npy", small + 1 if np.finfo(np.longdouble).eps < 1e-18 else small)
    np.save(place / "objects.npy", np.array([[1, "a"], [2, None]], object))
    np.save(place / "deep.npy", np.zeros((3, 2, 2)))
    np.save(place / "no columns.npy", np.zeros((3, 0)))
    np.save(place / "no rows.npy", np.zeros((0, 2)))
    pq.write_table(pa.table({"a": [[1.0], [2.0]], "b": [1, 2]}), place / "lists.parquet")
    pq.write_table(pa.table({"a": pa.nulls(9)}), place / "nothing.parquet")
    pq.write_table(pa.table({"a": pa.array([b"1", b"2"])}), place / "bytes.parquet")
    mf.save(mf.MADE(2), place / "network.safetensors")
    taken = pa.table({"row": np.arange(9) % 4, "log_likelihood": RNG.normal(size=9)})
    spans = pa.table({"span": RNG.integers(0, 9, 9).astype("m8[s]")})
    for name, table in (("scores", taken), ("spans", spans)):
        mf.save(mf.TableMADE.from_data(table, hidden_features=(4,)), place / f"{name}.safetensors")
        pa.csv.write_csv(table, place / f"{name}.csv")
    (place / "empty folder").mkdir()
    os.mkfifo(place / "pipe")
    mixed = place / "mixed folder"
    mixed.mkdir()
    pq.write_table(TABLE, mixed / "a.parquet")
    pq.write_table(TABLE.drop_columns(["kind"]), mixed / "b.parquet")
    for name in ("torn", "text", "other", "empty", "utf16"):
        texts = place / (f"{name} folder" + " of text" * (name == "empty"))
        texts.mkdir()
        (texts / "a.csv").write_text(text)
        (texts / "b.csv").write_bytes((place / f"{name}.csv").read_bytes())
    shutil.copytree(place / "text folder", place / "kinds folder")
    pq.write_table(TABLE, place / "kinds folder" / "c.parquet")
    return place


def changed(row: int, old: str, new: str) -> Callable[[list[str]], bytes]:
    """A file whose line of that number has another text."""

    def content(lines: list[str]) -> bytes:
        line = lines[row]
        assert old in line
        return "".join([*lines[:row], line.replace(old, new, 1), *lines[row + 1 :]]).encode()

    return content


DAY = str(TABLE["day"][3].as_py())
BAD: dict[str, Callable[[list[str]], bytes]] = {
    "empty.csv": lambda lines: b"",
    "header.csv": lambda lines: lines[0].encode(),
    "one.csv": lambda lines: "".join(lines[:2]).encode(),
    "torn.csv": lambda lines: "".join(lines)[:-12].encode(),
    "text.csv": changed(4, "0.", "O."),
    "infinite.csv": changed(4, str(TABLE["size"][3].as_py()), "inf"),
    "date.csv": changed(4, DAY, "2024-13-45"),
    "bool.csv": changed(4, "False", "maybe"),
    "negative.csv": changed(4, f",{TABLE['count'][3].as_py()},", ",-1,"),
    "unseen.csv": changed(2, '"a, b"', "new"),
    "bytes.csv": lambda lines: "".join(lines[:4]).encode() + b"1,2,\xff,2024-01-01,True\n",
    "twice.csv": lambda lines: b"a,a\n1,2\n3,4\n",
    "headless.csv": lambda lines: b"0.5,-1.2\n0.7,2e-3\n",
    "other.csv": lambda lines: b"size,weight\n1,2\n3,4\n",
    "more.csv": lambda lines: b"".join(
        line.strip().encode() + (b",z\n" if i == 0 else b",1\n") for i, line in enumerate(lines)
    ),
    "mark.csv": lambda lines: (
        b"x,y\n" + b"".join(b"%d,%d\n" % (i % 7, i) for i in range(60)) + b"?,3\n"
    ),
    "marks.csv": lambda lines: (
        b"x,y\n" + b"".join(b"%d,%d.5\n" % (i % 7, i) if i % 3 else b"1,-\n" for i in range(60))
    ),
    "numbers.csv": lambda lines: b"x0,x1\n1.5,2\n,3\n",
    "huge.csv": lambda lines: b"id,x\n" + b"".join(b"%d,1\n" % (2**60 + i) for i in range(9)),
    "huger.csv": lambda lines: b"id,x\n" + b"".join(b"%d,1\n" % (10**19 + i) for i in range(9)),
    "mixed.csv": lambda lines: b"x,y\n0.5,1\n%d,2\n0,3\n" % (2**53 + 1),
    "far.csv": lambda lines: "".join(lines).encode() + b"1e300,2,new,2024-01-01,True\n",
    "overflow.csv": lambda lines: "".join(lines).encode() + b"1e999,2,new,2024-01-01,True\n",
    "utf16.csv": lambda lines: "".join(lines).encode("utf-16"),
    "quote.csv": lambda lines: "".join(lines).encode() + b'1,2,new,2024-01-01,"True\n3,4\n',
    "blank.csv": lambda lines: b"\n\n",
    "plain.csv.gz": lambda lines: "".join(lines).encode(),
    "nothing.npy": lambda lines: b"",
    "plain.txt": lambda lines: b"x;y\n" + b"".join(b"%d;%.3f\n" % (i, i / 7) for i in range(30)),
    "strange.xlsx": lambda lines: b"PK",
    "fake.parquet": lambda lines: b"a,b\n1,2\n",
    "fake.safetensors": lambda lines: b"no model",
}

T, M, C = "table.safetensors", "numbers.safetensors", "context.safetensors"
OUT = ("-o", "out.csv")
ERRORS: dict[str, tuple[tuple[str, ...], int, str]] = {
    # what is read
    "no such table": (("fit", "none.csv", "-o", "m"), 3, "none.csv to be a file or a folder"),
    "unknown format": (("fit", "strange.xlsx", "-o", "m"), 3, "to end in .csv"),
    "empty": (("fit", "empty.csv", "-o", "m"), 3, "names of columns; got nothing"),
    "header alone": (("fit", "header.csv", "-o", "m"), 3, "at least one row; got none"),
    "one row": (("fit", "one.csv", "-o", "m"), 3, "two rows or more; got one"),
    "torn last row": (("fit", "torn.csv", "-o", "m"), 3, "5 cells in every row; got 4 in row 60"),
    "text among numbers": (("fit", "text.csv", "-o", "m"), 3, "'size' of"),
    "a mark among numbers": (("fit", "mark.csv", "-o", "m"), 3, "got '?' in row 61, and numbers"),
    "no names": (("fit", "headless.csv", "-o", "m"), 3, "names of columns; got 0.5,-1.2"),
    "names twice": (("fit", "twice.csv", "-o", "m"), 3, "different names; got a"),
    "marks among numbers": (("fit", "marks.csv", "-o", "m"), 3, "got '-' in row 1, and numbers in"),
    "other bytes": (("fit", "bytes.csv", "-o", "m"), 3, "UTF-8; got other bytes in row 4"),
    "huge identifiers": (("fit", "huge.csv", "-o", "m"), 3, "below 2**53"),
    "huger ones": (("fit", "huger.csv", "-o", "m"), 3, "'id' of huger.csv to hold integers below"),
    "huge beside a fraction": (("fit", "mixed.csv", "-o", "m"), 3, "got '9007199254740993' in row"),
    "infinite": (("fit", "infinite.csv", "-o", "m"), 3, "'size' to be finite; got inf in row 4"),
    "torn Parquet": (("fit", "short.parquet", "-o", "m"), 3, "short.parquet"),
    "no Parquet": (("fit", "fake.parquet", "-o", "m"), 3, "fake.parquet"),
    "torn matrix": (("fit", "short.npy", "-o", "m"), 3, "complete .npy file"),
    "torn archive": (("fit", "short.csv.gz", "-o", "m"), 3, "short.csv.gz"),
    "a vector": (("fit", "vector.npy", "-o", "m"), 3, "a matrix of numbers; got float64 of shape"),
    "infinite matrix": (("fit", "infinite.npy", "-o", "m"), 3, "finite; got inf in row 2"),
    "an empty folder": (("fit", "empty folder", "-o", "m"), 3, "to hold files of Parquet or CSV"),
    "a folder with a torn file": (
        ("fit", "torn folder", "-o", "m"), 3, "b.csv to have 5 cells in every row; got 4 in"),
    "a folder with text": (("fit", "text folder", "-o", "m"), 3, "in row 4 of text folder/b.csv"),
    "scored text of a folder": (("score", T, "text folder"), 3, "'size' of text folder/b.csv to"),
    "a folder with others": (("fit", "other folder", "-o", "m"), 3, "other folder/b.csv to have"),
    "a folder with nothing": (("fit", "empty folder of text", "-o", "m"), 3, "b.csv to begin with"),
    "a folder of bytes": (("fit", "utf16 folder", "-o", "m"), 3, "b.csv to be text in UTF-8"),
    "a folder of two kinds": (("fit", "kinds folder", "-o", "m"), 3, "c.parquet"),
    "no dates": (
        ("fit", "date.csv", "-o", "m", "--columns", "day=date"), 3,
        "dates; got '2024-13-45' in row 4, and --columns day=date, for dates such as 2024-05-31",
    ),
    "numbers for dates": (
        ("fit", "good.parquet", "-o", "m", "--columns", "count=date"), 3,
        "makes them of text; got 28.0 in row 1",
    ),
    "text for numbers": (
        ("fit", "good.csv", "-o", "m", "--columns", "kind=real"), 3, "got 'a, b' in row 2, and",
    ),
    "unlike files": (("fit", "mixed folder", "-o", "m"), 3, "got others: kind"),
    "huge values": (("fit", "far.csv", "-o", "m"), 3, "at most 1e+100 in size; got 1e+300 in row"),
    "more than a float": (("fit", "overflow.csv", "-o", "m"), 3, "finite; got inf in row 61"),
    "another encoding": (("fit", "utf16.csv", "-o", "m"), 3, "to be text in UTF-8"),
    "an open quote": (("fit", "quote.csv", "-o", "m"), 3, "every quote; got one of row 61"),
    "blank lines": (("fit", "blank.csv", "-o", "m"), 3, "names of columns; got nothing"),
    "no archive": (("fit", "plain.csv.gz", "-o", "m"), 3, "plain.csv.gz to be read"),
    "an empty matrix": (("fit", "nothing.npy", "-o", "m"), 3, "complete .npy file"),
    **({"long doubles": (("fit", "fine.npy", "-o", "m"), 3, "that double precision tells apart")}
       if np.finfo(np.longdouble).eps < 1e-18 else {}),
    "complex numbers": (("fit", "complex.npy", "-o", "m"), 3, "numbers; got complex128"),
    "objects": (("fit", "objects.npy", "-o", "m"), 3, "complete .npy file of numbers"),
    "a deep array": (("fit", "deep.npy", "-o", "m"), 3, "of shape (3, 2, 2)"),
    "a matrix without columns": (("fit", "no columns.npy", "-o", "m"), 3, "of shape (3, 0)"),
    "a matrix without rows": (("fit", "no rows.npy", "-o", "m"), 3, "at least one row; got none"),
    "cells of lists": (("fit", "lists.parquet", "-o", "m"), 3, "got array([1.]) in row 1"),
    "cells of bytes": (("fit", "bytes.parquet", "-o", "m"), 3, "got b'1' in row 1"),
    "no values": (("fit", "nothing.parquet", "-o", "m"), 3, "have a column to model"),
    # options
    "one row asked for": (("fit", "good.csv", "-o", "m", "--rows", "1"), 2, "--rows"),
    "no epoch": (("fit", "good.csv", "-o", "m", "--max-epochs", "0"), 2, "--max-epochs"),
    "a negative seed": (("fit", "good.csv", "-o", "m", "--seed", "-1"), 2, "--seed"),
    "unknown budget": (("fit", "good.npy", "-o", "m", "--budget", "slow"), 2, "'slow'"),
    "bounds the wrong way": (
        ("fit", "good.csv", "-o", "m", "--columns", "size=bounded:1:0"), 3, "low below high",
    ),
    "all columns left out": (
        ("fit", "good.npy", "-o", "m", "--columns", "x0=leave_out", "--columns", "x1=leave_out"), 3,
        "have a column to model",
    ),
    "no output": (("fit", "good.csv"), 2, "--output"),
    "no kind": (("fit", "good.csv", "-o", "m", "--columns", "size"), 2, "as name=kind"),
    "unknown kind": (("fit", "good.csv", "-o", "m", "--columns", "kind=target"), 2, "one of real"),
    "unknown column": (("fit", "good.csv", "-o", "m", "--columns", "sise=real"), 3, "got 'sise'"),
    "kind of another": (("fit", "good.csv", "-o", "m", "--columns", "size=positive"), 3, "in row "),
    "bounds of text": (("fit", "good.csv", "-o", "m", "--columns", "size=bounded:a:b"), 2, "'a'"),
    "unknown context": (("fit", "good.csv", "-o", "m", "--context", "x"), 3, "got 'x'"),
    "budget of text": (("fit", "good.csv", "-o", "m", "--budget", "fast"), 3, "got nan in row 6"),
    "budget and columns": (
        ("fit", "good.npy", "-o", "m", "--budget", "fast", "--columns", "x0=real"), 2, "without",
    ),
    "budget and epochs": (
        ("fit", "good.npy", "-o", "m", "--budget", "fast", "--max-epochs", "3"), 2, "--max-epochs"),
    "a column said twice": (
        ("fit", "good.csv", "-o", "m", "--columns", "size=real", "--columns", "size=spline"), 2,
        "once for each column",
    ),
    "a context twice": (
        ("fit", "good.csv", "-o", "m", "--context", "day", "--context", "day"), 3, "column once"),
    "marks in a matrix": (
        ("fit", "good.npy", "-o", "m", "--missing", "?"), 2, "for files of text; got good.npy"),
    "a large seed": (("sample", T, "--seed", str(2**64)), 2, "--seed"),
    "orders of numbers": (("score", M, "good.npy", "--orders", "2"), 4, "for --orders; got Gauss"),
    "samples of orders": (("sample", M, "--orders", "2"), 4, "for --orders; got GaussianMADE"),
    "a draw and draws": (("impute", T, "good.csv", "--draw", "--draws", "9"), 2, "got both"),
    "names of the scores": (
        ("score", "scores.safetensors", "scores.csv", "--keep"), 2, "got one with ['log_likeli"),
    "names of the least": (
        ("score", "scores.safetensors", "scores.csv", "--keep", "--least", "1"), 2, "['row', 'log"),
    "a compressed matrix": (("sample", M, "-o", "rows.npy.gz"), 2, "to end in .csv, .csv.gz"),
    "durations as text": (("score", "spans.safetensors", "spans.csv"), 3, "to hold durations"),
    "no rows": (("sample", T, "-n", "0"), 2, "'--count'"),
    "unknown output": (("sample", T, "-o", "rows.xlsx"), 2, "rows.xlsx"),
    "text in a matrix": (("sample", T, "-o", "rows.npy"), 2, "got column 'kind'"),
    "needless context": (("sample", T, "--given", "good.csv"), 2, "without context columns"),
    # models
    "no such model": (("score", "none", "good.csv"), 4, "none, which is not one"),
    "torn model": (("score", "short.safetensors", "good.csv"), 4, "truncated"),
    "no model": (("info", "fake.safetensors"), 4, "complete safetensors file"),
    "a model that cannot impute": (("impute", M, "good.npy"), 4, "got GaussianMADE"),
    "no scores by column": (("score", M, "good.npy", "--by-column"), 4, "got GaussianMADE"),
    "a model with a context": (("score", C, "good.npy"), 4, "without a context"),
    "a network alone": (("score", "network.safetensors", "good.npy"), 4, "density model; got MADE"),
    "a table for a model": (("score", "good.csv", T), 4, "complete safetensors file"),
    "a model for a table": (("score", T, T), 3, "table.safetensors to end in .csv"),
    # rows of a model
    "scored huge": (("score", T, "far.csv"), 3, "got 1e+300 in row 61"),
    "other columns": (("score", T, "other.csv"), 3, "with 'weight' (other.csv)"),
    "more columns": (("score", T, "more.csv"), 3, "one with 'z'"),
    "scored text": (("score", T, "text.csv"), 3, "'size' of text.csv to hold numbers; got"),
    "scored no date": (("impute", T, "date.csv"), 3, "hold dates; got '2024-13-45' in row 4"),
    "scored no truth": (("score", T, "bool.csv"), 3, "true or false; got 'maybe' in row 4"),
    "scored negative": (("score", T, "negative.csv"), 3, "no negative number; got -1 in row 4"),
    "scored hole": (("score", M, "numbers.csv"), 3, "finite number in every row; got nan in row 2"),
    "scored wide matrix": (("score", M, "wide.npy"), 3, "one with 'x2'"),
    "scored header": (("score", T, "header.csv", *OUT), 3, "at least one row"),
    "torn in the middle": (("score", T, "torn.csv", *OUT), 3, "got 4 in row 60"),
    # what is written
    "no such folder": (("fit", "good.csv", "-o", "none/m"), 5, "folder of path to exist"),
    "a folder": (("sample", T, "-o", "empty folder.csv/../parts"), 2, "to end in .csv"),
    "a place for no file": (("sample", T, "-o", "/proc/a.csv"), 5, "/proc/a.csv to be written"),
    "a checkpoint for no file": (
        ("fit", "good.csv", "-o", "m", "--checkpoint", "/proc/c"), 5, "/proc/c to be written"),
    "a pipe": (("fit", "good.csv", "-o", "pipe"), 5, "pipe, a device or pipe"),
    "the table itself": (("fit", "good.csv", "-o", "good.csv"), 2, "DATA and --output to be diff"),
    "scores in place": (("score", T, "good.csv", "-o", "./good.csv"), 2, "DATA and --output to"),
    "filled in its place": (("impute", T, "good.csv", "-o", "good.csv"), 2, "DATA and --output to"),
    "the model as checkpoint": (
        ("fit", "good.csv", "-o", "m", "--checkpoint", "./m"), 2, "--output and --checkpoint"),
    "no checkpoint": (("fit", "good.csv", "-o", "m", "--checkpoint", "one.csv"), 3, "one.csv"),
    "a model for no file": (("fit", "good.csv", "-o", "/proc/m"), 5, "/proc/m to be written"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_a_code_and_say_where(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, code, words = ERRORS[name]
    if "/proc" in words and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    monkeypatch.chdir(folder)
    before = sorted(Path().rglob("*"))
    result = run(*arguments)
    said = " ".join(result.stderr.split())
    assert (result.exit_code, words in said) == (code, True), (result.exit_code, said)
    assert sorted(Path().rglob("*")) == before, "Expected nothing to be written"
    if code > 2:
        assert result.stderr.splitlines()[-1].startswith("made-flows: Expected")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("what", ["fit", "sample"])
def test_a_full_disk_leaves_what_was_there(what: str, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / ("m" if what == "fit" else "rows.parquet")
    place.write_text("before")
    work = {
        "fit": ("fit", folder / "good.csv", "-o", place, *FIT),
        "sample": ("sample", folder / T, "-n", 5000, "-o", place),
    }
    child = os.fork()  # the limit is one of processes
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        result = run(*work[what])
        os._exit(result.exit_code if f"{place} to be written" in result.stderr else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("name", ["good.csv", "good.csv.gz", "good.parquet", "parts", "texts"])
def test_formats_agree(name: str, folder: Path, tmp_path: Path) -> None:
    model = folder / T
    if name in ("parts", "texts"):  # the folder's name is a column
        model = tmp_path / "m"
        done("fit", folder / name, "-o", model, *FIT)
        assert "year" in done("info", model)
    loaded = mf.load(model, dtype=torch.float64)
    rows = TABLE if name.startswith("good") else TABLE.append_column("year", pa.array([2024] * N))
    done("score", model, folder / name, "--by-column", "-o", tmp_path / "scores.parquet")
    scores = pq.read_table(tmp_path / "scores.parquet")
    close = np.testing.assert_allclose  # other sums, as the files are scored one by one
    close(scores["log_likelihood"], loaded.score_samples(rows), rtol=1e-12)
    close(scores["log_p_kind"].to_numpy(), loaded.score_columns(rows)["kind"], rtol=1e-12)


def test_models_of_csv_and_parquet_are_the_same(folder: Path, tmp_path: Path) -> None:
    done("fit", folder / "good.parquet", "-o", tmp_path / "m", *FIT)
    first, second = (mf.load(path).state_dict() for path in (folder / T, tmp_path / "m"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["good.csv", "good.parquet", "parts"])
def test_what_is_there_stays_and_nothing_is_missing(
    name: str, folder: Path, tmp_path: Path
) -> None:
    model = folder / T
    if name == "parts":
        model = tmp_path / "m"
        done("fit", folder / name, "-o", model, *FIT)
    place = tmp_path / ("filled.csv" if name == "good.csv" else "filled.parquet")
    for options in ((), ("--draw", "--seed", "3")):
        done("impute", model, folder / name, "-o", place, *options)
        if name == "good.csv":
            before, after = (
                list(csv.reader(path.read_text().splitlines())) for path in (folder / name, place)
            )
            assert all(b in ("", a) for x, y in zip(before, after, strict=True)
                       for b, a in zip(x, y, strict=True))  # fmt: skip
            assert all(cell for row in after for cell in row)
            assert {row[4] for row in after[1:]} == {"True", "False"}
        else:
            filled = pq.read_table(place)
            assert all(filled[each].null_count == 0 for each in filled.column_names)
            assert filled["count"].type == TABLE["count"].type
            known = ~np.asarray(TABLE["count"].is_null())
            np.testing.assert_array_equal(
                np.asarray(filled["count"])[known], np.asarray(TABLE["count"])[known]
            )


def test_samples_repeat_by_seed_and_can_be_scored(folder: Path, tmp_path: Path) -> None:
    first, second, other = (done("sample", folder / T, "-n", 5, "--seed", s) for s in (1, 1, 2))
    assert first == second != other
    assert len(first.splitlines()) == 6
    assert first.splitlines()[0] == "size,count,kind,day,ok"
    assert all(len(row["day"]) == 10 for row in csv.DictReader(first.splitlines()))  # no times
    (tmp_path / "rows.csv").write_text(first)
    scores = done("score", folder / T, tmp_path / "rows.csv", "--keep").splitlines()
    assert scores[1].startswith(first.splitlines()[1])
    assert np.isfinite([float(line.rpartition(",")[2]) for line in scores[1:]]).all()


@pytest.mark.parametrize("name", ["good.parquet", "parts"])
def test_the_least_likely_rows_come_first(name: str, folder: Path, tmp_path: Path) -> None:
    model = folder / T
    if name == "parts":
        model = tmp_path / "m"
        done("fit", folder / name, "-o", model, *FIT)
    every = np.array(done("score", model, folder / name).split()[1:], dtype=float)
    odd = list(
        csv.DictReader(done("score", model, folder / name, "--least", 4, "--keep").split("\n"))
    )
    assert [float(row["log_likelihood"]) for row in odd] == sorted(every)[:4]
    for row in odd:
        start = 20 * int(Path(row["file"]).stem) if name == "parts" else 0
        assert float(row["log_likelihood"]) == every[start + int(row["row"]) - 1]
        assert float(row["size"]) == TABLE["size"][start + int(row["row"]) - 1].as_py()


def test_unseen_categories_have_a_score(folder: Path) -> None:
    scores = done("score", folder / T, folder / "unseen.csv").splitlines()
    assert float(scores[2]) < float(scores[5])


def test_categories_that_text_lacks_are_warned_of(tmp_path: Path) -> None:
    table = {"k": np.array(["", "a", "b"] * 20, object), "n": RNG.normal(size=60)}
    mf.save(mf.TableMADE.from_data(table), tmp_path / "m")
    (tmp_path / "t.csv").write_text("k,n\na,1.5\n,0.5\n")
    result = run("score", tmp_path / "m", tmp_path / "t.csv")
    assert "column 'k' has the value '' in the model, which means missing" in result.stderr


def test_the_version_is_told() -> None:
    assert done("--version") == f"made-flows {mf.__version__}\n"


def test_matrices_of_numbers(folder: Path, tmp_path: Path) -> None:
    model = mf.load(folder / M, dtype=torch.float64)
    done("score", folder / M, folder / "good.npy", "-o", tmp_path / "scores.npy")
    x = torch.from_numpy(np.load(folder / "good.npy"))
    np.save(tmp_path / "long.npy", x.numpy().astype(np.longdouble))
    done("score", folder / M, tmp_path / "long.npy", "-o", tmp_path / "long scores.npy")
    np.testing.assert_array_equal(
        np.load(tmp_path / "long scores.npy"), np.load(tmp_path / "scores.npy")
    )
    with torch.no_grad():
        expected = model().log_prob(x).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy")[:, 0], expected)
    done("sample", folder / M, "-n", 5000, "--seed", 0, "-o", tmp_path / "rows.npy")
    assert np.load(tmp_path / "rows.npy").shape == (5000, 2)


def test_truth_values_in_files_are_ones_and_zeros(tmp_path: Path) -> None:
    bits = RNG.normal(size=(N, 3)) > 0
    np.save(tmp_path / "bits.npy", bits)
    np.save(tmp_path / "numbers.npy", bits.astype("u1"))
    for name, kind in (("words", bool), ("digits", int)):
        table = pa.table({f"x{i}": bits[:, i].astype(kind) for i in range(3)})
        pa.csv.write_csv(table, tmp_path / f"{name}.csv")
    files = ("bits.npy", "numbers.npy", "words.csv", "digits.csv")
    for fitted in files:
        done("fit", tmp_path / fitted, "-o", tmp_path / "m", *FIT)
        assert len({done("score", tmp_path / "m", tmp_path / scored) for scored in files}) == 1
    done("fit", tmp_path / "bits.npy", "-o", tmp_path / "m", "--budget", "fast", "--seed", 0)
    assert len({done("score", tmp_path / "m", tmp_path / scored) for scored in files}) == 1


def test_samples_are_of_the_types_of_the_file(tmp_path: Path) -> None:
    table = pa.table({
        "kind": pa.array(["a", "b", "c"] * 20).dictionary_encode(),
        "single": pa.array(RNG.normal(size=60), pa.float32()),
        "count": pa.array(RNG.integers(0, 100, 60), pa.int8()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    done("fit", tmp_path / "a.parquet", "-o", tmp_path / "m", *FIT)
    done("sample", tmp_path / "m", "-n", 9000, "-o", tmp_path / "drawn.parquet")
    drawn = pq.read_table(tmp_path / "drawn.parquet")
    assert drawn.schema.types[:2] == table.schema.types[:2]
    assert drawn.schema.types[2] == pa.int64()  # of any number, in whichever piece


def test_categories_of_a_file_are_filled_in_as_such(tmp_path: Path) -> None:
    """They had become text, or numbers, in columns that had lacked some."""
    some = RNG.random(9000) < 0.2
    table = pa.table({
        "kind": pa.array(["a", "b", "c"] * 3000, mask=some).dictionary_encode(),
        "shop": pa.array([7, 9, 4] * 3000, pa.int16(), mask=some).dictionary_encode(),
        "size": pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 2] * 3000, pa.int8(), mask=some), ["S", "M", "L"], ordered=True
        ),
        "x": pa.array(RNG.normal(size=9000)),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    done("fit", tmp_path / "a.parquet", "-o", tmp_path / "m", *FIT)
    done("impute", tmp_path / "m", tmp_path / "a.parquet", "-o", tmp_path / "b.parquet")
    before, after = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert after.schema.types == before.schema.types
    for name in ("kind", "shop", "size"):
        assert after[name].null_count == 0
        known = before[name].is_valid()
        assert after[name].filter(known).to_pylist() == before[name].filter(known).to_pylist()
    sizes = after["size"].combine_chunks().dictionary.to_pylist()
    assert sizes == ["S", "M", "L"]


def test_numbers_that_were_categories_in_pandas_are_some(tmp_path: Path) -> None:
    """Parquet keeps such types of text alone: numbers of shops came as counts."""
    pandas = pytest.importorskip("pandas")
    shops = np.arange(90) * 7 % 31 + 100
    frame = pandas.DataFrame({"shop": pandas.Categorical(shops), "size": shops * 1.5})
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    for more, kind in (((), "category"), (("--columns", "shop=count"), "count")):
        model = tmp_path / "model.safetensors"
        told = run("fit", tmp_path / "table.parquet", "-o", model, "--max-epochs", 1, *more)
        assert told.exit_code == 0
        assert mf.load(model).schema.columns[0].kind == kind


def test_matrices_keep_the_places_of_columns_without_values(tmp_path: Path) -> None:
    x = RNG.normal(size=(N, 3)).astype(">f8")  # as another computer wrote it
    x[:, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    done("fit", tmp_path / "x.npy", "-o", tmp_path / "m", *FIT)
    done("sample", tmp_path / "m", "-n", 4, "-o", tmp_path / "drawn.npy")
    drawn = np.load(tmp_path / "drawn.npy")
    assert np.isnan(drawn).all(axis=0).tolist() == [False, True, False]
    assert len(done("score", tmp_path / "m", tmp_path / "drawn.npy").splitlines()) == 5


def test_context_columns_and_kinds_are_as_was_said(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    done("fit", folder / "good.csv", "-o", model, "--context", "day", "--columns",
         "size=bounded:-9:9", "--columns", "count=leave_out", *FIT)  # fmt: skip
    said = done("info", model)
    assert all(each in said for each in ("bounded", "day     date, context", "left out", "seed 0"))
    (tmp_path / "days.csv").write_text("day\n2024-01-02\n2024-05-06\n")
    rows = done("sample", model, "-n", 3, "--given", tmp_path / "days.csv").splitlines()
    assert len(rows) == 7
    assert run("sample", model).exit_code == 2


def test_marks_of_missing_values_are_remembered(folder: Path, tmp_path: Path) -> None:
    done("fit", folder / "mark.csv", "-o", tmp_path / "m", "--missing", "?", *FIT)
    assert len(done("score", tmp_path / "m", folder / "mark.csv").splitlines()) == 62


def test_a_delimiter_is_what_parts_the_header(folder: Path, tmp_path: Path) -> None:
    done("fit", folder / "plain.txt", "-o", tmp_path / "m", "--columns", "x=count", *FIT)
    assert set(mf.load(tmp_path / "m").schema.names) == {"x", "y"}


TEXTS = {
    "carriage returns": (b"x,y\r1,2\r3,4\r", {}, {"x": [1, 3], "y": [2, 4]}),
    "identifiers": (
        b"x\n18446744073709551617\n1\n", {"x": "category"}, {"x": ["18446744073709551617", "1"]}),
    "zeros in front": (
        b"zip,n,day\n94110,1,05\n01234,20,12\n", {"day": "count"},
        {"zip": ["94110", "01234"], "n": [1, 20], "day": [5, 12]},
    ),
    "large, but as they are": (b"x\n%d\n0.5\n" % 10**20, {}, {"x": [1e20, 0.5]}),
    "nanoseconds": (
        b"x\n2024-01-02 03:04:05.000006007\n2024-01-02\n", {},
        {"x": [np.datetime64("2024-01-02T03:04:05.000006007"), np.datetime64("2024-01-02")]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_text_is_read_as(name: str, tmp_path: Path) -> None:
    text, said, expected = TEXTS[name]
    (tmp_path / "a.csv").write_bytes(text)
    rows = inferred(TableFile(tmp_path / "a.csv").sample(99, 0)[0], said).rows
    assert {each: list(np.asarray(rows[each])) for each in rows.column_names} == expected


def test_of_many_rows_some_are_drawn(folder: Path, tmp_path: Path) -> None:
    x = np.arange(30_000.0)[:, None]
    np.save(tmp_path / "long.npy", x)
    drawn, count = TableFile(tmp_path / "long.npy").sample(500, seed=0)
    values = drawn.rows["x0"].to_numpy()
    assert (len(values), count) == (500, 30_000)
    np.testing.assert_array_equal(drawn.numbers, values + 1)
    assert (np.diff(values) > 0).all()
    assert abs(values.mean() / 15_000 - 1) < 0.12  # four and a half deviations


@pytest.mark.parametrize("name", ["good.csv", "parts"])
def test_more_rows_than_are_held_are_all_fitted(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("made_flows.cli.commands._HELD", 40)
    call = ("fit", folder / name, "--context", "day", "--seed", "0", "-o")
    weights = []
    for model, options in (("whole", ()), ("m", ("--checkpoint", tmp_path / "c"))):
        for epochs in (1, 3) if options else (3,):  # the second call goes on from the first
            result = run(*call, tmp_path / model, "--max-epochs", epochs, *options)
            assert "columns by 40 of 60 rows" in result.stderr
        weights.append(mf.load(tmp_path / model).state_dict())
    assert all(torch.equal(weights[0][each], weights[1][each]) for each in weights[0])
    assert "fitted to 60 rows" in done("info", tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "m", "whole"]
    assert "40 of 60 rows, drawn" in run(*call, tmp_path / "m", *FIT, "--rows", 40).stderr


def test_codes_in_files_are_those_of_all_rows(folder: Path, tmp_path: Path) -> None:
    model = mf.load(folder / T)
    parts = coded(TableFile(folder / "good.csv"), model, 0.3, 0, tmp_path / "m", True)
    assert all(context is None for _, context in parts)
    rows = np.concatenate([codes for codes, _ in parts])
    np.testing.assert_array_equal(
        np.sort(rows, axis=0), np.sort(model.schema.encode(TABLE)[0], axis=0)
    )
    assert 6 < len(parts[1][0]) < 32  # 18 is expected, a deviation 3.5


def test_text_is_what_all_of_a_column_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,d,e,f\n 1,1.5,true,2024-01-02,x,01:30\n+2,,FALSE,2024-01-03T04:05,1,\n")
    piece = next(TableFile(path).pieces())
    types = dict(zip("abcdef", map(str, inferred(piece, {}).rows.schema.types), strict=True))
    assert types == {
        "a": "int64", "b": "double", "c": "bool", "d": "timestamp[us]", "e": "string",
        "f": "string",
    }  # fmt: skip
    assert str(typed(piece, {"a": "float", "e": "text"}).rows.schema.types[0]) == "int64"


def test_the_page_shows_commands_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "command.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    commands = re.findall(r"^\$ made-flows (.*)$", page, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {
        "fit",
        "score",
        "sample",
        "impute",
        "info",
    }
    for command in commands:
        result = run(*shlex.split(command))
        assert result.exit_code == 0, result.stderr
        if command.startswith("fit"):  # the schema is the one that the page shows
            assert all(line in page.splitlines() for line in result.stderr.splitlines()[:6]), (
                result.stderr
            )


# ---------------------------------------------------------------------- killed


def killed(work: Callable[[], Any], after: float) -> None:
    """Does some work in another process, and kills it."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        while True:
            work()
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("what", ["fit", "save", "sample"])
def test_what_is_killed_leaves_a_whole_file(what: str, folder: Path, tmp_path: Path) -> None:
    model = mf.load(folder / T)
    place = tmp_path / ("rows.parquet" if what == "sample" else "m.safetensors")
    work: dict[str, Callable[[], Any]] = {
        "fit": lambda: run("fit", folder / "good.csv", "-o", place, *FIT),
        "save": lambda: mf.save(model, place),
        "sample": lambda: run("sample", folder / T, "-n", "100", "-o", place),
    }
    work[what]()
    moments, whole = random.Random(0), 0
    for _ in range(KILLS):
        killed(work[what], moments.uniform(0.0, 0.3))
        whole += len(pq.read_table(place)) if what == "sample" else bool(mf.load(place))
    assert whole == KILLS * (100 if what == "sample" else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fit_that_was_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    call = ("fit", folder / "good.csv", "--max-epochs", "20", "--seed", "0", "-o")
    done(*call, tmp_path / "whole")
    resumed = (*call, tmp_path / "m", "--checkpoint", tmp_path / "c")
    for _ in range(2):
        killed(lambda: run(*resumed), 0.2)
    done(*resumed)
    first, second = (mf.load(tmp_path / name).state_dict() for name in ("whole", "m"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "another" in run(*resumed, "--columns", "size=rounded:0.5").stderr


KILLS = int(os.environ.get("MADE_FLOWS_KILLS", "4"))
