"""save() and load(): the same model back, and clear errors for every other file."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import constraints

import made_flows as mf
from made_flows import MADE
from made_flows._registry import REGISTRY, class_name, saveable
from made_flows.serialization.files import FORMAT_VERSION, checksum, load, save
from made_flows.serialization.record import describe, rebuild
from made_flows.univariate.heads import GaussianMixture


class Box(nn.Module):
    """Keeps any arguments; its weights have what makes weights hard to save."""

    def __init__(self, value=None, *rest, other=None, **more) -> None:
        super().__init__()
        self.value, self.rest, self.other, self.more = value, rest, other, more
        self.weight = nn.Parameter(torch.randn(3, 4).t())
        self.tied = self.weight
        base = torch.randn(6)
        self.register_buffer("left", base[:4])
        self.register_buffer("right", base[2:])
        self.register_buffer("wide", torch.randn(1).expand(5))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("empty", torch.zeros(0, 2))
        self.register_buffer("constant", torch.ones(2), persistent=False)
        self.part = value if isinstance(value, nn.Module) else None


class Pair(nn.Module):
    def __init__(self, first: Box, second: Box) -> None:
        super().__init__()
        self.first, self.second = first, second


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """The classes above can be saved during a test."""
    known = dict(REGISTRY)
    for kind in (Box, Pair):
        constructor = kind.__init__
        saveable(kind)
        kind.original = constructor
    yield
    for kind in (Box, Pair):
        kind.__init__ = kind.original
    REGISTRY.clear()
    REGISTRY.update(known)


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert same(first[name], second[name]), name


def round_trip(model: nn.Module, path: Path, **options):
    save(model, path)
    return load(path, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# ------------------------------------------------------------------ arguments

ARGUMENTS = {
    "none": None,
    "true": True,
    "integer": 7,
    "large integer": 2**70,
    "float": 0.1 + 0.2,
    "infinity": -math.inf,
    "nan": math.nan,
    "text": 'quotes " and ∑',
    "tuple": (1, 2.5, "a", None),
    "empty tuple": (),
    "list": [1, [2, (3,)]],
    "dict": {"a": (1, 2), "class": "Box", "tuple": [1], "arguments": {}},
    "dtype": torch.float64,
    "vector": torch.tensor([1.5, 2.5]),
    "integers": torch.arange(5),
    "booleans": torch.eye(3).bool(),
    "matrix": torch.randn(3, 4, dtype=torch.float64).t(),
    "float array": np.random.default_rng(0).normal(size=(2, 3)),
    "integer array": np.arange(4, dtype=np.int32)[::-1],
    "list of tensors": [torch.ones(2), np.ones(2)],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_come_back(name: str, path: Path):
    value = ARGUMENTS[name]
    model = round_trip(Box(value), path)
    assert same(value, model.value)
    model = round_trip(Box(1, value, other=value, more=value), path)
    assert same((value,), model.rest)
    assert same(value, model.other)
    assert same({"more": value}, model.more)


EQUIVALENT = {
    "torch.Size": (torch.Size([2, 3]), (2, 3)),
    "numpy integer": (np.int64(3), 3),
    "numpy float": (np.float32(0.5), 0.5),
    "numpy bool": (np.bool_(True), True),
    "activation class": (nn.Tanh, "tanh"),
    "activation function": (F.silu, "silu"),
    "torch function": (torch.relu, "relu"),
    "activation module": (nn.ELU(), "elu"),
}


@pytest.mark.parametrize("name", EQUIVALENT)
def test_arguments_come_back_as_equivalents(name: str, path: Path):
    value, expected = EQUIVALENT[name]
    assert same(expected, round_trip(Box(other=value), path).other)


def test_activations_keep_their_constants(path: Path):
    model = round_trip(Box(other=[nn.ELU(0.5), nn.LeakyReLU(0.2), nn.Softplus(2.0)]), path)
    elu, leaky, softplus = model.other
    assert (elu.alpha, leaky.negative_slope, softplus.beta) == (0.5, 0.2, 2.0)


def test_objects_in_arguments(path: Path):
    inner = Box((1, 2))
    model = Box(Box(inner, other=[MADE(3, hidden_features=(4,))]))
    again = round_trip(model, path)
    assert again.value.value.value == (1, 2)
    assert isinstance(again.value.other[0], MADE)
    assert_same_state(model, again)


def test_an_object_used_twice_is_one_object(path: Path):
    box = Box(1)
    again = round_trip(Pair(box, box), path)
    assert again.first is again.second
    assert again.first is not round_trip(Pair(box, Box(1)), path).second
    assert_same_state(Pair(box, box), again)


class Own(nn.Module):
    pass


UNSAVEABLE = {
    "a lambda": (lambda x: x, "Box.other"),
    "a function in a list": ([1, torch.cos], r"Box.other\[1\]"),
    "a function in a dict": ({"f": torch.cos}, r"Box.other.f"),
    "an unknown module": (Own(), "Box.other"),
    "an unknown module class": (Own, "Box.other"),
    "a subclassed activation": (type("Loud", (nn.ReLU,), {})(), "Box.other"),
    "a set": ({1, 2}, "Box.other"),
    "an object array": (np.array([None]), "Box.other"),
    "a dict of numbers": ({1: 2}, "Box.other"),
    "a device": (torch.device("cpu"), "Box.other"),
}


@pytest.mark.parametrize("name", UNSAVEABLE)
def test_arguments_that_cannot_be_saved(name: str, path: Path):
    value, place = UNSAVEABLE[name]
    with pytest.raises(TypeError, match=f"Expected argument {place} to be.*state_dict"):
        save(Box(other=value), path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("make", [Own, lambda: "model", type("Derived", (Box,), {})])
def test_models_that_cannot_be_saved(make, path: Path):
    with pytest.raises(TypeError, match="Expected model to be of a class that can be saved"):
        save(make(), path)


# ------------------------------------------------------------------ weights


def test_weights_come_back(path: Path):
    torch.manual_seed(1)
    model = Box()
    again = round_trip(model, path)
    assert_same_state(model, again)
    assert again.tied is again.weight


def test_each_tensor_is_stored_once(path: Path):
    save(Box(), path)
    assert "tied" not in load_file(path) or "weight" not in load_file(path)


def test_loading_and_saving_draw_no_random_numbers(path: Path):
    model, before = Box(), torch.get_rng_state()
    round_trip(model, path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [True, False])
def test_mode_comes_back(training: bool, path: Path):
    again = round_trip(Box(Box()).train(training), path)
    assert all(module.training == training for module in again.modules())


@pytest.mark.parametrize("saved", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_comes_back_and_casts(saved: torch.dtype, path: Path):
    model = Box().to(saved)
    again = round_trip(model, path)
    assert_same_state(model, again)
    assert again.constant.dtype == saved, "constants outside the state dict follow"
    assert again.tied is again.weight
    for wanted in (torch.float32, torch.float64):
        cast = load(path, dtype=wanted)
        assert cast.weight.dtype == cast.left.dtype == cast.constant.dtype == wanted
        assert cast.count.dtype == torch.int64
        torch.testing.assert_close(cast.weight, model.weight.to(wanted), rtol=0, atol=0)


def test_mixed_dtypes_come_back(path: Path):
    model = Box(Box().double())
    assert_same_state(model, round_trip(model, path))


def test_device(path: Path):
    save(Box(), path)
    assert load(path, device="meta").weight.device.type == "meta"
    with torch.device("meta"):
        assert load(path).weight.device.type == "cpu"
    assert load(path, device=torch.device("cpu")).weight.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(path: Path):
    model = Box().cuda()
    again = round_trip(model, path)
    assert again.weight.device.type == "cpu"
    assert_same_state(model.cpu(), again)
    torch.testing.assert_close(load(path, device="cuda").weight.cpu(), model.weight)


# ------------------------------------------------------------------ the library's models

MODELS = {
    "made": lambda: mf.MADE(5, 2, (16, 8), parameters=(1, 2, 3, 2, 1), inputs=2),
    "gaussian": lambda: mf.GaussianMADE(5, 2, (16,), scale="softplus"),
    "scale rule": lambda: mf.GaussianMADE(5, scale=mf.ScaleRule("clamp", low=-1.0, high=1.0)),
    "mixture": lambda: mf.GaussianMixtureMADE(features=5, components=3, hidden_features=[16]),
    "bernoulli": lambda: mf.BernoulliMADE(5, hidden_features=(16,), activation=nn.ELU(0.5)),
    "categorical": lambda: mf.CategoricalMADE(5, categories=(2, 3, 4, 3, 2)),
    "by parts": lambda: mf.DensityModel(mf.MADE(5, 2, parameters=6), GaussianMixture(2)),
    "given order": lambda: mf.GaussianMADE(5, order=torch.tensor([3, 1, 0, 4, 2])),
    "random order": lambda: mf.GaussianMADE(5, order="random"),
    "random degrees": lambda: mf.GaussianMADE(
        5, hidden_features=(64, 64), degrees="random", generator=torch.Generator().manual_seed(1)
    ),
    "graph": lambda: mf.GaussianMADE(5, adjacency=np.tri(5, k=-1, dtype=bool)),
    "residual": lambda: mf.GaussianMADE(5, hidden_features=(16, 8), residual=True, direct=True),
    "linear": lambda: mf.GaussianMADE(5, hidden_features=()),
    "double": lambda: mf.GaussianMADE(5).double(),
    "resampled": lambda: resampled(mf.GaussianMADE(5)),
}


def resampled(model: mf.GaussianMADE) -> mf.GaussianMADE:
    model.made.resample_masks()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_library(name: str, path: Path):
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # nothing that a constructor could guess
    again = round_trip(model, path)
    assert_same_state(model, again)
    assert repr(again) == repr(model)
    dtype = next(model.parameters()).dtype
    context = torch.randn(7, 2, dtype=dtype) if model.context else None
    if isinstance(model, mf.MADE):
        x = torch.randn(7, 10)
        assert torch.equal(model(x, context), again(x, context))
        return
    torch.manual_seed(0)
    x = model(context).sample((3,))
    torch.manual_seed(0)
    assert torch.equal(again(context).sample((3,)), x)
    assert torch.equal(again(context).log_prob(x), model(context).log_prob(x))


@pytest.mark.parametrize("name", ["gaussian", "mixture", "bernoulli", "categorical"])
def test_models_of_the_library_in_another_dtype(name: str, path: Path):
    model = MODELS[name]()
    again = round_trip(model, path, dtype=torch.float64)
    context = torch.randn(7, 2) if model.context else None
    x = model(context).sample()
    values = x if name == "categorical" else x.double()
    expected = model(context).log_prob(x).double()
    score = again(None if context is None else context.double()).log_prob(values)
    assert score.dtype == torch.float64
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_ones_own(path: Path):
    """Not registered, it is refused, and the error says what to do; registered, it is saved."""

    class Laplace(mf.Head):
        outputs, support = 1, constraints.real

        def __init__(self, rate: float) -> None:
            super().__init__()
            self.rate = rate

        def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
            return math.log(self.rate / 2) - self.rate * (x - parameters[..., 0]).abs()

        def noise(self, shape, like: Tensor) -> Tensor:
            return torch.distributions.Laplace(0.0, 1 / self.rate).sample((*shape, 1))

        def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
            return parameters[..., 0] + noise[..., 0]

    def make() -> mf.DensityModel:
        return mf.DensityModel(mf.MADE(3, parameters=1), Laplace(2.0))

    with pytest.raises(TypeError, match=r"DensityModel.head to be.*saveable"):
        save(make(), path)
    saveable(Laplace)
    model = make()
    x = torch.randn(5, 3)
    assert torch.equal(round_trip(model, path)().log_prob(x), model().log_prob(x))
    del REGISTRY[class_name(Laplace)]
    with pytest.raises(ValueError, match=r"Laplace'.*import the module that defines it"):
        load(path)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", [str, Path, os.fspath])
def test_kinds_of_paths(kind, path: Path):
    save(Box(), kind(path))
    assert isinstance(load(kind(path)), Box)


def test_a_file_replaces_the_one_before_and_nothing_else_is_left(path: Path):
    save(Box(1), path)
    save(Box(2), path)
    assert load(path).value == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_save_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch):
    save(Box(1), path)

    def fails(tensors, file, metadata):
        Path(file).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("made_flows.serialization.files.save_file", fails)
    with pytest.raises(OSError, match="No space"):
        save(Box(2), path)
    assert load(path).value == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    save(Box(1), target)
    link.symlink_to(target)
    save(Box(2), link)
    assert link.is_symlink()
    assert load(target).value == 2


def test_any_reader_of_safetensors_can_read_the_file(path: Path):
    model = Box((1, 2), other=torch.ones(2))
    save(model.eval(), path)
    tensors = load_file(path)
    assert torch.equal(tensors["weight"], model.weight)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["made_flows"])
    assert header["format"] == "made_flows"
    assert header["format_version"] == FORMAT_VERSION
    assert header["class"] == f"{__name__}.Box"
    assert header["arguments"]["value"] == {"tuple": [1, 2]}
    assert header["training"] is False


def test_missing_files_and_folders(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="is not one"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder"):
        save(Box(), tmp_path / "nowhere" / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", torch.int64, float])
def test_dtypes_that_are_not_floating_point(dtype, path: Path):
    save(Box(), path)
    with pytest.raises(TypeError, match="dtype"):
        load(path, dtype=dtype)


def write(path: Path, text: str, tensors: dict[str, Tensor]) -> None:
    """A file with its right checksum."""
    save_file(tensors, path, {"made_flows": text, "made_flows_checksum": checksum(text, tensors)})


def rewrite(path: Path, change) -> None:
    """Change the header of a file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["made_flows"])
    changed = change(header)
    header = header if changed is None else changed
    text = header if isinstance(header, str) else json.dumps(header)
    write(path, text, load_file(path))


