"""The benchmark of fitted guides: errors by weights, verdicts that were wrong, its page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pyro")

from benchmarks._reference import Reference
from benchmarks.fit_guide import Result, _off, main, row, summary


def test_errors_by_weights() -> None:
    reference = torch.randn(50_000, 2) * torch.tensor([1.0, 4.0]) + torch.tensor([0.0, 8.0])
    drawn = torch.tensor([[0.0, 4.0], [0.0, 12.0], [2.0, 100.0]])
    means, sds = _off(drawn, torch.tensor([0.5, 0.5, 0.0]), Reference.of(reference))
    assert means == pytest.approx(0.0, abs=0.03)
    assert sds == pytest.approx(1.0, abs=0.03)  # the first column has no spread at all


@pytest.mark.parametrize(
    ("grade", "means", "weighted", "wrong"),
    [
        ("as drawn", 0.6, 0.1, True),
        ("as drawn", 0.4, 0.9, False),
        ("weighted", 0.9, 0.4, False),
        ("weighted", 0.4, 0.6, True),
        ("not yet", 9.0, 9.0, False),
        ("as drawn", None, None, False),
    ],
)
def test_wrong_verdicts(
    grade: str, means: float | None, weighted: float | None, wrong: bool
) -> None:
    result = Result(grade=grade, means=means, weighted_means=weighted)
    assert result.wrong == wrong
    assert ("(wrong)" in row("name", 0, "fast", result)[3]) == wrong
    assert f"| {grade} " in summary([result])


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MADE_FLOWS_DATA", raising=False)
    folders = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    main(["--quick", *folders])
    page = (tmp_path / "fit_guide.md").read_text()
    assert "eight schools, centred" in page
    assert "failed" not in page
    # What is finished is not fitted again.
    main(["--quick", "--write", *folders])
    assert (tmp_path / "fit_guide.md").read_text() == page
