"""Classes for Ray Data: each batch as one process has it, and the whole way through a local Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_flows as mf
from made_flows.ray import Sample, Score

X = np.random.default_rng(0).normal(size=(50, 2)) * 3 + 100
TABLE = {"a": X[:, 0], "b": X[:, 1], "word": np.array(["x", "y"] * 25)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> dict[str, str]:
    folder, options = tmp_path_factory.mktemp("models"), {"max_epochs": 1, "progress": False}
    torch.manual_seed(0)
    models = {
        "flow": mf.MAF(2, transforms=1, hidden_features=(8,)),
        "given": mf.GaussianMADE(1, 1, hidden_features=(8,)),
    }
    mf.fit(models["flow"], X, seed=0, **options)
    mf.fit(models["given"], X[:, :1], X[:, 1:], seed=0, **options)
    models["table"] = mf.fit_table(TABLE, seed=0, options={"hidden_features": (8,)}, **options)
    for name, model in models.items():
        mf.save(model, folder / name)
    return {name: str(folder / name) for name in models}


def test_scores_are_those_of_the_model(files: dict[str, str]) -> None:
    batch = TABLE | {"id": np.arange(50)}
    scored = Score(files["flow"], ["a", "b"], output="score")(batch)
    assert mf.load(files["flow"])().log_prob(torch.as_tensor(X)).tolist() == pytest.approx(
        scored.pop("score").tolist()
    )
    assert scored == batch
    given = Score(files["given"], ["a"], ["b"])(batch)["log_prob"]
    rows = torch.as_tensor(X)
    expected = mf.load(files["given"])(rows[:, 1:]).log_prob(rows[:, :1])
    np.testing.assert_allclose(given, expected.detach().numpy(), rtol=1e-5)
    table = mf.load(files["table"])
    np.testing.assert_array_equal(
        Score(files["table"])(TABLE)["log_prob"], table.score_samples(TABLE)
    )


OTHERS: dict[str, Any] = {
    "numbers": np.arange(50),
    "words": np.array([f"row {i}" for i in range(50)]),
    "vectors": np.zeros((50, 4)),
    "objects": np.array([{"at": i} for i in range(50)]),
    "nothing": np.full(50, np.nan),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["flow", "table"])
def test_columns_of_no_concern_are_passed_on(name: str, kind: str, files: dict[str, str]) -> None:
    score, other = Score(files[name], ["a", "b"] if name == "flow" else None), OTHERS[kind]
    scored = score({"id": other, **TABLE})
    assert scored["id"] is other
    np.testing.assert_array_equal(scored["log_prob"], score(TABLE)["log_prob"])
    empty = score({column: values[:0] for column, values in {"id": other, **TABLE}.items()})
    assert {column: len(values) for column, values in empty.items()} == dict.fromkeys(scored, 0)
    assert empty["log_prob"].dtype == scored["log_prob"].dtype


def test_columns_of_other_types_lose_no_digit(files: dict[str, str]) -> None:
    # Apart in double precision alone: integers beside single precision keep all of theirs.
    batch = {"a": np.float32([100, 101]), "b": np.array([2**24 + 1, 2**24 + 3])}
    score = Score(files["flow"], ["a", "b"])
    assert score.rows(batch, ["b", "a"])[:, 0].tolist() == batch["b"].tolist()
    assert score(batch)["log_prob"].shape == (2,)


@pytest.mark.parametrize("name", ["flow", "table"])
def test_what_is_drawn_depends_on_the_number_alone(name: str, files: dict[str, str]) -> None:
    columns = ["a", "b"] if name == "flow" else None
    draw, ids = Sample(files[name], columns, seed=3), np.arange(4080, 4110)
    whole = draw({"id": ids})
    parts = [Sample(files[name], columns, seed=3)({"id": part}) for part in np.split(ids[::-1], 3)]
    for column in ("a", "b", *(["word"] if name == "table" else [])):
        joined = np.concatenate([part[column] for part in parts])[::-1]
        assert (joined == whole[column]).all()
        assert len(set(whole[column].tolist())) == (2 if column == "word" else 30)
    other = Sample(files[name], columns, seed=4)({"id": ids})
    assert (other["a"] != whole["a"]).all()


@pytest.mark.parametrize("kind", ["array", "polars", "pyarrow"])
def test_tables_of_any_kind_draw_columns(kind: str, tmp_path: Path) -> None:
    table: Any = {"x0": X[:, 0], "x1": X[:, 1]}
    if kind != "array":
        library: Any = pytest.importorskip(kind)
        table = library.DataFrame(table) if kind == "polars" else library.table(table)
    model = mf.TableMADE.from_data(X if kind == "array" else table, hidden_features=(4,))
    mf.save(model, tmp_path / "m")
    draw = Sample(tmp_path / "m")
    drawn = draw({"id": np.arange(3)})
    assert {name: values.shape for name, values in drawn.items()} == dict.fromkeys(
        ["id", "x0", "x1"], (3,)
    )
    nothing = draw({"id": np.arange(0)})  # a block of no rows has the same columns
    assert {name: values.dtype for name, values in nothing.items()} == {
        name: values.dtype for name, values in drawn.items()
    }


def test_draws_under_contexts_repeat(files: dict[str, str]) -> None:
    draw = Sample(files["given"], ["drawn"], ["b"], seed=3)
    first, second = (draw(TABLE)["drawn"] for _ in range(2))
    assert first.shape == (50,)
    assert (first == second).all()
    assert abs(first.mean() - 100) < 3


BAD = {
    "one column": (lambda f: Score(f["flow"], ["a"]), ValueError, "columns to name 2 features"),
    "no columns": (lambda f: Score(f["flow"]), TypeError, "columns to be a sequence of names"),
    "a name": (lambda f: Score(f["flow"], "ab"), TypeError, "columns to be a sequence of names"),
    "no context": (lambda f: Score(f["given"], ["a"]), ValueError, "context to name 1 columns"),
    "columns of a table": (lambda f: Score(f["table"], ["a"]), ValueError, "those of the table"),
    "a table's column that is not there": (
        lambda f: Score(f["table"])({"id": X[:, 0], "a": X[:, 0], "b": X[:, 1]}), ValueError,
        r"the columns \['word'\]; got .'a', 'b', 'id'",
    ),
    "no file": (lambda f: Score("none", ["a"]), FileNotFoundError, "path to be a file"),
    "a column that is not there": (
        lambda f: Score(f["flow"], ["a", "c"])(TABLE), ValueError, r"the columns \['c'\]; got",
    ),
    "words": (lambda f: Score(f["flow"], ["a", "word"])(TABLE), TypeError, "'word' to hold num"),
    "NaN": (
        lambda f: Score(f["flow"], ["a", "b"])({"a": X[:, 0], "b": X[:, 1] * np.nan}), ValueError,
        "batch to be finite; got nan in row 0, column 1",
    ),
    "no numbers of rows": (
        lambda f: Sample(f["flow"], ["a", "b"])(TABLE), ValueError, "to have the column 'id'",
    ),
    "numbers below zero": (
        lambda f: Sample(f["flow"], ["a", "b"])({"id": np.array([-1])}), ValueError, "from 0",
    ),
    "a column twice": (lambda f: Sample(f["flow"], ["a", "a"]), ValueError, "once; got .'a'"),
    "a column that is there": (
        lambda f: Sample(f["flow"], ["a", "b"])({"id": np.arange(2), "a": np.zeros(2)}), ValueError,
        "without the columns that are added; got .'a'",
    ),
    "scores that are there": (
        lambda f: Score(f["flow"], ["a", "b"])(TABLE | {"log_prob": X[:, 0]}), ValueError,
        "got .'log_prob'",
    ),
    "a seed": (lambda f: Sample(f["flow"], ["a", "b"], seed=-1), ValueError, "seed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, files: dict[str, str]) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(files)


@pytest.mark.slow
def test_a_local_ray_does_as_one_process() -> None:
    """The example compares what two workers score with this process, and says so."""
    pytest.importorskip("ray")
    import os
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, str(root / "examples/score_with_ray.py")],
        env=os.environ | {"MADE_FLOWS_QUICK": "1", "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "5000 rows drawn" in run.stdout
