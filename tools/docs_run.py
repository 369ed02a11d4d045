"""Runs the Python blocks of a page and puts under each what it printed, and what it drew.

Pages of the folders `EXECUTED` of `docs/` are built so: a block is shown with what it prints, and
where its last line is a figure, with that; the words for those who cannot see it stand after
```python. Warnings are errors.
"""

from __future__ import annotations

import ast
import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from tools.run_documents import BLOCK, EXECUTED, working_directory


class Page(NamedTuple):
    """Markdown with its output, and the pictures in it by the path beside the page."""

    text: str
    pictures: dict[str, bytes]


def is_executed(document: Path) -> bool:
    return document.parent.name in EXECUTED


def executed(document: Path) -> Page:
    """Runs a page, from top to bottom in one namespace, in a temporary folder."""
    text = document.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    pictures: dict[str, bytes] = {}
    parts, end = [], 0
    with tempfile.TemporaryDirectory() as folder, working_directory(folder):
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            printed, value = run("\n" * line + block[1], document, namespace)
            shown = f"```python\n{block[1]}```\n"
            if hasattr(value, "savefig"):
                name = f"{document.stem}-{len(pictures) + 1}.png"
                pictures[name] = picture(value)
                alt = block[0].splitlines()[0].removeprefix("```python").strip()
                if not alt:
                    raise ValueError(f"Expected words after ```python for a figure: {document}")
                shown += f"\n![{alt}]({name})\n"
            if printed.strip():
                shown += f"\n```{{.text .output}}\n{printed.rstrip()}\n```\n"
            parts += [text[end : block.start()], shown]
            end = block.end()
    return Page("".join(parts) + text[end:], pictures)


def run(code: str, document: Path, namespace: dict[str, Any]) -> tuple[str, Any]:
    """Returns what some lines print, and the value of the last one if it is an expression."""
    tree = ast.parse(code, str(document))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("error")
        exec(compile(tree, str(document), "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), str(document), "eval"), namespace)
    return printed.getvalue(), value


def picture(figure: Any) -> bytes:
    """Returns a figure as a PNG without a background, which suits light pages and dark ones."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, transparent=True)
    return file.getvalue()
