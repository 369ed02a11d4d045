"""Bases: the distribution of a flow's noise, as a module that moves with the flow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, Transform, constraints

from made_flows._checks import expect, expect_type, positive_integer, real_number, shown
from made_flows._constants import with_value
from made_flows._registry import saveable
from made_flows.models.base import Model, is_everywhere
from made_flows.univariate.heads import value_support


class _Normal(Normal):
    """A normal distribution whose samples, the same, take a third of the time of torch's."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape, like = self._extended_shape(sample_shape), self.loc
        with torch.no_grad():
            noise = torch.randn(shape, dtype=like.dtype, device=like.device)
            return torch.addcmul(like, noise, self.scale)


@saveable
class StandardNormal(Model):
    """Independent standard normal noise.

    Args:
        features: number of features D.

    Example:
        >>> StandardNormal(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    zero: Tensor
    one: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.register_buffer("zero", torch.zeros(self.features))
        self.register_buffer("one", torch.ones(self.features))

    def distribution(self, context: Tensor | None = None) -> Distribution:
        # As torch's expand makes one: to broadcast the two takes as long as to draw from them.
        normal: Any = _Normal.__new__(_Normal)
        normal.loc, normal.scale = self._buffers["zero"], self._buffers["one"]
        Distribution.__init__(normal, normal.loc.shape, validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def extra_repr(self) -> str:
        return f"features={self.features}"


class _Student(Distribution):
    """Independent Student t noise as one distribution of vectors, with gradients of samples.

    torch's takes four times as long for samples of 5000 rows, and three for scores of a few.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as torch declares it)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, df: float, like: Tensor, batch_shape: Sequence[int] = ()) -> None:
        self.df, self.like = df, like
        self.constant = (
            math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        )
        super().__init__(torch.Size(batch_shape), like.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        return _Student(self.df, self.like, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        tails: Tensor = torch.log1p(value.square().div_(self.df)).sum(dim=-1)
        return tails.mul_(-0.5 * (self.df + 1)).add_(self.constant * self.like.numel())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        # Two uniform numbers each, as those of Box and Muller: Bailey 1994, Polar Generation of
        # Random Variates with the t-Distribution, equation 9.
        shape = self._extended_shape(torch.Size(sample_shape))
        # In half precision tails would end at five.
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        u, v = torch.rand(2, *shape, dtype=dtype, device=self.like.device).unbind()
        radius = u.neg_().log1p_().mul_(-2 / self.df).expm1_().mul_(self.df).sqrt_()
        return v.mul_(2 * math.pi).cos_().mul_(radius).to(self.like.dtype)


@saveable
class StudentT(Model):
    r"""Independent noise with heavy tails: Student's t distribution.

    .. math:: p(z) = \prod_i \frac{\Gamma((\nu + 1) / 2)}{\sqrt{\nu \pi}\, \Gamma(\nu / 2)}
        \left(1 + \frac{z_i^2}{\nu}\right)^{-(\nu + 1) / 2}

    A row that training has not foreseen costs nats by the logarithm of its distance, where it
    costs the square of it under normal noise.

    Args:
        features: number of features D.
        df: degrees of freedom :math:`\nu`. Of many, it is a standard normal distribution.

    Example:
        >>> StudentT(3)().log_prob(torch.full((3,), 100.0)), StandardNormal(3)().log_prob(
        ...     torch.full((3,), 100.0)
        ... )
        (tensor(-99.1283), tensor(-15002.7568))
    """

    like: Tensor

    def __init__(self, features: int, df: float = 8.0) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.df = real_number(df, "df", above=0)
        self.register_buffer("like", torch.zeros(self.features), persistent=False)

    def distribution(self, context: Tensor | None = None) -> Distribution:
        return _Student(self.df, self.like)

    def extra_repr(self) -> str:
        return f"features={self.features}, df={self.df:g}"


class FixedBase(Model):
    """A torch distribution as it is given; its tensors follow the module's dtype and device.

    They are constants: no parameters, not in the state dict, not trained. A base that is trained
    is a module, called to give a distribution.

    Args:
        distribution: a distribution over vectors of reals.

    Raises:
        ValueError: for events that are not vectors.

    Example:
        >>> base = FixedBase(Independent(Normal(torch.zeros(3), torch.ones(3)), 1)).double()
        >>> base().sample().dtype
        torch.float64
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        shapes = tuple(distribution.event_shape), tuple(distribution.batch_shape)
        got = (
            f"{shapes[0]} and batch_shape {shapes[1]}. Independent one-dimensional distributions "
            f"become one of vectors by torch.distributions.Independent(base, 1)"
        )
        expect(len(shapes[0]) == 1, "base", "with event_shape (D,)", got)
        (self.features,) = distribution.event_shape
        self.fixed = distribution

    def distribution(self, context: Tensor | None = None) -> Distribution:
        return self.fixed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedBase:
        super()._apply(fn, recurse)
        self.fixed = _moved(self.fixed, lambda value: with_value(fn(value), value), {})
        return self

    def extra_repr(self) -> str:
        return str(self.fixed)


def _moved(value: Any, fn: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """Return a copy of a distribution with a function applied to every tensor in it."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, list):
        return [_moved(item, fn, done) for item in value]
    if not isinstance(value, (Distribution, Transform)):
        return value
    if id(value) not in done:  # a transform and its inverse hold each other
        done[id(value)] = new = copy.copy(value)
        for name, item in vars(value).items():
            new.__dict__[name] = _moved(item, fn, done)
    return done[id(value)]


_NOISE: dict[str | None, Callable[[int], Model]] = {None: StandardNormal, "student": StudentT}


def make_base(base: Any, features: int | None) -> Model:
    """Make a base a module: None for standard normal noise, a name, a distribution, or a model."""
    if base is None or (isinstance(base, str) and base in _NOISE):
        wanted = "to be given to a flow without transforms"
        expect(features is not None, "base", wanted, shown(base))
        return _NOISE[base](positive_integer(features, "features"))
    if isinstance(base, Distribution):
        base = FixedBase(base)
    wanted = "to be None, a torch Distribution, 'student', or a model of this library"
    expect_type(isinstance(base, Model), "base", wanted, base)
    model: Model = base
    if features is not None:
        expect(model.features == features, "base", f"to have {features} features", model.features)
        # Noise is anywhere: transforms map all reals to all reals.
        reals = is_everywhere(model.support)
        wanted = "to have all reals as the support of every feature"
        expect(reals, "base", wanted, value_support(model.support))
    return model
