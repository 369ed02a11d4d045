"""The base of all models: modules that are called with a context to give a distribution."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from made_flows._checks import Unsaid, expect_type, positive_integer
from made_flows._registry import former_defaults
from made_flows._torch import has_lent_weights, keeping_weights
from made_flows.distributions.conditional import CompletionDistribution
from made_flows.nn.made import MADE
from made_flows.transforms.units import Units
from made_flows.univariate.heads import value_support


class Model(nn.Module):
    """A model of vectors: called with a context, it gives their distribution.

    That is a :class:`torch.distributions.Distribution`. A model of one's own says its ``features``
    and, if it takes one, its ``context``, and defines :meth:`distribution`; it can then be a
    component of a :class:`~made_flows.Mixture` and the base of a :class:`~made_flows.Flow`.

    Attributes:
        features: number of features D.
        context: number of context variables C; 0 for a model that takes none.

    Example:
        >>> import torch, made_flows as mf
        >>> from torch.distributions import Independent, StudentT
        >>> class HeavyTails(Model):
        ...     features = 2
        ...     def distribution(self, context=None):
        ...         return Independent(StudentT(torch.full((2,), 3.0)), 1)
        >>> mf.Mixture([mf.GaussianMADE(2), HeavyTails()])().sample((5,)).shape
        torch.Size([5, 2])
    """

    # Not an ABC: Pyro makes PyroModules of models, and classes have one metaclass.
    features: int = Unsaid("features = 3")  # type: ignore[assignment]
    context: int = 0

    _version = 2  # in state dicts; of 1 are those from before default activations became others

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)
        former = former_defaults(type(self)).get("activation")
        now = getattr(self, "_arguments", {}).get("activation", former)
        if local_metadata.get("version") == 1 and isinstance(now, str) and now != former:
            warnings.warn(
                f"The state dict of a {type(self).__name__} is from before its default activation "
                f"became {now!r}, and does not say its own: {former!r}, unless another was named. "
                f"Make the model with activation={former!r}, or save this state again if it fits",
                stacklevel=2,
            )

    def distribution(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution of the features, given the context (..., C)."""
        raise NotImplementedError(f"Expected {type(self).__name__} to define distribution(context)")

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name in ("log_prob", "sample", "rsample", "rsample_and_log_prob"):
            raise AttributeError(
                f"Expected {name} of a distribution, model().{name} or model(context).{name}; "
                f"got {name} of the {type(self).__name__} itself"
            )
        return super().__getattr__(name)

    @property
    def support(self) -> Any:
        """Where values live: a constraint."""
        like = next(self.parameters(), torch.empty(0))
        return self.distribution(like.new_zeros(self.context) if self.context else None).support

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution of the features, given the context (..., C).

        Raises:
            TypeError: for a model that ``fully_shard`` took as a whole, whose networks are not
                sharded themselves: torch gathers gradients where a module returns tensors, and a
                distribution is none, so that it would not train, and not say so.
        """
        if _is_sharded(self):
            whole = [m for m in self.modules() if isinstance(m, MADE) and not _is_sharded(m)]
            advice = "fully_shard(m) for every made_flows.MADE m of model.modules()"
            expect_type(not whole, "the model", f"to be sharded by networks: {advice}", self)
        if not torch.compiler.is_compiling() and has_lent_weights(self):
            # The distribution is asked when the call is over, and the weights have been given back.
            return keeping_weights(self).distribution(context)
        return self.distribution(context)

    def standardizable(self) -> list[Units]:
        """Return the units in which the model takes its data, where training may set them.

        None by default. A model that transforms its data itself, and one of discrete data, has
        those of its contexts alone (``of_data`` is false).
        """
        return []

    def standardizable_throughout(self) -> bool:
        """Tell whether all of the model may be standardised: then it takes any dtype."""
        return bool(self.standardizable())


class HasConditionals:
    """What models have in common that answer for missing features."""

    def conditional(
        self, x: Tensor, observed: Tensor | None = None, *, context: Tensor | None = None
    ) -> CompletionDistribution:
        """Return the distribution of the missing features of rows, given the observed ones."""
        raise NotImplementedError

    def impute(
        self,
        x: Tensor,
        samples: int = 1,
        observed: Tensor | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Draw the missing values of rows, the observed ones unchanged: (samples, ..., D).

        Arguments and errors are those of ``conditional``.
        """
        samples = positive_integer(samples, "samples")
        return self.conditional(x, observed, context=context).sample((samples,))


def _is_sharded(module: nn.Module) -> bool:
    """Say whether a module is one of ``torch.distributed.fsdp.fully_shard``, by its new class."""
    kind = type(module)
    return kind.__name__.startswith("FSDP") and any(
        base.__module__.startswith("torch.distributed.fsdp") for base in kind.__mro__
    )


def check_model(model: Any, argument: str) -> Model:
    """Check a model, or raise a TypeError that names the argument."""
    expect_type(isinstance(model, Model), argument, "to be a model with features", model)
    return cast(Model, model)


def is_everywhere(support: Any) -> bool:
    """Tell whether a constraint holds for all vectors of reals."""
    return type(value_support(support)) is type(constraints.real)


def same_support(one: Any, other: Any) -> bool:
    """Tell whether two constraints are of one kind, with equal bounds."""
    one, other = value_support(one), value_support(other)
    bounds, others = vars(one), vars(other)
    return (
        type(one) is type(other)
        and bounds.keys() == others.keys()
        and all(_equal(bounds[name], others[name]) for name in bounds)
    )


def _equal(one: Any, other: Any) -> bool:
    numbers = all(isinstance(bound, (int, float, Tensor)) for bound in (one, other))
    if not numbers:
        return bool(one is other)
    return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
