"""Training mode: scores that are random there are not taken without a word."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

import made_flows as mf

RANDOM: dict[str, Callable[[], mf.Model]] = {
    "all orders": lambda: mf.GaussianMADE(3, orders="all"),
    "some masks": lambda: mf.GaussianMADE(3, masks=2),
    "dropout": lambda: mf.GaussianMADE(3, dropout=0.5),
    "dropout in a MAF": lambda: mf.MAF(3, dropout=0.5),
    "dropout in a base": lambda: mf.MAF(3, base=mf.GaussianMADE(3, dropout=0.5)),
    "batch normalisation": lambda: mf.MAF(3, normalize="batch"),
    "a mixture": lambda: mf.Mixture([mf.MAF(3), mf.GaussianMADE(3, dropout=0.5)]),
    "a flow on a flow": lambda: mf.Flow([mf.Permutation(3)], base=mf.MAF(3, normalize="batch")),
}
X = torch.randn(8, 3)


@pytest.mark.parametrize("name", RANDOM)
def test_random_scores_are_not_taken_without_a_word(name: str) -> None:
    model = RANDOM[name]().train()
    with torch.no_grad(), pytest.warns(mf.TrainingModeWarning, match=r"Call model.eval\(\)"):
        model().log_prob(X)


@pytest.mark.parametrize("name", RANDOM)
def test_nothing_is_said_of_training_samples_and_evaluation(name: str) -> None:
    model = RANDOM[name]().train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().log_prob(X).mean().backward()
        model().sample((2,))
        mf.fit(model, X, max_epochs=1, progress=False, seed=0)
        model.eval()
        with torch.no_grad():
            model().log_prob(X)


def test_orders_that_are_chosen_are_not_random() -> None:
    model = RANDOM["all orders"]().train()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        model.arranged([2, 1, 0])().log_prob(X)  # type: ignore[attr-defined, operator]
        model.conditional(X).log_prob(X)  # type: ignore[attr-defined, operator]
