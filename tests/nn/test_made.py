"""MADE: what an output may read, shapes and dtypes, and what torch does with modules."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import made_flows as mf
from made_flows.nn import masks as mk
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.masked_mlp import HIDDEN_GAIN
from tests.helpers.architectures import Architecture, architectures, permutations
from tests.helpers.density_models import NETWORKS, context_of, made_of, scatter

SEVERAL = ["plain", "context, residual, direct", "graph, context, residual", "own activation"]
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def exactly(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def nearly(a: Tensor, b: Tensor) -> None:
    """Equal but for the order in which sums are added up."""
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def inputs_of(made: mf.MADE, *batch: int) -> Tensor:
    return torch.randn(*batch, len(made.input_features), dtype=made.dtype)


def dependence(made: mf.MADE, points: int = 3) -> tuple[Tensor, Tensor]:
    """By autograd: which feature reads which, and which reads which column of the context."""
    size = made.features * max(made.outputs)
    # One row for every output at every point: one backward pass gives all derivatives.
    x = inputs_of(made, points).repeat_interleave(size, dim=0).requires_grad_()
    c = context_of(made, points)
    c = None if c is None else c.repeat_interleave(size, dim=0).requires_grad_()
    made(x, c).reshape(points, size, size).diagonal(dim1=1, dim2=2).sum().backward()

    def any_of(gradient: Tensor) -> Tensor:
        shape = (points, made.features, max(made.outputs), -1)
        return gradient.reshape(shape).ne(0).any(dim=2).any(dim=0)

    reads = torch.zeros(made.features, made.features, dtype=torch.bool)
    if x.grad is not None:
        reads.index_add_(1, made.input_features, any_of(x.grad))
    none = torch.zeros(made.features, 0, dtype=torch.bool)
    return reads, none if c is None else any_of(c.grad)


# ---------------------------------------------------------------------- autoregressive

# Their derivatives vanish nowhere (or nearly), so that a dependency cannot hide.
SMOOTH = ("tanh", "silu", "gelu", "softplus", "sigmoid", "elu", "leaky_relu", "identity")


@settings(max_examples=200)
@given(architectures(activations=SMOOTH), st.integers(1, 3))
def test_derivatives_are_those_that_order_or_graph_allow(
    architecture: Architecture, parameters: int
) -> None:
    made = architecture.made(parameters=parameters)
    reads, reads_context = dependence(made)
    assert not (reads & ~made.allowed).any()
    assert torch.equal(reads, made.reach())  # nothing else is lost than masks say
    if "adjacency" not in architecture.arguments:
        assert reads_context.all()  # the first feature too, whatever the widths


@settings(max_examples=100)
@given(architectures(), st.data())
def test_features_may_have_different_numbers_of_inputs_and_parameters(
    architecture: Architecture, data: st.DataObject
) -> None:
    features = architecture.features
    counts = st.lists(st.integers(1, 4), min_size=features, max_size=features)
    inputs, parameters = data.draw(counts), data.draw(counts)
    made = architecture.made(inputs=inputs, parameters=parameters)
    output = made(inputs_of(made, 2), context_of(made, 2))
    assert output.shape == (2, features, max(parameters))
    for feature, count in enumerate(parameters):
        assert output[:, feature, :count].isfinite().all()
        assert (output[:, feature, count:] == -torch.inf).all()
    reads, _ = dependence(made)
    assert not (reads & ~made.allowed).any()


@each_network
def test_every_option_is_autoregressive(make: Callable[..., mf.MADE]) -> None:
    for features in (1, 2, 5):
        made = make(features)
        reads, _ = dependence(made, points=2)
        assert not (reads & ~made.allowed).any()


@settings(max_examples=50)
@given(architectures(graph=False))
def test_allowed_is_what_comes_before_and_units_are_sorted_by_degree(
    architecture: Architecture,
) -> None:
    made = architecture.made()
    order = made.order.tolist()
    assert sorted(order) == list(range(made.features))
    given_order = architecture.arguments["order"]
    if isinstance(given_order, list):
        assert order == given_order
    for i in range(made.features):
        for j in range(made.features):
            assert made.allowed[i, j] == (order.index(j) < order.index(i))
    for degrees in made.degrees:
        assert degrees.tolist() == sorted(degrees.tolist())  # units are kept in this order


def test_a_graph_is_allowed_as_given() -> None:
    adjacency = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]])
    made = made_of(features=3, context=1, adjacency=adjacency, hidden_features=(20,))
    assert torch.equal(made.allowed, adjacency[:, :3].bool())
    reads, reads_context = dependence(made, points=20)
    assert torch.equal(reads, adjacency[:, :3].bool())
    assert torch.equal(reads_context[:, 0], adjacency[:, 3].bool())
    assert made.ranks.tolist() == [1, 0, 2]


# ---------------------------------------------------------------------- what is computed


def by_hand(made: mf.MADE, x: Tensor, context: Tensor | None) -> Tensor:
    """The network of the paper, one masked matrix at a time."""

    def told(layer: MaskedLinear) -> Tensor | float:
        return 0.0 if layer.mask_weight is None else (layer.mask_weight * layer.mask).sum(dim=1)

    layers = [(layer.weight * layer.mask, layer.bias + told(layer)) for layer in made.layers]
    z = x
    for index, (weight, bias) in enumerate(layers):
        if index == 0:
            z = x @ weight.T + bias
            if made.input_context is not None:
                z = z + context @ (made.input_context.weight * made.input_context.mask).T
        elif made.residual and index < len(layers) - 1:
            if index % 2 == 0:
                continue
            inner = made.activation(made.activation(z) @ weight.T + bias)
            z = z + inner @ layers[index + 1][0].T + layers[index + 1][1]
        else:
            z = made.activation(z) @ weight.T + bias
    if made.direct is not None:
        z = z + x @ (made.direct.weight * made.direct.mask).T + told(made.direct)
    if made.output_context is not None:
        z = z + context @ (made.output_context.weight * made.output_context.mask).T
    return z.reshape(*z.shape[:-1], made.features, -1)


@each_network
def test_outputs_are_those_of_the_masked_matrices(make: Callable[..., mf.MADE]) -> None:
    made = make()
    x, c = inputs_of(made, 7), context_of(made, 7)
    nearly(made(x, c), by_hand(made, x, c))


@settings(max_examples=50)
@given(architectures(graph=False).filter(lambda a: "order" in a.arguments), st.data())
def test_an_order_for_one_call_is_as_if_made_with_it(
    architecture: Architecture, data: st.DataObject
) -> None:
    order = data.draw(permutations(architecture.features))
    made = architecture.made(degrees="even")
    other = architecture.made(degrees="even", order=order)
    other.load_state_dict(dict(made.named_parameters()), strict=False)
    x, c = inputs_of(made, 3), context_of(made, 3)
    before = made(x, c)
    for given_order in (order, torch.tensor(order)):
        nearly(made(x, c, given_order), other(x, c))
    exactly(made(x, c), before)  # for one call only
    nearly(made(x, c, made.order), before)


def test_initial_outputs_are_near_zero() -> None:
    for option in ("plain", "context, residual, direct", "deep"):
        torch.manual_seed(0)
        fresh = NETWORKS[option](8)
        fresh.reset_parameters()
        output = fresh(inputs_of(fresh, 100), context_of(fresh, 100))
        assert output.abs().max() < 0.3
        assert output.std() > 0  # yet weights move from the start


def test_fresh_hidden_units_are_of_one_scale_whatever_their_degree() -> None:
    made = mf.MADE(50, hidden_features=(5000,))
    z = nn.functional.linear(torch.randn(200, 50), made.layers[0].weight * made.layers[0].mask)
    by_degree = torch.stack([z[:, made.degrees[0] == d].std() for d in (1, 10, 49)])
    # About 20000 values each: standard errors below 2 per cent.
    torch.testing.assert_close(by_degree, torch.full((3,), HIDDEN_GAIN), rtol=0.15, atol=0)


# ---------------------------------------------------------------------- shapes

SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((3,), (3,)),
    ((2, 3), (2, 3)),
    ((3,), ()),
    ((), (3,)),
    ((2, 3), (3,)),
    ((2, 3), ()),
    ((3,), (2, 3)),
    ((2, 1), (1, 3)),
    ((2, 1, 3), (4, 1)),
    ((0,), ()),
    ((), (0,)),
    ((0, 3), (3,)),
    ((4, 0), (4, 1)),
]


@pytest.mark.parametrize(("of_x", "of_context"), SHAPES, ids=map(str, SHAPES))
@pytest.mark.parametrize("option", ["context, residual, direct", "context, no hidden layer"])
def test_x_and_context_are_broadcast(
    option: str, of_x: tuple[int, ...], of_context: tuple[int, ...]
) -> None:
    made = NETWORKS[option]()
    x, c = inputs_of(made, *of_x), context_of(made, *of_context)
    batch = torch.broadcast_shapes(of_x, of_context)
    output = made(x, c)
    assert output.shape == (*batch, 5, 2)
    assert c is not None
    full_x, full_c = x.expand(*batch, -1), c.expand(*batch, -1)
    rows = [
        made(a, b)
        for a, b in zip(full_x.reshape(-1, 5), full_c.reshape(-1, made.context), strict=True)
    ]
    if rows:
        nearly(output.reshape(-1, 5, 2), torch.stack(rows))


@each_network
@pytest.mark.parametrize("batch", [(), (0,), (1,), (4,), (2, 0, 3), (2, 4)], ids=str)
def test_any_batch_shape(make: Callable[..., mf.MADE], batch: tuple[int, ...]) -> None:
    made = make()
    x, c = inputs_of(made, *batch), context_of(made, *batch)
    output = made(x, c)
    assert output.shape == (*batch, 5, 2)
    flat = made(x.reshape(-1, 5), None if c is None else c.reshape(-1, made.context))
    nearly(output.reshape(-1, 5, 2), flat)


@each_network
def test_one_feature(make: Callable[..., mf.MADE]) -> None:
    made = make(1)
    x, c = inputs_of(made, 4), context_of(made, 1)
    output = made(x, c)
    assert output.shape == (4, 1, 2)
    exactly(output, output[:1].expand(4, -1, -1))  # no feature comes before the only one


@each_network
def test_strides_do_not_matter(make: Callable[..., mf.MADE]) -> None:
    made = make()
    x, c = inputs_of(made, 6), context_of(made, 6)
    strange = torch.randn(6, 10, dtype=torch.float64)[:, ::2].copy_(x).T.contiguous().T
    assert not strange.is_contiguous()
    strange_c = None if c is None else c.T.contiguous().T
    nearly(made(strange, strange_c), made(x, c))
    exactly(made(x[:1].expand(6, -1), c), made(x[:1].repeat(6, 1), c))


# ---------------------------------------------------------------------- dtypes and modes


@each_network
def test_float32_is_float64_rounded(make: Callable[..., mf.MADE]) -> None:
    made = make()
    x, c = inputs_of(made, 6), context_of(made, 6)
    expected = made(x, c)
    single = copy.deepcopy(made).float()
    assert single.dtype == torch.float32
    output = single(x.float(), None if c is None else c.float())
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)
    assert single.ranks.dtype == torch.int64
    assert all(layer.mask.dtype == torch.bool for layer in single.layers)


def test_half_precision_runs() -> None:
    made = NETWORKS["context, residual, direct"]().to(torch.bfloat16)
    x, c = inputs_of(made, 3), context_of(made, 3, dtype=torch.bfloat16)
    assert made(x, c).dtype == torch.bfloat16


def test_autocast_multiplies_in_bfloat16_and_returns_float32() -> None:
    made = NETWORKS["residual"]().float()
    x = inputs_of(made, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = made(x)
    assert low.dtype == torch.float32
    assert not torch.equal(low, made(x))
    torch.testing.assert_close(low, made(x), rtol=0.1, atol=0.1)


def test_dropout_drops_in_training_only() -> None:
    made = NETWORKS["dropout"]()
    x = inputs_of(made, 50)
    exactly(made(x), made(x))
    made.train()
    assert not torch.equal(made(x), made(x))
    exactly(made.evaluate(x), made.eval()(x))


@pytest.mark.parametrize("residual", [False, True])
def test_dropout_leaves_the_network_autoregressive(residual: bool) -> None:
    made = made_of(
        features=5, context=2, hidden_features=(16, 16, 16), dropout=0.3, residual=residual
    ).train()
    reads, _ = dependence(made)
    assert not (reads & ~made.allowed).any()


# ---------------------------------------------------------------------- resampled masks


@pytest.mark.parametrize(
    "option", [name for name in NETWORKS if "graph" not in name and name != "no edge"]
)
def test_resampled_masks_are_autoregressive_in_the_new_order(option: str) -> None:
    made = NETWORKS[option](6)
    generator = torch.Generator().manual_seed(1)
    weights = [parameter.clone() for parameter in made.parameters()]
    orders = set()
    for _ in range(10):
        made.resample_masks(generator)
        orders.add(tuple(made.order.tolist()))
        reads, _ = dependence(made, points=1)
        assert not (reads & ~made.allowed).any()
        assert not (made.reach() & ~made.allowed).any()
    assert len(orders) > 5
    for parameter, before in zip(made.parameters(), weights, strict=True):
        exactly(parameter, before)


def test_resampling_is_reproducible_and_may_keep_either_half() -> None:
    def resampled(**which: bool) -> mf.MADE:
        made = NETWORKS["context"](6)
        made.resample_masks(torch.Generator().manual_seed(5), **which)
        return made

    fresh, again = NETWORKS["context"](6), resampled()
    assert again.order.tolist() == resampled().order.tolist() != fresh.order.tolist()
    for mine, other in zip(again.degrees, resampled().degrees, strict=True):
        exactly(mine, other)
    assert resampled(order=False).order.tolist() == fresh.order.tolist()
    for mine, other in zip(resampled(degrees=False).degrees, fresh.degrees, strict=True):
        exactly(mine, other)
    assert not torch.equal(again.degrees[0], fresh.degrees[0])


def test_resampled_units_are_free_of_their_place() -> None:
    made = made_of(features=9, hidden_features=(40,))
    made.resample_masks(torch.Generator().manual_seed(0))
    assert made.degrees[0].tolist() != sorted(made.degrees[0].tolist())
    assert torch.equal(made.layers[0].mask, made.degrees[0][:, None] > made.ranks)
    assert torch.equal(
        made.layers[1].mask, made.ranks[made.output_features][:, None] >= made.degrees[0]
    )


def test_a_graph_has_no_masks_to_resample() -> None:
    with pytest.raises(ValueError, match="Expected the network to have an order to draw anew"):
        NETWORKS["graph"]().resample_masks()


# ---------------------------------------------------------------------- as a module of torch


@each_network
def test_a_state_dict_carries_order_degrees_and_masks(make: Callable[..., mf.MADE]) -> None:
    made = make()
    if made.graph is None:
        made.resample_masks(torch.Generator().manual_seed(2))
    other = make()
    other.load_state_dict(made.state_dict())
    x, c = inputs_of(made, 6), context_of(made, 6)
    exactly(other(x, c), made(x, c))
    exactly(other.ranks, made.ranks)
    assert torch.equal(other.allowed, made.allowed)
    for mine, theirs in zip(other.degrees, made.degrees, strict=True):
        exactly(mine, theirs)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@each_network
def test_copies_are_equal_and_independent(
    make: Callable[..., mf.MADE], duplicate: Callable[[Any], Any]
) -> None:
    made = make()
    x, c = inputs_of(made, 6), context_of(made, 6)
    made(x, c)
    other = duplicate(made)
    expected = made(x, c)
    exactly(other(x, c), expected)
    scatter(other)
    exactly(made(x, c), expected)
    assert not torch.equal(other(x, c), expected)


@pytest.mark.parametrize(
    "option", ["plain", "context, residual, direct", "graph, context, residual"]
)
def test_gradients_reach_every_weight_behind_the_mask_and_no_other(option: str) -> None:
    made = NETWORKS[option](activation="tanh")
    made(inputs_of(made, 20), context_of(made, 20)).pow(2).sum().backward()
    for layer in made.modules():
        if isinstance(layer, MaskedLinear):
            assert torch.equal(layer.weight.grad != 0, layer.mask)


@each_network
def test_it_prints(make: Callable[..., mf.MADE]) -> None:
    made = make()
    text = repr(made)
    assert text.startswith("MADE(")
    assert "features=5" in text
    assert "parameters=2" in text
    assert (f"context={made.context}" in text) == bool(made.context)


@pytest.mark.parametrize("option", SEVERAL)
def test_it_compiles_whole(option: str) -> None:
    made = NETWORKS[option]()
    x, c = inputs_of(made, 6), context_of(made, 6)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    nearly(compiled(x, c), made(x, c))
    order = torch.tensor([1, 3, 0, 4, 2])
    if made.graph is None:
        nearly(compiled(x, c, order), made(x, c, order))
    made(x, c).sum().backward()
    expected = [parameter.grad.clone() for parameter in made.parameters()]
    made.zero_grad()
    compiled(x, c).sum().backward()
    for parameter, gradient in zip(made.parameters(), expected, strict=True):
        nearly(parameter.grad, gradient)


# torch takes derivatives of derivatives in forward mode through its own, deprecated, TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@each_network
def test_function_transforms(make: Callable[..., mf.MADE]) -> None:
    made = make()
    x, c = inputs_of(made, 4), context_of(made)

    def call(x: Tensor) -> Tensor:
        return made(x, c)

    nearly(torch.vmap(call)(x), made(x, c))
    jacobian = torch.func.jacrev(call)(x[0])
    nearly(jacobian, torch.func.jacfwd(call)(x[0]))
    nearly(jacobian, torch.autograd.functional.jacobian(call, x[0]))


def test_networks_as_an_ensemble() -> None:
    networks = [scatter(NETWORKS["residual"]()) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(networks)
    x = inputs_of(networks[0], 4)

    def call(parameters: Any, buffers: Any) -> Tensor:
        return torch.func.functional_call(networks[0], (parameters, buffers), (x,))

    together = torch.vmap(call)(parameters, buffers)
    nearly(together, torch.stack([network(x) for network in networks]))


# ---------------------------------------------------------------------- bad input

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no features": ({"features": 0}, ValueError, "features to be a positive integer; got 0"),
    "features of float": ({"features": 3.0}, TypeError, "features to be a positive integer; got f"),
    "features of bool": ({"features": True}, TypeError, "features to be a positive integer; got b"),
    "features of text": ({"features": "3"}, TypeError, "features to be a positive integer; got st"),
    "negative context": ({"context": -1}, ValueError, "context to be a non-negative integer; got"),
    "context of None": ({"context": None}, TypeError, "context to be a non-negative integer; got"),
    "one width": ({"hidden_features": 64}, TypeError, "hidden_features to be a sequence of layer"),
    "widths of text": ({"hidden_features": "64"}, TypeError, "hidden_features to be a sequence of"),
    "no unit": ({"hidden_features": (8, 0)}, ValueError, r"hidden_features\[1\] to be a positive"),
    "half a unit": ({"hidden_features": (8, 2.5)}, TypeError, r"hidden_features\[1\] to be a posi"),
    "no parameters": ({"parameters": 0}, ValueError, "parameters to be a positive integer; got 0"),
    "too few parameters": ({"parameters": [1, 2]}, ValueError, "parameters to have 3 entries; got"),
    "one feature without": ({"parameters": [1, 0, 1]}, ValueError, r"parameters\[1\] to be a posi"),
    "parameters of text": (
        {"parameters": "112"},
        TypeError,
        "parameters to be an integer or a seq",
    ),
    "too many inputs": ({"inputs": [1] * 4}, ValueError, "inputs to have 3 entries; got 4"),
    "unknown order": ({"order": "sorted"}, ValueError, "order to be 'natural', 'reversed', 'rand"),
    "bad order": ({"order": [0, 1, 1]}, ValueError, r"order to be a permutation of 0\.\.2; got"),
    "unknown degrees": ({"degrees": "odd"}, ValueError, "degrees to be 'even' or 'random'; got"),
    "unknown activation": ({"activation": "rule"}, ValueError, "activation to be one of relu, elu"),
    "activation of 3": ({"activation": 3}, TypeError, "activation to be a name, module or functi"),
    "dropout of 1": ({"dropout": 1.0}, ValueError, r"dropout to be in \[0, 1\); got 1.0"),
    "negative dropout": ({"dropout": -0.1}, ValueError, r"dropout to be in \[0, 1\); got -0.1"),
    "dropout of NaN": ({"dropout": float("nan")}, ValueError, "dropout to be finite; got nan"),
    "dropout of text": ({"dropout": "0.1"}, TypeError, "dropout to be a number; got str"),
}


@pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^Expected {message}"):
        mf.MADE(**{"features": 3, "hidden_features": (8, 8), **arguments})


_x, _c = torch.zeros(4, 3), torch.zeros(4, 2)
BAD_CALLS: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "too many columns": ((torch.zeros(4, 5), _c), ValueError, r"x of shape \(..., 3\); got \(4, 5"),
    "no dimension": ((torch.tensor(1.0), _c), ValueError, r"x of shape \(..., 3\); got \(\)"),
    "a list": (([0.0, 0.0, 0.0], _c), TypeError, "x to be a torch.Tensor; got list"),
    "an array": ((_x.numpy(), _c), TypeError, "x to be a torch.Tensor; got ndarray"),
    "another dtype": ((_x.double(), _c), TypeError, r"x of dtype torch.float32, that of the model"),
    "integers": ((_x.long(), _c), TypeError, r"x of dtype torch.float32, .*got torch.int64"),
    "no context": ((_x,), ValueError, r"context of shape \(..., 2\), since .*context=2; got none"),
    "a wide context": ((_x, _x), ValueError, r"context of shape \(..., 2\); got \(4, 3\)"),
    "context of float64": ((_x, _c.double()), TypeError, "context of dtype torch.float32"),
    "rows that do not match": (
        (_x, torch.zeros(5, 2)), ValueError, r"shapes that broadcast .* got x \(4,\), context \(5",
    ),
    "bad order": ((_x, _c, [0, 0, 1]), ValueError, r"order to be a permutation of 0\.\.2; got"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    made = mf.MADE(3, context=2, hidden_features=(8,))
    with pytest.raises(error, match=f"^Expected {message}"):
        made(*arguments)


def test_a_context_that_was_not_configured_is_refused() -> None:
    made = mf.MADE(3, hidden_features=(8,))
    with pytest.raises(ValueError, match=r"Expected no context, .*context=0; got one of shape \(4"):
        made(torch.zeros(4, 3), torch.zeros(4, 2))


def test_an_order_for_a_graph_is_refused() -> None:
    made = NETWORKS["graph"](3)
    with pytest.raises(ValueError, match="Expected order to be left out for a network of a graph"):
        made(inputs_of(made, 2), None, [0, 1, 2])


SAME_ACTIVATION = {
    "name": "gelu", "module": nn.GELU(), "class": nn.GELU, "function": nn.functional.gelu
}  # fmt: skip


@pytest.mark.parametrize("activation", SAME_ACTIVATION.values(), ids=SAME_ACTIVATION)
def test_an_activation_may_be_given_in_any_way(activation: Any) -> None:
    torch.manual_seed(0)
    expected = made_of(features=4, activation="gelu")
    torch.manual_seed(0)
    made = made_of(features=4, activation=activation)
    x = inputs_of(made, 5)
    exactly(made(x), expected(x))


def test_an_activation_with_weights_is_trained() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = mf.MADE(3, activation=nn.PReLU())
    names = [name for name, _ in made.named_parameters()]
    assert any("activation" in name for name in names)
    made(torch.randn(9, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_generators_make_networks_reproducible() -> None:
    def make() -> mf.MADE:
        return mf.MADE(
            6, order="random", degrees="random", generator=torch.Generator().manual_seed(9)
        )

    assert torch.equal(make().ranks, make().ranks)
    assert torch.equal(make().degrees[1], make().degrees[1])
    ranks = {tuple(mf.MADE(6, order="random").ranks.tolist()) for _ in range(10)}
    assert len(ranks) > 5
    assert mk.order_from_ranks(make().ranks).tolist() == make().order.tolist()


# Torch compiles a decomposition of its own for forward mode.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_large_layers_have_derivatives_of_every_order_and_mode() -> None:
    made = made_of(features=4, hidden_features=(512, 512), parameters=1, activation="tanh")
    x, v = torch.randn(2, 2, 4, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        _, slope = torch.autograd.forward_ad.unpack_dual(made(dual))
    step = 1e-6
    torch.testing.assert_close(slope, (made(x + step * v) - made(x - step * v)) / (2 * step))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(made(leaf).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad((gradient * v).sum(), leaf)

    def gradient_at(point: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        return torch.autograd.grad(made(point).sum(), point)[0]

    expected = (gradient_at(x + step * v) - gradient_at(x - step * v)) / (2 * step)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------- masks of other orders

OTHER_ORDERS: dict[str, Callable[[mf.MADE, Tensor], Any]] = {
    "an order": lambda made, x: made(x, order=[2, 0, 3, 1]),
    "an order of every row": lambda made, x: made(x, order=torch.rand(x.shape).argsort(dim=-1)),
    "degrees": lambda made, x: made(x, degrees=made.degrees),
    "a network in another order": lambda made, x: made.arranged([2, 0, 3, 1]),
}


@pytest.mark.parametrize("layer", ["first", "inner", "last", "direct"])
@pytest.mark.parametrize("way", OTHER_ORDERS)
def test_masks_changed_by_hand_have_no_other_order(way: str, layer: str) -> None:
    made, x = made_of(features=4, hidden_features=(6, 6), direct=True), torch.randn(5, 4).double()
    changed = {"first": 0, "inner": 1, "last": 2}.get(layer)
    where = made.direct if changed is None else made.layers[changed]
    assert where is not None
    OTHER_ORDERS[way](made, x)
    place = tuple(where.mask.nonzero()[-1])
    where.mask[place] = 0
    with pytest.raises(ValueError, match=r"the mask of \S+ to follow .* changed by hand"):
        OTHER_ORDERS[way](made, x)
    where.mask[place] = 1
    OTHER_ORDERS[way](made, x)
    made.resample_masks(torch.Generator().manual_seed(0))
    OTHER_ORDERS[way](made, x)


def test_layers_that_take_no_mask_are_wrapped_around_others() -> None:
    class Wrapped(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x @ (0.3 * self.layer.mask.to(x)).T  # type: ignore[no-any-return]

    made, x = made_of(features=4, hidden_features=(6, 6), direct=True), torch.randn(5, 4).double()
    plain = copy.deepcopy(made)
    for network, wrap in ((made, Wrapped), (plain, lambda layer: layer)):
        network.layers = nn.ModuleList(map(wrap, network.layers))
    with torch.no_grad():
        for linear in plain.layers:
            linear.weight += 0.3
    orders = torch.rand(5, 4).argsort(dim=-1)
    for order in ([2, 0, 3, 1], orders, orders[:, None]):
        rows = x[:, None] if isinstance(order, Tensor) and order.dim() > 2 else x
        torch.testing.assert_close(made(rows, order=order), plain(rows, order=order))
    view = made.arranged([2, 0, 3, 1])
    torch.testing.assert_close(view(x), plain(x, order=[2, 0, 3, 1]))
    mf.check_autoregressive(view)
    made.resample_masks(torch.Generator().manual_seed(0))
    mf.check_autoregressive(made)
    made.layers[0] = nn.Linear(4, 6).double()
    with pytest.raises(ValueError, match="with one mask in it; got Linear"):
        made(x, order=[2, 0, 3, 1])


def test_dropout_is_on_again_after_two_threads_turned_it_off() -> None:
    made = made_of(features=3, dropout=0.5).train()
    x, inside, left = torch.zeros(2, 3).double(), threading.Event(), threading.Event()
    other = threading.Thread(target=made.as_called, args=(x,))

    def meet(*_: Any) -> None:  # the other one enters last, and leaves last
        if threading.current_thread() is other:
            inside.set()
            left.wait()
        else:
            other.start()
            inside.wait()

    made.register_forward_pre_hook(meet)
    made.as_called(x)
    left.set()
    other.join()
    assert made.dropout.training
