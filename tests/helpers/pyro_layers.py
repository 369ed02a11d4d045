"""Transforms for Pyro, name -> constructor: a new one joins every check with one line.

All are float64 and in evaluation mode, with weights far from their start.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro.nn
import torch
from torch import Tensor

import made_flows as mf
import made_flows.pyro as mp
from tests.helpers.flow_models import shaken

CONTEXT = 3
"""Number of context variables of the conditional transforms."""


def _order(D: int) -> Tensor:
    """Neither sorted nor its own inverse (from three features on)."""
    return torch.tensor([*range(1, D), 0])


def _network(D: int, **more: Any) -> mp.AutoRegressiveNN:
    return mp.AutoRegressiveNN(D, [12, 10], permutation=_order(D), **more)


def _network_of_pyro(D: int) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input_dim = 1")  # of Pyro's
        return pyro.nn.AutoRegressiveNN(D, [12], permutation=_order(D))


def _spline_network(D: int, *sizes: int) -> mp.AutoRegressiveNN:
    return _network(D, param_dims=list(sizes))


AUTOREGRESSIVE: dict[str, Callable[[int], Any]] = {
    "affine": lambda D: mp.AffineAutoregressive(_network(D)),
    "affine, stable": lambda D: mp.AffineAutoregressive(_network(D), stable=True),
    "affine, bounded": lambda D: mp.AffineAutoregressive(_network(D), scale="bounded"),
    "affine, skip connections": lambda D: mp.AffineAutoregressive(
        _network(D, skip_connections=True)
    ),
    "affine, residual MADE": lambda D: mp.AffineAutoregressive(
        mf.MADE(D, hidden_features=(12, 8), residual=True, order=_order(D))
    ),
    "affine, one layer": lambda D: mp.affine_autoregressive(D, hidden_dims=[12]),
    "spline, linear": lambda D: mp.SplineAutoregressive(
        D, _spline_network(D, 4, 4, 3, 4), count_bins=4
    ),
    "spline, quadratic": lambda D: mp.SplineAutoregressive(
        D, _spline_network(D, 4, 4, 3), count_bins=4, order="quadratic"
    ),
}
"""One autoregressive step, by a network with Pyro's interface."""

TRANSFORMS: dict[str, Callable[[int], Any]] = {
    **AUTOREGRESSIVE,
    "IAF": lambda D: mp.IAF(D, transforms=2, hidden_features=(12,)),
    "IAF, gated": lambda D: mp.IAF(D, transforms=2, hidden_features=(12, 10), bijection="gated"),
    "IAF, spline": lambda D: mp.IAF(D, transforms=1, hidden_features=(12,), bijection="spline"),
    "MAF": lambda D: mp.MAF(D, transforms=2, hidden_features=(12,)),
    "MAF, normalised": lambda D: mp.MAF(
        D, transforms=2, hidden_features=(12,), normalize="actnorm", order="random"
    ),
    "affine, network of Pyro": lambda D: mp.AffineAutoregressive(_network_of_pyro(D)),
    "linear": lambda D: mp.FlowTransform(mf.InvertibleLinear(D)),
    "inverse of affine": lambda D: mp.affine_autoregressive(D, hidden_dims=[12]).inv,
    "inverse of MAF": lambda D: mp.MAF(D, transforms=1, hidden_features=(12,)).inv,
}
"""All transforms without a context: constructors from the number of features."""

CONDITIONAL: dict[str, Callable[[int], Any]] = {
    "affine": lambda D: mp.conditional_affine_autoregressive(D, CONTEXT, [12]),
    "spline": lambda D: mp.conditional_spline_autoregressive(D, CONTEXT, [12], count_bins=4),
    "spline, quadratic": lambda D: mp.conditional_spline_autoregressive(
        D, CONTEXT, [12], count_bins=4, order="quadratic"
    ),
    "IAF": lambda D: mp.ConditionalIAF(D, CONTEXT, 2, (12,)),
    "IAF, affine": lambda D: mp.ConditionalIAF(D, CONTEXT, 1, (12, 10), bijection="affine"),
    "MAF": lambda D: mp.ConditionalMAF(D, CONTEXT, 2, (12,)),
    "flow": lambda D: mp.ConditionalFlowTransform(
        mf.Flow([mf.InvertibleLinear(D), *mf.IAF(D, CONTEXT, 1, (12,)).transforms])
    ),
}
"""All transforms with a context: likewise."""


def transform(name: str, features: int = 4) -> Any:
    """A transform of the table."""
    return _made(TRANSFORMS[name], features)


def conditional(name: str, features: int = 4) -> Any:
    """A conditional transform of the table."""
    return _made(CONDITIONAL[name], features)


def _made(constructor: Callable[[int], Any], features: int) -> Any:
    return shaken(constructor(features))
