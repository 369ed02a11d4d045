"""A whole flow in one call: the values of each transform by itself, however the flow changes."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import made_flows as mf
from made_flows.inverse import dispatch
from made_flows.transforms import autoregressive
from tests.helpers.flow_models import FLOWS, context_of, data_of
from tests.helpers.inverse_checks import same

pytest.importorskip("llvmlite")


def results(flow: mf.Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Noise of data with its log-determinant, and data of noise."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow inverses: that is not what is asked here
        noise, log_det = flow.to_noise(x, context)
        return noise, log_det, flow.generate(torch.sin(x), context)


def check(flow: mf.Flow, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
    """Compare with torch operations, transform by transform."""
    found = results(flow, x, context)
    with dispatch.backend("eager"):
        expected = results(flow, x, context)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        same(one, other)
    return found


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What grows by every call that was taken whole."""
    calls: list[bool] = []
    run = autoregressive.map_all

    def noted(*given: Any) -> Any:
        found = run(*given)
        if found is not None:
            calls.append(True)
        return found

    monkeypatch.setattr(autoregressive, "map_all", noted)
    return calls


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_a_flow_in_one_call(make: Callable[..., mf.Flow], batch: tuple[int, ...]) -> None:
    flow = make()
    check(flow, data_of(flow, *batch), context_of(flow, *batch[-1:]))


@pytest.mark.parametrize("name", ["MAF", "MAF, context", "IAF", "MAF, spline"])
def test_it_is_one_call(name: str, taken: list[bool]) -> None:
    flow = FLOWS[name]()
    results(flow, data_of(flow, 5), context_of(flow))
    kinds = [True] if flow.transforms[0].reads == "noise" else [True, True]
    assert taken == kinds  # the sequential direction with a log-determinant is not


def _all(change: Callable[[nn.Parameter], Any]) -> Callable[[mf.Flow], None]:
    def run(flow: mf.Flow) -> None:
        with torch.no_grad():
            for weight in flow.parameters():
                change(weight)

    return run


def _last(flow: mf.Flow) -> Any:
    return flow.transforms[-1].conditioner


def _transposed(flow: mf.Flow) -> None:
    weight = _last(flow).layers[1].weight
    weight.data = weight.data.t()


def _replaced(flow: mf.Flow) -> None:
    layer = _last(flow).layers[0]
    layer.weight = nn.Parameter(1.2 * layer.weight.detach())


def _loaded(flow: mf.Flow) -> None:
    other = copy.deepcopy(flow)
    _all(lambda weight: weight.mul_(1.2))(other)
    flow.load_state_dict(other.state_dict())


def _hooked(flow: mf.Flow) -> None:
    _last(flow).layers[0].register_forward_hook(lambda *given: 1.1 * given[-1])


def _way(flow: mf.Flow) -> Any:
    """The layer by which a context comes in; without one the first."""
    return _last(flow).output_context or _last(flow).layers[0]


def _own_method(flow: mf.Flow) -> None:
    transform: Any = flow.transforms[0]
    map_to_noise, generate = transform.to_noise, transform.generate
    transform.to_noise = lambda *given: (2 * map_to_noise(*given)[0], map_to_noise(*given)[1])
    transform.generate = lambda *given: 2 * generate(*given)


def _own_of(part: Callable[[mf.Flow], Any], name: str, other: Callable[..., Any]) -> Any:
    """A change that gives a part of a flow a method of its own, made of its class's."""

    def run(flow: mf.Flow) -> None:
        owner = part(flow)
        method = getattr(owner, name)
        setattr(owner, name, lambda *given: other(method(*given)))

    return run


def _own_maps(flow: mf.Flow) -> None:
    for name, shift in (("forward", 0.2), ("inverse", -0.2)):
        _own_of(lambda f: f.transforms[0].bijection, name, lambda r, s=shift: (r[0] + s, r[1]))(
            flow
        )


def _own_activation(flow: mf.Flow) -> None:
    _last(flow).activation = nn.LeakyReLU(0.3)


def _constant(flow: mf.Flow) -> None:
    flow.transforms[0].bijection.scale.bound = 0.1


