"""What calls of the kernels ask of a host: no waiting, the right device and stream, graphs, tiles.

Most of it needs no GPU: a dispatch mode sees where values are read back, and a graph that records
is made believe. What only a GPU can show is marked ``gpu``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import made_flows as mf
from made_flows import _cache, _torch
from made_flows.inverse import ops, sequential_inverse
from made_flows.inverse.compiled.placement import context_of
from made_flows.inverse.dispatch import backend
from made_flows.inverse.symbolic import symbolic_for
from tests.helpers.inverse_checks import STEPS, made_for, noise_of, owner_of
from tests.helpers.nothing_read import NothingRead

pytest.importorskip("triton", reason="the kernels need Triton")

from triton.errors import TritonError

from made_flows.inverse.gpu import autotuning
from made_flows.inverse.gpu import backend as gpu

interpreted = pytest.mark.skipif(
    not gpu.INTERPRETED, reason="Triton was imported without TRITON_INTERPRET=1"
)
GAUSSIAN = STEPS["sampling, Gaussian"](3)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes tensors believe, when called, that a CUDA graph records on their device."""

    def record() -> None:
        for module in (_torch, _cache, gpu, autotuning):
            monkeypatch.setattr(module, "is_recorded", lambda _: True)

    return record


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets launches do nothing, as the interpreter reads values, and opens the operator."""

    class Nothing:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *_, **__: None

    for name in ("pack_kernel", "solve_kernel", "adjoint_kernel"):
        monkeypatch.setattr(gpu, name, Nothing())
    monkeypatch.setattr(ops, "is_untransformed", lambda _: True)


def _sampled(flow: mf.MAF, context: Tensor) -> None:
    with torch.no_grad():
        flow(context).sample((3,))


def _scored(flow: mf.MAF, context: Tensor) -> None:
    flow(context).log_prob(torch.zeros(3, 2, 4)).sum().backward()


def _reparametrized(flow: mf.MAF, context: Tensor) -> None:
    x, log_prob = flow(context).rsample_and_log_prob((3,))
    (x.sum() + log_prob.sum()).backward()


CALLS = {"sample": _sampled, "log_prob": _scored, "rsample_and_log_prob": _reparametrized}


@interpreted
@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_is_read_while_a_graph_records(
    call: Callable[[mf.MAF, Tensor], None], recorded: Callable[[], None]
) -> None:
    flow, context = mf.MAF(4, context=2, transforms=2, hidden_features=(8, 8)), torch.randn(2, 2)
    with backend("triton"):
        call(flow, context)  # makes plans
        recorded()
        with NothingRead():
            call(flow, context)


@interpreted
@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("name", ["sample", "rsample_and_log_prob"])
def test_nothing_is_read_where_no_values_are_to_be_checked(name: str) -> None:
    flow = mf.MAF(4, transforms=2, hidden_features=(8, 8))
    with backend("triton"):
        _unchecked(flow, name)
        with NothingRead():
            _unchecked(flow, name)


def _unchecked(flow: mf.MAF, name: str) -> None:
    drawn = getattr(flow(), name)((3,))
    if isinstance(drawn, tuple):
        sum(part.sum() for part in drawn).backward()


# ---------------------------------------------------------------------- graphs and streams


@interpreted
def test_a_graph_that_records_wants_a_plan_and_keeps_it(recorded: Callable[[], None]) -> None:
    known, unknown = (made_for(GAUSSIAN, features=3, hidden_features=(5,)) for _ in range(2))
    noise = noise_of(GAUSSIAN, 2, 3)
    with backend("triton"), torch.no_grad():
        before = sequential_inverse(known, GAUSSIAN, noise)
        recorded()
        assert torch.equal(sequential_inverse(known, GAUSSIAN, noise), before)
        with pytest.raises(RuntimeError, match="before a CUDA graph records"):
            sequential_inverse(unknown, GAUSSIAN, noise)
    [kept] = [p for p in gpu._RECORDED.values() if p.symbolic.structure is known.spec().structure]
    del known, unknown
    gc.collect()
    assert any(kept is plan for plan in gpu._RECORDED.values())
    gpu._RECORDED.clear()


@interpreted
def test_what_another_stream_made_is_kept_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made, noise = made_for(GAUSSIAN, features=3, hidden_features=(5,)), noise_of(GAUSSIAN, 2, 3)
    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "second")
    monkeypatch.setattr(Tensor, "record_stream", lambda _, stream: seen.append(stream))
    with backend("triton"), torch.no_grad():
        sequential_inverse(made, GAUSSIAN, noise)
        assert not seen
        monkeypatch.setattr(gpu, "_stream_of", lambda _: 7)
        sequential_inverse(made, GAUSSIAN, noise)
    assert seen
    assert set(seen) == {"second"}


def test_noise_and_weights_are_on_one_device() -> None:
    made = made_for(GAUSSIAN, features=3, hidden_features=(5,)).to("meta")
    with torch.no_grad(), pytest.raises(ValueError, match="noise on the device of the weights"):
        sequential_inverse(made, GAUSSIAN, noise_of(GAUSSIAN, 2, 3))


def test_noise_without_values_is_refused() -> None:
    """Of a model that was moved to ``meta`` and had weights assigned, it ended the process."""
    flow = mf.MAF(features=3, transforms=2)
    empty = mf.MAF(features=3, transforms=2).to("meta")
    empty.load_state_dict(flow.state_dict(), assign=True)
    with torch.no_grad(), pytest.raises(ValueError, match=r"weights, cpu; got meta .*model anew"):
        empty().sample((2,))


def test_what_a_context_contributes_lies_where_the_weights_do() -> None:
    made = made_for(GAUSSIAN, features=3, context=2, hidden_features=(5,))
    network = made.spec(torch.zeros(4, 2, dtype=torch.float64))
    away = replace(network, bases=[base.to("meta") for base in network.bases])
    with pytest.raises(ValueError, match="context on the device of the weights, cpu; got meta"):
        context_of(symbolic_for(network), away)
    away = replace(away, tensors=[tensor.to("meta") for tensor in network.tensors])
    values, rows = context_of(symbolic_for(network), away)
    assert (values.device.type, rows) == ("meta", 4)


PRECISIONS: dict[str, Callable[[], None]] = {
    "older": lambda: torch.set_float32_matmul_precision("high"),
    "newer": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}


@pytest.fixture
def _precision_kept() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_precision_kept")
@pytest.mark.parametrize("allow", PRECISIONS.values(), ids=PRECISIONS)
def test_tf32_only_where_torch_was_told_so_by_either_switch(allow: Callable[[], None]) -> None:
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert gpu._precision(single) == "ieee"
    allow()
    assert gpu._precision(single) == "tf32"
    assert gpu._precision(double) == "ieee"


STAND_INS: dict[str, Callable[[], Any]] = {
    "MAF": lambda: mf.MAF(4, hidden_features=(8,)),
    "splines, context": lambda: mf.MAF(4, context=2, bijection="spline", hidden_features=(8,)),
    "mixtures": lambda: mf.GaussianMixtureMADE(4, components=3, hidden_features=(8,)),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_compilers_may_draw_on_a_device_that_is_not_there(name: str) -> None:
    """As when a model is exported for a GPU by a machine without one."""
    model = STAND_INS[name]()
    with FakeTensorMode(), torch.no_grad():
        for module in model.modules():
            for place in (module._parameters, module._buffers):
                for key, tensor in place.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        kind = type(tensor)
                        place[key] = fake if kind is Tensor else nn.Parameter(fake)
        context = [torch.empty(3, 2, device="cuda")] if model.context else []
        x = model(*context).sample((5,))
    assert (x.device.type, x.shape[0], x.shape[-1]) == ("cuda", 5, 4)


# ---------------------------------------------------------------------- configurations


@interpreted
def test_numbers_do_not_depend_on_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    step = STEPS["sampling, Gaussian"](2)
    made = made_for(step, features=2, hidden_features=(20,)).float()
    noise = noise_of(step, 17, 2).float().requires_grad_()
    # The interpreter knows nothing of warps.
    unlike = {way[:-1]: way for way in autotuning.configs(32, noise)}.values()
    found = []
    for way in unlike:
        monkeypatch.setattr(gpu, "configs", lambda *_, way=way: [way])
        with backend("triton"):
            x = sequential_inverse(made, step, noise)
            found.append((x, *torch.autograd.grad(x.square().sum(), noise)))
    assert len(found) >= 3
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-5, atol=1e-6)


WAYS = autotuning.configs(32, torch.zeros(1))
FAILURES = (RuntimeError, torch.OutOfMemoryError, TritonError)  # a driver's, torch's, Triton's


class _Clock:
    """Says how long a launch takes; what has no time cannot be built."""

    def __init__(self) -> None:
        self.times: dict[autotuning.Config, float] = {}
        self.launched: list[autotuning.Config] = []

    def launch(self, way: autotuning.Config) -> None:
        self.launched.append(way)
        if way not in self.times:
            raise FAILURES[WAYS.index(way) % len(FAILURES)]("out of shared memory")

    def milliseconds(self, launch: Callable[[], None], _: Tensor) -> float:
        launch()
        return self.times[self.launched[-1]]

    def fastest(self, *kind: object) -> autotuning.Config:
        return autotuning.fastest(kind, WAYS, torch.zeros(1), self.launch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Clock:
    """A clock for a device on which launches can be timed, whose cache on disk is empty."""
    clock = _Clock()
    monkeypatch.setattr(autotuning, "_FOUND", {})
    monkeypatch.setattr(autotuning, "_may_be_timed", lambda _: True)
    monkeypatch.setattr(autotuning, "milliseconds", clock.milliseconds)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return clock


def test_the_fastest_tiles_are_found_once_for_a_kind_and_machine(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.times = {WAYS[1]: 2.0, WAYS[2]: 1.0, WAYS[3]: 3.0}  # the first cannot be built
    assert clock.fastest("solve", 3) == WAYS[2]
    assert clock.launched == WAYS
    clock.times = {}
    assert clock.fastest("solve", 3) == WAYS[2]
    monkeypatch.setattr(autotuning, "_FOUND", {})  # as in another process
    assert clock.fastest("solve", 3) == WAYS[2]
    assert clock.launched == WAYS
    for _ in range(2):
        with pytest.raises(TritonError, match="shared memory"):
            clock.fastest("solve", 4)
    assert clock.launched == 2 * WAYS


@pytest.mark.parametrize("text", ["", "[16, 32", "[1]", "[16, 16, 16, 16, 1]", "7", "\udcff"])
def test_tiles_kept_on_disk_that_are_none_are_found_anew(
    text: str, clock: _Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock.times = {WAYS[1]: 2.0, WAYS[2]: 1.0}
    for _ in range(2):
        assert clock.fastest("solve", 3) == WAYS[2]
        assert clock.launched == WAYS
        clock.launched = []
        [kept] = tmp_path.rglob("tiles.json")
        kept.write_bytes(text.encode(errors="surrogateescape"))
        monkeypatch.setattr(autotuning, "_FOUND", {})


def test_tiles_that_cannot_be_kept_on_disk_are_found(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    clock.times = {WAYS[2]: 1.0}
    assert clock.fastest("solve", 3) == WAYS[2]


def test_nothing_is_timed_where_the_host_may_not_wait(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotuning, "_may_be_timed", lambda _: False)
    assert clock.fastest("solve", 3) == WAYS[0]
    assert not clock.launched


def test_ways_are_few_and_what_needs_no_measurement_comes_first() -> None:
    for rows in (1, 40, 5000):
        for dtype in (torch.float32, torch.float64):
            found = autotuning.configs(rows, torch.zeros(1, dtype=dtype))
            assert 3 <= len(found) == len(set(found)) <= 5
            assert len({way.inputs for way in found}) == 1
            assert (found[0].block, found[0].warps) == (32, 4)


# ---------------------------------------------------------------------- on a GPU

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def _on(device: str) -> tuple[mf.MADE, Tensor, Tensor]:
    """A network on a device, its noise, and what a CPU makes of that."""
    made = made_for(GAUSSIAN, features=3, hidden_features=(9, 8)).float()
    noise = noise_of(GAUSSIAN, 40, 3).float()
    with torch.no_grad():
        expected = sequential_inverse(made, GAUSSIAN, noise)
    return made.to(device), noise.to(device), expected


class TestOnADevice:
    pytestmark = on_gpu

    def test_values_are_those_of_a_cpu(self) -> None:
        made, noise, expected = _on("cuda")
        with backend("triton"), torch.no_grad():
            x = sequential_inverse(made, GAUSSIAN, noise)
        torch.testing.assert_close(x.cpu(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [(name, torch.float32) for name in STEPS]
        + [(name, torch.float64) for name in ("sampling, Gaussian", "inverse, spline")],
    )
    def test_steps_and_gradients_are_those_of_a_cpu(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Kernels as machine code runs them: every step, and tiles, panels and blocks by twos."""
        monkeypatch.setattr(autotuning, "_may_be_timed", lambda _: False)  # one way, to build less
        step = STEPS[name](9)
        kernel = step.kernel()
        if kernel is None or not kernel.follows_rule:
            pytest.skip("the step has no kernel")
        made = made_for(
            step, features=9, context=2, hidden_features=(150, 20, 150), residual=True, direct=True
        )
        found = []
        for device in ("cpu", "cuda"):
            owner_of(step).to(device, dtype)
            made.to(device, dtype)
            torch.manual_seed(0)
            noise, context = noise_of(step, 40, 9), torch.randn(40, 2, dtype=torch.float64)
            leaf = noise.to(device, dtype).requires_grad_(step.differentiable)
            with backend("triton" if device == "cuda" else "eager"):
                x = sequential_inverse(made, step, leaf, context.to(device, dtype))
                wanted = [leaf, *made.parameters()] if step.differentiable else []
                total = x.square().sum()
                gradients = torch.autograd.grad(total, wanted) if wanted else ()
            found.append([each.detach().cpu() for each in (x, *gradients)])
        tolerance = 1e-9 if dtype == torch.float64 else 2e-3
        if step.differentiable:
            torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
        else:  # a number next to the boundary of two categories may fall on either side
            agree = (found[0][0] - found[1][0]).abs().amax(1) < tolerance
            assert agree.double().mean() > 0.9

    def test_calls_go_to_the_current_stream(self) -> None:
        made, noise, expected = _on("cuda")
        other = torch.cuda.Stream()
        with backend("triton"), torch.no_grad():
            sequential_inverse(made, GAUSSIAN, noise)
            torch.cuda.synchronize()
            with torch.cuda.stream(other):
                torch.cuda._sleep(500_000_000)
                late = noise.clone()  # nothing but the stream's order makes the call wait for it
                x = sequential_inverse(made, GAUSSIAN, late)
            assert not other.query()
            other.synchronize()
        torch.testing.assert_close(x.cpu(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["sample", "rsample_and_log_prob"])
    def test_no_call_waits_for_the_device(self, name: str) -> None:
        flow = mf.MAF(4, transforms=2, hidden_features=(8, 8)).to("cuda")
        _unchecked(flow, name)
        torch.cuda.set_sync_debug_mode("error")
        try:
            _unchecked(flow, name)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_graph_replays_with_the_weights_as_they_are(self) -> None:
        made, noise, _ = _on("cuda")
        graph = torch.cuda.CUDAGraph()
        with backend("triton"), torch.no_grad():
            sequential_inverse(made, GAUSSIAN, noise)
            with torch.cuda.graph(graph):
                x = sequential_inverse(made, GAUSSIAN, noise)
            for factor in (1.0, 1.5):
                made.layers[0].weight.data.mul_(factor)
                noise.neg_()
                graph.replay()
                torch.testing.assert_close(x, sequential_inverse(made, GAUSSIAN, noise))

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device at most")
    def test_calls_go_to_the_device_of_the_data(self) -> None:
        made, noise, expected = _on("cuda:1")
        with backend("triton"), torch.cuda.device(0):
            leaf = noise.requires_grad_()
            x = sequential_inverse(made, GAUSSIAN, leaf)
            x.sum().backward()
        assert x.device == leaf.grad.device == torch.device("cuda:1")
        torch.testing.assert_close(x.detach().cpu(), expected, rtol=1e-4, atol=1e-5)
