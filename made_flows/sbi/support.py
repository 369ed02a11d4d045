"""Supports of distributions as intervals of columns, and the transforms that open them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from made_flows._checks import expect, shown
from made_flows.transforms.base import Transform
from made_flows.transforms.data import Log, Logit, Standardize

_SOFTNESS = 0.1
"""Of the ends of a box. A logit's bends whatever lies inside; a map with sharper ends crowds into a
thin layer there what a flow, not yet trained, puts beyond. Here a normal distribution, where flows
start, is about uniform on the box."""


class Bounds(nn.Module):
    """The interval of every column, (-inf, inf) for those that have none.

    Args:
        support: a distribution or a constraint.
        features: number of columns D.

    Raises:
        ValueError: for a support that is no product of intervals, or of another size.
    """

    low: Tensor
    high: Tensor

    def __init__(self, support: Any, features: int) -> None:
        super().__init__()
        for name, end in zip(("low", "high"), ends_of(support), strict=True):
            wide = torch.as_tensor(end, dtype=torch.get_default_dtype()).detach().cpu()
            if wide.dim() > 1 or wide.shape not in ((), (1,), (features,)):
                raise ValueError(
                    f"Expected support to be of {features} columns, as the training rows have; "
                    f"got {tuple(wide.shape)}"
                )
            self.register_buffer(name, wide.expand(features).clone())

    def transforms(self) -> list[Transform]:
        """Return transforms from the support to the real line, column by column."""
        below, above = self.low.isfinite(), self.high.isfinite()
        one_sided = below & ~above
        if bool((above & ~below).any()):
            raise ValueError(
                f"Expected support to have a lower bound where it has an upper one; got "
                f"{self.low.tolist()} and {self.high.tolist()}. Model the negative of such a column"
            )
        found: list[Transform] = []
        if bool((below & above).any()):
            low, high = (end.where(above, sign * torch.inf) for end, sign in
                         ((self.low, -1), (self.high, 1)))  # fmt: skip
            found.append(Logit(low, high, margin=0.0, softness=_SOFTNESS))
        if bool(one_sided.any()):
            start = self.low.where(one_sided, 0.0)
            found.append(Standardize(start, torch.ones_like(start)))
            found.append(Log(len(start), one_sided.nonzero().flatten().tolist()))
        return found

    def opened(self, x: Tensor, name: str) -> tuple[Tensor, list[Transform]]:
        """Return rows (N, D) on the real line, and the transforms that took them there.

        Raises:
            ValueError: for rows outside; the first is named.
        """
        outside = (~self.holds(x)).nonzero().flatten().tolist()
        expect(not outside, name, "to lie in the support", f"row {outside[:1]} outside")
        x, transforms = self.inside(x), self.transforms()
        for transform in transforms:
            x = transform.to_noise(x)[0]
        return x, transforms

    def holds(self, x: Tensor) -> Tensor:
        """Tell which rows (..., D) lie within, bounds included."""
        return self.hold(x).all(dim=-1)

    def hold(self, x: Tensor) -> Tensor:
        """Tell of every value (..., D) whether it lies within its column's bounds."""
        return (x >= self.low) & (x <= self.high)

    def inside(self, x: Tensor) -> Tensor:
        """Move values on a bound, or beyond, to the first number inside that has a density."""
        length = (self.high - self.low).where(self.high.isfinite(), 1.0)
        least = torch.finfo(x.dtype).tiny * length
        low = torch.maximum(torch.nextafter(self.low, self.high), self.low + least)
        high = torch.minimum(torch.nextafter(self.high, self.low), self.high - least)
        return x.maximum(low).minimum(high)


def ends_of(support: Any) -> tuple[Any, Any]:
    """Return the ends of a support or a distribution's: one number of all columns, or of each."""
    support = getattr(support, "support", support)
    if isinstance(support, constraints.independent):
        return ends_of(support.base_constraint)
    if isinstance(support, constraints.cat):
        parts = [
            [
                torch.as_tensor(end, dtype=torch.get_default_dtype()).expand(n)
                for end in ends_of(each)
            ]
            for each, n in zip(support.cseq, support.lengths, strict=True)
        ]
        return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])
    if support is constraints.real or support is constraints.real_vector:
        return -torch.inf, torch.inf
    low: Any = getattr(support, "lower_bound", -torch.inf)
    high: Any = getattr(support, "upper_bound", torch.inf)
    if getattr(support, "is_discrete", True) or not (
        hasattr(support, "lower_bound") or hasattr(support, "upper_bound")
    ):
        raise ValueError(
            "Expected support to be a distribution or constraint of real columns, each in an "
            f"interval of its own; got {shown(support)}"
        )
    return low, high
