"""Kernel densities: normals around rows, of several shapes and widths at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from made_flows._checks import check_finite, expect, positive_integer
from made_flows._registry import saveable
from made_flows._torch import has_concrete_values
from made_flows.distributions.base import VectorDistribution
from made_flows.models.base import Model

_NEIGHBOUR = 10
"""Which of a row's neighbours tells how dense rows are around it."""

_NARROWEST = 0.05
"""Width of a row's kernels over those of a row in the middle, at least: rows that almost repeat
would have kernels as narrow as their rounding."""

_OWN = 0.01
"""Part of a covariance that columns have for themselves, so that it has a factor."""

_CONSTANT = 1e-12
"""Variance of a column that is constant, but for rounding, in units of its scale."""

_FAR = 5.0
"""How far out a row has a part in the shape of kernels, in units of its columns."""

_COPY = 1e-10
"""Squared distance of rows that are copies of one another."""

_LARGE = 1e5
"""Squared distance from the origin from which on products lose what tells rows apart."""

_CELLS = 2**20
"""Pairs of values and rows that are compared at a time."""


class Kernel(NamedTuple):
    """A kind of kernel.

    Args:
        correlated: whether it has the shape of the rows' covariance, not of their variances alone.
        adaptive: whether its width follows the distance between a row and its neighbours.
        width: over one deviation of the rows; of adaptive ones, in the geometric mean.
    """

    correlated: bool
    adaptive: bool
    width: float


