"""Arguments that are none: rules, bijections and heads say what they expected, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import made_flows as mf
from made_flows.univariate import heads
from made_flows.univariate.bijections import Affine, Bijection, GatedAffine
from made_flows.univariate.splines import RationalQuadraticSpline

X = torch.zeros(3)
MAPS: dict[str, Bijection] = {
    "affine": Affine(),
    "gated": GatedAffine(),
    "spline": RationalQuadraticSpline(4),
}


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", MAPS)
def test_maps_name_what_they_are_given(name: str, direction: str) -> None:
    bijection = MAPS[name]
    apply, size = getattr(bijection, direction), bijection.outputs
    argument = "x" if direction == "forward" else "y"
    parameters = torch.zeros(3, size)
    for bad, error, message in (
        (([0.0], parameters), TypeError, f"Expected {argument} to be a torch.Tensor; got list"),
        ((X, None), TypeError, "Expected parameters to be a torch.Tensor; got NoneType"),
        ((X, torch.zeros(3, size + 1)), ValueError, rf"Expected parameters of shape \(..., {size}"),
        ((X, torch.zeros(4, size)), ValueError, "Expected shapes that broadcast together"),
    ):
        with pytest.raises(error, match=message):
            apply(*bad)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a bound that is not used": (lambda: mf.ScaleRule("exp", bound=3.0), ValueError,
                                 "Expected bound to be left out, as 'exp' has none; got one"),
    "a floor that is not used": (lambda: mf.ScaleRule("bounded", floor=0.1), ValueError,
                                 "Expected floor to be left out, as 'bounded' has none"),
    "limits that are not used": (lambda: mf.ScaleRule("softplus", low=-1.0), ValueError,
                                 "Expected low to be left out"),
    "a word as bound": (lambda: mf.ScaleRule(bound="7"), TypeError,  # type: ignore[arg-type]
                        "Expected bound to be a number"),
    "a scale of nothing": (lambda: mf.ScaleRule()(None), TypeError,
                           "Expected a to be a torch.Tensor; got NoneType"),
    "three parameters of a normal": (lambda: heads.Gaussian().log_prob(X, torch.zeros(3, 3)),
                                     ValueError, r"Expected parameters of shape \(..., 2\)"),
    "seven of a mixture": (lambda: heads.GaussianMixture(2).log_prob(X, torch.zeros(3, 7)),
                           ValueError, r"Expected parameters of shape \(..., 6\)"),
    "two of a binary value": (lambda: heads.Bernoulli().log_prob(X, torch.zeros(3, 2)),
                              ValueError, r"Expected parameters of shape \(..., 1\)"),
    "a list of values": (lambda: heads.Bernoulli().log_prob([1.0], X),  # type: ignore[arg-type]
                         TypeError, "Expected x to be a torch.Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
