"""Outliers: the rows of a table that are least likely."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _num_samples, check_is_fitted

from made_flows._checks import expect, non_negative_integer, real_number
from made_flows._registry import own_arguments
from made_flows.sklearn.base import TableEstimator
from made_flows.tables.kernels import RowKernels, scott_bandwidth


class MADEOutlierDetector(OutlierMixin, TableEstimator):
    """Tell the rows that a density fitted to most of them finds unlikely.

    A row's score is a mean of four: the log-density of the network (:class:`made_flows.TableMADE`),
    and how near the row is to training rows, by kernels of two widths and by its neighbours
    (:class:`~made_flows.tables.kernels.RowKernels`). The one learns how columns depend on each
    other, and smooths over what is small; the others know where rows are, and not why, each at its
    own scale. Each is in units of the median and interquartile range of the training rows' scores
    (Aggarwal & Sathe 2015, *Theoretical Foundations and Algorithms for Outlier Ensembles*), so that
    none rules. ``decision_function`` is the score less the contamination's quantile: negative for
    outliers. :meth:`score_columns` says which values make a row odd to the network.

    The network learns rows to whose numbers normal noise is added, of half Scott's bandwidth
    (Rothfuss et al. 2019, *Noise Regularization for Conditional Density Estimation*): their density
    convolved with that, which is nowhere as high as one likes, though values repeat, and whose
    conditionals do not turn on details of the other values that are chance in few rows.

    Args:
        kernels: training rows, at most, that the kernels are around; 0 for the network alone,
            whose log-density is then the score.
        contamination: the part of the training rows that count as outliers, in (0, 0.5].
        columns, orders, hidden_features, components, max_epochs, max_seconds, validation, progress,
            random_state: as for :class:`MADEDensity`.

    Attributes:
        offset_: the score below which a row is an outlier.
        kernels_: the :class:`~made_flows.tables.kernels.RowKernels`, or None.
        location_, scale_: of the training rows' four scores, (4,).

    Example:
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> detector = MADEOutlierDetector(max_epochs=2, hidden_features=(16,), random_state=0)
        >>> detector.fit(X).predict([[0.0, 0.0], [50.0, -50.0]])
        array([ 1, -1])
    """

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        kernels: int = 10_000,
        columns: Any = None,
        orders: int = 4,
        hidden_features: Any = None,
        components: int = 8,
        max_epochs: int | None = None,
        max_seconds: float | None = None,
        validation: float = 0.1,
        progress: bool = False,
        random_state: Any = None,
    ) -> None:
        self.__dict__.update(own_arguments(locals()))

    def fit(self, X: Any, y: Any = None) -> MADEOutlierDetector:
        """Fit the density and its threshold to rows."""
        self._fit_scored(X)
        return self

    def _fit_scored(self, X: Any) -> Any:
        """Fit to rows, and return their scores."""
        part = real_number(self.contamination, "contamination", above=0)
        expect(part <= 0.5, "contamination", "to be in (0, 0.5]", part)
        most = non_negative_integer(self.kernels, "kernels")
        X = self._fit_model(X, noise=scott_bandwidth(*self._table(X, reset=True).shape) / 2)
        self.kernels_: Any = None
        if most:
            rng = check_random_state(self._seed())
            rows = np.sort(rng.permutation(_num_samples(X))[:most])
            some = _safe_indexing(X, rows)
            whole = self.model_.impute(some, seed=self._seed(), progress=self.progress)
            self.kernels_ = RowKernels(self.model_.schema.columns, whole)
        parts = self._parts(X)
        if most:
            low, self.location_, high = np.percentile(parts, [25, 50, 75], axis=0)
            self.scale_ = np.where(high > low, high - low, 1.0)
        scores = self._pooled(parts)
        self.offset_ = float(np.percentile(scores, 100 * part))
        return scores

    def _parts(self, X: Any) -> Any:
        """Return the network's scores, (N, 1), or with those of kernels, (N, 4)."""
        scores = self.model_.score_samples(X, orders=self.orders)[:, None]
        return scores if self.kernels_ is None else np.hstack([scores, self.kernels_.scores(X)])

    def _pooled(self, parts: Any) -> Any:
        if self.kernels_ is None:
            return parts[:, 0]
        return ((parts - self.location_) / self.scale_).mean(axis=1)

    def score_samples(self, X: Any) -> Any:
        """Return the score of every row, (N,): low where it is odd."""
        check_is_fitted(self)
        return self._pooled(self._parts(self._table(X)))

    def decision_function(self, X: Any) -> Any:
        """Return how far rows are above the threshold; negative for outliers."""
        check_is_fitted(self)
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Return 1 for inliers and -1 for outliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)
