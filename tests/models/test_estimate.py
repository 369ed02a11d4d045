"""estimate(): rows in, a mixture of trained models out."""

from __future__ import annotations

import math
import time
import warnings

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import made_flows as mf
from made_flows.models.estimate_gaussians import NormalMixtures, sparse_weights
from made_flows.models.estimate_rows import EstimateWarning, check_columns
from made_flows.models.estimate_run import Run
from made_flows.models.gaussian_mixture import fit_gaussians, gaussian_model, merged

QUICK = {"budget": "fast", "progress": False, "seed": 0}


def ring(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    noise = 0.1 * torch.randn(n, 2, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], dim=1) + noise


def normal(n: int, columns: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=generator) @ (torch.eye(columns) + 0.5).triu()


@pytest.fixture
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate is trained for four epochs: what is asked does not depend on how well."""

    def fit(*arguments, **options):
        return mf.fit(*arguments, **options | {"max_epochs": 4})

    for module in ("estimate_run", "estimate_gaussians"):
        monkeypatch.setattr(f"made_flows.models.{module}.fit", fit)


@torch.no_grad()
def score(model, x: Tensor, context: Tensor | None = None) -> float:
    return float(model(context).log_prob(x).double().mean())


def test_it_finds_what_a_normal_distribution_does_not():
    x, test = ring(300), ring(500, seed=1)
    model = mf.estimate(x, **QUICK, max_seconds=3)
    assert isinstance(model, mf.Mixture)
    assert not model.training
    joint = MultivariateNormal(x.mean(0), x.T.cov())
    assert score(model, test) > float(joint.log_prob(test).mean()) + 0.5
    assert model().sample((7,)).shape == (7, 2)


def test_it_is_no_worse_than_a_normal_distribution_where_that_is_true():
    x, test = normal(60, 6), normal(1000, 6, seed=1)
    model = mf.estimate(x, **QUICK, max_seconds=2)
    joint = MultivariateNormal(x.mean(0), x.T.cov())
    assert score(model, test) > float(joint.log_prob(test).mean()) - 0.1


def test_natural_units_and_files(tmp_path):
    x = ring(120)
    scale, shift = torch.tensor([1e4, 1e-3]), torch.tensor([5e4, 1.0])
    model = mf.estimate(x * scale + shift, **QUICK, max_seconds=2)
    plain = score(model, x * scale + shift) + float(scale.log().sum())
    assert plain > -2.3  # a normal distribution has -2.2 at best where the rows are
    mf.save(model, tmp_path / "model.safetensors")
    loaded = mf.load(tmp_path / "model.safetensors")
    assert score(loaded, x * scale + shift) == score(model, x * scale + shift)


def test_contexts():
    c = normal(200, 2, seed=3)
    x = 3 * c[:, :1] + 0.1 * normal(200, 2)
    model = mf.estimate(x, c, **QUICK, max_seconds=2)
    assert score(model, x, c) > -1.0
    assert model(c[:5]).sample().shape == (5, 2)


@pytest.mark.parametrize("kind", ["bool", "zeros and ones", "categories"])
def test_discrete_rows(kind: str):
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 2 if kind != "categories" else 4, (150, 1), generator=generator)
    x = torch.cat([first, first, torch.randint(0, 2, (150, 2), generator=generator)], dim=1)
    given = x.bool() if kind == "bool" else x.float() if kind == "zeros and ones" else x
    model = mf.estimate(given, **QUICK, max_seconds=40)
    independent = 3 * math.log(2) + math.log(2 if kind != "categories" else 4)
    if kind == "categories":
        independent += math.log(2)
    rows = x if kind == "categories" else x.float()
    assert score(model, rows) > -independent + 0.3
    samples = model().sample((50,))
    assert float((samples[:, 0] == samples[:, 1]).float().mean()) > 0.7


@pytest.mark.usefixtures("few_epochs")
def test_it_is_reproducible_and_leaves_the_generators_alone(capsys):
    x = ring(60)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = mf.estimate(x, budget="fast", progress=False, seed=3, max_seconds=300)
    assert torch.equal(torch.get_rng_state(), state)
    second = mf.estimate(x, budget="fast", progress=False, seed=3, max_seconds=300)
    assert score(first, x) == score(second, x)
    assert capsys.readouterr().out == ""


class Clock:
    """Goes on by so many seconds whenever somebody looks at it."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


