"""The Pyro plug-in: networks, transforms, distributions and guides with Pyro's own interface.

Changing the import is enough: networks and transforms have the names, signatures, attributes,
shapes and direction (noise to data) that they have in Pyro, and load its state dicts. Both
directions take about one pass of the network.
"""

from __future__ import annotations

try:
    import pyro as _pyro  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "pyro":
        raise
    raise ImportError(
        "Expected Pyro to be installed, which made_flows.pyro is for; got none. "
        "pip install 'made-flows[pyro]'"
    ) from error

from made_flows.pyro.conditional_flows import (
    ConditionalFlowTransform,
    ConditionalIAF,
    ConditionalMAF,
)
from made_flows.pyro.constructors import (
    affine_autoregressive,
    conditional_affine_autoregressive,
    conditional_spline_autoregressive,
    spline_autoregressive,
)
from made_flows.pyro.diagnosing import diagnose
from made_flows.pyro.diagnosis import Diagnosis
from made_flows.pyro.distributions import (
    BernoulliMADE,
    CategoricalMADE,
    GaussianMADE,
    GaussianMixtureMADE,
    ModelDistribution,
    PyroModel,
    to_pyro,
)
from made_flows.pyro.fitting import GuideFit, fit_guide
from made_flows.pyro.flow_transforms import IAF, MAF, FlowTransform
from made_flows.pyro.guides import AutoIAF
from made_flows.pyro.mixture_guide import FlowMixture
from made_flows.pyro.networks import AutoRegressiveNN, ConditionalAutoRegressiveNN, MADENetwork
from made_flows.pyro.probe import Probe
from made_flows.pyro.refinement import Refinement, refine
from made_flows.pyro.transforms import (
    AffineAutoregressive,
    ConditionalAffineAutoregressive,
    ConditionalSplineAutoregressive,
    SplineAutoregressive,
)

__all__ = [
    "IAF",
    "MAF",
    "AffineAutoregressive",
    "AutoIAF",
    "AutoRegressiveNN",
    "BernoulliMADE",
    "CategoricalMADE",
    "ConditionalAffineAutoregressive",
    "ConditionalAutoRegressiveNN",
    "ConditionalFlowTransform",
    "ConditionalIAF",
    "ConditionalMAF",
    "ConditionalSplineAutoregressive",
    "Diagnosis",
    "FlowMixture",
    "FlowTransform",
    "GaussianMADE",
    "GaussianMixtureMADE",
    "GuideFit",
    "MADENetwork",
    "ModelDistribution",
    "Probe",
    "PyroModel",
    "Refinement",
    "SplineAutoregressive",
    "affine_autoregressive",
    "conditional_affine_autoregressive",
    "conditional_spline_autoregressive",
    "diagnose",
    "fit_guide",
    "refine",
    "spline_autoregressive",
    "to_pyro",
]
