"""The kernels for GPUs equal D passes of the network; Triton's interpreter runs them here.

The tables are those of the sweep for CPUs, at sizes that an interpreter can do.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import made_flows as mf
from made_flows.inverse import HeadStep, dispatch, eager, ops, sequential_inverse
from made_flows.inverse.dispatch import backend
from made_flows.inverse.steps import BijectionStep
from made_flows.nn.activations import ACTIVATIONS
from made_flows.univariate.splines import RationalQuadraticSpline
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import NETWORKS, context_of, made_of
from tests.helpers.foreign_network import Foreign, ForeignDesign
from tests.helpers.inverse_checks import (
    STEPS,
    check_gradients,
    check_values,
    made_for,
    noise_of,
    owner_of,
    same,
)

pytest.importorskip("triton", reason="the kernels need Triton")

from made_flows.inverse.gpu import backend as gpu
from made_flows.inverse.gpu.steps import KINDS

pytestmark = pytest.mark.skipif(
    not gpu.INTERPRETED, reason="Triton was imported without TRITON_INTERPRET=1"
)

F64 = torch.float64
ONLY = ("triton",)


@pytest.fixture(autouse=True)
def _no_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the sweeps in torch operations fail: what works is a kernel's."""

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("the sweep in torch operations")

    monkeypatch.setattr(eager, "solve", fail)
    monkeypatch.setattr(eager, "adjoint", fail)


# ---------------------------------------------------------------------- equality with D passes


@pytest.mark.parametrize("name", STEPS)
def test_every_step(name: str) -> None:
    step = STEPS[name](3)
    made = made_for(step, features=3, hidden_features=(6,), order=[1, 2, 0])
    check_values(made, step, noise_of(step, 5, 3), choices=ONLY)


def test_every_kind_of_step_is_in_the_table() -> None:
    kernels = [make(3).kernel() for make in STEPS.values()]
    assert set(KINDS) == {kernel.kind for kernel in kernels if kernel is not None}


# Activations have a test of their own below.
@pytest.mark.parametrize("option", sorted(set(NETWORKS) - {"own activation", *ACTIVATIONS}))
def test_values_and_gradients_of_every_option(option: str) -> None:
    step = STEPS["sampling, Gaussian"](4)
    made = NETWORKS[option](4, parameters=2)
    check_gradients(made, step, noise_of(step, 3, 4), context_of(made, 3), choices=ONLY)


@pytest.mark.parametrize("name", ["sampling, categorical, various", "inverse, affine"])
@pytest.mark.parametrize("arguments", [{"features": 1}, {"features": 7, "hidden_features": (24,)}])
def test_other_widths(name: str, arguments: dict[str, Any]) -> None:
    step = STEPS[name](arguments["features"])
    made = made_for(step, context=2, direct=True, **arguments)
    noise = noise_of(step, 3, arguments["features"])
    check_values(made, step, noise, context_of(made, 3), choices=ONLY)


@pytest.mark.parametrize("rows", [0, 1, 20, 40])  # 40: a program takes two tiles
def test_any_number_of_rows(rows: int) -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3, context=2, hidden_features=(5, 7))
    noise = noise_of(step, rows, 3)
    check_gradients(made, step, noise, context_of(made, rows), choices=ONLY)


def test_rows_of_the_context_come_again() -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3, context=2, hidden_features=(5,), residual=True)
    check_values(made, step, noise_of(step, 4, 5, 3), context_of(made, 5), choices=ONLY)


