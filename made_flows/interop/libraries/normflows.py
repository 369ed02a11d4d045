"""Layers of normflows: its MADE, affine and rational-quadratic spline flows."""

from __future__ import annotations

from typing import Any

from normflows.flows.affine.autoregressive import Autoregressive, MaskedAffineAutoregressive
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive as Spline,
)
from normflows.nets import made
from torch import Tensor

from made_flows.interop import bijections as maps
from made_flows.interop.conditioner import ForeignConditioner
from made_flows.interop.fast_layer import Fast
from made_flows.interop.libraries import _resmade as mades
from made_flows.nn.validation import NotUnderstoodError, expect_own
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule

_VERSION = mades.MadeVersion(made, gates=True)


def find(module: Any) -> type | None:
    """Find the class that makes a normflows module fast; None if nothing is slow in it."""
    return FastInverse if isinstance(module, Autoregressive) else None


def _spline(layer: Any) -> Bijection:
    if isinstance(layer.tails, list | tuple) or isinstance(layer.tail_bound, Tensor):
        raise NotUnderstoodError("its features differ in their tails or bounds")
    return maps.rational_quadratic(layer)


def _conditioner(net: Any, parameters: int) -> ForeignConditioner:
    expect_own(net, made.MADE)
    return mades.made_conditioner(net, _VERSION, parameters)


class FastInverse(mades.FastInverse):
    """The inverse of a normflows layer, in about one pass."""

    def made_flows_read(self) -> Fast:
        affine = maps.ScaleFirst(ScaleRule("sigmoid", offset=2.0, floor=1e-3))
        known = {MaskedAffineAutoregressive: lambda _: affine, Spline: _spline}
        return mades.read_transform(self, known, _conditioner)
