"""check_autoregressive: it passes what is autoregressive, and names what is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import made_flows as mf
from made_flows.diagnostics.autoregressive import AutoregressiveError, AutoregressiveReport
from tests.helpers.architectures import Architecture, architectures
from tests.helpers.density_models import NETWORKS, made_of


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("features", [1, 5])
def test_every_network_passes(make: Callable[..., mf.MADE], features: int) -> None:
    made = make(features)
    report = mf.check_autoregressive(made)
    assert isinstance(report, AutoregressiveReport)
    assert report.features == features
    assert report.checked == ("masks", "autograd")
    missing = (made.allowed & ~made.reach()).nonzero().tolist()
    assert report.missing == [tuple(pair) for pair in missing]


@settings(max_examples=40)
@given(architectures(max_features=5))
def test_random_networks_pass(architecture: Architecture) -> None:
    made = architecture.made(parameters=1)
    assert mf.check_autoregressive(made).features == made.features
    for _ in range(2):
        if made.graph is None:
            made.resample_masks()
            mf.check_autoregressive(made)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_weight_too_many_in_the_masks_is_named(layer: int) -> None:
    made = made_of(features=4, hidden_features=(12, 12))
    # Let everything of this layer through: too much for the first and for the last output alike.
    made.layers[layer].mask.fill_(True)
    with pytest.raises(AutoregressiveError) as caught:
        mf.check_autoregressive(made)
    error = caught.value
    assert made.reach()[error.output, error.input]
    assert not made.allowed[error.output, error.input]
    assert f"the parameters of feature {error.output} to depend only" in str(error)
    assert f"a dependence on feature {error.input} (by its masks)" in str(error)


def _of_both_signs(made: mf.MADE) -> None:
    signs = torch.ones(12, 12, dtype=made.dtype)
    signs[:, ::2] = -1
    made.layers[1].mask = signs


def _in_the_second_block(made: mf.MADE) -> None:
    made.layers[1].mask.zero_()  # past the first block nothing leads
    made.layers[3].mask.fill_(True)
    made.layers[4].mask.fill_(True)


@pytest.mark.parametrize("change", [_of_both_signs, _in_the_second_block])
def test_every_way_through_the_masks_is_followed(change: Callable[[mf.MADE], None]) -> None:
    residual = change is _in_the_second_block
    made = made_of(features=4, hidden_features=(12, 12, 12), residual=residual)
    change(made)
    with pytest.raises(AutoregressiveError, match="by its masks"):
        mf.check_autoregressive(made)


def test_one_weight_too_many_is_found_in_any_order() -> None:
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        made = made_of(features=3, hidden_features=(), order=order)
        first, last = order[0], order[2]
        made.layers[0].mask[2 * first + 1, last] = True  # the second parameter of the first one
        with pytest.raises(AutoregressiveError) as caught:
            mf.check_autoregressive(made)
        assert (caught.value.output, caught.value.input) == (first, last)


class Leaking(mf.MADE):
    """Its masks are right; what it computes beside them is not."""

    def forward(self, x: Tensor, context: Tensor | None = None, *rest: Any) -> Tensor:
        output = super().forward(x, context, *rest)
        return output + torch.nn.functional.pad(x[..., 2:3, None], (0, 1, 1, 2))


def test_a_leak_beside_the_masks_is_found_by_autograd() -> None:
    torch.manual_seed(0)
    made = Leaking(4)
    with pytest.raises(AutoregressiveError, match=r"feature 2 \(by autograd\)") as caught:
        mf.check_autoregressive(made)
    assert (caught.value.output, caught.value.input) == (1, 2)


# ---------------------------------------------------------------------- any function

LOWER = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 3, 0]])
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "(..., D)": lambda x: x @ LOWER.T,
    "(..., D, 1)": lambda x: (x @ LOWER.T).unsqueeze(-1),
    "(..., D, K)": lambda x: torch.stack([x @ LOWER.T, torch.sin(x @ LOWER.T)], dim=-1),
    "a tuple": lambda x: (x @ LOWER.T, (x @ LOWER.T).exp()),
    "a module": nn.Sequential(nn.Linear(3, 3, bias=False)),
}
with torch.no_grad():
    FUNCTIONS["a module"][0].weight.copy_(LOWER)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_any_form_are_checked(function: Callable[..., Any]) -> None:
    report = mf.check_autoregressive(function, 3)
    assert report.checked == ("autograd",)
    assert report.missing == []
    with pytest.raises(AutoregressiveError, match="by autograd") as caught:
        mf.check_autoregressive(function, 3, order="reversed")
    assert (caught.value.output, caught.value.input) == (1, 0)
    with pytest.raises(AutoregressiveError):
        mf.check_autoregressive(function, 3, order=[0, 2, 1])


def test_a_dependence_on_itself_is_refused() -> None:
    with pytest.raises(AutoregressiveError, match=r"feature 1 .* dependence on feature 1"):
        mf.check_autoregressive(lambda x: x * torch.tensor([0.0, 1.0, 0.0]), 3)


def test_only_the_last_parameter_may_leak() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.stack([x @ LOWER.T, x @ LOWER.T, x.flip(-1)], dim=-1)

    with pytest.raises(AutoregressiveError, match=r"feature 0 .* dependence on feature 2"):
        mf.check_autoregressive(function, 3)


def test_a_function_with_a_context() -> None:
    def function(x: Tensor, context: Tensor) -> Tensor:
        return x @ LOWER.T * context.sum() + context.sum()

    context = torch.ones(2)
    assert mf.check_autoregressive(function, 3, context).missing == []
    zero = mf.check_autoregressive(function, 3, torch.zeros(2))
    assert zero.missing == [(1, 0), (2, 0), (2, 1)]


def test_a_network_with_a_context_is_checked_under_the_one_given() -> None:
    made = made_of(features=3, context=2)
    assert mf.check_autoregressive(made).missing == []
    assert mf.check_autoregressive(made, context=torch.ones(2, dtype=torch.float64)).missing == []
    assert mf.check_autoregressive(made.float()).missing == []


def test_a_single_feature() -> None:
    assert mf.check_autoregressive(lambda x: torch.zeros(1), 1).missing == []
    with pytest.raises(AutoregressiveError):
        mf.check_autoregressive(lambda x: x * 1, 1)


# ---------------------------------------------------------------------- reports


def test_missing_dependencies_are_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.DependencyWarning)
        narrow = mf.MADE(4, hidden_features=(2,))
    report = mf.check_autoregressive(narrow)
    assert report.missing == [(1, 0)]
    assert str(report) == (
        "autoregressive in 4 features (by masks and autograd); "
        "1 allowed dependencies are missing, first: feature 1 on 0"
    )
    full = mf.check_autoregressive(mf.MADE(4))
    assert str(full) == "autoregressive in 4 features (by masks and autograd), fully connected"


def test_points_come_from_the_generator() -> None:
    seen: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x @ LOWER.T

    for _ in range(2):
        mf.check_autoregressive(function, 3, points=2, generator=torch.Generator().manual_seed(4))
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no number of features": (lambda: mf.check_autoregressive(lambda x: x), "features, the number"),
    "no features": (lambda: mf.check_autoregressive(lambda x: x, 0), "features to be a positive"),
    "no points": (lambda: mf.check_autoregressive(mf.MADE(2), points=0), "points to be a positive"),
    "another shape": (
        lambda: mf.check_autoregressive(lambda x: x[..., :2], 3),
        r"outputs of shape \(..., 3, K\); got \(2, 1\)",
    ),
    "another order": (
        lambda: mf.check_autoregressive(lambda x: x @ LOWER.T, 3, order=[0, 1]),
        "order to be a permutation",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_calls(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Expected {message}"):
        call()
