"""Heads: what the parameters of a feature mean, as a one-dimensional distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from made_flows._checks import (
    Unsaid,
    check_default_device,
    check_finite,
    check_parameters,
    check_values,
    per_feature,
    positive_integer,
)
from made_flows._constants import WithConstants
from made_flows._keys import KeyedModule
from made_flows._registry import saveable
from made_flows.univariate.scales import ScaleRule, make_scale_rule
from made_flows.univariate.step_kernel import StepKernel

__all__ = ["Bernoulli", "Categorical", "Gaussian", "GaussianMixture", "Head"]


class Head(WithConstants, KeyedModule, ABC):
    """A one-dimensional distribution for every feature, from its parameters.

    A head is a page of code: say how many parameters a feature has (its ``outputs``), the
    logarithm of its probability, and how noise becomes a value. Everything is elementwise over
    leading dimensions, among them the features. Only a head whose values are not fed to the
    network as they are also defines :meth:`encode`.

    Attributes:
        outputs: parameters per feature K (or one number for each feature).
        inputs: columns that a value takes at the input of the network, likewise.
        noise_parts: numbers of noise per feature P.
        has_rsample: whether :meth:`step` is differentiable in noise and parameters. Samples then
            carry gradients, unless :meth:`encode` is the head's own.
        support: where a single value lives.
        value_dtype: dtype of values, None for that of the network.
        filler: a value of the support, put where one is missing (nothing depends on it).
        logits: which parameters, of all features one after the other, are logits of categories,
            None for all: the direct connections of others are not trained at a higher rate.

    Example:
        >>> class Laplace(Head):
        ...     outputs, support = 2, constraints.real
        ...     def log_prob(self, x, parameters):
        ...         location, log_scale = parameters.unbind(-1)
        ...         return -((x - location) / log_scale.exp()).abs() - log_scale - math.log(2)
        ...     def noise(self, shape, like):
        ...         u = torch.rand(*shape, 1, dtype=like.dtype, device=like.device) - 0.5
        ...         return -u.sign() * torch.log1p(-2 * u.abs())
        ...     def step(self, noise, parameters):
        ...         location, log_scale = parameters.unbind(-1)
        ...         return location + log_scale.exp() * noise[..., 0]
        >>> import made_flows as mf
        >>> model = mf.DensityModel(mf.MADE(3, parameters=2), Laplace())
        >>> model().sample((5,)).shape
        torch.Size([5, 3])
    """

    outputs: int | tuple[int, ...] = Unsaid("outputs = 2")  # type: ignore[assignment]
    inputs: int | tuple[int, ...] = 1
    noise_parts: int = 1
    has_rsample: bool = True
    value_dtype: torch.dtype | None = None
    filler: float = 0.0
    logits: Tensor | None = None
    support: constraints.Constraint = Unsaid("support = constraints.real")  # type: ignore[assignment]

    @abstractmethod
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Compute the log-probability (density) of values (..., D) by parameters (..., D, K)."""

    @abstractmethod
    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw noise of shape (*shape, P), on the device of a tensor ``like`` and of its dtype.

        Uniform numbers are drawn in float32 at least, as those of half precision are too coarse.
        """

    @abstractmethod
    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        """Turn noise (..., P) into values (...) by parameters (..., K)."""

    def step_at(self, noise: Tensor, parameters: Tensor, features: Tensor) -> Tensor:
        """Turn the noise of some features into their values; what sampling calls.

        A head that differs from feature to feature overrides this in place of leaving it to
        :meth:`step`.

        Args:
            noise: (..., P).
            parameters: (..., K), with K at least the number of these features' own parameters.
            features: which feature each value belongs to, integers that broadcast to (...).

        Returns:
            values (...).
        """
        return self.step(noise, parameters)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode values x (..., D) as what the network reads, (..., inputs)."""
        return x

    def initial_parameters(self) -> Tensor | None:
        """Return the parameters that an untrained network should give; None for zeros.

        (K,), those of any feature; or of all features one after the other, where they differ.
        """
        return None

    def kernel(self) -> StepKernel | None:
        """Name the kernel of the compiled inverse for a step; None if it has none for this head."""
        return None

    def check_values(self, x: Tensor) -> None:
        """Raise a ValueError that names the first row and column outside the support."""
        check_finite(x, "value")
        support = self.support
        if support is not constraints.real and not constraints.is_dependent(support):
            words = f"to be in the support of {type(self).__name__}, {support}"
            check_values(x, support.check(x), "value", words)

    def check_drawn(self, x: Tensor) -> None:
        """Raise where values (..., D) were drawn by parameters that no distribution has.

        Where values may be NaN, they are, and nothing is raised.
        """


