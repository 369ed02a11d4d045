"""What the compiled inverse is told about a step: a head or bijection names its kernel here."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from torch import nn

from made_flows._torch import has_global_hooks
from made_flows.univariate.scales import SCALE_RULES, ScaleRule, is_valued_as_named

HEAD = 2.0
"""Stands where other steps say whether to invert, for the score of a head."""


class StepKernel(NamedTuple):
    """A step that the compiled inverse knows.

    Args:
        kind: the module of ``made_flows.inverse.compiled.steps`` that has the kernel; its
            documentation says what the constants are.
        rule: the scale rule, where there is one.
        constants: what else the kernel is told.
        inverse: whether the map is taken from data to noise, not from noise to data.
        one_hot: whether the network reads values as one-hot columns, not as they are.
        scored: whether, for a head, the score of this kind is its log-probability: a head may take
            a kernel to sample by and have a density of its own.
        head: whether a score is of a head: a log-probability alone, without an image.
    """

    kind: str
    rule: ScaleRule | None = None
    constants: tuple[float, ...] = ()
    inverse: bool = False
    one_hot: bool = False
    scored: bool = False
    head: bool = False

    @property
    def numbers(self) -> tuple[float, ...]:
        """All that the kernel is told: direction, rule and its two constants, then the rest."""
        rule = self.rule
        code = 0 if rule is None else SCALE_RULES.index(rule.rule)
        of_rule = (0.0, 0.0) if rule is None else rule.constants
        direction = HEAD if self.head else float(self.inverse)
        return (direction, float(code), *of_rule, *self.constants)

    @property
    def follows_rule(self) -> bool:
        """Whether the scale rule does what its name says, and nothing more."""
        rule = self.rule
        return rule is None or _pass_of(rule) is ScaleRule.forward

    @property
    def gives_values(self) -> bool:
        """Whether the scale rule has the values that its name says, if with another gradient."""
        return self.follows_rule or is_valued_as_named(_pass_of(self.rule))


def _pass_of(rule: Any) -> Any:
    """Return the method that a call of a scale rule is; None where hooks or others take part."""
    if not isinstance(rule, ScaleRule):
        return None
    hooked = rule._forward_hooks or rule._forward_pre_hooks or has_global_hooks()
    own = hooked or "forward" in vars(rule)
    return None if own else type(rule).forward


_FREE = {"__init__", "__doc__", "__module__", "extra_repr", "log_prob", "noise", "check_values"}
_FREE |= {"initial_parameters", "support", "__annotations__", "__qualname__"}
# What Python, ABCs and ``saveable`` write into every class.
_FREE |= {"__abstractmethods__", "_abc_impl", "__static_attributes__", "__firstlineno__"}
_FREE |= {"_saveable", "_former_defaults", "changing"}
"""What a subclass may define without changing what a step does."""


_MAPS = ("forward", "inverse", "step", "step_at", "encode", "log_prob")
"""Methods that an object may have of its own, in place of its class's."""


def has_kernel(owner: nn.Module, scored: bool = False) -> bool:
    """Tell whether the kernel of a head or bijection stands for all that it does."""
    kind: Any = type(owner)
    return _inherits_kernel(kind, scored) and not any(map(owner.__dict__.__contains__, _MAPS))


@lru_cache(maxsize=256)
def _inherits_kernel(kind: type[nn.Module], scored: bool) -> bool:
    """Tell whether the kernel of a head or bijection stands for all that the class does.

    A subclass that overrides a part of the map, but not ``kernel``, would otherwise be sampled
    by another map than the one it scores by. Its ``log_prob`` counts where it is to be ``scored``.
    """
    free = _FREE - {"log_prob"} if scored else _FREE
    own: dict[str, Any] = {}
    for index, parent in enumerate(kind.__mro__):
        if "kernel" in vars(parent):
            known = {name for base in kind.__mro__[index:] for name in vars(base)}
            return not (own.keys() & known - free)
        own |= vars(parent)
    return False


EDGES = {"fixed": 0, "given": 1, "circular": 2}
"""Derivatives at the two outer knots: a constant, parameters of their own, or one of the two."""


class SplineForm(NamedTuple):
    """How the parameters of a rational spline become knots.

    A spline of K bins on [left, left + width] has as parameters the logits of K widths and K
    heights, unconstrained derivatives at knots, and for linear splines unconstrained places
    within bins. One kernel serves all libraries' splines, which differ in these numbers alone.

    Args:
        bins: number of bins K.
        left, width: the interval.
        tails: whether the map is the identity outside.
        linear: rational-linear (Dolatabadi et al. 2020), not rational-quadratic.
        divisor: what logits are divided by.
        bound: logits a become a / (1 + abs(a) / bound).
        min_width, min_height: smallest fractions of the interval.
        min_derivative: added to derivatives.
        derivative_bound: derivatives are exp(a / (1 + abs(a) / bound)) where it is positive,
            softplus(a + derivative_offset) where it is zero.
        derivative_offset: see there.
        edges: see :data:`EDGES`.
        edge: the constant derivative at outer knots.
        min_place: smallest distance of a linear spline's inner point from the ends of a bin.
    """

    bins: int
    left: float
    width: float
    tails: bool
    linear: bool = False
    divisor: float = 1.0
    bound: float = math.inf
    min_width: float = 0.0
    min_height: float = 0.0
    min_derivative: float = 0.0
    derivative_bound: float = 0.0
    derivative_offset: float = 0.0
    edges: int = 0
    edge: float = 1.0
    min_place: float = 0.0

    def kernel(self) -> StepKernel | None:
        """Return the step of this spline; None for one that raises outside its interval."""
        if not self.tails:
            return None
        return StepKernel("rational_spline", constants=tuple(float(number) for number in self))
