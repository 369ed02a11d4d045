"""What the estimators have in common: tables in scikit-learn's way, and a model of them."""

from __future__ import annotations

from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_is_fitted,
    validate_data,
)

from made_flows._checks import expect, positive_integer
from made_flows._keywords import helpful
from made_flows.tables.columns import ATOM, CategoryColumn
from made_flows.tables.frames import as_written, expect_exact
from made_flows.tables.model import TableMADE
from made_flows.tables.schema import Schema
from made_flows.training.convert import as_array, in_double
from made_flows.training.copies import hold_out
from made_flows.training.defaults import held_out_for
from made_flows.training.optimization import seeded

_CELL = 0.05
"""Steps of numbers that noise is added to, in deviations: small beside it, and alike."""

_SMOOTHED, _COPIES = 4000, 20
"""Rows with noise, about, of fewer without; how often each is taken at most."""


class TableEstimator(BaseEstimator):
    """An estimator with a density of tables in it, ``model_``, once it is fitted.

    Attributes:
        columns: kinds of columns by name, as for :meth:`made_flows.TableMADE.from_data`; columns of
            an array are named x0, x1 and so on.
        orders: how many orders of the columns are mixed in scores.
        hidden_features: widths of the hidden layers; by default two that grow with the columns.
        components: normals in the mixture of a column of numbers.
        max_epochs, max_seconds: when training ends at the latest; None as in
            :func:`made_flows.fit`.
        validation: the fraction of rows to stop training by; of fewer than twenty none are held
            out, and training takes ``max_epochs`` or thirty epochs.
        progress: whether training shows a bar, and drawing rows and missing values one after two
            seconds.
        random_state: seed, generator or None.
        model_: the :class:`~made_flows.TableMADE`, in double precision.
        n_features_in_, feature_names_in_: as always.
    """

    model_: Any

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        cls.__init__ = helpful(cls.__init__)  # type: ignore[method-assign]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _table(self, X: Any, *, reset: bool = False) -> Any:
        """Check X as scikit-learn does: frames by their names, all else as an array of numbers."""
        if hasattr(X, "columns") and hasattr(X, "shape"):
            validate_data(self, X, reset=reset, skip_check_array=True)
            rows = _num_samples(X)
            expect(rows > 0, "X", "to have a minimum of 1 row", f"0 sample(s) (shape={X.shape})")
            return X
        if np.ma.isMaskedArray(X):  # scikit-learn takes what is behind the mask
            X = np.ma.filled(X.astype(np.float64), np.nan)
        X = as_array(X, "X") if isinstance(X, torch.Tensor) else X
        if getattr(X, "dtype", None) == np.longdouble:
            X = in_double(X, "X")
        precisions = [np.float64, np.float32]
        try:
            checked = validate_data(
                self, X, reset=reset, dtype=precisions, ensure_all_finite="allow-nan"
            )
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            words = "to hold numbers, or to be a frame of any columns, as pandas.DataFrame(X) is"
            raise ValueError(f"Expected X {words}; got text: {error}") from error
        given = np.asarray(X)
        if given.dtype.kind != "f":
            expect_exact(checked, given, "X")
        return as_written(checked)

    def _seed(self, random_state: Any = None) -> int:
        """Draw a seed, of another random state than the estimator's where one is given."""
        state = self.random_state if random_state is None else random_state
        return int(check_random_state(state).randint(2**31 - 1))

    def _fit_model(self, X: Any, sample_weight: Any = None, noise: float = 0.0) -> Any:
        """Fit the model, to rows with noise of so many deviations, and return the checked table."""
        X = self._table(X, reset=True)
        positive_integer(self.orders, "orders")
        seed = self._seed()
        places = repetitions(X, sample_weight, seed)
        rows = X if places is None else _safe_indexing(X, places)
        with seeded(seed):
            cell = _CELL if noise else None
            schema = Schema.of(rows, self.columns, any_number=True, resolution=cell)
            # Of noisy numbers, direct connections learn by heart: a detector is better without.
            options = {"components": self.components, "direct": not noise}
            model = TableMADE(schema, self.hidden_features, **options)
            codes = schema.encode(rows)[0]
            if noise:
                codes = smoothed(schema, codes, noise, seed)
            model.start_from_codes(codes)
        copies = np.arange(_num_samples(X)) if places is None else places
        different = np.unique(copies)
        part: Any
        part, max_epochs = held_out_for(len(different), self.validation, self.max_epochs)
        if isinstance(part, Real) and 0 < float(part) < 1:
            # Copies of a row stay together: what is trained on shows nothing where it is held out.
            # (Draws of a smoothed density are no copies.)
            known = np.arange(len(codes)) if noise else copies
            kept, held_out = hold_out(
                len(codes), lambda places: (codes[places], None), float(part),
                torch.Generator().manual_seed(seed), "X", torch.from_numpy(known),
            )  # fmt: skip
            codes, part = codes[kept], (codes[held_out], None)
        model.fit_codes(
            codes,
            validation=part,
            max_epochs=max_epochs,
            max_seconds=self.max_seconds,
            progress=self.progress,
            seed=seed,
        )
        # Trained in single precision; scored in double, so that a row's does not depend on others.
        self.model_ = model.double()
        return X

    def score_samples(self, X: Any) -> Any:
        """Return the log-likelihood of every row, (N,)."""
        check_is_fitted(self)
        return self.model_.score_samples(self._table(X), orders=self.orders)

    def score_columns(self, X: Any) -> dict[str, Any]:
        """Return how likely values are given the others of their rows, by column."""
        check_is_fitted(self)
        return cast(dict[str, Any], self.model_.score_columns(self._table(X)))


def repetitions(X: Any, sample_weight: Any, seed: int) -> Any:
    """Return places of the rows to train on, each as often as its weight says; None for all once.

    Whole weights are numbers of repetitions. Others are expected ones, of as many rows in all as
    there are, drawn systematically: within one of their expectation each.
    """
    if sample_weight is None:
        return None
    weight = _check_sample_weight(sample_weight, X)
    expect(bool((weight >= 0).all()), "sample_weight", "to hold no negative number", weight.min())
    expect(bool((weight > 0).any()), "sample_weight", "to hold a number above 0", "none")
    if bool((weight == np.round(weight)).all()):
        return np.repeat(np.arange(len(weight)), weight.astype(int))
    ends = np.cumsum(weight) / weight.sum() * len(weight)
    points = np.random.default_rng(seed).random() + np.arange(len(weight))
    return np.searchsorted(ends, points).clip(max=len(weight) - 1)


def smoothed(schema: Schema, codes: torch.Tensor, noise: float, seed: int) -> torch.Tensor:
    """Return draws of rows' density, smoothed, as codes.

    Numbers get normal noise, of so many of their column's deviations; categories, and zeros beside
    a density, stay.
    """
    rng, x = np.random.default_rng(seed), codes.numpy()
    free = ~np.isnan(x) & (x != ATOM)
    free &= [not isinstance(column, CategoryColumn) for column in schema.columns]
    some = free.any(axis=0)
    spread = np.zeros(len(some))
    spread[some] = noise * np.std(x[:, some], axis=0, where=free[:, some])
    copies = min(max(1, _SMOOTHED // len(x)), _COPIES)
    x, scale = (np.tile(each, (copies, 1)) for each in (x, np.where(free, spread, 0.0)))
    return torch.from_numpy(x + scale * rng.standard_normal(x.shape))
