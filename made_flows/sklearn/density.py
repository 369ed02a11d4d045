"""Density estimation of tables, as scikit-learn's estimators do it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted

from made_flows._checks import expect, positive_integer
from made_flows._registry import own_arguments
from made_flows.models.estimate import estimated
from made_flows.sklearn.base import TableEstimator, repetitions
from made_flows.tables.frames import expect_columns, read, write
from made_flows.tables.model import TableMADE
from made_flows.training.optimization import seeded


class MADEDensity(DensityMixin, TableEstimator):
    """A density of the rows of an array or a frame with columns of any kind.

    Rows may have missing values (NaN), in training too. See :class:`made_flows.TableMADE` for what
    is modelled.

    Args:
        budget: None for a :class:`made_flows.TableMADE`; ``"fast"``, ``"good"`` or ``"best"`` for
            what :func:`made_flows.estimate` makes of continuous columns without missing values, in
            at most ``max_seconds`` (the other arguments are not used then). It may hold some rows.
        columns, orders, hidden_features, components, max_epochs, max_seconds, validation, progress,
            random_state: see :class:`~made_flows.sklearn.base.TableEstimator`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> density = MADEDensity(max_epochs=2, hidden_features=(16,), random_state=0).fit(X)
        >>> density.score_samples(X).shape, density.sample(5).shape
        ((100,), (5, 2))
    """

    def __init__(
        self,
        *,
        budget: Any = None,
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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MADEDensity:
        """Fit the density to rows; whole weights count a row as often, others in expectation."""
        if self.budget is None:
            self._fit_model(X, sample_weight)
            return self
        X, seed = self._numbers(X, reset=True), self._seed()
        places = repetitions(X, sample_weight, seed)
        self.model_ = estimated(
            X if places is None else X[places],
            copies=None if places is None else torch.from_numpy(places),
            budget=self.budget,
            max_seconds=self.max_seconds,
            progress=self.progress,
            seed=seed,
        )
        return self

    def _numbers(self, X: Any, *, reset: bool = False) -> Any:
        X = self._table(X, reset=reset)
        if reset:
            self.names_: Any = None
        if not hasattr(X, "columns"):
            return X
        columns, frame = read(X, "X")
        if reset:
            self.frame_, self.names_ = frame, list(getattr(X, "column_names", X.columns))
        # Columns have places in the model, and scikit-learn looks at names of text alone.
        names = list(map(str, getattr(self, "names_", None) or columns))
        expect_columns(columns, names, "X")
        columns = {name: columns[name] for name in names}
        for name, values in columns.items():
            words = "to hold numbers, as all do where budget is set"
            if values.holds not in ("int", "float"):
                raise TypeError(f"Expected column {name!r} {words}; got {values.holds}")
        return np.stack([values.array.astype(float) for values in columns.values()], axis=1)

    def score_samples(self, X: Any) -> Any:
        """Return the log-likelihood of every row, (N,)."""
        check_is_fitted(self)
        if isinstance(self.model_, TableMADE):
            return super().score_samples(X)
        rows = torch.from_numpy(self._numbers(X))
        with torch.no_grad():
            return self.model_().log_prob(rows).double().numpy()

    def score_columns(self, X: Any) -> dict[str, Any]:
        check_is_fitted(self)
        got = type(self.model_).__name__
        expect(isinstance(self.model_, TableMADE), "scores of columns", "of budget=None", got)
        return super().score_columns(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-likelihood of rows."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows, as an array or a frame of the kind that was fitted to."""
        check_is_fitted(self)
        count = positive_integer(n_samples, "n_samples")
        seed = self._seed(random_state)
        if isinstance(self.model_, TableMADE):
            given: Any = {"orders": self.orders, "seed": seed, "progress": self.progress}
            return self.model_.sample(count, **given)
        with seeded(seed):
            drawn = self.model_().sample((count,)).double().numpy()
        names = getattr(self, "names_", None)
        if names is None:
            names = getattr(self, "feature_names_in_", None)  # of a pickle of before
        return (
            drawn if names is None else write(dict(zip(names, drawn.T, strict=True)), self.frame_)
        )
