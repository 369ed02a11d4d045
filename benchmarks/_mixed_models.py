"""Simpler densities of tables of mixed columns: independent ones, a copula, a Bayesian network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_flows.tables.columns import ATOM, CategoryColumn
from made_flows.tables.head import TableHead
from made_flows.tables.parts import Numbers, raw_scale
from made_flows.tables.schema import Schema

DRAWS = 100
"""Draws of a discrete value's place in its cell, for the copula."""


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
