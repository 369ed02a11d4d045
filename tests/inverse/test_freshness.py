"""The sequential inverse follows every change of the weights."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import made_flows as mf
from made_flows import _cache
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.inverse.dispatch import backend
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.spec import Structure
from tests.helpers.density_models import MODELS, NETWORKS, context_of, made_of, scatter
from tests.helpers.forks import hung_children, needs_fork
from tests.helpers.inverse_checks import (
    STEPS,
    check_gradients,
    check_values,
    each_backend,
    noise_of,
    same,
)

F64 = torch.float64

# ---------------------------------------------------------------------- never stale


def _in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)


def _one_weight(model: Any) -> None:
    with torch.no_grad():
        model.made.layers[-1].bias[1] += 0.5


def _steps(
    make: Callable[..., torch.optim.Optimizer], lr: float, **arguments: Any
) -> Callable[[Any], None]:
    def run(model: Any) -> None:
        optimizer = make(model.parameters(), lr=lr, **arguments)
        for _ in range(2):
            optimizer.zero_grad()
            x = torch.randn(8, 5, dtype=model.made.dtype)
            context = context_of(model, 8)
            (-model(context).log_prob(x).mean()).backward()
            optimizer.step()

    return run


def _load(model: Any) -> None:
    other = scatter(copy.deepcopy(model), 1.2)
    other.made.resample_masks(torch.Generator().manual_seed(8))
    model.load_state_dict(other.state_dict())


def _assign(model: Any) -> None:
    model.load_state_dict(scatter(copy.deepcopy(model)).state_dict(), assign=True)


def _through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.7)


def _one_weight_through_data(model: Any) -> None:
    model.made.layers[-1].bias.data[1] += 0.5


def _data_replaced(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def _through_numpy(model: Any) -> None:
    model.made.layers[-1].weight.detach().numpy()[...] *= 1.5


def _parameter_replaced(model: Any) -> None:
    layer = model.made.layers[0]
    layer.weight = nn.Parameter(layer.weight.detach() * 1.2)


def _to_vector_and_back(model: Any) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector * 0.9, model.parameters())


def _resample(model: Any) -> None:
    model.made.resample_masks(torch.Generator().manual_seed(4))


def _resample_degrees(model: Any) -> None:
    model.made.resample_masks(torch.Generator().manual_seed(4), order=False)


def _to_single_and_back(model: Any) -> None:
    model.float().double()


def _inference_mode(model: Any) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.1)


CHANGES: dict[str, Callable[[Any], None]] = {
    "in place": _in_place,
    "one weight": _one_weight,
    "SGD": _steps(torch.optim.SGD, 1e-4, momentum=0.5),
    "Adam": _steps(torch.optim.Adam, 0.01),
    "Adam, foreach": _steps(torch.optim.Adam, 0.01, foreach=True),
    "Adam, fused": _steps(torch.optim.Adam, 0.01, fused=True),
    "load_state_dict": _load,
    "load_state_dict, assign": _assign,
    "through .data": _through_data,
    "one weight through .data": _one_weight_through_data,
    ".data replaced": _data_replaced,
    "through NumPy": _through_numpy,
    "parameter replaced": _parameter_replaced,
    "to a vector and back": _to_vector_and_back,
    "resample_masks": _resample,
    "resample_masks, degrees": _resample_degrees,
    "to float32 and back": _to_single_and_back,
    "in inference mode": _inference_mode,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("option", ["plain", "context, residual, direct"])
def test_results_are_never_stale(option: str, change: Callable[[Any], None]) -> None:
    model = MODELS[f"Gaussian | {option}"](5)
    step = HeadStep(model.head)
    noise, context = noise_of(step, 4, 5), context_of(model, 4)
    before = check_values(model.made, step, noise, context)
    check_gradients(model.made, step, noise, context)
    for _ in range(3):
        change(model)
        after = check_values(model.made, step, noise, context)
        assert not torch.equal(after, before)
        check_gradients(model.made, step, noise, context)


def _pruned(layer: nn.Module, name: str) -> None:
    prune.random_unstructured(layer, name, 0.3)


COMPUTED: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruned": _pruned,
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("option", ["plain", "context, residual, direct", "mask weights"])
def test_weights_that_are_computed(option: str, compute: Callable[[nn.Module, str], Any]) -> None:
    model = MODELS[f"Gaussian | {option}"](5)
    for layer in [module for module in model.modules() if isinstance(module, MaskedLinear)]:
        compute(layer, "weight")
        if layer.mask_weight is not None:
            compute(layer, "mask_weight")
    step = HeadStep(model.head)
    noise, context = noise_of(step, 4, 5), context_of(model, 4)
    before = check_values(model.made, step, noise, context)
    check_gradients(model.made, step, noise, context)
    for change in (_in_place, _steps(torch.optim.Adam, 0.01)):
        change(model)
        # Before a forward pass of the network, which would bring weights up to date.
        at_once = sequential_inverse(model.made, step, noise, context)
        after = check_values(model.made, step, noise, context)
        same(at_once, after)
        assert not torch.equal(after, before)


def _last_weight(flow: Any) -> None:
    flow.transforms[0].conditioner.layers[-1].weight.data.view(torch.int64)[-1, -1] ^= 1 << 40


def _unread_weight(flow: Any) -> None:
    layer = flow.transforms[0].conditioner.layers[1]
    layer.weight.data[layer.mask == 0] = torch.nan  # which is to be seen in every output


def _mask(flow: Any) -> None:
    layer = flow.transforms[0].conditioner.layers[1]
    layer.mask.detach().numpy()[tuple(layer.mask.nonzero()[0])] = 0


def _in_another_thread(flow: Any) -> None:
    thread = threading.Thread(target=_through_data, args=(flow,))
    thread.start()
    thread.join()


BELIEVED: dict[str, Callable[[Any], None]] = {
    "all weights": _through_data,
    "a bit of the last weight": _last_weight,
    "what no unit reads": _unread_weight,
    "a mask": _mask,
    "in another thread": _in_another_thread,
}


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Make kernels believe small networks too, as they do large ones; list proofs that failed."""
    monkeypatch.setattr(_cache, "_LARGE", 0)
    monkeypatch.setattr(_cache, "_PIECE", 64)
    found: list[bool] = []
    holds = _cache.Proof.holds

    def holds_too(proof: _cache.Proof) -> bool:
        found.append(not holds(proof))
        return not found[-1]

    monkeypatch.setattr(_cache.Proof, "holds", holds_too)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(before)


