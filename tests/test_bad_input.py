"""Bad input: whatever is passed, the error says what was expected of which argument, and what came.

Tables of name -> call; what is expected of the message is part of the name's row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Exponential, Independent, Normal, Uniform
from torch.utils.data import DataLoader

import made_flows as mf
from made_flows._checks import check_broadcast
from made_flows.diagnostics.pareto import pareto_smooth
from made_flows.ray import Sample, Score

NAN, INF = math.nan, math.inf
ROWS = torch.full((4, 3), 0.5)
LAYER = nn.Linear(3, 3)
HOLES = torch.tensor([[1.0, NAN, 2.0]])


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of_all_orders(**more: Any) -> mf.GaussianMADE:
    return mf.GaussianMADE(3, orders="all", hidden_features=(8,), **more)


def assigned(model: Any) -> Any:
    """Lose the buffers that no state dict has."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to("meta").load_state_dict(weights, assign=True)
    return model


def mixture() -> mf.Mixture:
    return mf.Mixture([mf.GaussianMADE(3, hidden_features=(8,)), mf.MAF(3, hidden_features=(8,))])


def independent(one: Any) -> Independent:
    return Independent(one, 1)


def refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("Expected")
    assert len(text) < 400, "Expected a message that does not print a whole object"
    assert "\n" not in text


# ---------------------------------------------------------------------- values, shapes, contexts

DISTRIBUTIONS: dict[str, Callable[[], Any]] = {
    "GaussianMADE": mf.GaussianMADE(3),
    "MAF": mf.MAF(3),
    "IAF": mf.IAF(3),
    "mixture": mixture(),
    "conditional": lambda: of_all_orders().conditional(HOLES[0]),
    "conditional mixture": lambda: mf.OrderMixture(of_all_orders(), 2).conditional(HOLES[0]),
}

VALUES: dict[str, tuple[Any, str]] = {
    "list": ([1.0, 2.0, 3.0], "value to be a torch.Tensor; got list"),
    "array": (np.zeros((2, 3)), "value to be a torch.Tensor; got ndarray"),
    "None": (None, "value to be a torch.Tensor; got NoneType"),
    "shape": (torch.zeros(4), r"value of shape \(..., 3\); got \(4,\)"),
    "scalar": (torch.tensor(0.0), r"value of shape \(..., 3\); got \(\)"),
    "sparse": (ROWS.to_sparse(), "value to be dense; got torch.sparse_coo"),
    "complex": (ROWS.to(torch.complex64), "value to be real; got torch.complex64"),
}

