"""A linear layer whose weights live where a mask says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from made_flows._cache import TensorCache
from made_flows._checks import expect
from made_flows._torch import (
    class_of,
    has_global_hooks,
    has_gradient_hooks,
    is_forward_mode,
    is_untransformed,
    module_of_same_parts,
)
from made_flows.nn.block_linear import SMALLEST, Block, block_linear, blocks_of

_BLOCKS: TensorCache[tuple[Block, ...] | None] = TensorCache(size=1024)
_NUMBERS: TensorCache[Tensor] = TensorCache(size=1024)
"""Of masks of large layers. To compare a mask with what it was takes a fraction of the time of
reading its weights."""

_LARGE = 2**16
"""Weights of which a product with booleans, which are converted first, takes half as long again as
one with numbers that were kept."""


RowMask: TypeAlias = Callable[[Tensor, "MaskedLinear"], Tensor]
"""A mask that differs from row to row: it applies a layer, (..., inputs) -> (..., outputs)."""


class MaskedLinear(nn.Module):
    r"""A masked affine map :math:`y = (M \odot W)\, x + b`.

    Args:
        mask: boolean (outputs, inputs); True where a weight lives.
        bias: whether there is a bias.
        mask_weights: whether a matrix U adds :math:`(M \odot U)\, 1` to the bias, so that a unit
            can tell an input that it may not read from one that is zero (Germain et al. 2015,
            section 4.2). It starts at zero.

    The mask is a boolean buffer: it moves and is saved with the weights. A call may bring a mask of
    its own. Rows of ``weight`` start uniform with variance 1 / (number of inputs
    the row may read), so that units with few inputs start at the same scale as those with many.

    Example:
        >>> layer = MaskedLinear(torch.tensor([[True, False], [True, True]]))
        >>> layer(torch.ones(5, 2)).shape
        torch.Size([5, 2])
    """

    mask: Tensor
    bias: nn.Parameter | None
    mask_weight: nn.Parameter | None

    def __init__(self, mask: Tensor, bias: bool = True, mask_weights: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = mask.shape
        # Booleans, since whether packed weights still hold is known by reading both in every call.
        self.register_buffer("mask", mask.bool())
        self.weight = nn.Parameter(torch.empty(mask.shape))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.out_features)) if bias else None
        )
        self.has_mask_weights = bool(mask_weights)
        self.register_parameter(
            "mask_weight", nn.Parameter(torch.empty(mask.shape)) if mask_weights else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(
        self, gain: float = 1.0, extra_inputs: int | Tensor = 0, zero_bias: bool = False
    ) -> None:
        """Draw weights anew.

        Args:
            gain: factor on the standard deviation of weights and bias.
            extra_inputs: how many inputs the same units read through another layer, a number or
                one for each row, (outputs, 1).
            zero_bias: whether the bias starts at zero.
        """
        visible = (self.mask.sum(dim=1, keepdim=True) + extra_inputs).clamp(min=1)
        bound = (3.0 / visible).sqrt()
        self.weight.uniform_(-1, 1).mul_(bound * gain)
        if self.mask_weight is not None:
            self.mask_weight.zero_()
        if self.bias is not None:
            # Spread the kinks of the units over the data, as torch.nn.Linear does.
            spread = (bound / 3**0.5).squeeze(1) * gain
            self.bias.uniform_(-1, 1).mul_(0.0 if zero_bias else spread)

    def forward(self, x: Tensor, mask: Tensor | RowMask | None = None) -> Tensor:
        """Apply the map, (..., inputs) -> (..., outputs), under another mask where one is given."""
        if mask is not None and not isinstance(mask, Tensor):
            return mask(x, self)
        bias = self.full_bias(mask) if self.has_mask_weights else self.bias
        blocks = self._blocks_for(x) if mask is None else None
        if blocks is not None:
            return block_linear(x, self.weight, bias, self.factors(), blocks)
        # In every call: to know that a masked weight that was kept is still true means reading
        # both, which is what the product does, and on a GPU to wait for the answer too.
        return F.linear(x, self.weight * (self.factors() if mask is None else mask), bias)

    def offset(self, mask: Tensor | None = None) -> Tensor | None:
        """Compute what a mask (..., outputs, inputs), or the own, adds to the bias: (..., outputs).

        None without mask weights.
        """
        if self.mask_weight is None:
            return None
        return (self.mask_weight * (self.factors() if mask is None else mask)).sum(dim=-1)

    def full_bias(self, mask: Tensor | None = None) -> Tensor | None:
        """Compute the bias with what the mask adds to it."""
        offset = self.offset(mask)
        if offset is None or self.bias is None:
            return self.bias if offset is None else offset
        return self.bias + offset

    def factors(self) -> Tensor:
        """Return the mask as what weights are quickly multiplied by: numbers, if it is large."""
        mask, dtype = self.mask, self.weight.dtype
        if mask.dtype != torch.bool:
            return mask.to(dtype)  # the weights' precision counts, also where a mask has more
        if mask.numel() < _LARGE or mask.device.type != "cpu":
            return mask
        return _NUMBERS.get(dtype, [mask], lambda: mask.to(dtype))

    def _blocks_for(self, x: Tensor) -> tuple[Block, ...] | None:
        """Find the blocks of the mask where leaving empty ones out pays: large, and on the CPU."""
        if (
            self.in_features * self.out_features < SMALLEST
            or x.device.type != "cpu"
            or not is_untransformed(x)
            or torch.is_autocast_enabled("cpu")
            or is_forward_mode()  # which products of blocks do not have
            # Tensors made in inference mode cannot be kept for a backward pass.
            or self.mask.is_inference()
            or self.weight.is_inference()
        ):
            return None
        mask = self.mask
        return _BLOCKS.get(None, [mask], lambda: blocks_of(mask))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: dict[str, Any], *others: Any
    ) -> None:
        found, errors = state_dict.get(f"{prefix}mask"), others[-1]
        copied = self.mask.dtype == torch.bool and not metadata.get("assign_to_params_buffers")
        if copied and isinstance(found, Tensor) and found.is_floating_point() and not found.is_meta:
            wrong = found[(found != 0) & (found != 1)]
            if len(wrong):
                errors.append(f"Expected {prefix}mask of zeros and ones; got {float(wrong[0])}")
                return
        super()._load_from_state_dict(state_dict, prefix, metadata, *others)

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_features}, {self.out_features}{bias}"


def masked(layer: nn.Module, mask: Tensor) -> nn.Module:
    """Make a layer of the same weights, not copies of them, under another mask.

    Of a module that wraps a masked layer, with the mask of that one.

    Raises:
        ValueError: for a module in which there is no such mask.
    """
    own = mask_of(layer)

    def copied(module: nn.Module) -> nn.Module:
        if all(own is not buffer for buffer in module.buffers()):
            return module
        other = module_of_same_parts(module)
        for name, buffer in module._buffers.items():
            other._buffers[name] = mask.to(own) if buffer is own else buffer
        for name, child in module._modules.items():
            other._modules[name] = None if child is None else copied(child)
        return other

    return copied(layer)


def mask_of(layer: nn.Module) -> Tensor:
    """Return the mask of a layer, or of the one that it wraps.

    Raises:
        ValueError: for a module in which there is none.
    """
    masks = [part._buffers["mask"] for part in layer.modules() if "mask" in part._buffers]
    expect(len(masks) == 1, "a layer", "with one mask in it", type(layer).__name__)
    return cast(Tensor, masks[0])


def takes_mask(layer: nn.Module) -> bool:
    """Tell whether a layer can be called with a mask; what wraps a masked one may take none."""
    if type(layer).forward is MaskedLinear.forward and "forward" not in vars(layer):
        return True
    try:
        inspect.signature(layer.forward).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def returns_fresh(layer: Any) -> bool:
    """Say whether nobody but its caller holds what a layer returns, so that it may be overwritten.

    A hook may have kept it, and a subclass or a wrapper may return one of its arguments.
    """
    # Nor may the result of a layer with backward hooks: torch gives a view of it.
    if not isinstance(layer, nn.Module):
        return True  # a function, which promises it
    return class_of(layer) is MaskedLinear and not (
        layer._forward_hooks or has_global_hooks() or has_gradient_hooks([layer])
    )


def run_weight_hooks(layers: Iterable[nn.Module]) -> None:
    """Bring weights of layers up to date that are computed before every forward, as pruned ones."""
    for layer in layers:
        for hook in tuple(layer._forward_pre_hooks.values()):
            if is_weight_hook(hook):
                hook(layer, ())


def is_weight_hook(hook: Any) -> bool:
    """Say whether a forward pre-hook does nothing but compute a weight, as pruning's does."""
    if isinstance(hook, SpectralNorm):
        return False  # in training it improves its estimate, too
    name = getattr(hook, "_tensor_name", getattr(hook, "name", None))
    return isinstance(name, str) and name in ("weight", "bias", "mask_weight")
