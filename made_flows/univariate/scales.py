"""Scale rules: how an unconstrained network output becomes a positive scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows._checks import expect, expect_type, expect_word, real_number, shown
from made_flows._registry import saveable

Pass = TypeVar("Pass", bound=Callable[..., Tensor])

_CONSTANTS: dict[str, tuple[str, ...]] = {
    "bounded": ("bound",),
    "softsign": ("bound",),
    "exp": (),
    "softplus": ("offset", "floor"),
    "sigmoid": ("offset", "floor"),
    "clamp": ("low", "high"),
}
"""The constants that every rule has."""

SCALE_RULES = tuple(_CONSTANTS)
"""The names of the scale rules."""


@saveable
class ScaleRule(nn.Module):
    r"""A positive scale from an unconstrained value :math:`a`, through its logarithm.

    =============  ====================================================  ====================
    rule           :math:`\log s(a)`                                     constants
    =============  ====================================================  ====================
    ``bounded``    :math:`b \tanh(a / b)`                                ``bound`` b = 7
    ``softsign``   :math:`a / (1 + |a| / b)`                             ``bound`` b = 7
    ``exp``        :math:`a`                                             none
    ``softplus``   :math:`\log(\mathrm{softplus}(a + o) + f)`            ``floor`` f, ``offset`` o
    ``sigmoid``    :math:`\log(\sigma(a + o) + f)`                       ``floor`` f, ``offset`` o
    ``clamp``      :math:`\min(\max(a, l), h)`                           ``low`` l, ``high`` h
    =============  ====================================================  ====================

    The default, ``bounded``, is smooth and keeps the scale within a factor of
    :math:`e^{\pm 7} \approx 1100^{\pm 1}`, so that neither a value nor its gradient can overflow.
    At :math:`a = 0` every rule gives a scale of about one (``softplus`` by its offset
    :math:`\log(e^{1 - f} - 1)`; ``sigmoid`` about 0.88 by an offset of 2, the forget-gate bias of
    Kingma et al. 2016, section 4), so that a network that starts near zero starts near the
    identity. ``clamp`` passes the gradient straight through its limits.

    Args:
        rule: one of the names above.
        bound, floor, offset, low, high: constants of the rule; None takes the rule's own.

    Raises:
        ValueError: for an unknown rule or constants out of range.

    Example:
        >>> ScaleRule("bounded")(torch.tensor([-100.0, 0.0, 100.0])).exp()
        tensor([9.1188e-04, 1.0000e+00, 1.0966e+03])
    """

    def __init__(
        self,
        rule: str = "bounded",
        *,
        bound: float = 7.0,
        floor: float | None = None,
        offset: float | None = None,
        low: float = -5.0,
        high: float = 3.0,
    ) -> None:
        super().__init__()
        names = ", ".join(SCALE_RULES)
        expect_word(rule, SCALE_RULES, "scale rule", f"to be one of {names}")
        self.rule = rule
        self.bound = real_number(bound, "bound", above=0)
        self.low, self.high = real_number(low, "low"), real_number(high, "high")
        expect(self.low < self.high, "low", "to be below high", (low, high))
        defaults = {"bound": 7.0, "floor": None, "offset": None, "low": -5.0, "high": 3.0}
        values = (self.bound, floor, offset, self.low, self.high)
        for (name, default), value in zip(defaults.items(), values, strict=True):
            known = value == default or name in _CONSTANTS[rule]
            expect(known, name, f"to be left out, as {rule!r} has none", "one")
        default_floor = 1e-3 if rule == "softplus" else 0.0
        self.floor = default_floor if floor is None else real_number(floor, "floor")
        expect(self.floor >= 0, "floor", "to be non-negative", floor)
        if offset is not None:
            self.offset = real_number(offset, "offset")
        elif rule == "softplus":
            expect(self.floor < 1, "floor", "to be below 1", floor)
            self.offset = float(torch.tensor(1.0 - self.floor, dtype=torch.float64).expm1().log())
        else:
            self.offset = 2.0

    def forward(self, a: Tensor) -> Tensor:
        """Compute the logarithm of the scale, of a's shape."""
        expect_type(isinstance(a, Tensor), "a", "to be a torch.Tensor", a)
        if self.rule == "bounded":
            return self.bound * torch.tanh(a / self.bound)
        if self.rule == "softsign":
            return a / (1 + a.abs() / self.bound)
        if self.rule == "exp":
            return a
        if self.rule == "softplus":
            a = a + self.offset
            if self.floor == 0:
                # Below -40 softplus is exp, to the last digit; its logarithm must not underflow.
                return torch.where(a < -40, a, torch.log(F.softplus(a.clamp(min=-40))))
            return torch.log(F.softplus(a) + self.floor)
        if self.rule == "sigmoid":
            if self.floor == 0:
                return F.logsigmoid(a + self.offset)
            return torch.log(torch.sigmoid(a + self.offset) + self.floor)
        return a.clamp(self.low, self.high).detach() + (a - a.detach())

    @property
    def constants(self) -> tuple[float, float]:
        """The two constants that the rule uses (zero where it has none)."""
        first, second, *_ = [*[getattr(self, name) for name in _CONSTANTS[self.rule]], 0.0, 0.0]
        return first, second

    def extra_repr(self) -> str:
        constants = (f"{name}={getattr(self, name):.4g}" for name in _CONSTANTS[self.rule])
        return ", ".join([self.rule, *constants])


_VALUED: set[Any] = set()


def valued_as_named(forward: Pass) -> Pass:
    """Say that a subclass's pass has the values of its rule's name, and another gradient.

    Compiled steps that need values alone then take it for that rule.
    """
    _VALUED.add(forward)
    return forward


def is_valued_as_named(forward: Any) -> bool:
    """Tell whether that was said of a pass."""
    return forward in _VALUED


def make_scale_rule(scale: Any) -> ScaleRule:
    """Make a scale rule of its name; a rule is returned as it is."""
    if isinstance(scale, ScaleRule):
        return scale
    names = ", ".join(SCALE_RULES)
    expect(isinstance(scale, str), "scale", f"to be a ScaleRule or one of {names}", shown(scale))
    return ScaleRule(scale)
