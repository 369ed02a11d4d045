"""What is done to a model after it was made: it is saved as it is, or refused with what to do."""

from __future__ import annotations

import copy
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import made_flows as mf
from made_flows._registry import REGISTRY, class_name
from made_flows.serialization.files import checksum
from tests.helpers.density_models import scatter

D, C = 4, 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def flow(**options: Any) -> mf.MAF:
    return scatter(mf.MAF(D, transforms=2, hidden_features=(8,), **options), 0.3).eval()


def first(model: Any) -> Any:
    return model.transforms[0].conditioner.layers[0]


class Shift(mf.Bijection):
    outputs = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters[..., 0], torch.zeros_like(x)

    inverse = forward


@torch.no_grad()
def scores(model: Any) -> Tensor:
    torch.manual_seed(3)
    x = torch.randn(5, D, dtype=next(model.parameters()).dtype)
    return torch.as_tensor(model().log_prob(x))


# ------------------------------------------------------------------ saved as they are


def set_in(place: str, name: str, value: Any) -> Callable[[Any], Any]:
    return lambda model: setattr(model.get_submodule(place), name, value)


def append(model: Any) -> None:
    model.transforms.append(mf.InvertibleLinear(D))


def replace_base(model: Any) -> None:
    model.base = scatter(mf.GaussianMADE(D, hidden_features=(7,)))
    model.base.head.scale.bound = 2.0


def replace_conditioner(model: Any) -> None:
    old = model.transforms[1].conditioner
    model.transforms[1].conditioner = scatter(mf.MADE(D, hidden_features=(3, 3), direct=True), 0.3)
    assert old.hidden_features != (3, 3)


def tie(model: Any) -> None:
    model.transforms[1].conditioner.layers[0].weight = first(model).weight


def prune_and_bake(model: Any) -> None:
    prune.l1_unstructured(first(model), "weight", amount=0.5)
    prune.remove(first(model), "weight")


def sparser_mask(model: Any) -> None:
    with torch.no_grad():
        first(model).mask[:3] = 0


CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "another activation": set_in("transforms.0.conditioner", "activation", nn.Tanh()),
    "a constant of an activation": set_in(
        "transforms.0.conditioner", "activation", nn.LeakyReLU(0.3)
    ),
    "activation in place": set_in("transforms.1.conditioner", "activation", nn.ReLU(inplace=True)),
    "bound of a scale": set_in("transforms.0.bijection.scale", "bound", 0.1),
    "rule of a scale": set_in("transforms.0.bijection.scale", "rule", "softsign"),
    "a note": set_in("", "epochs", {"best": 3, "curve": [0.1, None], "at": torch.ones(2)}),
    "transforms appended": append,
    "transforms removed": lambda model: model.transforms.__delitem__(1),
    "transforms swapped": lambda model: setattr(model, "transforms", model.transforms[::-1]),
    "base replaced": replace_base,
    "conditioner replaced": replace_conditioner,
    "bijection replaced": set_in("transforms.1", "bijection", mf.Affine("exp")),
    "tied weights": tie,
    "pruned for good": prune_and_bake,
    "masks sparser": sparser_mask,
    "masks of fractions": lambda model: setattr(first(model), "mask", first(model).mask * 0.5),
    "masks drawn anew": lambda model: model.transforms[0].conditioner.resample_masks(),
    "a part in double": lambda model: model.base.double(),
    "all in double": lambda model: model.double(),
    "frozen": lambda model: first(model).requires_grad_(False),
    "a part in training": lambda model: model.transforms[0].train(),
    "inference tensors": lambda model: setattr(first(model).bias, "data", inference_tensor()),
    "hook of gradients": lambda model: first(model).register_full_backward_hook(print),
}


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.ones(8)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_comes_back_as_it_is(name: str, path: Path):
    model = flow()
    CHANGES[name](model)
    mf.save(model, path)
    again = mf.load(path)
    assert torch.equal(scores(again), scores(model))
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    for (place, mine), (_, its) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert (mine.requires_grad, mine.dtype) == (its.requires_grad, its.dtype), place
    buffers = dict(again.named_buffers())
    for place, buffer in model.named_buffers():
        assert buffers[place].dtype == buffer.dtype, place
        assert torch.equal(buffers[place], buffer), place
    copied = copy.deepcopy(again)
    mf.save(copied, path)
    assert torch.equal(scores(mf.load(path)), scores(model)), "saved again"


def test_notes_come_back(path: Path):
    model = flow()
    CHANGES["a note"](model)
    mf.save(model, path)
    again = mf.load(path).epochs
    assert (again["best"], again["curve"], again["at"].tolist()) == (3, [0.1, None], [1.0, 1.0])


