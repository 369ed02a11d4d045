"""Tables that checks run over, name -> constructor: a new model joins every check with one line.

All models are float64 and in evaluation mode. Their weights are scattered: a fresh model's outputs
are near zero, and a test on them would see hardly any dependency.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import made_flows as mf
from made_flows.univariate import heads

M = TypeVar("M", bound=nn.Module)


def scatter(module: M, spread: float = 1.0) -> M:
    """The module with all its weights drawn from normals that keep activations near one."""
    with torch.no_grad():
        for parameter in module.parameters():
            inputs = parameter.shape[-1] if parameter.dim() > 1 else 4
            parameter.normal_(std=spread * max(inputs, 1) ** -0.5)
    return module


def nearly(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    """Equal to a tolerance, relative or absolute."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def made_of(**arguments: Any) -> mf.MADE:
    """A scattered float64 MADE, without the warning that it is narrow: many are so on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mf.DependencyWarning)
        return scatter(mf.MADE(**arguments).double()).eval()


# ---------------------------------------------------------------------- options of a MADE

ACTIVATION_NAMES = (
    "relu",
    "elu",
    "tanh",
    "silu",
    "gelu",
    "leaky_relu",
    "softplus",
    "sigmoid",
    "identity",
)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _given_order(features: int) -> list[int]:
    """Neither sorted nor its own inverse (from three features on)."""
    return [*range(1, features), 0]


def _graph(features: int) -> Tensor:
    """Every feature depends on the features 2 and 3 places before it, in a shuffled numbering."""
    lag = torch.arange(features)[:, None] - torch.arange(features)
    place = torch.randperm(features, generator=_seeded())
    return ((lag == 2) | (lag == 3))[place][:, place]


def _graph_and_context(features: int) -> Tensor:
    """The same graph; even features read the first context column, the last feature the second."""
    context = torch.zeros(features, 2, dtype=torch.bool)
    context[::2, 0] = True
    context[-1, 1] = True
    return torch.cat([_graph(features), context], dim=1)


OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda D: {},
    "reversed": lambda D: {"order": "reversed", "direct": "first"},
    "random order": lambda D: {"order": "random", "generator": _seeded()},
    "given order": lambda D: {"order": _given_order(D), "direct": "first"},
    "random degrees": lambda D: {"degrees": "random", "generator": _seeded()},
    "residual": lambda D: {"residual": True, "hidden_features": (16, 8, 12)},
    "residual, random degrees": lambda D: {
        "residual": True, "degrees": "random", "generator": _seeded(),
    },
    "direct": lambda D: {"direct": True},
    "mask weights": lambda D: {"mask_weights": True, "direct": True},
    "no hidden layer": lambda D: {"hidden_features": ()},
    "no hidden layer, direct": lambda D: {"hidden_features": (), "direct": True},
    "context": lambda D: {"context": 2},
    "context, no hidden layer": lambda D: {"context": 2, "hidden_features": ()},
    "context, residual, direct": lambda D: {
        "context": 3, "residual": True, "direct": True, "order": _given_order(D),
        "degrees": "random", "generator": _seeded(), "hidden_features": (16, 8, 12),
    },
    "narrow": lambda D: {"hidden_features": (2, 3)},
    "one unit": lambda D: {"hidden_features": (1,), "context": 1},
    "deep": lambda D: {"hidden_features": (8,) * 6, "activation": "tanh"},
    "graph": lambda D: {"adjacency": _graph(D)},
    "graph, context, residual": lambda D: {
        "adjacency": _graph_and_context(D), "context": 2, "residual": True, "direct": True,
    },
    "no edge": lambda D: {"adjacency": torch.zeros(D, D)},
    "dropout": lambda D: {"dropout": 0.5},
    "own activation": lambda D: {"activation": torch.sin},
    **{name: (lambda D, name=name: {"activation": name}) for name in ACTIVATION_NAMES[1:]},
}  # fmt: skip
"""Arguments of a MADE, as functions of the number of features."""


def _arguments(option: str, features: int) -> dict[str, Any]:
    return {"features": features, "hidden_features": (16, 16), **OPTIONS[option](features)}


NETWORKS: dict[str, Callable[..., mf.MADE]] = {
    option: lambda features=5, option=option, **more: made_of(
        **{**_arguments(option, features), **more}
    )
    for option in OPTIONS
}
"""MADEs: constructors from the number of features (and further arguments)."""

# ---------------------------------------------------------------------- heads and models

HEADS: dict[str, Callable[[int], heads.Head]] = {
    "Gaussian": lambda D: heads.Gaussian(),
    "Gaussian, softsign": lambda D: heads.Gaussian("softsign"),
    "Gaussian, exp": lambda D: heads.Gaussian("exp"),
    "Gaussian, softplus": lambda D: heads.Gaussian("softplus"),
    "Gaussian, sigmoid": lambda D: heads.Gaussian("sigmoid"),
    "Gaussian, clamp": lambda D: heads.Gaussian(mf.ScaleRule("clamp", low=-0.2, high=0.3)),
    "mixture": lambda D: heads.GaussianMixture(3),
    "mixture, softplus": lambda D: heads.GaussianMixture(2, "softplus"),
    "Bernoulli": lambda D: heads.Bernoulli(),
    "categorical": lambda D: heads.Categorical(3, D),
    "categorical, various": lambda D: heads.Categorical([2 + i % 3 for i in range(D)], D),
}


def any_order_model(
    head: str = "Bernoulli",
    features: int = 4,
    context: int = 0,
    *,
    order: str = "natural",
    hidden_features: tuple[int, ...] = (12, 12),
    spread: float = 1.0,
    **options: Any,
) -> mf.DensityModel:
    """A scattered float64 model of all orders, or of other options of a DensityModel."""
    made_head = HEADS[head](features)
    made = made_of(
        features=features, context=context, hidden_features=hidden_features, mask_weights=True,
        parameters=made_head.outputs, inputs=made_head.inputs, order=order,
    )  # fmt: skip
    model = mf.DensityModel(made, made_head.double(), **(options or {"orders": "all"}))
    return scatter(model, spread).eval()


"""Heads, as functions of the number of features."""


def _density(head: str, option: str, features: int, **more: Any) -> mf.DensityModel:
    made_head = HEADS[head](features)
    arguments = {**_arguments(option, features), **more}
    made = made_of(parameters=made_head.outputs, inputs=made_head.inputs, **arguments)
    return scatter(mf.DensityModel(made, made_head.double())).eval()


def _densities(*names: str) -> dict[str, Callable[..., nn.Module]]:
    """Every option under the first of these heads, every head under two options."""
    return {
        f"{head} | {option}": lambda features=4, head=head, option=option, **more: _density(
            head, option, features, **more
        )
        for head, option in itertools.product(names, OPTIONS)
        if head == names[0] or option in ("plain", "context, residual, direct")
    }


CONTINUOUS: dict[str, Callable[..., nn.Module]] = {
    **_densities(
        "Gaussian", "Gaussian, softsign", "Gaussian, exp", "Gaussian, softplus",
        "Gaussian, sigmoid", "Gaussian, clamp",
    ),
    **_densities("mixture", "mixture, softplus"),
}  # fmt: skip
"""Models with a density on vectors of real numbers: constructors from the number of features."""

DISCRETE: dict[str, Callable[..., nn.Module]] = {
    **_densities("Bernoulli"),
    **_densities("categorical, various", "categorical"),
}
"""Models with a probability for every vector of finitely many: likewise."""

MODELS = CONTINUOUS | DISCRETE


# ---------------------------------------------------------------------- what models need


def context_of(model: Any, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
    """A random context of a batch shape, None for a model without one."""
    return torch.randn(*batch, model.context, dtype=dtype) if model.context else None


def values_of(distribution: Distribution, *batch: int) -> Tensor:
    """Random values in the support."""
    features = distribution.event_shape[-1]
    support = distribution.support.base_constraint
    if not support.is_discrete:
        return torch.randn(*batch, features, dtype=torch.float64)
    highest = getattr(support, "upper_bound", torch.ones(features))
    return (torch.rand(*batch, features, dtype=torch.float64) * (highest + 1)).floor().long()


def all_vectors(distribution: Distribution) -> Tensor:
    """Every vector of a discrete distribution, (number of vectors, D)."""
    support = distribution.support.base_constraint
    highest = getattr(support, "upper_bound", torch.ones(distribution.event_shape))
    return torch.cartesian_prod(*(torch.arange(int(h) + 1) for h in highest)).reshape(
        -1, len(highest)
    )
