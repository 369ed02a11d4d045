"""The benchmark of the slow direction: its iteration is an inverse, its page survives a cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import inverse
from benchmarks._peers import TOLERANCE, Jacobi, Ours
from benchmarks.harness import Settings, run_contenders


@pytest.mark.parametrize("early_stop", [False, True])
def test_jacobi_iteration_is_the_inverse(early_stop: bool) -> None:
    layer, exact = Jacobi(5, 16, early_stop=early_stop), Ours(5, 16)
    exact.module.load_state_dict(layer.module.state_dict())
    z = torch.randn(7, 5)
    with torch.no_grad():
        found, expected = layer.slow(z), exact.slow(z)
    torch.testing.assert_close(found, expected, atol=10 * TOLERANCE, rtol=1e-4)


def test_a_run_that_is_cut_off_leaves_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[str] = []

    def run(contenders: Any, settings: Settings, title: str) -> Any:
        cases.append(title)
        if len(cases) == 2:
            raise KeyboardInterrupt
        return run_contenders(contenders[:2], replace(settings, seconds=0.001), title)

    monkeypatch.setattr(inverse, "run_contenders", run)
    with pytest.raises(KeyboardInterrupt):
        inverse.measure(Settings(quick=True, output=tmp_path))
    page = (tmp_path / "inverse.md").read_text(encoding="utf-8")
    assert "Cut off" in page
    assert cases[0].removeprefix("inverse, ") in page
    assert page in capsys.readouterr().out