@saveable
class KernelDensity(Model):
    r"""A mixture of normal kernels around rows, which are kept with it.

    .. math:: p(x) = \sum_j \frac{w_j}{n} \sum_{r=1}^n \mathcal N\big(x;\, x_r,\,
        h_{jr}^2\, F_j F_j^\top\big)

    It knows what is near a row, at several scales, and nothing of what columns have to do with each
    other. It is made by :meth:`around`, and has nothing to train.

    Args:
        features: number of features D.
        rows: number of rows n.
        correlated: of each kind of kernel j, whether it has the shape of the rows' covariance
            (:math:`F_j`), not of their variances alone.

    References:
        Silverman 1986, *Density Estimation for Statistics and Data Analysis*, sections 4.2 and 5.3.

    Example:
        >>> x = torch.randn(500, 2)
        >>> model = KernelDensity.around(x, [Kernel(False, False, 0.3), Kernel(True, True, 0.3)])
        >>> bool((model().log_prob(x).mean() - torch.tensor(-2.84)).abs() < 0.3)
        True
    """

    places: Tensor
    factors: Tensor
    widths: Tensor
    weights: Tensor

    def __init__(self, features: int, rows: int, correlated: Sequence[bool]) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.rows, self.shapes = positive_integer(rows, "rows"), tuple(map(int, correlated))
        expect(bool(self.shapes), "correlated", "to be of at least one kind", correlated)
        self.kinds = len(self.shapes)
        self.register_buffer("places", torch.zeros(self.rows, self.features))
        self.register_buffer("factors", torch.eye(self.features).repeat(2, 1, 1))
        self.register_buffer("widths", torch.ones(self.kinds, self.rows))
        self.register_buffer("weights", torch.full((self.kinds,), 1 / self.kinds))

    @staticmethod
    @torch.no_grad()
    def around(x: Tensor, kinds: Sequence[Kernel], weights: Tensor | None = None) -> KernelDensity:
        """Put kernels around rows.

        Args:
            x: rows (n, D) in units of their columns' scales. Those further out than five are taken
                for five, to find a shape; a column in which all are the same has its scale.
            kinds: kinds of kernel, at least one.
            weights: of the kinds, (J,); the same by default.
        """
        rows, features = x.shape
        model = KernelDensity(features, rows, [kind.correlated for kind in kinds])
        x = x.double()
        near = x.clamp(-_FAR, _FAR)
        covariance = near.T.cov(correction=0).reshape(features, features)
        # They may be some of many rows, and a column have other values in few of these alone.
        constant = covariance.diagonal() < _CONSTANT
        covariance = covariance + constant.to(covariance).diag()
        variances = covariance.diagonal().diag()
        whole = torch.lerp(covariance, variances, _OWN)
        model.places.copy_(x)
        model.factors.copy_(torch.stack([variances.sqrt(), torch.linalg.cholesky(whole)]))
        spread = {shape: model._spread(shape) for shape in set(model.shapes)}
        for row, kind in zip(model.widths, kinds, strict=True):
            row.copy_(kind.width * (spread[int(kind.correlated)] if kind.adaptive else 1.0))
        if weights is not None:
            model.weights.copy_(weights)
        return model.eval()

    def _spread(self, shape: int) -> Tensor:
        """Return how far each row's neighbours are, over the geometric mean, (n,)."""
        count = min(_NEIGHBOUR, self.rows - 1)
        found = []
        for some in self.places.double().split(self._at_once()):
            squares = self._squares(some, shape)
            squares[squares < _COPY] = math.inf  # its own place, and that of its copies
            found.append(squares.topk(count, largest=False).values[:, -1])
        logs = 0.5 * torch.cat(found).log()
        known = logs.isfinite()
        if not known.any():
            return torch.ones_like(logs)
        logs = torch.where(known, logs, logs[known].max()) - logs[known].mean()
        return logs.exp().clamp(min=_NARROWEST)

    def _at_once(self) -> int:
        return max(1, _CELLS // self.rows)

    def _squares(self, x: Tensor, shape: int) -> Tensor:
        """Return squared distances of values (N, D) to the rows, in units of a shape: (N, n)."""
        factor = self.factors[shape].double()
        eye = torch.eye(self.features, dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        z, places = x @ inverse.T, self.places.double() @ inverse.T
        # In double precision the rounding of products is far below the width of any kernel, but
        # for rows far out. Where that cannot be asked, columns are taken one by one as well.
        of_places = places.square().sum(dim=1)
        if has_concrete_values(of_places) and bool(of_places.max() < _LARGE):
            sizes = z.square().sum(dim=1)[:, None] + of_places
            return torch.addmm(sizes, z, places.T, alpha=-2).clamp(min=0.0)
        squares: Tensor = z.new_zeros(len(z), len(places))
        for a, b in zip(z.T, places.T, strict=True):
            squares = squares + (a[:, None] - b).square()
        return squares

    def each(self, x: Tensor) -> Tensor:
        """Return log-densities (N, J) of values (N, D) under each kind by itself."""
        parts = [self._each(some) for some in x.double().split(self._at_once())]
        return torch.cat(parts) if parts else x.new_zeros(0, self.kinds).double()

    def _each(self, x: Tensor) -> Tensor:
        factors = self.factors.double()
        squares = {shape: self._squares(x, shape) for shape in range(2) if shape in self.shapes}
        found = []
        for shape, widths in zip(self.shapes, self.widths.double(), strict=True):
            logs = -0.5 * squares[shape] / widths.square() - self.features * widths.log()
            volume = factors[shape].diagonal().log().sum()
            found.append(torch.logsumexp(logs, dim=1) - volume)
        constant = math.log(self.rows) + 0.5 * self.features * math.log(2 * math.pi)
        return torch.stack(found, dim=1) - constant

    def distribution(self, context: Tensor | None = None) -> Distribution:
        return _Kernels(self)

    def extra_repr(self) -> str:
        return f"features={self.features}, rows={self.rows}, kinds={self.kinds}"


class _Kernels(VectorDistribution):
    """A kernel density as a distribution of vectors."""

    context = None
    support = constraints.real_vector
    _batched = ()

    def __init__(self, model: KernelDensity) -> None:
        self.model = model
        super().__init__((), model.features)

    def _modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def _validate_sample(self, value: Tensor) -> None:
        super()._validate_sample(value)
        check_finite(value, "value")

    def log_prob(self, value: Tensor) -> Tensor:
        model = self.model
        if self._validate_args:
            self._validate_sample(value)
        each = model.each(value.reshape(-1, model.features)) + model.weights.double().log()
        scores = torch.logsumexp(each, dim=1)
        dtype = value.dtype if value.is_floating_point() else model.places.dtype
        return self._over_batch(scores.to(dtype).reshape(value.shape[:-1]))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        shape, model = self._extended_shape(sample_shape), self.model
        like = model.places
        count = math.prod(shape[:-1])
        if not count:
            return like.new_zeros(shape)
        kinds = torch.multinomial(model.weights.float(), count, replacement=True)
        rows = torch.randint(model.rows, (count,), device=like.device)
        noise = torch.randn(count, model.features, dtype=like.dtype, device=like.device)
        of_shapes = noise @ model.factors.mT  # (2, count, D)
        shapes = torch.tensor(model.shapes, device=like.device)[kinds]
        away = of_shapes[shapes, torch.arange(count, device=like.device)]
        return (like[rows] + model.widths[kinds, rows, None] * away).reshape(shape)
