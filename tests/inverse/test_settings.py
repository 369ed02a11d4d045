"""The sequential inverse under what people set around it: autocast, default devices, a cache."""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Independent, Laplace

import made_flows as mf
from made_flows.inverse import HeadStep, dispatch, sequential_inverse
from made_flows.inverse.dispatch import backend
from tests.helpers.density_models import MODELS, NETWORKS, context_of
from tests.helpers.inverse_checks import STEPS, each_backend, made_for, noise_of

# ---------------------------------------------------------------------- autocast


@each_backend
@pytest.mark.parametrize("name", ["Gaussian | plain", "Gaussian | context, residual, direct"])
def test_autocast_changes_neither_values_nor_whether_there_are_gradients(
    choice: str, name: str
) -> None:
    model = MODELS[name]().float()
    context = context_of(model, 3, dtype=torch.float32)
    noise = noise_of(HeadStep(model.head), 3, 4).float()
    leaves = list(model.parameters())
    with backend(choice):
        expected = sequential_inverse(model.made, HeadStep(model.head), noise, context)
        gradients = torch.autograd.grad(expected.sum(), leaves)
        with torch.autocast("cpu", torch.bfloat16):
            values = sequential_inverse(model.made, HeadStep(model.head), noise, context)
            ours = torch.autograd.grad(values.sum(), leaves)
            assert model(context).sample((2,)).isfinite().all()
            with torch.no_grad():  # which kernels would be told of the context in half precision
                alone = sequential_inverse(model.made, HeadStep(model.head), noise, context)
    for found in (values, alone):
        torch.testing.assert_close(found, expected)
    for mine, reference in zip(ours, gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() <= 0.2 * (1 + reference.norm())  # as bfloat16 allows


@each_backend
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("kind", [mf.IAF, mf.MAF])
def test_autocast_in_both_directions_of_a_flow(kind: Any, low: bool, choice: str) -> None:
    """Of float32, and of what autocast made half of before: a context from another network, say."""
    flow, x, context = (
        kind(4, context=2, hidden_features=(16,)),
        torch.randn(3, 4),
        torch.randn(3, 2),
    )
    expected = flow(context).log_prob(x)
    with backend(choice), torch.autocast("cpu", torch.bfloat16):
        given = (context.bfloat16(), x.bfloat16()) if low else (context, x)
        score = flow(given[0]).log_prob(given[1])
        torch.testing.assert_close(score.float(), expected, rtol=0.05, atol=0.05)
        (score.sum() + flow(given[0]).rsample().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


# ---------------------------------------------------------------------- what pays

KNOWN, OWN = NETWORKS["plain"], NETWORKS["own activation"]
PAYS: dict[str, tuple[Callable[..., mf.MADE], int, int, str, torch.dtype, bool]] = {
    "a kernel": (KNOWN, 2, 1, "cpu", torch.float32, True),
    "a recording": (KNOWN, 2, 1, "cuda", torch.bfloat16, True),
    "half precision, small": (KNOWN, 20, 1, "cpu", torch.bfloat16, False),
    "few features": (OWN, 4, 4096, "cpu", torch.float32, False),
    "small": (OWN, 20, 4, "cpu", torch.float32, False),
    "large": (OWN, 20, 4096, "cpu", torch.float32, True),
    "few launches": (OWN, 20, 4096, "cuda", torch.float32, False),
    "many launches": (OWN, 30, 1, "cuda", torch.float32, True),
}


@pytest.mark.parametrize("name", PAYS)
def test_the_inverse_is_taken_where_it_is_faster_than_passes(name: str) -> None:
    make, features, rows, device, dtype, pays = PAYS[name]
    network, step = make(features, parameters=2).spec(), STEPS["inverse, affine"](features)
    with FakeTensorMode():
        x = torch.empty(rows, features, device=device, dtype=dtype)
    size = network.structure, 64 * (64 + 3 * features)
    assert dispatch.pays(step, *size, x) is pays
    with backend("eager"):
        assert dispatch.pays(step, *size, x)


# ---------------------------------------------------------------------- default devices

FLOWS: dict[str, Callable[[], nn.Module]] = {
    "MAF": lambda: mf.MAF(4, context=2, hidden_features=(8,)),
    "spline MAF": lambda: mf.MAF(4, context=2, hidden_features=(8,), bijection="spline"),
    "IAF": lambda: mf.IAF(4, context=2, hidden_features=(8,)),
    "Gaussian": lambda: mf.GaussianMADE(4, context=2, hidden_features=(8,)),
    "mixture": lambda: mf.GaussianMixtureMADE(4, context=2, hidden_features=(8,)),
    "Bernoulli": lambda: mf.BernoulliMADE(4, context=2, hidden_features=(8,)),
    "categorical": lambda: mf.CategoricalMADE(4, categories=3, context=2, hidden_features=(8,)),
    "models": lambda: mf.Mixture([mf.GaussianMADE(4, 2, hidden_features=(8,)), mf.MAF(4, 2)]),
    "orders and masks": lambda: mf.OrderMixture(
        mf.GaussianMADE(4, 2, hidden_features=(8,), orders="all", masks="all"), 2
    ),
}


@pytest.fixture
def _meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@each_backend
@pytest.mark.parametrize("name", FLOWS)
def test_models_stay_where_they_are_whatever_the_default_device(
    choice: str, name: str, request: pytest.FixtureRequest
) -> None:
    model, context = FLOWS[name](), torch.zeros(3, 2)
    request.getfixturevalue("_meta_by_default")
    with backend(choice):
        x = model(context).sample((5,))
        value = model(context).log_prob(x)
        value.sum().backward()
    assert x.device.type == value.device.type == "cpu"
    assert bool(value.isfinite().all())


CONSTANTS: dict[str, Callable[[], nn.Module]] = {
    "log of some": lambda: mf.Flow([mf.Log(3, [1])], mf.MAF(3, 2)),
    "logit of some": lambda: mf.Flow([mf.Logit([0.0, -math.inf], [9.0, math.inf])], mf.MAF(2, 2)),
    "torch's base": lambda: mf.MAF(3, 2, base=Independent(Laplace(torch.ones(3), 2.0), 1)),
    "categories in different numbers": lambda: mf.CategoricalMADE(
        3, categories=(2, 3, 4), context=2
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_come_back_from_the_meta_device(name: str) -> None:
    model, context = CONSTANTS[name](), torch.zeros(5, 2)
    x = model(context).sample()
    expected, weights = model(context).log_prob(x), copy.deepcopy(model.state_dict())
    model = copy.deepcopy(model.to("meta")).to_empty(device="cpu").double().float()
    model.load_state_dict(weights)
    torch.testing.assert_close(model(context).log_prob(x), expected, rtol=0, atol=0)
    assert not any(buffer.is_meta for buffer in model.buffers())


# ---------------------------------------------------------------------- memory of the user's


@pytest.mark.parametrize("make", [mf.IAF, mf.MAF], ids=["IAF", "MAF"])
def test_no_storage_is_pinned_to_its_size(make: Any) -> None:
    flow = make(4, context=2, hidden_features=(8,))
    x, context = torch.randn(3, 4, requires_grad=True), torch.randn(3, 2)
    drawn = flow(context).rsample()
    value = flow(context).log_prob(x).sum() + drawn.sum()
    value.backward()
    with torch.no_grad():
        sampled = flow(context).sample()
    assert x.grad is not None
    tensors = [x.detach(), x.grad, context, sampled, drawn.detach(), *flow.parameters()]
    for tensor in [*tensors, *flow.buffers()]:
        tensor.detach().untyped_storage().resize_(4096)


# ---------------------------------------------------------------------- what is chosen

CHOICE = "import made_flows as mf; print(mf.GaussianMADE(3)().sample((2,)).shape)"


def test_environment_variable_of_a_process() -> None:
    """It is read at the first inverse: no import fails for it."""
    done = subprocess.run(
        [sys.executable, "-c", CHOICE],
        env={**os.environ, "MADE_FLOWS_INVERSE": "compile"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: Expected MADE_FLOWS_INVERSE to be one of auto, eager,")


@pytest.mark.parametrize(
    ("value", "activation", "says"),
    [
        ("eager", "relu", ""),
        ("compiled", "relu", ""),
        ("compile", "relu", "ValueError: Expected MADE_FLOWS_INVERSE to be one of auto, eager,"),
        ("compiled", torch.sin, "RuntimeError: Expected a sequential inverse that can be compiled"),
    ],
)
def test_environment_variable(
    value: str, activation: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value == "compiled":
        pytest.importorskip("llvmlite")
    monkeypatch.setenv("MADE_FLOWS_INVERSE", value)
    dispatch._default.cache_clear()
    said = ""
    try:
        assert mf.GaussianMADE(3, activation=activation)().sample((2,)).shape == (2, 3)
    except (ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        dispatch._default.cache_clear()
    assert said.startswith(says)
    assert bool(said) == bool(says)


def test_compiled_means_compiled() -> None:
    pytest.importorskip("llvmlite")
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3)
    noise = noise_of(step, 2, 3)
    with backend("compiled"):
        sequential_inverse(made, step, noise).sum().backward()
        low = made.to(torch.bfloat16)
        with pytest.raises(RuntimeError, match=r"of a network of torch\.bfloat16"):
            sequential_inverse(low, HeadStep(step.head.bfloat16()), noise.bfloat16())
    with pytest.raises(ValueError, match="choice to be one of"), backend("fast"):
        pass


# ---------------------------------------------------------------------- a damaged cache

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "garbage": lambda content: b"\x80\x04garbage" * 20,
    "truncated": lambda content: content[: len(content) // 2],
    "flipped byte": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
}


def add_one(slot: int, tiles: Any, spaces: Any, values: Any) -> None:
    """A kernel: adds one to every value, in one tile."""
    for i in range(len(values)):
        values[i] += 1.0


def run(kernel: Any) -> None:
    import numpy as np

    from made_flows.inverse.compiled.layout import Written

    values = np.ones(3)
    kernel(1, 1, 1, 1, Written(np.zeros(1)), values)
    assert values.tolist() == [2.0] * 3


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of compiled kernels that is empty."""
    pytest.importorskip("llvmlite")
    monkeypatch.setenv("MADE_FLOWS_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_made_again(
    kind: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from made_flows.inverse.compiled.compilation import Kernel

    run(Kernel(add_one))
    [file] = cache.rglob("*.o")
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    with caplog.at_level(logging.WARNING, "made_flows"):
        run(Kernel(add_one))
    assert len(caplog.records) == 1
    assert "is compiled again" in caplog.records[0].getMessage()
    caplog.clear()
    run(Kernel(add_one))  # from what was written in its place
    assert not caplog.records


def test_kernels_are_compiled_where_nothing_can_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from made_flows.inverse.compiled.compilation import Kernel

    (cache / "file").write_text("")
    monkeypatch.setenv("MADE_FLOWS_CACHE_DIR", str(cache / "file"))
    run(Kernel(add_one))
    assert (cache / "file").read_text() == ""


def test_a_wait_for_the_compiler_is_announced_once(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from made_flows.inverse.compiled import compilation

    def said() -> tuple[list[str], str]:
        compilation._announce.cache_clear()
        caplog.clear()
        kernel = compilation.Kernel(add_one)
        for _ in range(2):
            run(kernel)
        return [record.getMessage() for record in caplog.records], capsys.readouterr().err

    with caplog.at_level(logging.INFO, "made_flows"):
        lines, _ = said()
        assert lines == ["made_flows: compiling kernels, once: a few seconds"]
        assert said() == ([], "")  # found on disk
    shutil.rmtree(cache)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.WARNING, "made_flows"):
        assert said() == ([], lines[0] + "\n")


def test_without_sources_torch_operations_take_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("llvmlite")
    from made_flows.univariate import step_kernel

    monkeypatch.setattr(step_kernel, "__file__", "/nowhere/step_kernel.pyc")
    dispatch._engine.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "made_flows"):
            assert mf.MAF(3)().sample((2,)).shape == (2, 3)
    finally:
        dispatch._engine.cache_clear()
    assert ["without its sources" in record.getMessage() for record in caplog.records] == [True]
