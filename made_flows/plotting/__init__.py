"""Pictures of training, masks, samples and images (extra ``plot``).

Every function returns a ``matplotlib.figure.Figure``: save it with ``figure.savefig(path)``, or let
a notebook show it. Nothing touches pyplot's state, so no display is needed and none is opened.
"""

from made_flows.plotting._image_grid import image_grid
from made_flows.plotting._masks import masks
from made_flows.plotting._pair_plot import pair_plot
from made_flows.plotting._training_curve import training_curve

__all__ = ["image_grid", "masks", "pair_plot", "training_curve"]
