"""Runs the Python code blocks of Markdown documents, so that no page shows code that does not work.

    python tools/run_documents.py [--jobs N] FILE_OR_FOLDER ...

All ```python blocks of one document run in one namespace, from top to bottom, in a temporary
folder, with warnings as errors; N documents at a time. An error names the document and the line.
Pages that the documentation's build runs itself (`tools/docs_run.py`) are left to it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

EXECUTED = ("concepts", "tutorials")  # folders whose pages show what their code prints
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)


def documents(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def code_of(document: Path) -> tuple[str, int]:
    """Returns a document's Python code with every line at its place, and the number of blocks."""
    text = document.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        first = text.count("\n", 0, block.start(1))
        code = block.group(1).splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines), len(blocks)


def run(document: Path, code: str, blocks: int) -> bool:
    """Runs a document's code, and tells whether it ended well."""
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            compiled = compile(code, str(document), "exec")
            warnings.simplefilter("error")
            # sbi says so of documents' short trainings.
            warnings.filterwarnings("ignore", "Maximum number of epochs", UserWarning)
            with working_directory(folder):
                exec(compiled, {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        outcome = "FAILED"
    else:
        outcome = "ok"
    print(f"{document}: {blocks} blocks, {outcome}, {time.monotonic() - start:.1f} s", flush=True)
    return outcome == "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="documents at a time")
    parser.add_argument("paths", nargs="+", type=Path)
    given = parser.parse_args()
    pages = [page for page in documents(given.paths) if page.parent.name not in EXECUTED]
    to_run = [(page, code, blocks) for page in pages for code, blocks in [code_of(page)] if blocks]
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        passed = sum(pool.map(run, *zip(*to_run, strict=True)))
    print(f"documents: {passed} passed, {len(to_run) - passed} failed")
    return int(passed < len(to_run))


@contextlib.contextmanager
def working_directory(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.exit(main())
