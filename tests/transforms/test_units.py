"""Units: data and contexts in natural units, standardised inside a model."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import made_flows as mf
from made_flows.training import standardization
from made_flows.training.moments import near_dependence, robust_moments
from made_flows.transforms.units import Units

QUIET = {"progress": False, "seed": 0, "max_epochs": 2}
SHAPE = {"hidden_features": (8, 8)}

MODELS = {
    "GaussianMADE": lambda c=0: mf.GaussianMADE(3, c, **SHAPE),
    "GaussianMADE of all orders": lambda c=0: mf.GaussianMADE(3, c, **SHAPE, orders="all"),
    "GaussianMixtureMADE": lambda c=0: mf.GaussianMixtureMADE(3, c, **SHAPE),
    "MAF": lambda c=0: mf.MAF(3, c, 2, **SHAPE),
    "spline MAF": lambda c=0: mf.MAF(3, c, 2, **SHAPE, bijection="spline"),
    "IAF": lambda c=0: mf.IAF(3, c, 1, **SHAPE),
    "MAF with batch normalisation": lambda c=0: mf.MAF(3, c, 2, **SHAPE, normalize="batch"),
    "MAF-MoG": lambda c=0: mf.MAF(3, c, 2, **SHAPE, base=mf.GaussianMixtureMADE(3, c, **SHAPE)),
    "Mixture": lambda c=0: mf.Mixture([mf.GaussianMADE(3, c, **SHAPE), mf.MAF(3, c, 1, **SHAPE)]),
    "OrderMixture": lambda c=0: mf.OrderMixture(mf.GaussianMADE(3, c, **SHAPE, orders="all"), 3),
}

SCALE = torch.tensor([1e6, 1e-6, 30.0], dtype=torch.float64)
SHIFT = torch.tensor([5e7, 3e-6, -1000.0], dtype=torch.float64)


def rows(n: int = 200, columns: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, columns, generator=generator, dtype=torch.float64)
    return x @ (torch.eye(columns, dtype=torch.float64) + 0.5).triu()


def made(name: str, context: int = 0) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name](context)


@pytest.mark.parametrize("name", MODELS)
def test_any_units_give_the_same_model(name: str):
    """In units of 1e-6 to 1e6 the likelihood is that of standard ones, plus the Jacobian."""
    x = rows()
    plain, natural = made(name), made(name)
    first = mf.fit(plain, x, **QUIET)
    second = mf.fit(natural, x * SCALE + SHIFT, **QUIET)
    jacobian = float(SCALE.log().sum())
    assert second.best == pytest.approx(first.best + jacobian, abs=1e-3)
    torch.testing.assert_close(
        natural().log_prob(x * SCALE + SHIFT),
        plain().log_prob(x) - jacobian, rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_in_the_units_of_the_data(name: str):
    x = rows() * SCALE + SHIFT
    model = made(name)
    mf.fit(model, x, **QUIET)
    samples = model().sample((500,)).double()
    spread = x.std(dim=0)
    assert bool(((samples.mean(dim=0) - x.mean(dim=0)).abs() < spread).all())
    assert bool((samples.std(dim=0) > 0.3 * spread).all())
    assert bool((samples.std(dim=0) < 4 * spread).all())


@pytest.mark.parametrize("name", MODELS)
def test_contexts_too(name: str):
    c = rows(200, 2, seed=1)
    x = rows() + c[:, :1]
    scale, shift = torch.tensor([1e5, 1e-4]).double(), torch.tensor([1e6, 7.0]).double()
    plain, natural = made(name, 2), made(name, 2)
    first = mf.fit(plain, x, c, **QUIET)
    second = mf.fit(natural, x, c * scale + shift, **QUIET)
    assert second.best == pytest.approx(first.best, abs=1e-3)
    given = c * scale + shift
    torch.testing.assert_close(
        natural(given).log_prob(x), plain(c).log_prob(x), rtol=1e-3, atol=1e-3
    )
    assert natural(given).sample((4,)).shape == (4, 200, 3)


@pytest.mark.parametrize("name", MODELS)
def test_they_are_saved_and_loaded(name: str, tmp_path):
    x = rows() * SCALE + SHIFT
    model = made(name)
    mf.fit(model, x, **QUIET)
    mf.save(model, tmp_path / "model.safetensors")
    loaded = mf.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded().log_prob(x), model().log_prob(x))
    copied = copy.deepcopy(model)
    assert torch.equal(copied().log_prob(x), model().log_prob(x))
    other = made(name)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()().log_prob(x), model().log_prob(x))
    # Files of models without units have no names of them.
    assert not any("units" in key for key in made(name).state_dict())


@pytest.mark.parametrize("name", ["GaussianMADE", "MAF"])
def test_they_keep_their_precision_whatever_the_models(name: str):
    """A column of 1e9 +- 1, which float32 cannot tell from a constant."""
    x = rows() + 1e9
    model = made(name)
    with pytest.warns(UserWarning, match=r"hardly vary .* torch.float32, the model's: 0, 1, 2"):
        mf.fit(model, x, **QUIET)
    assert next(model.parameters()).dtype == torch.float32
    fine = copy.deepcopy(model).double()().sample((500,)) - 1e9
    assert bool((fine.std(dim=0) > 0.3 * x.std(dim=0)).all())
    reference = made(name)
    mf.fit(reference, rows(), **QUIET)
    there = model().log_prob(x)
    torch.testing.assert_close(there, reference().log_prob(rows()), rtol=1e-3, atol=1e-3)
    model.double().float()
    assert torch.equal(model().log_prob(x), there)
    single = (rows() * 1e6 + 1e9).float()
    again = made(name)
    assert math.isfinite(mf.fit(again, single, **QUIET).best)
    assert again().log_prob(single).dtype == torch.float32


BEHIND = {
    "MAF behind logarithms": lambda c=0: mf.Flow([mf.Log(3, [0]), *mf.MAF(3, c, 1).transforms]),
    "MAF behind noise": lambda c=0: mf.Flow([mf.Dequantize(3, [0]), *mf.MAF(3, c, 1).transforms]),
}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", MODELS | BEHIND)
def test_scores_have_the_precision_of_the_model_not_of_the_rows(name: str, context: int):
    torch.manual_seed(0)
    model = (MODELS | BEHIND)[name](context)
    x, c = rows().abs(), rows(columns=2) if context else None
    x[:, 0] = x[:, 0].ceil()
    mf.fit(model, x, c, **QUIET)
    for of_model in (torch.float32, torch.float64):
        model.to(of_model)
        scores = []
        for of_rows in (torch.float32, torch.float64):
            for gradients in (False, True):
                torch.manual_seed(0)
                with torch.set_grad_enabled(gradients):
                    given = model(None if c is None else c.to(of_rows))
                    scores.append(given.log_prob(x.to(of_rows)))
                    assert given.sample().dtype == of_model
        assert {each.dtype for each in scores} == {of_model}
        if name != "MAF behind noise":  # which is drawn in the precision of the rows
            torch.testing.assert_close(scores[0], scores[3], rtol=1e-4, atol=1e-4)


def test_log_prob_integrates_to_one():
    x = 100 + 5 * rows(300, 1)
    model = mf.GaussianMixtureMADE(1, hidden_features=(8,))
    mf.fit(model, x, progress=False, seed=0, max_epochs=5)
    grid = torch.linspace(0, 200, 20_001, dtype=torch.float64)[:, None]
    total = model().log_prob(grid).detach().double().exp().sum() * 0.01
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_round_trip_and_gradients():
    model = mf.MAF(3, 2, 2, **SHAPE)
    c = rows(50, 2, seed=2) * 100
    mf.fit(model, rows(50) * SCALE + SHIFT, c, **QUIET)
    context = c[:20]
    x, log_prob = model(context).rsample_and_log_prob()
    torch.testing.assert_close(model(context).log_prob(x), log_prob, rtol=1e-3, atol=1e-2)
    z, log_det = model.to_noise(x, context)
    back, inverse = model.to_data(z, context)
    spread = torch.tensor([1e6, 1e-6, 30.0])
    torch.testing.assert_close(back / spread, x.detach() / spread, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(log_det, -inverse, rtol=1e-3, atol=1e-2)
    assert torch.equal(model.generate(z, context), back)


def test_marginals_and_conditionals():
    """Of a model of all orders, whose missing values have no units to count."""
    torch.manual_seed(0)
    plain = mf.GaussianMADE(3, **SHAPE, orders="all")
    natural = copy.deepcopy(plain)
    x = rows()
    x[::3, 1] = math.nan
    mf.fit(plain, x, **QUIET)
    mf.fit(natural, x * SCALE + SHIFT, **QUIET)
    observed = ~x.isnan()
    jacobian = (observed * SCALE.log()).sum(dim=1)
    torch.testing.assert_close(
        natural().log_prob(x * SCALE + SHIFT), plain().log_prob(x).double() - jacobian,
        rtol=1e-3, atol=1e-3, check_dtype=False,
    )  # fmt: skip
    known = (x * SCALE + SHIFT)[:30]
    rest = natural.conditional(known)
    completed = rest.sample((5,))
    kept = observed[:30].expand(5, -1, -1)
    assert torch.equal(completed[kept], known.to(completed.dtype).expand(5, -1, -1)[kept])
    spread = ((completed - SHIFT) / SCALE)[~kept]
    assert bool((spread.abs() < 20).all())
    full = torch.where(x.isnan(), 0.3, x)[:30]
    torch.testing.assert_close(
        rest.log_prob(full * SCALE + SHIFT),
        plain.conditional(x[:30]).log_prob(full) - (~observed[:30] * SCALE.log()).sum(dim=1),
        rtol=1e-3, atol=1e-3, check_dtype=False,
    )  # fmt: skip


def test_outliers_do_not_set_the_scale():
    x = rows(1000)
    spoiled = x.clone()
    spoiled[3] = 1e6
    location, scale = robust_moments(spoiled)
    assert bool((location - x.mean(dim=0)).abs().max() < 0.1)
    assert bool((scale / x.std(dim=0)).max() < 1.6)
    torch.testing.assert_close(robust_moments(x), (x.mean(dim=0), x.std(dim=0)))
    model = mf.GaussianMADE(3, **SHAPE)
    with pytest.warns(UserWarning, match=r"1 of the rows of data.*standard deviations out"):
        history = mf.fit(model, spoiled, **QUIET)
    assert math.isfinite(history.best)
    assert float(model().log_prob(x).detach().mean()) > -8


@pytest.mark.parametrize("kind", ["real", "discrete"])
def test_contexts_far_out_are_said(kind: str) -> None:
    """With contexts from 1e-4 to 1e4 a mixture ends 1.3 nats behind one of their logarithms."""
    context = torch.randn(200, 2)
    context[:, 1] = (3 * torch.randn(200)).exp()
    x, model = torch.randn(200, 2), mf.GaussianMADE
    if kind == "discrete":
        x, model = (x > 0).float(), mf.BernoulliMADE
    words = "of the contexts of data .*than 20 standard deviations out.*column 1 of the context"
    with pytest.warns(UserWarning, match=words) as caught:
        mf.fit(model(2, 2, **SHAPE), x, context=context, **QUIET)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=words.replace("data", "x")) as caught:
        mf.estimate(x, context, budget="fast", max_seconds=1, progress=False, seed=0)
    assert len(caught) == 1
    context[:, 1] = context[:, 1].log()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mf.fit(model(2, 2, **SHAPE), x, context=context, **QUIET)


def test_what_rows_far_out_alone_share_is_no_dependence() -> None:
    u = torch.randn(200, 3, dtype=torch.float64)
    u[:, 2], u[:3] = 0.0, 1e6
    assert near_dependence(u, "data") is None
    u[:, 1] = 2 * u[:, 0]
    found = near_dependence(u, "data")
    assert found is not None
    assert "0, 1." in found.message


@pytest.mark.parametrize("name", ["a sum", "a repeated column", "parts of a whole"])
def test_columns_that_are_linear_in_one_another_are_named(name: str) -> None:
    """A flow learns such a direction to a few digits, and nothing else would say so."""
    x = torch.randn(60, 3)
    if name == "parts of a whole":
        rows, named = x.softmax(dim=1), "0, 1, 2"
    else:
        more = x[:, :1] - (x[:, 2:] if name == "a sum" else 0)
        rows, named = torch.cat([x, more], dim=1), "0, 2, 3" if name == "a sum" else "0, 3"
    model = mf.GaussianMADE(rows.shape[1], hidden_features=())
    with pytest.warns(UserWarning, match=f"data are nearly linear in one another: {named}\\."):
        mf.fit(model, rows, max_epochs=1, progress=False)


def test_all_columns_that_are_linear_in_others_are_named() -> None:
    """Of several such directions one alone had been, and the next when its column was left out."""
    u = torch.randn(200, 6, dtype=torch.float64)
    u[:, 1], u[:, 5] = u[:, 0] + 1e-5 * u[:, 1], u[:, 4] - u[:, 3]
    found = near_dependence(u, "data")
    assert found is not None
    assert "one another: 0, 1, 3, 4, 5. " in found.message
    assert found.message.endswith("leave 2 of them out")


def test_flows_take_what_columns_leave_of_one_another(tmp_path):
    """Linear to 1e-4: a flow by itself ends five nats a row behind a normal distribution."""
    x = torch.cat([rows(), rows() @ rows(3, 1, seed=2) + 1e-4 * rows(200, 1, seed=1)], dim=1)
    x = 1e3 + 1e-2 * x
    flow = mf.MAF(4, transforms=1, **SHAPE)
    graph = mf.MAF(4, **SHAPE, adjacency=torch.ones(4, 4).tril(-1))
    for model, epochs in ((flow, 20), (graph, 1)):
        with pytest.warns(UserWarning, match="data are nearly linear in one another: 0, 1, 2, 3"):
            mf.fit(model, x, progress=False, seed=0, max_epochs=epochs)
    normal = torch.distributions.MultivariateNormal(x.mean(dim=0), x.T.cov())
    assert bool(flow().log_prob(x).mean() > normal.log_prob(x).mean() - 0.5)
    assert graph.units.factor is None  # what it says of dependencies would not be true
    z, _ = flow.to_noise(x)
    torch.testing.assert_close(flow.to_data(z)[0].double(), x)
    flow.double()
    jacobian = torch.autograd.functional.jacobian(lambda row: flow.to_noise(row)[0], x[0])
    torch.testing.assert_close(jacobian.slogdet()[1], flow.to_noise(x[0])[1])
    mf.save(flow, tmp_path / "flow.safetensors")
    assert torch.equal(mf.load(tmp_path / "flow.safetensors")().log_prob(x), flow().log_prob(x))


def test_columns_of_mostly_one_value_have_a_scale():
    x = torch.zeros(500, 1)
    x[:20, 0] = torch.randn(20, generator=torch.Generator().manual_seed(0))
    _, scale = robust_moments(x)
    assert 0 < float(scale) < 1


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e160, 1e300])
def test_columns_of_any_size_have_a_scale(factor: float):
    """Squares of which are no numbers."""
    for found, plain in zip(robust_moments(rows() * factor), robust_moments(rows()), strict=True):
        torch.testing.assert_close(found / factor, plain, rtol=1e-12, atol=0)
    model = made("MAF")
    with pytest.warns(UserWarning, match=r"hardly vary .* 0, 1, 2"):  # samples would be 0 or inf
        mf.fit(model, rows() * factor, **QUIET)
    there = model().log_prob(rows() * factor) + 3 * math.log(factor)
    other = made("MAF")
    mf.fit(other, rows(), **QUIET)
    torch.testing.assert_close(there, other().log_prob(rows()), rtol=0, atol=0.01)


def test_constant_columns_are_named():
    x = rows(50)
    x[:, 1] = 7.25
    model = mf.MAF(3, transforms=1, **SHAPE)
    with pytest.raises(ValueError, match=r"vary in every column; got column 1 constant at 7\.25"):
        mf.fit(model, x, **QUIET)
    mf.fit(model, x, **QUIET, standardize=False)  # asked for, it is as it was
    single = (rows(50) + 1e9).float()  # rounding leaves a few multiples of 64
    with pytest.raises(ValueError, match="vary in every column"):
        mf.fit(mf.GaussianMADE(3, **SHAPE), single, **QUIET)


OF_CONTEXTS = {
    "BernoulliMADE": lambda: mf.BernoulliMADE(3, 2, **SHAPE),
    "BernoulliMADE of all orders": lambda: mf.BernoulliMADE(3, 2, **SHAPE, orders="all"),
    "CategoricalMADE": lambda: mf.CategoricalMADE(3, 2, **SHAPE, categories=2),
    "OrderMixture": lambda: mf.OrderMixture(mf.BernoulliMADE(3, 2, **SHAPE, orders="all"), 3),
    "dequantized": lambda: mf.Flow([mf.Dequantize(3)], base=mf.MAF(3, 2, 1, **SHAPE)),
    "standardized": lambda: mf.Flow(
        [mf.Standardize([0.0] * 3, [2.0] * 3)], base=mf.GaussianMADE(3, 2, **SHAPE)
    ),
}


@pytest.mark.parametrize("name", OF_CONTEXTS)
def test_contexts_of_what_is_not_standardised_are(name: str, tmp_path):
    """Discrete values, and those of data transforms, given contexts in any units."""
    c = rows(200, 2, seed=1)
    x = (rows() + c[:, :1] > 0).float()
    scale, shift = torch.tensor([1e5, 1e-6]).double(), torch.tensor([1e10, 7.0]).double()
    found = []
    for given in (c, c * scale + shift):
        torch.manual_seed(0)
        model = OF_CONTEXTS[name]()
        found.append((mf.fit(model, x, given, **QUIET).best, model, given))
    (first, plain, _), (second, natural, given) = found
    assert second == pytest.approx(first, abs=1e-3)
    assert -mf.score(natural, x, given) == pytest.approx(first, abs=0.5)
    if name != "dequantized":  # whose scores are random
        there = natural(given).log_prob(x)
        assert there.dtype == torch.float32
        torch.testing.assert_close(there, plain(c).log_prob(x), rtol=1e-3, atol=1e-3)
        mf.save(natural, tmp_path / "model.safetensors")
        again = mf.load(tmp_path / "model.safetensors")
        assert torch.equal(again(given).log_prob(x), there)
    if name == "BernoulliMADE of all orders":
        some = torch.arange(3) < 1
        one, other = (
            m.conditional(x, some.expand(200, 3), context=each).log_prob(x)
            for m, each in ((plain, c), (natural, given))
        )
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    drawn = []
    for model, each in ((plain, c), (natural, given)):
        torch.manual_seed(0)
        drawn.append(model(each).sample((5,)))
    assert float(torch.isclose(*drawn, atol=1e-2).float().mean()) > 0.99
    again = OF_CONTEXTS[name]()
    mf.fit(again, x, c, **QUIET, standardize=False)
    assert not any("units" in key for key in again.state_dict())


OF_DATA = {f"{name} of real values": partial(make, 2) for name, make in MODELS.items()}


@pytest.mark.parametrize("what", ["data", "context", "behind a log", "missing"])
def test_rows_in_other_units_than_the_first_are_named(what: str) -> None:
    """The model keeps its units: it was trained from 16,000 nats a row, without a word."""
    x, c = torch.randn(200, 2), torch.randn(200, 2)
    sizes = torch.tensor([1.0, 30.0])
    models = {
        "context": lambda: mf.GaussianMADE(2, context=2, hidden_features=(8,)),
        "behind a log": lambda: mf.Flow([mf.Log(2)], mf.MAF(2, hidden_features=(8,))),
        "missing": lambda: mf.GaussianMADE(2, orders="all", hidden_features=(8,)),
    }
    model = models.get(what, lambda: mf.MAF(2, transforms=1, hidden_features=(8,)))()

    def train(size: Tensor | float) -> None:
        rows = x if what == "context" else x * size
        rows = torch.where(torch.rand(200, 2) < 0.2, torch.nan, rows) if what == "missing" else rows
        rows = rows.exp() if what == "behind a log" else rows
        mf.fit(model, rows, c * size if what == "context" else None, **QUIET)

    train(0.2)
    train(0.4)  # like enough: nothing is said
    of = "the context of data" if what == "context" else "data"
    with pytest.warns(UserWarning, match=f"Columns of {of} are in other units .*: 1. It keeps"):
        train(0.2 * sizes)


@pytest.mark.parametrize("name", OF_DATA | OF_CONTEXTS)
def test_a_constant_context_is_named_and_is_nothing_to_the_model(name: str, tmp_path) -> None:
    """No row trains the weights that read it: at use they would move scores at random."""
    c = rows(60, 2, seed=1)
    c[:, 1] = 1e3
    x = rows(60) + c[:, :1]
    x = (x > 0).float() if name in OF_CONTEXTS else x
    torch.manual_seed(0)
    model = (OF_DATA | OF_CONTEXTS)[name]()
    with pytest.warns(UserWarning, match="context of data are constant: 1. Nothing can be learnt"):
        mf.fit(model, x, c, **QUIET)
    mf.save(model, tmp_path / "model.safetensors")
    for each in (model, mf.load(tmp_path / "model.safetensors"), copy.deepcopy(model)):
        found = []
        for value in (1e3, 1005.0, -1e9):
            c[:, 1] = value
            torch.manual_seed(0)
            distribution = each(c)
            found.append((distribution.log_prob(x).detach(), distribution.sample((2,))))
        assert all(map(torch.equal, found[0], other) for other in found[1:])
        assert bool(found[0][0].isfinite().all())
    with pytest.warns(UserWarning, match="other values than .* trained with at first: 1. It does"):
        mf.fit(model, x, c, **QUIET)
    c[:, 1] = 1e3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mf.fit(model, x, c, **QUIET)


@pytest.mark.parametrize("kind", ["rows", "a stream"])
def test_a_column_that_varies_in_few_of_many_rows_is_not_constant(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(standardization, "_MOST", 50)
    monkeypatch.setattr(standardization, "_KEPT", 50)
    x, c = rows(200), torch.full((200, 1), 0.1)
    x[:, 0] = 0.1
    c[101], x[101, 0] = 0.3, 0.3
    data = (x, c) if kind == "rows" else DataLoader(TensorDataset(x, c), 20)
    model = made("GaussianMADE", 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*standard deviations out")
        mf.fit(model, data, validation=None, **QUIET)
    assert bool(model.units.context_scale.isfinite().all())


def test_estimates_name_constant_contexts_once() -> None:
    c = rows(60, 2, seed=1)
    c[:, 1] = 3.0
    with pytest.warns(UserWarning, match="context of x are constant: 1") as caught:
        model = mf.estimate(rows(60), c, budget="fast", max_seconds=1, progress=False, seed=0)
    assert len(caught) == 1
    other = c + torch.tensor([0.0, 7.0])
    assert torch.equal(model(c).log_prob(rows(60)), model(other).log_prob(rows(60)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: mf.BernoulliMADE(3, **SHAPE),
        lambda: mf.CategoricalMADE(3, categories=2, **SHAPE),
        lambda: mf.Flow([mf.Standardize([1.0] * 3, [2.0] * 3)], base=mf.MAF(3, 0, 1, **SHAPE)),
        lambda: mf.Mixture(
            [mf.BernoulliMADE(3, order="reversed", **SHAPE), mf.BernoulliMADE(3, **SHAPE)]
        ),
    ],
)
def test_models_with_units_of_their_own_are_left_alone(make):
    x = (rows(60) > 0).float()
    model = make()
    mf.fit(model, x, **QUIET)
    assert not any(module.active for module in model.modules() if isinstance(module, Units))


@pytest.mark.parametrize("base", ["MAF", "GaussianMixtureMADE", "normal"])
def test_units_of_flows_stand_behind_their_data_transforms(base: str, tmp_path):
    def flow() -> mf.Flow:
        torch.manual_seed(0)
        tail = [] if base != "normal" else [*mf.MAF(3, transforms=1, **SHAPE).transforms]
        last = None if base == "normal" else made(base)
        return mf.Flow([mf.Log(3, [0, 1]), *tail], base=last)

    u = rows()
    other = u * torch.tensor([1e-3, 5.0, 1e4]).double() + torch.tensor([30.0, -20.0, 1e6]).double()
    found = []
    for each in (u, other):
        x = torch.cat([each[:, :2].exp(), each[:, 2:]], dim=1)
        model = flow()
        mf.fit(model, x.float(), **QUIET)
        there = model().log_prob(x.float()) + each[:, :2].sum(dim=1)  # the density of u
        found.append((model, x.float(), there.detach() + float(each.std(dim=0).log().sum())))
    torch.testing.assert_close(found[0][2].double(), found[1][2].double(), rtol=0, atol=0.05)
    model, x, there = found[1]
    assert model.summary().splitlines()[2].split()[1] == "Log"
    drawn = model().sample((500,))
    assert bool((drawn[:, :2] > 0).all())
    assert float(drawn[:, 0].log().mean()) == pytest.approx(30.0, abs=0.01)
    z, _ = model.to_noise(x)
    torch.testing.assert_close(model.to_data(z)[0], x, rtol=1e-2, atol=1)
    mf.save(model, tmp_path / "model.safetensors")
    again, copied = mf.load(tmp_path / "model.safetensors"), copy.deepcopy(model)
    for each in (again, copied):
        assert torch.equal(each().log_prob(x), model().log_prob(x))


def test_counts_are_dequantized_in_any_units():
    """A mean of 1e5 had ended at a million nats."""
    x = torch.poisson(torch.full((300, 2), 1e5), torch.Generator().manual_seed(0))
    model = mf.Flow([mf.Dequantize(2)], base=mf.GaussianMixtureMADE(2, **SHAPE))
    best = mf.fit(model, x, progress=False, seed=0, max_epochs=10).best
    truth = -torch.distributions.Poisson(1e5).log_prob(x).sum(dim=1).mean()
    assert best == pytest.approx(float(truth), abs=1.5)


def test_training_without_gradients_is_refused():
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"to be enabled where fit is called; got torch\.no_grad"),
    ):
        mf.fit(mf.MAF(3, transforms=1, **SHAPE), rows(), **QUIET)


def test_a_model_keeps_its_units():
    model = mf.MAF(3, transforms=1, **SHAPE)
    mf.fit(model, rows(), **QUIET)
    location = model.units.location.clone()
    with pytest.warns(UserWarning, match="0, 1, 2. It keeps"):
        mf.fit(model, rows() + 50, **QUIET)
    assert torch.equal(model.units.location, location)
    trained = mf.MAF(3, transforms=1, **SHAPE)
    mf.fit(trained, rows(), **QUIET, standardize=False)
    mf.fit(trained, rows(), **QUIET)
    assert not trained.units.active
    loaded = mf.MAF(3, transforms=1, **SHAPE)
    loaded.load_state_dict(trained.state_dict())
    mf.fit(loaded, rows(), **QUIET)
    assert not loaded.units.active


def test_a_training_that_never_was_leaves_none():
    model = mf.MAF(3, transforms=1, **SHAPE)
    mf.fit(model, rows(), progress=False, max_epochs=0)
    assert not model.units.active
    with pytest.raises(mf.TrainingError):
        mf.fit(model, rows(), optimizer=lambda p: torch.optim.SGD(p, lr=1e30), clip_norm=None,
               progress=False, max_epochs=3, batch_size=10)  # fmt: skip
    assert not model.units.active


@pytest.mark.parametrize("size", [16, 50])
def test_batches_of_a_stream_are_measured(size: int):
    x = rows(300) * SCALE + SHIFT

    class Again:
        def __iter__(self):
            return iter(x.split(size))

    model = mf.MAF(3, transforms=1, **SHAPE)
    mf.fit(model, Again(), validation=None, **QUIET)
    torch.testing.assert_close(model.units.location, x.mean(dim=0))
    torch.testing.assert_close(model.units.scale, x.std(dim=0))


def test_bad_arguments():
    units = Units(2)
    with pytest.raises(ValueError, match=r"location of shape \(2,\)"):
        units.set(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="scale to be positive"):
        units.set(torch.zeros(2), torch.zeros(2))


def test_plug_ins_see_them():
    """As transforms and flows of nflows and Pyro, a fitted flow is in the units of its data."""
    nflows = pytest.importorskip("made_flows.nflows")
    pyro = pytest.importorskip("made_flows.pyro")
    x, c = rows(60) * SCALE + SHIFT, rows(60, 2, seed=1) * 1e3
    flow = mf.MAF(3, 2, 2, **SHAPE)
    mf.fit(flow, x, c, **QUIET)
    x, c = x[:9].float(), c[:9].float()
    noise, log_det = flow.to_noise(x, c)
    adapted = nflows.AsTransform(flow)
    for got, wanted in zip(adapted(x, c), (noise, log_det), strict=True):
        assert torch.equal(got, wanted)
    back, _ = adapted.inverse(noise, c)
    assert torch.equal(back, flow.to_data(noise, c)[0])
    score = flow(c).log_prob(x)
    torch.testing.assert_close(nflows.AsFlow(flow).log_prob(x, c), score)
    torch.testing.assert_close(pyro.to_pyro(flow)(c).log_prob(x), score)
    transform = pyro.FlowTransform(flow, c)
    torch.testing.assert_close(transform(noise), back)
    over = mf.MAF(3, 2, 1, **SHAPE, base=mf.GaussianMADE(3, 2, **SHAPE))
    mf.fit(over, rows(60) * SCALE + SHIFT, rows(60, 2, seed=1) * 1e3, **QUIET)
    adapted = copy.deepcopy(nflows.AsFlow(over))
    torch.testing.assert_close(adapted.log_prob(x, c), over(c).log_prob(x))
    samples, scores = adapted.sample_and_log_prob(3, c)
    torch.testing.assert_close(scores.T, over(c).log_prob(samples.transpose(0, 1)))


@pytest.mark.parametrize("other", ["units of its own", "trained"])
def test_parts_of_a_mixture_are_standardised_beside_others(other: str):
    """Beside a part that knows its units no other was: it ended thousands of nats worse."""
    x = (rows() * SCALE + SHIFT).float()
    known = mf.Flow([mf.Standardize(x.mean(dim=0), x.std(dim=0))], base=made("MAF"))
    if other == "trained":
        known = made("MAF")
        mf.fit(known, x, **QUIET)
    alone, mixture = made("GaussianMADE"), mf.Mixture([made("GaussianMADE"), known])
    mf.fit(alone, x, **QUIET)
    mf.fit(mixture, x, **QUIET)
    assert mixture.component(0).units.active
    found, expected = (m().log_prob(x).mean().item() for m in (mixture.component(0), alone))
    assert found == pytest.approx(expected, abs=1)
    scores = torch.stack([mixture.component(k)().log_prob(x) for k in (0, 1)])
    torch.testing.assert_close(mixture().log_prob(x), scores.logsumexp(dim=0) - math.log(2))


def test_units_stand_behind_the_transforms_that_there_are():
    x, flows = rows()[:, :2].exp() * 1e4, []
    for columns in ([0, 1], [0]):
        torch.manual_seed(0)
        tail = [*mf.MAF(2, transforms=1, **SHAPE).transforms]
        flows.append(mf.Flow([mf.Log(2, columns), *tail]))
    expected, flow = flows
    flow.transforms[0] = mf.Log(2)
    for each in flows:
        mf.fit(each, x, **QUIET)
    torch.testing.assert_close(flow.units.location, expected.units.location)