def test_tied_weights_are_tied_again(path: Path):
    model = flow()
    tie(model)
    mf.save(model, path)
    again = mf.load(path)
    assert first(again).weight is again.transforms[1].conditioner.layers[0].weight


def test_splines_and_heads_changed_after_they_were_made(path: Path):
    spline = flow(bijection="spline")
    spline.transforms[0].bijection.bound = 2.0
    mixture = scatter(mf.GaussianMixtureMADE(D, hidden_features=(8,), components=2)).eval()
    mixture.head.scale.bound = 0.5
    for model in (spline, mixture):
        mf.save(model, path)
        assert torch.equal(scores(mf.load(path)), scores(model))


def test_a_list_changed_after_it_was_given(path: Path):
    layers, order = [mf.Permutation(D), mf.InvertibleLinear(D)], [3, 1, 0, 2]
    base, mean = mf.GaussianMADE(D, hidden_features=(8,), order=order), np.zeros(D, np.float32)
    model = mf.Flow([mf.Standardize(mean, mean + 1), *layers], base=base).eval()
    chain = mf.Flow(layers, base=base).eval()
    layers.append(mf.InvertibleLinear(D))
    order.reverse()
    mean += 7
    for each in (model, chain):
        mf.save(each, path)
        assert torch.equal(scores(mf.load(path)), scores(each))


def test_a_module_list_is_a_list(path: Path):
    model = mf.Mixture(nn.ModuleList([mf.GaussianMADE(D), flow()])).eval()
    mf.save(model, path)
    assert torch.equal(scores(mf.load(path)), scores(model))


# ------------------------------------------------------------------ refused


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Wrapped(nn.Module):
    """As adapters of low rank are made."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(x, mask) + 1


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def wrap(model: Any) -> None:
    layers = model.transforms[0].conditioner.layers
    layers[0] = Wrapped(layers[0])


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weight norm": (
        lambda model: parametrizations.weight_norm(first(model)),
        r"layers.0' with a parametrized weight.*remove_parametrizations\(model.get_sub.*'weight'\)",
    ),
    "spectral norm": (
        lambda model: parametrizations.spectral_norm(first(model)),
        "parametrized weight",
    ),
    "another parametrization": (
        lambda model: parametrize.register_parametrization(first(model), "bias", Doubled()),
        "parametrized bias",
    ),
    "weight norm of before": (
        lambda model: old_weight_norm(first(model)),
        "normalised weight.*remove_weight_norm",
    ),
    "spectral norm of before": (
        lambda model: nn.utils.spectral_norm(first(model)),
        "normalised weight.*remove_spectral_norm",
    ),
    "pruned": (
        lambda model: prune.l1_unstructured(first(model), "weight", amount=0.5),
        r"pruned weight.*prune.remove\(model.get_submodule",
    ),
    "a forward hook": (
        lambda model: first(model).register_forward_hook(lambda m, x, y: 2 * y),
        "a hook on the forward of 'transforms.0.conditioner.layers.0'",
    ),
    "a hook before": (
        lambda model: model.base.register_forward_pre_hook(lambda m, x: None),
        "a hook on the forward of 'base'",
    ),
    "a wrapped layer": (wrap, "layers.0.*Wrapped"),
    "another class": (set_in("transforms.0", "bijection", Shift()), "bijection.*Shift"),
    "another method": (set_in("base", "forward", lambda: None), "base.forward"),
    "an own activation": (
        set_in("transforms.0.conditioner", "activation", Doubled()),
        "activation.*Doubled",
    ),
    "a parameter more": (set_in("base", "extra", nn.Parameter(torch.ones(1))), "'base.extra'"),
    "a weight of another shape": (
        lambda model: setattr(first(model), "weight", nn.Parameter(torch.ones(2, 2))),
        "'transforms.0.conditioner.layers.0.weight'",
    ),
    "no bias": (lambda model: setattr(first(model), "bias", None), "layers.0.bias'"),
    "a buffer more": (
        lambda model: model.base.register_buffer("extra", torch.ones(1), persistent=False),
        "buffer 'base.extra'",
    ),
    "an attribute less": (lambda model: delattr(model, "features"), "no attribute 'features'"),
    "masks that let a feature read itself": (
        lambda model: [layer.mask.fill_(1) for layer in model.transforms[1].conditioner.layers],
        r"masks of 'transforms.1.conditioner'.*feature 0 reads feature 0",
    ),
    "on the meta device": (lambda model: model.to("meta"), "meta device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_changed_model_is_refused_with_what_to_do(name: str, path: Path):
    change, message = REFUSED[name]
    model = flow()
    change(model)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        mf.save(model, path)
    assert str(caught.value).startswith("Expected ")
    assert list(path.parent.iterdir()) == []


def test_the_advice_for_parametrized_and_pruned_weights_works(path: Path):
    model = flow()
    parametrizations.weight_norm(first(model))
    prune.l1_unstructured(first(model), "bias", amount=0.5)
    parametrize.remove_parametrizations(
        model.get_submodule("transforms.0.conditioner.layers.0"), "weight"
    )
    prune.remove(model.get_submodule("transforms.0.conditioner.layers.0"), "bias")
    mf.save(model, path)
    assert torch.equal(scores(mf.load(path)), scores(model))


def test_a_class_whose_arguments_do_not_make_it_again(path: Path):
    count = iter([1, 0])

    @mf.saveable
    class Once(nn.Linear):
        def __init__(self, features: int) -> None:
            super().__init__(features, features // next(count))

    try:
        with pytest.raises(ValueError, match="make again"):
            mf.save(Once(3), path)
    finally:
        del REGISTRY[class_name(Once)]


# ------------------------------------------------------------------ names


def cell(name: str = "Own", factor: float = 1.0) -> type:
    """A class as a notebook's cell defines it."""

    class Own(nn.Linear):
        def __init__(self, features: int) -> None:
            super().__init__(features, features)

        def forward(self, x: Tensor) -> Tensor:
            return factor * super().forward(x)

    Own.__name__, Own.__qualname__, Own.__module__ = name, name, "__main__"
    return mf.saveable(Own)