@pytest.mark.parametrize("prefix", [1, 3, 6])
@pytest.mark.parametrize("name", ["sampling, Gaussian", "sampling, categorical, various"])
def test_a_known_prefix_is_kept(name: str, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_PANEL_UNITS", 4)  # so that whole panels are known
    step = STEPS[name](6)
    made = made_for(step, features=6, hidden_features=(9, 8), direct=True, residual=True)
    known = d_pass_inverse(made, step, noise_of(step, 3, 6))
    noise = noise_of(step, 3, 6)
    x = check_values(made, step, noise, known=known, prefix=prefix, choices=ONLY)
    kept = made.ranks < prefix
    assert torch.equal(x[:, kept], known[:, kept])


@pytest.mark.parametrize("panel", [1, 1000])
def test_any_panels(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_PANEL_UNITS", panel)
    step = STEPS["sampling, Gaussian"](5)
    made = made_for(step, features=5, hidden_features=(20, 5, 20), residual=True, direct=True)
    check_gradients(made, step, noise_of(step, 2, 5), choices=ONLY)


FOREIGN = [
    (("tanh", "sin", "relu"), {}),
    (("tanh", "elu", "gelu"), {"gates": True, "norms": True, "context": 2}),
    (("relu", "softplus", "silu"), {"residual": True, "norms": True, "direct": True}),
    (("elu", "elu", "elu"), {"residual": True, "gates": True, "context": 1, "biases": False}),
    (("tanh", "tanh"), {"sparse": True, "parameter_major": True, "transposed": True}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(1, len(FOREIGN)))
def test_networks_of_others(case: int) -> None:
    activations, options = FOREIGN[case]
    plain: dict[str, Any] = dict.fromkeys(
        ("residual", "gates", "norms", "direct", "sparse", "parameter_major", "transposed"), False
    )
    design = ForeignDesign(
        **{**plain, "biases": True, "context": 0, **options},
        features=4, parameters=2, widths=(7,) * len(activations), activations=activations,
        seed=case,
    )  # fmt: skip
    network = Foreign(design)
    step = STEPS["sampling, Gaussian"](4)
    noise, context = noise_of(step, 3, 4), context_of(network, 3)
    check_gradients(network, step, noise, context, choices=ONLY)


@pytest.mark.parametrize("name", ["sampling, Gaussian", "inverse, spline", "sampling, mixture"])
def test_float32_is_as_exact_as_d_passes_in_float32(name: str) -> None:
    step = STEPS[name](5)
    made = NETWORKS["context, residual, direct"](
        5, parameters=owner_of(step).outputs, hidden_features=(8, 6, 7)
    )
    noise, context = noise_of(step, 16, 5), context_of(made, 16)
    exact = d_pass_inverse(made, step, noise, context)
    made, _ = made.float(), owner_of(step).float()
    low = (noise.float(), None if context is None else context.float())
    with backend("triton"), torch.no_grad():
        ours = sequential_inverse(made, step, *low)
        theirs = d_pass_inverse(made, step, *low)
    assert ours.dtype == torch.float32
    agree = (theirs.double() - exact).abs().amax(dim=1) < 1e-2 * (1 + exact.abs().amax(dim=1))
    assert agree.float().mean() > 0.9
    error = (ours.double() - exact).abs()[agree]
    assert error.max() <= 4 * (theirs.double() - exact).abs()[agree].max() + 1e-5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_slopes_at_their_edges(name: str) -> None:
    """Large, small and zero arguments, which random networks seldom have."""
    at = torch.tensor([-200.0, -19.0, -1e-9, 0.0, 1e-9, 0.4, 0.6, 21.0, 90.0], dtype=F64)
    step = BijectionStep(mf.Affine("exp").double(), "forward")
    made = made_of(features=2, hidden_features=(9,), activation=name)
    with torch.no_grad():
        made.layers[0].weight.fill_(1.0)
        made.layers[0].bias.copy_(at)
        made.layers[1].weight.mul_(1e-2)
    check_gradients(made, step, 0.01 * noise_of(step, 2, 2), choices=ONLY)


# ---------------------------------------------------------------------- launches


class _Operations(TorchDispatchMode):
    """Lists operations of torch; views, which launch nothing, do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched; they do nothing, as the interpreter reads values."""
    found: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *_, **__: found.append(self.name)

    for name in ("pack_kernel", "solve_kernel", "adjoint_kernel"):
        monkeypatch.setattr(gpu, name, Counted(name))
    return found


def _drawn(model: Any, *context: Tensor) -> None:
    model(*context).sample((2,))


def _mapped(flow: mf.Flow, *context: Tensor) -> None:
    flow(*context).transform.to_noise(torch.zeros(3, flow.features), *context)


MADE = partial(mf.GaussianMixtureMADE, components=5)
DEFAULT = partial(mf.MAF, transforms=5)
LAUNCHES: dict[str, tuple[Callable[..., Any], Callable[..., None], int, int, int]] = {
    "sample of a MAF": (DEFAULT, _drawn, 5, 4, 10),  # three layers and the direct connections
    "with a context": (partial(DEFAULT, context=3), _drawn, 5, 4, 57),
    "residual": (partial(DEFAULT, residual=True), _drawn, 5, 5, 10),
    "splines": (partial(DEFAULT, bijection="spline", linear=False), _drawn, 5, 3, 10),
    "score of an IAF": (partial(mf.IAF, context=3, transforms=5), _mapped, 5, 3, 169),
    "sample of mixtures": (MADE, _drawn, 1, 3, 3),
    "of mixtures with a context": (partial(MADE, context=3), _drawn, 1, 3, 14),
}
"""Models from their features, calls, sweeps, packings for each, and what torch launches besides."""
NO_LAUNCH = ("new_empty", "promote_types", "_unsafe_view")


@pytest.fixture
def _counted_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells the inverse that nothing looks on: under a dispatch mode it would be one operator."""
    monkeypatch.setattr(ops, "is_untransformed", lambda _: True)


@pytest.mark.usefixtures("_counted_inside")
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_call_launches_as_much_whatever_the_number_of_features(
    name: str, launches: list[str]
) -> None:
    make, call, sweeps, packings, most = LAUNCHES[name]
    found = []
    for features in (2, 63):
        model = make(features, hidden_features=(64, 64))
        context = [torch.zeros(3, 3)] if model.context else []
        with backend("triton"), torch.no_grad():
            call(model, *context)  # makes plans
            launches.clear()
            with _Operations() as operations:
                call(model, *context)
        assert launches == [*["pack_kernel"] * packings, "solve_kernel"] * sweeps
        names = [name.split(".")[1] for name in operations.names]
        found.append([name for name in names if name not in NO_LAUNCH])
    assert found[0] == found[1]
    assert len(found[0]) <= most


# ---------------------------------------------------------------------- barriers


class _Races:
    """Finds what threads of a program could do in another order than the interpreter's.

    Between two barriers no address may be written and also read, or written twice, by different
    operations: different threads may do the one and the other.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import interpreter_builder as builder

        self.found: list[str] = []
        self.barriers = 0
        self._forget()
        load, store = builder.create_masked_load, builder.create_masked_store

        def masked_load(ptrs: Any, mask: Any, *more: Any) -> Any:
            addresses = self._of(ptrs, mask)
            self._expect("read", addresses & self.written)
            self.read |= addresses
            return load(ptrs, mask, *more)

        def masked_store(ptrs: Any, value: Any, mask: Any, *more: Any) -> Any:
            addresses = self._of(ptrs, mask)
            self._expect("written again", addresses & self.written)
            self._expect("written", addresses & self.read)
            self.written |= addresses
            return store(ptrs, value, mask, *more)

        def barrier() -> None:
            self.barriers += 1
            self._forget()

        monkeypatch.setattr(builder, "create_masked_load", masked_load)
        monkeypatch.setattr(builder, "create_masked_store", masked_store)

        def program(*place: int) -> None:
            self._forget()
            begin(*place)

        begin = builder.set_grid_idx
        monkeypatch.setattr(builder, "create_barrier", barrier)
        monkeypatch.setattr(builder, "set_grid_idx", program)

    def _forget(self) -> None:
        self.read: set[int] = set()
        self.written: set[int] = set()

    def _of(self, ptrs: Any, mask: Any) -> set[int]:
        return set(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)].tolist())

    def _expect(self, what: str, addresses: set[int]) -> None:
        if addresses:
            [place] = [f for f in traceback.extract_stack() if "inverse/gpu" in f.filename][-1:]
            self.found.append(f"{what} without a barrier: {Path(place.filename).name}")


@pytest.mark.parametrize("prefix", [0, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_features": (10, 4, 10), "residual": True, "direct": True, "context": 2},
        {"hidden_features": (), "context": 1},
        {"hidden_features": (40,), "adjacency": [[0] * 5] * 2 + [[1, 1, 0, 0, 0]] * 3},
    ],
)
def test_barriers_stand_between_what_threads_share(
    options: dict[str, Any], prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_PANEL_UNITS", 8)
    for name, rows in (("sampling, Gaussian", 20 if prefix else 40), ("sampling, categorical", 20)):
        step = STEPS[name](5)
        made = made_for(step, features=5, **options)
        noise, context = noise_of(step, rows, 5), context_of(made)  # 40 rows: two tiles
        known = d_pass_inverse(made, step, noise.detach(), context).detach()
        races = _Races(monkeypatch)
        with backend("triton"):
            x = sequential_inverse(made, step, noise, context, known=known, prefix=prefix)
            if step.differentiable:
                x.sum().backward()
        assert races.barriers > 0
        assert not races.found, sorted(set(races.found))
        monkeypatch.undo()


# ---------------------------------------------------------------------- never stale


def _changed_by_data(made: mf.MADE) -> None:
    made.layers[0].weight.data.mul_(1.3)


def _fewer_ones(made: mf.MADE) -> None:
    made.layers[0].mask.data[0] = 0


@pytest.mark.parametrize("change", [_changed_by_data, _fewer_ones])
def test_changes_are_seen_though_no_value_is_compared(change: Callable[[mf.MADE], None]) -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3, hidden_features=(5, 5))
    noise = noise_of(step, 2, 3)
    before = check_values(made, step, noise, choices=ONLY)
    change(made)
    after = check_values(made, step, noise, choices=ONLY)
    assert not torch.equal(before, after)


def _more_ones(made: mf.MADE) -> None:
    made.layers[0].mask.data.fill_(1)


def _more_outputs(made: mf.MADE) -> None:
    made.layers[-1].mask.data.fill_(1)


def _more_direct(made: mf.MADE) -> None:
    made.direct.mask.data.fill_(1)


def _other_ranks(made: mf.MADE) -> None:
    made.ranks.data.copy_(made.ranks.flip(0))


@pytest.mark.parametrize("change", [_more_ones, _more_outputs, _more_direct, _other_ranks])
def test_a_plan_that_masks_outgrew_unseen_gives_no_number(
    change: Callable[[mf.MADE], None],
) -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3, hidden_features=(5, 5), direct=True)
    noise = noise_of(step, 2, 3)
    check_values(made, step, noise, choices=ONLY)
    change(made)
    with backend("triton"), torch.no_grad():
        assert sequential_inverse(made, step, noise).isnan().any(dim=1).all()


