"""Linear transforms: permutations, and an invertible matrix by its factors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_flows._checks import check_generator, positive_integer
from made_flows._registry import saveable
from made_flows.nn.masks import make_order, ranks_from_order, shortened
from made_flows.transforms.base import Transform


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

    unit_free = True

    def __init__(
        self, features: int, order: Any = "reversed", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        check_generator(generator, draws=isinstance(order, str) and order == "random")
        self.register_buffer("order", make_order(self.features, order, generator))

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, context)
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context)
        return z.index_select(-1, ranks_from_order(self.order)), z.new_zeros(z.shape[:-1])

    def extra_repr(self) -> str:
        return shortened(self.order.tolist())


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

    unit_free = True

    def __init__(self, features: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        check_generator(generator)
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
        self._check("x", x, context, self.bias.dtype)
        lower, upper = self._factors()
        matrix = (lower @ upper).index_select(0, self.permutation)
        return F.linear(x, matrix, self.bias), self.log_diagonal.sum().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, context, self.bias.dtype)
        lower, upper = self._factors()
        columns = (z - self.bias).index_select(-1, self.permutation.argsort())
        columns = columns.reshape(-1, self.features).T
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.T.reshape(z.shape), -self.log_diagonal.sum().expand(z.shape[:-1])
