"""Numbers that are not finite: NaN weights give NaN, NaN contexts an error, overflow alone -inf."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import made_flows as mf

LINE = mf.Standardize([0.0] * 3, [1.0] * 3)

MODELS: dict[str, Callable[[int], mf.Model]] = {
    "GaussianMADE": lambda C: mf.GaussianMADE(3, C),
    "GaussianMixtureMADE": lambda C: mf.GaussianMixtureMADE(3, C),
    "MAF": lambda C: mf.MAF(3, C, 2),
    "IAF": lambda C: mf.IAF(3, C, 2),
    "MAF, spline": lambda C: mf.MAF(3, C, 2, bijection="spline"),
    "IAF, gated": lambda C: mf.IAF(3, C, 2, bijection="gated"),
    "MAF-MoG": lambda C: mf.MAF(3, C, 2, base=mf.GaussianMixtureMADE(3, C)),
    "a base of all orders": lambda C: mf.MAF(3, C, 2, base=mf.GaussianMADE(3, C, orders="all")),
    "a flow as a base": lambda C: mf.Flow([LINE], base=mf.MAF(3, C, 2)),
    "mixture": lambda C: mf.Mixture([mf.MAF(3, C, 2), mf.GaussianMADE(3, C)]),
    "mixture of orders": lambda C: mf.OrderMixture(mf.GaussianMADE(3, C, orders="all"), 2),
}
FLOWS = [name for name in MODELS if "AF" in name or "flow" in name or "base" in name]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.dim() == 2]


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("name", MODELS)
def test_a_weight_that_is_no_number_is_not_hidden(name: str, which: str) -> None:
    model = MODELS[name](0).eval()
    with torch.no_grad():
        weights_of(model)[0 if which == "first" else -1][0, 0] = math.nan
    scores = model().log_prob(torch.randn(4, 3))
    assert bool(scores.isnan().all()), scores


@pytest.mark.parametrize("name", FLOWS)
def test_noise_that_overflows_has_no_density(name: str) -> None:
    model = MODELS[name](0).eval()
    with torch.no_grad():
        for weight in weights_of(model):
            weight.normal_()
    for size in (1e25, 3e38):
        assert model().log_prob(torch.full((3,), size)) == -math.inf


@pytest.mark.parametrize("name", MODELS)
def test_a_context_that_is_not_finite_is_an_error(name: str) -> None:
    model = MODELS[name](2).eval()
    for bad in (math.nan, math.inf):
        context = torch.zeros(4, 2)
        context[2, 1] = bad
        message = rf"Expected context to be finite; got {bad:g} in row 2, column 1"
        with pytest.raises(ValueError, match=message):
            model(context)


def test_a_value_that_was_not_checked_is_not_hidden() -> None:
    flow = mf.MAF(3)
    distribution = mf.FlowDistribution(flow, flow.base(), validate_args=False)
    scores = distribution.log_prob(torch.tensor([[0.0, math.nan, 0.0], [0.0, 0.0, 0.0]]))
    assert scores.isnan().tolist() == [True, False]


def test_weights_of_a_mixture_are_not_fitted_to_scores_that_are_not_numbers() -> None:
    mixture = MODELS["mixture"](0)
    broken = copy.deepcopy(mixture)
    with torch.no_grad():
        weights_of(broken)[0].fill_(math.nan)
    with pytest.raises(ValueError, match=r"Expected components\[0\] to score every row; got NaN"):
        broken.fit_weights(torch.randn(5, 3))
    assert broken.weights.tolist() == mixture.weights.tolist()


def test_missing_values_are_not_drawn_from_scores_that_are_not_numbers() -> None:
    mixture = mf.Mixture([mf.GaussianMADE(3, orders="all") for _ in range(2)])
    with torch.no_grad():
        weights_of(mixture)[0].fill_(math.nan)
    with pytest.raises(ValueError, match="weights that are not finite"):
        mixture.conditional(torch.tensor([1.0, math.nan, 0.0]))
