"""A guard on the gradients of single draws: one bad draw must not end a run of training."""

from __future__ import annotations

import logging
import math
from collections import deque

import torch
from torch import Tensor

_LIMIT = 100.0
_REMEMBERED = 50


class GradientGuard:
    r"""Limit each draw's gradient to a hundred times what is usual; drop what is no number.

    A draw in a region where the model overflows has a gradient of NaN, or one so large that Adam's
    average of squares keeps every later step small for hundreds of steps. With :math:`g_n` the
    gradient of draw n and m the median of :math:`\max_i |g_{ni}|` over the draws of the last
    fifty steps,

    .. math:: g_n \leftarrow g_n \min\bigl(1, 100\, m / \max_i |g_{ni}|\bigr),

    and zero where it is not finite. The limit is relative, so that it knows nothing of units; where
    gradients are usual for their time it does nothing. What it limits first is said once, on the
    logger ``made_flows``.

    Example:
        >>> guard = GradientGuard()
        >>> guard(torch.tensor([[1.0, 2.0], [0.5, float("nan")], [3e9, 1.0], [2.0, 2.0]]))[:2]
        tensor([[1., 2.],
                [0., 0.]])
    """

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=_REMEMBERED)
        self._said = False

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the gradient (..., D) of draws, guarded."""
        # The largest entry and not the norm: squares overflow long before the numbers do.
        sizes = gradient.abs().amax(dim=-1, keepdim=True)
        ordered = sizes.flatten().sort().values.tolist()  # what is no number comes last
        count = len(ordered)
        while ordered and not math.isfinite(ordered[-1]):
            ordered.pop()
        if ordered:
            self._usual.append(ordered[(len(ordered) - 1) // 2])
        usually = sorted(self._usual)[(len(self._usual) - 1) // 2] if self._usual else 0.0
        limit = _LIMIT * usually if usually > 0 else math.inf  # nothing is known, or all are zero
        if len(ordered) == count and (not ordered or ordered[-1] <= limit):
            return gradient
        finite = sizes.isfinite()
        usual = finite & (sizes <= limit)
        if not self._said:
            self._said = True
            logging.getLogger("made_flows").warning(
                "A draw of the guide had a gradient of %s, more than %g times what is usual: it is "
                "limited, and others after it without a word",
                f"{float(sizes[~usual][0]):.3g}",
                _LIMIT,
            )
        limited = gradient * torch.where(usual, 1.0, limit / sizes)
        return torch.where(finite, limited, 0.0)