def test_weights_behind_the_mask_change_nothing() -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3, hidden_features=(5, 5))
    noise = noise_of(step, 2, 3)
    before = check_values(made, step, noise, choices=ONLY)
    with torch.no_grad():
        for layer in made.layers:
            layer.weight[layer.mask == 0] = 1e30
        with backend("triton"):
            assert torch.equal(sequential_inverse(made, step, noise), before)


PLACES: dict[str, Callable[[mf.MADE], Tensor]] = {
    "first weight": lambda made: made.layers[0].weight,
    "last weight": lambda made: made.layers[-1].weight,
    "direct": lambda made: made.direct.weight,
    "bias": lambda made: made.layers[0].bias,
}


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter is NumPy's
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_nothing_finite_is_drawn_by_weights_that_are_not(
    place: Callable[[mf.MADE], Tensor], bad: float
) -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_for(step, features=3, hidden_features=(5, 20), direct=True)
    noise = noise_of(step, 2, 3)
    with torch.no_grad():
        place(made)[-1] = bad  # masked or not
        with backend("triton"):
            assert sequential_inverse(made, step, noise).isnan().all()


# ---------------------------------------------------------------------- around the kernels


@pytest.mark.filterwarnings("ignore")
def test_compilers_see_the_operator() -> None:
    torch._dynamo.reset()
    model = mf.GaussianMADE(3, hidden_features=(5,))
    step, noise = HeadStep(model.head), torch.randn(2, 3, 1)

    def call(u: Tensor) -> Tensor:
        return sequential_inverse(model.made, step, u).square().sum()

    with backend("triton"):
        leaf = noise.clone().requires_grad_()
        expected = torch.autograd.grad(call(leaf), leaf)[0]
        ours = torch.compile(call, backend="aot_eager", fullgraph=True)(leaf)
        same(torch.autograd.grad(ours, leaf)[0], expected, 1e-6)


