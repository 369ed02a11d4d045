"""Constructors: what an editor shows of them is all there is, and unknown names are refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import made_flows as mf

CONSTRUCTORS: dict[str, type] = {
    name: value
    for name in mf.__all__
    if isinstance(value := getattr(mf, name), type) and issubclass(value, (mf.Model, mf.Transform))
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_arguments_are_named(name: str) -> None:
    kinds = {p.kind for p in inspect.signature(CONSTRUCTORS[name].__init__).parameters.values()}
    if "__init__" in vars(CONSTRUCTORS[name]):
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert inspect.Parameter.VAR_POSITIONAL not in kinds


@pytest.mark.parametrize(
    "name",
    ["GaussianMADE", "GaussianMixtureMADE", "BernoulliMADE", "CategoricalMADE", "MAF", "IAF"],
)
def test_an_unknown_argument_names_the_nearest_one(name: str) -> None:
    more: dict[str, Any] = {"categories": 3} if name == "CategoricalMADE" else {}
    with pytest.raises(TypeError, match=rf"{name} takes; got activations.*mean activation\?"):
        CONSTRUCTORS[name](4, activations="relu", **more)


@pytest.mark.parametrize("name", ["GaussianMADE", "MAF", "IAF"])
def test_arguments_of_the_network_reach_it(name: str) -> None:
    model = CONSTRUCTORS[name](
        4, hidden_features=(8, 8, 8), activation="tanh", residual=True, direct=True, dropout=0.5,
        mask_weights=True, degrees="random",
    )  # fmt: skip
    networks = [module for module in model.modules() if isinstance(module, mf.MADE)]
    assert networks
    for made in networks:
        assert made.residual
        assert made.direct is not None
        assert made.dropout is not None
        assert made.mask_weights is True
        assert type(made.activation).__name__ == "Tanh"


@pytest.mark.parametrize("kind", [mf.MAF, mf.GaussianMADE, mf.GaussianMixtureMADE])
def test_a_state_dict_that_may_be_of_another_activation_says_so(kind: Any, tmp_path: Path) -> None:
    before = kind(3)
    today = before.state_dict()
    torch.save(today, tmp_path / "state.pt")
    for state in (today, dict(today), torch.load(tmp_path / "state.pt")):
        kind(3).load_state_dict(state)  # without a word
    old = before.state_dict()
    for entry in old._metadata.values():
        entry["version"] = 1
    with pytest.warns(UserWarning, match="default activation became 'tanh'.* activation='relu'"):
        kind(3).load_state_dict(old)
    kind(3, activation="relu").load_state_dict(old)
