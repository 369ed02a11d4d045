"""The sbi plug-in: density estimators for its trainers, fast in both directions.

``NPE(prior, density_estimator=made_flows.sbi.maf(support=prior))`` is all there is to change; what
is already trained, :func:`made_flows.accelerate` makes fast.
"""

try:
    import sbi as _host  # noqa: F401
except ImportError as error:
    raise ImportError(
        "Expected sbi to be installed, which made_flows.sbi is for; got none. "
        "pip install 'made-flows[sbi]'"
    ) from error

from made_flows.sbi.builders import Builder, iaf, made, maf, spline
from made_flows.sbi.estimating import estimate
from made_flows.sbi.estimator import Estimator

_NAMES = {"nsf": "spline", "maf_rqs": "spline", "zuko_nsf": "spline", "zuko_maf": "maf"}


def __getattr__(name: str) -> object:
    hint = f'. What sbi calls "{name}" is here {_NAMES[name]}' if name in _NAMES else ""
    raise AttributeError(f"module 'made_flows.sbi' has no attribute '{name}'{hint}")


__all__ = ["Builder", "Estimator", "estimate", "iaf", "made", "maf", "spline"]