def resave(path: Path, change) -> None:
    """Change the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    write(path, metadata["made_flows"], tensors)


def cut(path: Path, size: float) -> None:
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "complete safetensors file"),
    "cut in the header": (lambda p: cut(p, 0.3), "complete safetensors file"),
    "cut at the end": (lambda p: cut(p, 0.98), "complete safetensors file"),
    "noise": (lambda p: p.write_bytes(bytes(range(256)) * 8), "complete safetensors file"),
    "text": (lambda p: p.write_text("not a model " * 9), "complete safetensors file"),
    "pickle": (
        lambda p: p.write_bytes(pickle.dumps(Trap(p.with_name("trapped")))),
        "complete safetensors file",
    ),
    "torch.save": (lambda p: torch.save({"w": torch.ones(3)}, p), "complete safetensors file"),
    "another program's": (
        lambda p: save_file({"weight": torch.ones(3)}, p, {"format": "pt"}),
        "another origin",
    ),
    "no metadata": (lambda p: save_file({"weight": torch.ones(3)}, p), "another origin"),
    "header no JSON": (lambda p: rewrite(p, lambda h: "{"), "header"),
    "header a list": (lambda p: rewrite(p, lambda h: [1]), "header"),
    "header deep": (lambda p: rewrite(p, lambda h: "[" * 100_000), "header"),
    "format missing": (lambda p: rewrite(p, lambda h: {}), "header"),
    "format other": (lambda p: rewrite(p, lambda h: h.update(format="x")), "header"),
    "version no number": (lambda p: rewrite(p, lambda h: h.update(format_version="1")), "header"),
    "version zero": (lambda p: rewrite(p, lambda h: h.update(format_version=0)), "header"),
    "newer": (
        lambda p: rewrite(p, lambda h: h.update(format_version=3, library_version="9.9")),
        r"format 3, written by made_flows 9.9 .*Upgrade",
    ),
    "class missing": (lambda p: rewrite(p, lambda h: {**h, "class": None}), "registered class"),
    "class unknown": (lambda p: rewrite(p, lambda h: h.update({"class": "os"})), "'os'"),
    "class not hashable": (lambda p: rewrite(p, lambda h: h.update({"class": []})), "can build"),
    "class inside unknown": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"class": "eval", "arguments": {}})),
        "'eval'",
    ),
    "kind unknown": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"call": "print"})),
        "known kind",
    ),
    "dtype no dtype": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"dtype": "load"})),
        "known kind",
    ),
    "activation unknown": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"activation": ["eval", 0]})),
        "can build",
    ),
    "activation no pair": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"activation": 3})),
        "can build",
    ),
    "tensor missing": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"tensor": "nowhere"})),
        "can build",
    ),
    "reference ahead": (
        lambda p: rewrite(p, lambda h: h["arguments"].update(x={"same": 5})),
        "can build",
    ),
    "arguments no dict": (lambda p: rewrite(p, lambda h: h.update(arguments=[1])), "can build"),
    "aliases no dict": (lambda p: rewrite(p, lambda h: h.update(aliases=3)), "can build"),
    "arguments refused": (
        lambda p: rewrite(p, lambda h: h.update({"class": "MADE", "arguments": {"features": 0}})),
        "positive integer",
    ),
    "weights of another class": (
        lambda p: rewrite(p, lambda h: h.update({"class": "MADE", "arguments": {"features": 3}})),
        "can build",
    ),
    "weight missing": (lambda p: resave(p, lambda t: t.pop("left")), "left"),
    "weight unknown": (lambda p: resave(p, lambda t: t.update(new=torch.ones(1))), "new"),
    "weight of another shape": (
        lambda p: resave(p, lambda t: t.update(left=torch.ones(9))),
        "left",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(name: str, path: Path):
    damage, message = DAMAGE[name]
    save(Box(1), path)
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert not path.with_name("trapped").exists()


def test_every_truncation_is_noticed(path: Path):
    save(Box(1), path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="Expected"):
            load(path)


FORMER = {
    "MAF": (lambda: mf.MAF(20, 0, 5, (64, 64), activation="relu", base=None, direct=False), 20),
    "IAF": (lambda: mf.IAF(3, hidden_features=(64, 64), activation="relu"), 3),
    "GaussianMADE": (lambda: mf.GaussianMADE(20, 0, (64, 64), activation="relu"), 20),
    "GaussianMixtureMADE": (lambda: mf.GaussianMixtureMADE(3, 0, (64, 64), activation="relu"), 3),
    "BernoulliMADE": (lambda: mf.BernoulliMADE(20, 0, (64, 64), direct=False), 20),
    "MADE": (lambda: mf.MADE(20, 0, (64, 64)), 20),
}


@pytest.mark.parametrize("name", FORMER)
def test_files_that_leave_defaults_out_have_those_of_their_time(name: str):
    """Defaults change; a file that says nothing of them is of the time before they did."""
    make, features = FORMER[name]
    model = make().eval()
    text, tensors = describe(model)
    for argument in ("activation", "hidden_features", "base", "direct"):
        text["arguments"].pop(argument, None)
    loaded = rebuild(text, tensors)
    x = (torch.rand(5, features) < 0.5).float()
    if name == "MADE":
        assert torch.equal(loaded(x), model(x))
    else:
        assert torch.equal(loaded().log_prob(x), model().log_prob(x))


def test_splines_of_files_that_know_no_linear_transform_are_splines():
    """Files of 0.3.0 say what ``direct`` is, None, and nothing of ``linear``."""
    text, tensors = describe(mf.MAF(3, bijection="spline", linear=False))
    assert text["arguments"].pop("linear") is False
    assert text["arguments"]["direct"] is None
    loaded = rebuild(text, tensors)
    assert [type(one.bijection).__name__[:6] for one in loaded.transforms] == ["Ration"] * 5


@pytest.mark.parametrize("name", [name for name in FORMER if name != "MADE"])
def test_files_say_what_was_a_default_once(name: str):
    text, _ = describe(getattr(mf, name)(3))
    assert "hidden_features" in text["arguments"]
    # Those whose hidden units were, and are, rectified need not say it.
    assert ("activation" in text["arguments"]) == (name not in ("BernoulliMADE", "IAF"))
