"""Builders of density estimators, with the arguments of sbi's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, ParamSpec

import numpy as np
import torch
from sbi.utils.sbiutils import z_score_parser
from torch import Tensor, nn
from torch.distributions import Distribution

from made_flows._checks import (
    boolean,
    expect,
    expect_type,
    expect_word,
    non_negative_integer,
    positive_integer,
    real_number,
    widths,
)
from made_flows._keywords import helpful
from made_flows._registry import own_arguments
from made_flows.models.autoregressive_flows import IAF, MAF
from made_flows.models.base import Model
from made_flows.models.flows import Flow
from made_flows.models.mades import GaussianMixtureMADE
from made_flows.sbi.conditions import (
    check_rows,
    check_varies,
    embedded_size,
    moments,
    scoring,
)
from made_flows.sbi.estimator import Estimator
from made_flows.sbi.support import Bounds, ends_of
from made_flows.training.optimization import seeded
from made_flows.transforms.base import Transform
from made_flows.transforms.data import Standardize
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.splines import RationalQuadraticSpline

P = ParamSpec("P")
ZScore = Literal["independent", "structured", "none"] | None


class Builder:
    """What sbi's trainers call with their first simulations; made by :func:`maf` and its like.

    Args:
        model: from features and context variables to the model of z-scored parameters.
        z_score_theta, z_score_x: how parameters and simulations are z-scored.
        embedding_net: of simulations, or of parameters for a likelihood.
        support: where parameters live (simulations, for a likelihood).
        likelihood: whether simulations are modelled given parameters, not parameters given them.
    """

    model: partial[Any]

    def __init__(
        self,
        model: partial[Any],
        z_score_theta: ZScore,
        z_score_x: ZScore,
        embedding_net: nn.Module | None,
        support: Any,
        likelihood: bool,
    ) -> None:
        if isinstance(z_score_theta, Tensor):  # a trainer called maf, say, and not what it returns
            raise TypeError(
                "Expected density_estimator to be what maf() returns; got the function itself"
            )
        for name, value in (("z_score_theta", z_score_theta), ("z_score_x", z_score_x)):
            words = ("independent", "structured", "none", None)
            expect_word(value, words, name, "to be 'independent', 'structured' or 'none'")
        embedding_net = nn.Identity() if embedding_net is None else embedding_net
        is_module = isinstance(embedding_net, nn.Module)
        expect_type(is_module, "embedding_net", "to be a module", embedding_net)
        if support is not None:  # an error now, not when the trainer calls
            ends_of(support)
        self.model, self.embedding_net, self.support = model, embedding_net, support
        self.z_score_theta, self.z_score_x = z_score_theta, z_score_x
        self.likelihood = boolean(likelihood, "likelihood")

    def __call__(self, theta: Tensor, x: Tensor) -> Estimator:
        """Build the estimator, z-scored by parameters (N, ...) and simulations (N, ...)."""
        check_rows(theta, "theta")
        check_rows(x, "x")
        expect(len(x) == len(theta), "x", f"to be {len(theta)} rows, as theta is", len(x))
        of, given = (x, theta) if self.likelihood else (theta, x)
        names = ("theta", "x")[:: -1 if self.likelihood else 1]
        scores = (self.z_score_theta, self.z_score_x)[:: -1 if self.likelihood else 1]
        rows = of.flatten(1)
        check_varies(rows, names[0])
        bounds = None if self.support is None else Bounds(self.support, rows.shape[1])
        transforms: list[Transform] = []
        if bounds is not None:
            name = "x (with likelihood=True)" if self.likelihood else "theta"
            rows, transforms = bounds.opened(rows, name)
        scored, structured = z_score_parser(scores[0])
        if scored:
            mean, std = moments(rows, structured, names[0])
            width = rows.shape[1]
            transforms.append(Standardize(mean.expand(width), std.expand(width)))
        # Copies, as estimators of one builder, an ensemble's say, are trained each by itself.
        embedding = copy.deepcopy(self.embedding_net)
        own = {
            name: copy.deepcopy(value)
            for name, value in self.model.keywords.items()
            if isinstance(value, nn.Module)
        }
        size = embedded_size(embedding, given)
        scored, structured = z_score_parser(scores[1])
        if scored:
            embedding = nn.Sequential(scoring(given, structured, names[1]), embedding)
        model = self.model(rows.shape[1], size, **own)
        if isinstance(model, Flow):
            transforms += [part for part in model.transforms if isinstance(part, Transform)]
            flow = Flow(transforms, model.base)
        else:
            flow = Flow(transforms, model)
        return Estimator(flow, embedding, of[0].shape, given[0].shape, bounds, (of, given))


def _helpful(function: Callable[P, Builder]) -> Callable[P, Builder]:
    """Let errors name this module's function, not a model of a name like it."""
    return helpful(function, f"made_flows.sbi.{function.__name__}")


