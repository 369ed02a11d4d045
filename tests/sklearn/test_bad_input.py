"""Bad input to the estimators beyond scikit-learn's own checks: each a clear error, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")
pytest.importorskip("pandas")

import pandas

from made_flows.sklearn import MADEDensity, MADEDetector, MADEImputer, MADEOutlierDetector

SMALL: dict[str, Any] = {
    "max_epochs": 1, "hidden_features": (8,), "components": 2, "random_state": 0, "orders": 1,
}  # fmt: skip
X = np.random.default_rng(0).normal(size=(40, 3))
FRAME = pandas.DataFrame({"size": X[:, 0], "kind": ["a", "b"] * 20})
Call = Callable[[], Any]


def at(row: int, value: float) -> np.ndarray:
    x = X.copy()
    x[row, 1] = value
    return x


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    kinds = (MADEDensity, MADEOutlierDetector, MADEImputer)
    return {kind.__name__: kind(**SMALL).fit(X) for kind in kinds} | {
        "frame": MADEDensity(**SMALL).fit(FRAME), "detector": MADEDetector(**SMALL).fit(FRAME),
    }  # fmt: skip


# From fitted estimators to a call, the kind of error, and words of its message.
ERRORS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "infinite": (lambda f: MADEDensity().fit(at(5, np.inf)), ValueError, "inf"),
    "integers that are rounded": (
        lambda f: MADEDensity().fit(2**60 + np.arange(40)[:, None]), ValueError,
        "text); got 1152921504606846976 in row 0, column 0"),
    "long integers": (
        lambda f: MADEDensity().fit([[2**70], [1]]), ValueError, "integers below 2**53"),
    "a sparse tensor": (
        lambda f: MADEDensity().fit(torch.from_numpy(X).to_sparse()), TypeError, "X to be dense"),
    "a tensor of half precision": (
        lambda f: MADEDensity().fit(torch.from_numpy(X).bfloat16()), TypeError, "that NumPy has"),
    "text in an array": (
        lambda f: MADEDensity().fit([["a", 1], ["b", 2]]), ValueError, "a frame of any columns"),
    "nothing known": (lambda f: MADEImputer().fit(X * np.nan), ValueError, "a column to model"),
    "unknown column": (
        lambda f: MADEDensity(columns={"z": "real"}).fit(X), ValueError, "columns to name columns"),
    "unknown kind": (
        lambda f: MADEDensity(columns={"x0": "normal"}).fit(X), ValueError, "to be one of real"),
    "no component": (lambda f: MADEDensity(components=0).fit(X), ValueError, "components"),
    "no orders": (
        lambda f: MADEDensity(**{**SMALL, "orders": 0}).fit(X), ValueError, "orders"),
    "no draws": (lambda f: MADEImputer(draws=0).fit(X), ValueError, "draws"),
    "a word for a draw": (
        lambda f: MADEImputer(sample_posterior="no").fit(X), TypeError, "sample_posterior"),
    "half an epoch": (lambda f: MADEDensity(max_epochs=0.5).fit(X), TypeError, "max_epochs"),
    "no time": (lambda f: MADEImputer(max_seconds=0).fit(X), ValueError, "max_seconds"),
    "kernels below none": (lambda f: MADEDetector(kernels=-1).fit(X), ValueError, "kernels"),
    "weights of others": (lambda f: MADEDensity().fit(X, sample_weight=[1]), ValueError, "weight"),
    "unknown budget": (lambda f: MADEDensity(budget="free").fit(X), ValueError, "budget to be"),
    "budget of text": (
        lambda f: MADEDensity(budget="fast").fit(FRAME), TypeError, "'kind' to hold numbers, as"),
    "budget of holes": (lambda f: MADEDensity(budget="fast").fit(at(3, np.nan)),
                        ValueError, "row 3"),
    "a draw, as text": (
        lambda f: copy(f["MADEImputer"]).set_params(sample_posterior="no").transform(X), TypeError,
        "sample_posterior to be True or False"),
    "no sample": (lambda f: f["MADEDensity"].sample(0), ValueError, "n_samples"),
    "no imputation": (lambda f: f["MADEImputer"].impute(X, 0), ValueError, "count"),
    "narrower": (lambda f: f["MADEOutlierDetector"].predict(X[:, :2]), ValueError, "3 features"),
    "infinite later": (lambda f: f["MADEImputer"].transform(at(0, -np.inf)), ValueError, "inf"),
    "other names": (
        lambda f: f["frame"].score(FRAME.rename(columns={"kind": "sort"})), ValueError, "names"),
    "other types": (
        lambda f: f["frame"].score(FRAME.assign(size="b")), TypeError, "'size' to hold float"),
    "mixed types": (
        lambda f: f["detector"].predict(FRAME.assign(kind=["a", 1] * 20)), TypeError, "one type"),
    "no rows": (lambda f: f["detector"].predict(FRAME[:0]), ValueError, "minimum of 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_is_wrong(name: str, fitted: dict[str, Any]) -> None:
    call, kind, words = ERRORS[name]
    with pytest.raises(kind, match=re.escape(words)):
        call(fitted)


def test_what_was_not_seen_is_odd_and_no_error(fitted: dict[str, Any]) -> None:
    usual, unseen, huge, holes = (
        fitted["detector"].decision_function(FRAME.assign(**change))[0]
        for change in ({}, {"kind": "new"}, {"size": 1e9}, {"kind": None, "size": np.nan})
    )
    assert unseen > usual
    assert huge > usual + 100
    assert np.isfinite(holes)
