"""The estimators against scikit-learn's own checks, and in its tools."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import made_flows as mf
from made_flows.sklearn import MADEDensity, MADEDetector, MADEImputer, MADEOutlierDetector
from made_flows.sklearn.base import smoothed
from made_flows.tables.kernels import RowKernels
from made_flows.tables.model import TableMADE
from made_flows.tables.schema import Schema

SMALL: dict[str, Any] = {
    "max_epochs": 2, "hidden_features": (30,), "components": 2, "random_state": 0, "orders": 1,
}  # fmt: skip
ESTIMATORS = [MADEDensity, MADEOutlierDetector, MADEImputer]


@pytest.fixture(autouse=True)
def few_rows_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep detectors quick: of few rows they train on twenty copies."""
    monkeypatch.setattr("made_flows.sklearn.base._COPIES", 2)


@parametrize_with_checks([kind(**SMALL | {"max_epochs": 1}) for kind in ESTIMATORS])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def rows(count: int = 120, holes: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3))
    x[:, 1] = x[:, 0] + 0.1 * rng.normal(size=count)
    x[:, 2] = rng.poisson(3, count)
    if holes:
        x[rng.random(x.shape) < 0.2] = np.nan
    return x


@pytest.mark.parametrize("kind", [*ESTIMATORS, MADEDetector])
def test_copies_of_an_estimator_do_as_it_does(kind: Any) -> None:
    x = rows(holes=True)
    first = kind(**SMALL).fit(x)
    method = "transform" if kind is MADEImputer else "score_samples"
    expected = getattr(first, method)(x)
    for other in (pickle.loads(pickle.dumps(first)), clone(first).fit(x)):
        np.testing.assert_array_equal(getattr(other, method)(x), expected)
    with pytest.raises(NotFittedError):
        getattr(kind(), method)(x)


def test_pipelines_grids_and_cross_validation() -> None:
    x, y = rows(holes=True), np.arange(120.0)
    pipeline = make_pipeline(MADEImputer(**SMALL), LinearRegression()).fit(x, y)
    assert np.isfinite(pipeline.predict(x)).all()
    density = make_pipeline(StandardScaler(), MADEDensity(**SMALL))
    assert np.isfinite(cross_val_score(density, x, cv=2)).all()
    grid = GridSearchCV(MADEDensity(**SMALL), {"components": [1, 2]}, cv=2).fit(x)
    assert grid.best_params_["components"] in (1, 2)


def test_weights_are_repetitions() -> None:
    x = np.repeat([[0.0, 1.5], [10.0, 2.5]], 40, axis=0) + rows(80)[:, :2]
    density = MADEDensity(**{**SMALL, "max_epochs": 30})
    only_first = density.fit(x, sample_weight=np.repeat([1, 0], 40)).score_samples(x)
    assert only_first[:40].mean() > only_first[40:].mean() + 5
    parts = density.fit(x, sample_weight=np.repeat([0.9, 0.0], 40)).score_samples(x)
    assert parts[:40].mean() > parts[40:].mean() + 5
    for wrong in (-np.ones(80), np.zeros(80)):
        with pytest.raises(ValueError, match=r"(?i)sample.weight"):
            density.fit(x, sample_weight=wrong)