CHANGES: dict[str, Callable[[mf.Flow], Any]] = {
    "in place": _all(lambda weight: weight.mul_(1.3)),
    "through .data": _all(lambda weight: weight.data.mul_(0.7)),
    ".data transposed": _transposed,
    "parameter replaced": _replaced,
    "load_state_dict": _loaded,
    "masks": lambda flow: _last(flow).resample_masks(torch.Generator().manual_seed(4)),
    "pruned": lambda flow: prune.random_unstructured(_last(flow).layers[1], "weight", 0.5),
    "weight norm": lambda flow: (
        parametrizations.weight_norm(_last(flow).layers[1]),
        _all(lambda weight: weight.mul_(1.3))(flow),
    ),
    "hook": _hooked,
    "way of the context hooked": lambda flow: _way(flow).register_forward_hook(
        lambda *given: 1.1 * given[-1] + 0.1
    ),
    "way of the context by NumPy": lambda flow: _way(flow).weight.detach().numpy().__imul__(1.5),
    "method": _own_method,
    "bijection's methods": _own_maps,
    "conditioner's method": _own_of(_last, "compute", lambda p: 1.1 * p),
    "scale's method": _own_of(
        lambda flow: flow.transforms[0].bijection.scale, "forward", lambda s: 0.5 * s
    ),
    "activation": _own_activation,
    "scale's constant": _constant,
    "another conditioner": lambda flow: setattr(
        flow.transforms[1], "conditioner", copy.deepcopy(flow.transforms[0].conditioner)
    ),
}


@pytest.mark.parametrize("name", ["MAF", "IAF, context"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_followed(change: Callable[[mf.Flow], Any], name: str) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 3), context_of(flow, 3)
    before = check(flow, x, context)
    change(flow)
    after = check(flow, x, context)
    assert not torch.equal(after[0], before[0])
    assert not torch.equal(after[2], before[2])


def test_a_hook_that_is_gone_again_and_a_copy() -> None:
    flow = FLOWS["MAF"]()
    x = data_of(flow, 3)
    before = check(flow, x)
    handle = _last(flow).register_forward_hook(lambda *given: 1.1 * given[-1])
    assert not torch.equal(check(flow, x)[0], before[0])
    handle.remove()
    for model in (flow, copy.deepcopy(flow)):
        for one, other in zip(check(model, x), before, strict=True):
            assert torch.equal(one, other)


def test_modes_and_gradients_take_each_by_itself(taken: list[bool]) -> None:
    flow = FLOWS["MAF"]()
    x = data_of(flow, 3)
    flow.to_noise(x)[0].sum().backward()
    torch.func.vmap(flow.generate)(x)
    with torch.no_grad(), torch.autocast("cpu"):
        flow.to_noise(x)
    assert not taken
    with pytest.raises(TypeError, match="dtype"):
        results(flow, x.float(), None)


def test_dropout_drops_in_the_parallel_direction_alone() -> None:
    flow = mf.MAF(4, transforms=2, hidden_features=(32,), dropout=0.5).train()
    x = torch.randn(3, 4)
    first, again = results(flow, x, None), results(flow, x, None)
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[2], again[2])


def test_a_context_without_memory_is_refused() -> None:
    flow, x = FLOWS["MAF, context"](), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        for ask in (flow.to_noise, flow.generate, flow.to_data):
            with pytest.raises(ValueError, match=r"context on the device of .*, cpu; got meta"):
                ask(x, torch.zeros(3, 3, dtype=torch.float64, device="meta"))


def test_in_threads() -> None:
    flows = [FLOWS["MAF"]() for _ in range(4)]
    for place, flow in enumerate(flows):
        _all(lambda weight, by=1 + 0.1 * place: weight.mul_(by))(flow)
    x = data_of(flows[0], 5)
    expected = [check(flow, x) for flow in flows]
    wrong: list[int] = []

    def run(place: int) -> None:
        for _ in range(20):
            found = results(flows[place], x, None)
            if not all(map(torch.equal, found, expected[place])):
                wrong.append(place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
