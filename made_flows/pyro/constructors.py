"""Pyro's autoregressive transforms by their sizes, with networks of their own."""

from __future__ import annotations

from collections.abc import Sequence

from made_flows._checks import positive_integer
from made_flows.interop.libraries.pyro import spline_sizes
from made_flows.pyro.networks import AutoRegressiveNN, ConditionalAutoRegressiveNN
from made_flows.pyro.transforms import (
    AffineAutoregressive,
    ConditionalAffineAutoregressive,
    ConditionalSplineAutoregressive,
    SplineAutoregressive,
)
from made_flows.univariate.scales import ScaleRule


def affine_autoregressive(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    log_scale_min_clip: float = -5.0,
    log_scale_max_clip: float = 3.0,
    sigmoid_bias: float = 2.0,
    stable: bool = False,
    *,
    scale: str | ScaleRule | None = None,
) -> AffineAutoregressive:
    """Make an :class:`AffineAutoregressive` with a network of its own.

    Args:
        input_dim: number of features D.
        hidden_dims: widths of the hidden layers; ``[3 * input_dim + 1]`` by default.
        log_scale_min_clip, log_scale_max_clip, sigmoid_bias, stable, scale: as for
            :class:`AffineAutoregressive`.

    Example:
        >>> import torch
        >>> affine_autoregressive(5)(torch.zeros(2, 5)).shape
        torch.Size([2, 5])
    """
    input_dim = positive_integer(input_dim, "input_dim")
    hidden_dims = [3 * input_dim + 1] if hidden_dims is None else hidden_dims
    network = AutoRegressiveNN(input_dim, hidden_dims)
    return AffineAutoregressive(
        network, log_scale_min_clip, log_scale_max_clip, sigmoid_bias, stable, scale=scale
    )


def conditional_affine_autoregressive(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    log_scale_min_clip: float = -5.0,
    log_scale_max_clip: float = 3.0,
    sigmoid_bias: float = 2.0,
    stable: bool = False,
    *,
    scale: str | ScaleRule | None = None,
) -> ConditionalAffineAutoregressive:
    """Make a :class:`ConditionalAffineAutoregressive` with a network of its own.

    Args:
        input_dim: number of features D.
        context_dim: number of context variables C.
        hidden_dims: widths of the hidden layers; ``[10 * input_dim]`` by default.
        log_scale_min_clip, log_scale_max_clip, sigmoid_bias, stable, scale: as for
            :class:`AffineAutoregressive`.

    Example:
        >>> import torch
        >>> conditional = conditional_affine_autoregressive(5, 2)
        >>> conditional.condition(torch.ones(2))(torch.zeros(3, 5)).shape
        torch.Size([3, 5])
    """
    input_dim = positive_integer(input_dim, "input_dim")
    context_dim = positive_integer(context_dim, "context_dim")
    hidden_dims = [10 * input_dim] if hidden_dims is None else hidden_dims
    network = ConditionalAutoRegressiveNN(input_dim, context_dim, hidden_dims)
    return ConditionalAffineAutoregressive(
        network, log_scale_min_clip, log_scale_max_clip, sigmoid_bias, stable, scale=scale
    )


def spline_autoregressive(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "linear",
) -> SplineAutoregressive:
    """Make a :class:`SplineAutoregressive` with a network of its own.

    Args:
        input_dim: number of features D.
        hidden_dims: widths of the hidden layers; ``[10 * input_dim] * 2`` by default.
        count_bins, bound, order: as for :class:`SplineAutoregressive`.

    Example:
        >>> import torch
        >>> spline_autoregressive(5, order="quadratic")(torch.zeros(2, 5)).shape
        torch.Size([2, 5])
    """
    input_dim = positive_integer(input_dim, "input_dim")
    hidden_dims = [10 * input_dim] * 2 if hidden_dims is None else hidden_dims
    param_dims = spline_sizes(positive_integer(count_bins, "count_bins"), order)
    network = AutoRegressiveNN(input_dim, hidden_dims, param_dims)
    return SplineAutoregressive(input_dim, network, count_bins, bound, order)


def conditional_spline_autoregressive(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    count_bins: int = 8,
    bound: float = 3.0,
    order: str = "linear",
) -> ConditionalSplineAutoregressive:
    """Make a :class:`ConditionalSplineAutoregressive` with a network of its own.

    Args:
        input_dim: number of features D.
        context_dim: number of context variables C.
        hidden_dims: widths of the hidden layers; ``[10 * input_dim] * 2`` by default.
        count_bins, bound, order: as for :class:`SplineAutoregressive`.

    Example:
        >>> import torch
        >>> conditional = conditional_spline_autoregressive(5, 2)
        >>> conditional.condition(torch.ones(2))(torch.zeros(3, 5)).shape
        torch.Size([3, 5])
    """
    input_dim = positive_integer(input_dim, "input_dim")
    context_dim = positive_integer(context_dim, "context_dim")
    hidden_dims = [10 * input_dim] * 2 if hidden_dims is None else hidden_dims
    param_dims = spline_sizes(positive_integer(count_bins, "count_bins"), order)
    network = ConditionalAutoRegressiveNN(input_dim, context_dim, hidden_dims, param_dims)
    return ConditionalSplineAutoregressive(input_dim, network, count_bins, bound, order)
