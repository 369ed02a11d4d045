"""Tables of mixed columns: held-out log-likelihood and held-out cells, beside simpler models.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.mixed

Reads mixed/NAME.csv. What is finished is kept, one line a result, and a call goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
import warnings
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import made_flows as mf
from benchmarks._density_data import data_folder
from benchmarks.harness import markdown_table, parse_resumable, write_page
from made_flows.tables.columns import ATOM, CategoryColumn
from made_flows.tables.head import TableHead
from made_flows.tables.parts import Numbers, raw_scale
from made_flows.tables.schema import Schema

TRAINED, TESTED = 15_000, 2000
DRAWS = 100
"""Draws of a discrete value's place in its cell, for the copula."""

LIKELIHOOD = """Mean log-likelihood of a test row in nats, higher is better; missing values are left
out. All models of a table have the same schema, so that densities are per unit of the data and
masses of the same cells. *Independent columns* are the same heads without a network: of numbers,
mixtures of up to eight normals behind the same maps, by BIC. The *Gaussian copula* has these as its
margins and the correlations of normal scores; a discrete value's score is drawn in its cell, and
its mass is the mean of {draws} such draws. The *Bayesian network* is pgmpy's, of categories and of
numbers in ten bins that hold about as many rows, within which they have the margin's density; its
graph is found by hill climbing (BIC, three parents at most), its tables have the BDeu prior, and
missing values are summed out (for learning, they are drawn from their column). *TableMADE*
is `fit_table` at its defaults, but for `max_seconds={limit:g}` of a core: where training took as
long, it was cut short. The last column mixes
eight orders. Of large tables {most} rows are trained on, drawn at random.{missing}"""

CELLS = """A fifth of the cells of the test rows is hidden, and guessed: by `fill`; by
scikit-learn's IterativeImputer (its default, a ridge regression for each column) and KNNImputer
(its default, five neighbours) on standardised numbers and one-hot categories; and by
HistGradientBoosting, a model of each column given the others. Of number columns, the root mean
squared error in standard deviations of the column; of categories, the share guessed right; each a
mean over the columns."""

SYNTHETIC = """As many rows as were trained on are drawn, and compared with the test rows: the mean
Kolmogorov-Smirnov distance of a number column, the mean total variation distance of a category
column, the mean difference of Spearman's rank correlations of two number columns and of Cramér's V
(corrected for bias, Bergsma 2013) of two category columns, all better when lower; and the share of
test rows whose target a classifier (HistGradientBoosting) tells that was trained on the drawn rows:
{target}. CTGAN is at its defaults (numbers
clipped to the range of the training rows, missing ones drawn from their column). *Real rows* are
the training rows themselves: what a perfect sampler would reach. (A
column of titanic repeats the target: its classifier is told the answer if rows are consistent.)"""

TARGETS = {
    "adult": "income", "diamonds": "cut", "mpg": "origin", "penguins": "species", "tips": "sex",
    "titanic": "survived",
}  # fmt: skip
"""The column that is classified, of each table."""


# ---------------------------------------------------------------------- data


