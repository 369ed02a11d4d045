"""Functions that are translated for LLVM compute what Python computes with them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from made_flows._llvm import machine
from made_flows.inverse.compiled import compilation
from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.layout import Written
from made_flows.inverse.compiled.steps import find_step, has_step
from made_flows.inverse.compiled.translation import independent


class Pair(NamedTuple):
    first: Any
    second: Any


def integers(slot: int, tiles: Any, spaces: Any, x: Any, n: Any, out: Any) -> None:
    """Quotients are rounded down, and remainders have the divisor's sign."""
    for i in range(len(n)):
        for j in range(3):
            divisor = 7 - 5 * j
            out[i, j] = n[i] // divisor
            out[i, j + 3] = n[i] % divisor
            out[i, j + 6] = n[i] / divisor
        out[i, 9] = max(min(n[i], 2), -abs(-2)) + (n[i] > 0) + int(x[i])


def choices(slot: int, tiles: Any, spaces: Any, x: Any, n: Any, out: Any) -> None:
    for i in range(len(x) - 1, -1, -1):
        v = x[i]
        if v > 1.0:
            v = v - 1.0
        elif (v > 0.0 and n[i] != 2) or not n[i] < 3:
            v += 0.5
        else:
            v = -v
        out[i, 0] = v
        out[i, 1] = v if v < 0.25 else x[i] / n[i] if n[i] else math.inf
        out[i, 2] = x[i] if n[i] > 0 else v


def loops(slot: int, tiles: Any, spaces: Any, x: Any, n: Any, out: Any) -> None:
    k = 0
    while k < len(x):
        k += 1
        if n[k - 1] < 0:
            continue
        row = out[k - 1]
        for start in (0, 4):
            for j in range(start, start + 3):
                row[j] += x[k - 1] * j
        row[8:] = x[k - 1]


def calls(slot: int, tiles: Any, spaces: Any, x: Any, n: Any, out: Any) -> None:
    for i in range(len(n)):
        swapped, parts = halves(Pair(n[i], i))
        fill(out, i, parts)
        out[i, 2] = swapped.first - swapped.second
        out[i, 3] = math.sqrt(abs(x[i])) + math.erf(x[i])


def halves(pair: Any) -> Any:
    first, second = pair
    half = 0.5 * first
    return Pair(second, first), (half, 0.5 * second)


def fill(out: Any, row: int, values: Any) -> None:
    if row == 1:
        return
    out[row, 0] = values[0]
    out[row, 1] = values[1]


def nans(slot: int, tiles: Any, spaces: Any, x: Any, n: Any, out: Any) -> None:
    """Comparisons with NaN, and the smaller and larger of two numbers, as Python has them."""
    for i in range(len(x)):
        v = x[i] if i > 0 else math.nan
        out[i, 0] = 1.0 if v == v else 0.0
        out[i, 1] = 1.0 if v != v else 0.0
        out[i, 2] = 1.0 if v < 1.0 else 0.0
        out[i, 3] = max(v, 0.5)
        out[i, 4] = min(0.5, v)


def apart(slot: int, tiles: Any, spaces: Any, x: Any, n: Any, out: Any) -> None:
    """Loops of independent iterations, with loops in them, and around functions and sums."""
    for i in independent(len(x)):
        total = 0.0
        for j in range(3):
            total += x[i] * j
            out[i, j] = total if total > 0.0 else out[i, j]
        out[i, 3] = turned(out[i], x[i])
    for k in range(3):
        for j in independent(len(x)):
            out[j, 4] += x[j] * k
            out[j, 5] = max(out[j, 4], n[j])


def turned(row: Any, value: Any) -> Any:
    row[6] = value
    return row[2] - value


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADE_FLOWS_CACHE_DIR", str(tmp_path))


def run(function: Any, *arguments: Any) -> None:
    Kernel(function)(1, 1, 1, 1, Written(np.zeros(1)), *arguments)


@pytest.mark.parametrize("function", [integers, choices, loops, calls, nans, apart])
def test_a_function_computes_what_python_does(function: Any) -> None:
    x = np.array([0.5, -1.5, 2.25, 0.1, 1.75, -0.2])
    n = np.array([3, -7, 0, 2, 11, -1])
    own, expected = np.zeros((6, 10)), np.zeros((6, 10))
    run(function, x, n, own)
    function(0, None, None, x, n, expected)
    np.testing.assert_allclose(own, expected, rtol=1e-15)


def early(slot: int, tiles: Any, spaces: Any, x: Any) -> None:
    x[0] = one_of_two(x)


def one_of_two(x: Any) -> Any:
    if x[0] > 0.0:
        return 1.0
    return 2.0


def retyped(slot: int, tiles: Any, spaces: Any, x: Any) -> None:
    k = 1
    k = 0.5
    x[0] = k


def comprehended(slot: int, tiles: Any, spaces: Any, x: Any) -> None:
    x[0] = len([1 for _ in range(3)])


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (early, "Expected a value to be returned by the last statement"),
        (retyped, "Expected k to keep its type"),
        (comprehended, "Expected what kernels are made of; got ListComp"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(function: Any, says: str) -> None:
    with pytest.raises(TypeError, match=rf"test_translation.py:\d+: {says}"):
        run(function, np.zeros(1))


@pytest.mark.parametrize(
    "kind", ["affine", "bernoulli", "categorical", "gated", "mixture", "race", "rational_spline"]
)
def test_steps_neither_ask_whether_rows_overlap_nor_store_some_lanes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either takes longer than what a step computes: of rows of 24 lanes; on AMD's processors."""
    found: list[Any] = []
    optimised = compilation._optimised
    monkeypatch.setattr(
        compilation, "_optimised", lambda *given: found.append(optimised(*given)) or found[-1]
    )
    function = find_step(kind, "pull" if has_step(kind, "pull") else "step")
    compilation.address_of.__wrapped__(function, True)
    [module] = found
    assert "memcheck" not in str(module)
    assert not re.search(r"vmaskmovp\w\s+%\w+, %\w+, ", machine().emit_assembly(module))
