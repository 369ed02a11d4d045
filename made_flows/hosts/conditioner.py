"""A foreign masked network as the sequential inverse sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows.activations import activation_code, activation_name, make_activation
from made_flows.hosts.watch import Kept, NotUnderstoodError
from made_flows.inverse.cache import TensorCache
from made_flows.masks import adjacency_levels
from made_flows.network import Layer, Network

__all__ = ["IDENTITY", "HostConditioner", "HostLayer", "depends_on_mode", "elementwise"]

IDENTITY = nn.Identity()

OfContext = Callable[[Tensor], Tensor]


@dataclass
class HostLayer:
    """A masked linear layer of a host's network, and what happens around it.

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
    _kept: tuple[Kept, ...] = field(
        default_factory=lambda: (Kept(), Kept(), Kept(), Kept(), Kept())
    )

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weight, mask and bias: of the columns that read features, batch norm folded in."""
        weight, mask, bias = self.linear.weight, self.linear.mask, self.linear.bias
        columns, folded, _, of_reads, reordered = self._kept
        if self.columns is not None:
            weight, mask = columns.same(
                weight.detach()[:, self.columns].contiguous(), mask[:, self.columns].contiguous()
            )
        if self.reads_norm is not None:
            scale, shift = of_reads.same(*_scale_and_shift(self.reads_norm))
            constant = (weight * mask) @ shift
            weight, bias = folded.same(
                weight * scale, constant if bias is None else constant + bias
            )
        if self.rows is not None:
            order = self.rows.to(weight.device)
            parts = [part.detach()[order] for part in (weight, mask, bias) if part is not None]
            weight, mask, *rest = reordered.same(*parts)
            bias = rest[0] if rest else None
        return weight, mask, bias

    def tensors(self) -> list[Tensor]:
        """Weight, mask, bias, scale and shift, as far as there are any."""
        linear = self.linear
        if self.columns is None and self.reads_norm is None and self.rows is None:
            weight, mask, bias = linear.weight, linear.mask, linear.bias
        else:
            weight, mask, bias = self.weights()
        own = [weight, mask] if bias is None else [weight, mask, bias]
        return own if self.norm is None else [*own, *self.normed()]

    def of_context(self, context: Tensor) -> Tensor:
        """What the columns that read the context add, (rows, units)."""
        columns = self.columns or slice(0)
        start, stop, _ = columns.indices(self.linear.weight.shape[1])
        rest = slice(0, start) if start else slice(stop, None)
        return F.linear(context, self.linear.weight[:, rest] * self.linear.mask[:, rest])

    def normed(self) -> tuple[Tensor, ...]:
        """Scale and shift of the batch normalisation before the activation, if there is one."""
        return () if self.norm is None else self._kept[2].same(*_scale_and_shift(self.norm))


def _scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Batch normalisation in evaluation mode, as a scale and a shift."""
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