@saveable
class Gaussian(Head):
    r"""A normal distribution from a mean and an unconstrained log-scale.

    .. math:: x = \mu + s\,\varepsilon, \qquad
        \log p(x) = -\tfrac12 \left(\tfrac{x - \mu}{s}\right)^2 - \log s - \tfrac12 \log 2\pi

    Args:
        scale: the rule from the second parameter to s, a name or a
            :class:`~made_flows.ScaleRule`.

    Example:
        >>> Gaussian().log_prob(torch.zeros(1), torch.zeros(1, 2))
        tensor([-0.9189])
    """

    outputs = 2
    support = constraints.real

    def __init__(self, scale: str | ScaleRule = "bounded") -> None:
        super().__init__()
        self.scale = make_scale_rule(scale)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        check_parameters(x, parameters, 2, "x")
        mean, raw = parameters.unbind(-1)
        log_precision = -self.scale(raw)
        z = (x - mean) * torch.exp(log_precision)
        return torch.addcmul(log_precision - 0.5 * math.log(2 * math.pi), z, z, value=-0.5)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(*shape, 1, dtype=like.dtype, device=like.device)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        mean, raw = parameters.unbind(-1)
        scale: Tensor = torch.exp(self.scale(raw))
        return mean + scale * noise[..., 0]

    def kernel(self) -> StepKernel:
        return StepKernel("affine", self.scale, (1.0, 0.0), scored=True)


@saveable
class GaussianMixture(Head):
    r"""A mixture of normals from logits, means and unconstrained log-scales.

    .. math:: \log p(x) = \log \sum_k \pi_k\, \mathcal N(x; \mu_k, s_k^2), \qquad
        \pi = \mathrm{softmax}(\text{logits})

    The parameters of a feature are its C logits, then C means, then C log-scales. Means start
    spread over the quantiles of a standard normal, so that components are told apart.

    Args:
        components: number of components C.
        scale: the rule from log-scale parameters to :math:`s_k`.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 4.1 (MADE MoG).

    Example:
        >>> GaussianMixture(3).initial_parameters()[3:6]
        tensor([-0.9674,  0.0000,  0.9674])
    """

    support = constraints.real
    noise_parts = 2
    has_rsample = False

    def __init__(self, components: int = 8, scale: str | ScaleRule = "bounded") -> None:
        super().__init__()
        self.components = positive_integer(components, "components")
        self.scale = make_scale_rule(scale)
        self.outputs = 3 * self.components

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        check_parameters(x, parameters, 3 * self.components, "x")
        logits, means, raw = parameters.chunk(3, dim=-1)
        log_scale = self.scale(raw)
        z = (x.unsqueeze(-1) - means) * torch.exp(-log_scale)
        each = F.log_softmax(logits, dim=-1) - 0.5 * z * z - log_scale
        return torch.logsumexp(each, dim=-1) - 0.5 * math.log(2 * math.pi)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        uniform = _uniform(shape, like)
        return torch.stack([uniform, torch.randn_like(uniform)], dim=-1)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        logits, means, raw = parameters.chunk(3, dim=-1)
        chosen = _choose(noise[..., 0], logits).unsqueeze(-1)
        place = chosen.clamp(min=0)
        mean = means.gather(-1, place).masked_fill(chosen < 0, torch.nan).squeeze(-1)
        scale: Tensor = torch.exp(self.scale(raw.gather(-1, place)).squeeze(-1))
        return mean + scale * noise[..., 1].to(mean.dtype)

    def initial_parameters(self) -> Tensor:
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # ndtri needs it
        places = (torch.arange(self.components, dtype=dtype) + 0.5) / self.components
        start = torch.zeros(3, self.components)
        start[1] = torch.special.ndtri(places)
        return start.flatten()

    def kernel(self) -> StepKernel:
        return StepKernel("mixture", self.scale, scored=True)

    def extra_repr(self) -> str:
        return f"components={self.components}"


