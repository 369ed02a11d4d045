"""Outliers: the rows of a table that are least likely."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import check_is_fitted

from made_flows._checks import expect, non_negative_integer, real_number
from made_flows.sklearn.base import TableEstimator
from made_flows.tables.kernels import RowKernels


class MADEOutlierDetector(OutlierMixin, TableEstimator):
    """Tell the rows that a density fitted to most of them finds unlikely.

    A row's score is the sum of two log-densities, of the network (:class:`made_flows.TableMADE`)
    and of kernels around training rows: a logarithmic pool (Genest and Zidek 1986). The one learns
    how columns depend on each other, and smooths over what is small; the other knows where rows
    are, and not why. ``decision_function`` is the score less the contamination's quantile: negative
    for outliers. :meth:`score_columns` says which values make a row odd to the network.

    A density can be as high as one likes where values repeat, and a probability beside it cannot:
    their sum would tell rows of repeated values from others and not odd ones from usual ones. So a
    number is scored by the probability of a value within half a ``resolution`` of it.

    Args:
        resolution: in standard deviations of a column; None for its own density or probability.
        kernels: training rows, at most, that the kernels are around; 0 for the network alone.
        contamination: the part of the training rows that count as outliers, in (0, 0.5].
        columns, orders, hidden_features, components, max_epochs, max_seconds, validation, progress,
            random_state: as for :class:`MADEDensity`.

    Attributes:
        offset_: the score below which a row is an outlier.
        kernels_: the :class:`~made_flows.tables.kernels.RowKernels`, or None.

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
        resolution: float | None = 2.0,
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
        super().__init__(
            columns=columns, orders=orders, hidden_features=hidden_features,
            components=components, max_epochs=max_epochs, max_seconds=max_seconds,
            validation=validation, progress=progress, random_state=random_state,
        )  # fmt: skip
        self.contamination = contamination
        self.resolution = resolution
        self.kernels = kernels

    def fit(self, X: Any, y: Any = None) -> MADEOutlierDetector:
        """Fit the density and its threshold to rows."""
        self._fit_scored(X)
        return self

    def _fit_scored(self, X: Any) -> Any:
        """Fit to rows, and return their scores."""
        part = real_number(self.contamination, "contamination", above=0)
        expect(part <= 0.5, "contamination", "to be in (0, 0.5]", part)
        if self.resolution is not None:
            real_number(self.resolution, "resolution", above=0)
        most = non_negative_integer(self.kernels, "kernels")
        X = self._fit_model(X, resolution=self.resolution)
        scores = self.model_.score_samples(X, orders=self.orders)
        self.kernels_ = None
        if most:
            rng, count = check_random_state(self._seed()), len(scores)
            rows = np.sort(rng.permutation(count)[:most])
            whole = self.model_.impute(_safe_indexing(X, rows), seed=self._seed())
            self.kernels_ = RowKernels(self.model_.schema.columns, whole)
            scores += self.kernels_.log_prob(X)
        self.offset_ = float(np.percentile(scores, 100 * part))
        return scores

    def score_samples(self, X: Any) -> Any:
        """Return the score of every row, (N,): low where it is odd."""
        scores = super().score_samples(X)
        return scores if self.kernels_ is None else scores + self.kernels_.log_prob(self._table(X))

    def decision_function(self, X: Any) -> Any:
        """Return how far rows are above the threshold, in nats; negative for outliers."""
        check_is_fitted(self)
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Return 1 for inliers and -1 for outliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)
