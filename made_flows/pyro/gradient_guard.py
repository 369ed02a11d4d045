"""A guard on the gradients of single draws: one bad draw must not end a run of training."""

from __future__ import annotations

import logging
import math
from collections import deque

import torch
from torch import Tensor

_LIMIT = 100.0
_REMEMBERED = 50
_NEWEST, _DROWNS = 0.2, 10.0
_COUNTS = 1e-6
"""Share of the largest weight from which on a draw says what is usual."""


class PathBalance:
    r"""Tells where a flow's own score would drown the model's gradient.

    Path gradients are :math:`\nabla_x \log q(x) - \nabla_x \log p(x)` at a draw x. Where a flow has
    become nearly singular the first is huge, and what is left of the second is noise: with Adam, a
    few such steps take a guide to places that it does not come back from. The gradient of
    :math:`\log q` by the weights has the same mean, and none of that. It is taken while, in some
    coordinate, the first is ten times as large as the second, in the mean of the last few steps;
    both are as large where q is p.

    Example:
        >>> balance = PathBalance()
        >>> balance.note(torch.tensor([[1.0, 50.0]]), torch.tensor([[2.0, 3.0]]))
        >>> balance.drowns()
        True
    """

    def __init__(self) -> None:
        self._sizes: Tensor | None = None

    def note(self, score: Tensor, of_model: Tensor) -> None:
        """Note the gradients (..., D), but for signs, of both log-densities at a step's draws."""
        both = torch.stack([score, of_model]).reshape(2, -1, score.shape[-1]).abs().mean(dim=1)
        known = both if self._sizes is None else self._sizes
        finite = both.isfinite().all(dim=0)
        self._sizes = torch.where(finite, torch.lerp(known, both, _NEWEST), known)

    def drowns(self) -> bool:
        """Tell whether the weights' gradient is to be taken in place of the path's."""
        sizes = self._sizes
        return sizes is not None and bool((sizes[0] > _DROWNS * sizes[1]).any())


class DrawWeights:
    """How much each draw counts in an objective: the size of the derivative by its log-density.

    That is the same for all in an ELBO. In bounds that weigh draws, as by importance, it is the
    weight of each, which a gradient has as a factor.

    Attributes:
        score: the slope of the draws' log-densities, where an ELBO is asked that has a path.
        by_path: whether it then gets path gradients.
    """

    def __init__(self) -> None:
        self._found: Tensor | None = None
        self.score: Tensor | None = None
        self.by_path = True

    def add(self, gradient: Tensor) -> None:
        """Note the gradient (...) of draws' log-densities, which come before those of draws."""
        size = gradient.detach().abs()
        self._found = size if self._found is None else self._found + size

    def take(self) -> Tensor | None:
        """Return the weights (...) of a backward pass; None where no density takes part."""
        found, self._found = self._found, None
        return found


class GradientGuard:
    r"""Limit each draw's gradient to a hundred times what is usual; drop what is no number.

    A draw in a region where the model overflows has a gradient of NaN, or one so large that Adam's
    average of squares keeps every later step small for hundreds of steps. With :math:`g_n` the
    gradient of draw n, :math:`w_n` its weight (:class:`DrawWeights`) and m the median of
    :math:`\max_i |g_{ni}| / w_n` over the draws of the last fifty steps,

    .. math:: g_n \leftarrow g_n \min\bigl(1, 100\, m\, w_n / \max_i |g_{ni}|\bigr),

    and zero where it is not finite. The limit is relative, so that it knows nothing of units; where
    gradients are usual for their time it does nothing. What it limits first is said once, on the
    logger ``made_flows``.

    Attributes:
        balance: what it noted of path gradients.

    Example:
        >>> guard = GradientGuard()
        >>> guard(torch.tensor([[1.0, 2.0], [0.5, float("nan")], [3e9, 1.0], [2.0, 2.0]]))[:2]
        tensor([[1., 2.],
                [0., 0.]])
    """

    def __init__(self) -> None:
        self.balance = PathBalance()
        self._usual: deque[float] = deque(maxlen=_REMEMBERED)
        self._said = False

    def __call__(self, gradient: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the gradient (..., D) of draws of weights (...), all one if not given, guarded."""
        # The largest entry and not the norm: squares overflow long before the numbers do.
        sizes = gradient.abs().amax(dim=-1, keepdim=True)
        sizes, counts = _by_weight(sizes, weights)
        ordered = sizes[counts].sort().values.tolist()  # what is no number comes last
        count = len(ordered)
        while ordered and not math.isfinite(ordered[-1]):
            ordered.pop()
        if ordered:
            self._usual.append(ordered[(len(ordered) - 1) // 2])
        usually = sorted(self._usual)[(len(self._usual) - 1) // 2] if self._usual else 0.0
        limit = _LIMIT * usually if usually > 0 else math.inf  # nothing is known, or all are zero
        if len(ordered) == count == sizes.numel() and (not ordered or ordered[-1] <= limit):
            return gradient
        finite = gradient.isfinite().all(dim=-1, keepdim=True)
        usual = finite & (sizes <= limit)
        if not self._said and bool((counts & ~usual).any()):
            self._said = True
            logging.getLogger("made_flows").warning(
                "A draw of the guide had a gradient of %s, more than %g times what is usual: it is "
                "limited, and others after it without a word",
                f"{float(sizes[counts & ~usual][0]):.3g}",
                _LIMIT,
            )
        shares = torch.where(usual, 1.0, limit / sizes).to(gradient.dtype)
        return torch.where(finite, gradient * shares, 0.0)


def _by_weight(sizes: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Divide sizes (..., 1) by weights (...); say which are large enough for what is usual."""
    if weights is None or weights.shape != sizes.shape[:-1]:
        return sizes, torch.ones_like(sizes, dtype=torch.bool)
    weights = weights.unsqueeze(-1).double()  # where products with small ones are numbers yet
    largest = weights.max() if weights.numel() else weights.new_zeros(())
    if not (bool(largest.isfinite()) and bool(largest > 0)):
        return sizes, torch.ones_like(sizes, dtype=torch.bool)
    counts = weights > _COUNTS * largest
    # Of a draw that does not count, neither does what its gradient may be.
    return torch.where(sizes > 0, sizes / weights, 0.0), counts
