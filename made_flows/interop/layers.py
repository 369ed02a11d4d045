"""One layer of a foreign masked network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows._cache import TensorCache
from made_flows.nn.activations import (
    activation_code,
    activation_name,
    is_elementwise,
    make_activation,
)
from made_flows.nn.spec import LayerSpec
from made_flows.nn.validation import NotUnderstoodError

IDENTITY = nn.Identity()

OfContext = Callable[[Tensor], Tensor]


@dataclass
class ForeignLayer:
    """A masked linear layer of a foreign network, and what happens around it.

    Args:
        linear: the module; it has a weight, a mask and a bias (or None).
        activation: what is applied to its result, see :func:`elementwise`.
        adds_to: the earlier layer whose result is added to this one's, or -1.
        norm: batch normalisation between the result and the activation.
        reads_norm: batch normalisation of what the layer reads.
        base: what a context (rows, C) adds to the result.
        gate: what a context multiplies the result with.
        columns: which of the weight's columns read the features; the others read the context.
        rows: in which order the weight's rows are wanted, None for the order they are in.
    """

    linear: Any
    activation: nn.Module = IDENTITY
    adds_to: int = -1
    norm: nn.BatchNorm1d | None = None
    reads_norm: nn.BatchNorm1d | None = None
    base: OfContext | None = None
    gate: OfContext | None = None
    columns: slice | None = None
    rows: Tensor | None = None
    _kept: TensorCache[tuple[Tensor, ...]] = field(default_factory=lambda: TensorCache(size=4))
    """Of what is made of the layer's tensors: the inverse knows a network by the identity of its
    tensors, so that they may not be others in every call."""

    def spec(self, context: Tensor | None) -> LayerSpec:
        """Describe the layer, with what a context (rows, C) contributes."""
        weight, mask, bias = self._weights()
        scale, shift = (None, None) if self.norm is None else self._normed(self.norm)
        base, gate = (
            None if context is None or of is None else of(context) for of in (self.base, self.gate)
        )
        name = activation_name(self.activation)
        return LayerSpec(weight, mask, bias, scale, shift, base, gate, name, self.adds_to)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weight, mask and bias: of the columns that read features, batch norm folded in."""
        weight, mask, bias = self.linear.weight, self.linear.mask, self.linear.bias
        if self.columns is not None:
            take = partial(_columns, weight, mask, self.columns)
            weight, mask = self._kept.get("columns", [weight, mask], take)
        if self.reads_norm is not None:
            normed = self._normed(self.reads_norm)
            parts = [part for part in (weight, mask, bias, *normed) if part is not None]
            weight, bias = self._kept.get(
                "folded", parts, partial(_folded, weight, mask, bias, *normed)
            )
        if self.rows is not None:
            parts = [part for part in (weight, mask, bias) if part is not None]
            sort = partial(_rows, parts, self.rows)
            weight, mask, *rest = self._kept.get("rows", [*parts, self.rows], sort)
            bias = rest[0] if rest else None
        return weight, mask, bias

    def context_term(self, context: Tensor) -> Tensor:
        """Return what the columns that read the context add, (rows, units)."""
        columns = self.columns or slice(0)
        start, stop, _ = columns.indices(self.linear.weight.shape[1])
        rest = slice(0, start) if start else slice(stop, None)
        return F.linear(context, self.linear.weight[:, rest] * self.linear.mask[:, rest])

    def _normed(self, norm: nn.BatchNorm1d) -> tuple[Tensor, ...]:
        own = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        parts = [part for part in own if part is not None]
        # What is None among them shows in which tensors they are.
        return self._kept.get(("norm", norm.eps), parts, partial(_scale_and_shift, norm))


def _columns(weight: Tensor, mask: Tensor, columns: slice) -> tuple[Tensor, ...]:
    return weight[:, columns].contiguous(), mask[:, columns].contiguous()


def _folded(
    weight: Tensor, mask: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, ...]:
    """Weight and bias with the normalisation of what a layer reads folded in."""
    constant = (weight * mask) @ shift
    return weight * scale, constant if bias is None else constant + bias


def _rows(parts: Sequence[Tensor], order: Tensor) -> tuple[Tensor, ...]:
    return tuple(part[order.to(part.device)] for part in parts)


def _scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Express batch normalisation in evaluation mode as a scale and a shift."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise NotUnderstoodError("batch normalisation keeps no running statistics")
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return scale.detach(), shift.detach()


def elementwise(activation: Any) -> nn.Module:
    """Make a module of an activation, after a test that it treats every unit by itself and alike.

    Raises:
        NotUnderstoodError: if it is not elementwise, so that it cannot be applied to some units.
    """
    if not isinstance(activation, nn.Module) and not callable(activation):
        raise NotUnderstoodError(f"its activation is {activation!r}")
    if activation_code(activation) is None and not is_elementwise(activation):
        name = getattr(activation, "__name__", type(activation).__name__)
        raise NotUnderstoodError(f"its activation {name} is not elementwise")
    return make_activation(activation)


def expect_stream_kept(activation: Any, units: int, like: Tensor) -> None:
    """Raise if an activation works in place where a residual block still needs what it reads.

    The block then adds to what the activation left there, which is another network than the one
    of its layers.

    Args:
        activation: a module or function, the first part of a residual block.
        units: how many units it is applied to.
        like: a tensor of the network's dtype and device.

    Raises:
        NotUnderstoodError: if it works in place.
    """
    z = torch.linspace(-2, 2, units, dtype=like.dtype, device=like.device)
    kept = z.clone()
    with torch.no_grad():
        activation(z[None])
    if not torch.equal(z, kept):
        raise NotUnderstoodError("its activation works in place, over what residual blocks add to")
