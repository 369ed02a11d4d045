"""Transforms: invertible maps between data and noise, each with its log-determinant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from made_flows._registry import saveable
from made_flows.bijections import Bijection
from made_flows.checks import check_event, expect, expect_type, positive_integer
from made_flows.inverse import Conditioner, sequential_inverse
from made_flows.inverse.steps import BijectionStep
from made_flows.made import MADE
from made_flows.masks import make_order, ranks_from_order

__all__ = ["AutoregressiveTransform", "InvertibleLinear", "Permutation", "Transform"]


class Transform(nn.Module, ABC):
    r"""An invertible map :math:`z = f(x; c)` from data x to noise z.

    A transform of one's own defines both directions; each returns the image and
    :math:`\log |\det|` of the Jacobian of the map applied, of the batch's shape.

    Attributes:
        features: number of features D.
        context: number of context variables C; 0 for a transform that takes none.
        noise_pass, data_pass: how each direction is computed, ``"parallel"`` or ``"sequential"``.
        differentiable: whether :meth:`to_data` carries gradients.

    Example:
        >>> class Scale(Transform):
        ...     def __init__(self, features, factor):
        ...         super().__init__()
        ...         self.features, self.factor = features, torch.tensor(factor)
        ...     def to_noise(self, x, context=None):
        ...         log_det = self.features * self.factor.log()
        ...         return x * self.factor, log_det.expand(x.shape[:-1])
        ...     def to_data(self, z, context=None):
        ...         log_det = -self.features * self.factor.log()
        ...         return z / self.factor, log_det.expand(z.shape[:-1])
        >>> import made_flows as mf
        >>> mf.Flow([Scale(3, 2.0)])().sample((5,)).shape
        torch.Size([5, 3])
    """

    features: int
    context: int = 0
    noise_pass: Literal["parallel", "sequential"] = "parallel"
    data_pass: Literal["parallel", "sequential"] = "parallel"
    differentiable: bool = True

    @abstractmethod
    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise z (..., D) from data x (..., D), and log |det dz/dx| (...)."""

    @abstractmethod
    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data x (..., D) from noise z (..., D), and log |det dx/dz| (...)."""

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Data from noise alone, for transforms whose log-determinant is extra work."""
        return self.to_data(z, context)[0]

    @property
    def support(self) -> constraints.Constraint:
        """Where data live."""
        return cast(constraints.Constraint, constraints.real_vector)


@saveable
class AutoregressiveTransform(Transform):
    r"""A conditioner and a bijection: every feature is mapped by parameters from those before it.

    .. math:: x_i = g(z_i; \theta_i(x_{<i}, c)) \quad \text{(reads data)}, \qquad
        x_i = g(z_i; \theta_i(z_{<i}, c)) \quad \text{(reads noise)}

    with g the bijection's forward map. The direction in which the conditioner's input is known
    is one pass of the network; the other is one sequential inverse, followed by a pass at the
    solution for the log-determinant. Sequential directions never drop units.

    Args:
        conditioner: a :class:`~made_flows.MADE` with the bijection's number of parameters.
        bijection: the one-dimensional map.
        reads: ``"data"`` (MAF: density in one pass) or ``"noise"`` (IAF: samples in one pass).

    Raises:
        TypeError: for a conditioner or bijection of another kind.
        ValueError: for an unknown ``reads``, or a conditioner of another number of parameters
            or more than one input per feature.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, equations 3-6; Kingma et al. 2016,
        *Improved Variational Inference with Inverse Autoregressive Flow*, equations 9-11.

    Example:
        >>> import made_flows as mf
        >>> transform = AutoregressiveTransform(mf.MADE(3, parameters=2), mf.Affine())
        >>> z, log_det = transform.to_noise(torch.zeros(10, 3))
        >>> z.shape, log_det.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    def __init__(
        self,
        conditioner: MADE,
        bijection: Bijection,
        reads: Literal["data", "noise"] = "data",
    ) -> None:
        super().__init__()
        expect_type(isinstance(conditioner, MADE), "conditioner", "to be a MADE", conditioner)
        expect_type(isinstance(bijection, Bijection), "bijection", "to be a Bijection", bijection)
        expect(reads in ("data", "noise"), "reads", "to be 'data' or 'noise'", repr(reads))
        for argument, got, wanted in (
            ("parameters", conditioner.outputs, bijection.outputs),
            ("inputs", conditioner.inputs, 1),
        ):
            expect(
                set(got) == {wanted},
                "conditioner",
                f"to have {argument}={wanted}, as {type(bijection).__name__} needs",
                got[0] if len(set(got)) == 1 else got,
            )
        self.features, self.context = conditioner.features, conditioner.context
        self.conditioner = conditioner
        self.bijection = bijection
        self.reads = reads
        if reads == "data":
            self.data_pass = "sequential"
        else:
            self.noise_pass = "sequential"
        start = bijection.initial_parameters()
        bias = conditioner.layers[-1].bias
        if start is not None and isinstance(bias, Tensor):
            with torch.no_grad():
                bias.copy_(start.repeat(conditioner.features))

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.reads == "data":
            z, each = self.bijection.inverse(x, self.conditioner(x, context))
        else:
            z = self._solve(x, context, "inverse")
            each = self.bijection.inverse(x, self.conditioner.evaluate(z, context))[1]
        return z, each.sum(dim=-1)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.reads == "noise":
            x, each = self.bijection.forward(z, self.conditioner(z, context))
        else:
            x = self._solve(z, context, "forward")
            each = self.bijection.forward(z, self.conditioner.evaluate(x, context))[1]
        return x, each.sum(dim=-1)

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        if self.reads == "noise":
            return self.bijection.forward(z, self.conditioner(z, context))[0]
        return self._solve(z, context, "forward")

    def _solve(
        self, known: Tensor, context: Tensor | None, direction: Literal["forward", "inverse"]
    ) -> Tensor:
        check_event(known, "values", self.features, self.conditioner.dtype)
        context = self.conditioner.check_context(context)
        step = BijectionStep(self.bijection, direction)
        conditioner = cast(Conditioner, self.conditioner)
        return sequential_inverse(conditioner, step, known.unsqueeze(-1), context)

    def extra_repr(self) -> str:
        return f"reads={self.reads!r}"


@saveable
class Permutation(Transform):
    r"""The features in another order: :math:`z_k = x_{\pi(k)}`.

    Args:
        features: number of features D.
        order: ``"reversed"``, ``"random"``, or the permutation :math:`\pi` itself.
        generator: source of randomness for ``"random"``.

    Raises:
        ValueError: if the order is neither a known name nor a permutation.

    Example:
        >>> Permutation(3, [2, 0, 1]).to_noise(torch.tensor([5.0, 6.0, 7.0]))[0]
        tensor([7., 5., 6.])
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        order: Any = "reversed",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.register_buffer("order", make_order(self.features, order, generator))

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(x, "x", self.features)
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(z, "z", self.features)
        return z.index_select(-1, ranks_from_order(self.order)), z.new_zeros(z.shape[:-1])

    def extra_repr(self) -> str:
        order = self.order.tolist()
        return str(order) if self.features <= 12 else f"{str(order[:6])[:-1]}, ...]"


