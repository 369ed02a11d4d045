"""What the parts of the demo share: rows of the table, timing, settings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Row:
    """One model in the table: the mean of its test scores, with the mean's standard error."""

    model: str
    score: float
    error: float
    fit_seconds: float
    sample_seconds: float | None = None
    half: float | None = None

    def cells(self) -> tuple[str, ...]:
        sampling = "-" if self.sample_seconds is None else f"{1e3 * self.sample_seconds:.2f} ms"
        half = "" if self.half is None else f"{self.half:.2f}"
        score = f"{self.score:.2f} ± {self.error:.2f}"
        return self.model, score, half, f"{self.fit_seconds:.1f} s", sampling


@dataclass(frozen=True)
class Part:
    """One part of the demo: a section of the table, a sentence and a picture."""

    title: str
    rows: Sequence[Row]
    finding: str
    picture: Path


HEADINGS = ("", "test score", "lower half | upper", "fit", f"{SAMPLES} samples")


def table(parts: Sequence[Part]) -> str:
    """All parts as one table of plain text."""
    lines = [HEADINGS, *(row.cells() for part in parts for row in part.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]

    def join(cells: Sequence[str]) -> str:
        first, *others = (
            f"{c:<{w}}" if i == 0 else f"{c:>{w}}"
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(["  " + first, *others]).rstrip()

    rule = "-" * max(len(join(HEADINGS)), *(len(part.title) for part in parts))
    text = [rule, join(HEADINGS)]
    for part in parts:
        text += [rule, part.title, *(join(row.cells()) for row in part.rows)]
    return "\n".join([*text, rule])


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
        sample()
        return median(timed(sample)[1] for _ in range(repetitions))


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)
