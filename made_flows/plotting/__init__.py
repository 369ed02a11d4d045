"""Pictures of networks, training, samples, calibration and posteriors (extra ``plot``).

Every function returns a ``matplotlib.figure.Figure``: save it with ``figure.savefig(path)``, or let
a notebook show it; its axes are ``figure.axes``, and what fits one axes draws on those given as
``ax``. Nothing touches pyplot's state, so no display is needed and none is opened. Two sets are
blue and orange, which the colour-blind tell apart; an ordered scale goes from light to dark.
"""

from made_flows.plotting._calibration import coverage, pit_histogram
from made_flows.plotting._column_scores import column_scores
from made_flows.plotting._connections import connections
from made_flows.plotting._image_grid import image_grid
from made_flows.plotting._intervals import intervals
from made_flows.plotting._masks import masks
from made_flows.plotting._pair_plot import pair_plot
from made_flows.plotting._training_curve import training_curve

__all__ = [
    "column_scores",
    "connections",
    "coverage",
    "image_grid",
    "intervals",
    "masks",
    "pair_plot",
    "pit_histogram",
    "training_curve",
]