@saveable
class InvertibleLinear(Transform):
    r"""A linear map by its factors: a permutation, a lower and an upper triangular matrix.

    .. math:: z = P L U x + b, \qquad \log |\det| = \sum_i \log |u_{ii}|

    P and the signs of U's diagonal are fixed, L has ones on its diagonal. It starts as a random
    rotation. Both directions cost about one product with a matrix.

    Args:
        features: number of features D.
        generator: source of randomness for the rotation.

    References:
        Kingma & Dhariwal 2018, *Glow*, section 3.2 (LU decomposition).

    Example:
        >>> linear = InvertibleLinear(4)
        >>> linear.to_noise(torch.zeros(10, 4))[0].shape
        torch.Size([10, 4])
    """

    permutation: Tensor
    signs: Tensor

    def __init__(self, features: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        drawn = torch.randn(features, features, dtype=torch.float64, generator=generator)
        P, L, U = torch.linalg.lu(torch.linalg.qr(drawn).Q)
        diagonal = U.diagonal()
        dtype = torch.get_default_dtype()
        self.register_buffer("permutation", P.argmax(dim=1))
        self.register_buffer("signs", diagonal.sign().to(dtype))
        self.lower = nn.Parameter(L.tril(-1).to(dtype))
        self.upper = nn.Parameter(U.triu(1).to(dtype))
        self.log_diagonal = nn.Parameter(diagonal.abs().log().to(dtype))
        self.bias = nn.Parameter(torch.zeros(features))

    def _factors(self) -> tuple[Tensor, Tensor]:
        diagonal = self.signs * torch.exp(self.log_diagonal)
        unit = torch.eye(self.features, dtype=diagonal.dtype, device=diagonal.device)
        return self.lower.tril(-1) + unit, self.upper.triu(1) + torch.diag(diagonal)

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(x, "x", self.features, self.bias.dtype)
        lower, upper = self._factors()
        matrix = (lower @ upper).index_select(0, self.permutation)
        return F.linear(x, matrix, self.bias), self.log_diagonal.sum().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(z, "z", self.features, self.bias.dtype)
        lower, upper = self._factors()
        columns = (z - self.bias).index_select(-1, self.permutation.argsort())
        columns = columns.reshape(-1, self.features).T
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.T.reshape(z.shape), -self.log_diagonal.sum().expand(z.shape[:-1])

    def extra_repr(self) -> str:
        return f"features={self.features}"
