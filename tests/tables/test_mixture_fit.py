"""Mixtures of normals for a column by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.tables.mixture_fit import fit_mixture

MEANS = torch.linspace(-2, 2, 8)


def _scores(x: Tensor, weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    each = torch.distributions.Normal(means, scales).log_prob(x[:, None]) + weights.log()
    return each.logsumexp(dim=-1)


@pytest.mark.parametrize("count", [2, 5, 15, 40, 200])
def test_few_values_are_not_learnt_by_heart(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, generator=generator, dtype=torch.float64)
    others = torch.randn(20_000, generator=generator, dtype=torch.float64)
    found = fit_mixture(rows, torch.zeros(count), MEANS)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(others).mean()
    assert _scores(others, *found).mean() > truth - 0.25


@pytest.mark.parametrize("count", [60, 2000])
def test_what_values_do_tell_is_found(count: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        sides = torch.randint(2, (count,), generator=generator) * 2.0 - 1
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        return 0.95 * sides + 0.1 * noise

    rows, others = draw(count), draw(20_000)
    weights, means, scales = fit_mixture(rows, torch.zeros(count), MEANS)
    truth = _scores(others, *map(torch.tensor, ((0.5, 0.5), (-0.95, 0.95), (0.1, 0.1)))).mean()
    assert _scores(others, weights, means, scales).mean() > truth - (0.05 if count > 500 else 0.25)


@pytest.mark.parametrize("values", [[], [0.3], [0.0] * 7, [0.0] * 600, [5.0, -5.0], [1e3, 0.0]])
def test_awkward_values_give_a_mixture(values: list[float]) -> None:
    z = torch.tensor(values, dtype=torch.float64)
    weights, means, scales = fit_mixture(z, torch.zeros_like(z), MEANS)
    assert weights.sum().item() == pytest.approx(1)
    assert bool(torch.isfinite(torch.stack([weights, means, scales])).all())
    assert bool(((scales >= 1e-2) & (scales < 1)).all())


def test_a_table_of_few_rows_is_not_much_worse_than_its_columns() -> None:
    rng = np.random.default_rng(0)
    table = {f"c{i}": rng.normal(size=2015) for i in range(10)}
    few = {name: values[:15] for name, values in table.items()}
    model: Any = mf.fit_table(few, progress=False, seed=0)
    others = {name: values[15:] for name, values in table.items()}
    truth = -5 * (1 + math.log(2 * math.pi))
    assert truth - 2.5 < model.score_samples(others).mean() < truth
