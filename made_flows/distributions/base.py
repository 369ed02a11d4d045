"""The base of this library's distributions: vectors, with parts that follow the batch shape."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from math import isnan
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from made_flows._checks import (
    check_broadcast,
    check_event,
    check_expanded,
    check_finite,
    check_sample_shape,
)
from made_flows._torch import has_concrete_values
from made_flows.distributions._protocols import Units
from made_flows.distributions.missing import fill
from made_flows.inverse.steps import HeadStep
from made_flows.nn.made import MADE
from made_flows.univariate.heads import Head


class TrainingModeWarning(UserWarning):
    """A model is in training mode, where its scores are random, and nothing is trained."""


D = TypeVar("D", bound="VectorDistribution")


class VectorDistribution(Distribution):
    """A distribution of vectors, of event shape (D,).

    A subclass draws (:meth:`_draw`), scores, and names in ``_batched`` those of its attributes
    that have its batch shape: tensors (*batch_shape, anything) and distributions.

    Args:
        batch_shape: the shape of the batch.
        features: number of features D.
        validate_args: whether contexts, and values before they are scored, are checked (torch's
            default: yes).
    """

    context: Tensor | None

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as torch declares it)
    _batched: ClassVar[tuple[str, ...]] = ("context",)

    def __init__(
        self, batch_shape: Sequence[int], features: int, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(
            torch.Size(batch_shape), torch.Size((features,)), validate_args=validate_args
        )
        if self._validate_args and self.context is not None:
            check_finite(self.context, "context")

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return False

    def _modules(self) -> Iterator[nn.Module]:
        """Return the modules whose weights take part in scores, those inside them included."""
        return iter(())

    def _random_part(self) -> str:
        """Say what makes scores in training mode random; empty if nothing does."""
        return ""

    def _warn_of_training_mode(self) -> None:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        part = self._random_part()
        if part:
            warnings.warn(
                f"Expected a model in evaluation mode to be scored without gradients; got one in "
                f"training mode, where {part} make scores random. Call model.eval() before",
                TrainingModeWarning,
                stacklevel=3,
            )

    def expand(self: D, batch_shape: Sequence[int], _instance: Distribution | None = None) -> D:
        """Expand to a larger batch shape.

        Raises:
            ValueError: for a shape that the batch shape does not broadcast to.
        """
        shape = check_expanded(batch_shape, self.batch_shape)
        new: Any = copy.copy(self) if _instance is None else _instance
        for name, value in vars(self).items():
            vars(new).setdefault(name, value)
        for name in self._batched:
            setattr(new, name, _expanded(getattr(self, name), shape))
        new._batch_shape = shape
        return cast(D, new)

    def _validate_sample(self, value: Tensor) -> None:
        check_event(value, "value", self.event_shape[0])
        if self._batch_shape:
            check_broadcast(value=value.shape[:-1], batch_shape=self.batch_shape)

    def _over_batch(self, scores: Tensor) -> Tensor:
        """Expand scores (...) to the batch shape."""
        if not self._batch_shape:
            return scores
        return scores.expand(check_broadcast(value=scores.shape, batch_shape=self.batch_shape))

    def _defined(self, scores: Tensor, value: Tensor) -> Tensor:
        """Make scores -inf where finite values are so far out that their numbers overflow.

        They stay NaN where values, contexts or weights are.
        """
        # A device is not waited for where values are not to be checked. A sum is NaN where one of
        # its terms is.
        look = self._validate_args or scores.device.type == "cpu"
        if look and has_concrete_values(scores) and not isnan(scores.detach().sum().item()):
            return scores
        # Of numbers that are finite, only those that overflow make NaN. Noise that overflows has
        # no density, rather than an undefined one.
        overflowed = scores.isnan() & weights_are_finite(self._modules())
        overflowed = overflowed & ~value.isnan().any(dim=-1)
        if self.context is not None:
            overflowed = overflowed & ~self.context.isnan().any(dim=-1)
        return torch.where(overflowed, -torch.inf, scores)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples of shape (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            return self._draw(check_sample_shape(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples that carry gradients to whatever they are made of.

        Raises:
            NotImplementedError: where :attr:`has_rsample` is false.
        """
        self._check_rsample()
        return self._draw(check_sample_shape(sample_shape))

    @abstractmethod
    def _draw(self, sample_shape: torch.Size) -> Tensor:
        """Draw samples (*sample_shape, *batch_shape, D), with gradients if there are any."""

    @property
    def mean(self) -> Tensor:
        """Raise a NotImplementedError: there is no formula."""
        raise self._unknown("mean", "sample((1000,)).mean(dim=0)")

    @property
    def variance(self) -> Tensor:
        """Raise a NotImplementedError: there is no formula."""
        raise self._unknown("variance", "sample((1000,)).var(dim=0)")

    def entropy(self) -> Tensor:
        """Raise a NotImplementedError: there is no formula."""
        raise self._unknown("entropy", "log_prob(d.sample((1000,))).mean(dim=0)", sign="-")

    def _unknown(self, what: str, estimate: str, sign: str = "") -> NotImplementedError:
        return NotImplementedError(
            f"Expected what a {type(self).__name__} d has a formula of; got {what}. Samples "
            f"estimate it: {sign}d.{estimate}"
        )

    def _check_rsample(self) -> None:
        if not self.has_rsample:
            raise NotImplementedError(
                f"Samples of {self._origin()} carry no gradients; use sample()"
            )

    def _origin(self) -> str:
        """Return what samples come from, for errors."""
        return f"a {type(self).__name__}"

    def _summary(self) -> str:
        """Return what the distribution is made of, in a word or two."""
        return ""

    def __repr__(self) -> str:
        parts = [self._summary()] if self._summary() else []
        parts += [f"batch_shape={tuple(self.batch_shape)}"]
        parts += [f"event_shape={tuple(self.event_shape)}"]
        return f"{type(self).__name__}({', '.join(parts)})"


