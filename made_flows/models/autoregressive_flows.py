"""MAF and IAF: stacks of autoregressive transforms over a base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch.distributions import Distribution

from made_flows._checks import boolean, expect, expect_word, positive_integer, shown
from made_flows._registry import own_arguments, saveable
from made_flows.models.base import Model
from made_flows.models.flows import Flow
from made_flows.nn.made import MADE
from made_flows.nn.masks import make_order
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform
from made_flows.transforms.normalization import ActNorm, BatchNorm
from made_flows.univariate.bijections import Affine, Bijection, GatedAffine
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.splines import RationalQuadraticSpline


@saveable
class MAF(Flow):
    r"""Masked autoregressive flow: the conditioners read data, so that densities are one pass.

    .. math:: x_i = g(z_i; \theta_i(x_{<i}, c)) \quad \text{in every transform}

    Scoring is parallel; sampling takes one sequential inverse per transform. With one affine
    transform and ``base=None``, a standard normal one, it is a :class:`~made_flows.GaussianMADE`
    (and with one feature and no context, a Gaussian).

    Args:
        features: number of features D.
        context: number of context variables C; 0 for none.
        transforms: number of autoregressive transforms; by default 5, or 1 with ``adjacency``.
        hidden_features: widths of the hidden layers of every conditioner; by default two that
            grow with the features, see :class:`~made_flows.MADE`.
        order: ``"reverse"`` takes the features in natural and reversed order by turns,
            ``"random"`` draws an order for every transform, and a permutation (``order[k]`` is
            the feature generated k-th) takes turns with its reverse.
        normalize: layers after every transform: None, ``"batch"``
            (:class:`~made_flows.BatchNorm`, for training by likelihood of data) or ``"actnorm"``
            (:class:`~made_flows.ActNorm`).
        bijection: ``"affine"``, ``"spline"``, ``"gated"``, or a bijection, which all transforms
            then share.
        scale: the scale rule of an affine or gated bijection; None for its own.
        base: see :class:`~made_flows.Flow`; by default Student's t with eight degrees of freedom,
            so that rows unlike those it was trained on do not rule the likelihood. None makes the
            paper's MAF, and a :class:`~made_flows.GaussianMixtureMADE` a MAF-MoG.
        adjacency: instead of an order, a directed acyclic graph, see :class:`~made_flows.MADE`.
            One transform then factorises the density by the graph: :math:`p(x) = \prod_i
            p(x_i \mid x_{\mathrm{parents}(i)})`, a Bayesian network. Several transforms of the same
            graph are more flexible and stay triangular in its topological order, but
            :math:`x_i` may then depend on all its ancestors: information passes one edge per
            transform (Wehenkel & Louppe 2021, *Graphical Normalizing Flows*).
        activation: of every conditioner, see :class:`~made_flows.MADE`. Bounded ones such as the
            default keep a row unlike all others from costing millions of nats.
        direct: direct connections, see :class:`~made_flows.MADE`. By default ``"first"`` with an
            affine bijection and at most a hundred features, so that shifts have a linear part, as
            columns need that nearly determine one another; else False.
        linear: whether the second of several splines is an affine transform instead, whose shifts
            have a linear part: splines can follow a linear dependence only bin by bin. By default
            True with ``bijection="spline"``, 2 to 100 features and several transforms, where
            neither a context, a graph nor ``direct`` is given.
        degrees, residual, dropout, mask_weights, generator: of every conditioner, as for
            :class:`~made_flows.MADE`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow for Density Estimation*.

    Example:
        >>> import torch
        >>> flow = MAF(features=3, context=2)
        >>> distribution = flow(torch.zeros(10, 2))
        >>> distribution.log_prob(torch.zeros(10, 3)).shape, distribution.sample((5,)).shape
        (torch.Size([10]), torch.Size([5, 10, 3]))
    """

    _former_defaults: ClassVar[dict[str, Any]] = {
        "activation": "relu", "hidden_features": (64, 64), "base": None, "direct": False,
        "linear": False,
    }  # fmt: skip

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int | None = None,
        hidden_features: Sequence[int] | None = None,
        *,
        order: Any = "reverse",
        normalize: Literal["batch", "actnorm"] | None = None,
        bijection: Literal["affine", "spline", "gated"] | Bijection = "affine",
        scale: str | ScaleRule | None = None,
        base: Distribution | Model | Literal["student"] | None = "student",
        adjacency: Any = None,
        degrees: Literal["even", "random"] = "even",
        activation: Any = "tanh",
        residual: bool = False,
        direct: bool | Literal["first"] | None = None,
        linear: bool | None = None,
        dropout: float = 0.0,
        mask_weights: bool | Literal["order"] = False,
        generator: torch.Generator | None = None,
    ) -> None:
        arguments = own_arguments(locals())
        del arguments["base"]
        super().__init__(_stack("data", **arguments), base)


@saveable
class IAF(Flow):
    r"""Inverse autoregressive flow: the conditioners read noise, so that samples are one pass.

    .. math:: x_i = g(z_i; \theta_i(z_{<i}, c)) \quad \text{in every transform}

    Sampling, with the log-density of the samples, is parallel: variational posteriors. Scoring
    other points takes one sequential inverse per transform.

    Args:
        features: number of features D.
        context: number of context variables C; 0 for none.
        transforms: number of autoregressive transforms; by default 5, or 1 with ``adjacency``.
        hidden_features: widths of the hidden layers of every conditioner; by default two that
            grow with the features, see :class:`~made_flows.MADE`.
        order, normalize, bijection, scale: as for :class:`~made_flows.MAF`. (``"batch"``
            normalisation never sees data where samples are trained.)
        base: see :class:`~made_flows.Flow`; by default a standard normal one.
        adjacency: a directed acyclic graph as for a :class:`~made_flows.MADE`, here of the noise:
            with one transform, :math:`x_i` is made of its own noise and that of its parents. The
            density does not factorise by the graph; for that, take a MAF.
        activation: of every conditioner, see :class:`~made_flows.MADE`.
        degrees, residual, direct, dropout, mask_weights, generator: of every conditioner, as for
            :class:`~made_flows.MADE`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*.

    Example:
        >>> x, log_prob = IAF(features=3)().rsample_and_log_prob((10,))
        >>> x.shape, log_prob.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    _former_defaults: ClassVar[dict[str, Any]] = {"hidden_features": (64, 64)}

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int | None = None,
        hidden_features: Sequence[int] | None = None,
        *,
        order: Any = "reverse",
        normalize: Literal["batch", "actnorm"] | None = None,
        bijection: Literal["affine", "spline", "gated"] | Bijection = "affine",
        scale: str | ScaleRule | None = None,
        base: Distribution | Model | None = None,
        adjacency: Any = None,
        degrees: Literal["even", "random"] = "even",
        activation: Any = "relu",
        residual: bool = False,
        direct: bool = False,
        dropout: float = 0.0,
        mask_weights: bool | Literal["order"] = False,
        generator: torch.Generator | None = None,
    ) -> None:
        arguments = own_arguments(locals())
        del arguments["base"]
        super().__init__(_stack("noise", **arguments), base)


