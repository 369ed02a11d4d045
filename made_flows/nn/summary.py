"""A MADE in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from made_flows.nn.made import MADE

__all__ = ["summarize"]


def summarize(made: MADE) -> str:
    """What its representation says of a MADE."""
    parts = [f"features={made.features}"]
    if made.context:
        parts.append(f"context={made.context}")
    parts.append(f"hidden_features={made.hidden_features}")
    same = len(set(made.outputs)) == 1
    parts.append(f"parameters={made.outputs[0] if same else made.outputs}")
    if set(made.inputs) != {1}:
        parts.append(f"inputs={made.inputs[0] if len(set(made.inputs)) == 1 else made.inputs}")
    if made.graph is not None:
        parts.append(f"levels={int(made.ranks.max()) + 1}")
    else:
        order = made.order.tolist()
        if order == sorted(order):
            shown = "natural"
        elif order == sorted(order, reverse=True):
            shown = "reversed"
        else:
            shown = str(order) if made.features <= 12 else f"{str(order[:6])[:-1]}, ...]"
        parts.append(f"order={shown}")
    if made.residual:
        parts.append("residual=True")
    if made.mask_weights:
        parts.append(f"mask_weights={made.mask_weights!r}")
    return ", ".join(parts)
