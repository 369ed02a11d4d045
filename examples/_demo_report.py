"""What the parts of the demo share: rows of the tables, timing, settings, the page."""

from __future__ import annotations

import html
import os
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
OUTPUT = Path("demo_output")
SAMPLES = 1000
"""Rows that the column of sampling times draws."""
LEGEND = (
    "Log-likelihoods of held-out rows in nats, higher is better, ± standard error.\n"
    "* the best, and those less than two standard errors behind it, row by row."
)


@dataclass(frozen=True)
class Row:
    """One model in a table: the log-likelihoods of the held-out rows, and how long things took.

    Args:
        model: its name.
        scores: log-likelihood of every held-out row, in nats.
        fit_seconds: what fitting took; None for a model that another row has fitted.
        sample_seconds: what `SAMPLES` rows took.
        half: mean log-likelihood of the lower half given the upper one, for images.
    """

    model: str
    scores: Tensor
    fit_seconds: float | None
    sample_seconds: float
    half: float | None = None

    @property
    def mean(self) -> float:
        return mean_and_error(self.scores)[0]

    def cells(self) -> list[str]:
        mean, error = mean_and_error(self.scores)
        half = "" if self.half is None else f"{self.half:.2f}"
        fit = "" if self.fit_seconds is None else f"{self.fit_seconds:.1f} s"
        return [f"{mean:.2f} ± {error:.2f}", half, fit, f"{1e3 * self.sample_seconds:.2f} ms"]


@dataclass(frozen=True)
class Part:
    """One part of the demo: a table (or other text), a sentence and a picture."""

    title: str
    text: str
    finding: str
    picture: Path | None = None


def table(rows: Sequence[Row]) -> str:
    """Plain text; the best rows are marked, and columns that no row has are left out."""
    headings = ["", "log-likelihood", "lower half", "fit", f"{SAMPLES} samples"]
    marks = level_with_the_best(rows)
    lines = [headings] + [
        [("* " if mark else "  ") + row.model, *row.cells()]
        for mark, row in zip(marks, rows, strict=True)
    ]
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    text = []
    for line in zip(*columns, strict=True):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def level_with_the_best(rows: Sequence[Row]) -> list[bool]:
    """Which rows are the best, or behind it by less than two standard errors.

    Differences are taken row by row of the data: models find the same rows hard, so that their
    difference is known better than each of their means.
    """
    best = max(rows, key=lambda row: row.mean)
    behind = [mean_and_error(best.scores - row.scores) for row in rows]
    return [mean <= 2 * error for mean, error in behind]


def best_names(rows: Sequence[Row]) -> str:
    """The best row's name, and those of the rows that are level with it, of models fitted."""
    rows = [row for row in rows if row.fit_seconds is not None]
    level = [row for mark, row in zip(level_with_the_best(rows), rows, strict=True) if mark]
    *others, last = [row.model for row in sorted(level, key=lambda row: -row.mean)]
    return f"{', '.join(others)} and {last}" if others else last


def mean_and_error(scores: Tensor) -> tuple[float, float]:
    """The mean of some scores and its standard error."""
    scores = scores.double()
    return float(scores.mean()), float(scores.std() / len(scores) ** 0.5)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the seconds it took."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def sampling_seconds(sample: Callable[[], Any], repetitions: int = 5) -> float:
    """The median time of drawing, after one draw that is not counted (it may compile)."""
    with torch.no_grad():
        with announced("a first draw, which may compile its kernel (once on a machine) ..."):
            sample()
        return median(timed(sample)[1] for _ in range(repetitions))


@contextmanager
def announced(text: str, after: float = 1.0) -> Iterator[None]:
    """Says what is waited for, if it takes longer than a moment."""
    timer = threading.Timer(after, say, [f"  {text}"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def page(parts: Sequence[Part]) -> str:
    """All parts as an HTML page beside their pictures."""
    body = []
    for part in parts:
        body.append(f"<h2>{html.escape(part.title)}</h2><p>{html.escape(part.finding)}.</p>")
        body.append(f"<pre>{html.escape(part.text)}</pre>")
        if part.picture is not None:
            alt = html.escape(part.title)
            body.append(f'<img src="{part.picture.name}" alt="{alt}">')
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "pre{overflow-x:auto;font-size:13px;line-height:1.35}"
        "img{max-width:100%;background:#fff}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        f'content="light dark"><title>made_flows: demo</title><style>{style}</style>'
        f"<h1>made_flows: demo</h1>{''.join(body)}<p>{html.escape(LEGEND)}</p></html>\n"
    )


def wrapped(text: str, first: str = "  ") -> str:
    """Text in lines that fit a terminal, indented."""
    return textwrap.fill(text, 79, initial_indent=first, subsequent_indent=" " * len(first))


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)
