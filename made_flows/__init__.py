"""Masked autoregressive networks, density models and flows whose slow direction is not slow."""

from made_flows._registry import saveable
from made_flows.diagnostics.autoregressive import (
    AutoregressiveError,
    AutoregressiveReport,
    check_autoregressive,
)
from made_flows.diagnostics.univariate import (
    BijectionReport,
    HeadReport,
    check_bijection,
    check_head,
)
from made_flows.distributions.autoregressive import AutoregressiveDistribution
from made_flows.distributions.base import TrainingModeWarning
from made_flows.distributions.conditional import ConditionalDistribution, ConditionalMixture
from made_flows.distributions.flow import FlowDistribution
from made_flows.distributions.mixture import MixtureDistribution
from made_flows.interop.accelerate import (
    AccelerationReport,
    AccelerationWarning,
    accelerate,
    acceleration,
    undo_acceleration,
)
from made_flows.models.autoregressive_flows import IAF, MAF
from made_flows.models.base import Model
from made_flows.models.density import DensityModel
from made_flows.models.embedded import Embedded
from made_flows.models.estimate import estimate
from made_flows.models.estimate_rows import EstimateWarning
from made_flows.models.flows import Flow
from made_flows.models.mades import (
    BernoulliMADE,
    CategoricalMADE,
    GaussianMADE,
    GaussianMixtureMADE,
)
from made_flows.models.mixture_weights import MixtureGain, WeightFit
from made_flows.models.mixtures import Mixture, OrderMixture
from made_flows.nn.connectivity import DependencyWarning
from made_flows.nn.made import MADE
from made_flows.serialization.files import load, save
from made_flows.tables.fitting import fit_table
from made_flows.tables.model import TableMADE
from made_flows.training.history import History, TrainingError
from made_flows.training.likelihood import score
from made_flows.training.loop import fit
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform
from made_flows.transforms.data import Dequantize, Log, Logit, Standardize
from made_flows.transforms.linear import InvertibleLinear, Permutation
from made_flows.transforms.normalization import ActNorm, BatchNorm
from made_flows.univariate import heads as heads
from made_flows.univariate.bijections import Affine, Bijection, GatedAffine
from made_flows.univariate.heads import Head
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.splines import RationalQuadraticSpline

__version__ = "0.3.0"

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
    "BijectionReport",
    "CategoricalMADE",
    "ConditionalDistribution",
    "ConditionalMixture",
    "DensityModel",
    "DependencyWarning",
    "Dequantize",
    "Embedded",
    "EstimateWarning",
    "Flow",
    "FlowDistribution",
    "GatedAffine",
    "GaussianMADE",
    "GaussianMixtureMADE",
    "Head",
    "HeadReport",
    "History",
    "InvertibleLinear",
    "Log",
    "Logit",
    "Mixture",
    "MixtureDistribution",
    "MixtureGain",
    "Model",
    "OrderMixture",
    "Permutation",
    "RationalQuadraticSpline",
    "ScaleRule",
    "Standardize",
    "TableMADE",
    "TrainingError",
    "TrainingModeWarning",
    "Transform",
    "WeightFit",
    "accelerate",
    "acceleration",
    "check_autoregressive",
    "check_bijection",
    "check_head",
    "estimate",
    "fit",
    "fit_table",
    "load",
    "save",
    "saveable",
    "score",
    "undo_acceleration",
]