class HeadDistribution(VectorDistribution):
    """A distribution of a conditioner and a head."""

    conditioner: MADE
    head: Head
    units: Units | None

    @property
    def support(self) -> Any:
        """Where values live: vectors of the head's support."""
        return constraints.independent(self.head.support, 1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return HeadStep(self.head).differentiable

    def _standardized(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Convert values (..., D) to the network's units; those not observed are filled in anew."""
        if self.units is None:
            return x
        u = self.units.standardize(x)
        return u if observed is None else fill(self.head, u, observed)

    def _restored(self, u: Tensor) -> Tensor:
        """Convert what was drawn in the network's units back to values."""
        self.head.check_drawn(u)
        return u if self.units is None else self.units.restore(u)

    def _sum_of(self, u: Tensor, parameters: Tensor, counted: Tensor) -> Tensor:
        """Sum log-probabilities of those values (..., D) in the network's units that count."""
        each = self.head.log_prob(u, parameters)
        if self.units is not None:
            each = each - self.units.log_scale()
        return torch.where(counted, each, torch.zeros_like(each)).sum(dim=-1)

    def _origin(self) -> str:
        return f"a {type(self.head).__name__} head"


def weights_are_finite(modules: Iterable[nn.Module]) -> Tensor | bool:
    """Tell whether all weights are finite, and no buffer has NaN (bounds may be infinite)."""
    checks = []
    for module in modules:
        checks += [torch.isfinite(weight).all() for weight in module.parameters(recurse=False)]
        floats = (buffer for buffer in module.buffers(recurse=False) if buffer.is_floating_point())
        checks += [~torch.isnan(buffer).any() for buffer in floats]
    return torch.stack(checks).all() if checks else True


def _expanded(value: Any, batch_shape: torch.Size) -> Any:
    if isinstance(value, Tensor):
        return value.expand(*batch_shape, -1)
    return value.expand(batch_shape) if isinstance(value, Distribution) else value
