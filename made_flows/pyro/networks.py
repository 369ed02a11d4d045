"""Pyro's autoregressive networks: the same signatures, attributes, shapes and state dicts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._checks import (
    boolean,
    check_broadcast,
    check_context,
    check_event,
    expect,
    expect_sequence,
    expect_type,
    non_negative_integer,
    positive_integer,
    widths,
)
from made_flows.nn import masks as mk
from made_flows.nn.activations import make_activation
from made_flows.nn.connectivity import DependencyWarning
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.made import MADE
from made_flows.nn.masked_mlp import masked_pass

_RELU = nn.ReLU()
_NEAR_ZERO = 0.01
"""Gain of the output layer: transforms start near the identity, as those of a MADE do."""


class PyroShapes(nn.Module):
    """The part of Pyro's interface that says how parameters are laid out."""

    permutation: Tensor

    def set_shapes(self, input_dim: int, context_dim: int, param_dims: Sequence[int]) -> None:
        self.input_dim, self.context_dim = input_dim, context_dim
        expect_sequence(param_dims, "param_dims", "to be a sequence of sizes such as (1, 1)")
        self.param_dims = [
            positive_integer(p, f"param_dims[{i}]") for i, p in enumerate(param_dims)
        ]
        expect(len(self.param_dims) > 0, "param_dims", "to name at least one parameter", param_dims)
        self.count_params = len(self.param_dims)
        self.output_multiplier = sum(self.param_dims)
        self.all_ones = set(self.param_dims) == {1}
        ends = pairwise([0, *accumulate(self.param_dims)])
        self.param_slices = [slice(start, end) for start, end in ends]

    @property
    def features(self) -> int:
        """Number of features D, by the library's own name."""
        return self.input_dim

    def get_permutation(self) -> Tensor:
        """Return the order: ``permutation[k]`` is the feature generated k-th."""
        return self.permutation

    def shaped(self, parameters: Tensor) -> Any:
        """Return parameters (..., K, D) in Pyro's shapes."""
        if self.output_multiplier == 1:
            return parameters.squeeze(-2)
        if self.count_params == 1:
            return parameters
        if self.all_ones:
            return parameters.unbind(-2)
        return tuple(parameters[..., part, :] for part in self.param_slices)