@pytest.mark.parametrize("weight", [3, 1.5])
def test_copies_of_a_row_are_held_out_together(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, parts = rows(60), []

    def fit_codes(model: TableMADE, codes: Any, *_: Any, validation: Any, **__: Any) -> None:
        parts.append((codes, validation[0]))

    monkeypatch.setattr(TableMADE, "fit_codes", fit_codes)
    MADEDensity(**SMALL).fit(x, sample_weight=np.repeat([0.0, weight], 30))
    kept, left_out = ({tuple(row) for row in part.tolist()} for part in parts[0])
    assert (len(kept), len(left_out)) == (27, 3)
    assert not kept & left_out
    assert len(parts[0][0]) + len(parts[0][1]) == (90 if weight == 3 else 60)


def test_outliers_are_found_and_explained() -> None:
    x = rows(200)
    options = {**SMALL, "max_epochs": 40}
    detector = MADEOutlierDetector(**options, contamination=0.05).fit(x)
    odd = np.array([[2.0, -2.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 40.0]])
    assert detector.predict(odd).tolist() == [-1, 1, -1]
    assert (detector.predict(x) < 0).mean() == pytest.approx(0.05, abs=0.01)
    why = detector.score_columns(odd)
    assert min(why, key=lambda name: why[name][2]) == "x2"
    assert why["x0"][0] < why["x2"][0]


def test_a_detector_of_the_other_sign() -> None:
    x = rows()
    detector = MADEOutlierDetector(**SMALL, contamination=0.05).fit(x)
    reverse = MADEDetector(**SMALL, contamination=0.05).fit(x)
    np.testing.assert_array_equal(reverse.decision_function(x), -detector.score_samples(x))
    outliers = (detector.predict(x) < 0).astype(int)
    for labels in (reverse.labels_, reverse.predict(x), reverse.fit_predict(x)):
        np.testing.assert_array_equal(labels, outliers)
    assert (reverse.decision_scores_ > reverse.threshold_).sum() == outliers.sum()


@pytest.mark.parametrize("part", [0, -0.1, 0.6, "a"])
def test_contamination_is_a_part(part: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="contamination"):
        MADEOutlierDetector(contamination=part).fit(rows())


def test_imputations_are_of_the_missing_alone_and_differ() -> None:
    x = rows(holes=True)
    imputer = MADEImputer(**SMALL).fit(x)
    known = ~np.isnan(x)
    several = imputer.impute(x, 3)
    for filled in (imputer.transform(x), *several):
        np.testing.assert_array_equal(filled[known], x[known])
        assert np.isfinite(filled).all()
    assert not np.array_equal(several[0], several[1])
    posterior = MADEImputer(**SMALL, sample_posterior=True).fit(x)
    np.testing.assert_array_equal(posterior.transform(x), posterior.transform(x))


def test_frames_of_mixed_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": rows()[:, 0], "kind": ["a", "b", None] * 40})
    density = MADEDensity(**SMALL).fit(frame)
    assert density.feature_names_in_.tolist() == ["size", "kind"]
    assert np.isfinite(density.score_samples(frame)).all()
    assert density.sample(3, random_state=0)["kind"].isin(["a", "b"]).all()
    filled = MADEImputer(**SMALL).fit_transform(frame)
    assert not filled["kind"].isna().any()
    with pytest.raises(ValueError, match="feature names"):
        density.score_samples(frame.rename(columns={"size": "length"}))


def test_a_density_by_estimate() -> None:
    x = rows(200)[:, :2]
    frame = pytest.importorskip("pandas").DataFrame(x, columns=["a", "b"])
    density = MADEDensity(budget="fast", max_seconds=2, random_state=0).fit(frame)
    assert density.score(frame) > -4
    assert density.sample(4, random_state=1).columns.tolist() == ["a", "b"]
    assert not isinstance(density.model_, mf.TableMADE)
    with pytest.raises(ValueError, match="scores of columns of budget=None; got"):
        density.score_columns(frame)
    density.set_params(budget=None)  # for the next fit
    assert density.score(frame) > -4


def test_columns_with_numbers_for_names_are_told_by_them() -> None:
    """As scikit-learn compares names of text alone, they had been taken by place."""
    frame = pytest.importorskip("pandas").DataFrame(rows(60)[:, :2] * [1.0, 10.0])
    for options in (SMALL, {"budget": "fast", "max_seconds": 1, "random_state": 0}):
        density = MADEDensity(**options).fit(frame)
        found = density.score_samples(frame)
        np.testing.assert_allclose(density.score_samples(frame[[1, 0]]), found)
        with pytest.raises(ValueError, match="to have the columns"):
            density.score_samples(frame.rename(columns={1: 3}))
        assert density.sample(2, random_state=0).columns.tolist() == [0, 1]
    assert isinstance(density.fit(frame.to_numpy()).sample(2), np.ndarray)


def test_arrays_of_decimals_and_masks() -> None:
    """Single precision has the same steps as double, and what is masked is missing."""
    x = np.round(rows(60), 1)
    one, other = (MADEDensity(**SMALL).fit(x.astype(dtype)) for dtype in ("f8", "f4"))
    kinds = {column.kind for each in (one, other) for column in each.model_.schema.columns}
    assert kinds == {"rounded"}
    np.testing.assert_array_equal(one.score_samples(x), other.score_samples(x.astype("f4")))
    masked, holes = np.ma.masked_array(x, x > 1), np.where(x > 1, np.nan, x)
    np.testing.assert_array_equal(one.score_samples(masked), one.score_samples(holes))


def test_samples_have_the_places_of_columns_without_values() -> None:
    x = rows(60)
    x[:, 1] = np.nan
    drawn = MADEDensity(**SMALL).fit(x).sample(9)
    assert np.isnan(drawn).any(axis=0).tolist() == np.isnan(x).any(axis=0).tolist()


def test_kernels_are_those_of_scikit_learn_and_leave_out_ones_own() -> None:
    from sklearn.neighbors import KernelDensity

    x, q = np.random.default_rng(0).normal(size=(2, 80, 3))
    kernels = RowKernels(Schema.of(x).columns, x)
    z, known = (q - x.mean(0)) / x.std(0), np.array([True, False, True])
    of_all = KernelDensity(bandwidth="scott").fit((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(kernels.log_prob(q), of_all.score_samples(z), rtol=1e-10)
    marginal = KernelDensity(bandwidth=80 ** (-1 / 7)).fit(((x - x.mean(0)) / x.std(0))[:, known])
    holes = np.where(known, q, np.nan)
    np.testing.assert_allclose(
        kernels.log_prob(holes), marginal.score_samples(z[:, known]), rtol=1e-10
    )
    of_others = np.exp(of_all.score_samples((x - x.mean(0)) / x.std(0))) - (2 * np.pi) ** -1.5 * (
        80 ** (3 / 7) / 80
    )
    np.testing.assert_allclose(np.exp(kernels.log_prob(x)), of_others * 80 / 79, rtol=1e-9)
    _, half, nearest = kernels.scores(q).T
    of_half = KernelDensity(bandwidth=of_all.bandwidth_ / 2).fit((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(half, of_half.score_samples(z), rtol=1e-10)
    distance = np.linalg.norm(z[:, None] - (x - x.mean(0)) / x.std(0), axis=2) / kernels.bandwidth
    np.testing.assert_allclose(-nearest, np.sort(distance)[:, :5].mean(1), rtol=1e-9)


def test_kernels_of_categories_add_up() -> None:
    table = {"a": ["x", "y", "y", "z"] * 10, "b": [True, False] * 20}
    kernels = RowKernels(Schema.of(table).columns, table)
    each = {"a": ["x", "y", "z", "new"] * 2, "b": [True] * 4 + [False] * 4}
    total = np.exp(kernels.log_prob(each)).sum()
    # Four pairs of values occur, in ten rows each, of which one is a row's own.
    assert total == pytest.approx(4 * 9 / 39, abs=0.01)
    alone = kernels.log_prob({"a": ["x", "new"], "b": [None, None]})
    assert alone[0] > alone[1] + 0.5


def test_a_network_and_kernels_are_pooled() -> None:
    x = rows(200)
    pooled = MADEOutlierDetector(**SMALL, kernels=50).fit(x)
    alone = MADEOutlierDetector(**SMALL, kernels=0).fit(x)
    parts = np.column_stack([alone.score_samples(x), pooled.kernels_.scores(x)])
    low, middle, high = np.percentile(parts, [25, 50, 75], axis=0)
    expected = ((parts - middle) / (high - low)).mean(axis=1)
    np.testing.assert_allclose(pooled.score_samples(x), expected, rtol=1e-9)
    assert len(pooled.kernels_.rows) == 50
    assert alone.kernels_ is None


def test_noise_is_of_the_numbers_that_are_there() -> None:
    rng = np.random.default_rng(0)
    amounts = np.where(rng.random(4000) < 0.5, 0.0, rng.lognormal(size=4000))
    table = {"x": rng.normal(size=4000), "kind": ["a", "b"] * 2000, "amount": amounts}
    table["x"][:100] = np.nan
    schema = Schema.of(table, any_number=True)
    x = schema.encode(table)[0]
    noise = smoothed(schema, x, 0.3, 0) - x
    assert bool(noise[:100, 0].isnan().all())
    fixed = torch.from_numpy(amounts == 0)
    assert not bool(noise[:, 1].any())
    assert not bool(noise[fixed, 2].any())
    for got, code in ((noise[100:, 0], x[100:, 0]), (noise[~fixed, 2], x[~fixed, 2])):
        assert float(got.mean() / code.std()) == pytest.approx(0.0, abs=0.03)
        assert float(got.std() / code.std()) == pytest.approx(0.3, rel=0.05)
    assert smoothed(schema, x[:10], 0.3, 0).shape == (20, 3)
