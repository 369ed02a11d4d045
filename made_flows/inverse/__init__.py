"""The sequential inverse: an autoregressive network inverted in about one pass, exactly.

``sequential`` is the entry; ``symbolic`` says once which unit is computed when; ``eager`` and
``compiled`` do the sweep; ``gpu`` does the inverse on GPUs.
"""

from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import sequential_inverse
from made_flows.inverse.steps import HeadStep, Step

__all__ = ["Conditioner", "HeadStep", "Step", "sequential_inverse"]
