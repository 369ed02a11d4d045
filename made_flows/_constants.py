"""Constants of modules, which are in no state dict, keep their values where a device has none.

Memory that ``to_empty`` gives holds anything, and ``load_state_dict`` fills what was saved: without
these, the columns that a transform maps, say, would be others, and nothing would tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn


def with_value(moved: Tensor, before: Tensor) -> Tensor:
    """Return a constant that was moved, whose value comes back from a device that has none."""
    value = getattr(before, "_made_flows_value", None) if before.is_meta else before
    if value is None or not (moved.is_meta or before.is_meta):
        return moved
    if not moved.is_meta:
        return cast(Tensor, value.to(moved))
    moved._made_flows_value = value  # type: ignore[attr-defined]
    return moved


class WithConstants(nn.Module):
    """A module with buffers that no state dict has, as they follow from its arguments.

    After ``to("meta")`` and ``to_empty`` they are what they were.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        names = self._non_persistent_buffers_set
        before = {name: self._buffers[name] for name in names}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None:
                self._buffers[name] = with_value(new, old)
        return self