@pytest.fixture(autouse=True)
def _registry_as_it_was():
    known = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(known)


def test_a_cell_that_is_run_again(path: Path):
    before = cell()(3)
    mf.save(before, path)
    second = cell()
    assert type(mf.load(path)) is second
    mf.save(before, path)  # the model of the class before it
    again = mf.load(path)
    assert type(again) is second
    assert torch.equal(again.weight, before.weight)
    mf.save(second(3), path)


def test_a_class_with_the_name_of_one_of_the_library(path: Path):
    model = flow()
    mf.save(model, path)
    theirs = cell("MAF")
    assert type(mf.load(path)) is mf.MAF
    mf.save(model, path)
    assert type(mf.load(path)) is mf.MAF
    mf.save(theirs(3), path)
    assert type(mf.load(path)) is theirs
    del REGISTRY["__main__.MAF"]
    with pytest.raises(ValueError, match=r"'__main__.MAF'.*import the module that defines it"):
        mf.load(path)


def test_a_class_that_moved_to_another_module(path: Path):
    moved = cell()
    mf.save(moved(3), path)
    del REGISTRY["__main__.Own"]
    REGISTRY["models.Own"] = moved
    assert type(mf.load(path)) is moved
    REGISTRY["others.Own"] = moved
    with pytest.raises(ValueError, match=r"'__main__.Own'.*models.Own and others.Own"):
        mf.load(path)


# ------------------------------------------------------------------ files


