"""Networks that libraries sample in a loop with random numbers: the same samples, by one sweep."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nflows.distributions import MADEMoG
from nflows.flows import Flow
from nflows.nn.nde.made import MixtureOfGaussiansMADE
from nflows.transforms import IdentityTransform
from torch import Tensor

import made_flows as mf
from made_flows.interop.races import RacedCategory, RacedMixture
from made_flows.inverse.d_pass import SlowInverseWarning
from made_flows.inverse.dispatch import backend

D, C, ROWS, SAMPLES = 5, 3, 3, 40

VARIANTS: dict[str, dict[str, Any]] = {
    "residual": {},
    "feedforward, one component": {"use_residual_blocks": False, "num_mixture_components": 1},
    "tanh": {"activation": torch.tanh, "num_blocks": 3},
    "batch norm": {"use_batch_norm": True},
    "narrow, wide components": {"hidden_features": 2, "epsilon": 0.3},
}


def network(name: str = "residual", **more: Any) -> Any:
    torch.manual_seed(0)
    arguments = {"hidden_features": 12, "num_mixture_components": 4, **VARIANTS[name], **more}
    made = MixtureOfGaussiansMADE(D, context_features=C, **arguments).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def sample(made: Any, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Samples, and the random numbers that are left."""
    torch.manual_seed(1)
    return made.sample(SAMPLES, torch.randn(rows, C)), torch.get_rng_state()


def close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_seed_gives_the_same_samples(name: str, engine: Any) -> None:
    made = network(name)
    fast = mf.accelerate(copy.deepcopy(made))
    assert repr(mf.acceleration(fast)).startswith("1 fast, 0 left")
    with backend(engine):
        for rows in (1, ROWS):
            close(sample(fast, rows), sample(made, rows))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weights": lambda made: [p.data.mul_(1.5) for p in made.parameters()],
    "epsilon": lambda made: setattr(made, "epsilon", 2.0),
    "dropout while training": lambda made: setattr(made.train().blocks[0].dropout, "p", 0.5),
    "weights that are not finite": lambda made: made.final_layer.bias.data[-3 * 4 :].fill_(
        torch.inf
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_count(change: str) -> None:
    made = network()
    fast = mf.accelerate(copy.deepcopy(made))
    before = sample(fast)
    results = []
    for each in (made, fast):
        CHANGES[change](each)
        try:
            results.append(sample(each))
        except ValueError as error:  # logits that no distribution has
            results.append(str(error))
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        close(results[1], results[0])
        assert not torch.allclose(before[0], results[1][0])


def test_hooks_are_run_and_double_precision_fails_as_it_did() -> None:
    made = network()
    fast = mf.accelerate(copy.deepcopy(made))
    for each in (made, fast):
        each.final_layer.register_forward_hook(lambda *args: 1.5 * args[2])
    with pytest.warns(SlowInverseWarning, match="5 passes .* has forward hooks"):
        actual = sample(fast)
    close(actual, sample(made))
    with pytest.raises(RuntimeError):
        sample(mf.accelerate(network()).double())


def test_copies_pickles_and_restoring() -> None:
    expected = sample(network())
    fast = mf.accelerate(network())
    for each in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert mf.acceleration(each).fast
        close(sample(each), expected)
    assert type(mf.undo_acceleration(fast)) is MixtureOfGaussiansMADE
    close(sample(fast), expected)


def test_inside_a_flow_of_nflows() -> None:
    results = []
    for change in (lambda flow: flow, mf.accelerate):
        torch.manual_seed(0)
        base = MADEMoG(D, 12, C, num_mixture_components=3, custom_initialization=True)
        flow = change(Flow(IdentityTransform(), base))
        results.append((flow.sample(SAMPLES, torch.ones(2, C)), torch.get_rng_state()))
    assert list(mf.acceleration(flow).fast) == ["_distribution._made"]
    close(results[1], results[0])


HEADS: dict[str, Callable[[], Any]] = {
    "category": lambda: RacedCategory(3),
    "mixture": lambda: RacedMixture(3, "softplus"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_race_is_won_as_often_as_its_probability_says(name: str) -> None:
    # For a right head, the check fails in one of a thousand seeds.
    assert mf.check_head(HEADS[name]()).total < 1e-6
