"""The end-to-end benchmark: its table, and a run that stops at its target."""

from __future__ import annotations

import math

import torch

from benchmarks.end_to_end import FLOWS, load, train


def test_training_rows_are_standardised_and_others_are_not_among_them() -> None:
    train_rows, valid_rows = load("breast_cancer")
    assert train_rows.shape[1] == valid_rows.shape[1] == 30
    assert len(train_rows) + len(valid_rows) == 569
    torch.testing.assert_close(train_rows.mean(0), torch.zeros(30), atol=1e-5, rtol=0.0)
    assert not (valid_rows[:, None] == train_rows).all(-1).any()


def test_a_run_ends_at_its_target_or_says_how_far_it_came() -> None:
    data = load("breast_cancer", 40)
    make = FLOWS["made_flows"]
    reached = train(make, data, math.inf, 0, 32, 3)
    assert reached.seconds is not None
    assert reached.epochs == 1
    missed = train(make, data, -math.inf, 0, 32, 2)
    assert missed.seconds is None
    assert missed.epochs == 2
    assert math.isfinite(missed.least)