SHAPES: dict[str, tuple[Any, str]] = {
    "negative": ((-1,), r"to be of sizes >= 0; got \(-1,\)"),
    "negative number": (-1, r"to be of sizes >= 0; got \(-1,\)"),
    "float": (2.0, "to be a sequence of integers, or an integer; got float 2.0"),
    "string": ("a", "to be a sequence of integers, or an integer; got str 'a'"),
    "None": (None, "to be a sequence of integers, or an integer; got NoneType"),
    "True": (True, "to be a sequence of integers, or an integer; got bool"),
    "floats": ((2.0,), "to be a sequence of integers, or an integer; got tuple"),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_values(name: str, value: str) -> None:
    given, message = VALUES[value]
    distribution = DISTRIBUTIONS[name]()
    for checks in (True, False):  # torch.compile turns them off, for the whole process
        distribution._validate_args = checks
        refused(lambda: distribution.log_prob(given), message.replace("value", "(value|values|x)"))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_has_no_formula_is_estimated_by_samples(name: str) -> None:
    distribution = DISTRIBUTIONS[name]()
    asked = {"mean": "mean", "variance": "variance", "stddev": "variance"}
    for what, told in asked.items():
        with pytest.raises(NotImplementedError, match=rf"got {told}. Samples .*: d\.sample"):
            getattr(distribution, what)
    with pytest.raises(
        NotImplementedError, match=r"got entropy. Samples estimate it: -d\.log_prob"
    ):
        distribution.entropy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sample_shapes(name: str, shape: str) -> None:
    given, message = SHAPES[shape]
    distribution = DISTRIBUTIONS[name]()
    refused(lambda: distribution.sample(given), f"sample_shape {message}")
    refused(lambda: distribution.expand(given), f"batch_shape {message}")
    if distribution.has_rsample:
        refused(lambda: distribution.rsample(given), f"sample_shape {message}")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_number_of_samples_is_a_shape(name: str) -> None:
    distribution = DISTRIBUTIONS[name]()
    for shape in (5, np.int64(5), [5], torch.Size([5])):
        assert distribution.sample(shape).shape == (5, 3)
    assert distribution.expand(4).batch_shape == (4,)
    assert distribution.expand([2, 4]).sample(1).shape == (1, 2, 4, 3)


CONTEXTS: dict[str, tuple[Any, str]] = {
    "none": (None, r"context of shape \(..., 2\), since .* context=2; got none"),
    "list": ([1.0, 2.0], "context to be a torch.Tensor; got list"),
    "array": (np.zeros(2), "context to be a torch.Tensor; got ndarray"),
    "shape": (torch.zeros(4, 3), r"context of shape \(..., 2\); got \(4, 3\)"),
    "sparse": (torch.zeros(4, 2).to_sparse(), "context to be dense"),
    "complex": (torch.zeros(4, 2) + 0j, "context to be real"),
    "NaN": (torch.tensor([[0.0, 0.0], [0.0, NAN]]), "finite; got nan in row 1, column 1"),
    "infinite": (torch.tensor([[0.0, INF]]), "finite; got inf in row 0, column 1"),
}

CONDITIONAL: dict[str, Callable[[], mf.Model]] = {
    "GaussianMADE": lambda: mf.GaussianMADE(3, 2),
    "MAF": lambda: mf.MAF(3, 2),
    "mixture": lambda: mf.Mixture([mf.MAF(3, 2)]),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_contexts(name: str, context: str) -> None:
    given, message = CONTEXTS[context]
    refused(lambda: CONDITIONAL[name]()(given), message)


@pytest.mark.parametrize("model", [mf.GaussianMADE(3), mf.MAF(3), mixture()], ids=CONDITIONAL)
@pytest.mark.parametrize("context", [torch.zeros(2), [1.0, 2.0]], ids=["tensor", "list"])
def test_superfluous_contexts(model: mf.Model, context: Any) -> None:
    refused(lambda: model(context), "Expected no context")


# ---------------------------------------------------------------------- constructors

NETWORK_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({"features": 0}, "features to be a positive integer; got 0"),
    "features as text": ({"features": "3"}, "features to be a positive integer; got str '3'"),
    "a fraction of features": ({"features": 2.5}, "features to be a positive integer; got float"),
    "True features": ({"features": True}, "features to be a positive integer; got bool"),
    "negative context": ({"context": -1}, "context to be a non-negative integer; got -1"),
    "one width": ({"hidden_features": 64}, "hidden_features to be a sequence of layer widths"),
    "width zero": ({"hidden_features": (8, 0)}, r"hidden_features\[1\] to be a positive integer"),
    "a seed": ({"generator": 3}, "generator to be a torch.Generator or None; got int 3"),
    "nothing to draw": ({"generator": drawn()}, "generator to be left out, as nothing is drawn"),
    "activation": ({"activation": 3}, "activation to be a name, module or function; got int 3"),
    "residual": ({"residual": "no"}, "residual to be True or False; got str 'no'"),
    "direct": ({"direct": "false"}, "direct to be True, False or 'first'; got str 'false'"),
    "dropout": ({"dropout": "a"}, "dropout to be a number; got str 'a'"),
    "dropout 1": ({"dropout": 1.0}, r"dropout to be in \[0, 1\); got 1"),
    "dropout NaN": ({"dropout": NAN}, "dropout to be finite; got nan"),
    "scale": ({"scale": "x"}, "scale rule to be one of"),
    "order": ({"order": "x"}, "order to be .* or a permutation; got 'x'"),
    "no permutation": ({"order": [0, 0, 1]}, r"order to be a permutation of 0..2"),
    "order None": ({"order": None}, r"order to be a permutation of 0..2; got None"),
    "degrees": ({"degrees": "x"}, "degrees to be 'even' or 'random'; got 'x'"),
    "a cycle": ({"adjacency": torch.ones(3, 3)}, "adjacency to have no cycle"),
    "a small graph": ({"adjacency": torch.zeros(2, 2)}, r"adjacency of shape \(3, 3\); got"),
    "mask_weights": (
        {"mask_weights": 3},
        "mask_weights to be True, False or 'order'; got (int )?3",
    ),
}


@pytest.mark.parametrize("argument", NETWORK_ARGUMENTS)
@pytest.mark.parametrize("kind", [mf.GaussianMADE, mf.MAF, mf.IAF])
def test_arguments_of_networks(kind: Callable[..., Any], argument: str) -> None:
    given, message = NETWORK_ARGUMENTS[argument]
    refused(lambda: kind(**{"features": 3, **given}), message)


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    # density models
    "orders": (lambda: mf.GaussianMADE(3, orders="x"), "orders to be 'all'"),
    "no orders": (lambda: mf.GaussianMADE(3, orders=0), "orders to be a positive integer; got 0"),
    "orders 1.5": (lambda: mf.GaussianMADE(3, orders=1.5), "orders to be 'all', a number"),
    "masks 0": (lambda: mf.GaussianMADE(3, masks=0), "masks to be a positive integer; got 0"),
    "orders_per_batch": (
        lambda: of_all_orders(orders_per_batch="x"), "orders_per_batch to be an integer or 'row'",
    ),
    "orders_per_batch, numbers": (
        lambda: of_all_orders(orders_per_batch=np.ones(3)), "orders_per_batch to be an integer",
    ),
    "orders, one number": (
        lambda: mf.GaussianMADE(3, orders=torch.tensor(NAN)), "orders to be 'all'",
    ),
    "degrees, numbers": (
        lambda: mf.GaussianMADE(3, degrees=np.ones(3)), "degrees to be 'even' or 'random'",
    ),
    "direct, numbers": (lambda: mf.MAF(3, direct=np.ones(3)), "direct to be True, False or"),
    "bijection, numbers": (lambda: mf.MAF(3, bijection=np.ones(3)), "bijection to be a Bijection"),
    "normalize, numbers": (lambda: mf.MAF(3, normalize=np.ones(3)), "normalize to be None"),
    "transforms, a number": (lambda: mf.Flow(torch.tensor(1.0)), "transforms to be a sequence"),
    "a context of numbers": (lambda: mixture().gain(ROWS, [1.0]), "context to be a torch.Tensor"),
    "values of a flow": (lambda: mf.MAF(3).to_noise(ROWS.numpy()), "x to be a torch.Tensor"),
    "noise of a flow": (lambda: mf.MAF(3).to_data(None), "z to be a torch.Tensor"),
    "columns of noise": (lambda: mf.MAF(3).generate(ROWS[:, :2]), r"z of shape \(..., 3\)"),
    "a context of a flow without": (
        lambda: mf.MAF(3).to_noise(ROWS, ROWS), "no context, since the flow was made with",
    ),
    "orders_per_batch alone": (
        lambda: mf.GaussianMADE(3, orders_per_batch=2), "orders_per_batch to be left out",
    ),
    "components": (lambda: mf.GaussianMixtureMADE(3, components=0), "components to be a positive"),
    "categories": (lambda: mf.CategoricalMADE(3, categories=0), "categories to be a positive"),
    "few categories": (lambda: mf.CategoricalMADE(3, categories=[2]), "to have 3 entries; got 1"),
    "a head first": (
        lambda: mf.DensityModel(mf.GaussianMADE(3).head, mf.MADE(3)), "made to be a MADE; got Gaus",
    ),
    "an ignored generator": (
        lambda: mf.DensityModel(mf.MADE(3), mf.GaussianMADE(3).head, generator=drawn()),
        "generator to be left out, as nothing is drawn",
    ),
    "arranged": (lambda: of_all_orders().arranged([0, 0, 1]), "order to be a permutation"),
    "arranged degrees": (
        lambda: of_all_orders().arranged(degrees=[torch.zeros(3)]), "degrees",
    ),
    "half a category": (
        lambda: mf.CategoricalMADE(3, categories=3)().log_prob(torch.full((3,), 0.5)), "value to b",
    ),
    "half a bit": (
        lambda: mf.BernoulliMADE(3)().log_prob(torch.full((3,), 0.5)), "value to be 0 or 1; got 0.",
    ),
    # flows
    "no transforms": (lambda: mf.MAF(3, transforms=0), "transforms to be a positive integer"),
    "normalize": (lambda: mf.MAF(3, normalize="layer"), "normalize to be None, 'batch' or 'actnor"),
    "bijection": (lambda: mf.MAF(3, bijection="x"), "bijection to be a Bijection or one of"),
    "a class of bijection": (lambda: mf.MAF(3, bijection=mf.Affine), "bijection to be a Bijection"),
    "scale of a spline": (lambda: mf.MAF(3, bijection="spline", scale="exp"), "scale to be left o"),
    "linear of one": (
        lambda: mf.MAF(3, transforms=1, bijection="spline", linear=True), "linear to be False of o",
    ),
    "linear of affine maps": (lambda: mf.MAF(3, linear=True), "linear to be False where transform"),
    "linear of a word": (lambda: mf.MAF(3, linear="yes"), "linear to be True or False"),
    "a class of base": (lambda: mf.MAF(3, base=Normal), "base to be None, a torch Distribution"),
    "a network as base": (lambda: mf.MAF(3, base=mf.MADE(3)), "base to be None, a torch Distrib"),
    "positive base": (
        lambda: mf.MAF(3, base=independent(Exponential(torch.ones(3)))), "base to have all reals",
    ),
    "binary base": (
        lambda: mf.IAF(3, base=independent(Bernoulli(torch.full((3,), 0.5)))), "base to have all r",
    ),
    "uniform base": (
        lambda: mf.MAF(3, base=independent(Uniform(torch.zeros(3), 1.0))), "base to have all reals",
    ),
    "binary model as base": (lambda: mf.MAF(3, base=mf.BernoulliMADE(3)), "base to have all reals"),
    "bounded flow as base": (
        lambda: mf.MAF(3, base=mf.Flow([mf.Logit([0.0] * 3, [1.0] * 3)])), "base to have all reals",
    ),
    "base of other features": (lambda: mf.MAF(3, base=mf.GaussianMADE(2)), "base to have 3 featur"),
    "a layer as flow": (lambda: mf.Flow(LAYER), "transforms to be a sequence of transforms; got L"),
    "a transform as flow": (lambda: mf.Flow(mf.ActNorm(3)), "transforms to be a sequence"),
    "a flow of None": (lambda: mf.Flow(None), "transforms to be a sequence"),
    "a flow of text": (lambda: mf.Flow("abc"), "transforms to be a sequence"),
    "a flow of a layer": (lambda: mf.Flow([LAYER]), r"transforms\[0\] to be a Transform; got Line"),
    "a flow of nothing": (lambda: mf.Flow([]), "base to be given to a flow without transforms"),
    "transforms of other features": (
        lambda: mf.Flow([mf.ActNorm(3), mf.ActNorm(2)]), r"transforms\[1\] to have 3 features",
    ),
    # mixtures
    "supports": (
        lambda: mf.Mixture([mf.GaussianMADE(3), mf.BernoulliMADE(3)]),
        r"components\[1\] to have the first one's support, Real\(\); got Boolean\(\)",
    ),
    "numbers of categories": (
        lambda: mf.Mixture([mf.CategoricalMADE(3, categories=k) for k in (3, 4)]),
        r"components\[1\] to have the first one's support",
    ),
    "a network": (lambda: mf.Mixture([mf.MADE(3)]), r"components\[0\] to be a model with features"),
    "buffers left on meta": (
        lambda: assigned(of_all_orders())().log_prob(ROWS), "buffers beside its weights; .* anew",
    ),
    "models on two devices": (
        lambda: mf.Mixture([mf.MAF(3), mf.MAF(3).to("meta")])().sample(),
        "components to be on one device, .* got some on cpu, meta",
    ),
    "one model": (lambda: mf.Mixture(mf.MAF(3)), "components to be a sequence of models; got MAF"),
    "models by name": (lambda: mf.Mixture({"a": mf.MAF(3)}), "components to be a sequence"),
    "weights as text": (lambda: mf.Mixture([mf.MAF(3)], weights="a"), "weights to hold numbers"),
    "weights NaN": (lambda: mf.Mixture([mf.MAF(3)], weights=[NAN]), "weights to be >= 0, finite"),
    "a matrix of weights": (lambda: mf.Mixture([mf.MAF(3)], weights=[[1]]), r"weights of shape \("),
    "one order": (lambda: mf.OrderMixture(mf.GaussianMADE(3)), "model to be made with orders or m"),
    "orders of a flow": (lambda: mf.OrderMixture(mf.MAF(3)), "model to be a DensityModel; got MAF"),
    "a seed": (lambda: mf.OrderMixture(of_all_orders(), generator=3), "generator to be a torch.Ge"),
    "nothing to draw": (
        lambda: mf.OrderMixture(of_all_orders(), [[0, 1, 2]], generator=drawn()),
        "generator to be left out",
    ),
    "orders as text": (lambda: mf.OrderMixture(of_all_orders(), "all"), "orders to be a number"),
    "no order": (lambda: mf.OrderMixture(of_all_orders(), 0), "orders to be a positive integer"),
    "iterations": (lambda: mixture().fit_weights(ROWS, iterations=-1), "iterations to be a non-ne"),
    "tolerance": (lambda: mixture().fit_weights(ROWS, tolerance=-1.0), "tolerance to be >= 0"),
    "gain of nothing": (lambda: mixture().gain(ROWS[:0]), r"x of shape \(N, 3\), N > 0"),
    "gain of a row": (lambda: mixture().gain(ROWS[0]), r"x of shape \(N, 3\), N > 0; got \(3,\)"),
    "rows as a list": (lambda: mixture().fit_weights([[1.0]]), "x to be a torch.Tensor; got list"),
    # missing values
    "a model of one order": (
        lambda: mf.GaussianMADE(3).conditional(HOLES), "observed features to come before the missi",
    ),
    "a flow that is to fill in": (
        lambda: mixture().conditional(HOLES), "components to be density models.*; got MAF",
    ),
    "no samples": (lambda: of_all_orders().impute(HOLES, 0), "samples to be a positive integer"),
    "half a sample": (lambda: of_all_orders().impute(HOLES, 0.5), "samples to be a positive integ"),
    "sparse rows": (lambda: of_all_orders().impute(ROWS.to_sparse()), "x to be dense"),
    "complex rows": (lambda: of_all_orders().impute(ROWS + 0j), "x to be real"),
    "infinite": (lambda: of_all_orders().impute(HOLES / 0), "value to be finite; got inf"),
    "a mask of floats": (
        lambda: of_all_orders().conditional(HOLES, torch.ones(1, 3)), "observed to be of dtype",
    ),
    "a small mask": (
        lambda: of_all_orders()().log_prob(ROWS, torch.ones(4, 2).bool()), "observed of shape",
    ),
}  # fmt: skip