def load(names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The tables at hand, by name: columns of numbers, text and holes; small ones first."""
    folder = data_folder()
    found = {}
    for path in sorted((folder / "mixed").glob("*.csv*")) if folder else []:
        name = path.name.partition(".")[0]
        if names is None or name in names:
            found[name] = read_csv(path)
    return dict(sorted(found.items(), key=lambda each: len(next(iter(each[1].values())))))


def read_csv(path: Path) -> dict[str, Any]:
    """Columns of a CSV file: numbers where all values are, else text; nothing is a hole."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    names, *rows = list(csv.reader(text.decode().splitlines()))
    each = zip(names, zip(*rows, strict=True), strict=True)
    return {name: _column(values) for name, values in each}


def _column(values: Sequence[str]) -> Any:
    try:
        numbers = np.array([float(value) if value else math.nan for value in values])
    except ValueError:
        return np.array([value or None for value in values], dtype=object)
    whole = not np.isnan(numbers).any() and bool((numbers == np.round(numbers)).all())
    return numbers.astype(np.int64) if whole else numbers


def take(table: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {name: values[rows] for name, values in table.items()}


# ---------------------------------------------------------------------- simpler likelihoods


class Margins:
    """The heads of a schema with parameters that depend on nothing."""

    def __init__(self, schema: Schema, x: Tensor) -> None:
        self.head = TableHead(schema.columns, components=8)
        self.columns, self.x = schema.columns, x
        widest = max(self.head.outputs)
        self.parameters = torch.full((len(schema.columns), widest), -torch.inf, dtype=torch.float64)
        for part in self.head.parts:
            for k, i in enumerate(part.places):
                values = x[:, i][~x[:, i].isnan()]
                start = part.start()[k].double()
                if isinstance(part, Numbers):
                    start = self._mixture(part, k, values, start)
                self.parameters[i, : len(start)] = start

    def _mixture(self, part: Numbers, k: int, values: Tensor, start: Tensor) -> Tensor:
        from sklearn.mixture import GaussianMixture

        place = part._place(values, torch.full(values.shape, k))
        p = start.clone()
        counts = torch.bincount(place + 1, minlength=len(p) - 23) + 1.0

        def own(p: Tensor) -> Tensor:
            around = part._around(p[:24], torch.tensor(k))[: len(p) - 24]
            return torch.cat([p[:24], (counts[1:] / counts[0]).log() - around])

        values = values[place < 0]
        if len(values) < 2:
            return own(p)
        z = part._to_normal(values, torch.full(values.shape, k))[0][:, None].numpy()
        sizes = [c for c in (1, 2, 3, 5, 8) if c <= len(np.unique(z))]
        each = [GaussianMixture(c, random_state=0, reg_covar=1e-4).fit(z) for c in sizes]
        best = min(each, key=lambda found: found.bic(z))
        found = best.n_components
        p[:8], p[8:24] = -30.0, 0.0
        p[:found] = torch.from_numpy(np.log(best.weights_))
        p[8 : 8 + found] = torch.from_numpy(best.means_[:, 0])
        scale = torch.from_numpy(best.covariances_[:, 0, 0]).sqrt().clamp(2e-3, 0.999)
        p[16 : 16 + found] = raw_scale(scale)
        return own(p)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probabilities of codes (N, D), 0 where one is missing."""
        filled = torch.where(x.isnan(), 0.0, x)
        each = self.head.log_prob(filled, self.parameters.expand(len(x), -1, -1))
        return torch.where(x.isnan(), 0.0, each)

    def cumulative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution functions of codes (N, D), below and at them."""
        below, at = torch.zeros_like(x), torch.zeros_like(x)
        filled = torch.where(x.isnan(), 0.0, x)
        for part in self.head.parts:
            for k, i in enumerate(part.places):
                p, y = self.parameters[i], filled[:, i]
                if not isinstance(part, Numbers):
                    share = torch.softmax(p[: part.outputs[k]], 0)
                    ends = torch.cat([torch.zeros(1), share.cumsum(0)]).clamp(max=1.0)
                    code = y.long().clamp(max=len(share) - 1)
                    below[:, i], at[:, i] = ends[code], ends[code + 1]
                    continue
                which = torch.full((len(y),), k)
                atom, masses = y == ATOM, part._masses[k]
                share = part._shares(p[:24], p[24 : part.outputs[k]], torch.tensor(k)).exp()
                same = part._place(y, which)[:, None] == torch.arange(len(masses))
                smaller = (masses < y[:, None]) & ~same  # zero is put below all else
                y = torch.where(atom, 0.0, y)
                low = high = y
                if part.cells:
                    number, half = part._number(y, which), 0.5 * part._of(y, which)[3]
                    low, high = (part._code(edge, which) for edge in (number - half, number + half))
                for target, edge, own in ((below, low, smaller), (at, high, smaller | same)):
                    z = part._to_normal(edge, which)[0].clamp(-1e30, 1e30)[:, None]
                    scale = part.mixture.scale(p[16:24]).exp()
                    normal = torch.special.ndtr((z - p[8:16]) / scale)
                    f = (torch.softmax(p[:8], 0) * normal).sum(1)
                    mass = (own[:, : len(share) - 1] * share[1:]).sum(1)
                    target[:, i] = mass + torch.where(atom, 0.0, share[0] * f)
        return below, at


class Copula:
    """A Gaussian copula of margins."""

    def __init__(self, margins: Margins, x: Tensor, seed: int) -> None:
        self.margins = margins
        self.generator = torch.Generator().manual_seed(seed)
        scores = self._scores(x)
        scores[x.isnan()] = torch.nan
        self.correlation = torch.from_numpy(_correlation(scores.numpy()))

    def _scores(self, x: Tensor) -> Tensor:
        below, at = self.margins.cumulative(x)
        u = below + (at - below) * torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
        return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))

    def log_prob(self, x: Tensor) -> Tensor:
        total = self.margins.log_prob(x).sum(1)
        known = ~x.isnan()
        terms = []
        patterns, group = torch.unique(known, dim=0, return_inverse=True)
        for _ in range(DRAWS):
            z, term = self._scores(x), torch.zeros(len(x), dtype=x.dtype)
            for g, pattern in enumerate(patterns):
                rows = group == g
                if not bool(pattern.any()):
                    continue
                part = self.correlation[pattern][:, pattern]
                some = z[rows][:, pattern]
                joint = torch.distributions.MultivariateNormal(
                    torch.zeros(len(part)).double(), part
                )
                normal = -0.5 * some**2 - 0.5 * math.log(2 * math.pi)
                term[rows] = joint.log_prob(some) - normal.sum(1)
            terms.append(term)
        return total + torch.logsumexp(torch.stack(terms), 0) - math.log(DRAWS)

    def sample(self, count: int) -> Tensor:
        """Codes (count, D): of every margin the quantile of a normal score."""
        head, parameters = self.margins.head, self.margins.parameters
        wide = len(parameters)
        noise = torch.stack([
            each((20_000, wide), generator=self.generator, dtype=torch.float64)
            for each in (torch.rand, torch.randn)
        ], dim=-1)  # fmt: skip
        draws = head.step(noise, parameters.expand(len(noise), -1, -1)).sort(dim=0).values
        z = torch.randn(count, wide, generator=self.generator, dtype=torch.float64)
        z = z @ torch.linalg.cholesky(self.correlation).T
        place = (torch.special.ndtr(z) * len(draws)).long().clamp(max=len(draws) - 1)
        return draws.gather(0, place)