@saveable
class Bernoulli(Head):
    r"""A binary value from its logit :math:`\ell`: :math:`p(x = 1) = \sigma(\ell)`.

    .. math:: \log p(x) = -\mathrm{softplus}((1 - 2x)\, \ell)

    Example:
        >>> Bernoulli().log_prob(torch.ones(1), torch.zeros(1, 1))
        tensor([-0.6931])
    """

    outputs = 1
    support = constraints.boolean
    has_rsample = False

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        check_parameters(x, parameters, 1, "x")
        logit = parameters.squeeze(-1)
        # Not 2 * x - 1: unsigned bytes would wrap round.
        return F.logsigmoid(torch.where(x > 0, logit, -logit))

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return _uniform((*shape, 1), like)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        uniform = noise[..., 0]
        dtype = torch.promote_types(uniform.dtype, parameters.dtype)
        probability = torch.sigmoid(parameters.squeeze(-1).to(dtype))
        drawn = (uniform < probability).to(dtype)
        return torch.where(probability.isnan(), probability, drawn).to(parameters.dtype)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def kernel(self) -> StepKernel:
        return StepKernel("bernoulli", scored=True)

    def check_values(self, x: Tensor) -> None:
        check_values(x, (x == 0) | (x == 1), "value", "to be 0 or 1")


@saveable
class Categorical(Head):
    r"""An integer 0..K-1 from K logits: :math:`p(x = k) = \mathrm{softmax}(\ell)_k`.

    The network reads values as one-hot vectors; outside they are integers.

    Args:
        categories: number of categories K, the same for all features or one number each.
        features: number of features D.

    Example:
        >>> Categorical(4, features=1).log_prob(torch.tensor([2]), torch.zeros(1, 4))
        tensor([-1.3863])
    """

    has_rsample = False
    value_dtype = torch.int64
    sizes: Tensor
    columns: Tensor | None

    def __init__(self, categories: int | Sequence[int], features: int) -> None:
        super().__init__()
        check_default_device()
        features = positive_integer(features, "features")
        each = per_feature(categories, features, "categories")
        self.categories = self.outputs = self.inputs = each
        self.register_buffer("sizes", torch.tensor(each), persistent=False)
        places = torch.arange(max(each)).expand(features, -1)
        columns = (places < torch.tensor(each)[:, None]).flatten().nonzero().squeeze(1)
        filled = len(columns) == places.numel()
        self.register_buffer("columns", None if filled else columns, persistent=False)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """Integers from 0 to the number of categories less one, of every feature."""
        return constraints.integer_interval(torch.zeros_like(self.sizes), self.sizes - 1)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        chosen = x.long().unsqueeze(-1)
        shape = torch.broadcast_shapes(chosen.shape[:-1], parameters.shape[:-1])
        logits = F.log_softmax(parameters, dim=-1).expand(*shape, -1)
        return logits.gather(-1, chosen.expand(*shape, 1)).squeeze(-1)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return _uniform((*shape, 1), like)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return _choose(noise[..., 0], parameters)

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        largest = max(self.categories)
        one_hot = (x.unsqueeze(-1) == torch.arange(largest, device=x.device)).to(dtype).flatten(-2)
        return one_hot if self.columns is None else one_hot.index_select(-1, self.columns)

    def kernel(self) -> StepKernel:
        return StepKernel("categorical", one_hot=True, scored=True)

    def check_values(self, x: Tensor) -> None:
        valid = (x >= 0) & (x < self.sizes) & (x == x.long())
        below = self.categories[0] if len(set(self.categories)) == 1 else "the feature's own number"
        check_values(x, valid, "value", f"to be an integer from 0 to below {below} of categories")

    def check_drawn(self, x: Tensor) -> None:
        check_values(x, x >= 0, "logits", "that can be drawn from: weights that are finite")

    def extra_repr(self) -> str:
        same = len(set(self.categories)) == 1
        return f"categories={self.categories[0] if same else self.categories}"


def value_support(support: Any) -> Any:
    """Return the constraint of a single value, given one of vectors."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Draw uniform numbers, of float32 at least.

    Those of half precision are multiples of 1/256 or 1/2048: what is less probable would never be
    drawn, or much too often.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(*shape, dtype=dtype, device=like.device)


def _choose(uniform: Tensor, logits: Tensor) -> Tensor:
    """Find the category in whose part of the cumulative distribution a uniform number falls.

    It is -1 where logits are NaN, or infinite, so that there is no such distribution.
    """
    logits = logits.to(torch.promote_types(uniform.dtype, logits.dtype))
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[..., -1:]
    # Rounding may carry a uniform number just below one to the end, past the last category.
    place = torch.minimum(uniform.unsqueeze(-1) * total, torch.nextafter(total, total - total))
    return torch.where(total.isnan().squeeze(-1), -1, (place >= cumulative).sum(dim=-1))
