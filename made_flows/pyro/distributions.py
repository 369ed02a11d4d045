"""Density models and flows as distributions of Pyro."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

import made_flows.models.mades as core
from made_flows._checks import expect_type
from made_flows.distributions.flow import FlowDistribution
from made_flows.models.base import Model, check_model
from made_flows.models.density import DensityModel
from made_flows.pyro.cache import Memory
from made_flows.pyro.modules import materialized

M = TypeVar("M", bound=DensityModel)


class ModelDistribution(TorchDistribution):
    r"""A distribution of this library with the methods that Pyro needs.

    It goes into ``pyro.sample``, latent or observed, in plates, with subsampling, masks and
    scales. Where scoring is sequential and sampling is not (an IAF), the log-density of a sample
    is computed along with it, and remembered.

    Args:
        distribution: what a model of this library gives when it is called.
        model: the module that it came from.

    Raises:
        TypeError: for something that is no torch distribution.
        NotImplementedError: where enumeration is asked for: the values of an autoregressive model
            are too many to enumerate.

    Example:
        >>> import pyro, made_flows as mf
        >>> flow = mf.IAF(3)
        >>> pyro.sample("z", ModelDistribution(flow(), flow)).shape
        torch.Size([3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as torch declares it)
    has_enumerate_support = False

    def __init__(self, distribution: Distribution, model: nn.Module) -> None:
        expect_type(
            isinstance(distribution, Distribution),
            "distribution",
            "to be a torch Distribution",
            distribution,
        )
        expect_type(isinstance(model, nn.Module), "model", "to be the model it came from", model)
        self.distribution = distribution
        self.model = model
        context = getattr(distribution, "context", None)
        self._memory = Memory(model, () if context is None else (context,))
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Where values live."""
        return self.distribution.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return bool(self.distribution.has_rsample)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> ModelDistribution:
        """Expand to a larger batch shape."""
        return type(self)(self.distribution.expand(torch.Size(batch_shape)), self.model)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability (...) of values (..., D)."""
        known = self._memory.recall(y=value)
        if known is not None and known.along is not None:
            return known.along
        return self.distribution.log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples of shape (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            if _scores_slowly(self.distribution) and self.has_rsample:
                return self._draw_and_score(sample_shape)
            return self.distribution.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples that carry gradients."""
        if _scores_slowly(self.distribution):
            return self._draw_and_score(sample_shape)
        return self.distribution.rsample(torch.Size(sample_shape))

    def _draw_and_score(self, sample_shape: Sequence[int]) -> Tensor:
        distribution = cast(FlowDistribution, self.distribution)
        value, log_prob = distribution.rsample_and_log_prob(torch.Size(sample_shape))
        self._memory.store(None, value, log_prob, made=value)
        return value

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Refuse: an autoregressive model has too many values."""
        raise NotImplementedError(
            f"Expected a site without enumeration; got one of {self.distribution}, whose values "
            f"are too many to enumerate. Sample it, or leave out infer={{'enumerate': ...}}"
        )

    def __repr__(self) -> str:
        return f"ModelDistribution({self.distribution})"


def _scores_slowly(distribution: Distribution) -> bool:
    """Tell whether the log-density of a sample is cheaper when it is drawn than afterwards."""
    if not isinstance(distribution, FlowDistribution):
        return False
    return distribution.transform.noise_pass == "sequential"


class PyroModel(Model):
    """A density model or flow whose call gives a distribution of Pyro.

    Args:
        model: a model of this library: called with its context, it gives a distribution.

    Example:
        >>> import made_flows as mf
        >>> flow = PyroModel(mf.MAF(3, context=2))
        >>> flow(torch.zeros(10, 2)).expand([5, 10]).rsample().shape
        torch.Size([5, 10, 3])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = check_model(model, "model")
        self.features, self.context = self.model.features, self.model.context

    def distribution(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution under a context (..., C), as the model itself gives it."""
        return self.model.distribution(context)

    def forward(self, context: Tensor | None = None) -> ModelDistribution:
        """Return the distribution under a context (..., C)."""
        model = materialized(self.model)
        return ModelDistribution(model(context), model)


def to_pyro(model: nn.Module) -> PyroModel:
    """Make a density model or flow one for Pyro, sharing its weights.

    Args:
        model: a model of this library.

    Raises:
        TypeError: for anything else.

    Example:
        >>> import pyro, made_flows as mf
        >>> model = to_pyro(mf.MAF(2))
        >>> with pyro.plate("data", 10):
        ...     x = pyro.sample("x", model())
        >>> x.shape
        torch.Size([10, 2])
    """
    return PyroModel(model)


class _ForPyro:
    """Mixed into a density model: its call gives a distribution of Pyro."""

    def forward(self, context: Tensor | None = None) -> ModelDistribution:
        """Return the distribution under a context (..., C)."""
        module = cast(nn.Module, self)
        model = materialized(module)
        if model is not module:
            return cast(ModelDistribution, model(context))
        return ModelDistribution(super().forward(context), model)  # type: ignore[misc]


def _for_pyro(kind: type[M], example: str, shape: str) -> type[M]:
    """Make the class of a density model for Pyro.

    Args:
        kind: the class of the density model.
        example: of a call that gives a distribution.
        shape: of a sample of it.
    """
    name = kind.__name__
    described = f""":class:`made_flows.{name}`, giving distributions of Pyro.

    Example:
        >>> import pyro
        >>> pyro.sample("x", {example}).shape
        torch.Size({shape})
    """
    namespace = {"__doc__": described, "__module__": __name__, "__qualname__": name}
    return cast(type[M], type(name, (_ForPyro, kind), namespace))


BernoulliMADE = _for_pyro(
    core.BernoulliMADE, "BernoulliMADE(4, context=2)(torch.zeros(10, 2))", "[10, 4]"
)
CategoricalMADE = _for_pyro(
    core.CategoricalMADE, "CategoricalMADE(3, categories=(2, 5, 3))()", "[3]"
)
GaussianMADE = _for_pyro(core.GaussianMADE, "GaussianMADE(4)()", "[4]")
GaussianMixtureMADE = _for_pyro(
    core.GaussianMixtureMADE, "GaussianMixtureMADE(4, components=3)()", "[4]"
)
