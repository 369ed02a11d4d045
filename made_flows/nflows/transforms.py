"""nflows' autoregressive transforms, fast in both directions."""

from __future__ import annotations

from inspect import signature
from typing import Any, cast

import torch
import torch.nn.functional as F
from nflows.transforms import autoregressive as theirs
from nflows.transforms.splines import rational_quadratic
from torch import Tensor

from made_flows._checks import (
    expect,
    expect_type,
    expect_word,
    positive_integer,
    real_number,
)
from made_flows._registry import own_arguments
from made_flows.interop.libraries.nflows import FastInverse
from made_flows.nflows.networks import MADE, Activation


class _Checked(FastInverse):
    """A transform that says what is wrong with what it is given."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return where the transform maps the inputs to, and log-determinants (rows,)."""
        self.made_flows_check(inputs)
        return cast(tuple[Tensor, Tensor], super().forward(inputs, context))  # type: ignore[misc]

    def made_flows_check(self, inputs: Any) -> None:
        expect_type(isinstance(inputs, Tensor), "inputs", "to be a torch.Tensor", inputs)
        expect(inputs.dim() == 2, "inputs", "of shape (rows, features)", tuple(inputs.shape))


def _construct(transform: Any, kind: Any, arguments: dict[str, Any]) -> None:
    """Construct a transform by nflows' constructor, then give it a network of ours.

    The first network is as small as can be, and its weights leave the random state as it was, so
    that the same seed gives the same weights as in nflows.
    """
    positive_integer(arguments["features"], "features")
    network = {
        name: arguments.pop(name) for name in signature(MADE).parameters if name in arguments
    }
    small = {"features": network["features"], "hidden_features": 1, "num_blocks": 0}
    with torch.random.fork_rng(devices=[]):
        kind.__init__(transform, **small, **arguments)
    outputs = transform._output_dim_multiplier()
    transform.autoregressive_net = MADE(output_multiplier=outputs, **network)


class MaskedAffineAutoregressiveTransform(_Checked, theirs.MaskedAffineAutoregressiveTransform):
    r"""nflows' affine autoregressive transform, from data to noise.

    .. math:: z_i = s_i x_i + m_i, \qquad s_i = \mathrm{softplus}(a_i) + 10^{-3}, \qquad
        (a_i, m_i) = f_i(x_{<i}, c)

    Both directions take about one pass of the network.

    Args:
        features: number of features D.
        hidden_features: width of all hidden layers of the network.
        context_features: number of context variables C, or None.
        num_blocks, use_residual_blocks, random_mask: of the network, see
            :class:`~made_flows.nflows.MADE`.
        activation, dropout_probability, use_batch_norm: likewise.

    Shapes:
        inputs: (rows, D), context: (rows, C); outputs (rows, D) and log-determinants (rows,).

    Raises:
        ValueError, TypeError: as for the network.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow for Density Estimation*.

    Example:
        >>> transform = MaskedAffineAutoregressiveTransform(features=3, hidden_features=16)
        >>> noise, log_det = transform(torch.zeros(10, 3))
        >>> data, minus_log_det = transform.inverse(noise)
        >>> data.shape, minus_log_det.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        _construct(self, theirs.MaskedAffineAutoregressiveTransform, own_arguments(locals()))


class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    _Checked, theirs.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
):
    r"""nflows' rational-quadratic spline autoregressive transform, from data to noise.

    .. math:: z_i = f(x_i; \theta_i(x_{<i}, c))

    with f a monotone rational-quadratic spline: of [0, 1], or with ``tails="linear"`` of
    [-``tail_bound``, ``tail_bound``] and the identity outside. Both directions take about one pass
    of the network.

    Args:
        features: number of features D.
        hidden_features: width of all hidden layers of the network.
        context_features: number of context variables C, or None.
        num_bins: bins of the spline.
        tails: None or ``"linear"``.
        tail_bound: where linear tails begin.
        num_blocks, use_residual_blocks, random_mask: of the network, see
            :class:`~made_flows.nflows.MADE`.
        activation, dropout_probability, use_batch_norm: likewise.
        min_bin_width, min_bin_height, min_derivative: smallest ones of the spline.

    Shapes:
        inputs: (rows, D), context: (rows, C); outputs (rows, D) and log-determinants (rows,).

    Raises:
        ValueError, TypeError: as for the network, and for other ``tails``.
        nflows.transforms.InputOutsideDomain: for inputs outside [0, 1] without tails.

    References:
        Durkan et al. 2019, *Neural Spline Flows*, equations 4-8.

    Example:
        >>> transform = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        ...     features=3, hidden_features=16, tails="linear", tail_bound=3.0
        ... )
        >>> noise, log_det = transform(torch.zeros(10, 3))
        >>> transform.inverse(noise)[0].abs().max() < 1e-5
        tensor(True)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_bins: int = 10,
        tails: str | None = None,
        tail_bound: float = 1.0,
        num_blocks: int = 2,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
        min_bin_width: float = rational_quadratic.DEFAULT_MIN_BIN_WIDTH,
        min_bin_height: float = rational_quadratic.DEFAULT_MIN_BIN_HEIGHT,
        min_derivative: float = rational_quadratic.DEFAULT_MIN_DERIVATIVE,
    ) -> None:
        arguments = own_arguments(locals())
        positive_integer(num_bins, "num_bins")
        expect_word(tails, (None, "linear"), "tails", "to be None or 'linear'")
        real_number(tail_bound, "tail_bound", above=0)
        real_number(min_derivative, "min_derivative", above=0)
        for name, minimum in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
            real_number(minimum, name, above=0)
            expect(minimum * num_bins <= 1, name, f"to be at most 1 / {num_bins}", minimum)
        kind = theirs.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        _construct(self, kind, arguments)