class HostConditioner:
    """A foreign masked network behind the methods of :class:`~made_flows.inverse.Conditioner`.

    Args:
        net: the network.
        layers: its hidden layers, then its output.
        direct: the layer that connects inputs to outputs, if there is one.
        features: number of features D.
        context: number of context variables that it takes; 0 for none.
        parameters: output rows of every feature.
        parameter_major: whether output rows are sorted by parameter and then feature.
        call: x (..., D) and context to parameters (..., D, K), by the network itself.

    Raises:
        NotUnderstoodError: if the masks are not autoregressive, or batch normalisation keeps no
            running statistics.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[HostLayer],
        *,
        features: int,
        parameters: int,
        call: Callable[[Tensor, Tensor | None], Tensor],
        context: int = 0,
        direct: HostLayer | None = None,
        parameter_major: bool = False,
    ) -> None:
        self.net = net
        self.layers = list(layers)
        self.direct = direct
        self.features, self.context = features, context
        self.counts = (parameters,)
        self.parameter_major = parameter_major
        self._call = call
        self._texts: dict[bool, str] = {}
        self._levels: TensorCache[Tensor] = TensorCache(digest=False, size=2)
        for layer in self.layers:
            if None in (part.running_mean for part in (layer.norm, layer.reads_norm) if part):
                raise NotUnderstoodError("batch normalisation keeps no running statistics")
        rows = self.layers[-1].linear.weight.shape[0]
        if rows != features * parameters:
            raise NotUnderstoodError(f"it has {rows} outputs for {features} x {parameters}")
        self._noisy = [module for module in net.modules() if depends_on_mode(module)]
        _ = self.ranks

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = self.layers[-1].linear.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.layers[-1].linear.weight.device
        return device

    @property
    def ranks(self) -> Tensor:
        """The level of every feature, read off the masks."""
        masks = [layer.linear.mask for layer in self.layers]
        if self.direct is not None:
            masks.append(self.direct.linear.mask)
        return self._levels.get(None, masks, self._read_levels)

    def _read_levels(self) -> Tensor:
        reaches: list[Tensor] = []
        reach = torch.eye(self.features, device=self.device)
        for layer in self.layers:
            reach = _reach(layer, reach)
            if layer.adds_to >= 0:
                reach = torch.maximum(reach, reaches[layer.adds_to])
            reaches.append(reach)
        if self.direct is not None:
            reach = torch.maximum(reach, _reach(self.direct, torch.eye(self.features).to(reach)))
        shape = (self.features, -1, self.features)
        if self.parameter_major:
            reach = reach.reshape(-1, self.features, self.features).transpose(0, 1)
        adjacency = reach.reshape(shape).amax(dim=1) > 0
        try:
            levels = adjacency_levels(adjacency)
        except ValueError as error:
            raise NotUnderstoodError(f"its masks are not autoregressive ({error})") from None
        return levels.to(self.device)

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Its parameters (..., D, K), by the network itself."""
        return self._call(x, context)

    def reordered(self, order: Tensor) -> HostConditioner:
        """The same network with the parameters of every feature in another order, in place."""
        feature = torch.arange(self.features)[:, None] * self.counts[0]
        self.layers[-1].rows = (feature + order).reshape(-1)
        call = self._call
        self._call = lambda x, context: call(x, context)[..., order]
        self._texts.clear()
        return self

    def steady(self) -> bool:
        """Whether the network computes the same in every call: no dropout, no batch statistics."""
        return not any(module.training for module in self._noisy)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's weights."""
        return self.net.parameters()

    def network(self, context: Tensor | None = None) -> Network:
        """Its layers, with what a context (rows, C) contributes."""
        without = context is None
        text = self._texts.get(without)
        if text is None:
            text = self._texts[without] = self._structure(context)
        tensors, bases = [self.ranks], []
        for layer in self.layers:
            tensors += layer.tensors()
            if context is not None:
                bases += [of(context) for of in (layer.base, layer.gate) if of is not None]
        if self.direct is not None:
            tensors += self.direct.weights()[:2]
        return Network(text, tensors, bases)

    def _structure(self, context: Tensor | None) -> str:
        """How the layers hang together, which does not change from call to call."""
        layers = []
        for layer in self.layers:
            weight, mask, bias = layer.weights()
            scale, shift = layer.normed() or (None, None)
            base, gate = (
                None if context is None or of is None else of(context)
                for of in (layer.base, layer.gate)
            )
            name = activation_name(layer.activation)
            layers.append(Layer(weight, mask, bias, scale, shift, base, gate, name, layer.adds_to))
        direct = None if self.direct is None else Layer(*self.direct.weights()[:2])
        return Network.of_layers(
            self.ranks, layers, direct, (1,), self.counts, self.parameter_major
        ).structure


def _reach(layer: HostLayer, reach: Tensor) -> Tensor:
    mask: Tensor = layer.linear.mask
    if layer.columns is not None:
        mask = mask[:, layer.columns]
    return ((mask != 0).to(reach) @ reach > 0).to(reach)


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module computes something else in training than in evaluation."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.RReLU))


def elementwise(activation: Any, units: int, like: Tensor) -> nn.Module:
    """An activation as a module, after a test that it treats every unit by itself and alike.

    Args:
        activation: a module or function.
        units: how many units it is applied to.
        like: a tensor of the network's dtype and device.

    Raises:
        NotUnderstoodError: if it is not elementwise, so that it cannot be applied to some units.
    """
    if not isinstance(activation, nn.Module) and not callable(activation):
        raise NotUnderstoodError(f"its activation is {activation!r}")
    module = make_activation(activation)
    if activation_code(module) is not None:
        return module
    z = torch.linspace(-2, 2, 2 * units).to(like).reshape(2, units)
    some = torch.arange(units - 1, -1, -2, device=z.device)
    try:
        with torch.no_grad():
            alike = torch.allclose(module(z)[:, some], module(z[:, some]), rtol=1e-4, atol=1e-6)
    except (RuntimeError, ValueError, IndexError):
        alike = False
    if not alike:
        name = getattr(activation, "__name__", type(activation).__name__)
        raise NotUnderstoodError(f"its activation {name} is not elementwise")
    return module
