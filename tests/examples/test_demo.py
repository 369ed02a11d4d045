"""The parts of the demo at tiny sizes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import _demo_cells
import _demo_digits
import _demo_posterior
import _demo_report
import _demo_table

import made_flows as mf


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("pixels", [2, 5])
def test_mixture_of_bernoullis_is_normalised(components: int, pixels: int) -> None:
    x = (torch.rand(50, 5) < torch.linspace(0.1, 0.9, 5)).float()
    mixture = _demo_digits.BernoulliMixture(x, components)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)))
    total = mixture.log_prob(every).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), atol=1e-5, rtol=0)


def test_mixture_finds_two_kinds() -> None:
    kinds = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    x = kinds[torch.arange(100) % 2]
    mixture = _demo_digits.BernoulliMixture(x, 2)
    nll = -mixture.log_prob(x).mean()
    assert nll < 1.1 * torch.log(torch.tensor(2.0))
    assert (mixture.sample(20)[:, None] == kinds).all(-1).any(-1).float().mean() > 0.8


@pytest.mark.parametrize("prefix", [0, 3, 6])
def test_completion_keeps_what_is_known(prefix: int) -> None:
    model = mf.BernoulliMADE(6, hidden_features=(8,))
    known = (torch.rand(4, 6) < 0.5).float()
    drawn = _demo_digits.complete(model, known, prefix, draws=50)
    assert drawn.shape == (50, 4, 6)
    assert ((drawn == 0) | (drawn == 1)).all()
    assert (drawn[..., :prefix] == known[:, :prefix]).all()
    assert all(len(drawn[..., i].unique()) == 2 for i in range(prefix, 6))


def test_completion_follows_the_conditional() -> None:
    # The second half copies the first one: given a first half, only its copy may follow.
    halves = torch.eye(3)[torch.arange(300) % 3]
    model = mf.BernoulliMADE(6, hidden_features=(32,), direct=True)
    mf.fit(
        model, torch.cat([halves, halves], dim=1), validation=None,
        learning_rate=1e-2, max_epochs=150, progress=False, seed=0,
    )  # fmt: skip
    known = torch.cat([torch.eye(3), torch.zeros(3, 3)], dim=1)
    drawn = _demo_digits.complete(model, known, 3, draws=200)
    right = (drawn[..., 3:] == drawn[..., :3]).all(-1).float().mean()
    assert right > 0.8


def test_columns_are_standardised_by_the_training_rows() -> None:
    cells = _demo_cells.load()
    torch.testing.assert_close(cells.train.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(cells.train.std(0), torch.ones(30), atol=1e-5, rtol=0)
    assert sum(map(len, cells[:3])) == 569


def test_bandwidth_is_the_best_of_the_validation_rows() -> None:
    cells = _demo_cells.load()
    kernels = _demo_cells.Kernels(cells)
    chosen = kernels.log_prob(cells.validation).mean()
    for width in (0.1, 2.0):
        other = type(kernels.best)(bandwidth=width).fit(cells.train.numpy())
        assert chosen > other.score_samples(cells.validation.numpy()).mean()
    assert kernels.sample((7,)).shape == (7, 30)


def test_every_network_has_a_row_and_scores_and_samples() -> None:
    rows = torch.randn(4, 5)
    names = []
    for name, make in _demo_cells.networks(5):
        names.append(name)
        density = make().eval()()
        with torch.no_grad():
            assert density.log_prob(rows).shape == (4,)
            assert density.sample((3,)).shape == (3, 5)
    assert len(set(names)) == len(names) >= 4


def test_pictures_are_drawn(tmp_path: Path) -> None:
    cells = _demo_cells.load()
    normal = _demo_cells.full_gaussian(cells)
    _demo_cells.draw(cells, {"Gaussian": normal}, tmp_path / "cells.png")
    digits = _demo_digits.load()
    mixture = _demo_digits.BernoulliMixture(digits.train, 1)
    made = mf.BernoulliMADE(64, hidden_features=(64,))
    _demo_digits.draw(digits, {"a": mixture, "b": made}, made, tmp_path / "digits.png", columns=8)
    for name in ("cells", "digits"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def row_of(name: str, *scores: float, **others: float) -> _demo_report.Row:
    return _demo_report.Row(name, torch.tensor(scores), 12.3, 0.001, **others)


def test_table_lines_up() -> None:
    rows = [row_of("one", -1.0, -3.0, half=-0.5), row_of("another model", 10.0, 10.5)]
    heading, one, another = _demo_report.table(rows).splitlines()
    assert len(heading) == len(one) == len(another) < 80
    assert one.index("±") == another.index("±")
    assert "-2.00 ± 1.00" in one
    assert "-0.50" in one
    assert "1.00 ms" in one
    assert "12.3 s" in another
    assert "lower half" in heading
    assert "lower half" not in _demo_report.table(rows[1:])


def test_the_best_rows_are_those_that_paired_differences_cannot_tell_apart() -> None:
    rows = [
        row_of("best", 1.0, 20.0, 3.0, 40.0),
        row_of("level", 3.0, 18.0, 4.0, 37.0),  # half a nat behind, give or take more
        row_of("behind", 0.5, 19.4, 2.5, 39.4),  # as far behind, but on every row
    ]
    assert _demo_report.level_with_the_best(rows) == [True, True, False]
    marks = [line[0] for line in _demo_report.table(rows).splitlines()[1:]]
    assert marks == ["*", "*", " "]
    assert _demo_report.best_names(rows) == "best and level"
    assert _demo_report.best_names(rows[2:]) == "behind"


def test_what_takes_long_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with _demo_report.announced("a wait", after=60.0):
        pass
    assert capsys.readouterr().out == ""
    with _demo_report.announced("a wait", after=0.0):
        time.sleep(0.2)
    assert capsys.readouterr().out == "  a wait\n"


def test_the_page_shows_every_part() -> None:
    parts = [
        _demo_report.Part("A & B", "a table", "a finding", Path("folder/a.png")),
        _demo_report.Part("No picture", "text", "another finding"),
    ]
    page = _demo_report.page(parts)
    for text in ("A &amp; B", "a table", "a finding", 'src="a.png"', "another finding"):
        assert text in page


def test_posterior_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyro")
    monkeypatch.setattr(_demo_posterior, "STEPS", 3)
    monkeypatch.setattr(_demo_posterior, "DRAWS", 100)
    monkeypatch.setattr(_demo_posterior, "QUICK", True)  # the whole demo runs in CI as well
    part = _demo_posterior.run()
    assert "AutoIAF" in part.text
    assert "rust it" in part.text
    assert max(map(len, part.text.splitlines())) < 80


def test_mean_and_its_error() -> None:
    mean, error = _demo_report.mean_and_error(torch.tensor([1.0, 3.0]))
    assert (mean, error) == (2.0, pytest.approx(1.0))


def test_hidden_values_are_filled_in_nearer_than_by_medians() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    truth = {"a": a, "b": 2 * a + 0.1 * rng.normal(size=300)}
    holes = _demo_table.with_holes(truth, rng)
    assert all(0.1 < np.isnan(column).mean() < 0.2 for column in holes.values())
    model = mf.fit_table(holes, max_epochs=15, progress=False, seed=0)
    ours, simple = _demo_table.filling_errors(model, holes, truth)
    assert ours < 0.5 * simple


def test_columns_by_themselves_read_no_others() -> None:
    columns = _demo_table.load()
    model = _demo_table.apart(columns)
    table = {name: values[:4] for name, values in columns.items()}
    other = {**table, "alcohol": table["alcohol"] + 0.1}
    ours, theirs = model.score_columns(table), model.score_columns(other)
    assert {name for name in table if not np.allclose(ours[name], theirs[name])} == {"alcohol"}
