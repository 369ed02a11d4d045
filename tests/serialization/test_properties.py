"""Every public model after every way of changing it: the file holds just that, or save refuses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import made_flows as mf
from made_flows._registry import REGISTRY
from made_flows.univariate import heads
from tests.helpers.density_models import scatter

D = 3
SMALL: dict[str, Any] = {"hidden_features": (5,)}
TABLE = {"size": [0.5, 1.5, -0.5, 0.1] * 5, "kind": ["a", "b", "b", "a"] * 5, "n": [*range(20)]}
PARTS: list[Any] = [mf.Permutation(D), mf.InvertibleLinear(D), mf.BatchNorm(D), mf.ActNorm(D)]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "MADE": lambda: mf.MADE(D, 1, (5, 4), residual=True, direct=True, mask_weights=True),
    "GaussianMADE": lambda: mf.GaussianMADE(D, **SMALL, order="random"),
    "GaussianMixtureMADE": lambda: mf.GaussianMixtureMADE(D, components=2, **SMALL),
    "BernoulliMADE": lambda: mf.BernoulliMADE(D, **SMALL, activation=nn.ELU(0.5)),
    "CategoricalMADE": lambda: mf.CategoricalMADE(D, categories=(2, 3, 2), **SMALL),
    "DensityModel": lambda: mf.DensityModel(mf.MADE(D, **SMALL), heads.Gaussian("clamp")),
    "all orders": lambda: mf.GaussianMADE(D, **SMALL, orders="all", masks=2),
    "MAF": lambda: mf.MAF(D, transforms=2, bijection="spline", normalize="actnorm", **SMALL),
    "IAF": lambda: mf.IAF(D, transforms=1, bijection="gated", normalize="batch", **SMALL),
    "graph": lambda: mf.MAF(D, adjacency=torch.ones(D, D).tril(-1), scale="softplus", **SMALL),
    "Flow": lambda: mf.Flow(
        [mf.Logit([-9.0] * D, [9.0] * D), mf.Standardize([1.0] * D, [2.0] * D), *PARTS],
        base=mf.GaussianMADE(D, **SMALL),
    ),
    "Flow of logarithms": lambda: mf.Flow([mf.Dequantize(D), mf.Log(D, [1])]),
    "Mixture": lambda: mf.Mixture([mf.GaussianMADE(D, **SMALL), mf.MAF(D, transforms=1, **SMALL)]),
    "OrderMixture": lambda: mf.OrderMixture(mf.GaussianMADE(D, **SMALL, orders=3), orders=2),
    "Embedded": lambda: mf.Embedded(
        mf.MAF(D, context=2, transforms=1, **SMALL), torch.nn.Linear(3, 2), 3
    ),
    "TableMADE": lambda: mf.TableMADE.from_data(TABLE, **SMALL),
}


def test_every_public_model_is_in_the_table() -> None:
    made = {type(part).__name__ for make in MODELS.values() for part in make().modules()}
    public = {name for name in mf.__all__ if name in REGISTRY}
    assert public <= made


def floats(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and not name.startswith("_"):
                yield module, name


def every_float(model: nn.Module) -> None:
    for module, name in floats(model):
        setattr(module, name, 0.9 * getattr(module, name))


@torch.no_grad()
def in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.9)


def half_frozen(model: nn.Module) -> None:
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)


def modes(model: nn.Module) -> None:
    for module in list(model.modules())[1::2]:
        module.training = not module.training


def tied(model: nn.Module) -> None:
    found: dict[Any, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = found.setdefault(parameter.shape, parameter)


def last_weight(model: nn.Module) -> nn.Module | None:
    layers = [m for m in model.modules() if isinstance(m._parameters.get("weight"), nn.Parameter)]
    return layers[-1] if layers else None


def of_layer(change: Callable[[nn.Module], Any]) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        layer = last_weight(model)
        if layer is not None:
            change(layer)

    return run


def activations(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, mf.MADE):
            module.activation = nn.LeakyReLU(0.4)


def scales(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scale", None), mf.ScaleRule):
            module.scale = mf.ScaleRule("softsign", bound=0.3)


def buffers(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and "mask" not in name:
            buffer.mul_(0.9)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "nothing": lambda model: None,
    "in place": in_place,
    "double": lambda model: model.double(),
    "half frozen": half_frozen,
    "modes": modes,
    "tied": tied,
    "every float": every_float,
    "activations": activations,
    "scales": scales,
    "buffers": buffers,
    "a note": lambda model: setattr(model, "note", {"a": [1, None, "b"]}),
    "weight norm": of_layer(parametrizations.weight_norm),
    "pruned": of_layer(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "hook": of_layer(lambda layer: layer.register_forward_hook(lambda m, x, y: 2 * y)),
    "no weight": of_layer(lambda layer: layer._parameters.pop("weight")),
    "method": lambda model: setattr(model, "forward", lambda *a: None),
}
REFUSED = {"weight norm", "pruned", "hook", "no weight", "method"}


@torch.no_grad()
def answers(model: Any) -> list[Tensor]:
    model = copy.deepcopy(model)  # scores in training mode change what they are made with
    dtype = next(iter([*model.parameters(), torch.zeros(())])).dtype
    torch.manual_seed(5)
    if isinstance(model, mf.MADE):
        return [model(torch.randn(7, D, dtype=dtype), torch.randn(7, 1, dtype=dtype))]
    context = [torch.randn(3, dtype=dtype)] if isinstance(model, mf.Embedded) else []
    x = model(*context).sample((7,))
    with warnings.catch_warnings():
        # Modes are among what is changed here, and what a file has to hold.
        warnings.simplefilter("ignore", mf.TrainingModeWarning)
        return [x, torch.as_tensor(model(*context).log_prob(x))]


@pytest.mark.parametrize("name", MODELS)
def test_a_file_holds_what_the_model_is_or_there_is_none(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    made = scatter(MODELS[name](), 0.5)
    for way, change in WAYS.items():
        model = copy.deepcopy(made)
        change(model)
        path.unlink(missing_ok=True)
        if way in REFUSED and (way == "method" or last_weight(made) is not None):
            with pytest.raises((TypeError, ValueError), match=r"^Expected "):
                mf.save(model, path)
            assert not path.exists(), way
            continue
        mf.save(model, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mf.DependencyWarning)
            again = mf.load(path)
        for mine, its in zip(answers(model), answers(again), strict=True):
            assert torch.equal(mine, its), way
        assert repr(again) == repr(model), way
