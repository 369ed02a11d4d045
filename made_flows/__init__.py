"""Masked autoregressive networks, density models and flows whose slow direction is not slow."""

from made_flows.density import (
    AutoregressiveDistribution,
    BernoulliMADE,
    CategoricalMADE,
    DensityModel,
    GaussianMADE,
    GaussianMixtureMADE,
)
from made_flows.diagnostics import (
    AutoregressiveError,
    AutoregressiveReport,
    check_autoregressive,
)
from made_flows.heads import Head
from made_flows.made import MADE, DependencyWarning
from made_flows.scales import ScaleRule
from made_flows.serialization import load, save
from made_flows.training import fit

__all__ = [
    "MADE",
    "AutoregressiveDistribution",
    "AutoregressiveError",
    "AutoregressiveReport",
    "BernoulliMADE",
    "CategoricalMADE",
    "DensityModel",
    "DependencyWarning",
    "GaussianMADE",
    "GaussianMixtureMADE",
    "Head",
    "ScaleRule",
    "check_autoregressive",
    "fit",
    "load",
    "save",
]
