"""What the compiled inverse is told about a step: a head or bijection names its kind here."""

from __future__ import annotations

from typing import NamedTuple

from made_flows.univariate.scales import ScaleRule

__all__ = ["StepKernel"]


class StepKernel(NamedTuple):
    """A step that the compiled inverse knows.

    =====================  ==================================================================
    kind                   value x from noise u and parameters
    =====================  ==================================================================
    ``affine``             m + s(a) u, parameters (m, a)
    ``affine_inverse``     (u - m) / s(a)
    ``gated``              s(a) u + (1 - s(a)) m
    ``gated_inverse``      (u - (1 - s(a)) m) / s(a)
    ``bernoulli``          1 if u < sigmoid(l) else 0, parameter l
    ``categorical``        the category in whose part of the cumulative distribution u falls
    ``mixture``            m_k + s(a_k) v, with k drawn by u; logits, then m, then a
    =====================  ==================================================================

    Args:
        kind: one of the above.
        rule: the scale rule s, where there is one.
        swapped: whether the parameters come as (a, m).
    """

    kind: str
    rule: ScaleRule | None = None
    swapped: bool = False
