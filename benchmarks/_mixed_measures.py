"""How good drawn rows and guessed cells of a table of mixed columns are."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import made_flows as mf
from made_flows.tables.columns import CategoryColumn
from made_flows.tables.schema import Schema

MEASURES = ("margins of numbers", "margins of categories", "rank correlations",
            "associations", "classifier")  # fmt: skip
"""What :func:`quality` says of rows."""

IMPUTERS = ("fill", "IterativeImputer", "KNNImputer", "HistGradientBoosting")
"""What :func:`guesses` knows."""


def quality(schema: Schema, drawn: Tensor, test: Tensor, target: str) -> list[float]:
    """How far rows that were drawn are from real ones, five numbers as in MEASURES."""
    groups: dict[bool, list[int]] = {True: [], False: []}
    for i, column in enumerate(schema.columns):
        groups[isinstance(column, CategoryColumn)].append(i)
    numbers, categories = groups[False], groups[True]
    pairs = [[_values(schema, codes, i) for codes in (drawn, test)] for i in range(drawn.shape[1])]
    distances = [
        float(stats.ks_2samp(*(v[~np.isnan(v)] for v in pairs[i])).statistic) for i in numbers
    ]
    shares = [_shares(*pairs[i]) for i in categories]
    of_numbers = [
        abs(np.subtract(*(_rank_correlation(pairs[i][k], pairs[j][k]) for k in (0, 1))))
        for i, j in combinations(numbers, 2)
    ]
    of_categories = [
        abs(np.subtract(*(_association(pairs[i][k], pairs[j][k]) for k in (0, 1))))
        for i, j in combinations(categories, 2)
    ]
    each = [
        float(np.mean(v)) if v else math.nan for v in (distances, shares, of_numbers, of_categories)
    ]
    return [*each, _classified(schema, drawn, test, schema.names.index(target))]


def _values(schema: Schema, codes: Tensor, i: int) -> Any:
    column = schema.columns[i]
    return (
        codes[:, i].numpy() if isinstance(column, CategoryColumn) else _numbers(column, codes[:, i])
    )


def _shares(a: Any, b: Any) -> float:
    """The total variation distance of two columns of categories."""
    found = np.unique(np.concatenate([v[~np.isnan(v)] for v in (a, b)]))
    each = [
        np.array([(v == value).sum() for value in found]) / (~np.isnan(v)).sum() for v in (a, b)
    ]
    return float(0.5 * np.abs(each[0] - each[1]).sum())


def _rank_correlation(a: Any, b: Any) -> float:
    both = ~(np.isnan(a) | np.isnan(b))
    return float(np.nan_to_num(stats.spearmanr(a[both], b[both]).statistic))


def _association(a: Any, b: Any) -> float:
    """Cramér's V, less what chance alone gives (Bergsma 2013)."""
    both = ~(np.isnan(a) | np.isnan(b))
    rows, columns = (np.unique(v[both], return_inverse=True)[1] for v in (a, b))
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1.0)
    n, (r, k) = table.sum(), table.shape
    if min(r, k) < 2:
        return 0.0
    phi = stats.chi2_contingency(table, correction=False).statistic / n
    phi = max(0.0, phi - (r - 1) * (k - 1) / (n - 1))
    wide = [m - (m - 1) ** 2 / (n - 1) for m in (r, k)]
    return float(math.sqrt(phi / max(min(wide) - 1, 1e-12)))


