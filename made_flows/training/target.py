"""What a model takes: the shapes, values, device and dtype of the rows it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from made_flows._checks import check_finite, check_values, expect
from made_flows.distributions.missing import advised
from made_flows.training.convert import Extent

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""The rows of one step and their contexts."""


@dataclass(frozen=True)
class Target:
    """What a model takes: shapes and a check of values (where it has them), device, dtype.

    ``context`` is the shape of one context, () for none, None for any. Where a network of the
    model's own reads contexts (``embeds``), they keep 32 and 64 bits of integers, as tokens have.

    ``missing`` says whether NaN is a missing value to it (None for a model that does not know),
    and ``filler`` what it puts there. A model that standardises its data takes them in double
    precision (``takes_double``): a column of 1e9 +- 1 has nothing left in single precision. So
    does one whose head has values of that dtype. Of discrete data, contexts alone are standardised
    (``context_takes_double``).
    """

    features: int | None
    context: tuple[int, ...] | None
    device: torch.device
    dtype: torch.dtype
    check_values: Callable[[Tensor], None] | None = None
    missing: bool | None = None
    filler: float = 0.0
    takes_double: bool = False
    context_takes_double: bool = False
    discrete: bool = False
    mixed: bool = False
    embeds: bool = False
    moves_rows: bool = False  # all at once, where there is room on the device
    compiled: bool = False  # and then it cannot look for missing values while it draws orders

    @classmethod
    def of(
        cls, model: nn.Module, double: tuple[bool, bool] = (False, False), moves_rows: bool = False
    ) -> Target:
        """Read the target off a model: its ``features`` and ``context``, its first float tensor.

        ``double`` says whether data and contexts are taken in double precision.
        """
        device, dtype = torch.device("cpu"), torch.get_default_dtype()
        for tensor in chain(model.parameters(), model.buffers()):
            device = tensor.device
            if tensor.is_floating_point():
                dtype = tensor.dtype
                break
        features, size = (getattr(model, name, None) for name in ("features", "context"))
        context = getattr(model, "context_shape", None)
        embeds = context is not None
        if isinstance(size, Integral) and not embeds:
            context = (size,) if size else ()
        head = getattr(model, "head", None)
        fine = getattr(head, "value_dtype", None) is torch.float64
        has_double = device.type != "mps"
        of_data, of_context = (has_double and (fine or each) for each in double)
        support = getattr(head, "support", None)
        return cls(
            int(features) if isinstance(features, Integral) else None, context, device, dtype,
            check_values=getattr(head, "check_values", None),
            missing=getattr(model, "takes_missing", None), filler=getattr(head, "filler", 0.0),
            takes_double=of_data, context_takes_double=of_context, embeds=embeds,
            moves_rows=moves_rows,
            discrete=bool(getattr(support, "is_discrete", False)),
            mixed=bool(getattr(support, "is_mixed", False)),
        )  # fmt: skip

    def check(self, x: Tensor, context: Tensor | None, name: str, first: int = 0) -> Batch:
        """Check the shapes and values of some rows; floats come back in the model's dtype.

        Errors name the rows from ``first`` on, the number of the first of them.
        """
        x = self._check(x, name, None if self.features is None else (self.features,), first)
        if self.check_values is not None:
            # A missing value is to the check what it is to the model.
            missing = self._may_miss(x)
            known = x.nan_to_num(self.filler, torch.inf, -torch.inf) if missing else x
            try:
                self.check_values(known.to(self.device))
            except ValueError as error:  # the model would name a row of a shuffled batch
                part = f"{name}, rows from {first} on" if first else name
                raise ValueError(f"{error} of {part}") from None
        if context is None:
            wanted = f"to come with a context of shape {_rows_of(self.context or ())}"
            expect(not self.context, name, wanted, "no context")
            return x, None
        expect(self.context != (), name, "without a context, as the model takes none", "a context")
        context = self._check(context, f"the context of {name}", self.context, first, True)
        expect_paired(x, context, name)
        return x, context

    def _check(
        self, x: Tensor, name: str, each: tuple[int, ...] | None, first: int, context: bool = False
    ) -> Tensor:
        fits = x.dim() >= 2 if context else x.dim() == 2
        if not fits if each is None else x.dim() == 0 or tuple(x.shape[1:]) != each:
            shape = _rows_of(each or ("C" if context else "features",))
            raise ValueError(f"Expected {name} of shape {shape}; got {tuple(x.shape)}")
        # Floats are cast before they are checked (1e300 is no float32), integers as they are
        # used: all of them at once would take four times the memory of bytes.
        x = x.detach().to(self._dtype_of(x, context)) if x.is_floating_point() else x.detach()
        if not context and self._may_miss(x):
            wanted = "to be finite, or NaN where it is missing"
            if self.compiled:
                wanted = "without missing values, or compile=False, which training on them needs"
            present = torch.isfinite(x) if self.compiled else ~torch.isinf(x)
            check_values(x, present, name, wanted, first)
            return x
        try:
            check_finite(x, name, first)
        except ValueError as error:
            if context or self.missing is None:
                raise
            raise advised(error, x) from None
        return x

    def measure(self, x: Tensor, context: Tensor | None, of_x: Extent, of_context: Extent) -> None:
        """Look at the extent of rows and contexts, where they will be rounded."""
        for part, extent in ((x, of_x), (context, of_context)):
            if part is not None:
                extent.add(part, self._dtype_of(part, extent is of_context))

    def _may_miss(self, x: Tensor) -> bool:
        return bool(self.missing) and x.is_floating_point()

    def move(self, x: Tensor, context: Tensor | None) -> Batch:
        """Return rows and contexts on the model's device, in dtypes that it takes."""
        x = x.to(self.device, self._dtype_of(x), non_blocking=True)
        if context is not None:
            context = context.to(self.device, self._dtype_of(context, True), non_blocking=True)
        return x, context

    def settle(self, x: Tensor, context: Tensor | None) -> Batch:
        """Return rows where they stay during training: on the device, if it has room for them."""
        if self.moves_rows and self.device.type == "cuda":
            size = sum(each.nbytes for each in (x, context) if each is not None)
            if 4 * size < torch.cuda.mem_get_info(self.device)[0]:
                return self.move(x, context)
        return x, context

    def cast(self, x: Tensor, context: Tensor | None) -> Batch:
        """Return rows and contexts as :meth:`check` does, those that were checked before."""
        if x.is_floating_point():
            x = x.to(self._dtype_of(x))
        if context is not None and context.is_floating_point():
            context = context.to(self._dtype_of(context, True))
        return x, context

    def _dtype_of(self, x: Tensor, context: bool = False) -> torch.dtype:
        if context and self.embeds:
            return x.dtype if x.dtype in (torch.int64, torch.int32) else self.dtype
        exact = x.dtype in (torch.float64, torch.int64, torch.int32)
        takes_double = self.context_takes_double if context else self.takes_double
        return torch.float64 if exact and takes_double else self.dtype


def expect_paired(x: Any, context: Any, name: str) -> None:
    """Refuse rows and contexts of different numbers."""
    wanted = f"to have {len(x)} rows, as {name} has"
    expect(len(context) == len(x), f"the context of {name}", wanted, len(context))


def _rows_of(each: tuple[int | str, ...]) -> str:
    return f"(N, {', '.join(map(str, each))})"
