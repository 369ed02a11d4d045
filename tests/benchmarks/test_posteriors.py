"""The benchmark of variational posteriors: its models, its resumed runs, its page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyro")

from pyro import poutine

from benchmarks import posteriors as benchmark
from benchmarks._posterior_models import decaying_sums, funnel_draws, posteriors
from benchmarks.posteriors import (
    GUIDES,
    OURS,
    SAME_SHAPE,
    Found,
    Result,
    Training,
    over_seeds,
    section,
    train,
)


@pytest.fixture(autouse=True)
def _without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MADE_FLOWS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_posteriors_without_data() -> None:
    found = {posterior.name: posterior for posterior in posteriors()}
    assert list(found) == ["eight schools, centred", "funnel"]
    assert found["eight schools, centred"].reference is None
    # A normal z of standard deviation 3, and x that are normal given z.
    draws = funnel_draws()
    z, x = draws[:, :1], draws[:, 1:]
    assert float(z.std()) == pytest.approx(3, rel=0.02)
    assert float((x * (-z / 2).exp()).std()) == pytest.approx(1, rel=0.02)


def test_posteriors_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "posteriors").mkdir()
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "posteriors" / "arK-arK.npz",
        data_y=rng.normal(size=20),
        data_K=2,
        draws=rng.normal(size=(2, 50, 4)),
        names=np.array(["alpha", "beta[1]", "beta[2]", "sigma"]),
    )
    monkeypatch.setenv("MADE_FLOWS_DATA", str(tmp_path))
    ark = posteriors()[-1]
    assert ark.name == "arK"
    assert ark.reference is not None
    assert ark.reference.shape == (100, 4)
    result = train(ark, OURS, steps=2, evaluated=100)
    assert result.failed == ""
    assert result.means is not None


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_decaying_sums_are_the_recursion(length: int) -> None:
    x, factor = torch.rand(3, length), torch.rand(3, 1)
    expected, last = [], torch.zeros(3, 1)
    for t in range(length):
        last = factor * last + x[:, t : t + 1]
        expected.append(last)
    torch.testing.assert_close(decaying_sums(x, factor), torch.cat(expected, dim=1))


@pytest.mark.parametrize("guide", GUIDES)
def test_every_guide_is_trained_by_itself(guide: str) -> None:
    (funnel,) = (posterior for posterior in posteriors() if posterior.name == "funnel")
    one, other = Training(funnel, guide), Training(funnel, guide)
    one.step()
    weights, sites = one.sample(50)
    assert weights.shape == (50,)
    assert {name: value.reshape(50, -1).shape[1] for name, value in sites.items()} == {
        "z": 1,
        "x": 9,
    }
    # Two trainings of one kind of guide do not share their parameters.
    before = [weight.clone() for weight in one.guide.parameters()]
    for _ in range(2):
        other.step()
    assert all(map(torch.equal, before, one.guide.parameters()))


def test_log_weights_are_those_of_the_traces() -> None:
    (funnel,) = (posterior for posterior in posteriors() if posterior.name == "funnel")
    training = Training(funnel, OURS)
    training.step()
    weights, sites = training.sample(6)
    for i in range(6):
        values = {name: value[i].reshape(-1) for name, value in sites.items()}
        values["z"] = values["z"].squeeze()
        model = poutine.trace(poutine.condition(funnel.model, values)).get_trace()
        expected = model.log_prob_sum() - training.guide.log_prob(values).detach()
        assert float(weights[i]) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


def test_found_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, float]:
        calls.append(None)
        return {"elbo": math.nan, "k_hat": 0.5}

    for _ in range(2):
        found = Found(tmp_path / "state")("funnel, long--AutoIAFNormal, 3 of [64, 64]", compute)
        assert math.isnan(found["elbo"])
    assert len(calls) == 1
    looking = Found(tmp_path / "state", only_look=True)
    assert looking("another", compute) is None
    assert looking("funnel, long--AutoIAFNormal, 3 of [64, 64]", compute) is not None
    assert len(calls) == 1


def test_a_guide_that_diverges_is_a_row_of_the_table() -> None:
    results = {
        OURS: Result(elbo=-1.0, error=0.01, k_hat=0.3, log_evidence=-0.9, means=0.02, sds=None),
        SAME_SHAPE: Result(elbo=-1.5, error=0.02, k_hat=0.8, log_evidence=-0.95),
        "AutoNormalizingFlow, 1 spline": Result(failed="not finite"),
    }
    table, line = section("name", results, {OURS: (0.012, 1.1), SAME_SHAPE: (0.011, 1.0)})
    assert "about -0.90" in table
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[4:]]
    assert rows[2] == [f"**{OURS}**", "**-1.000 ± 0.010**", "0.30", "0.020", "-", "12.0", "1.10"]
    assert rows[3] == [SAME_SHAPE, "-1.500 ± 0.020", "0.80", "-", "-", "11.0", "1.00"]
    assert rows[4][1:] == ["diverged", "-", "-", "-", "-", "-"]
    assert line == ["name", "-1.000", SAME_SHAPE, "-1.500", "+0.500", "1.10"]


def test_seeds_are_averaged_and_a_diverged_one_counts() -> None:
    results = [Result(elbo=-1.0), Result(elbo=-2.0), Result(elbo=-4.5)]
    assert over_seeds("p", OURS, results) == [
        "p", f"**{OURS}**", "-2.500", "-4.500", "-1.000", "3",
    ]  # fmt: skip
    assert over_seeds("p", SAME_SHAPE, [*results, Result(failed="x")])[2:4] == ["-inf", "-inf"]


def test_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--quick", "--guides", OURS, SAME_SHAPE, "--threads", str(threads)]
    for _ in range(2):  # the second time, from what was found
        benchmark.main([*arguments, "--posteriors", "funnel"])
    page = (tmp_path / "output" / "benchmarks" / "posteriors.md").read_text(encoding="utf-8")
    assert "A quick run: its numbers mean nothing" in page
    assert "## funnel" in page
    assert page.count(f"| **{OURS}**") == 1
    assert "## Over seeds" in page
    assert len(list((tmp_path / "output" / "benchmarks" / "posteriors-quick").glob("*.json"))) == 5
    assert "written to" in capsys.readouterr().out
    benchmark.main([*arguments, "--write", "--runs", "nothing", "--posteriors", "funnel"])
    assert (
        "| funnel    |       - |"
        in (tmp_path / "output" / "benchmarks" / "posteriors.md").read_text()
    )
    with pytest.raises(SystemExit, match="funnel"):
        benchmark.main([*arguments, "--posteriors", "another"])
