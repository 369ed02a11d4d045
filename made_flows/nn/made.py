"""MADE: a masked network whose output for a feature reads only the features before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from made_flows._checks import (
    check_broadcast,
    check_context,
    check_event,
    expect,
    non_negative_integer,
    positive_integer,
    real_number,
    widths,
)
from made_flows._registry import saveable
from made_flows.nn import masks as mk
from made_flows.nn import reordering as arrangements
from made_flows.nn.activations import activate_fresh, make_activation
from made_flows.nn.connectivity import Shape, connect_by_graph, connect_in_order, per_feature
from made_flows.nn.dependencies import DependencyWarning, reach_of, warn_of_lost_dependencies
from made_flows.nn.initialization import initialize
from made_flows.nn.linear import MaskedLinear, RowMask
from made_flows.nn.made_spec import MADESpec
from made_flows.nn.per_row_orders import forward_row_orders
from made_flows.nn.reordering import Masks
from made_flows.nn.spec import NetworkSpec
from made_flows.nn.summary import summarize

__all__ = ["MADE", "DependencyWarning"]


@saveable
class MADE(nn.Module):
    r"""Masked autoencoder: parameters of every feature from the features before it.

    .. math:: \theta_i = f_i(x_{<i}, c) \in \mathbb{R}^K, \qquad i = 1, \dots, D

    where :math:`x_{<i}` are the features of lower rank in the order. One pass gives all of them.
    The context reaches every feature, the first one too: through hidden units of degree 0 and
    through a linear map of its own to the outputs. Outputs start near zero.

    Args:
        features: number of features D.
        context: number of context variables C; 0 for none.
        hidden_features: widths of the hidden layers; ``()`` for a linear network. With
            ``residual=True`` the first is the width of the residual stream, and each further one
            the inner width of a residual block.
        parameters: parameters per feature K, the same for all features or one number each.
        inputs: input columns per feature, likewise (a one-hot category takes several).
        order: ``"natural"``, ``"reversed"``, ``"random"`` or a permutation: ``order[k]`` is the
            feature generated k-th.
        degrees: ``"even"`` or ``"random"`` degrees of the hidden units.
        activation: a name (``"relu"``, ``"elu"``, ``"tanh"``, ``"silu"``, ``"gelu"``,
            ``"leaky_relu"``, ``"softplus"``, ``"sigmoid"``, ``"identity"``), a module or a
            function.
        residual: whether hidden layers after the first are residual blocks
            :math:`h + W_2\, a(W_1\, a(h))`.
        direct: whether inputs are also connected to outputs directly (linearly).
        dropout: probability of dropping a hidden unit while training. Sampling and inversion
            never drop.
        adjacency: instead of an order, a directed acyclic graph: a boolean matrix of shape
            (features, features), ``[i, j]`` meaning that feature i may depend on feature j, or
            (features, features + context) to say the same of the context's columns.
        mask_weights: whether masked layers tell an input that they may not read from one that is
            zero: :math:`a(b + (M \odot W)\, x + (M \odot U)\, 1)` with weights U that start at
            zero. For networks whose masks change. ``"order"`` gives them to the layers alone
            whose masks follow from the order: the first, the last and the direct connection.
        generator: source of randomness for random orders and degrees.

    Shapes:
        x: (..., inputs), context: (..., C), broadcast together; output: (..., features, K), with
        -inf behind a feature's own parameters where they differ in number (as a logit: never).

    Raises:
        ValueError: for sizes, names or permutations out of range, for a cycle in ``adjacency``,
            for a context passed but not configured, and the reverse.
        TypeError: for arguments of a wrong type, and data of another dtype than the weights.

    References:
        Germain et al. 2015, *MADE: Masked Autoencoder for Distribution Estimation*, equations
        12-13 and sections 4.2-4.3.

    Example:
        >>> made = MADE(features=3, context=2, hidden_features=(16, 16), parameters=2)
        >>> made(torch.zeros(10, 3), torch.zeros(10, 2)).shape
        torch.Size([10, 3, 2])
    """

    ranks: Tensor
    input_features: Tensor
    output_features: Tensor
    output_places: Tensor | None
    graph: Tensor | None
    direct: MaskedLinear | None
    input_context: MaskedLinear | None
    output_context: MaskedLinear | None

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (64, 64),
        parameters: int | Sequence[int] = 2,
        *,
        inputs: int | Sequence[int] = 1,
        order: Any = "natural",
        degrees: str = "even",
        activation: Any = "relu",
        residual: bool = False,
        direct: bool = False,
        dropout: float = 0.0,
        adjacency: Any = None,
        mask_weights: bool | Literal["order"] = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.context = non_negative_integer(context, "context")
        self.hidden_features = widths(hidden_features, "hidden_features")
        self.outputs = per_feature(parameters, self.features, "parameters")
        self.inputs = per_feature(inputs, self.features, "inputs")
        dropout = real_number(dropout, "dropout")
        expect(0 <= dropout < 1, "dropout", "to be in [0, 1)", dropout)
        self.residual = bool(residual) and len(self.hidden_features) > 1

        each = torch.arange(self.features)
        hidden = self.hidden_features
        if self.residual:
            stream, *inner = hidden
            hidden = (stream, *(width for h in inner for width in (h, stream)))
        self.shape = Shape(
            features=self.features,
            context=self.context,
            input_features=each.repeat_interleave(torch.tensor(self.inputs)),
            output_features=each.repeat_interleave(torch.tensor(self.outputs)),
            hidden=hidden,
            residual=self.residual,
        )
        if adjacency is None:
            ranks = mk.ranks_from_order(mk.make_order(self.features, order, generator))
            connectivity = connect_in_order(self.shape, ranks, degrees, generator)
        else:
            given = not isinstance(order, str) or order != "natural"
            expect(not given, "order", "to be left out when adjacency is given", order)
            graph = mk.check_adjacency(adjacency, self.features, self.context)
            connectivity = connect_by_graph(self.shape, graph)

        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout) if dropout else None
        known = mask_weights in (True, False, "order")
        expect(known, "mask_weights", "to be True, False or 'order'", repr(mask_weights))
        self.mask_weights = mask_weights
        some, every, last = bool(mask_weights), mask_weights is True, len(connectivity.masks) - 1
        self.layers = nn.ModuleList(
            MaskedLinear(mask, mask_weights=some if index in (0, last) else every)
            for index, mask in enumerate(connectivity.masks)
        )
        self.direct = None
        if direct and hidden:  # without hidden layers the one layer is the direct connection
            self.direct = MaskedLinear(connectivity.direct, bias=False, mask_weights=some)
        self.input_context = self.output_context = None
        if self.context:
            self.output_context = MaskedLinear(connectivity.output_context, bias=False)
            if connectivity.input_context is not None:
                self.input_context = MaskedLinear(connectivity.input_context, bias=False)
        self._description: MADESpec | None = None
        self._no_masks = (None,) * len(self.layers)
        self.register_buffer("ranks", connectivity.ranks)
        self.register_buffer("graph", connectivity.allowed if adjacency is not None else None)
        for layer, layer_degrees in enumerate(connectivity.degrees):
            self.register_buffer(f"degrees_{layer}", layer_degrees)
        self._register_places()
        self.reset_parameters()
        warn_of_lost_dependencies(self, connectivity)

    # ------------------------------------------------------------------ structure

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
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        # Every call asks, and by dictionaries it takes 1 us in place of 4. Weights that are
        # computed (parametrized, say) are attributes alone.
        first: Any = cast(nn.Module, self._modules["layers"])._modules["0"]
        weight = first._parameters.get("weight")
        return cast(Tensor, first.weight if weight is None else weight).dtype

    def adds_to_stream(self, layer: int) -> bool:
        """Whether a hidden layer ends a residual block."""
        return self.shape.adds_to_stream(layer)

    def _layer(self, index: int) -> MaskedLinear:
        return cast(MaskedLinear, self.layers[index])

    def _register_places(self) -> None:
        """Buffers that say where inputs and outputs belong; derived, so not saved."""
        self.register_buffer("input_features", self.shape.input_features, persistent=False)
        self.register_buffer("output_features", self.shape.output_features, persistent=False)
        largest = max(self.outputs)
        places = torch.cat([i * largest + torch.arange(k) for i, k in enumerate(self.outputs)])
        filled = len(set(self.outputs)) == 1
        self.register_buffer("output_places", None if filled else places, persistent=False)

    def resample_masks(
        self, generator: torch.Generator | None = None, *, order: bool = True, degrees: bool = True
    ) -> None:
        """Draw a new order and new degrees, in place: order- and connectivity-agnostic training.

        Degrees are drawn for every unit by itself, so that afterwards units are not sorted by
        degree: a weight keeps its two units, whatever they may read now.

        Args:
            generator: source of randomness (on the CPU).
            order: whether to draw a new order.
            degrees: whether to draw new degrees.

        Raises:
            ValueError: for a network made from ``adjacency``, which has no order to draw.

        References:
            Germain et al. 2015, sections 4.2-4.3.
        """
        arrangements.resample(self, generator, order=order, degrees=degrees)

    def arranged(self, order: Any = None, degrees: Sequence[Tensor] | None = None) -> MADE:
        """A network of the same weights (not copies of them) in another arrangement.

        What it computes, its inverse and its checks are those of a MADE made with this order and
        these degrees. It is cheap to make and meant for use at once: moved to another device or
        dtype, it does not follow the original.

        Args:
            order: the order, (features,), or a name; None for that of this network.
            degrees: degrees of the units of every hidden layer, as ``degrees`` gives them; None
                for those of this network.

        Raises:
            ValueError: for an order that is no permutation, for degrees of another number or out
                of range, and for a network made from ``adjacency``, which has neither.

        Example:
            >>> made = MADE(3, hidden_features=(8,))
            >>> made.arranged([2, 0, 1]).order
            tensor([2, 0, 1])
        """
        expect(self.graph is None, "the network", "to have an order to change", "a graph")
        ranks = self.ranks.clone()
        if order is not None:
            ranks = arrangements.check_ranks(self, order)
            expect(ranks.dim() == 1, "order", f"of shape ({self.features},)", tuple(ranks.shape))
        if degrees is not None:
            degrees = arrangements.check_degrees(self, degrees)
        return arrangements.view(self, ranks, degrees)

    def reset_parameters(self) -> None:
        """Draw all weights anew; outputs and residual blocks start near zero."""
        initialize(self)

    def reach(self) -> Tensor:
        """Which feature's parameters can depend on which feature: boolean (features, features)."""
        return reach_of(self)

    # ------------------------------------------------------------------ computing

    def check_context(self, context: Tensor | None) -> Tensor | None:
        """The context, checked against what the network was made for."""
        return check_context(context, self.context, "model", dtype=self.dtype)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        order: Tensor | Sequence[int] | None = None,
        degrees: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Parameters of every feature.

        Args:
            x: (..., inputs).
            context: (..., C), broadcast against x; required if and only if the network has one.
            order: another order of the features for this call, (features,), or one for each row,
                (..., features), broadcast against x.
            degrees: other degrees of the hidden units for this call, one tensor per layer.

        Returns:
            (..., features, K).
        """
        check_event(x, "x", self.input_features.shape[0], self.dtype)
        context = self.check_context(context)
        if context is not None:
            check_broadcast(x=x.shape[:-1], context=context.shape[:-1])
        if order is None and degrees is None:
            return self.compute(x, context, None, self.dropout)
        if degrees is not None:
            degrees = arrangements.check_degrees(self, degrees)
        ranks = self.ranks if order is None else arrangements.check_ranks(self, order)
        if ranks.dim() > 1:
            return forward_row_orders(self, x, context, ranks, degrees)
        masks = arrangements.masks_of(self, ranks, degrees)
        return self.compute(x, context, masks, self.dropout)

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of every feature without dropout, whatever the mode: what samples follow."""
        return self.compute(x, context, None, None)

    def compute(
        self,
        x: Tensor,
        context: Tensor | None,
        masks: Masks | None,
        dropout: nn.Module | None,
    ) -> Tensor:
        """Parameters of every feature under some masks (None: its own), nothing checked."""
        of_layers, of_direct = (self._no_masks, None) if masks is None else masks
        output: Tensor = self._layer(-1)(
            self._hidden(x, context, of_layers, dropout), of_layers[-1]
        )
        if self.direct is not None:
            output = output + self.direct(x, of_direct)
        if self.output_context is not None:
            output = output + self.output_context(context)
        return self.unpack(output)

    def _hidden(
        self,
        x: Tensor,
        context: Tensor | None,
        masks: Sequence[Tensor | RowMask | None],
        dropout: nn.Module | None,
    ) -> Tensor:
        if not self.hidden_features:
            return x

        def activate(z: Tensor) -> Tensor:
            a = activate_fresh(self.activation, z)
            return a if dropout is None else cast(Tensor, dropout(a))

        layers = list(self.layers)
        z: Tensor = layers[0](x, masks[0])
        if self.input_context is not None:
            z = z + self.input_context(context)
        last = len(layers) - 1
        if self.residual:
            for i in range(1, last, 2):
                inner = activate(layers[i](self.activation(z), masks[i]))
                z = z + layers[i + 1](inner, masks[i + 1])
            return activate(z)
        for i in range(1, last):
            z = layers[i](activate(z), masks[i])
        return activate(z)

    def unpack(self, output: Tensor) -> Tensor:
        """Outputs (..., outputs) as (..., features, K), padded with -inf where K differs."""
        shape = (*output.shape[:-1], self.features, max(self.outputs))
        if self.output_places is None:
            return output.reshape(shape)
        padded = output.new_full((*output.shape[:-1], shape[-2] * shape[-1]), -torch.inf)
        return padded.index_copy(-1, self.output_places, output).reshape(shape)

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        """The network as the sequential inverse sees it, with what a context (rows, C) adds."""
        description = self._description
        if description is None or not description.holds(self):
            description = MADESpec(self)
            self._description = None if torch.compiler.is_compiling() else description
        return description.at(context)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_description": None}

    def extra_repr(self) -> str:
        return summarize(self)
