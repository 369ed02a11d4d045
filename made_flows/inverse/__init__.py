"""The sequential inverse: an autoregressive network inverted in about one pass, exactly.

``sequential`` is the entry, ``parallel`` that of the other direction, ``plans`` that of several
networks in one call. ``symbolic`` says once which unit is computed when; ``dispatch`` chooses who
does the sweep: ``eager``, ``compiled`` or ``gpu``. ``d_pass`` does without it, in D passes.
"""

from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import sequential_inverse
from made_flows.inverse.steps import HeadStep, Step

__all__ = ["Conditioner", "HeadStep", "Step", "sequential_inverse"]