def _widths(hidden_features: int | Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Return the widths of sbi's networks: a layer, and one more for each block."""
    if isinstance(hidden_features, Sequence):
        return widths(hidden_features, "hidden_features")
    width = positive_integer(hidden_features, "hidden_features")
    return (width,) * (1 + non_negative_integer(num_blocks, "num_blocks"))


@_helpful
def maf(
    z_score_theta: ZScore = "independent",
    z_score_x: ZScore = "independent",
    hidden_features: int | Sequence[int] = 50,
    num_transforms: int = 5,
    embedding_net: nn.Module | None = None,
    *,
    num_blocks: int = 2,
    dropout_probability: float = 0.0,
    support: Any = None,
    likelihood: bool = False,
    order: Any = "reverse",
    normalize: Literal["batch", "actnorm"] | None = None,
    bijection: Literal["affine", "spline", "gated"] | Bijection = "affine",
    scale: str | ScaleRule | None = None,
    base: Distribution | Model | Literal["student"] | None = None,
    degrees: Literal["even", "random"] = "even",
    activation: Any = "tanh",
    residual: bool = True,
    direct: bool | Literal["first"] | None = False,
    mask_weights: bool | Literal["order"] = False,
    adjacency: Any = None,
    generator: torch.Generator | None = None,
) -> Builder:
    r"""Build a masked autoregressive flow for sbi, as its ``posterior_nn("maf")`` does.

    .. math:: q(\theta \mid x) = p_0(z)\, \Bigl|\det \tfrac{\partial z}{\partial \theta}\Bigr|,
        \qquad \theta_i = g(z_i; \theta_{<i}, x) \text{ in every transform}

    Args:
        z_score_theta: ``"independent"``, ``"structured"`` (one mean and deviation for all columns)
            or ``"none"``; on a support, of what its transforms make of the parameters.
        z_score_x: likewise.
        hidden_features: the width of all hidden layers, or all widths.
        num_transforms: number of autoregressive transforms.
        embedding_net: of simulations; of parameters for a likelihood. Every estimator has a copy.
        num_blocks: residual blocks of two hidden layers after the first layer; with
            ``residual=False`` as many layers.
        dropout_probability: of hidden units, while training.
        support: a distribution, such as the prior, or a constraint: parameters are mapped from its
            support to the real line, so that none is ever drawn outside. Columns may be bounded on
            both sides, below, or not at all. For a likelihood, the support of simulations. Between
            two bounds the map is that of a soft :class:`~made_flows.Logit`, nearly linear.
        likelihood: whether to model simulations given parameters, for ``NLE``.
        order, normalize, bijection, scale, base, degrees, activation, residual, direct,
            mask_weights, adjacency, generator: as for :class:`~made_flows.MAF`.

    Returns:
        What ``NPE`` and ``NLE`` take as ``density_estimator``.

    Raises:
        TypeError, ValueError: for arguments out of range, and when the trainer calls it, for
            a support of another size and rows outside.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow for Density Estimation*.

    Example:
        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(torch.zeros(2), torch.ones(2))
        >>> theta = prior.sample((100,))
        >>> estimator = maf(support=prior)(theta, theta + torch.randn(100, 2))
        >>> estimator.sample((5,), torch.zeros(1, 2)).shape
        torch.Size([5, 1, 2])
    """
    return _builder(MAF, **own_arguments(locals()))


def _builder(
    kind: Callable[..., Model],
    z_score_theta: ZScore,
    z_score_x: ZScore,
    hidden_features: int | Sequence[int],
    embedding_net: nn.Module | None,
    *,
    num_blocks: int,
    dropout_probability: float,
    support: Any,
    likelihood: bool,
    **network: Any,
) -> Builder:
    """Make a builder of one kind of model from sbi's words; those that we share are passed on."""
    for name in ("transforms", "components"):
        theirs = f"num_{name}"
        if theirs in network:
            network[name] = positive_integer(network.pop(theirs), theirs)
    hidden = _widths(hidden_features, num_blocks)
    dropped = real_number(dropout_probability, "dropout_probability")
    expect(0 <= dropped < 1, "dropout_probability", "to be in [0, 1)", dropout_probability)
    model = partial[Any](kind, hidden_features=hidden, dropout=dropped, **network)
    builder = Builder(model, z_score_theta, z_score_x, embedding_net, support, likelihood)
    _check_model(model)
    return builder


def _check_model(model: partial[Any]) -> None:
    """Make a small model, which raises what is wrong before anything is simulated."""
    given = model.keywords
    base = given.get("base")
    sizes = [size for name in ("order", "adjacency", "orders") for size in _last(given.get(name))]
    sizes += [*getattr(base, "event_shape", ())[-1:], getattr(base, "features", 2)]
    # Not of the generator given, whose numbers are for the estimator's own network.
    own = given["generator"]
    drawn = {"generator": torch.Generator() if isinstance(own, torch.Generator) else own}
    with seeded(0, torch.empty(0).device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will be said of the model itself
        model(sizes[0], getattr(base, "context", 0) or 1, **drawn)


def _last(value: Any) -> tuple[int, ...]:
    """Return the last size of an array-like, (size,); () of what has none."""
    try:
        return tuple(value.shape if hasattr(value, "shape") else np.shape(value))[-1:]
    except ValueError:  # of lists of several lengths, which the model refuses
        return ()


@_helpful
def spline(
    z_score_theta: ZScore = "independent",
    z_score_x: ZScore = "independent",
    hidden_features: int | Sequence[int] = 50,
    num_transforms: int = 5,
    embedding_net: nn.Module | None = None,
    *,
    num_bins: int = 10,
    tail_bound: float = 5.0,
    num_blocks: int = 2,
    dropout_probability: float = 0.0,
    support: Any = None,
    likelihood: bool = False,
    order: Any = "reverse",
    normalize: Literal["batch", "actnorm"] | None = None,
    base: Distribution | Model | Literal["student"] | None = None,
    degrees: Literal["even", "random"] = "even",
    activation: Any = "tanh",
    residual: bool = True,
    direct: bool | Literal["first"] | None = False,
    mask_weights: bool | Literal["order"] = False,
    adjacency: Any = None,
    generator: torch.Generator | None = None,
) -> Builder:
    """Build an autoregressive flow of rational-quadratic splines, as ``"maf_rqs"`` and ``"nsf"``.

    Args:
        num_bins: bins of every spline.
        tail_bound: from where on splines are the identity, in z-scored units.

    All others are those of :func:`maf`.

    Returns, Raises: as :func:`maf`.

    References:
        Durkan et al. 2019, *Neural Spline Flows*.

    Example:
        >>> import torch
        >>> spline(num_bins=6)(torch.randn(50, 3), torch.randn(50, 2)).input_shape
        torch.Size([3])
    """
    arguments = own_arguments(locals())
    bijection = RationalQuadraticSpline(arguments.pop("num_bins"), arguments.pop("tail_bound"))
    return _builder(MAF, bijection=bijection, **arguments)


@_helpful
def iaf(
    z_score_theta: ZScore = "independent",
    z_score_x: ZScore = "independent",
    hidden_features: int | Sequence[int] = 50,
    num_transforms: int = 5,
    embedding_net: nn.Module | None = None,
    *,
    num_blocks: int = 2,
    dropout_probability: float = 0.0,
    support: Any = None,
    likelihood: bool = False,
    order: Any = "reverse",
    normalize: Literal["batch", "actnorm"] | None = None,
    bijection: Literal["affine", "spline", "gated"] | Bijection = "affine",
    scale: str | ScaleRule | None = None,
    base: Distribution | Model | None = None,
    degrees: Literal["even", "random"] = "even",
    activation: Any = "relu",
    residual: bool = True,
    direct: bool = False,
    mask_weights: bool | Literal["order"] = False,
    adjacency: Any = None,
    generator: torch.Generator | None = None,
) -> Builder:
    """Build an inverse autoregressive flow: samples are one pass, training takes the inverses.

    The arguments are those of :func:`maf`.

    Returns, Raises: as :func:`maf`.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*.

    Example:
        >>> import torch
        >>> iaf()(torch.randn(50, 3), torch.randn(50, 2)).input_shape
        torch.Size([3])
    """
    return _builder(IAF, **own_arguments(locals()))


@_helpful
def made(
    z_score_theta: ZScore = "independent",
    z_score_x: ZScore = "independent",
    hidden_features: int | Sequence[int] = 50,
    num_components: int = 10,
    embedding_net: nn.Module | None = None,
    *,
    num_blocks: int = 2,
    dropout_probability: float = 0.0,
    support: Any = None,
    likelihood: bool = False,
    scale: str | ScaleRule = "bounded",
    order: Any = "natural",
    degrees: Literal["even", "random"] = "even",
    activation: Any = "tanh",
    residual: bool = False,
    direct: bool = False,
    mask_weights: bool | Literal["order"] | None = None,
    adjacency: Any = None,
    generator: torch.Generator | None = None,
    orders: Any = None,
    masks: Literal["all"] | int | None = None,
    orders_per_batch: int | Literal["row"] = 1,
) -> Builder:
    r"""Build one MADE with a mixture of Gaussians for every parameter, as ``"made"``.

    .. math:: q(\theta \mid x) = \prod_i \sum_k \pi_{ik}\, \mathcal N(\theta_i; \mu_{ik}, s_{ik}^2)

    Args:
        num_components: components of every mixture.
        num_blocks: hidden layers after the first.
        scale, order, degrees, activation, residual, direct, mask_weights, adjacency, generator,
            orders, masks, orders_per_batch: as for :class:`~made_flows.GaussianMixtureMADE`.
        z_score_theta, z_score_x, hidden_features, embedding_net, dropout_probability, support,
            likelihood: those of :func:`maf`.

    Returns, Raises: as :func:`maf`.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 4.1 (MADE MoG).

    Example:
        >>> import torch
        >>> made(num_components=4)(torch.randn(50, 3), torch.randn(50, 2)).input_shape
        torch.Size([3])
    """
    return _builder(GaussianMixtureMADE, **own_arguments(locals()))