# ---------------------------------------------------------------------- transforms

TRANSFORMS: dict[str, Callable[[], mf.Transform]] = {
    "Standardize": lambda: mf.Standardize([0.0] * 3, [1.0] * 3),
    "Logit": lambda: mf.Logit([0.0] * 3, [1.0] * 3),
    "Log": lambda: mf.Log(3),
    "Dequantize": lambda: mf.Dequantize(3),
    "Permutation": lambda: mf.Permutation(3),
    "InvertibleLinear": lambda: mf.InvertibleLinear(3),
    "BatchNorm": lambda: mf.BatchNorm(3).eval(),
    "ActNorm": lambda: mf.ActNorm(3),
    "MAF's": lambda: mf.AutoregressiveTransform(mf.MADE(3), mf.Affine()),
    "IAF's": lambda: mf.AutoregressiveTransform(mf.MADE(3), mf.Affine(), "noise"),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_of_transforms(name: str, value: str) -> None:
    given, message = VALUES[value]
    for direction in ("to_noise", "to_data"):
        call = getattr(TRANSFORMS[name](), direction)
        refused(partial(call, given), message.replace("value", "(x|z|values)"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_superfluous_contexts_of_transforms(name: str) -> None:
    for direction in ("to_noise", "to_data"):
        call = getattr(TRANSFORMS[name](), direction)
        refused(
            partial(call, ROWS, torch.zeros(4, 2)), "Expected no context, since the .*context=0"
        )


DATA: dict[str, tuple[Any, str]] = {
    "text": ([["a"]], "x to hold numbers"),
    "None": (None, "x to hold numbers"),
    "a row": ([1.0, 2.0], r"x of shape \(N, D\); got \(2,\)"),
    "no rows": (torch.zeros(0, 3), r"x of shape \(N, D\); got \(0, 3\)"),
    "no columns": (torch.zeros(3, 0), r"x of shape \(N, D\); got \(3, 0\)"),
    "NaN": ([[NAN], [1.0]], "x to be finite; got nan in row 0, column 0"),
    "ragged": ([[1.0], [1.0, 2.0]], "x to hold numbers, in rows of one length"),
    "sparse": (ROWS.to_sparse(), "x to be dense"),
    "complex": (ROWS + 0j, "x to be real"),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", [mf.Standardize, mf.Logit, mf.Log, mf.Dequantize])
def test_data_that_transforms_are_fitted_to(kind: Any, data: str) -> None:
    given, message = DATA[data]
    refused(lambda: kind.fit(given), message)


COLUMNS: dict[str, tuple[Any, str]] = {
    "text": ("ab", "columns to be a sequence of integers"),
    "a number": (1, "columns to be a sequence of integers"),
    "negative": ([-1], r"columns\[0\] to be a non-negative integer"),
    "too large": ([0, 3], r"columns\[1\] to be below 3; got 3"),
    "a fraction": ([1.5], r"columns\[0\] to be a non-negative integer"),
    "booleans": ([True, False, True], r"columns\[0\] to be a non-negative integer"),
    "twice": ([1, 1], r"columns\[1\] to be named once; got 1"),
}


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("kind", [mf.Log, mf.Dequantize])
def test_columns(kind: Any, columns: str) -> None:
    given, message = COLUMNS[columns]
    refused(lambda: kind(3, given), message)


SIZES: dict[str, Any] = {"none": 0, "text": "3", "a fraction": 2.5, "None": None, "True": True}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "kind", [mf.Log, mf.Dequantize, mf.Permutation, mf.InvertibleLinear, mf.BatchNorm, mf.ActNorm]
)
def test_numbers_of_features(kind: Any, size: str) -> None:
    refused(lambda: kind(SIZES[size]), "features to be a positive integer")


def no_numbers(rows: Tensor) -> Tensor:
    return rows * NAN


MORE_CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "means as text": (lambda: mf.Standardize("ab", "cd"), "mean to hold numbers"),
    "means None": (lambda: mf.Standardize(None, None), "mean to hold numbers"),
    "complex means": (lambda: mf.Standardize([1j], [1.0]), "mean to be real"),
    "a scalar": (lambda: mf.Standardize(0.0, 1.0), r"mean of shape \(D,\); got \(\)"),
    "no spread": (lambda: mf.Standardize([0.0], [0.0]), "std to be positive; got 0 in column 0"),
    "other lengths": (lambda: mf.Standardize([0.0, 1.0], [1.0]), "std to have mean's shape; got 1"),
    "margin": (lambda: mf.Logit([0.0], [1.0], 0.5), r"margin to be in \[0, 0.5\); got 0.5"),
    "margin as text": (lambda: mf.Logit([0.0], [1.0], "a"), "margin to be a number"),
    "widen": (lambda: mf.Logit.fit(ROWS, widen="a"), "widen to be a number"),
    "outside": (
        lambda: TRANSFORMS["Logit"]().to_noise(torch.tensor([0.5, 2.0, 0.5])),
        "value to be between the bounds of its column; got 2 in column 1",
    ),
    "no place": (
        lambda: TRANSFORMS["Logit"]().to_noise(torch.tensor([0.5, NAN, 0.5])),
        "value to be between the bounds of its column; got nan in column 1",
    ),
    "no permutation": (lambda: mf.Permutation(3, [0, 0, 1]), "order to be a permutation of 0..2"),
    "seed of a permutation": (lambda: mf.Permutation(3, "random", 3), "generator to be a torch.Ge"),
    "nothing random": (
        lambda: mf.Permutation(3, "reversed", drawn()), "generator to be left out, as nothing is",
    ),
    "seed of a rotation": (lambda: mf.InvertibleLinear(3, 3), "generator to be a torch.Generator"),
    "momentum": (lambda: mf.BatchNorm(3, 2.0), "momentum to be at most 1; got 2"),
    "epsilon": (lambda: mf.BatchNorm(3, 0.1, 0), "epsilon to be above 0; got 0"),
    "one row": (lambda: mf.BatchNorm(3).to_noise(ROWS[:1]), "a batch to have at least two rows"),
    "first row": (lambda: mf.ActNorm(3).to_noise(ROWS[:1]), "first batch to have at least two row"),
    "first batch": (lambda: mf.ActNorm(3).to_noise(no_numbers(ROWS)), "first batch to be finite;"),
    "a layer": (lambda: mf.AutoregressiveTransform(LAYER, mf.Affine()), "conditioner to be a MADE"),
    "a model": (
        lambda: mf.AutoregressiveTransform(mf.GaussianMADE(3), mf.Affine()),
        "conditioner to be a MADE; got GaussianMADE",
    ),
    "a name": (lambda: mf.AutoregressiveTransform(mf.MADE(3), "affine"), "bijection to be a Bijec"),
    "reads": (
        lambda: mf.AutoregressiveTransform(mf.MADE(3), mf.Affine(), "x"), "reads to be 'data' or",
    ),
    "parameters": (
        lambda: mf.AutoregressiveTransform(mf.MADE(3, parameters=3), mf.Affine()),
        "conditioner to have parameters=2, as Affine needs; got 3",
    ),
    # diagnostics
    "check a number": (lambda: mf.check_autoregressive(3), "conditioner to be a MADE or a functio"),
    "check without features": (lambda: mf.check_autoregressive(LAYER), "features, the number of t"),
    "check a model": (
        lambda: mf.check_autoregressive(of_all_orders()), "such as model.made; got GaussianMADE",
    ),
    "check a flow": (
        lambda: mf.check_autoregressive(mf.MAF(3)), "such as model.transforms.0.conditioner, mo",
    ),
    "batches by name": (
        lambda: mf.fit(mf.MAF(3), DataLoader([{"x": row} for row in ROWS], 2)),  # type: ignore[arg-type]
        "batch 1 of data to hold numbers; got dict {'x'",
    ),
    "check features as text": (lambda: mf.check_autoregressive(LAYER, "3"), "features to be a pos"),
    "check other features": (
        lambda: mf.check_autoregressive(mf.MADE(3), 4), "features to be 3, as the MADE has them; g",
    ),
    "check another order": (
        lambda: mf.check_autoregressive(mf.MADE(3), order="reversed"), "order to be left out for a",
    ),
    "check no points": (lambda: mf.check_autoregressive(mf.MADE(3), points=0), "points to be a po"),
    "check a seed": (lambda: mf.check_autoregressive(mf.MADE(3), generator=3), "generator to be a"),
    "check a context": (
        lambda: mf.check_autoregressive(mf.MADE(3), context=torch.zeros(2)), "Expected no context",
    ),
    "check a list": (
        lambda: mf.check_autoregressive(mf.MADE(3, 2), context=[1.0, 2.0]), "context to be a torch",
    ),
    "check no output": (
        lambda: mf.check_autoregressive(lambda x: None, 3), "outputs to be a tensor; got NoneType",
    ),
    "check few outputs": (
        lambda: mf.check_autoregressive(lambda x: x[:2], 3), r"outputs of shape \(..., 3, K\); got",
    ),
    "weights as a list": (lambda: pareto_smooth([1.0, 2.0]), "log_weights to be a tensor"),
    "complex weights": (lambda: pareto_smooth(torch.zeros(9) + 0j), "log_weights to be real"),
    "efficiency": (lambda: pareto_smooth(torch.zeros(9), "a"), "relative_efficiency to be a numbe"),
    "efficiency NaN": (lambda: pareto_smooth(torch.zeros(9), NAN), "relative_efficiency to be fin"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"), [*CALLS.values(), *MORE_CALLS.values()], ids=[*CALLS, *MORE_CALLS]
)
def test_calls(call: Callable[[], Any], message: str) -> None:
    refused(call, message)


# ---------------------------------------------------------------------- plots


def plots() -> dict[str, tuple[Callable[[], Any], str]]:
    from made_flows import plotting

    history, images = mf.History([1.0, 2.0], [], 1), torch.rand(4, 12)
    pairs, grid = plotting.pair_plot, plotting.image_grid
    return {
        "no history": (lambda: plotting.training_curve(None), "history to be what fit returned"),
        "a curve": (lambda: plotting.training_curve([1.0]), "history to be what fit returned"),
        "axes": (lambda: plotting.training_curve(history, 3), "ax to be axes of matplotlib"),
        "no masks": (lambda: plotting.masks(LAYER), "model to be a MADE, or to have one; got Line"),
        "a class": (lambda: plotting.masks(mf.MADE), "model to be a MADE, or to have one; got"),
        "text": (lambda: pairs("a"), "samples to hold numbers"),
        "no samples": (lambda: pairs(None), "samples to hold numbers"),
        "ragged": (lambda: pairs([[1.0], [1.0, 2.0]]), "samples to hold numbers"),
        "sparse": (lambda: pairs(ROWS.to_sparse()), "samples to be dense"),
        "complex": (lambda: pairs(ROWS + 0j), "samples to be real"),
        "a row": (lambda: pairs(ROWS[0]), r"samples of shape \(N, D\); got \(3,\)"),
        "NaN": (lambda: pairs(no_numbers(ROWS)), "samples to be finite; got nan in row 0"),
        "other columns": (lambda: pairs(ROWS, ROWS[:, :2]), "other to have 3 columns; got 2"),
        "names that are numbers": (lambda: pairs(ROWS, names=[1, 2, 3]), "names to be a sequence"),
        "names as text": (lambda: pairs(ROWS, names="abc"), "names to be a sequence of strings"),
        "one name": (lambda: pairs(ROWS, names=["a"]), "names to have 3 entries; got 1"),
        "labels": (lambda: pairs(ROWS, ROWS, labels=("a",)), "labels to have 2 entries; got 1"),
        "a label": (lambda: pairs(ROWS, ROWS, labels=3), "labels to be a sequence of strings"),
        "max_features": (lambda: pairs(ROWS, max_features=0), "max_features to be a positive inte"),
        "pixels": (lambda: grid(images, (3, 5)), "shape of 12 pixels"),
        "one size": (lambda: grid(images, 12), r"shape to be \(height, width\)"),
        "sizes as text": (lambda: grid(images, "ab"), r"shape to be \(height, width\)"),
        "fractions": (lambda: grid(images, (3.0, 4.0)), "shape to be a positive integer"),
        "two colours": (lambda: grid(images, (3, 2, 2)), r"shape to be \(height, width\)"),
        "columns": (lambda: grid(images, (3, 4), 0), "columns to be a positive integer; got 0"),
        "titles": (lambda: grid(images, (3, 4), titles=[1]), "titles to be a sequence of strings"),
        "a title": (lambda: grid(images, (3, 4), titles="a"), "titles to be a sequence of strings"),
        "many titles": (lambda: grid(images, (3, 4), titles=["a"] * 9), "titles to have 1 entries"),
        "infinite": (lambda: grid(images / 0, (3, 4)), "images to be finite; got inf"),
    }  # fmt: skip


PLOTS = plots() if find_spec("matplotlib") else {}


@pytest.mark.parametrize("name", PLOTS)
def test_plots(name: str) -> None:
    refused(*PLOTS[name])


# ---------------------------------------------------------------------- keywords, long objects

DEEP = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))

KEYWORDS: dict[str, tuple[Callable[[], Any], str]] = {
    "class": (lambda: mf.IAF(3, hiden_features=(8,)), "IAF takes.*Did you mean hidden_features"),
    "head": (lambda: mf.heads.GaussianMixture(componets=3), "Did you mean components"),
    "fit": (lambda: mf.fit(mf.MAF(3), ROWS, max_epoch=1), "fit takes.*Did you mean max_epochs"),
    "estimate": (lambda: mf.estimate(ROWS, budgt="fast"), "Did you mean budget"),
    "fit_table": (
        lambda: mf.fit_table(ROWS, zeed=0),
        "_table takes; got zeed. Did you mean seed",
    ),
    "nothing near": (lambda: mf.load("x", qqq=3), "load takes; got qqq. It takes path"),
    "another library's word": (lambda: mf.fit(mf.MAF(3), ROWS, lr=1), "mean learning_rate"),
    "unless it is ours": (lambda: mf.MAF(3, direction="noise"), "Did you mean direct"),
}


class Bare(mf.Bijection):
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    inverse = forward


class Values(Bare):  # without a derivative
    outputs = 1

    def forward(self, x: Tensor, parameters: Tensor) -> Any:
        return x + parameters[..., 0]

    inverse = forward


class Rows(Values):  # a derivative for each row, as other libraries' transforms have it
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters[..., 0], torch.zeros(x.shape[:-1])

    inverse = forward


class RowsHead(mf.heads.Gaussian):
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return super().log_prob(x, parameters).sum(-1)


class BareModel(mf.Model):
    pass


UNSAID: dict[str, tuple[Callable[[], Any], str]] = {
    "outputs": (
        lambda: mf.MAF(3, bijection=Bare()),
        "Expected Bare to say its outputs, as every B",
    ),
    "checked": (lambda: mf.check_bijection(Bare()), "Add it to the class: outputs = 2"),
    "no derivative": (lambda: mf.MAF(3, bijection=Values())().sample((2,)), "forward of Values to"),
    "of rows": (
        lambda: mf.MAF(3, bijection=Rows())().log_prob(ROWS),
        r"inverse of Rows .*and \(4,\)$",
    ),
    "of rows, sampled": (lambda: mf.IAF(3, bijection=Rows())().sample((4,)), "forward of Rows"),
    "a head's rows": (
        lambda: mf.DensityModel(mf.MADE(3, parameters=2), RowsHead())().log_prob(ROWS),
        "log_prob of RowsHead to return a number for each",
    ),
    "features": (lambda: mf.Mixture([BareModel()]), "Expected BareModel to say its features"),
    "distribution": (BareModel(), "Expected BareModel to define distribution"),
    "direction": (
        lambda: mf.ActNorm(3)(ROWS),
        r"Expected to_noise\(x\) or to_data\(z\) of the Act",
    ),
    "a model's score": (lambda: mf.MAF(3).log_prob(ROWS), r"Expected log_prob of a distribution"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_a_class_of_ones_own_or_a_call_leaves_out_is_named(name: str) -> None:
    kinds = (TypeError, ValueError, AttributeError, NotImplementedError)
    with pytest.raises(kinds, match=UNSAID[name][1]):
        UNSAID[name][0]()
    assert not hasattr(mf.MAF(3), "sample")


LONG: dict[str, tuple[Callable[[], Any], str]] = {
    "bijection": (lambda: mf.MAF(3, bijection=DEEP), "got Sequential"),
    "order": (lambda: mf.MADE(3, order=list(range(1000))), "got .*\\.\\.\\."),
    "order, module": (lambda: mf.MAF(3, order=DEEP), "order"),
    "normalize": (lambda: mf.MAF(3, normalize=DEEP), "got Sequential"),
    "activation": (lambda: mf.MADE(3, activation=DEEP), "activation"),
    "scale": (lambda: mf.MAF(3, scale=DEEP), "got Sequential"),
    "base": (lambda: mf.MAF(3, base=DEEP), "got Sequential"),
    "schedule": (lambda: mf.fit(mf.MAF(3), ROWS, schedule=DEEP), "got Sequential"),
    "budget": (lambda: mf.estimate(ROWS, budget=DEEP), "got Sequential"),
    "reads": (
        lambda: mf.AutoregressiveTransform(mf.MADE(3), mf.Affine(), np.ones(3)),
        "got ndarray|arr",
    ),
    "degrees": (lambda: mf.MADE(3, degrees=DEEP), "got Sequential"),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_wrong_keyword_names_the_function_and_the_right_word(name: str) -> None:
    refused(*KEYWORDS[name])


@pytest.mark.parametrize("name", LONG)
def test_no_error_prints_a_whole_object(name: str) -> None:
    refused(*LONG[name])


def exchanged(model: Any, name: str, parameters: int) -> Any:
    """A model with another network, put there by hand; it was used before."""
    model.to_noise(ROWS) if isinstance(model, mf.Transform) else model().log_prob(ROWS)
    setattr(model, name, mf.MADE(3, parameters=parameters))
    return model


EXCHANGED: dict[str, Callable[[int], Any]] = {
    "scores": lambda k: exchanged(mf.GaussianMADE(3), "made", k)().log_prob(ROWS),
    "samples": lambda k: exchanged(mf.GaussianMADE(3), "made", k)().sample((4,)),
    **{
        f"{way}, which reads {reads}": lambda k, way=way, reads=reads: getattr(
            exchanged(
                mf.AutoregressiveTransform(mf.MADE(3, parameters=2), mf.Affine(), reads=reads),
                "conditioner",
                k,
            ),
            way,
        )(ROWS)
        for way in ("to_noise", "to_data")
        for reads in ("data", "noise")
    },
}


@pytest.mark.parametrize("name", EXCHANGED)
@pytest.mark.parametrize("parameters", [1, 3])
@pytest.mark.parametrize("gradients", [False, True])
def test_networks_of_other_parameters_put_in_by_hand(
    name: str, parameters: int, gradients: bool
) -> None:
    with torch.set_grad_enabled(gradients):
        refused(lambda: EXCHANGED[name](parameters), "parameters")


BATCHES = [(), (1,), (3,), (0,), (1, 1), (1, 3), (2, 1), (2, 3), (1, 0)]


@pytest.mark.parametrize(("one", "other"), [*product(BATCHES, BATCHES)])
def test_shapes_broadcast_as_torch_has_it(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    try:
        expected = torch.broadcast_shapes(one, other)
    except RuntimeError:
        with pytest.raises(ValueError, match="Expected shapes that broadcast together"):
            check_broadcast(one=one, other=other)
    else:
        assert check_broadcast(one=one, other=other) == expected


# ---------------------------------------------------------------------- devices that are not there

TABLE = {"a": np.arange(20.0), "b": np.arange(20.0) ** 2}

ON_A_DEVICE: dict[str, Callable[[Any], Any]] = {
    # Whatever else is wrong comes later: no file is opened, no row read.
    "load": lambda device: mf.load("no file", device),
    "fit": lambda device: mf.fit(mf.GaussianMADE(3), "no rows", device=device),
    "fit_table": lambda device: mf.fit_table("no table", device=device),
    "TableMADE.fit": lambda device: mf.TableMADE.from_data(TABLE).fit("no table", device=device),
    "Score": lambda device: Score("no file", ["a"], device=device),
    "Sample": lambda device: Sample("no file", ["a"], device=device),
}

NOT_THERE: dict[str, tuple[Any, str]] = {
    "a GPU": ("cuda:99", "to be one of this machine, 'cpu'.*; got 'cuda:99' (.*)"),
    "a device": (torch.device("cuda:99"), "got device.type='cuda', index=99."),
    "an accelerator": ("hpu", "got 'hpu' (.*)"),
    "no name": ("gpu", "got 'gpu'$"),
    "no device": (1.5, "got 1.5"),
}


@pytest.mark.parametrize("call", ON_A_DEVICE)
@pytest.mark.parametrize("name", NOT_THERE)
def test_devices(call: str, name: str) -> None:
    device, message = NOT_THERE[name]
    refused(lambda: ON_A_DEVICE[call](device), f"device .*{message}")
    if call != "load":  # a model may be looked at without its numbers
        refused(lambda: ON_A_DEVICE[call]("meta"), "device to hold numbers; got 'meta'")
