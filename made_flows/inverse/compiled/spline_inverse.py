"""Rational splines inverted outside of the sweep, value by value, by the kernel of their step.

Values alone are computed here, where no gradients are asked for; everything else is left to the
libraries' own functions, which take a hundred torch operations.
"""

from __future__ import annotations

from ctypes import CFUNCTYPE, c_int64, c_void_p
from importlib.util import find_spec

import torch
from torch import Tensor

from made_flows._torch import as_rows, has_concrete_values
from made_flows.univariate.step_kernel import SplineForm, StepKernel

_CALL = CFUNCTYPE(None, c_void_p, c_void_p, *[c_int64] * 6)


def invert(spline: SplineForm, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor] | None:
    """Find x with f(x) = y, and log dx/dy; None where the compiled function cannot say.

    Args:
        spline: the spline f.
        y: (...).
        parameters: (..., K), where y has as many entries.
    """
    if torch.is_grad_enabled() or y.device.type != "cpu" or not has_concrete_values(y):
        return None
    if y.dtype not in (torch.float32, torch.float64) or find_spec("numba") is None:
        return None
    flat = as_rows(parameters, y.shape)
    place = (y.reshape(-1).double() - spline.left) / spline.width
    inside = (place >= 0) & (place <= 1)
    if not spline.tails and not bool(inside.all()):
        return None
    x, scratch = _step(spline, y.reshape(-1), flat)
    log_derivative = torch.where(inside, -_log_slope(spline, place, scratch), 0.0)
    return x.to(y.dtype).reshape(y.shape), log_derivative.to(y.dtype).reshape(y.shape)


def _step(spline: SplineForm, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return values, and the scratch space of their steps, both in double precision."""
    from made_flows.inverse.compiled.compilation import step_address
    from made_flows.inverse.compiled.layout import SCRATCH
    from made_flows.inverse.compiled.steps import find_step

    kernel = StepKernel("rational_spline", constants=tuple(map(float, spline)), inverse=True)
    step = find_step(kernel.kind)
    lanes, count = parameters.shape
    # All values are the lanes of one tile.
    work = torch.empty(count + 2 + SCRATCH, lanes, dtype=torch.float64, device="cpu")
    work[:count] = parameters.t()
    work[count] = y
    numbers = torch.tensor(kernel.numbers, dtype=torch.float64, device="cpu")
    call = _CALL(step_address(step, False))
    scratch = count + 2
    call(work.data_ptr(), numbers.data_ptr(), lanes, 0, count, count, scratch, count + 1)
    return work[count + 1], work[scratch:]


def _log_slope(spline: SplineForm, place: Tensor, scratch: Tensor) -> Tensor:
    """Return the logarithm of dy/dx, from what the kernel leaves of the value's bin."""
    _, _, bottom, width, height, start, end, inner, xi = scratch[:9]
    slope, rest = height / width, 1 - xi
    if not spline.linear:
        across = xi * rest
        above = end * xi * xi + 2 * slope * across + start * rest * rest
        below = slope * (1 - 2 * across) + (start + end) * across
        return 2 * (torch.log(slope) - torch.log(below)) + torch.log(above)
    theta = ((place - bottom) / height).clamp(0, 1)
    last = torch.sqrt(start / end)
    weight = (inner * start + (1 - inner) * last * end) / slope
    middle = inner * last / ((1 - inner) + inner * last)
    lower = theta <= middle
    rate = torch.where(lower, weight * inner * middle, last * weight * (1 - inner) * (1 - middle))
    below = torch.where(lower, (inner - xi) + weight * xi, weight * rest + last * (xi - inner))
    return torch.log(rate * slope) - 2 * torch.log(below)
