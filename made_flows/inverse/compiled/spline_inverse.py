"""Rational splines inverted outside of the sweep, value by value, by the kernel of their step.

Values alone are computed here, where no gradients are asked for; everything else is left to the
libraries' own functions, which take a hundred torch operations.
"""

from __future__ import annotations

from ctypes import CFUNCTYPE, c_int64, c_void_p

import torch
from torch import Tensor

from made_flows._torch import as_rows
from made_flows.inverse.compiled.compilation import address_of
from made_flows.inverse.compiled.layout import DTYPES, SCRATCH
from made_flows.inverse.compiled.steps import find_step
from made_flows.univariate.step_kernel import SplineForm, StepKernel

_CALL = CFUNCTYPE(None, c_void_p, c_void_p, *[c_int64] * 6)


def invert(spline: SplineForm, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor] | None:
    """Find x with f(x) = y, and log dx/dy; None where the compiled function cannot say.

    Args:
        spline: the spline f.
        y: (...).
        parameters: (..., K), where y has as many entries.
    """
    if y.dtype not in DTYPES:
        return None
    if not bool((y.sum() + parameters.sum()).isfinite()):
        return None  # libraries differ in what becomes of NaN
    flat = as_rows(parameters, y.shape)
    place = (y.reshape(-1).double() - spline.left) / spline.width
    inside = (place >= 0) & (place <= 1)
    if not spline.tails and not bool(inside.all()):
        return None
    x, log_derivative = _score(spline, y.reshape(-1), flat).to(y.dtype)
    return x.reshape(y.shape), log_derivative.reshape(y.shape)


def _score(spline: SplineForm, y: Tensor, parameters: Tensor) -> Tensor:
    """Return values and logarithms of derivatives, (2, N), in double precision."""
    kernel = StepKernel("rational_spline", constants=tuple(map(float, spline)), inverse=True)
    lanes, count = parameters.shape
    # All values are the lanes of one tile.
    work = torch.empty(count + 3 + SCRATCH, lanes, dtype=torch.float64, device="cpu")
    work[:count] = parameters.t()
    work[count] = y
    work[count + 2] = 0
    numbers = torch.tensor(kernel.numbers, dtype=torch.float64, device="cpu")
    call = _CALL(address_of(find_step(kernel.kind, "score"), False))
    call(work.data_ptr(), numbers.data_ptr(), lanes, 0, count, count, count + 3, count + 1)
    return work[count + 1 : count + 3]