def _classified(schema: Schema, drawn: Tensor, test: Tensor, target: int) -> float:
    """The share of real rows whose target is told by a classifier of rows that were drawn."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    others = [i for i in range(drawn.shape[1]) if i != target]
    rows = [
        (np.stack([_values(schema, codes, i) for i in others], 1), codes[:, target].numpy())
        for codes in (drawn, test)
    ]
    (x, y), (real, truth) = ((a[~np.isnan(b)], b[~np.isnan(b)]) for a, b in rows)
    places = [k for k, i in enumerate(others) if isinstance(schema.columns[i], CategoryColumn)]
    model = HistGradientBoostingClassifier(categorical_features=places, random_state=0, max_iter=50)
    if len(np.unique(y)) < 2:
        return float(np.mean(truth == y[0]))
    return float(np.mean(model.fit(x, y).predict(real) == truth))


def guesses(
    name: str, model: mf.TableMADE, train: dict[str, Any], test: dict[str, Any], hidden: Any
) -> dict[str, Any]:
    """The guesses of hidden cells (N, D), as codes by column."""
    schema = model.schema
    x, holed = schema.encode(train)[0], schema.encode(test)[0]
    holed[torch.from_numpy(hidden)] = torch.nan
    if name == "fill":
        drawn = torch.cat([
            model.conditional(rows).sample((50,)).cpu() for rows in holed.split(200)
        ], dim=1)  # fmt: skip
        return {
            column.name: column.guess(drawn[:, :, i].numpy())
            for i, column in enumerate(schema.columns)
        }
    numbers, known = (_design(schema, codes) for codes in (x, holed))
    if name == "HistGradientBoosting":
        return _boosted(schema, x, holed)
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer

    kind = IterativeImputer if name == "IterativeImputer" else KNNImputer
    imputer = kind(keep_empty_features=True).fit(numbers[:5000])
    filled, found, start = imputer.transform(known), {}, 0
    for i, column in enumerate(schema.columns):
        if isinstance(column, CategoryColumn):
            wide = len(column.categories)
            codes = filled[:, start : start + wide].argmax(axis=1).astype(float)
            found[column.name] = column.values(codes)
        else:
            wide, values = 1, _numbers(column, x[:, i])
            found[column.name] = filled[:, start] * np.nanstd(values) + np.nanmean(values)
        start += wide
    return found


def _numbers(column: Any, codes: Tensor) -> Any:
    """The numbers of a column, NaN where one is missing."""
    array = codes.numpy()
    values = np.full(len(array), np.nan)
    values[~np.isnan(array)] = column.values(array[~np.isnan(array)]).astype(float)
    return values


def _design(schema: Schema, codes: Tensor) -> Any:
    """Standardised numbers and one-hot categories, NaN where one is missing."""
    parts = []
    for i, column in enumerate(schema.columns):
        code = codes[:, i].numpy()
        if isinstance(column, CategoryColumn):
            one_hot = (code[:, None] == np.arange(len(column.categories))).astype(float)
            one_hot[np.isnan(code)] = np.nan
            parts.append(one_hot)
        else:
            values = _numbers(column, codes[:, i])
            parts.append(((values - np.nanmean(values)) / np.nanstd(values))[:, None])
    return np.concatenate(parts, axis=1)


def _boosted(schema: Schema, x: Tensor, holed: Tensor) -> dict[str, Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    found = {}
    for i, column in enumerate(schema.columns):
        others = [j for j in range(x.shape[1]) if j != i]
        categories = [
            k for k, j in enumerate(others) if isinstance(schema.columns[j], CategoryColumn)
        ]
        known = ~x[:, i].isnan().numpy()
        category = isinstance(column, CategoryColumn)
        target = x[:, i].numpy() if category else _numbers(column, x[:, i])
        kind = HistGradientBoostingClassifier if category else HistGradientBoostingRegressor
        if category and len(np.unique(target[known])) < 2:
            found[column.name] = column.values(np.zeros(len(holed)))
            continue
        model = kind(categorical_features=categories or None, random_state=0, max_iter=50)
        model.fit(x[:, others].numpy()[known], target[known])
        guess = model.predict(holed[:, others].numpy())
        found[column.name] = column.values(guess) if category else guess
    return found


def errors(schema: Schema, found: dict[str, Any], test: dict[str, Any], hidden: Any) -> Any:
    """Mean error of numbers in standard deviations, and mean share of categories guessed."""
    truth = schema.encode(test)[0]
    numbers, shares = [], []
    for i, column in enumerate(schema.columns):
        rows = hidden[:, i]
        if not rows.any():
            continue
        if isinstance(column, CategoryColumn):
            inside = truth[:, i].numpy() < len(column.categories)
            rows = rows & inside
            right = column.values(truth[rows, i].numpy())
            shares.append(float(np.mean(found[column.name][rows] == right)))
        else:
            values = _numbers(column, truth[:, i])
            difference = found[column.name].astype(float)[rows] - values[rows]
            numbers.append(float(np.sqrt(np.mean(difference**2)) / np.nanstd(values)))
    return [float(np.mean(each)) if each else None for each in (numbers, shares)]
