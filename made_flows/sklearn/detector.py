"""The outlier detector in PyOD's form, whose signs are the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from made_flows.sklearn.outliers import MADEOutlierDetector


class MADEDetector(MADEOutlierDetector):
    """Detect outliers with PyOD's names: high scores are odd, and 1 stands for an outlier.

    It needs no PyOD. Arguments are those of :class:`MADEOutlierDetector`.

    Attributes:
        decision_scores_: the scores of the training rows.
        threshold_: the score above which a row is an outlier.
        labels_: 1 for outliers among the training rows, else 0.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> detector = MADEDetector(max_epochs=2, hidden_features=(16,), random_state=0).fit(X)
        >>> detector.predict([[0.0, 0.0], [50.0, -50.0]])
        array([0, 1])
    """

    def fit(self, X: Any, y: Any = None) -> MADEDetector:
        self.decision_scores_ = -self._fit_scored(X)
        self.threshold_ = -self.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def decision_function(self, X: Any) -> Any:
        """Return minus the score of rows."""
        check_is_fitted(self)
        return -self.score_samples(X)

    def predict(self, X: Any) -> Any:
        """Return 1 for outliers and 0 for inliers."""
        return (self.decision_function(X) > self.threshold_).astype(int)

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        """Fit to rows, and return their labels."""
        return np.asarray(self.fit(X).labels_)