def _correlation(scores: Any) -> Any:
    """Correlations of pairs of columns where both are known, made positive definite."""
    masked = np.ma.corrcoef(np.ma.masked_invalid(scores), rowvar=False).filled(0.0)
    values, vectors = np.linalg.eigh(masked)
    matrix = vectors @ np.diag(values.clip(1e-3)) @ vectors.T
    scale = np.sqrt(np.diag(matrix))
    return matrix / np.outer(scale, scale)


class BayesianNetwork:
    """A network of categories and of bins of numbers, of pgmpy; in a bin, the margin's density."""

    def __init__(self, margins: Margins, x: Tensor, seed: int) -> None:
        import pandas
        from pgmpy.estimators import BayesianEstimator, HillClimbSearch
        from pgmpy.models import DiscreteBayesianNetwork

        self.margins, self.edges = margins, [_edges(key) for key in self._keys(x).T]
        self.sizes = [
            len(column.categories) if isinstance(column, CategoryColumn) else len(edges) + 1
            for column, edges in zip(margins.columns, self.edges, strict=True)
        ]
        states = self._states(x)
        rng = np.random.default_rng(seed)
        for state in states.T:  # learning needs whole rows: what is missing, from the column's own
            state[state < 0] = rng.choice(state[state >= 0], (state < 0).sum())
        frame = pandas.DataFrame(states, columns=[str(i) for i in range(len(self.sizes))])
        frame = frame.astype("category")  # pgmpy takes whole numbers for real ones
        found = HillClimbSearch(frame).estimate("bic-d", max_indegree=3, show_progress=False)
        network = DiscreteBayesianNetwork(found.edges())
        network.add_nodes_from(frame.columns)
        names = {str(i): list(range(size)) for i, size in enumerate(self.sizes)}
        cpds = BayesianEstimator(network, frame, state_names=names).get_parameters()
        self.tables = [([int(name) for name in cpd.variables], np.log(cpd.values)) for cpd in cpds]
        values = self._masses()
        self.inside = [torch.from_numpy(np.log(np.maximum(mass, 1e-12))) for mass in values]

    def _keys(self, x: Tensor) -> Any:
        return torch.where(x == ATOM, -torch.inf, x).numpy()

    def _states(self, x: Tensor) -> Any:
        """Categories and bins (N, D); -1 where one is missing or not among those of training."""
        states = np.full(x.shape, -1)
        for i, (key, edges) in enumerate(zip(self._keys(x).T, self.edges, strict=True)):
            category = isinstance(self.margins.columns[i], CategoryColumn)
            known = ~np.isnan(key) & (not category or key < self.sizes[i])
            states[known, i] = key[known] if category else np.searchsorted(edges, key[known])
        return states

    def _masses(self) -> list[Any]:
        """The margins' masses of bins."""
        each = []
        for i, edges in enumerate(self.edges):
            code = torch.zeros(len(edges), len(self.sizes), dtype=torch.float64)
            code[:, i] = torch.from_numpy(np.where(np.isinf(edges), ATOM, edges))
            ends = self.margins.cumulative(code)[1][:, i].numpy()
            each.append(np.diff(np.concatenate([[0.0], ends, [1.0]])))
        return each

    def log_prob(self, x: Tensor) -> Tensor:
        margins, states = self.margins.log_prob(x), self._states(x)
        total = torch.zeros(len(x), dtype=torch.float64)
        for i, column in enumerate(self.margins.columns):
            known = torch.from_numpy(states[:, i] >= 0)
            if not isinstance(column, CategoryColumn):
                total[known] += margins[known, i] - self.inside[i][states[known.numpy(), i]]
            else:  # a category that training has not seen has its own probability alone
                total[known] += math.log1p(-column.unseen)
                total[~known] += margins[~known, i]
        for row, state in enumerate(states):  # sum over what is missing
            holes = np.flatnonzero(state < 0)
            sizes = [self.sizes[i] for i in holes]
            grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes))
            whole = np.repeat(state[:, None], grid.shape[1], axis=1)
            whole[holes] = grid
            logs = sum(table[tuple(whole[names])] for names, table in self.tables)
            total[row] += float(np.logaddexp.reduce(logs))
        return total


