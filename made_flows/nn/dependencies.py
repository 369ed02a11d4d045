"""Which feature's parameters can depend on which feature, and a warning where layers are narrow."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

from torch import Tensor

from made_flows.nn import masks as mk
from made_flows.nn.connectivity import Connectivity, feature_reach
from made_flows.nn.linear import MaskedLinear

if TYPE_CHECKING:
    from made_flows.nn.made import MADE

__all__ = ["DependencyWarning", "reach_of", "warn_of_lost_dependencies"]


class DependencyWarning(UserWarning):
    """Hidden layers are too narrow for the network to connect all the features it could."""


def reach_of(made: MADE) -> Tensor:
    """Which feature's parameters can depend on which feature: boolean (features, features)."""
    masks = [cast(MaskedLinear, layer).mask for layer in made.layers]
    paths = [masks]
    if made.residual:
        # A block adds to the stream: what the stream could read before, it still can.
        # Past the first layer every block end has the stream's own connectivity.
        paths.append([masks[0], masks[-1]])
    if made.direct is not None:
        paths.append([made.direct.mask])
    return feature_reach(made.shape, paths)


def warn_of_lost_dependencies(made: MADE, connectivity: Connectivity) -> None:
    """Warn, on behalf of a constructor, where hidden layers are too narrow for their features."""
    if made.direct is not None or not made.hidden_features:
        return
    lost = mk.lost_dependencies(reach_of(made), connectivity.ranks, connectivity.allowed)
    if lost:
        shown = ", ".join(f"{i} on {j}" for i, j in lost[:3]) + (", ..." if lost[3:] else "")
        enough = (
            "wider layers"
            if made.graph is not None
            else f"layers of at least {made.features - (not made.context)} units"
        )
        warnings.warn(
            f"hidden_features={made.hidden_features} are too narrow for {made.features} "
            f"features: {len(lost)} of {int(connectivity.allowed.sum())} dependencies are lost "
            f"(feature {shown}). Use {enough}, or direct=True, which restores them linearly",
            DependencyWarning,
            stacklevel=4,
        )
