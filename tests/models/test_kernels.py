"""Kernel densities: what they score is what they sample, and is a density."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import (
    Categorical,
    MixtureSameFamily,
    MultivariateNormal,
)

import made_flows as mf
from made_flows.models.estimate_kernels import fit_kernels
from made_flows.models.estimate_rows import thinned
from made_flows.models.kernels import Kernel, KernelDensity

F64 = torch.float64
KINDS = [Kernel(*each) for each in product((False, True), (False, True), (0.2, 0.7))]


def rows(n: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, columns, generator=generator, dtype=F64)
    return x @ (torch.eye(columns, dtype=F64) + 0.5).triu() * 0.8


def model_of(n: int, columns: int) -> KernelDensity:
    weights = torch.arange(1.0, 9.0, dtype=F64)
    model = KernelDensity.around(rows(n, columns), KINDS, weights / weights.sum())
    return model.double()


def told(model: KernelDensity) -> MixtureSameFamily:
    """The same mixture as torch has it, of all kernels of all kinds."""
    factors = model.widths[..., None, None] * model.factors[list(model.shapes)][:, None]
    weights = (model.weights[:, None] / model.rows).expand(-1, model.rows)
    places = model.places.expand(model.kinds, -1, -1)
    each = MultivariateNormal(places.flatten(0, 1), scale_tril=factors.flatten(0, 1))
    return MixtureSameFamily(Categorical(weights.flatten()), each, validate_args=False)


@pytest.mark.parametrize("columns", [1, 3, 12])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_scores_are_those_of_all_kernels(columns: int, batch: tuple[int, ...]) -> None:
    model, x = model_of(20, columns), 2 * torch.randn(*batch, columns, dtype=F64)
    if x.numel():  # torch's does not take none
        torch.testing.assert_close(model().log_prob(x), told(model).log_prob(x))
    assert model().log_prob(x).shape == batch
    single = copy.deepcopy(model).float()
    found = single().log_prob(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), model().log_prob(x), rtol=1e-4, atol=1e-4)


def test_many_values_are_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(20, 3), rows(50, 3, 1)
    expected = model().log_prob(x)
    monkeypatch.setattr("made_flows.models.kernels._CELLS", 140)
    torch.testing.assert_close(model().log_prob(x), expected)
    other = model_of(20, 3)
    torch.testing.assert_close(other.widths, model.widths)


def test_gradients_with_respect_to_values() -> None:
    model, x = model_of(9, 2), rows(4, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(model().log_prob, x)
    assert torch.autograd.gradgradcheck(model().log_prob, x)


def test_compilers_and_maps() -> None:
    model, x = model_of(20, 3), rows(6, 3, 1)
    expected = model().log_prob(x)
    mapped = torch.func.vmap(lambda row: model().log_prob(row))(x)
    torch.testing.assert_close(mapped, expected)
    compiled = torch.compile(lambda x: model().log_prob(x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    with pytest.raises(ValueError, match="correlated to be of at least one kind"):
        KernelDensity(3, 5, [])


def test_samples_follow_what_is_scored() -> None:
    """By the probability integral transform, a false alarm in a thousand."""
    model = model_of(15, 1)
    torch.manual_seed(0)
    x = model().sample((4000,))
    each = torch.distributions.Normal(
        model.places[:, 0], model.widths * model.factors[list(model.shapes), 0]
    )
    share = each.cdf(x[:, :, None]).mean(dim=2) @ model.weights
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    model = model_of(15, 3)
    x, exact = model().sample((20_000,)), told(model)
    error = x.T.cov().diagonal().div(len(x)).sqrt()
    assert ((x.mean(0) - exact.mean).abs() < 4 * error).all()
    scores = model().log_prob(x)
    other = model().log_prob(exact.sample((20_000,)))
    spread = math.sqrt(float(scores.var() + other.var()) / len(x))
    assert abs(float(scores.mean() - other.mean())) < 4 * spread
    assert model().sample().shape == (3,)
    assert model().expand((2,)).sample((0, 4)).shape == (0, 4, 2, 3)


def test_copies_of_a_row_and_rows_that_almost_repeat() -> None:
    x = rows(30, 2)
    repeated = torch.cat([x, x[:3], x[:1] + 1e-12])
    model = KernelDensity.around(repeated, KINDS)
    assert model.widths.min() >= 0.2 * 0.05 * 0.99
    assert model().log_prob(x.float()).isfinite().all()
    pair = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=F64)
    assert KernelDensity.around(pair, KINDS)().log_prob(pair.float()).isfinite().all()


def test_rows_far_out_are_told_apart() -> None:
    """Products of what is a million from zero keep nothing of a distance of one."""
    x = rows(20, 2)
    x[:3] = 1e9 + torch.arange(3.0, dtype=F64)[:, None]
    x[3, 1], x[4, 1] = -1e6, -1e6 + 0.5
    model = KernelDensity.around(x, KINDS).double()
    torch.testing.assert_close(model().log_prob(x + 0.01), told(model).log_prob(x + 0.01))
    mapped = torch.func.vmap(lambda row: model().log_prob(row))(x)
    torch.testing.assert_close(mapped, model().log_prob(x))


@pytest.mark.parametrize("value", [0.0, 0.3, 4e-9])
def test_columns_constant_in_the_rows_that_are_taken(value: float) -> None:
    """Other values, symmetric ones, are in rows between those that kernels are put around."""
    x = rows(6400, 2)
    x[:, 0] = value
    x[1:6000:3000, 0], x[3:6000:3000, 0] = value + 1, value - 1
    every = torch.arange(len(x))
    taken = x[thinned(every[:6000], 3000), 0]
    assert (taken == taken[0]).all()
    found = fit_kernels(x, [(every[:6000], every[6000:])], -1e4, math.inf)
    assert found.scores[0].isfinite().all()
    assert found.scores[0].mean() > -5
    assert found.models[0]().log_prob(x[:100].float()).isfinite().all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(4, 2), r"value of shape \(\.\.\., 3\)"),
        (torch.zeros(6), r"value of shape \(\.\.\., 3\)"),
        (torch.full((4, 3), math.nan), "value to be finite"),
    ],
)
def test_values_of_another_kind(value: Tensor, message: str) -> None:
    model = model_of(9, 3)
    with pytest.raises(ValueError, match=message):
        model().log_prob(value)
    whole = torch.arange(6).reshape(2, 3)
    torch.testing.assert_close(model().log_prob(whole), model().log_prob(whole.double()))
    assert model().expand((4, 2)).log_prob(whole).shape == (4, 2)


def clusters(n: int, seed: int) -> Tensor:
    """Sixty places of all sizes, which rows are near to."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(60, 4, generator=generator)
    sizes = 0.01 * 30 ** torch.rand(60, 1, generator=generator)
    generator.manual_seed(seed)
    chosen = torch.randint(60, (n,), generator=generator)
    return places[chosen] + sizes[chosen] * torch.randn(n, 4, generator=generator)