def _edges(key: Any) -> Any:
    """Ends of ten bins of about as many values each; zeros beside a density have their own."""
    finite = key[np.isfinite(key)]
    edges = np.unique(np.quantile(finite, np.arange(1, 10) / 10, method="lower"))
    return np.concatenate([[-np.inf], edges]) if np.isneginf(key).any() else edges


# ---------------------------------------------------------------------- synthetic rows


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


# ---------------------------------------------------------------------- held-out cells


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


# ---------------------------------------------------------------------- runs and page

IMPUTERS = ("fill", "IterativeImputer", "KNNImputer", "HistGradientBoosting")


def split(table: dict[str, Any], rng: Any, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows to train on and to test."""
    count = len(next(iter(table.values())))
    order = rng.permutation(count)
    cut = int(0.8 * count)
    return take(table, order[:cut][:most]), take(table, order[cut:][:TESTED])


def of_pgmpy(
    name: str, table: dict[str, Any], seed: int, limit: float, most: int
) -> dict[str, Any]:
    """The log-likelihood of the Bayesian network."""
    train, test = split(table, np.random.default_rng(seed), most)
    schema = Schema.of(train)
    x = schema.encode(train)[0]
    network = BayesianNetwork(Margins(schema, x), x, seed)
    return {"Bayesian network": float(network.log_prob(schema.encode(test)[0]).mean())}


def of_ctgan(
    name: str, table: dict[str, Any], seed: int, limit: float, most: int
) -> dict[str, Any]:
    """The quality of CTGAN's rows."""
    import pandas
    from ctgan import CTGAN

    rng = np.random.default_rng(seed)
    train, test = split(table, rng, most)
    schema = Schema.of(train)
    x = schema.encode(train)[0].numpy()
    values, categories = {}, []
    for column, codes in zip(schema.columns, x.T, strict=True):
        missing = np.isnan(codes)  # it takes none: from the column's own
        codes[missing] = rng.choice(codes[~missing], missing.sum())
        values[column.name] = column.values(codes)
        if isinstance(column, CategoryColumn):
            categories.append(column.name)
            values[column.name] = codes.astype(int).astype(str)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what it draws from
    maker = CTGAN(enable_gpu=False)
    maker.fit(pandas.DataFrame(values), categories)
    drawn = maker.sample(len(x))
    found = {
        column.name: column.values(drawn[column.name].to_numpy().astype(float))
        if column.name in categories
        else drawn[column.name]
        .clip(values[column.name].min(), values[column.name].max())
        .to_numpy()
        for column in schema.columns
    }
    made, held_out = (schema.encode(rows)[0] for rows in (found, test))
    return {"rows of CTGAN": quality(schema, made, held_out, TARGETS[name])}


def run(
    name: str, table: dict[str, Any], seed: int, limit: float, most: int = TRAINED
) -> dict[str, Any]:
    """Everything of one table and one split."""
    rng = np.random.default_rng(seed)
    train, test = split(table, rng, most)
    start = time.process_time()
    # A limit of a core's time, which no other work takes, in place of the clock's.
    with mock.patch("time.perf_counter", time.process_time):
        model = mf.fit_table(train, max_seconds=limit, progress=False, seed=seed)
    seconds = time.process_time() - start
    x, held_out = (model.schema.encode(rows)[0] for rows in (train, test))
    margins = Margins(model.schema, x)
    copula = Copula(margins, x, seed)
    with torch.no_grad():
        line: dict[str, Any] = {
            "rows": len(x), "columns": x.shape[1], "limit": limit,
            "seconds": seconds,
            "independent columns": float(margins.log_prob(held_out).sum(1).mean()),
            "Gaussian copula": float(copula.log_prob(held_out).mean()),
            "TableMADE": float(model.score_samples(test).mean()),
            "TableMADE, eight orders": float(model.score_samples(test, orders=8).mean()),
        }  # fmt: skip
        hidden = (rng.random(held_out.shape) < 0.2) & ~held_out.isnan().numpy()
        for imputer in IMPUTERS:
            found = guesses(imputer, model, train, test, hidden)
            line[imputer] = errors(model.schema, found, test, hidden)
        torch.manual_seed(seed)
        for maker, drawn in (
            ("real rows", x),
            ("Gaussian copula", copula.sample(len(x))),
            ("TableMADE", model.schema.encode(model.sample(len(x), seed=seed))[0]),
        ):
            line[f"rows of {maker}"] = quality(model.schema, drawn, held_out, TARGETS[name])
    return line


JOBS = {"made_flows": run, "pgmpy": of_pgmpy, "ctgan": of_ctgan}
"""What is done with a table, each giving a line of results of its own."""

MAKERS = ("real rows", "Gaussian copula", "CTGAN", "TableMADE")
MEASURES = ("margins of numbers", "margins of categories", "rank correlations",
            "associations", "classifier")  # fmt: skip
MODELS = ("independent columns", "Gaussian copula", "Bayesian network", "TableMADE",
          "TableMADE, eight orders")  # fmt: skip


def page(results: Sequence[dict[str, Any]]) -> list[str]:
    """The sections of the page."""
    whole: dict[Any, dict[str, Any]] = {}
    for line in results:
        whole.setdefault((line["table"], line["seed"]), {}).update(line)
    lines = [line for line in whole.values() if "TableMADE" in line]
    scored, cells = [], []
    for name in dict.fromkeys(line["table"] for line in lines):
        of_table = [line for line in lines if line["table"] == name]
        first = of_table[0]
        size = f"{name} ({first['rows']} x {first['columns']}; {len(of_table)})"
        values = [float(np.mean([line.get(m, math.nan) for line in of_table])) for m in MODELS]
        shown = [
            f"**{v:.2f}**" if v == np.nanmax(values) else "-" if math.isnan(v) else f"{v:.2f}"
            for v in values
        ]
        scored.append([size, *shown, f"{np.mean([line['seconds'] for line in of_table]):.0f}"])
        for place, word in enumerate(("error of numbers", "categories right")):
            each = [[line[m][place] for line in of_table] for m in IMPUTERS]
            if any(value is None for row in each for value in row):
                continue
            means = [float(np.mean(row)) for row in each]
            best = min(means) if place == 0 else max(means)
            shown = [f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in means]
            cells.append([name, word, *shown])
    limit = max(line["limit"] for line in lines)
    lacking = [name for name in load() if name not in {line["table"] for line in lines}]
    missing = f" **Not run yet:** {', '.join(lacking)}." if lacking else ""
    text = LIKELIHOOD.format(
        draws=DRAWS, limit=limit, missing=missing, most=max(line["rows"] for line in lines)
    )
    made = []
    for name in dict.fromkeys(line["table"] for line in lines):
        of_table = [line for line in lines if line["table"] == name and "rows of TableMADE" in line]
        for k, measure in enumerate(MEASURES) if of_table else ():
            nothing = [math.nan] * len(MEASURES)
            values = [
                float(np.mean([line.get(f"rows of {m}", nothing)[k] for line in of_table]))
                for m in MAKERS
            ]
            if math.isnan(values[0]):  # there are no such columns, or one
                continue
            best = (np.nanmax if measure == "classifier" else np.nanmin)(values[1:])
            shown = [
                f"**{v:.3f}**" if v == best and m != MAKERS[0]
                else "-" if math.isnan(v) else f"{v:.3f}"
                for m, v in zip(MAKERS, values, strict=True)
            ]  # fmt: skip
            made.append([name, measure, *shown])
    target = ", ".join(f"{t} ({name})" for name, t in TARGETS.items())
    first_columns = ["table (training rows x columns; splits)", *MODELS, "seconds of training"]
    return [
        f"## Log-likelihood\n\n{text}\n\n" + markdown_table(first_columns, scored),
        f"## Hidden cells\n\n{CELLS}\n\n" + markdown_table(["table", "", *IMPUTERS], cells),
        f"## Synthetic rows\n\n{SYNTHETIC.format(target=target)}\n\n"
        + markdown_table(["table", "", *MAKERS], made),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="*", help="names; all by default")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS))
    parser.add_argument("--seeds", type=int, default=1, help="0 writes the page alone")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of training, of a core")
    parser.add_argument("--rows", type=int, default=TRAINED, help="to train on, at most")
    given, settings = parse_resumable(parser, "mixed", arguments)
    tables = load(given.tables)
    if given.quick:
        tables, given.limit = dict(list(tables.items())[:1]), 2.0
    given.runs.mkdir(parents=True, exist_ok=True)
    path = Path(given.runs) / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["table"], line["seed"], line["job"]) for line in lines}
    for name, seed, job in product(tables, range(given.seeds), given.jobs):
        if (name, seed, job) in done:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = JOBS[job](name, tables[name], seed, given.limit, given.rows)
            except ImportError:
                continue  # it is not installed
        lines.append({"table": name, "seed": seed, "job": job, **found})
        text = json.dumps(lines[-1])
        print(text, flush=True)
        with path.open("a") as file:
            file.write(text + "\n")
    if not lines:
        print("benchmarks.mixed: no data, nothing written", flush=True)
        return
    write_page("mixed", "Tables of mixed columns", page(lines), settings)


if __name__ == "__main__":
    main()
