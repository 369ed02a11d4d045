"""MADE: a masked network whose output for a feature reads only the features before it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from made_flows._checks import (
    boolean,
    check_broadcast,
    check_context,
    check_default_device,
    check_event,
    check_generator,
    expect,
    expect_type,
    non_negative_integer,
    per_feature,
    positive_integer,
    real_number,
    shown,
    widths,
)
from made_flows._registry import saveable
from made_flows._torch import is_hooked
from made_flows.nn import masks as mk
from made_flows.nn import reordering
from made_flows.nn.connectivity import DependencyWarning, Shape, connect_by_graph, connect_in_order
from made_flows.nn.made_spec import MADESpec
from made_flows.nn.masked_mlp import MaskedMLP
from made_flows.nn.per_row_orders import forward_row_orders
from made_flows.nn.spec import NetworkSpec
from made_flows.nn.validation import NotUnderstoodError, expect_own

_MASKED = "to be True, False or 'order'"
METHODS = ("__call__", "forward", "as_called", "compute", "unpack")
"""What the layers of a network say only where it has no such method of its own."""


def default_widths(features: int) -> tuple[int, int]:
    """Return widths of two hidden layers for a number of features.

    Four units for each feature, in multiples of 64 up to 512, and as many as there are features: in
    fewer, dependencies would be lost.

    Example:
        >>> [default_widths(features)[0] for features in (5, 30, 100, 1000)]
        [64, 128, 448, 1000]
    """
    width = 64 * -(-min(4 * features, 512) // 64)
    return (max(width, features),) * 2


@saveable
class MADE(MaskedMLP):
    r"""Masked autoencoder: parameters of every feature from the features before it.

    .. math:: \theta_i = f_i(x_{<i}, c) \in \mathbb{R}^K, \qquad i = 1, \dots, D

    where :math:`x_{<i}` are the features of lower rank in the order. One pass gives all of them.
    The context reaches every feature, the first one too: through hidden units of degree 0 and
    through a linear map of its own to the outputs. Outputs start near zero.

    Args:
        features: number of features D.
        context: number of context variables C; 0 for none.
        hidden_features: widths of the hidden layers; by default two of four units for each
            feature, in multiples of 64 up to 512, or of D where that is more; ``()`` for a linear
            network. With ``residual=True`` the first is the width of the residual stream, and each
            further one the inner width of a residual block.
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
        direct: whether inputs are also connected to outputs directly (linearly); ``"first"``: to
            the first parameter of every feature alone, such as its location. A scale that is
            linear in the inputs has no bound far out.
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

    _former_defaults: ClassVar[dict[str, Any]] = {"hidden_features": (64, 64)}

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] | None = None,
        parameters: int | Sequence[int] = 2,
        *,
        inputs: int | Sequence[int] = 1,
        order: Any = "natural",
        degrees: str = "even",
        activation: Any = "relu",
        residual: bool = False,
        direct: bool | Literal["first"] = False,
        dropout: float = 0.0,
        adjacency: Any = None,
        mask_weights: bool | Literal["order"] = False,
        generator: torch.Generator | None = None,
    ) -> None:
        check_default_device()
        features = positive_integer(features, "features")
        context = non_negative_integer(context, "context")
        chosen = default_widths(features) if hidden_features is None else hidden_features
        hidden = widths(chosen, "hidden_features")
        dropout = real_number(dropout, "dropout")
        expect(0 <= dropout < 1, "dropout", "to be in [0, 1)", dropout)
        expect_type(isinstance(mask_weights, (bool, str)), "mask_weights", _MASKED, mask_weights)
        expect(mask_weights in (True, False, "order"), "mask_weights", _MASKED, shown(mask_weights))
        check_generator(generator)
        residual = boolean(residual, "residual") and len(hidden) > 1
        columns = per_feature(inputs, features, "inputs")
        outputs = per_feature(parameters, features, "parameters")
        widened = with_block_ends(hidden) if residual else hidden
        word = isinstance(direct, str) and direct == "first"
        known = word or isinstance(direct, (bool, np.bool_))
        expect_type(known, "direct", "to be True, False or 'first'", direct)
        only_first = word and len(hidden) > 0
        shape = Shape(features, context, columns, outputs, widened, residual, only_first)
        mk.check_rule(degrees)
        named = order if isinstance(order, str) else None
        check_generator(generator, draws=adjacency is None and "random" in (named, degrees))
        if adjacency is None:
            ranks = mk.ranks_from_order(mk.make_order(features, order, generator))
            connectivity = connect_in_order(shape, ranks, degrees, generator)
        else:
            wanted = "to be left out when adjacency is given"
            expect(isinstance(order, str) and order == "natural", "order", wanted, order)
            expect(degrees == "even", "degrees", wanted, shown(degrees))
            connectivity = connect_by_graph(shape, mk.check_adjacency(adjacency, features, context))
        super().__init__(
            shape, connectivity, activation=activation, dropout=dropout,
            direct=bool(direct), mask_weights=mask_weights,
        )  # fmt: skip
        self.hidden_features = hidden
        self._spec: MADESpec | None = None
        self._plans: dict[Any, Any] = {}  # of calls without gradients, which the inverse keeps here
        self._warn_of_lost_dependencies()

    def _warn_of_lost_dependencies(self) -> None:
        """Warn where hidden layers are too narrow for their features."""
        first = self.shape.direct_first  # then other parameters may have lost what the first has
        if (self.direct is not None and not first) or not self.hidden_features:
            return
        lost = mk.lost_dependencies(self.reach(not first), self.ranks, self.allowed)
        if lost:
            shown = ", ".join(f"{i} on {j}" for i, j in lost[:3]) + (", ..." if lost[3:] else "")
            enough = f"layers of at least {self.features - (not self.context)} units"
            enough = enough if self.graph is None else "wider layers"
            warnings.warn(
                f"hidden_features={self.hidden_features} are too narrow for {self.features} "
                f"features: {len(lost)} of {int(self.allowed.sum())} dependencies are lost "
                f"(feature {shown}). Use {enough}, or direct=True, which restores them linearly",
                DependencyWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ other orders

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
        check_generator(generator)
        order, degrees = boolean(order, "order"), boolean(degrees, "degrees")
        reordering.resample(self, generator, order=order, degrees=degrees)

    def arranged(self, order: Any = None, degrees: Sequence[Tensor] | None = None) -> MADE:
        """Make a network of the same weights (not copies of them) with another order or degrees.

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
            ranks = reordering.check_ranks(self, order)
            expect(ranks.dim() == 1, "order", f"of shape ({self.features},)", tuple(ranks.shape))
        if degrees is not None:
            degrees = reordering.check_degrees(self, degrees)
        return reordering.view(self, ranks, degrees)

    # ------------------------------------------------------------------ computing

    def check_context(self, context: Tensor | None) -> Tensor | None:
        """Check a context against what the network was made for, and return it."""
        if context is None and not self.context:
            return None
        return check_context(context, self.context, "model", dtype=self.dtype)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        order: Tensor | Sequence[int] | None = None,
        degrees: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Compute the parameters of every feature.

        Args:
            x: (..., inputs).
            context: (..., C), broadcast against x; required if and only if the network has one.
            order: another order of the features for this call, (features,), or one for each row,
                (..., features), broadcast against x.
            degrees: other degrees of the hidden units for this call, one tensor per layer.

        Returns:
            (..., features, K).
        """
        context = self._check(x, context)
        if order is None and degrees is None:
            return self.compute(x, context, None, self.dropout)
        if degrees is not None:
            degrees = reordering.check_degrees(self, degrees)
        ranks = self.ranks if order is None else reordering.check_ranks(self, order)
        reordering.expect_own_masks(self)
        if ranks.dim() > 1:
            return forward_row_orders(self, x, context, ranks, degrees)
        masks = reordering.masks_of(self, ranks, degrees)
        return self.compute(x, context, masks, self.dropout)

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Compute parameters without dropout, whatever the mode.

        Neither hooks of the network nor the ``forward`` of a subclass take part, which may
        therefore call it; see :meth:`as_called`.
        """
        context = self._check(x, context)
        if not self.training or torch.compiler.is_compiling():
            return self.compute(x, context)
        with _without_dropout(self, but=self.dropout):  # which is not asked
            return self.compute(x, context)

    def as_called(
        self, x: Tensor, context: Tensor | None = None, order: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Compute what a call gives, but without dropout, whatever the mode: what samples follow.

        All takes part that does in a call: hooks, and a subclass's own ``forward``.
        """
        if order is None and self.is_plain():
            return MADE.evaluate(self, x, context)
        with _without_dropout(self):
            return cast(Tensor, self(x, context) if order is None else self(x, context, order))

    def _check(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """Check what a pass reads, and return the context."""
        check_event(x, "x", self.input_features.shape[0], self.dtype)
        context = self.check_context(context)
        if context is not None:
            check_broadcast(x=x.shape[:-1], context=context.shape[:-1])
        return context

    def expect_understood(self) -> None:
        """Raise where the network does not compute what its class says.

        Raises:
            NotUnderstoodError: for hooks, wrapped layers, and subclasses with a pass of their own.
        """
        self._read()

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        """Describe the network to the sequential inverse, with what a context (rows, C) adds.

        Raises:
            NotUnderstoodError: see :meth:`expect_understood`.
        """
        return self._read().at(context)

    def plain_read(self, *, dropping: bool = False) -> MADESpec | None:
        """Read the network where a call now is its layers and no more; None elsewhere.

        Elsewhere it computes its weights anew in every call, has hooks, or drops units.

        Args:
            dropping: whether it is read where torch's own dropout drops units, and there alone.
        """
        if not self.is_plain() or self.drops != dropping:
            return None
        if dropping and type(self.dropout) is not nn.Dropout:
            return None
        try:
            read = self._read()
        except NotUnderstoodError:
            return None
        return None if read.computed else read

    def _read(self) -> MADESpec:
        kept = self._spec
        if kept is None or any(map(self.__dict__.__contains__, METHODS)) or not kept.holds(self):
            expect_own(self, MADE, METHODS)
            kept = MADESpec(self)
            if not torch.compiler.is_compiling():
                self._spec = kept
        return kept

    def is_plain(self) -> bool:
        """Say whether a call is :meth:`compute` and no more."""
        kind = type(self)
        return not (
            kind.forward is not MADE.forward
            or kind.__call__ is not MADE.__call__
            or "forward" in self.__dict__
            or is_hooked(self)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_spec": None, "_plans": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_plans": {}, **state})  # pickled by 0.3.0, it has none

    def extra_repr(self) -> str:
        listed = self.order.tolist()
        order = f"order={mk.order_name(listed) or mk.shortened(listed)}"
        parts = [
            f"features={self.features}",
            f"context={self.context}" if self.context else "",
            f"hidden_features={self.hidden_features}",
            f"parameters={_one_or_all(self.outputs)}",
            f"inputs={_one_or_all(self.inputs)}" if set(self.inputs) != {1} else "",
            order if self.graph is None else f"levels={int(self.ranks.max()) + 1}",
            "residual=True" if self.residual else "",
            f"mask_weights={self.mask_weights!r}" if self.mask_weights else "",
        ]
        return ", ".join(filter(None, parts))


@contextmanager
def _without_dropout(network: nn.Module, but: nn.Module | None = None) -> Iterator[None]:
    """Let no module within drop anything, but for one."""
    drops = nn.modules.dropout._DropoutNd
    parts = [part for part in network.modules() if isinstance(part, drops) and part is not but]
    # What another thread has turned off is that thread's to turn on again.
    parts = [part for part in parts if part.training]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part in parts:
            part.training = True


def with_block_ends(hidden: tuple[int, ...]) -> tuple[int, ...]:
    """List the widths of all layers: a residual block ends in a layer of the stream's width."""
    stream, *inner = hidden
    return (stream, *(width for h in inner for width in (h, stream)))


def _one_or_all(counts: tuple[int, ...]) -> int | tuple[int, ...]:
    return counts[0] if len(set(counts)) == 1 else counts
