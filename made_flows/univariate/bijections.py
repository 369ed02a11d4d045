"""Bijections: what the parameters of a feature mean, as a one-dimensional monotone map."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from made_flows._checks import Unsaid, check_parameters, expect
from made_flows._keys import KeyedModule
from made_flows._registry import saveable
from made_flows.univariate.scales import ScaleRule, make_scale_rule
from made_flows.univariate.step_kernel import StepKernel


class Bijection(KeyedModule, ABC):
    r"""An increasing map :math:`y = f(x; \theta)` of the real line, for every feature.

    A bijection is a page of code: say how many parameters a feature has (``outputs``), the map
    and its inverse, each with the logarithm of its own derivative. Everything is elementwise:
    values (...) with parameters (..., K). ``forward`` is the way from noise to data.

    Attributes:
        outputs: parameters per feature K.

    Example:
        >>> class Shift(Bijection):
        ...     outputs = 1
        ...     def forward(self, x, parameters):
        ...         return x + parameters[..., 0], torch.zeros_like(x)
        ...     def inverse(self, y, parameters):
        ...         return y - parameters[..., 0], torch.zeros_like(y)
        >>> Shift().inverse(torch.ones(2), torch.tensor([[3.0], [4.0]]))[0]
        tensor([-2., -3.])
    """

    outputs: int = Unsaid("outputs = 2")  # type: ignore[assignment]

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (...) by parameters (..., K) to y, and return the logarithm of dy/dx with it."""

    @abstractmethod
    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map y (...) by parameters (..., K) to x, and return the logarithm of dx/dy with it."""

    def initial_parameters(self) -> Tensor | None:
        """Return the parameters that an untrained network should give, (K,); None for zeros."""
        return None

    def kernel(self) -> StepKernel | None:
        """Name the kernel of the compiled inverse for a step; None if it has none for this map."""
        return None


@saveable
class Affine(Bijection):
    r"""A shift and a positive scale.

    .. math:: y = \mu + s\, x, \qquad \log \frac{dy}{dx} = \log s

    The parameters of a feature are :math:`\mu` and the unconstrained value that a scale rule
    turns into s.

    Args:
        scale: the rule from the second parameter to s, a name or a
            :class:`~made_flows.ScaleRule`.

    Raises:
        ValueError: for an unknown rule.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, equations 3-4.

    Example:
        >>> y, log_derivative = Affine("exp").forward(torch.ones(1), torch.tensor([[3.0, 0.0]]))
        >>> y, log_derivative
        (tensor([4.]), tensor([0.]))
    """

    outputs = 2

    def __init__(self, scale: str | ScaleRule = "bounded") -> None:
        super().__init__()
        self.scale = make_scale_rule(scale)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        check_parameters(x, parameters, 2, "x")
        shift, raw = parameters.unbind(-1)
        log_scale = self.scale(raw)
        return shift + torch.exp(log_scale) * x, log_scale.expand_as(shift + x)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        check_parameters(y, parameters, 2, "y")
        shift, raw = parameters.unbind(-1)
        log_scale = self.scale(raw)
        x = (y - shift) * torch.exp(-log_scale)
        return x, -log_scale.expand_as(x)

    def kernel(self) -> StepKernel:
        return StepKernel("affine", self.scale, (1.0, 0.0))


@saveable
class GatedAffine(Bijection):
    r"""A gate between the old value and a new one, as a forget gate has it.

    .. math:: y = s\, x + (1 - s)\, m, \qquad s = \sigma(a + o) + f

    The parameters of a feature are m and a. The offset o = 2 starts near the identity; the floor
    f keeps the inverse finite.

    Args:
        scale: a sigmoid :class:`~made_flows.ScaleRule`; by default with offset 2 and floor 1e-3.

    Raises:
        ValueError: for a rule that is not a sigmoid.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*,
        equations 13-14 and section 4.

    Example:
        >>> gate = GatedAffine(ScaleRule("sigmoid", offset=0.0))
        >>> gate.forward(torch.tensor([4.0]), torch.tensor([[2.0, 0.0]]))[0]
        tensor([3.])
    """

    outputs = 2

    def __init__(self, scale: str | ScaleRule | None = None) -> None:
        super().__init__()
        self.scale = make_scale_rule(ScaleRule("sigmoid", floor=1e-3) if scale is None else scale)
        expect(self.scale.rule == "sigmoid", "scale", "to be a sigmoid rule", self.scale)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        check_parameters(x, parameters, 2, "x")
        target, raw = parameters.unbind(-1)
        log_scale = self.scale(raw)
        y = torch.exp(log_scale) * x - torch.expm1(log_scale) * target
        return y, log_scale.expand_as(y)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        check_parameters(y, parameters, 2, "y")
        target, raw = parameters.unbind(-1)
        log_scale = self.scale(raw)
        x = (y + torch.expm1(log_scale) * target) * torch.exp(-log_scale)
        return x, -log_scale.expand_as(x)

    def kernel(self) -> StepKernel:
        return StepKernel("gated", self.scale)