@pytest.mark.parametrize("change", BELIEVED.values(), ids=BELIEVED)
def test_kernels_that_believe_the_weights_start_again_when_these_changed(
    change: Callable[[Any], None], failed: list[bool]
) -> None:
    flow = scatter(mf.MAF(5, transforms=2, hidden_features=(16, 16)).double())
    z = torch.randn(40, 5, dtype=F64)

    def answers(of: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        with torch.no_grad():
            x, density = of().rsample_and_log_prob((40,))
            return [x, density, of().log_prob(z), *of.transforms[0].to_noise(z)]

    answers(flow)
    del failed[:]
    answers(flow)
    assert failed
    assert not any(failed)
    change(flow)
    found = answers(flow)
    assert any(failed)
    for mine, right in zip(found, answers(copy.deepcopy(flow)), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=0, equal_nan=True)


@each_backend
def test_weights_changed_between_forward_and_backward_are_an_error(choice: str) -> None:
    model = MODELS["Gaussian | plain"](4)
    with backend(choice):
        x = model().rsample((3,))
        _in_place(model)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            x.sum().backward()


def test_structures_go_with_an_activation_of_ones_own() -> None:
    step = STEPS["sampling, Gaussian"](4)
    known = len(Structure._by_key), len(Structure._by_value)
    for _ in range(3):
        made = made_of(features=4, hidden_features=(8,), activation=lambda z: z.sin())
        check_values(made, step, noise_of(step, 3, 4))
        assert len(Structure._by_key) == known[0] + 1
        del made
        gc.collect()
    assert (len(Structure._by_key), len(Structure._by_value)) == known


def test_models_made_and_dropped_in_a_row_are_told_apart() -> None:
    step = STEPS["sampling, Gaussian"](4)
    noise = noise_of(step, 3, 4)
    for _ in range(100):  # new weights often lie where old ones lay
        check_values(made_of(features=4, hidden_features=(8,)), step, noise)


def test_in_inference_mode() -> None:
    model = MODELS["Gaussian | context"](4)
    step = HeadStep(model.head)
    noise, context = noise_of(step, 3, 4), context_of(model, 3)
    expected = check_values(model.made, step, noise, context)
    with torch.inference_mode():
        same(check_values(model.made, step, noise, context), expected)
        inside = made_of(features=4, context=2, hidden_features=(8,))
        for _ in range(3):
            check_values(inside, step, noise, context)
            scatter(inside)
    check_values(model.made, step, noise, context)


@pytest.mark.parametrize("constant", ["low", "high"])
def test_constants_of_a_scale_rule_may_be_changed(constant: str) -> None:
    step = STEPS["sampling, Gaussian, clamp"](4)
    made = NETWORKS["plain"](4)
    noise = noise_of(step, 3, 4)
    before = check_values(made, step, noise)
    setattr(step.head.scale, constant, 0.1)
    assert not torch.equal(check_values(made, step, noise), before)


def test_copies_are_inverted_with_their_own_weights_and_functions() -> None:
    model = MODELS["Gaussian | own activation"](4)
    noise = noise_of(HeadStep(model.head), 3, 4)
    before = check_values(model.made, HeadStep(model.head), noise)
    other = scatter(copy.deepcopy(model))
    after = check_values(other.made, HeadStep(other.head), noise)
    assert not torch.equal(after, before)
    same(check_values(model.made, HeadStep(model.head), noise), before)
    del model
    same(check_values(other.made, HeadStep(other.head), noise), after)


# ---------------------------------------------------------------------- through .data, 100 times


def _hidden(model: Any) -> list[Any]:
    return list(model.made.layers)


def _negate_biases(model: Any) -> None:
    for layer in _hidden(model):
        layer.bias.data.mul_(-1)


def _negate_a_row(model: Any) -> None:
    _hidden(model)[1].weight.data[3].neg_()


def _double(model: Any) -> None:
    for layer in _hidden(model):
        layer.weight.data.mul_(2)


def _transpose(model: Any) -> None:
    weight = _hidden(model)[1].weight
    weight.data = weight.data.t()


def _negate_output_bias(model: Any) -> None:
    _hidden(model)[-1].bias.data.neg_()


def _clip(model: Any) -> None:
    for layer in _hidden(model):
        sizes = layer.weight.data.abs().flatten()
        limit = float(sizes.kthvalue(int(0.999 * len(sizes))).values)
        layer.weight.data.clamp_(-limit, limit)


def _prune(model: Any) -> None:
    for layer in _hidden(model):
        layer.weight.data[torch.rand_like(layer.weight) < 0.001] = 0


TRIALS: dict[str, tuple[Callable[[Any], None], int]] = {
    "biases negated": (_negate_biases, 32),
    "one row negated": (_negate_a_row, 128),
    "weights doubled": (_double, 64),
    "transposed": (_transpose, 48),
    "bias of the output negated": (_negate_output_bias, 64),
    "clipped, 0.1 %": (_clip, 256),
    "pruned, 0.1 %": (_prune, 384),
}


@pytest.mark.parametrize(("change", "units"), TRIALS.values(), ids=TRIALS)
def test_a_change_through_data_is_noticed_in_all_of_100_trials(
    change: Callable[[Any], None], units: int
) -> None:
    stale = []
    for seed in range(100):
        torch.manual_seed(seed)
        model = scatter(mf.BernoulliMADE(8, hidden_features=(units, units)), 1.0)

        def sample(of: Any, seed: int = seed) -> torch.Tensor:
            torch.manual_seed(seed)
            parameters: torch.Tensor = of().sample((64,))
            return parameters

        before = sample(model)
        change(model)
        after = sample(model)
        if not torch.equal(after, sample(copy.deepcopy(model))):
            stale.append((seed, torch.equal(after, before)))
    assert not stale


_FORKS = """
import made_flows as mf
flows = [mf.MAF(4, transforms=1, hidden_features=(8,)) for _ in range(3)]
# Noise is given: torch's generator has a lock of its own, which a fork leaves locked.
noise = torch.zeros(2, 4)

@torch.no_grad()
def once():
    for flow in flows:
        (transform,) = flow.transforms
        transform.conditioner.layers[0].weight.data.add_(0.001)
        transform.generate(noise)

under_load = once
"""


@needs_fork
def test_children_that_are_forked_while_threads_sample_do_not_hang() -> None:
    assert hung_children(_FORKS, threads=3, timeout=600) == 0