def test_two_spline_sizes_live_side_by_side() -> None:
    for bins in (3, 8):
        step = BijectionStep(RationalQuadraticSpline(bins, 2.0).double(), "inverse")
        made = made_for(step, features=2, hidden_features=(4,))
        check_values(made, step, 3 * noise_of(step, 9, 2), choices=ONLY)


@pytest.fixture
def _not_interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    gpu.runs_on.cache_clear()
    yield
    gpu.runs_on.cache_clear()


@pytest.mark.usefixtures("_not_interpreted")
def test_the_cpu_needs_the_interpreter() -> None:
    model = mf.GaussianMADE(3, hidden_features=(5,))
    with backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        model().sample((2,))


def test_what_has_no_kernel_is_refused() -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = NETWORKS["own activation"](3)
    with backend("triton"), pytest.raises(RuntimeError, match="with the activations key"):
        sequential_inverse(made, step, noise_of(step, 2, 3))


@pytest.mark.parametrize(
    "failure",
    [gpu.FAILURES[0], RuntimeError, subprocess.CalledProcessError, AssertionError, OSError],
)
def test_a_kernel_that_cannot_be_built_gives_way(
    failure: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()  # torch operations are to work
    model = mf.GaussianMADE(3, hidden_features=(5,))
    step, noise = HeadStep(model.head), torch.randn(2, 3, 1)
    with backend("eager"):
        expected = sequential_inverse(model.made, step, noise)

    class Failing:
        launched = 0

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            Failing.launched += 1
            raise failure(1, "triton")

    monkeypatch.setattr(gpu, "pack_kernel", Failing())
    monkeypatch.setattr(gpu, "_BROKEN", {})
    monkeypatch.setattr(dispatch, "_backend_for", lambda _: gpu)
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "made_flows"):
        for _ in range(2):
            same(sequential_inverse(model.made, step, noise), expected, 1e-6)
    [record] = caplog.records
    assert "could not be built" in record.getMessage()
    assert Failing.launched == 1
    with backend("triton"), pytest.raises(gpu.FAILURES[0]):
        sequential_inverse(model.made, step, noise)


def test_memory_that_is_not_there_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "pack_kernel", Failing())
    step, noise = STEPS["sampling, Gaussian"](3), noise_of(STEPS["sampling, Gaussian"](3), 2, 3)
    with backend("triton"), torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        sequential_inverse(made_for(step, features=3, hidden_features=(5,)), step, noise)
    assert not gpu._BROKEN


def test_more_weights_than_32_bits_count_have_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_MOST_NUMBERS", 50)
    made = made_for(STEPS["sampling, Gaussian"](3), features=3, hidden_features=(5,))
    assert gpu.ready_for(made.spec()) is None


@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    """Down to the GPU's assembler, which needs no GPU, in a process without the interpreter."""
    command = [sys.executable, "-m", "tools.compile_gpu_kernels"]
    subprocess.run(command, check=True, timeout=500, cwd=Path(__file__).parents[3])
