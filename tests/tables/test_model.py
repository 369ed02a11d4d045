"""Tables of mixed columns against enumeration, quadrature and brute force."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import made_flows as mf
from made_flows.tables.parts import _log_ndtr
from made_flows.tables.schema import Schema
from tests.helpers.density_models import scatter

RNG = np.random.default_rng(0)
N = 400

# A column of every kind: its values, its kind, and the values over which probability adds up to one
# (a fine grid of a density; of a discrete column all that matter).
COLUMNS: dict[str, tuple[Any, Any, np.ndarray]] = {
    "real": (RNG.normal(3.0, 2.0, N), "real", np.linspace(-60, 70, 20_001)),
    "real, heavy tails": (RNG.standard_t(2, N), "real", np.sinh(np.linspace(-12, 12, 20_001))),
    "spline": (RNG.normal(3.0, 2.0, N), "spline", np.linspace(-60, 70, 20_001)),
    "positive": (RNG.lognormal(1, 1, N), "positive", np.exp(np.linspace(-25, 28, 20_001))),
    "bounded": (
        RNG.beta(2, 3, N), ("bounded", 0, 1), 1 / (1 + np.exp(-np.linspace(-35, 35, 20_001))),
    ),
    "count": (RNG.poisson(4.0, N), "count", np.arange(4000)),
    "amount": (np.round(RNG.lognormal(1, 0.5, N), 1), "amount", np.arange(40_000) / 10),
    "rounded": (np.round(RNG.normal(0, 1, N), 1), "rounded", np.arange(-2000, 2001) / 10),
    "binary": (RNG.random(N) < 0.3, "binary", np.array([True, False])),
    "category": (RNG.choice(["a", "b", "c"], N), "category", np.array(["a", "b", "c", "new"])),
    "date": (
        np.datetime64("2024-01-01") + RNG.integers(0, 900, N).astype("m8[D]"), "date",
        np.datetime64("2024-01-01") + np.arange(-20_000, 20_000).astype("m8[D]"),
    ),
    "zero-inflated": (
        np.where(RNG.random(N) < 0.4, 0.0, RNG.lognormal(0, 1, N)), "zero_inflated",
        np.exp(np.linspace(-25, 28, 20_001)),
    ),
    "zero-inflated count": (
        np.where(RNG.random(N) < 0.4, 0, RNG.poisson(9.0, N)), "zero_inflated", np.arange(6000),
    ),
    "zero-inflated, both signs": (
        np.where(RNG.random(N) < 0.4, 0.0, RNG.normal(0, 3, N)), "zero_inflated",
        np.sinh(np.linspace(-12, 12, 20_001)),
    ),
    "amount, some often": (
        np.where(RNG.random(N) < 0.6, RNG.choice([5.0, 9.9, 20.0], N),
                 np.round(RNG.lognormal(1, 0.5, N), 1)), "amount", np.arange(40_000) / 10,
    ),
    "zero-inflated count, one often": (
        np.select([RNG.random(N) < 0.4, RNG.random(N) < 0.3], [0, 30], RNG.poisson(9.0, N)),
        "zero_inflated", np.arange(6000),
    ),
}  # fmt: skip
DENSITIES = ("real", "spline", "positive", "bounded")


def model_of(spread: float = 0.4, **names: str) -> tuple[mf.TableMADE, dict[str, Any]]:
    """A scattered float64 model of columns x="real" and so on, and its table."""
    table = {name: COLUMNS[kind][0] for name, kind in names.items()}
    kinds = {name: COLUMNS[kind][1] for name, kind in names.items()}
    torch.manual_seed(1)
    model = mf.TableMADE.from_data(table, kinds, hidden_features=(32,), components=3)
    model.head.share.uniform_(0.2, 0.6)
    model.head.plain.uniform_(0.1, 0.4)
    return scatter(model, spread).double().eval(), table


def total(model: mf.TableMADE, kind: str, fixed: dict[str, Any]) -> float:
    """The probability of all values of the column x, of rows with other values fixed."""
    values = COLUMNS[kind][2]
    table = {"x": values} | {name: [value] * len(values) for name, value in fixed.items()}
    p = np.exp(model.score_samples(table))
    if model.schema.columns[0].kind not in (*DENSITIES, "zero_inflated"):
        return float(p.sum())
    if kind.startswith("zero-inflated count"):
        return float(p.sum())
    result = float(integrate.trapezoid(p[values != 0], values[values != 0]))
    if model.schema.columns[0].kind == "zero_inflated":
        at_zero = {"x": [0.0]} | {name: [value] for name, value in fixed.items()}
        result += float(np.exp(model.score_samples(at_zero)[0]))
    return result


@pytest.mark.parametrize("kind", COLUMNS)
def test_probability_adds_up_to_one(kind: str) -> None:
    model, _ = model_of(x=kind)
    assert total(model, kind, {}) == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("kind", COLUMNS)
def test_probability_given_another_column_adds_up_to_its_own(kind: str) -> None:
    model, _ = model_of(x=kind, c="category")
    model = model.arranged([1, 0])
    summed = 0.0
    for value in ("a", "b", "c", "new"):
        joint = total(model, kind, {"c": value})
        missing = None if kind in ("binary", "category") else np.datetime64("NaT")
        missing = missing if kind in ("binary", "category", "date") else math.nan
        alone = math.exp(model.score_samples({"x": [missing], "c": [value]})[0])
        assert joint == pytest.approx(alone, abs=2e-5)
        summed += joint
    assert summed == pytest.approx(1.0, abs=5e-5)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0, 1.0, 2.0, math.nan], "1, 2"),
        ([0.5, 0.5, 2.0, math.nan], "0.5, 2"),
        (["", "", "b"], "'', b"),
        ([True, True, False], "True, False"),
        (np.array(["2024-01-02", "2024-01-02", "2024-03-04"], "M8[D]"), "2024-01-02, 2024-03-04"),
        (np.array([60, 60, 120], "m8[s]"), "60000000 microseconds, 120000000 microseconds"),
    ],
)
def test_categories_are_shown_as_a_person_reads_them(values: Any, shown: str) -> None:
    table = {"x": np.repeat(np.asarray(values), 10)}
    assert Schema.of(table, {"x": "category"}).columns[0].summary() == shown


def test_values_that_repeat_have_a_probability_of_their_own() -> None:
    column = model_of(x="amount, some often")[0].schema.columns[0]
    assert set(column.frequent) == {5.0, 9.9, 20.0}
    assert "in steps of 0.1, often " in column.summary()
    for smooth in ("count", "amount", "rounded", "date"):
        assert model_of(x=smooth)[0].schema.columns[0].frequent == ()


@pytest.mark.parametrize("kind", COLUMNS)
def test_samples_follow_the_scores(kind: str) -> None:
    # False alarms: one in ten thousand for each kind, and the seed is fixed.
    model, _ = model_of(x=kind)
    drawn = model.sample(4000, seed=3)["x"]
    values = COLUMNS[kind][2]
    seen = values[values != "new"] if kind == "category" else values
    p = np.exp(model.score_samples({"x": seen}))
    column = model.schema.columns[0]
    if column.kind == "zero_inflated":
        share = float(np.exp(model.score_samples({"x": [0.0]})[0]))
        assert stats.binomtest(int((drawn == 0).sum()), 4000, share).pvalue > 1e-4
        drawn, p, seen = drawn[drawn != 0], p[seen != 0], seen[seen != 0]
    if kind in ("binary", "category"):
        expected = 4000 * p / p.sum()
        counts = np.array([(drawn == value).sum() for value in seen])
        assert stats.chisquare(counts, expected).pvalue > 1e-4
        return
    if column.kind == "date":
        seen, drawn = seen.astype("M8[D]").astype(float), drawn.astype("M8[D]").astype(float)
    if getattr(column, "step", 0):
        grid, cumulative = seen.astype(float), p.cumsum()
        assert np.isin(np.round(drawn.astype(float), 6), np.round(grid, 6)).all()
    else:
        widths = np.diff(seen)
        grid = seen
        cumulative = np.append(0.0, ((p[1:] + p[:-1]) / 2 * widths).cumsum())
    drawn = np.sort(drawn.astype(float))
    ranks = np.interp(drawn, grid, cumulative / cumulative[-1])
    # Of equal values, the last: there the two distribution functions are to agree.
    last = np.append(np.diff(drawn) > 0, True)
    distance = np.abs(ranks - (np.arange(len(drawn)) + 1) / len(drawn))[last]
    assert distance.max() < stats.kstwo.isf(1e-4, len(drawn))


def test_conditionals_against_brute_force() -> None:
    model, _ = model_of(c="category", b="binary", k="count")
    given = {"c": [None] * 3000, "b": [True] * 3000, "k": [5] * 3000}
    drawn = model.impute(given, seed=0)["c"]
    # The order that the conditional takes: what is observed first.
    last = model.arranged([1, 2, 0])
    rows = {"c": ["a", "b", "c"], "b": [True] * 3, "k": [5] * 3}
    joint = np.exp(last.score_samples(rows))
    counts = [(drawn == value).sum() for value in "abc"]
    assert stats.chisquare(counts, 3000 * joint / joint.sum()).pvalue > 1e-4


def test_scores_of_columns_are_conditionals_given_all_others() -> None:
    model, _ = model_of(c="category", x="real", k="count")
    row = {"c": ["b"], "x": [2.0], "k": [3]}
    scores = model.score_columns(row)
    orders = {"c": [1, 2, 0], "x": [0, 2, 1], "k": [0, 1, 2]}
    for name, order in orders.items():
        arranged = model.arranged(order)
        missing = {**row, name: [None if name == "c" else math.nan]}
        expected = arranged.score_samples(row)[0] - arranged.score_samples(missing)[0]
        assert scores[name][0] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(model.score_columns({**row, "x": [math.nan]})["x"][0])


def test_a_context_is_read_and_conditioned_on() -> None:
    table = {"x": COLUMNS["real"][0], "c": COLUMNS["category"][0], "age": COLUMNS["count"][0]}
    torch.manual_seed(0)
    model = scatter(mf.TableMADE.from_data(table, context=["c", "age"], hidden_features=(16,)))
    model.fit(table, max_epochs=1, progress=False)
    values = np.linspace(-60, 70, 20_001)
    for c in ("a", "b"):
        rows = {"x": values, "c": [c] * len(values), "age": [3] * len(values)}
        assert integrate.trapezoid(np.exp(model.score_samples(rows)), values) == pytest.approx(
            1, abs=1e-4
        )
    drawn = model.sample(2, context={"c": ["a", "b"], "age": [1, 2]}, seed=0)
    assert drawn["x"].shape == (4,)
    with pytest.raises(ValueError, match="context to be a table of 'c', 'age'"):
        model.sample(2)
    with pytest.raises(ValueError, match="hold a value in every row; got none in row 1 of 'c'"):
        model.score_samples({"x": [1.0, 2.0], "c": ["a", None], "age": [1, 2]})


def test_training_learns_a_dependence_through_missing_values() -> None:
    rng = np.random.default_rng(0)
    kind = rng.choice(["low", "high"], 600)
    size = np.where(kind == "low", 10.0, 20.0) + rng.normal(0, 1, 600)
    count = rng.poisson(np.where(kind == "low", 1, 8))
    size[rng.random(600) < 0.2] = np.nan
    table = {"kind": kind, "size": size, "count": count}
    model = mf.fit_table(
        table, seed=0, progress=False, max_epochs=30, options={"hidden_features": (64, 64)}
    )
    filled = model.fill({"kind": ["low", "high", None], "size": [np.nan, np.nan, 10.0],
                         "count": [1, 8, 1]})  # fmt: skip
    assert filled["size"][0] == pytest.approx(10, abs=1.0)
    assert filled["size"][1] == pytest.approx(20, abs=1.0)
    assert filled["kind"][2] == "low"
    assert "trained on 540 rows" in repr(model)
    drawn = model.sample(2000, seed=0)
    assert drawn["size"][drawn["kind"] == "low"].mean() == pytest.approx(10, abs=0.6)
    assert drawn["size"][drawn["kind"] == "high"].mean() == pytest.approx(20, abs=0.6)
    odd = {"kind": ["low", "low"], "size": [10.0, 20.0], "count": [1, 1]}
    scores = model.score_samples(odd)
    assert scores[0] > scores[1] + 3
    assert model.score_columns(odd)["size"][1] < -5
    mixed = model.score_samples(odd, orders=4)
    assert np.isfinite(mixed).all()


def test_files_hold_the_schema(tmp_path: Path) -> None:
    names = {kind.replace(" ", "_"): kind for kind in COLUMNS}
    model, table = model_of(0.5, **names)
    table["left"] = [f"row {i}" for i in range(N)]
    model = scatter(mf.TableMADE.from_data(table, context=["binary"]), 0.5).eval()
    model.trained_rows.fill_(7)
    mf.save(model, tmp_path / "table.safetensors")
    again = mf.load(tmp_path / "table.safetensors")
    shown = repr(again).splitlines()
    assert "trained on 7 rows" in shown[0]
    assert [line.split()[:2] for line in shown[2:4]] == [
        ["real", "real"],
        ["real,_heavy_tails", "real"],
    ]
    assert (len(shown), shown[-1]) == (12, f"  ... and {len(COLUMNS) + 1 - 9} more")
    assert str(again.schema) == str(model.schema)
    assert "left out" in str(model.schema)
    np.testing.assert_array_equal(model.score_samples(table), again.score_samples(table))
    later = ("share", "margin", "plain", "trained_rows", "lean")
    earlier = {k: v for k, v in again.state_dict().items() if k.split(".")[-1] not in later}
    again.load_state_dict(earlier)
    leans = [float(part.lean) for part in again.head.parts if hasattr(part, "lean")]
    assert leans
    assert not any(leans)
    with pytest.raises(ValueError, match="got one without 'real' and with 'reel'"):
        again.score_samples({("reel" if k == "real" else k): v for k, v in table.items()})


def test_what_is_observed_stays_as_it_is() -> None:
    names = {"x": "real", "c": "category", "b": "binary", "d": "date", "k": "count"}
    model, table = model_of(0.3, **names)
    holed = {name: np.array(values[:20]).copy() for name, values in table.items()}
    holed["k"] = holed["k"].astype(float)
    holed["c"], holed["b"] = holed["c"].astype(object), holed["b"].astype(object)
    rng = np.random.default_rng(0)
    for values in holed.values():
        kind = values.dtype.kind
        values[rng.random(20) < 0.3] = {"O": None, "M": np.datetime64("NaT")}.get(kind, np.nan)
    for filled in (model.impute(holed, seed=0), model.fill(holed, draws=3)):
        for name, values in holed.items():
            kept = np.array([v is not None and v == v for v in values])
            np.testing.assert_array_equal(filled[name][kept], values[kept])
            assert all(v is not None and v == v for v in filled[name])
    np.testing.assert_array_equal(
        model.impute(holed, seed=0)["x"], model.impute(holed, seed=0)["x"]
    )


def test_unseen_values_have_what_laplace_leaves_them() -> None:
    table = {"c": ["a"] * 60 + ["b"] * 39}
    model = mf.TableMADE.from_data(table)
    score = model.score_samples({"c": ["a", "b", "new"]})
    assert math.exp(score[2]) == pytest.approx(1 / 100)
    assert np.exp(score).sum() == pytest.approx(1, abs=1e-6)
    constant = mf.TableMADE.from_data({"c": [7] * 30, "x": np.arange(30.0) ** 1.5})
    assert constant.schema.columns[0].kind == "constant"
    assert (constant.sample(5)["c"] == 7).all()


@pytest.mark.parametrize("values", [[3.0, 100.0], ["a", "new"]])
def test_other_values_of_a_constant_column_say_nothing_of_the_others(values: list[Any]) -> None:
    x = RNG.normal(size=300)
    table = {"x": x, "y": np.sin(3 * x) + RNG.normal(size=300) / 10, "c": [values[0]] * 300}
    other = table | {"c": [values[1]] * 300}
    options: dict[str, Any] = {
        "options": {"hidden_features": (32,)},
        "max_epochs": 3,
        "progress": False,
        "seed": 0,
    }
    given = mf.fit_table(table, context=["c"], **options)
    with pytest.warns(UserWarning, match="'c' has values that no row had .*as '(100|new)'"):
        there = given.score_samples(other)
    np.testing.assert_array_equal(given.score_samples(table), there)
    joint = mf.fit_table(table, **options)
    apart = joint.score_samples(table) - joint.score_samples(other)
    np.testing.assert_allclose(apart, np.log(300), rtol=1e-5)


def test_counts_down_to_zero_have_gradients() -> None:
    # The cell of zero ends infinitely far out.
    table = {"n": np.arange(30), "x": np.arange(30) / 7}
    model = mf.TableMADE.from_data(table, {"n": "count"}, hidden_features=(8,))
    codes = model.schema.encode(table)[0]
    parameters = model.made(model.head.encode(codes, model.made.dtype)).detach().requires_grad_()
    loss = model.head.log_prob(codes, parameters).sum()
    (gradient,) = torch.autograd.grad(loss, parameters)
    assert bool(torch.isfinite(gradient).all())
    x = torch.tensor([-9e3, -1.1e4, -1e10, -1e33], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(_log_ndtr(x).sum(), x)
    torch.testing.assert_close(slope, -x.detach(), rtol=1e-7, atol=0)


def test_extreme_values_have_a_score() -> None:
    table = {"x": np.append(RNG.normal(size=200), 1e12), "k": np.append(RNG.poisson(3, 200), 10**9)}
    model = mf.TableMADE.from_data(table)
    history = model.fit(table, max_epochs=1, progress=False, seed=0)
    assert np.isfinite(history.train).all()
    odd = {"x": [0.0, 1e100, -1e100, 1e-300], "k": [3, 2**50, 0, 0]}
    assert not np.isnan(model.score_samples(odd)).any()
    offset = {"x": 1e9 + RNG.normal(size=200), "k": RNG.poisson(3, 200)}
    model = mf.TableMADE.from_data(offset)
    model.fit(offset, max_epochs=1, progress=False, seed=0)
    assert np.std(model.sample(500, seed=0)["x"]) < 10


STEPS = {
    "large numbers": (10**12 + np.arange(300) * 7 % 1000, "count"),
    "large numbers that differ little": (10**15 + np.arange(300) * 7 % 1000, "rounded"),
    "cents": (np.round(np.arange(300) % 100 * 1234.57 + 9e3, 2), "amount"),
    "halves": (1e9 + np.arange(300) * 7 % 100 / 2, "amount"),
    "the largest numbers": (2**52 + np.arange(300) * 7 % 1000, "rounded"),
    "repeats of many sizes": (np.repeat(np.exp(np.linspace(-16, 12, 150)), 2), "positive"),
    "numbers that are whole by rounding": (np.linspace(-1e90, 1e90, 300), "real"),
}


@pytest.mark.parametrize("name", STEPS)
def test_numbers_in_steps_come_back_to_the_last_digit(name: str) -> None:
    x, kind = STEPS[name]
    model = mf.TableMADE.from_data({"x": x}, hidden_features=(8,))
    assert model.schema.columns[0].kind == kind
    codes, _ = model.schema.encode({"x": x})
    exact = 0 if kind in ("count", "rounded", "amount") else 1e-14
    np.testing.assert_allclose(model.schema.decode(codes)["x"], x, rtol=exact)
    history = model.fit({"x": x}, validation=np.float32(0.1), max_epochs=1, progress=False)
    assert math.isfinite(history.validation[0])


IN_STEPS = ("count", "amount", "rounded", "date", "zero-inflated count", "amount, some often")


@pytest.mark.parametrize("kind", IN_STEPS)
def test_guesses_of_columns_in_steps_are_values_of_theirs(kind: str) -> None:
    x, said, values = COLUMNS[kind]
    held = "M8[us]" if kind == "date" else float
    table = {"x": x.astype(held)}
    table["x"][::3] = "NaT" if kind == "date" else np.nan
    model = mf.TableMADE.from_data(table, {"x": said}, hidden_features=(8,))
    filled = model.fill(table, draws=2)  # the median of two values may lie between them
    assert np.isin(filled["x"], values.astype(held)).all()
    assert np.isfinite(model.score_samples(filled)).all()


def test_draws_beyond_the_largest_integer_are_not_turned_round() -> None:
    column = mf.TableMADE.from_data({"n": 2 ** np.arange(50)}).schema.columns[0]
    assert column.kind == "count"
    near, far = np.array([1.0, 2.0]), np.array([1.0, 60.0])
    assert column.values(near).dtype == np.int64
    assert column.values(far)[1] > 2.0**63
    assert column.guess(np.stack([far] * 3))[1] > 2.0**63


def test_direct_connections_of_mixtures_learn_at_the_rate_of_other_weights() -> None:
    table = {"x": COLUMNS["real"][0], "c": COLUMNS["category"][0]}
    torch.manual_seed(0)
    model = mf.TableMADE.from_data(table, hidden_features=(8,))
    before = model.made.direct.weight.detach().clone()
    model.fit(table, max_epochs=1, batch_size=N, validation=None, average=0, progress=False,
              learning_rate=1e-3, sparsity=1e-9, seed=1)  # fmt: skip
    moved = (model.made.direct.weight.detach() - before).abs().amax(dim=1)
    logits = model.head.logits
    assert logits.tolist() == [False] * 24 + [True] * 3
    # A first step of Adam is the rate, whatever the gradient.
    assert 0.5e-3 < float(moved[~logits].max()) < 1.01e-3
    assert 1.5e-2 < float(moved[logits].max()) < 2.01e-2


def test_many_rows_of_mixed_columns_keep_the_lower_rate() -> None:
    """Rows of real values alone have the higher one, whatever their number."""
    x = np.random.default_rng(0).normal(size=3000)
    mixed = {"x": x, "kind": ["a", "b", "c"] * 1000}

    def first_step(rate: float | None) -> list[torch.Tensor]:
        model = mf.TableMADE.from_data(mixed, hidden_features=(8,))
        with torch.random.fork_rng():
            options = {"schedule": "constant", "max_epochs": 1, "progress": False, "seed": 0}
            model.fit(mixed, learning_rate=rate, **options)
        return [p.detach().clone() for p in model.parameters()]

    torch.manual_seed(0)
    found = first_step(None)
    torch.manual_seed(0)
    for p, q in zip(found, first_step(1e-3), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_training_ends_no_worse_than_independent_columns_on_rows_left_out() -> None:
    # A column of repeated values, which a network that learns too fast loses at once.
    rng = np.random.default_rng(0)
    ratio = np.where(rng.random(200) < 0.8, rng.integers(2, 6, 200), rng.gamma(9, 0.5, 200))
    table = {"ratio": ratio.round(2), "x": rng.normal(size=200), "c": rng.choice(["a", "b"], 200)}
    held_out = {name: values[150:] for name, values in table.items()}
    table = {name: values[:150] for name, values in table.items()}
    kinds = {"ratio": "amount"}
    torch.manual_seed(0)
    model = mf.TableMADE.from_data(table, kinds, hidden_features=(64,)).double()
    start = model.score_samples(held_out).mean()  # nearly independent columns
    model.fit(table, validation=held_out, max_epochs=5, learning_rate=0.3, progress=False, seed=0)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(3, generator=generator).argsort().tolist() for _ in range(8)]

    def score() -> Any:
        each = [model.arranged(order).score_samples(held_out).mean() for order in orders]
        return np.mean(each)

    head: Any = model.head
    pooled, share = score(), head.share + head.plain
    head.share.fill_(1.0)
    head.plain.zero_()
    independent = score()
    head.share.zero_()
    assert independent == pytest.approx(start, abs=0.1)
    assert score() < independent - 0.1, "the network alone is worse"
    assert pooled >= independent
    assert share[0] > 0.5
    assert bool(((share >= 0) & (share <= 1)).all())


@pytest.mark.parametrize("rows", [1, 400])
def test_shares_of_few_rows_are_about_those_of_all_columns(rows: int) -> None:
    rng = np.random.default_rng(0)
    table = {"x": rng.normal(size=50), "y": rng.normal(size=50)}
    model = mf.TableMADE.from_data(table, hidden_features=(8,))
    head: Any = model.head
    codes = torch.zeros(rows, 2)
    parameters = head.margin.expand(rows, 2, -1).clone()
    parameters[:, 0, 8:16] += 3.0  # of x the network's means are far off,
    parameters[:, 1, 16:24] -= 4.0  # of y its normals are narrower, and right
    parameters[:, 1, 8:16] = codes[:, 1:]
    head.set_share(codes, [parameters] * 8)
    share = head.share.tolist()
    assert share[0] > share[1]
    if rows == 1:
        assert share[0] - share[1] < 0.5
    else:
        assert share[0] > 0.95
        assert share[1] < 0.05


@pytest.mark.parametrize(
    "refused", [{"learning_rate": -1.0}, {"device": "gpu"}, {"validation": {"x": ["no number"]}}]
)
def test_a_call_of_fit_that_is_refused_leaves_scores_as_they_were(refused: dict[str, Any]) -> None:
    table = {"x": np.arange(100) % 7, "y": np.arange(100) % 5 / 3.0}
    training = {"max_epochs": 2, "progress": False, "seed": 0}
    model = mf.fit_table(table, options={"hidden_features": (8,)}, **training)
    before, head = model.score_samples(table), model.head
    assert bool(torch.stack([head.share, head.plain]).any())
    with pytest.raises((TypeError, ValueError), match="Expected"):
        model.fit(table, **training | refused)
    np.testing.assert_array_equal(model.score_samples(table), before)
    model.fit(table, validation=None, **training | {"max_epochs": 0})  # nor what trains nothing
    np.testing.assert_array_equal(model.score_samples(table), before)
    model.fit(table, validation=None, **training)
    assert not bool(torch.stack([head.share, head.plain]).any())


@pytest.mark.parametrize("call", [mf.score, mf.fit])
@pytest.mark.parametrize("kind", ["a matrix", "a frame"])
def test_tables_are_no_codes(kind: str, call: Any) -> None:
    """Of numbers alone, they had been taken for codes: scores were of other values."""
    table: Any = np.random.default_rng(0).normal(5, 2, size=(40, 2))
    if kind == "a frame":
        table = pytest.importorskip("pandas").DataFrame(table, columns=["a", "b"])
    model = mf.TableMADE.from_data(table, hidden_features=(8,))
    with pytest.raises(TypeError, match=r"to be codes, as model.schema.encode\(table\)"):
        call(model, table)
    assert np.isclose(
        mf.score(model, model.schema.encode(table)[0]), model.score_samples(table).mean()
    )
