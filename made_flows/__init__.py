"""Masked autoregressive networks, density models and flows whose slow direction is not slow."""

from made_flows._registry import saveable
from made_flows.accelerate import (
    AccelerationReport,
    AccelerationWarning,
    accelerate,
    acceleration,
    restore,
)
from made_flows.autoregressive_flows import IAF, MAF
from made_flows.bijections import Affine, Bijection, GatedAffine
from made_flows.conditional import ConditionalDistribution, ConditionalMixture
from made_flows.data_transforms import Dequantize, Log, Logit, Standardize
from made_flows.density import (
    BernoulliMADE,
    CategoricalMADE,
    DensityModel,
    GaussianMADE,
    GaussianMixtureMADE,
)
from made_flows.dependencies import DependencyWarning
from made_flows.diagnostics import (
    AutoregressiveError,
    AutoregressiveReport,
    check_autoregressive,
)
from made_flows.distribution import AutoregressiveDistribution
from made_flows.ensemble import Mixture, OrderMixture
from made_flows.flows import Flow, FlowDistribution
from made_flows.heads import Head
from made_flows.history import History, TrainingError
from made_flows.made import MADE
from made_flows.mixture import MixtureDistribution
from made_flows.mixture_model import MixtureGain, WeightFit
from made_flows.normalization import ActNorm, BatchNorm
from made_flows.scales import ScaleRule
from made_flows.serialization import load, save
from made_flows.splines import RationalQuadraticSpline
from made_flows.training import fit
from made_flows.transforms import (
    AutoregressiveTransform,
    InvertibleLinear,
    Permutation,
    Transform,
)

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "AccelerationReport",
    "AccelerationWarning",
    "ActNorm",
    "Affine",
    "AutoregressiveDistribution",
    "AutoregressiveError",
    "AutoregressiveReport",
    "AutoregressiveTransform",
    "BatchNorm",
    "BernoulliMADE",
    "Bijection",
    "CategoricalMADE",
    "ConditionalDistribution",
    "ConditionalMixture",
    "DensityModel",
    "DependencyWarning",
    "Dequantize",
    "Flow",
    "FlowDistribution",
    "GatedAffine",
    "GaussianMADE",
    "GaussianMixtureMADE",
    "Head",
    "History",
    "InvertibleLinear",
    "Log",
    "Logit",
    "Mixture",
    "MixtureDistribution",
    "MixtureGain",
    "OrderMixture",
    "Permutation",
    "RationalQuadraticSpline",
    "ScaleRule",
    "Standardize",
    "TrainingError",
    "Transform",
    "WeightFit",
    "accelerate",
    "acceleration",
    "check_autoregressive",
    "fit",
    "load",
    "restore",
    "save",
    "saveable",
]