CUTS = {
    "nothing": (normal(35, 8), 0.2, ""),
    "a fold": (normal(35, 8), 0.6, "the time was over: mixture MADE on 2 of 3 folds"),
    "candidates": (normal(35, 8), 2.0, "MAF cut short, spline MAF not tried, mixture MADE on 1"),
    "all but a normal distribution": (normal(35, 8), 100.0, "mixture MADE not tried, MAF not"),
    "normal mixtures": (ring(90), 0.4, "joint normal mixtures cut short"),
    "nothing, one part held out": (normal(35, 8), 1.0, ""),
    "candidates, one part held out": (normal(35, 8), 2.0, "MAF cut short, spline MAF not tried"),
}
"""What a limit of fifty seconds leaves out: rows, seconds for a look at the clock, what is said."""


@pytest.mark.parametrize("name", CUTS)
def test_wherever_the_limit_cuts_no_finished_part_is_better(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    x, step, said = CUTS[name]
    trained = []

    def fit(model, *arguments, **options):
        history = mf.fit(model, *arguments, **options | {"max_epochs": 2})
        trained.append((model, options["validation"], history.best))
        return history

    def candidates(self, features, context):
        sizes = {"features": features, "hidden_features": (8,)}
        yield "mixture MADE", lambda _: mf.GaussianMixtureMADE(**sizes)
        yield "MAF", lambda _: mf.MAF(**sizes, transforms=1)
        yield "spline MAF", lambda _: mf.MAF(**sizes, transforms=1, bijection="spline")

    monkeypatch.setattr(Run, "_real", candidates)
    monkeypatch.setattr("made_flows.models.estimate_run._SMALL", 20 if "one part" in name else 200)
    for module in ("estimate_run", "estimate_gaussians"):
        monkeypatch.setattr(f"made_flows.models.{module}.fit", fit)
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", Clock(step))
        run = Run(x, None, None, "real", "fast", 0, True, 50.0, False)
        mixture = run()
    output = capsys.readouterr().out
    for word in (said, f"{len(x)} rows of {x.shape[1]} real features", "weight", "nats a row left"):
        assert word in output
    assert output.count("the time was over") == bool(said)

    def rows_left_out(models):
        pairs = zip(models, run.folds, strict=False)
        return torch.cat([model().log_prob(x[fold]).double() for model, fold in pairs])

    # Not by the run's own scores: every fold by the models that did not see it.
    place = {id(model): k for k, model in enumerate(mixture.components)}
    kept = [[place[id(m)] for m in part.models if id(m) in place] for part in run.parts]
    folds = min(len(part.models) for part in run.parts)
    assert all(len(k) in (0, len(part.models)) for k, part in zip(kept, run.parts, strict=True))
    weights = [mixture.weights[indices].sum() for indices in kept]
    with torch.no_grad():
        each = torch.stack([rows_left_out(part.models[:folds]) for part in run.parts], dim=1)
        mixed = (each + torch.stack(weights).double().log()).logsumexp(1)
        found = [float(-model().log_prob(held_out).mean()) for model, held_out, _ in trained]
    assert mixed.mean() >= each.mean(0).max() - 1e-4
    assert found == pytest.approx([best for *_, best in trained], abs=1e-4)  # of the best epoch


def test_many_small_weights_are_no_worse_than_the_best_part():
    """Of sixty experts for a row each, some are lighter than the threshold: not all are dropped."""
    experts = torch.full((60, 60), -20.0).double().fill_diagonal_(5.0)
    scores = torch.cat([torch.zeros(60, 1).double(), experts], dim=1)
    assert float((scores + sparse_weights(scores).log()).logsumexp(1).mean()) >= 0


@pytest.mark.usefixtures("few_epochs")
def test_any_units_give_the_same_mixture(monkeypatch: pytest.MonkeyPatch):
    """In units of 1e-6 to 1e6, shifted, it is that of standard ones, and the Jacobian."""

    def candidates(self, features, context):
        yield "MAF", lambda x: mf.MAF(features, context, 1, (8,))
        yield "MAF over normals", lambda x: self.normals.under_flow(x, self.end)

    monkeypatch.setattr(Run, "_real", candidates)
    x = ring(60).double()
    x = torch.cat([x, x.square() + 0.1 * normal(60, 2).double()], dim=1)
    generator = torch.Generator().manual_seed(4)
    scale = 10 ** (12 * torch.rand(4, generator=generator, dtype=torch.float64) - 6)
    shift = scale * torch.randn(4, generator=generator, dtype=torch.float64) * 100
    plain, natural = (mf.estimate(r, **QUICK, max_seconds=300) for r in (x, x * scale + shift))
    assert len(plain) == len(natural)
    with torch.no_grad():
        wanted = plain().log_prob(x).double() - scale.log().sum()
        found = natural().log_prob(x * scale + shift).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


@pytest.mark.usefixtures("few_epochs")
@pytest.mark.parametrize("name", ["rows", "contexts", "contexts of binary rows"])
def test_large_integers_and_contexts_in_any_units(name: str):
    """Integers that single precision rounds, and contexts of discrete rows too."""
    z = (1e3 * normal(60, 2)).round().to(torch.int64)
    plain = (z, None) if name == "rows" else (z[:, :1] * 1e-3 + 0.1, z)
    if name == "contexts of binary rows":
        plain = (z[:, :1] > 0, z)
    other = [each if each is None or each.dtype != torch.int64 else each + 10**14 for each in plain]
    options = QUICK | {"max_seconds": 300}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (mf.estimate(x, c, **options) for x, c in (plain, other))
    found = [
        (m() if c is None else m(c)).log_prob(x.double()).double()
        for m, (x, c) in ((first, plain), (second, other))
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0.02)


def test_an_outlier_does_not_choose():
    """One row at 1e6 deviations: said once, and the others are as likely as without it."""
    x = normal(200)
    x[5, 1] = 1e6
    with pytest.warns(UserWarning, match="standard deviations out") as caught:
        model = mf.estimate(x, **QUICK, max_seconds=3)
    assert len(caught) == 1
    assert score(model, normal(200, seed=1)) > -6.0  # the truth: -5.5


def test_fewer_rows_than_columns():
    x = normal(20, 30)
    model = mf.estimate(x, **QUICK, max_seconds=1)
    independent = torch.distributions.Normal(x.mean(0), x.std(0))
    test = normal(200, 30, seed=1)
    assert score(model, test) > float(independent.log_prob(test).sum(1).mean())


def with_column(x: Tensor, column: Tensor) -> Tensor:
    return torch.cat([x, column.reshape(-1, 1)], dim=1)


NAN = normal(50)
NAN[7, 1] = math.nan
BAD = {
    "few rows": (normal(9), "at least ten rows; got 9"),
    "NaN": (NAN, r"got nan in row 7, column 1.*orders='all'.*fit_table"),
    "a constant column": (with_column(normal(50), torch.ones(50)), "constant ones: 3"),
    "a repeated column": (with_column(normal(50), 3 - 2 * normal(50)[:, 1]), "column 3, which is"),
    "one dimension": (normal(50)[:, 0], r"of shape \(N, features\).*x.reshape\(-1, 1\)"),
    "no columns": (normal(50)[:, :0], r"x of shape \(N, features\); got \(50, 0\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows(name: str):
    x, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        mf.estimate(x, **QUICK)


def test_a_column_of_one_value_but_for_a_row():
    x = with_column(normal(50), 0.5 + (torch.arange(50.0) > 48))
    with pytest.warns(EstimateWarning), pytest.raises(ValueError, match="few rows: 3"):
        mf.estimate(x, **QUICK)


@pytest.mark.parametrize("far", [1e9, 1e15])
def test_a_row_far_out_makes_no_columns_one(far: float):
    x = normal(50).double()
    x[3] = far
    with pytest.warns(UserWarning, match="standard deviations out"):
        check_columns(x)
    x[:, 2] = 3 - 2 * x[:, 1]
    repeats = pytest.raises(ValueError, match="column 2, which is column 1")
    with pytest.warns(UserWarning, match="standard deviations out"), repeats:
        check_columns(x)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="budget to be 'fast', 'good' or 'best'"):
        mf.estimate(ring(50), budget="huge")
    with pytest.raises(ValueError, match="context to have 50 rows"):
        mf.estimate(ring(50), normal(40), **QUICK)
    with pytest.raises(ValueError, match=r"context of shape \(N, C\); got \(50, 0\)"):
        mf.estimate(ring(50), normal(50)[:, :0], **QUICK)
    with pytest.raises(ValueError, match=r"context to be finite; got nan in row 7, column 1$"):
        mf.estimate(ring(50), NAN, **QUICK)
    with pytest.raises(TypeError, match="context to hold numbers; got str 'a'"):
        mf.estimate(ring(50), "a", **QUICK)
    with pytest.raises(ValueError, match="budget to be 'fast', 'good' or 'best'"):
        mf.estimate(ring(50), budget=[1])
    with pytest.raises(ValueError, match="max_seconds to be finite; got nan"):
        mf.estimate(ring(50), **QUICK, max_seconds=math.nan)
    with pytest.raises(TypeError, match="max_seconds to be a number"):
        mf.estimate(ring(50), **QUICK, max_seconds="1")
    with pytest.raises(ValueError, match=r"seed to be below 2\*\*64"):
        mf.estimate(ring(50), **QUICK | {"seed": 2**70})
    with pytest.raises(ValueError, match="max_seconds to be above 0"):
        mf.estimate(ring(50), **QUICK, max_seconds=0)
    with pytest.raises(TypeError, match="x to hold numbers"):
        mf.estimate([["a"], ["b"]], **QUICK)


def test_columns_whose_density_diverges_are_named():
    x = with_column(normal(60), torch.arange(60.0) // 7)
    with pytest.warns(EstimateWarning, match=r"integers only: 3.*Dequantize\(4, \[3\]\)"):
        mf.estimate(x, **QUICK, max_seconds=0.5)
    x = with_column(normal(60), 0.5 * (torch.arange(60.0) // 15))
    with pytest.warns(EstimateWarning, match=r"few values: 3 \(4 in column 3\)"):
        mf.estimate(x, **QUICK, max_seconds=0.5)


def test_columns_that_are_linear_in_others_are_named():
    x = normal(60, 4)
    x = with_column(x, x[:, 0] - 2 * x[:, 2])
    with pytest.warns(EstimateWarning, match=r"linear in one another: 0, 2, 4\."):
        mf.estimate(x, **QUICK, max_seconds=0.5)


@pytest.mark.parametrize("components", [1, 3])
def test_gaussians_as_models(components: int):
    x = normal(200, 4).double() + 3
    found = fit_gaussians(x, components, 1.0, torch.Generator().manual_seed(0))
    model = gaussian_model(found).double()
    torch.testing.assert_close(
        model().log_prob(x).detach(), found.log_prob(x), rtol=1e-5, atol=1e-5
    )
    if components == 1:
        joint = MultivariateNormal(x.mean(0), x.T.cov(correction=0))
        assert float(found.log_prob(x).mean()) == pytest.approx(
            float(joint.log_prob(x).mean()), abs=0.01
        )


def test_normal_distributions_given_contexts():
    rows = normal(300, 5).double()
    found = fit_gaussians(rows, 1, 1.0, torch.Generator().manual_seed(0))
    model = gaussian_model(found, 2).double()
    expected = found.log_prob(rows) - found.leading(2).log_prob(rows[:, :2])
    got = model(rows[:, :2]).log_prob(rows[:, 2:]).detach()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_mixtures_of_gaussian_mixtures():
    x = normal(200, 3).double()
    generator = torch.Generator().manual_seed(0)
    parts = [fit_gaussians(x, k, 1.0, generator) for k in (1, 2, 3)]
    weights = torch.tensor([0.3, 0.0, 0.7]).double()
    together = merged(parts, weights)
    assert len(together.weights) == 4
    each = torch.stack([part.log_prob(x) for part in parts], dim=1)
    torch.testing.assert_close(together.log_prob(x), (each + weights.log()).logsumexp(dim=1))


def test_a_correlated_prior_keeps_correlations():
    """With more rows of the prior than of the data, components are what it says."""
    x = normal(100, 3).double()
    for correlated, wanted in ((False, torch.diag(x.var(0, correction=0))),
                               (True, x.T.cov(correction=0))):  # fmt: skip
        found = fit_gaussians(x, 1, 1e9, torch.Generator(), correlated=correlated)
        factor = found.factors[0]
        torch.testing.assert_close(factor @ factor.T, wanted, rtol=2e-3, atol=2e-3)


def test_mixtures_behind_splines_are_densities(monkeypatch: pytest.MonkeyPatch):
    """Of skewed rows they are the better candidate, and integrate to one."""
    monkeypatch.setattr(Run, "_real", lambda self, features, context: iter([]))
    x = (0.4 * normal(200, 2)).exp()
    model = mf.estimate(x, **QUICK, max_seconds=60)
    assert any(isinstance(part, mf.Flow) for part in model.components)
    edges = torch.linspace(-4, 16, 250)
    with torch.no_grad():
        mass = model().log_prob(torch.cartesian_prod(edges, edges)).double().exp().sum()
    assert float(mass * (edges[1] - edges[0]) ** 2) == pytest.approx(1, abs=0.02)


def test_normal_mixtures_of_some_of_many_rows_see_them_all(monkeypatch: pytest.MonkeyPatch):
    """Files are often sorted: the first rows are of one kind."""
    monkeypatch.setattr("made_flows.models.estimate_gaussians._ROWS", 60)
    x = torch.cat([normal(150, 2), normal(150, 2) + 60]).double()
    fold = torch.arange(0, 300, 10)
    rest = torch.arange(300)[~torch.isin(torch.arange(300), fold)]
    normals = NormalMixtures(
        x, None, [(rest, fold)], 0, torch.Generator().manual_seed(0), correlated=False, least=-1e4
    )
    found = [normals.joint(2, math.inf), normals.behind_splines(time.perf_counter() + 5)]
    for scores in (each.scores[0] for each in found):
        assert float(scores.min()) > -20


def test_gaussians_of_few_rows_do_not_collapse():
    x = normal(12, 5).double()
    found = fit_gaussians(x, 3, 7.0, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(found.log_prob(x)).all())
    repeated = x[:3].repeat(5, 1)
    again = fit_gaussians(repeated, 4, 0.5, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(again.log_prob(x)).all())


def test_copies_of_a_row_are_left_out_together() -> None:
    x, copies = torch.randn(40, 2), torch.arange(20).repeat(2)
    run = Run(x, None, copies, "real", "fast", 0, False, 0.0, False)
    assert sorted(torch.cat(run.folds).tolist()) == list(range(40))
    for fold, rest in zip(run.folds, run.rests, strict=True):
        assert not torch.isin(copies[fold], copies[rest]).any()
    with pytest.raises(ValueError, match="at least ten different rows; got 5"):
        Run(x, None, torch.arange(5).repeat(8), "real", "fast", 0, False, 0.0, False)
