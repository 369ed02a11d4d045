"""Masked linear layers: the blocks of large masks are those of the mask as it is now."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import made_flows as mf
from made_flows.nn import block_linear
from made_flows.nn.linear import MaskedLinear

N = 450  # large enough for products by blocks


def _mask() -> Tensor:
    """A random block-triangular mask."""
    rows, columns = torch.randint(1, 40, (N, 1)), torch.randint(40, (N,)).sort().values
    return rows.sort(dim=0).values > columns


def _assigned(layer: MaskedLinear) -> None:
    layer.mask = _mask().float()


def _assigned_fractions(layer: MaskedLinear) -> None:
    layer.mask = 0.5 * _mask()


def _assigned_doubles(layer: MaskedLinear) -> None:
    layer.mask = 0.3 * _mask().double()


def _assigned_to_state(layer: MaskedLinear) -> None:
    layer.load_state_dict({**layer.state_dict(), "mask": _mask().float()}, assign=True)


def _loaded(layer: MaskedLinear) -> None:
    layer.load_state_dict({**layer.state_dict(), "mask": _mask().float()})


def _through_data(layer: MaskedLinear) -> None:
    layer.mask.data.copy_(_mask())


def _data_replaced(layer: MaskedLinear) -> None:
    layer.mask.data = _mask().float()


def _one_connection_through_data(layer: MaskedLinear) -> None:
    layer.mask.data[0, N - 1] = 1


def _flipped(layer: MaskedLinear) -> None:
    layer.mask.data = layer.mask.data.flip(0, 1).t()


CHANGES: dict[str, Callable[[MaskedLinear], None]] = {
    "assigned": _assigned,
    "fractions assigned": _assigned_fractions,
    "numbers of another precision assigned": _assigned_doubles,
    "assigned by load_state_dict": _assigned_to_state,
    "loaded": _loaded,
    "through .data": _through_data,
    ".data replaced": _data_replaced,
    "one connection through .data": _one_connection_through_data,
    "flipped": _flipped,
}


def _check(layer: MaskedLinear) -> None:
    x = torch.randn(3, N, requires_grad=True)
    expected = x @ (layer.weight * layer.mask.to(x.dtype)).t() + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    parameters = (x, layer.weight)
    found = torch.autograd.grad(layer(x).square().sum(), parameters)
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_map_follows_the_mask(change: Callable[[MaskedLinear], None]) -> None:
    layer = MaskedLinear(_mask())
    assert block_linear.blocks_of(layer.mask) is not None
    _check(layer)
    for _ in range(3):
        change(layer)
        _check(layer)
        _check(copy.deepcopy(layer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mask_weights", [False, True])
def test_the_precision_is_that_of_the_weights(dtype: torch.dtype, mask_weights: bool) -> None:
    layer = MaskedLinear(torch.ones(2, 3, dtype=torch.bool), mask_weights=mask_weights).to(dtype)
    layer.mask = layer.mask * 0.5  # in float32
    assert layer(torch.ones(4, 3, dtype=dtype)).dtype == dtype


def test_what_is_first_called_in_inference_mode_can_be_trained() -> None:
    layer = MaskedLinear(_mask())
    with torch.inference_mode():
        layer(torch.randn(2, N))
    _check(layer)


def test_a_layer_made_in_inference_mode_passes_gradients_on() -> None:
    with torch.inference_mode():
        layer = MaskedLinear(_mask())
    x = torch.randn(3, N, requires_grad=True)
    expected = x @ (layer.weight * layer.mask).t() + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_fractions_are_not_lost_where_a_mask_is_loaded() -> None:
    layer = MaskedLinear(torch.ones(2, 3, dtype=torch.bool))
    state = {**layer.state_dict(), "mask": torch.tensor([[0.0, 1.0, 0.25], [1.0, 1.0, 1.0]])}
    with pytest.raises(RuntimeError, match=r"Expected mask of zeros and ones; got 0\.25"):
        layer.load_state_dict(state)
    assert layer.mask.all()
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer.mask, state["mask"])
    assert torch.equal(layer.state_dict()["mask"], state["mask"])
    other = 2 * state["mask"]
    layer.load_state_dict({**state, "mask": other})  # numbers into numbers
    assert torch.equal(layer.mask, other)


# ---------------------------------------------------------------------- launches of a pass


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


def test_a_pass_launches_three_operations_a_layer() -> None:
    """On a GPU launches count: the mask's product is one, and nothing is read back."""
    made, x = mf.MADE(5, hidden_features=(16, 16), parameters=2), torch.randn(3, 5)
    with torch.no_grad(), _Operations() as operations:
        made(x)
    assert operations.names == [*["mul", "addmm", "relu_"] * 2, "mul", "addmm"]


def test_autocast_multiplies_masks_in_full_precision_and_layers_in_low() -> None:
    made = mf.MADE(5, hidden_features=(16, 16), parameters=2)
    x = torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        low = made(x)
    assert not torch.equal(low, made(x))
    torch.testing.assert_close(low, made(x), rtol=0.05, atol=0.05)
    low.sum().backward()
    for layer in made.layers:
        assert layer.weight.grad.dtype == torch.float32
        assert not layer.weight.grad[layer.mask == 0].any()
