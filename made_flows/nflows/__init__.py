"""The nflows plug-in: change the import, and an nflows model samples as fast as it scores.

Classes of nflows' names have nflows' signatures, parameter order, shapes and direction (data to
noise), and its state dicts load into them with the same numbers. ``AsFlow``, ``AsTransform`` and
``AsDistribution`` bring this library's own models into nflows.
"""

try:
    import nflows as _host  # noqa: F401
except ImportError as error:
    raise ImportError(
        "Expected nflows to be installed, which made_flows.nflows is for; got none. "
        "pip install 'made-flows[nflows]'"
    ) from error

from made_flows.distributions.base import TrainingModeWarning
from made_flows.nflows.adapters import AsDistribution, AsFlow, AsTransform
from made_flows.nflows.flows import Flow, MaskedAutoregressiveFlow, StandardNormal
from made_flows.nflows.networks import MADE, MixtureOfGaussiansMADE
from made_flows.nflows.transforms import (
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)

__all__ = [
    "MADE",
    "AsDistribution",
    "AsFlow",
    "AsTransform",
    "Flow",
    "MaskedAffineAutoregressiveTransform",
    "MaskedAutoregressiveFlow",
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
    "MixtureOfGaussiansMADE",
    "StandardNormal",
    "TrainingModeWarning",
]
