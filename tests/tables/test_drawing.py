"""Rows, and what they lack, drawn some at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.tables import drawing


class _Says:
    """Draws of rows that say under which code they were drawn, and how many before them."""

    def __init__(self, codes: Tensor | None) -> None:
        self.codes = torch.full((1, 1), 7.0) if codes is None else codes
        self.alone, self.drawn = codes is None, 0

    def sample(self, shape: tuple[int]) -> Tensor:
        numbers = torch.arange(self.drawn, self.drawn + shape[0]).float()
        self.drawn += shape[0]
        found = torch.stack(torch.broadcast_tensors(self.codes[:, 0], numbers[:, None]), dim=-1)
        return found[:, 0] if self.alone else found


@pytest.mark.parametrize("most", [1, 4, 6, 1000])
@pytest.mark.parametrize("contexts", [None, 1, 5, 0])
def test_rows_are_drawn_in_pieces_and_those_of_a_context_stand_together(
    monkeypatch: pytest.MonkeyPatch, contexts: int | None, most: int
) -> None:
    monkeypatch.setattr(drawing, "_ROWS", most)
    codes = None if contexts is None else torch.arange(float(contexts))[:, None]
    rows = drawing.draw_rows(_Says, codes, 3, False)
    each = [7.0] if contexts is None else range(contexts)
    expected = [[float(code), float(number)] for code in each for number in range(3)]
    assert rows.tolist() == expected


@pytest.fixture(scope="module")
def model() -> Any:
    rng = np.random.default_rng(0)
    table = {"a": rng.normal(size=60), "kind": rng.choice(["x", "y"], 60)}
    return mf.fit_table(table, max_epochs=1, progress=False, seed=0)


HOLES = {"a": np.array([np.nan, 1.0, np.nan]), "kind": np.array(["x", "y", "x"])}

CALLS = {
    "sample": lambda model, **more: model.sample(9, **more),
    "fill": lambda model, **more: model.fill(HOLES, draws=2, **more),
    "impute": lambda model, **more: model.impute(HOLES, **more),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bar_shows_itself_after_two_seconds_unless_none_is_wanted(
    name: str, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "_ROWS", 3)
    monkeypatch.setattr(drawing, "_HOLES", 1)
    CALLS[name](model)
    assert capsys.readouterr().err == ""  # it was quick
    bar = drawing.tqdm
    monkeypatch.setattr(drawing, "tqdm", lambda delay, **more: bar(**more, mininterval=0))
    CALLS[name](model)
    assert "100%" in capsys.readouterr().err
    CALLS[name](model, progress=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError, match="Expected progress to be True or False"):
        CALLS[name](model, progress=3)