def header_of(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return str(file.metadata()["made_flows"])


def test_files_of_the_first_format_load(path: Path):
    """They have no checksum, and no changes; names of classes have no module."""
    model, own = flow(), cell()(3)
    for each, name in ((model, "MAF"), (own, "Own")):
        mf.save(each, path)
        text = header_of(path).replace('"format_version": 2', '"format_version": 1')
        text = text.replace(', "changes": [], "buffers": {}', "").replace("__main__.", "")
        assert f'"class": "{name}"' in text
        assert "changes" not in text
        save_file(load_file(path), path, {"made_flows": text})
        again = mf.load(path)
        for place, value in each.state_dict().items():
            assert torch.equal(again.state_dict()[place], value)


def test_every_flipped_bit_is_noticed(path: Path):
    mf.save(mf.MADE(2, hidden_features=(1,)), path)
    whole = bytearray(path.read_bytes())
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place // 5 % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="Expected"):
            mf.load(path)


def test_masks_and_ranks_of_files_without_a_checksum_are_looked_at(path: Path):
    mf.save(mf.MADE(3, hidden_features=(4,)), path)
    text = header_of(path).replace('"format_version": 2', '"format_version": 1')
    tensors = {name: x.clone() for name, x in load_file(path).items()}  # not views of the file
    for name, value, message in (
        ("layers.0.mask", torch.ones(4, 3, dtype=torch.bool), "masks"),
        ("ranks", torch.tensor([0, 0, 1]), "ranks"),
        ("degrees_0", torch.tensor([1, 1, 9, 2]), "degrees_0"),
    ):
        save_file(tensors | {name: value}, path, {"made_flows": text})
        with pytest.raises(ValueError, match=f"{message}.*to"):
            mf.load(path)


def hostile(path: Path, kind: str, arguments: str, changes: str = "[]") -> None:
    """A small file with its right checksum, that asks for much."""
    text = (
        f'{{"format": "made_flows", "format_version": 2, "library_version": "1", "class": "{kind}",'
        f' "arguments": {{{arguments}}}, "training": true, "aliases": {{}}, "changes": {changes},'
        f' "buffers": {{}}}}'
    )
    tensors = {"weight": torch.ones(3)}
    save_file(tensors, path, {"made_flows": text, "made_flows_checksum": checksum(text, tensors)})


MADE_OF = '{"class": "MADE", "arguments": {"features": 100000}}'
WIDE = '{"in_features": 100000, "out_features": 100000}'
DEEP = '{"in_channels": 1, "out_channels": 100, "kernel_size": {"tuple": [10000, 10000]}}'
HOSTILE = {
    "transforms": ("MAF", '"features": 1, "transforms": 1000000000'),
    "features": ("MADE", '"features": 1000000000'),
    "linear": ("MADE", '"features": 100000, "hidden_features": []'),
    "hidden": ("GaussianMADE", '"features": 2, "hidden_features": [1000000, 1000000]'),
    "context": ("BernoulliMADE", '"features": 2, "context": 1000000000'),
    "components": ("GaussianMixtureMADE", '"features": 2, "components": 1000000000'),
    "categories": ("CategoricalMADE", '"features": 2, "categories": {"tuple": [2, 1000000000]}'),
    "parameters": ("MADE", '"features": 2, "parameters": 1000000000, "hidden_features": []'),
    "bins": (
        "MAF",
        '"features": 2, "bijection": {"class": "RationalQuadraticSpline", "arguments": '
        '{"bins": 1000000000}}',
    ),
    "orders": ("GaussianMADE", '"features": 2, "orders": 1000000000'),
    "masks": ("GaussianMADE", '"features": 2, "masks": 1000000000'),
    "matrix": ("InvertibleLinear", '"features": 100000'),
    "normal": ("StandardNormal", '"features": 10000000000'),
    "columns": ("Log", '"features": 10000000000'),
    "head": ("Categorical", '"categories": 100000, "features": 100000'),
    "inside": (
        "Flow",
        f'"transforms": [], '
        f'"base": {{"class": "DensityModel", "arguments": {{"made": {MADE_OF}}}}}',
    ),
    "a change": ("Affine", "", f'[["module", "", "x", {MADE_OF}]]'),
    "a layer": ("Affine", "", f'[["module", "", "x", {{"layer": {{"Linear": {WIDE}}}}}]]'),
    "a convolution": ("Affine", "", f'[["module", "", "x", {{"layer": {{"Conv2d": {DEEP}}}}}]]'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_cannot_ask_for_much(name: str, path: Path):
    hostile(path, *HOSTILE[name])
    with pytest.raises(ValueError, match=r"Expected .*numbers in the file|to be at most"):
        mf.load(path)


@pytest.mark.parametrize(
    "change",
    [
        '["attribute", "", "forward", 1]',
        '["attribute", "", "_modules", {"dict": {}}]',
        '["attribute", "", "training", 1]',
        '["attribute", "", "T_destination", 1]',
        '["attribute", "nowhere", "x", 1]',
        '["module", "", "x", 3]',
        '["module", "", "a.b", null]',
        '["removed", "", "nowhere", null]',
        '["requires_grad", "", "forward", true]',
        '["call", "", "x", 1]',
        "7",
    ],
)
def test_changes_that_no_model_has(change: str, path: Path):
    hostile(path, "Affine", "", f"[{change}]")
    with pytest.raises(ValueError, match=r"Expected .* can build"):
        mf.load(path)


def test_modes_of_files(path: Path):
    before = os.umask(0o027)
    try:
        mf.save(flow(), path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        mf.save(flow(), path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604, "as a file written over"
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("place", "error"), [(None, TypeError), (3, TypeError), ("folder", IsADirectoryError)]
)
def test_places_that_are_no_files(place: Any, error: type[Exception], tmp_path: Path):
    place = tmp_path if place == "folder" else place
    with pytest.raises(error, match="Expected path to be"):
        mf.save(flow(), place)
    with pytest.raises((TypeError, FileNotFoundError), match="Expected path to be"):
        mf.load(place)


def test_devices_that_torch_does_not_know(path: Path):
    mf.save(flow(), path)
    for device in ("foo", [1]):
        with pytest.raises(ValueError, match="Expected device to be"):
            mf.load(path, device=device)


def test_modes_of_the_caller_do_not_reach_what_is_loaded(path: Path):
    mf.save(flow(), path)
    with torch.inference_mode(), torch.device("meta"):
        again = mf.load(path)
        mf.save(again, path)
    assert not any(p.is_inference() or p.is_meta for p in again.parameters())
    again().log_prob(torch.zeros(D)).backward()