def test_kinds_are_weighted_by_rows_left_out() -> None:
    x, test = clusters(600, 1).double() * 1e4 + 3e5, clusters(500, 2).double() * 1e4 + 3e5
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    every = torch.arange(len(x))
    folds = [(every[~torch.isin(every, fold)], fold) for fold in order.tensor_split(3)]
    found = fit_kernels(x, folds, -1e4, math.inf)
    [model] = found.models
    left_out = torch.cat(found.scores).mean()
    assert [len(score) for score in found.scores] == [200, 200, 200]
    with torch.no_grad():
        score = model().log_prob(test).double().mean()
    assert score > left_out - 0.1  # all rows are in it now
    scale = x.std(0).log().sum()
    for kind in (Kernel(False, False, width) for width in (0.05, 0.1, 0.2, 0.4)):
        z = (x - x.mean(0)) / x.std(0)
        one = KernelDensity.around(z, [kind])().log_prob((test - x.mean(0)) / x.std(0))
        assert score > (one - scale).mean() + 0.5
    [single] = fit_kernels(x, folds[:1], -1e4, math.inf).models
    assert isinstance(single, mf.Flow)
    assert single.base.rows == 600  # all rows


def test_estimate_has_them(tmp_path) -> None:
    x, test = clusters(400, 1), clusters(400, 2)
    model = mf.estimate(x, budget="fast", max_seconds=2, progress=False, seed=0)
    kept = [part.base for part in model.components if isinstance(part, mf.Flow)]
    assert any(isinstance(base, KernelDensity) for base in kept)
    with torch.no_grad():
        scores = model().log_prob(test)
        mf.save(model, tmp_path / "model.safetensors")
        loaded = mf.load(tmp_path / "model.safetensors")
        assert torch.equal(loaded().log_prob(test), scores)
    assert (
        float(scores.mean())
        > float(MultivariateNormal(x.mean(0), x.T.cov()).log_prob(test).mean()) + 3
    )
    without = mf.estimate(x, kernels=False, budget="fast", max_seconds=1, progress=False, seed=0)
    assert not any(isinstance(part, KernelDensity) for part in without.modules())
    assert not any(len(buffer) == len(x) for _, buffer in without.named_buffers() if buffer.dim())
    with pytest.raises(TypeError, match="kernels to be True or False"):
        mf.estimate(x, kernels="no", progress=False)


def test_rows_of_sorted_tables_are_from_all_over() -> None:
    assert thinned(torch.arange(7), 7).tolist() == list(range(7))
    found = thinned(torch.arange(50_000), 20_000)
    assert len(found.unique()) == 20_000
    assert found.double().mean() == pytest.approx(25_000, rel=1e-3)
