"""Missing values of a table, filled in from the density of its rows."""

from __future__ import annotations

from typing import Any

from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from made_flows._checks import boolean, positive_integer
from made_flows._registry import own_arguments
from made_flows.sklearn.base import TableEstimator


class MADEImputer(OneToOneFeatureMixin, TransformerMixin, TableEstimator):
    """Fill missing values in, given the observed ones of their row.

    ``transform`` puts the best guess: the median of draws, of categories the most frequent.
    :meth:`impute` draws, any number of times. A column without a single value in training stays as
    it is.

    Args:
        draws: how many values are drawn for a guess.
        sample_posterior: whether ``transform`` puts one draw in place of the best guess.
        columns, orders, hidden_features, components, max_epochs, max_seconds, validation, progress,
            random_state: as for :class:`MADEDensity`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> X[:, 1] += X[:, 0]
        >>> X[:9, 1] = np.nan
        >>> imputer = MADEImputer(max_epochs=2, hidden_features=(16,), random_state=0)
        >>> bool(np.isfinite(imputer.fit_transform(X)).all())
        True
    """

    def __init__(
        self,
        *,
        draws: int = 50,
        sample_posterior: bool = False,
        columns: Any = None,
        orders: int = 1,
        hidden_features: Any = None,
        components: int = 8,
        max_epochs: int | None = None,
        max_seconds: float | None = None,
        validation: float = 0.1,
        progress: bool = False,
        random_state: Any = None,
    ) -> None:
        self.__dict__.update(own_arguments(locals()))

    def fit(self, X: Any, y: Any = None) -> MADEImputer:
        """Fit the density to rows, of which some values may be missing."""
        positive_integer(self.draws, "draws")
        boolean(self.sample_posterior, "sample_posterior")
        self._fit_model(X)
        return self

    def transform(self, X: Any) -> Any:
        """Return X with every missing value filled in, as a table of its kind."""
        check_is_fitted(self)
        X = self._table(X)
        if boolean(self.sample_posterior, "sample_posterior"):
            seed = self._seed()
            return self.model_.impute(X, orders=self.orders, seed=seed, progress=self.progress)
        return self.model_.fill(X, draws=self.draws, orders=self.orders, progress=self.progress)

    def impute(self, X: Any, count: int = 5) -> list[Any]:
        """Return several imputations: X filled by as many independent draws."""
        check_is_fitted(self)
        X, seed = self._table(X), self._seed()
        count = positive_integer(count, "count")
        given: Any = {"orders": self.orders, "progress": self.progress}
        return [self.model_.impute(X, seed=seed + k, **given) for k in range(count)]
