"""The scikit-learn plug-in: densities, outlier detectors and imputers of tables, as estimators."""

try:
    import sklearn as _host  # noqa: F401
except ImportError as error:
    raise ImportError(
        "Expected scikit-learn to be installed, which made_flows.sklearn is for; got none. "
        "pip install 'made-flows[sklearn]'"
    ) from error

from made_flows.sklearn.density import MADEDensity
from made_flows.sklearn.detector import MADEDetector
from made_flows.sklearn.imputer import MADEImputer
from made_flows.sklearn.outliers import MADEOutlierDetector

__all__ = ["MADEDensity", "MADEDetector", "MADEImputer", "MADEOutlierDetector"]
