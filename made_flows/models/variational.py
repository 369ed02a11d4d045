"""Flows for variational posteriors: where they start, and how far a step of training moves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows._checks import expect, positive_integer, real_number
from made_flows._registry import saveable
from made_flows.models.autoregressive_flows import IAF
from made_flows.models.flows import Flow
from made_flows.nn.made import MADE
from made_flows.nn.masked_mlp import HIDDEN_GAIN
from made_flows.nn.masks import make_order
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform
from made_flows.univariate.bijections import Affine, Bijection
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.splines import RationalQuadraticSpline
from made_flows.univariate.step_kernel import StepKernel

SCALE_STEP = 4.0
"""How much faster a logarithm of a scale moves than other parameters."""

_UNDAMPED = 32
"""Dimensions up to which maps move by full steps. Beyond, Adam at 0.01 diverges without damping: of
300 independent normals, four particles, the ELBO was -1e10 after 200 steps, and -548 with it."""


@saveable
class DampedAffine(Affine):
    r"""An affine bijection whose parameters are multiplied by a constant.

    .. math:: y = g \mu + s(g a)\, x

    Steps of Adam and its kin have one size, whatever the gradient's. A map made of very many
    weights then moves too far in a step, and ends in noise; g < 1 makes its steps smaller.

    Args:
        gain: g.
        scale: the scale rule s, as for :class:`~made_flows.Affine`.

    Raises:
        ValueError: for a gain that is not positive, and an unknown rule.

    Example:
        >>> DampedAffine(0.5).forward(torch.ones(1), torch.tensor([[3.0, 0.0]]))[0]
        tensor([2.5000])
    """

    def __init__(self, gain: float = 0.3, scale: str | ScaleRule = "bounded") -> None:
        super().__init__(scale)
        self.gain = real_number(gain, "gain", above=0)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, self.gain * parameters)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return super().inverse(y, self.gain * parameters)

    def kernel(self) -> StepKernel:
        return StepKernel("affine", self.scale, (self.gain, 0.0))

    def extra_repr(self) -> str:
        return f"gain={self.gain:g}"


@saveable
class TriangularAffine(Transform):
    r"""A learned affine map with a lower triangular matrix.

    .. math:: x = o + W\,\bigl(m + e^{s} \odot (z + g L z)\bigr)

    with L strictly lower triangular: of standard normal noise it makes every multivariate normal
    distribution. The origin o and the lower triangular units W are given and stay: where a
    posterior is narrow, far away or stretched, steps of training are then of its own size.

    Args:
        location: where m starts, (D,).
        scale: where :math:`e^s` starts, positive, (D,) or one for all.
        gain: g, below one where D is large: steps of one size for all entries of L, as Adam's are,
            move :math:`L z` by the number of its entries.
        origin: o, (D,); None for zero.
        units: W, lower triangular with a positive diagonal, (D, D); None for the identity.

    Raises:
        ValueError: for shapes that differ, scales or gains that are not positive, and units that
            are no such matrix.

    Example:
        >>> TriangularAffine(torch.tensor([3.0, 4.0]), 2.0).to_data(torch.ones(2))[0].detach()
        tensor([5., 6.])
    """

    origin: Tensor | None
    units: Tensor | None

    def __init__(
        self,
        location: Any,
        scale: Any = 1.0,
        gain: float = 1.0,
        origin: Any = None,
        units: Any = None,
    ) -> None:
        super().__init__()
        self.gain = real_number(gain, "gain", above=0)
        location = torch.as_tensor(location, dtype=torch.get_default_dtype())
        expect(location.dim() == 1, "location", "of shape (D,)", tuple(location.shape))
        scale = torch.as_tensor(scale, dtype=location.dtype)
        fits = scale.shape in ((), location.shape)
        expect(fits, "scale", f"of shape () or {tuple(location.shape)}", tuple(scale.shape))
        expect(bool((scale > 0).all()), "scale", "to be positive", scale)
        self.features = len(location)
        self.location = nn.Parameter(location.clone())
        # The diagonal has s. By Adam's steps of 0.005, a scale that is wrong by a factor of e^4
        # would take a thousand of them.
        diagonal = scale.log().expand(location.shape) / SCALE_STEP
        self.matrix = nn.Parameter(torch.diag(diagonal))
        given = (origin is None) == (units is None)
        expect(given, "units", "to be given with an origin, or neither", units)
        square = self.matrix.shape
        for name, value, shape in (("origin", origin, location.shape), ("units", units, square)):
            if value is not None:
                value = torch.as_tensor(value, dtype=location.dtype)
                expect(value.shape == shape, name, f"of shape {tuple(shape)}", tuple(value.shape))
            self.register_buffer(name, value)
        if self.units is not None:
            lower = torch.equal(self.units, self.units.tril())
            fits = lower and bool((self.units.diagonal() > 0).all())
            expect(fits, "units", "to be lower triangular with a positive diagonal", units)

    @property
    def log_scale(self) -> Tensor:
        """The logarithm s of the scale, (D,)."""
        return SCALE_STEP * self.matrix.diagonal()

    @property
    def lower(self) -> Tensor:
        """The matrix g L, (D, D)."""
        lower = self.matrix.tril(-1)
        return lower if self.gain == 1 else self.gain * lower

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context, self.location.dtype)
        columns = x.reshape(-1, self.features).T
        if self.units is not None and self.origin is not None:
            columns = columns - self.origin.unsqueeze(-1)
            columns = torch.linalg.solve_triangular(self.units, columns, upper=False)
        columns = (columns - self.location.unsqueeze(-1)) * torch.exp(-self.log_scale).unsqueeze(-1)
        z = torch.linalg.solve_triangular(self.lower, columns, upper=False, unitriangular=True)
        return z.T.reshape(x.shape), -self._log_det().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context, self.location.dtype)
        x = self.location + torch.exp(self.log_scale) * (z + F.linear(z, self.lower))
        if self.units is not None and self.origin is not None:
            x = self.origin + F.linear(x, self.units)
        return x, self._log_det().expand(z.shape[:-1])

    def _log_det(self) -> Tensor:
        log_det = self.log_scale.sum()
        return log_det if self.units is None else log_det + self.units.diagonal().log().sum()

    @torch.no_grad()
    def pull_back(self, score: Tensor) -> Tensor:
        """Map the score at noise (N, D) to that at data, by the inverse of the transposed map."""
        columns = torch.linalg.solve_triangular(
            self.lower.mT, score.T, upper=True, unitriangular=True
        ) * torch.exp(-self.log_scale).unsqueeze(-1)
        if self.units is not None:
            columns = torch.linalg.solve_triangular(self.units.mT, columns, upper=True)
        return cast(Tensor, columns.T)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Origin and units are found out while training: a new transform takes those of the file.
        for name in ("origin", "units"):
            value = state_dict.get(f"{prefix}{name}")
            if value is not None and getattr(self, name) is None:
                setattr(self, name, torch.empty_like(value).to(self.location))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"features={self.features}" + (f", gain={self.gain:g}" if self.gain != 1 else "")


def posterior_flow(
    location: Any,
    init_scale: Any = 1.0,
    transforms: int = 3,
    hidden_features: Sequence[int] | None = None,
    gain: float | None = None,
    origin: Any = None,
    units: Any = None,
    *,
    order: Any = "reverse",
    bijection: Literal["affine", "spline", "gated"] | Bijection | None = None,
    scale: str | ScaleRule | None = None,
    degrees: Literal["even", "random"] = "even",
    activation: Any = "tanh",
    residual: bool = False,
    direct: bool = True,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Flow:
    r"""Return an inverse autoregressive flow that starts at a normal distribution of given moments.

    Next to the data is a :class:`TriangularAffine`, which has all multivariate normal
    distributions, and then a linear autoregressive transform, whose shifts and logarithms of scales
    are linear in the features before: funnels. All further transforms have hidden layers.

    Args:
        location, init_scale: of the normal distribution, about.
        transforms: number of autoregressive transforms, the linear one among them.
        hidden_features: widths of the hidden layers; by default two of D units, and at least 64.
        gain: of the autoregressive transforms, see :class:`DampedAffine`; by default 0.3, and in
            more than 32 dimensions 0.3 * 32 / D, so that a step of training moves samples as far
            in a thousand dimensions as in thirty.
        origin, units: of the triangular map, see :class:`TriangularAffine`.
        bijection: of the transforms with hidden layers; by default a :class:`DampedAffine`, or with
            a ``scale`` an affine map of that rule. Of one feature it is a single spline, since
            affine maps with nothing to depend on are one normal distribution.
        order, scale, degrees, activation, residual, direct, dropout, generator: as for
            :class:`~made_flows.IAF`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    Example:
        >>> flow = posterior_flow(torch.tensor([3.0, 4.0]), 0.1)
        >>> flow().sample((5,)).shape
        torch.Size([5, 2])
    """
    location = torch.as_tensor(location)
    damping = min(1.0, _UNDAMPED / max(location.numel(), 1))
    outer = TriangularAffine(location, init_scale, damping, origin, units)
    gain = 0.3 * damping if gain is None else gain
    features, transforms = outer.features, positive_integer(transforms, "transforms")
    if hidden_features is None:
        hidden_features = (max(64, features),) * 2
    first = make_order(features, "natural" if isinstance(order, str) else order)
    if bijection is None and scale is None:
        # One feature has none before it: affine maps of it would be one, and so would splines. Few
        # wide bins, since few draws fall into the outer ones.
        bijection = DampedAffine(gain) if features > 1 else RationalQuadraticSpline(4, 6.0)
        transforms = transforms if features > 1 else min(transforms, 2)
    elif bijection is None:
        bijection = "affine"
    # One more than needed, so that orders take turns with that of the linear transform.
    order = first if isinstance(order, str) and order == "reverse" else order
    inner = IAF(
        features, 0, transforms, hidden_features, order=order, bijection=bijection, scale=scale,
        degrees=degrees, activation=activation, residual=residual, direct=direct, dropout=dropout,
        generator=generator,
    )  # fmt: skip
    for module in inner.modules():
        if isinstance(module, MADE):  # what starts smooth is for few rows, of which there are none
            module.scale_hidden(1 / HIDDEN_GAIN)
    linear = MADE(features, 0, (), 2, order=first)
    stack = [AutoregressiveTransform(linear, DampedAffine(gain), "noise"), *inner._chain()[1:]]
    return Flow([outer, *stack])
