"""A masked multilayer perceptron: its layers, its masks and what they compute."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from made_flows._checks import expect
from made_flows._constants import WithConstants
from made_flows._torch import is_autocast
from made_flows.nn import masks as mk
from made_flows.nn.activations import activate, make_activation
from made_flows.nn.connectivity import Connectivity, Shape
from made_flows.nn.linear import MaskedLinear, RowMask, mask_of, masked, returns_fresh, takes_mask

HIDDEN_GAIN = 0.5
"""Gain of the hidden layers: functions that start smooth overfit a small table later."""

_NEAR_ZERO = 0.01
"""Gain of the layers that should hardly count at the start: outputs and ends of residual blocks."""


class Masks(NamedTuple):
    """The masks of one call: of the layers (None: a layer's own) and the direct connection."""

    layers: tuple[Tensor | RowMask | None, ...]
    direct: Tensor | RowMask | None

    def every(self) -> list[Tensor | RowMask | None]:
        """List them as :meth:`MaskedMLP.every_layer` does the layers."""
        return [*self.layers, *([] if self.direct is None else [self.direct])]


def masked_pass(
    layers: Sequence[Callable[..., Tensor]],
    activation: nn.Module,
    x: Tensor,
    *,
    direct: Callable[..., Tensor] | None = None,
    residual: bool = False,
    first_term: Tensor | None = None,
    last_term: Tensor | None = None,
    masks: Masks | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Compute the outputs of masked layers: the one statement of a forward pass.

    .. math:: z_0 = W_0 x + c_0, \qquad z_l = W_l\, a(z_{l-1}), \qquad
        y = W_L\, a(z_{L-1}) + V x + c_L

    and with ``residual`` :math:`z_l = z_{l-2} + W_l\, a(W_{l-1}\, a(z_{l-2}))` for even l.

    Args:
        layers: the hidden layers, then the output: modules or, where there are no ``masks``,
            functions that keep nothing of what they return.
        activation: the elementwise function a.
        x: inputs (..., inputs).
        direct: the layer V that connects inputs to outputs, if there is one.
        residual: whether the hidden layers after the first are residual blocks of two.
        first_term: what the context adds to the first hidden layer, (..., units).
        last_term: what the context adds to the outputs.
        masks: other masks than the layers' own.
        dropout: applied to the activations of :func:`dropped_layers`, None for none.

    Returns:
        outputs (..., outputs).
    """
    *hidden, last = layers
    of_layers = (None,) * len(layers) if masks is None else masks.layers
    h = x
    if hidden:

        def activated(z: Tensor, overwrite: bool) -> Tensor:
            a = activate(activation, z, overwrite=overwrite)
            if dropout is not None:
                a = dropout(a)
            return a

        z, fresh = _call(hidden[0], x, of_layers[0]), returns_fresh(hidden[0])
        if first_term is not None:
            z, fresh = z + first_term, True
        if residual:
            for i in range(1, len(hidden), 2):
                # The stream is added to afterwards, so that this activation must leave it alone.
                inner = _call(hidden[i], activate(activation, z, overwrite=False), of_layers[i])
                a = activated(inner, returns_fresh(hidden[i]))
                z, fresh = z + _call(hidden[i + 1], a, of_layers[i + 1]), True
        else:
            for layer, mask in zip(hidden[1:], of_layers[1:-1], strict=True):
                z, fresh = _call(layer, activated(z, fresh), mask), returns_fresh(layer)
        h = activated(z, fresh)
    output = _call(last, h, of_layers[-1])
    if direct is not None:
        output = output + _call(direct, x, None if masks is None else masks.direct)
    return output if last_term is None else output + last_term


def dropped_layers(hidden: int, residual: bool) -> list[int]:
    """List the hidden layers whose activations :func:`masked_pass` drops, in its order.

    All are; of residual blocks, those within a block, and the last.

    Args:
        hidden: how many hidden layers there are.
        residual: whether they are residual blocks.

    Example:
        >>> dropped_layers(3, residual=False), dropped_layers(5, residual=True)
        ([0, 1, 2], [1, 3, 4])
    """
    return [i for i in range(hidden) if not residual or i % 2 == 1 or i == hidden - 1]


def _call(layer: Any, x: Tensor, mask: Tensor | RowMask | None) -> Tensor:
    if mask is not None and not takes_mask(layer):
        one = isinstance(mask, Tensor)
        expect(one, "layers", "that take a mask, for orders that are mapped over", type(layer))
        layer, mask = masked(layer, cast(Tensor, mask)), None
    result: Tensor = layer(x) if mask is None else layer(x, mask)
    return result


class MaskedMLP(WithConstants):
    r"""A multilayer perceptron whose masks let feature i's outputs read certain inputs alone.

    What it computes is :func:`masked_pass`. The context reaches the first hidden layer and the
    outputs by linear maps of its own.

    Args:
        shape: its sizes.
        connectivity: its ranks, degrees and masks.
        activation: see :func:`~made_flows.nn.activations.make_activation`.
        dropout: probability of dropping a hidden unit while training.
        direct: whether inputs are also connected to outputs directly.
        mask_weights: which layers have weights of their masks: all, none, or by ``"order"`` those
            alone whose masks follow from the order.
    """

    ranks: Tensor
    graph: Tensor | None
    input_features: Tensor
    output_features: Tensor
    output_places: Tensor | None
    layers: nn.ModuleList
    activation: nn.Module
    direct: MaskedLinear | None
    input_context: MaskedLinear | None
    output_context: MaskedLinear | None

    def __init__(
        self,
        shape: Shape,
        connectivity: Connectivity,
        *,
        activation: Any = "relu",
        dropout: float = 0.0,
        direct: bool = False,
        mask_weights: bool | Literal["order"] = False,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.features, self.context = shape.features, shape.context
        self.inputs, self.outputs = shape.inputs, shape.outputs
        self.residual = shape.residual
        self.mask_weights = mask_weights
        self.activation = activation
        self.dropout = nn.Dropout(dropout) if dropout else None
        some, every, last = bool(mask_weights), mask_weights is True, len(connectivity.masks) - 1
        self.layers = nn.ModuleList(
            MaskedLinear(mask, mask_weights=some if index in (0, last) else every)
            for index, mask in enumerate(connectivity.masks)
        )
        self.direct = None
        if direct and shape.hidden:  # without hidden layers the one layer is the direct connection
            self.direct = MaskedLinear(connectivity.direct, bias=False, mask_weights=some)
        self.input_context = self.output_context = None
        if shape.context:
            self.output_context = MaskedLinear(connectivity.output_context, bias=False)
            if connectivity.input_context is not None:
                self.input_context = MaskedLinear(connectivity.input_context, bias=False)
        self.register_buffer("ranks", connectivity.ranks)
        self.register_buffer("graph", connectivity.graph)
        for layer, layer_degrees in enumerate(connectivity.degrees):
            self.register_buffer(f"degrees_{layer}", layer_degrees)
        self._register_places()
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        # Assigned later, an activation is checked and wrapped as one given at first.
        super().__setattr__(name, make_activation(value) if name == "activation" else value)

    # ------------------------------------------------------------------ structure

    @property
    def random_part(self) -> str:
        """What makes a call random at this moment: dropout; empty if nothing does."""
        return "units that are dropped" if self.drops else ""

    @property
    def drops(self) -> bool:
        """Whether a call drops hidden units at this moment."""
        return self.dropout is not None and self.dropout.training

    @property
    def order(self) -> Tensor:
        """``order[k]`` is the feature generated k-th (for a graph: a topological order)."""
        return mk.order_from_ranks(self.ranks)

    @property
    def allowed(self) -> Tensor:
        """Which feature may depend on which, by the order or the graph: (features, features)."""
        return self.ranks[:, None] > self.ranks if self.graph is None else self.graph

    @property
    def degrees(self) -> tuple[Tensor, ...]:
        """Degrees of the units of every hidden layer: how many ranks they may read."""
        return tuple(self.get_buffer(f"degrees_{i}") for i in range(len(self.shape.hidden)))

    @property
    def like(self) -> Tensor:
        """A tensor on the device of the weights and of their dtype."""
        # Every call asks, and by dictionaries it takes 1 us in place of 4. Weights that are
        # computed (parametrized, say) are attributes alone; a layer that wraps another has none.
        first: Any = cast(nn.Module, self._modules["layers"])._modules["0"]
        weight = first._parameters.get("weight")
        if weight is None:
            weight = getattr(first, "weight", None)
        return cast(Tensor, next(self.parameters()) if weight is None else weight)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.like.dtype

    @property
    def work(self) -> int:
        """Multiplications of a dense pass for a row, those of a context left out."""
        widths = (sum(self.inputs), *self.shape.hidden, sum(self.outputs))
        return sum(map(operator.mul, widths, widths[1:]))

    def adds_to_stream(self, layer: int) -> bool:
        """Say whether a hidden layer ends a residual block."""
        return self.shape.adds_to_stream(layer)

    def masked_layers(self) -> list[MaskedLinear]:
        """List the hidden layers, then the output."""
        return [cast(MaskedLinear, layer) for layer in self.layers]

    def every_layer(self) -> list[nn.Module]:
        """List the hidden layers, the output, and the direct connection if there is one."""
        return [*self.layers, *([] if self.direct is None else [self.direct])]

    def reach(self, directly: bool = True) -> Tensor:
        """Find which feature's parameters can depend on which: boolean (features, features).

        Args:
            directly: whether direct connections count.
        """
        *before, last = [mask_of(layer) for layer in self.layers]
        if self.residual:
            first, *blocks = before
            stream = mk.connectivity([first])
            for inner, end in zip(blocks[::2], blocks[1::2], strict=True):
                # A block adds to the stream: what the stream could read before, it still can.
                stream = stream | mk.connectivity([stream, inner, end])
            before = [stream]
        paths = [[*before, last]]
        if directly and self.direct is not None:
            paths.append([mask_of(self.direct)])
        reach = torch.stack([mk.connectivity(chain) for chain in paths]).any(dim=0)
        of = torch.eye(self.features, dtype=torch.float32, device=reach.device)
        return of[:, self.output_features] @ reach.float() @ of[self.input_features] > 0

    def _register_places(self) -> None:
        """Register where inputs and outputs belong; derived, so not saved."""
        self.register_buffer("input_features", self.shape.input_features, persistent=False)
        self.register_buffer("output_features", self.shape.output_features, persistent=False)
        largest = max(self.outputs)
        places = torch.cat([i * largest + torch.arange(k) for i, k in enumerate(self.outputs)])
        filled = len(set(self.outputs)) == 1
        self.register_buffer("output_places", None if filled else places, persistent=False)

    def reset_parameters(self) -> None:
        """Draw all weights anew; outputs and residual blocks start near zero."""
        layers = self.masked_layers()
        last = len(layers) - 1
        for index, layer in enumerate(layers):
            near_zero = index == last or self.adds_to_stream(index)
            gain = _NEAR_ZERO if near_zero else HIDDEN_GAIN
            layer.reset_parameters(gain=gain, zero_bias=near_zero)
        if self.input_context is not None:
            # The first layer's units read features and context: one variance for both.
            first, context = layers[0], self.input_context
            first.reset_parameters(HIDDEN_GAIN, context.mask.sum(1, keepdim=True))
            context.reset_parameters(HIDDEN_GAIN, first.mask.sum(1, keepdim=True))
        for layer_or_none in (self.direct, self.output_context):
            if layer_or_none is not None:
                layer_or_none.reset_parameters(gain=_NEAR_ZERO)

    @torch.no_grad()
    def start_at(self, parameters: Tensor | None) -> None:
        """Let parameters start near given ones, (K,) or those of all features; None leaves them."""
        bias = self.masked_layers()[-1].bias
        if parameters is not None and isinstance(bias, Tensor):
            whole = len(parameters) == len(bias)
            bias.copy_(parameters if whole else parameters.repeat(self.features))

    @torch.no_grad()
    def scale_hidden(self, factor: float) -> None:
        """Multiply the weights and biases of hidden layers, but for the ends of residual blocks."""
        for index, layer in enumerate(self.masked_layers()[:-1]):
            if not self.adds_to_stream(index):
                layer.weight.mul_(factor)
                if layer.bias is not None:
                    layer.bias.mul_(factor)

    # ------------------------------------------------------------------ computing

    def compute(
        self,
        x: Tensor,
        context: Tensor | None,
        masks: Masks | None = None,
        dropout: nn.Module | None = None,
    ) -> Tensor:
        """Compute the parameters of every feature; nothing is checked.

        Args:
            x: (..., inputs).
            context: (..., C), or None.
            masks: other masks than the network's own.
            dropout: applied to every activation.

        Returns:
            (..., features, K).
        """
        to_first, to_last = self.input_context, self.output_context
        output = masked_pass(
            list(self.layers),
            self.activation,
            x,
            direct=self.direct,
            residual=self.residual,
            first_term=None if to_first is None else to_first(context),
            last_term=None if to_last is None else to_last(context),
            masks=masks,
            dropout=dropout,
        )
        if is_autocast(output):
            # Products are of half precision. Densities that were worked out in it, from knots of
            # splines or an offset added, would have a digit or two.
            output = output.to(self.dtype)
        return self.unpack(output)

    def unpack(self, output: Tensor) -> Tensor:
        """Arrange outputs (..., outputs) as (..., features, K), with -inf where K differs."""
        shape = (*output.shape[:-1], self.features, max(self.outputs))
        if self.output_places is None:
            return output.reshape(shape)
        padded = output.new_full((*output.shape[:-1], shape[-2] * shape[-1]), -torch.inf)
        return padded.index_copy(-1, self.output_places, output).reshape(shape)
