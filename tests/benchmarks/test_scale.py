"""The benchmark of scaling: its rows, and one case."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import scale


def test_a_case_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    scale.write_rows(path, 500)
    assert np.load(path).shape == (500, scale.FEATURES)
    fit, of_fit, score, of_score = scale.work(path, 1)
    assert min(fit, score) > 0
    assert min(of_fit, of_score) >= 0
