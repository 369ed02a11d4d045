"""Orders and masks other than a network's own: per call, per row, as a view, and in training."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import made_flows as mf
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.models.order_schedule import OrderSchedule
from made_flows.nn import per_row_orders as row_orders
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import (
    HEADS,
    NETWORKS,
    all_vectors,
    context_of,
    made_of,
    nearly,
    scatter,
    values_of,
)

F64 = torch.float64

ORDERED = [name for name in NETWORKS if "graph" not in name and name != "no edge"]
each_option = pytest.mark.parametrize("option", ORDERED)


def told(option: str, features: int = 5, **more: Any) -> mf.MADE:
    """A scattered network that is told its masks."""
    return NETWORKS[option](features, **{"mask_weights": True, **more})


def some_orders(features: int, *batch: int) -> Tensor:
    return torch.rand(*batch, features).argsort(dim=-1)


def other_degrees(made: mf.MADE) -> list[Tensor]:
    fresh = made.arranged()
    fresh.resample_masks(torch.Generator().manual_seed(11), order=False)
    return list(fresh.degrees)


# ---------------------------------------------------------------------- masks told from zeros


@each_option
def test_a_network_told_its_masks_is_what_it_was_until_they_are_learnt(option: str) -> None:
    torch.manual_seed(1)
    plain = NETWORKS[option](mask_weights=False)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.DependencyWarning)
        fresh = mf.MADE(5, mask_weights=True, hidden_features=(6,))
    assert all(bool((layer.mask_weight == 0).all()) for layer in fresh.layers)
    made = told(option)
    made.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("mask_weight"):
                parameter.zero_()
    x, c = torch.randn(7, 5, dtype=F64), context_of(made, 7)
    nearly(made(x, c), plain(x, c))


@each_option
def test_mask_weights_add_what_the_formula_says(option: str) -> None:
    made = told(option, direct=False)
    x, c = torch.randn(7, 5, dtype=F64), context_of(made, 7)
    folded = NETWORKS[option](mask_weights=False, direct=False)
    folded.load_state_dict(made.state_dict(), strict=False)
    with torch.no_grad():
        for layer, told_layer in zip(folded.layers, made.layers, strict=True):
            layer.bias += (told_layer.mask_weight * told_layer.mask) @ torch.ones(
                told_layer.in_features, dtype=F64
            )
    nearly(made(x, c), folded(x, c))


@each_option
def test_the_inverse_of_a_network_told_its_masks(option: str) -> None:
    made = told(option)
    head = mf.univariate.heads.Gaussian().double()
    step, noise = HeadStep(head), torch.randn(6, 5, 1, dtype=F64)
    c = context_of(made, 6)
    nearly(
        sequential_inverse(made, step, noise, c).detach(),
        d_pass_inverse(made, step, noise, c).detach(),
    )
    one = noise[:1]
    first = None if c is None else c[:1]
    mine = torch.autograd.grad(
        sequential_inverse(made, step, one, first).sum(), list(made.parameters())
    )
    theirs = torch.autograd.grad(
        d_pass_inverse(made, step, one, first).sum(), list(made.parameters()), allow_unused=True
    )
    for a, b in zip(mine, theirs, strict=True):
        nearly(a, torch.zeros_like(a) if b is None else b)


def test_mask_weights_of_the_layers_that_follow_the_order_alone() -> None:
    made = mf.MADE(5, hidden_features=(8, 8, 8), direct=True, mask_weights="order")
    have = [layer.mask_weight is not None for layer in made.layers]
    assert have == [True, False, False, True]
    assert made.direct is not None
    assert made.direct.mask_weight is not None
    assert "mask_weights='order'" in repr(made)
    with pytest.raises(ValueError, match="mask_weights to be True, False or 'order'; got 'all'"):
        mf.MADE(5, mask_weights="all")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- views


@each_option
def test_an_arranged_network_is_one_made_so(option: str) -> None:
    made = told(option)
    order, degrees = some_orders(5), other_degrees(made)
    x, c = torch.randn(7, 5, dtype=F64), context_of(made, 7)
    for chosen in (None, degrees):
        view = made.arranged(order, chosen)
        assert view.order.tolist() == order.tolist()
        assert not (view.reach() & ~view.allowed).any()
        mf.check_autoregressive(view)
        nearly(view(x, c), made(x, c, order=order, degrees=chosen))
        head = mf.univariate.heads.Gaussian().double()
        noise = torch.randn(7, 5, 1, dtype=F64)
        nearly(
            sequential_inverse(view, HeadStep(head), noise, c).detach(),
            d_pass_inverse(view, HeadStep(head), noise, c).detach(),
        )


@each_option
def test_an_arranged_network_shares_weights_and_nothing_else(option: str) -> None:
    made = told(option)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    view = made.arranged(some_orders(5), other_degrees(made))
    mine = dict(made.named_parameters())
    assert mine.keys() == dict(view.named_parameters()).keys()
    assert all(parameter is mine[name] for name, parameter in view.named_parameters())
    assert made.state_dict().keys() == before.keys()
    view.resample_masks(torch.Generator().manual_seed(2))
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]), name
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        x, c = torch.randn(3, 5, dtype=F64), context_of(made, 3)
        nearly(twin(x, c), view(x, c))
        assert next(twin.parameters()) is not next(made.parameters())


BAD_ARRANGEMENTS: dict[str, tuple[Callable[[mf.MADE], Any], type[Exception], str]] = {
    "order": (lambda m: m.arranged([0, 0, 1, 2, 3]), ValueError, "order to be a permutation"),
    "orders": (lambda m: m.arranged(torch.arange(5).expand(2, 5)), ValueError, r"order of shape"),
    "layers": (lambda m: m.arranged(None, [torch.ones(16).long()]), ValueError, "of 2 layers"),
    "width": (
        lambda m: m.arranged(None, [torch.ones(16).long(), torch.ones(3).long()]),
        ValueError, r"degrees\[1\] of shape \(16,\); got \(3,\)",
    ),
    "degree": (
        lambda m: m.arranged(None, [torch.full((16,), 5)] * 2), ValueError,
        r"degrees\[0\] to be from 0 to 4; got 5 to 5",
    ),
    "floats": (
        lambda m: m.arranged(None, [torch.ones(16)] * 2), TypeError, r"degrees\[0\] to be integers",
    ),
    "word": (lambda m: m.arranged(None, "random"), TypeError, "degrees to be a sequence"),
    "rows": (
        lambda m: m(torch.zeros(5, dtype=F64), order=[[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]),
        ValueError, r"permutations of 0..4; got \[0, 0, 1, 2, 3\] in row 1",
    ),
    "row width": (
        lambda m: m(torch.zeros(2, 5, dtype=F64), order=torch.zeros(2, 4).long()), ValueError,
        r"order to be of shape \(..., 5\)",
    ),
    "float rows": (
        lambda m: m(torch.zeros(2, 5, dtype=F64), order=torch.zeros(2, 5)), ValueError,
        "torch.float32",
    ),
    "number of rows": (
        lambda m: m(torch.zeros(2, 5, dtype=F64), order=some_orders(5, 3)), ValueError,
        r"order \(3,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRANGEMENTS)
def test_bad_arrangements_are_refused(name: str) -> None:
    call, kind, message = BAD_ARRANGEMENTS[name]
    with pytest.raises(kind, match=message):
        call(NETWORKS["plain"]())


def test_a_graph_has_no_other_arrangement() -> None:
    made = NETWORKS["graph"]()
    with pytest.raises(ValueError, match="Expected the network to have an order to change"):
        made.arranged([0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="degrees to be left out for a network of a graph"):
        made(torch.zeros(5, dtype=F64), degrees=made.degrees)


def test_ends_of_residual_blocks_have_the_degrees_of_the_stream() -> None:
    made = NETWORKS["residual"]()
    degrees = [d.clone() for d in made.degrees]
    degrees[2] = degrees[2].flip(0)
    with pytest.raises(ValueError, match=r"degrees\[2\] to equal degrees\[0\]"):
        made.arranged(None, degrees)


# ---------------------------------------------------------------------- one order for each row


@each_option
@pytest.mark.parametrize("features", [1, 5])
def test_one_order_for_each_row(option: str, features: int) -> None:
    made = told(option, features)
    orders, degrees = some_orders(features, 9), other_degrees(made)
    x, c = torch.randn(9, features, dtype=F64), context_of(made, 9)
    for chosen in (None, degrees):
        expected = torch.stack(
            [
                made.arranged(order, chosen)(x[n], None if c is None else c[n])
                for n, order in enumerate(orders)
            ]
        )
        nearly(made(x, c, order=orders, degrees=chosen), expected)


PATHS: dict[str, Callable[..., Tensor]] = {
    "by degree": lambda made, x, c, ranks: made.compute(
        x, c, row_orders.row_masks(made, ranks), None
    ),
    "a pass for each order": lambda made, x, c, ranks: row_orders._pass_per_order(
        made, x, c,
        *torch.unique(ranks.reshape(-1, 5), dim=0, return_inverse=True), x.shape[:-1], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunk", [2**23, 60])
@pytest.mark.parametrize("option", ["context, residual, direct", "no hidden layer", "one unit"])
def test_both_ways_give_the_same_values_and_gradients(
    option: str, path: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_orders, "_CHUNK", chunk)
    made = told(option)
    orders = some_orders(5, 3)[torch.randint(3, (11,))]
    x, c = torch.randn(11, 5, dtype=F64, requires_grad=True), context_of(made, 11)
    leaves = [x, *made.parameters()]
    expected = torch.stack(
        [made.arranged(order)(x[n], None if c is None else c[n]) for n, order in enumerate(orders)]
    )
    weights = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True)
    mine = PATHS[path](made, x, c, orders.argsort(-1))
    nearly(mine, expected)
    gradients = torch.autograd.grad((mine * weights).sum(), leaves, allow_unused=True)
    for a, b in zip(gradients, theirs, strict=True):
        nearly(torch.zeros(()) if a is None else a, torch.zeros_like(a) if b is None else b)


def test_few_orders_and_many_take_different_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    made = told("plain", 5)
    calls = []
    several = row_orders._pass_per_order
    monkeypatch.setattr(
        row_orders, "_pass_per_order", lambda *a: calls.append(len(a[3])) or several(*a)
    )
    x = torch.randn(4000, 5, dtype=F64)
    two = some_orders(5, 2)[torch.arange(4000) % 2]
    made(x, order=two)
    made(x, order=some_orders(5, 4000))
    made(x, order=two[:1].expand(4000, 5))
    assert calls == [2]


@each_option
@pytest.mark.parametrize(("stack", "large"), [(2**26, 30_000), (2**26, 0), (0, 0)])
def test_several_rows_of_each_order(
    option: str, stack: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_orders, "_STACK", stack)
    monkeypatch.setattr(row_orders, "_PASS", large)
    made = told(option)
    orders, degrees = some_orders(5, 3), other_degrees(made)
    x, c = torch.randn(3, 40, 5, dtype=F64), context_of(made, 3, 40)
    for chosen in (None, degrees):
        expected = torch.stack(
            [
                made.arranged(order, chosen)(x[g], None if c is None else c[g])
                for g, order in enumerate(orders)
            ]
        )
        nearly(made(x, c, order=orders.unsqueeze(1), degrees=chosen), expected)
        twice = made(x.expand(2, -1, -1, -1), c, order=orders.unsqueeze(1), degrees=chosen)
        nearly(twice, expected.expand(2, -1, -1, -1, -1))


def test_orders_of_rows_broadcast() -> None:
    made = told("context")
    orders, x, c = some_orders(5, 3, 1), torch.randn(4, 5, dtype=F64), context_of(made, 2, 1, 1)
    got = made(x, c, order=orders)
    assert got.shape == (2, 3, 4, 5, 2)
    for g in range(3):
        nearly(got[:, g], made.arranged(orders[g, 0])(x, c[:, 0]))
    assert made(x[:0], context_of(made, 0), order=some_orders(5, 0)).shape == (0, 5, 2)
    vmapped = torch.func.vmap(lambda x, order: made(x, c[0, 0, 0], order))(x, some_orders(5, 4))
    assert vmapped.shape == (4, 5, 2)


# ---------------------------------------------------------------------- training over orders

SCHEDULES: dict[str, dict[str, Any]] = {
    "all orders": {"orders": "all"},
    "3 orders": {"orders": 3},
    "given orders": {"orders": [[3, 2, 1, 0], [1, 3, 0, 2]]},
    "a tensor of orders": {"orders": torch.tensor([[3, 2, 1, 0]])},
    "all masks": {"masks": "all"},
    "2 masks": {"masks": 2},
    "all orders and masks": {"orders": "all", "masks": "all"},
    "3 orders, all masks": {"orders": 3, "masks": "all", "orders_per_batch": 2},
    "several a batch": {"orders": "all", "orders_per_batch": 3},
    "one a row": {"orders": "all", "masks": "all", "orders_per_batch": "row"},
    "fixed ones, one a row": {"orders": 3, "orders_per_batch": "row"},
}
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def trained_over(name: str, head: str = "Bernoulli", option: str = "context", **more: Any) -> Any:
    made_head = HEADS[head](4)
    made = made_of(
        features=4, context=2, hidden_features=(12, 12), parameters=made_head.outputs,
        inputs=made_head.inputs, mask_weights=True, **more,
    )  # fmt: skip
    return scatter(mf.DensityModel(made, made_head.double(), **SCHEDULES[name])).eval()


@each_schedule
def test_in_evaluation_a_model_is_one_density(name: str) -> None:
    model, plain = trained_over(name), trained_over("all orders")
    plain.made.load_state_dict(model.made.state_dict())
    vectors, c = all_vectors(model(torch.zeros(2, dtype=F64))), torch.randn(2, dtype=F64)
    score = model(c).log_prob(vectors)
    nearly(score.exp().sum(), torch.tensor(1.0, dtype=F64))
    assert torch.equal(model(c).log_prob(vectors), score)
    nearly(score, mf.DensityModel(model.made, model.head)(c).log_prob(vectors))
    for order in ([2, 0, 3, 1], "reversed"):
        other = model.arranged(order)
        nearly(other(c).log_prob(vectors).exp().sum(), torch.tensor(1.0, dtype=F64))
        assert (other(c).log_prob(vectors) - score).abs().max() > 1e-3


@each_schedule
@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
def test_in_training_every_score_is_that_of_some_arrangement(name: str, head: str) -> None:
    model = trained_over(name, head).train()
    schedule = model.schedule
    c = torch.randn(7, 2, dtype=F64)
    x = values_of(model(c), 7)
    torch.manual_seed(5)
    turn = schedule.turn.clone()
    got = model(c).log_prob(x)
    torch.manual_seed(5)
    schedule.turn = turn
    parts = {"row": 7}.get(schedule.per_batch, schedule.per_batch)
    orders, degrees = schedule.draw_orders(parts), schedule.draw_degrees()
    size, expected = -(-7 // parts), []
    for part in range(parts):
        view = model.arranged(None if orders is None else orders[part], degrees)
        mf.check_autoregressive(view.made)
        rows = slice(part * size, (part + 1) * size)
        expected.append(view(c[rows]).log_prob(x[rows]))
    nearly(got, torch.cat(expected))


@each_schedule
def test_batches_differ_in_training(name: str) -> None:
    model = trained_over(name).train()
    c, x = torch.zeros(2, dtype=F64), torch.randint(2, (2, 5, 4)).double()
    scores = torch.stack([model(c).log_prob(x) for _ in range(8)])
    assert scores.shape == (8, 2, 5)
    assert bool((scores.std(dim=0) > 1e-6).any()) is (name != "a tensor of orders")


def test_fixed_orders_are_taken_in_turn() -> None:
    model = trained_over("given orders").train()
    c, x = torch.zeros(2, dtype=F64), torch.randint(2, (7, 4)).double()
    for order in [[3, 2, 1, 0], [1, 3, 0, 2]] * 2:
        nearly(model(c).log_prob(x), model.arranged(order)(c).log_prob(x))


@each_schedule
def test_models_of_a_schedule_are_saved_copied_and_shown(name: str, tmp_path: Path) -> None:
    model = mf.BernoulliMADE(4, 2, (12, 12), **SCHEDULES[name])
    mf.save(model, tmp_path / "model.safetensors")
    for twin in (
        mf.load(tmp_path / "model.safetensors"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert repr(twin) == repr(model)
        c, x = torch.randn(6, 2), torch.randint(2, (6, 4)).float()
        scores = []
        for each in (model, twin):
            torch.manual_seed(3)
            each.schedule.turn.zero_()
            scores.append(each.train()(c).log_prob(x))
            scores.append(each.eval()(c).log_prob(x))
        assert torch.equal(scores[0], scores[2])
        assert torch.equal(scores[1], scores[3])
    assert "OrderSchedule(" in repr(model)


@pytest.mark.parametrize("name", ["all orders", "3 orders", "all orders and masks", "one a row"])
def test_fitting_over_orders_is_reproducible_and_helps_every_order(name: str) -> None:
    torch.manual_seed(0)
    bits = torch.randint(2, (400, 1)).expand(400, 4) ^ (torch.rand(400, 4) < 0.05).long()
    x = bits.float()
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        model = mf.BernoulliMADE(4, 0, (24,), **SCHEDULES[name])
        mf.fit(model, x, max_epochs=30, batch_size=50, learning_rate=1e-2, progress=False, seed=2)
        results.append(model)
    first, second = (dict(m.named_parameters()) for m in results)
    assert all(torch.equal(first[key], second[key]) for key in first)
    model = results[0].eval()
    independent = 4 * 0.6931
    for order in model.schedule.orders if model.schedule.orders is not None else some_orders(4, 5):
        assert -model.arranged(order)().log_prob(x).mean() < 0.75 * independent


def test_models_of_a_schedule_are_told_their_masks() -> None:
    def weights(**arguments: Any) -> Any:
        return mf.BernoulliMADE(4, **arguments).made.mask_weights

    assert weights() is False
    assert weights(orders="all") == "order"
    assert weights(masks=3) is True
    assert weights(orders="all", mask_weights=False) is False


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a graph": ({"orders": "all", "adjacency": torch.zeros(4, 4)}, ValueError, "orders to be left"),
    "masks of a graph": ({"masks": 2, "adjacency": torch.zeros(4, 4)}, ValueError, "masks to be l"),
    "a word": ({"orders": "random"}, ValueError, "orders to be 'all', a number of them or orders"),
    "no orders": ({"orders": []}, ValueError, "orders to hold at least one order"),
    "zero orders": ({"orders": 0}, ValueError, "orders to be a positive integer"),
    "no permutation": ({"orders": [[0, 1, 2, 2]]}, ValueError, "order to be a permutation"),
    "a float": ({"orders": 1.5}, TypeError, "orders to be 'all'"),
    "masks of a word": ({"masks": "random"}, ValueError, "masks to be 'all' or a number"),
    "masks of a float": ({"masks": 1.5}, TypeError, "masks to be 'all' or a number"),
    "per batch": ({"orders": "all", "orders_per_batch": 0}, ValueError, "orders_per_batch to be a"),
    "per batch of a word": (
        {"orders": "all", "orders_per_batch": "rows"}, TypeError, "to be an integer or 'row'",
    ),
    "per batch alone": ({"orders_per_batch": 2}, ValueError, "to be left out without orders or"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name: str) -> None:
    arguments, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        mf.BernoulliMADE(4, **arguments)


def test_a_schedule_of_layers_without_hidden_units() -> None:
    schedule = OrderSchedule(mf.MADE(3, hidden_features=()), "all", "all")
    assert schedule.draw_degrees() == ()
