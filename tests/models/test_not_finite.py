"""Numbers that are not finite: NaN weights give NaN, NaN contexts an error, overflow alone -inf."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import made_flows as mf
from made_flows.inverse import sequential_inverse
from made_flows.inverse.dispatch import backend
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.inverse_checks import STEPS, made_for, noise_of

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


@pytest.mark.parametrize("name", MODELS)
def test_what_overflows_has_no_density(name: str) -> None:
    model = MODELS[name](0).eval()
    with torch.no_grad():
        for weight in weights_of(model):
            weight.normal_()
    for size in (1e25, 3e38):
        assert model().log_prob(torch.full((3,), size)) == -math.inf
    far = torch.tensor([[0.0] * 3, [1e300] * 3, [1e300, -1e300, 0.0]], dtype=torch.float64)
    for units in model.standardizable():  # double precision is taken to the units, of float32
        units.set(torch.zeros(3), torch.ones(3))
    if model.standardizable_throughout():
        near, *others = model().log_prob(far).tolist()
        assert math.isfinite(near)
        assert others == [-math.inf] * 2


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


# ---------------------------------------------------------------------- draws

DRAWN: dict[str, Callable[[], Any]] = {
    "Bernoulli": lambda: mf.BernoulliMADE(4, orders="all"),
    "mixture": lambda: mf.GaussianMixtureMADE(4, components=3, orders="all"),
    "Gaussian": lambda: mf.GaussianMADE(4, orders="all"),
    "categories": lambda: mf.CategoricalMADE(4, categories=3, orders="all"),
}


def _slow(model: Any) -> None:
    model.made.register_forward_hook(lambda *_: None)


def _imputed(model: Any) -> Tensor:
    missing = torch.zeros(3, 4)
    missing[:, 1:] = math.nan
    drawn: Tensor = model.impute(missing)[0]
    return drawn


def _imputed_row_by_row(model: Any) -> Tensor:
    rows = (torch.arange(16)[:, None] >> torch.arange(4)) % 2 == 1  # many patterns
    rows[:, 1], rows[:, 0] = False, True
    with torch.no_grad():
        drawn: Tensor = model.impute(torch.zeros(16, 4), observed=rows)[0]
    return drawn


WAYS: dict[str, tuple[str, Callable[[Any], None], Callable[[Any], Tensor]]] = {
    "compiled": ("auto", lambda model: None, lambda model: model().sample((5,))),
    "eager": ("eager", lambda model: None, lambda model: model().sample((5,))),
    "passes": ("auto", _slow, lambda model: model().sample((5,))),
    "imputed": ("auto", lambda model: None, _imputed),
    "imputed, eager": ("eager", lambda model: None, _imputed),
    "imputed, row by row": ("auto", lambda model: None, _imputed_row_by_row),
    "imputed, row by row, by passes": ("auto", _slow, _imputed_row_by_row),
}


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_drawn_by_parameters_that_are_no_numbers(name: str, way: str) -> None:
    """As torch's distributions, which raise by default; without checks they draw nothing finite."""
    choice, change, draw = WAYS[way]
    model = DRAWN[name]().eval()
    change(model)
    last = model.made.layers[-1]
    rows = (model.made.output_features == 1).nonzero().squeeze(1)
    with backend(choice):
        draw(model)  # as long as they are numbers
        for row in rows[:3]:  # of a mixture, its logits
            kept = last.bias.detach().clone()
            last.bias.data[row] = math.nan
            if name == "categories":
                with pytest.raises(ValueError, match="logits that can be drawn from"):
                    draw(model)
            else:
                assert bool(draw(model)[:, 1].isnan().all())
            last.bias.data.copy_(kept)


@pytest.mark.parametrize("weight", [math.inf, -math.inf])
@pytest.mark.parametrize("name", DRAWN)
def test_infinite_logits_are_limits_where_there_is_one(name: str, weight: float) -> None:
    """One of -inf is a category that is never drawn; one of +inf has no softmax, as in torch."""
    model = DRAWN[name]().eval()
    last = model.made.layers[-1]
    row = int((model.made.output_features == 1).nonzero()[0])  # the first logit, or the mean
    last.bias.data[row] = weight
    for choice in ("auto", "eager"):
        with backend(choice):
            if name == "categories" and weight > 0:
                with pytest.raises(ValueError, match="logits that can be drawn from"):
                    model().sample((20,))
                continue
            drawn = model().sample((20,))[:, 1]
            if name == "Bernoulli":
                assert bool((drawn == (weight > 0)).all())
            elif name == "categories":
                assert bool((drawn > 0).all())
            elif name == "Gaussian":
                assert bool((drawn == weight).all())
            else:
                assert bool(drawn.isnan().all() if weight > 0 else drawn.isfinite().all())


@pytest.mark.parametrize("name", STEPS)
def test_a_parameter_that_is_no_number_shows_in_either_sweep(name: str) -> None:
    step = STEPS[name](3)
    made = made_for(step, features=3, hidden_features=(6, 6))
    noise, last = noise_of(step, 7, 3), made.layers[-1]
    for row in (made.output_features == 1).nonzero().squeeze(1):
        kept = last.bias.detach().clone()
        last.bias.data[row] = math.nan
        with torch.no_grad():
            right = d_pass_inverse(made, step, noise)
            for choice in ("auto", "eager"):
                with backend(choice):
                    got = sequential_inverse(made, step, noise)
                torch.testing.assert_close(got, right, equal_nan=True)
        last.bias.data.copy_(kept)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("choice", ["auto", "eager"])
def test_nothing_finite_is_drawn_by_weights_that_are_not(
    choice: str, activation: str, residual: bool
) -> None:
    """An infinite weight may score: by the limit of tanh, say."""
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(
        step, features=3, hidden_features=(4, 4), activation=activation, residual=residual,
        direct=True,
    )  # fmt: skip
    noise = noise_of(step, 3, 3)
    for layer in (*made.layers, made.direct):
        for bad in (math.inf, -math.inf, math.nan):
            for place in torch.ones_like(layer.mask).nonzero().tolist():
                kept = layer.weight[tuple(place)].item()
                layer.weight.data[tuple(place)] = bad
                with torch.no_grad(), backend(choice):
                    x = sequential_inverse(made, step, noise)
                layer.weight.data[tuple(place)] = kept
                assert bool(x.isnan().all())
