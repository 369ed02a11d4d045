"""Sweeps recorded in CUDA graphs equal the same sweeps as they are; a tape stands for the graph."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import made_flows as mf
from made_flows.inverse import dispatch, eager, ops, sequential_inverse, symbolic
from made_flows.inverse.dispatch import backend
from made_flows.inverse.gpu import graphs
from made_flows.inverse.problem import Problem
from tests.helpers.density_models import NETWORKS, context_of
from tests.helpers.inverse_checks import STEPS, check_values, made_for, noise_of, owner_of
from tests.helpers.nothing_read import NothingRead


class _Tape(NothingRead):
    """Does operations again, on the memory where they were done, as a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = super().__torch_dispatch__(function, types, arguments, keywords)
        # Memory, not tensors, which may get other memory later.
        arguments, keywords = tree_map_only(Tensor, Tensor.detach, (arguments, keywords or {}))
        self.done.append((function, arguments, keywords, result))
        return result

    def replay(self) -> None:
        for function, arguments, keywords, result in self.done:
            again = function(*arguments, **keywords)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[_Tape]:
    """Tapes in place of CUDA graphs, for sweeps in torch operations on the CPU."""
    made: list[_Tape] = []

    def recorded(run: Callable[[], Tensor], _: Tensor) -> Any:
        tape = _Tape()
        with tape:
            result = run()
        made.append(tape)
        return tape.replay, result, nullcontext

    monkeypatch.setattr(graphs, "recorded", recorded)
    monkeypatch.setattr(dispatch, "_backend_for", lambda _: None)
    monkeypatch.setattr(dispatch, "for_plans", lambda _: None)
    monkeypatch.setattr(dispatch, "_in_torch", lambda _: graphs)
    return made


def _check(
    made: Any, step: Any, noise: Tensor, context: Tensor | None = None, **known: Any
) -> None:
    """Values, and gradients where there are any, equal those of sweeps that are not recorded."""
    found = []
    for inverse in (graphs.solve, None):
        leaf = noise.detach().clone().requires_grad_(step.differentiable)
        with backend("auto"), pytest.MonkeyPatch.context() as patch:
            if inverse is None:
                patch.setattr(dispatch, "_in_torch", lambda _: dispatch.eager)
            x = sequential_inverse(made, step, leaf, context, **known)
            gradients = [p for p in made.parameters() if p.requires_grad]
            if step.differentiable:
                loss = x.double().square().sum()
                found.append([x, *torch.autograd.grad(loss, [leaf, *gradients], allow_unused=True)])
            else:
                found.append([x])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_recorded_or_left_as_it_is(name: str, tapes: list[_Tape]) -> None:
    step = STEPS[name](3)
    made = made_for(step, features=3, hidden_features=(6,), order=[1, 2, 0])
    for _ in range(4):
        _check(made, step, noise_of(step, 5, 3))
        with torch.no_grad():
            made.layers[0].weight.data.add_(0.1)  # read where it lies
    count = 0 if step.kernel() is None else 1
    assert len(tapes) == count + step.differentiable