class ConditionalAutoRegressiveNN(PyroShapes):
    r"""Pyro's autoregressive network with a context, fast in both directions.

    .. math:: \theta_i = f_i(x_{<i}, c) \in \mathbb{R}^K, \qquad i = 1, \dots, D

    Its layers, and so its state dicts, are those of :class:`pyro.nn.ConditionalAutoRegressiveNN`.
    Unlike there, hidden layers may be narrower than D (with a warning if dependencies are lost)
    or left out, D may be 1, outputs start near zero, and permutations are checked.

    Args:
        input_dim: number of features D.
        context_dim: number of context variables C.
        hidden_dims: widths of the hidden layers.
        param_dims: parameters per feature, K in total; they shape the output.
        permutation: order of the features, ``permutation[k]`` the one generated k-th; random by
            default.
        skip_connections: whether inputs are also connected to outputs directly.
        nonlinearity: activation, as a module, function or name.

    Shapes:
        x: (..., D), context: (..., C), broadcast together. Output: a tensor (..., D) for
        ``param_dims=[1]``, (..., p, D) for ``[p]``, a tuple of (..., D) for ``[1, 1, ...]``, else
        a tuple of (..., p, D) for each p.

    Raises:
        ValueError: for sizes out of range, a permutation that is none, and a missing context.

    References:
        Germain et al. 2015, *MADE*; Paige & Wood 2016, *Inference Networks for Sequential Monte
        Carlo in Graphical Models*, section 3.3 (the context's hidden units).

    Example:
        >>> network = ConditionalAutoRegressiveNN(4, 2, [16], param_dims=[1, 1])
        >>> mean, log_scale = network(torch.zeros(10, 4), context=torch.zeros(10, 2))
        >>> mean.shape
        torch.Size([10, 4])
    """

    made_flows_network = ("forward", "evaluate", "_output")
    """The methods that are its forward pass."""

    skip_layer: MaskedLinear | None

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        hidden_dims: Sequence[int],
        param_dims: Sequence[int] = (1, 1),
        permutation: Any = None,
        skip_connections: bool = False,
        nonlinearity: Any = _RELU,
    ) -> None:
        super().__init__()
        input_dim = positive_integer(input_dim, "input_dim")
        context_dim = non_negative_integer(context_dim, "context_dim")
        self.hidden_dims = list(widths(hidden_dims, "hidden_dims"))
        self.set_shapes(input_dim, context_dim, param_dims)
        order = mk.make_order(input_dim, "random" if permutation is None else permutation)
        self.register_buffer("permutation", order)

        ranks = mk.ranks_from_order(order)
        lowest = 0 if context_dim else 1
        degrees = [mk.hidden_degrees(h, input_dim, lowest=lowest) for h in self.hidden_dims]
        rows = ranks.repeat(self.output_multiplier)
        masks = mk.degree_masks(ranks, degrees, rows)
        masks[0] = _with_context(masks[0], context_dim)
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self.skip_layer = None
        if boolean(skip_connections, "skip_connections"):
            skip = _with_context(rows[:, None] > ranks, context_dim)
            self.skip_layer = MaskedLinear(skip, bias=False)
        if nonlinearity is _RELU:
            nonlinearity = nn.ReLU()  # hooks on that of one network are not to be on all others
        self.f = make_activation(nonlinearity) if isinstance(nonlinearity, str) else nonlinearity
        make_activation(self.f, "nonlinearity")  # raises where it is none
        for last in (self.layers[-1], self.skip_layer):
            if isinstance(last, MaskedLinear):
                last.reset_parameters(gain=_NEAR_ZERO, zero_bias=True)
        self._warn_of_lost_dependencies(ranks)

    def _warn_of_lost_dependencies(self, ranks: Tensor) -> None:
        if self.skip_layer is not None:
            return
        first, *others = self.masks
        reach = mk.connectivity([first[:, self.context_dim :], *others])[: self.input_dim]
        lost = len(mk.lost_dependencies(reach, ranks))
        if lost:
            warnings.warn(
                f"hidden_dims={self.hidden_dims} are too narrow for {self.input_dim} features: "
                f"{lost} dependencies are lost. Use layers of at least "
                f"{self.input_dim - (self.context_dim == 0)} units, or skip_connections=True, "
                f"which restores them linearly",
                DependencyWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ structure

    @property
    def masks(self) -> list[Tensor]:
        """Masks of all layers, as they are now."""
        return [cast(MaskedLinear, layer).mask for layer in self.layers]

    @property
    def mask_skip(self) -> Tensor:
        """Mask of the direct connections (made of the permutation where there are none)."""
        if self.skip_layer is not None:
            return self.skip_layer.mask
        rows = self.ranks.repeat(self.output_multiplier)
        return _with_context(rows[:, None] > self.ranks, self.context_dim)

    @property
    def ranks(self) -> Tensor:
        """The rank of every feature, which the permutation says."""
        return mk.ranks_from_order(self.permutation)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return cast(MaskedLinear, self.layers[-1]).weight.dtype

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_activation"}

    # ------------------------------------------------------------------ computing

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """Return parameters in Pyro's shapes, from x (..., D) and context (..., C)."""
        return self.shaped(self._output(x, context))

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return parameters (..., D, K), as the library's transforms read them."""
        return self._output(x, context).transpose(-1, -2)

    def check_context(self, context: Tensor | None) -> Tensor | None:
        """Check the context against what the network was made for."""
        return check_context(
            context, self.context_dim, "network", argument="context_dim", dtype=self.dtype
        )

    def _output(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return parameters (..., K, D)."""
        check_event(x, "x", self.input_dim, self.dtype)
        context = self.check_context(context)
        if context is not None:
            batch = check_broadcast(x=x.shape[:-1], context=context.shape[:-1])
            x = torch.cat([context.expand(*batch, -1), x.expand(*batch, -1)], dim=-1)
        output = masked_pass(list(self.layers), self._module(), x, direct=self.skip_layer)
        return output.view(*output.shape[:-1], self.output_multiplier, self.input_dim)

    def _module(self) -> nn.Module:
        """Return the activation as the library's own kind of module."""
        kept: tuple[Any, nn.Module] | None = self.__dict__.get("_activation")
        if kept is None or kept[0] is not self.f:
            # Not a submodule, or a parametric activation would be in the state dict twice.
            kept = self.__dict__["_activation"] = (self.f, make_activation(self.f))
        return kept[1]


class AutoRegressiveNN(ConditionalAutoRegressiveNN):
    r"""Pyro's autoregressive network, fast in both directions.

    .. math:: \theta_i = f_i(x_{<i}) \in \mathbb{R}^K, \qquad i = 1, \dots, D

    See :class:`ConditionalAutoRegressiveNN`; this one has no context.

    Args:
        input_dim, hidden_dims, param_dims, permutation, skip_connections, nonlinearity: as there.

    Example:
        >>> network = AutoRegressiveNN(4, [16], param_dims=[1, 5])
        >>> a, b = network(torch.zeros(10, 4))
        >>> a.shape, b.shape
        (torch.Size([10, 1, 4]), torch.Size([10, 5, 4]))
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        param_dims: Sequence[int] = (1, 1),
        permutation: Any = None,
        skip_connections: bool = False,
        nonlinearity: Any = _RELU,
    ) -> None:
        super().__init__(
            input_dim, 0, hidden_dims, param_dims, permutation, skip_connections, nonlinearity
        )


def _with_context(mask: Tensor, context_dim: int) -> Tensor:
    """Put columns for the context, which everything may read, before the features'."""
    everything = torch.ones(len(mask), context_dim, dtype=torch.bool, device=mask.device)
    return torch.cat([everything, mask], dim=1)


class MADENetwork(PyroShapes):
    """A :class:`~made_flows.MADE` with the interface of Pyro's networks.

    It works inside Pyro's own transforms, and brings what Pyro's networks do not have: residual
    blocks, any order or graph, a linear path of the context, orders redrawn in training.

    Args:
        made: the network, with ``parameters`` the sum of ``param_dims``.
        param_dims: parameters per feature, as for :class:`AutoRegressiveNN`; by default one
            tensor for each.

    Raises:
        TypeError: for another kind of network.
        ValueError: where ``param_dims`` do not add up to the network's parameters, which must be
            the same number for all features, with one input each.

    Example:
        >>> import torch, made_flows as mf
        >>> network = MADENetwork(mf.MADE(4, hidden_features=(16, 16), residual=True))
        >>> mean, log_scale = network(torch.zeros(10, 4))
        >>> mean.shape
        torch.Size([10, 4])
    """

    def __init__(self, made: MADE, param_dims: Sequence[int] | None = None) -> None:
        super().__init__()
        expect_type(isinstance(made, MADE), "made", "to be a MADE", made)
        total = set(made.outputs)
        expect(set(made.inputs) == {1}, "made", "to have one input per feature", made.inputs)
        expect(len(total) == 1, "made", "to have the same parameters for all", made.outputs)
        if param_dims is None:
            param_dims = (1,) * made.outputs[0]
        self.set_shapes(made.features, made.context, param_dims)
        words = f"to add up to the network's {made.outputs[0]} parameters"
        expect({self.output_multiplier} == total, "param_dims", words, param_dims)
        self.made = made

    @property
    def permutation(self) -> Tensor:  # type: ignore[override]
        """The order, which training may redraw."""
        return self.made.order

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.made.dtype

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """Return parameters in Pyro's shapes, from x (..., D) and context (..., C)."""
        return self.shaped(self.made(x, context).transpose(-1, -2))

    def check_context(self, context: Tensor | None) -> Tensor | None:
        """Check the context against what the network was made for."""
        return self.made.check_context(context)