_LINEAR = 100
"""Features up to which shifts are linear by default: of more, the work would be felt."""

_BIJECTIONS = {"affine": Affine, "gated": GatedAffine, "spline": RationalQuadraticSpline}
_NORMALIZATIONS: dict[str, Callable[[int], Transform]] = {"batch": BatchNorm, "actnorm": ActNorm}


def _make_bijection(bijection: str | Bijection, scale: str | ScaleRule | None) -> Bijection:
    needless = "to be left out for this bijection"
    if isinstance(bijection, Bijection):
        expect(scale is None, "scale", needless, scale)
        return bijection
    wanted = f"to be a Bijection or one of {', '.join(_BIJECTIONS)}"
    expect_word(bijection, _BIJECTIONS, "bijection", wanted)
    expect(scale is None or bijection != "spline", "scale", needless, scale)
    kind: Any = _BIJECTIONS[bijection]
    return cast(Bijection, kind() if scale is None else kind(scale))


def _connectivity(
    features: int, transforms: int | None, order: Any, adjacency: Any
) -> list[dict[str, Any]]:
    """Return the order, or the graph, of every transform: as arguments of its conditioner."""
    if transforms is None:
        transforms = 5 if adjacency is None else 1
    transforms = positive_integer(transforms, "transforms")
    features = positive_integer(features, "features")
    if adjacency is None:
        turns = _turns(features, order)
        return [{"order": turns[number % 2]} for number in range(transforms)]
    plain = isinstance(order, str) and order == "reverse"
    expect(plain, "order", "to be left out when adjacency is given", shown(order))
    return [{"adjacency": adjacency}] * transforms


def _turns(features: int, order: Any) -> tuple[Any, Any]:
    """Return the orders that transforms have by turns."""
    if not isinstance(order, str):
        given = make_order(features, order)
        return given, given.flip(0)
    expect_word(order, ("reverse", "random"), "order", "to be 'reverse', 'random' or a permutation")
    return ("natural", "reversed") if order == "reverse" else ("random", "random")


def _stack(
    reads: Literal["data", "noise"],
    features: int,
    *,
    transforms: int | None,
    order: Any,
    normalize: str | None,
    bijection: Any,
    scale: str | ScaleRule | None,
    adjacency: Any,
    linear: bool | None = False,
    **network: Any,
) -> list[Transform]:
    """Return the transforms of a MAF or IAF, from data to noise."""
    connectivity = _connectivity(features, transforms, order, adjacency)
    kinds = [(_make_bijection(bijection, scale), network["direct"])] * len(connectivity)
    if linear is None:
        plain = adjacency is None and network["direct"] is None and network["context"] == 0
        linear = plain and bijection == "spline" and len(kinds) > 1 and 1 < features <= _LINEAR
    elif boolean(linear, "linear"):
        expect(len(kinds) > 1, "linear", "to be False of one transform", linear)
        spline = isinstance(kinds[0][0], RationalQuadraticSpline)
        expect(spline, "linear", "to be False where transforms are not splines", linear)
    if linear:
        kinds[1] = Affine(), network["direct"] or "first"
    words = (None, *_NORMALIZATIONS)
    expect_word(normalize, words, "normalize", "to be None, 'batch' or 'actnorm'")
    stack: list[Transform] = []
    for (kind, direct), arguments in zip(kinds, connectivity, strict=True):
        if direct is None:
            direct = "first" if type(kind) is Affine and features <= _LINEAR else False
        arguments = network | arguments | {"direct": direct}
        conditioner = MADE(features, parameters=kind.outputs, **arguments)
        stack.append(AutoregressiveTransform(conditioner, kind, reads))
        if normalize is not None:
            stack.append(_NORMALIZATIONS[normalize](conditioner.features))
    return stack