@pytest.mark.parametrize("option", ["context, residual, direct", "deep", "graph"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_and_dtypes(option: str, dtype: torch.dtype, tapes: list[_Tape]) -> None:
    step = STEPS["sampling, Gaussian"](4)
    made = NETWORKS[option](4, parameters=2).to(dtype)
    owner_of(step).to(dtype)
    for _ in range(3):
        context = context_of(made, 3)
        context = None if context is None else context.to(dtype)
        _check(made, step, noise_of(step, 3, 4).to(dtype), context)
    assert len(tapes) == 2


def _network() -> tuple[Any, mf.MADE, Callable[[], Tensor]]:
    step = STEPS["sampling, Gaussian"](3)
    return step, made_for(step, features=3, hidden_features=(5,)), lambda: noise_of(step, 4, 3)


def _elsewhere(made: mf.MADE) -> None:
    made.layers[0].weight.data = made.layers[0].weight.data + 1.0


def _in_place(made: mf.MADE) -> None:
    made.layers[0].weight.data.numpy()[:] += 1.0


def _fewer_ones(made: mf.MADE) -> None:
    made.layers[0].mask[0] = 0


def _fewer_ones_unseen(made: mf.MADE) -> None:
    made.layers[0].mask.data[0] = 0


@pytest.mark.parametrize("change", [_elsewhere, _in_place, _fewer_ones, _fewer_ones_unseen])
@pytest.mark.usefixtures("tapes")
def test_a_recording_is_never_stale(change: Callable[[mf.MADE], None]) -> None:
    step, made, noise = _network()
    for _ in range(2):
        _check(made, step, noise())
    change(made)
    for _ in range(3):
        _check(made, step, noise())


@pytest.fixture
def _waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the masks for those of a device whose values a host would have to wait for."""
    monkeypatch.setattr(symbolic, "_is_waited_for", lambda _: True)
    monkeypatch.setattr(ops, "is_untransformed", lambda _: True)  # modes look into the operator


@pytest.mark.usefixtures("tapes", "_waited_for")
def test_masks_on_a_device_are_proved_and_not_read() -> None:
    step, made, noise = _network()

    def call(leaf: Tensor) -> Tensor:
        x = sequential_inverse(made, step, leaf.requires_grad_())
        return torch.cat([x, *torch.autograd.grad(x.square().sum(), leaf)[0].unbind(-1)])

    for _ in range(3):  # the second call records
        _check(made, step, noise())
    given = noise()
    with NothingRead():
        expected = call(given)
    made.layers[0].mask[-1] = 0  # which torch counts
    for _ in range(3):
        check_values(made, step, given, choices=("auto",))
    assert not torch.equal(call(given), expected)
    made.layers[0].mask.data[-1] = 1
    assert call(given)[:4].isnan().any(dim=1).all()


def test_a_known_prefix_and_other_shapes_have_recordings_of_their_own(tapes: list[_Tape]) -> None:
    step, made, noise = _network()
    known = noise().squeeze(-1)
    for _ in range(2):
        for prefix in (0, 1, 2):
            _check(made, step, noise()[:3], known=known[:3], prefix=prefix)
    assert len(tapes) == 3 + 1
    for rows in (5, 6, 5, 6):  # no recording makes room for another
        _check(made, step, noise_of(step, rows, 3))
    assert len(tapes) == 3 + 1


def test_what_may_run_code_of_others_is_not_recorded(tapes: list[_Tape]) -> None:
    step, _, noise = _network()
    made = NETWORKS["own activation"](3, parameters=2)
    for _ in range(3):
        _check(made, step, noise())
    assert not tapes


def test_a_sweep_that_is_recorded_by_others_is_not_recorded_again(
    tapes: list[_Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, made, noise = _network()
    monkeypatch.setattr(graphs, "is_recorded", lambda _: True)
    for _ in range(3):
        _check(made, step, noise())
    assert not tapes


@pytest.mark.usefixtures("tapes")
def test_what_cannot_be_recorded_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step, made, noise = _network()

    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "recorded", fail)
    with caplog.at_level(logging.WARNING, "made_flows"), torch.no_grad():
        for _ in range(4):
            assert sequential_inverse(made, step, noise()).isfinite().all()
    [record] = caplog.records
    assert "not permitted" in record.getMessage()
    mask = weakref.ref(made.layers[0].mask)
    del made
    gc.collect()
    assert mask() is None


@pytest.mark.usefixtures("tapes")
def test_threads_take_turns() -> None:
    step, made, noise = _network()
    inputs = [noise() for _ in range(40)]
    with torch.no_grad():
        expected = [sequential_inverse(made, step, each) for each in inputs]
        found: list[list[Tensor]] = [[], []]

        def work(place: int) -> None:
            with torch.no_grad():
                found[place] += [sequential_inverse(made, step, each) for each in inputs]

        threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for values in found:
        assert all(map(torch.equal, values, expected))


def test_only_calls_on_a_gpu_that_leave_the_choice_are_recorded() -> None:
    assert dispatch._in_torch(torch.zeros(1)) is dispatch.eager


HOST = ("promote_types", "scalar_tensor")


class _Counted(TorchDispatchMode):
    """Counts operations; views, and memory that nothing is written to, launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        self.count += not function.is_view and "empty" not in name and name not in HOST
        return function(*arguments, **(keywords or {}))


def _launched(call: Callable[[], Any]) -> int:
    with torch.no_grad(), _Counted() as counted:
        call()
    return counted.count


@pytest.mark.usefixtures("_waited_for")
@pytest.mark.parametrize("name", ["sampling, Gaussian", "inverse, affine", "inverse, spline"])
@pytest.mark.parametrize("option", ["plain", "context, residual, direct", "deep"])
def test_a_sweep_launches_no_more_than_passes_of_the_network(name: str, option: str) -> None:
    """So that it is the better one of the two, as it multiplies less: the rule is this count."""
    step = STEPS[name](24)
    made = NETWORKS[option](24, parameters=owner_of(step).outputs)
    noise, context = noise_of(step, 3, 24), context_of(made, 3)
    problem = Problem(made.spec(context), step, noise)
    eager.solve(problem)  # analyses masks
    x = torch.zeros(3, 24, dtype=noise.dtype)
    one = _launched(lambda: step(noise, made.compute(x, context)))
    assert _launched(lambda: eager.solve(problem)) <= 24 * one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_half_precision_on_a_gpu() -> None:
    step, made, noise = _network()
    owner_of(step).to("cuda", torch.bfloat16)
    made.to("cuda", torch.bfloat16)
    for _ in range(4):
        low = noise().to("cuda", torch.bfloat16)
        with torch.no_grad():
            x = sequential_inverse(made, step, low)
            with backend("eager"):
                torch.testing.assert_close(x, sequential_inverse(made, step, low))
            made.layers[0].weight.data.add_(0.1)
