"""The benchmark for a GPU: who takes part, and a page whatever fails."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, inverse
from benchmarks._peers import Jacobi, installed_peers
from benchmarks.harness import Contender, Settings, run_contenders


def _kinds(size: inverse.Size) -> list[Any]:
    return [getattr(kind, "func", kind) for kind in gpu.layers_for(size)]


def test_other_libraries_take_part_where_they_end_in_time() -> None:
    assert _kinds((784, 1024, 65536)) == [Jacobi]
    assert set(installed_peers()) < set(_kinds((6, 128, 256)))
    assert gpu.Compiled not in _kinds((63, 512, 1))
    assert all(
        make(2, 3).slow(torch.zeros(1, 2)).isfinite().all() for make in gpu.layers_for((22, 1, 1))
    )


def test_what_fails_or_has_no_time_is_left_out_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gpu, "run_contenders", lambda c, s, t: run_contenders(c, replace(s, seconds=0.001), t)
    )

    def fail() -> None:
        raise RuntimeError("CUDA out of memory\nand more")

    page = gpu._Page(Settings(quick=True, output=tmp_path))
    page.measure("inverse", (2, 3, 4), lambda: [Contender("broken", fail), Contender("whole", int)])
    monkeypatch.setattr(gpu, "MINUTES", 0)
    page.measure("gradient", (2, 3, 4), list)
    page.write(finished=True)
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "* inverse, 2, 3, 4, broken: RuntimeError, CUDA out of memory\n" in text
    assert "* gradient, 2, 3, 4: no time left" in text
    assert "| 2, 3, 4 |" in text
    assert "Cut off" not in text


def test_a_call_is_captured_once_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would do, as far as the host has a part in it."""
    graph = SimpleNamespace(replay=lambda: "replayed")
    stream = SimpleNamespace(wait_stream=lambda _: None)
    fakes = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: graph,
        "graph": lambda _: nullcontext(),
        "synchronize": lambda _: None,
        "reset_peak_memory_stats": lambda _: None,
        "memory_allocated": lambda _: 2**20,
        "max_memory_allocated": lambda _: 3 * 2**20,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    calls: list[int] = []
    replay = inverse.captured(lambda: calls.append(1))
    assert replay is not None
    assert replay() == "replayed"
    assert len(calls) == 4

    def reads() -> None:
        if len(calls) == 7:
            raise RuntimeError("operation not permitted when stream is capturing")
        calls.append(1)

    assert inverse.captured(reads) is None
    assert gpu.peak(lambda: None, torch.device("cuda")) == 2.0
