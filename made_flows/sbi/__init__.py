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
from made_flows.sbi.estimator import Estimator

__all__ = ["Builder", "Estimator", "iaf", "made", "maf", "spline"]
