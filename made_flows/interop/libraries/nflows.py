"""Layers of nflows: its MADE, affine and spline transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from nflows.flows.base import Flow
from nflows.nn.nde import made as nde
from nflows.transforms import autoregressive as theirs
from nflows.transforms import made
from nflows.transforms.base import CompositeTransform
from nflows.utils.torchutils import merge_leading_dims, repeat_rows, split_leading_dim
from torch import Tensor

from made_flows.interop import bijections as maps
from made_flows.interop.conditioner import ForeignConditioner, expect_network, own_conditioner
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.libraries import _resmade as mades
from made_flows.interop.races import RacedMixture, drawn_or_looped, log_waits
from made_flows.nn.made import MADE
from made_flows.nn.validation import NotUnderstoodError, expect_own
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule

_TRANSFORMS = mades.MadeVersion(made, activates_first=True)
_NDE = mades.MadeVersion(nde)


def find(module: Any) -> type | None:
    """Find the class that makes an nflows module fast; None if nothing is slow in it.

    Raises:
        NotUnderstoodError: for a layer with a slow direction that cannot be made fast.
    """
    if isinstance(module, theirs.AutoregressiveTransform):
        return FastInverse
    if isinstance(module, nde.MixtureOfGaussiansMADE):
        return FastMixture
    if isinstance(module, Flow) and type(module)._sample is Flow._sample:
        return FastFlow
    return None


class FastInverse(mades.FastInverse):
    """The inverse of an nflows transform, in about one pass."""

    def made_flows_read(self) -> Fast:
        return mades.read_transform(self, _MAPS, _conditioner)


class FastMixture(FastLayer):
    """Sampling of a density of Gaussian mixtures, in about one pass."""

    features: int
    num_mixture_components: int
    epsilon: float

    def made_flows_read(self) -> Fast:
        layer: Any = self
        expect_own(layer, nde.MixtureOfGaussiansMADE, ("sample",), FastMixture)
        scale = ScaleRule("softplus", offset=0.0, floor=self.epsilon)
        classes = self.num_mixture_components
        conditioner = conditioner_of(layer, 3 * classes).reordered(head_order(classes))
        return Fast(conditioner, RacedMixture(classes, scale), differentiable=False)

    def made_flows_settings(self) -> tuple[Any, ...]:
        return self.features, self.num_mixture_components, self.epsilon

    @torch.no_grad()
    def sample(self, num_samples: int, context: Any = None) -> Tensor:
        """Draw samples (rows, num_samples, D), given contexts (rows, C)."""
        own = torch.zeros(self.features)  # of the dtype and device that the loop has
        rows = isinstance(context, Tensor) and context.dim() == 2
        fast = self.made_flows_ready(own, context) if rows else None
        draw = partial(self._made_flows_sample, num_samples, context)
        return drawn_or_looped(fast, draw, partial(super().sample, num_samples, context))  # type: ignore[misc]

    def _made_flows_sample(self, number: int, context: Tensor, fast: Fast) -> Tensor:
        rows, classes = len(context) * number, self.num_mixture_components
        noise = torch.empty(rows, self.features, classes + 1)
        for feature in range(self.features):  # in the order of the library's loop
            noise[:, feature, :-1] = log_waits(torch.empty(rows, classes))
            noise[:, feature, -1] = torch.randn(rows)
        return fast.draw(noise.unflatten(0, (len(context), number)), context[:, None])


def head_order(components: int) -> Tensor:
    """Return where the parameters of a mixture's head stand among a feature's outputs."""
    # nflows lists logit, mean and width component by component, the head one after other.
    return torch.arange(3 * components).reshape(-1, 3).T.reshape(-1)


class FastFlow:
    """Sampling without log-determinants, which nflows computes and drops."""

    _transform: Any
    _distribution: Any
    _embedding_net: Any

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        embedded = self._embedding_net(context)
        noise = self._distribution.sample(num_samples, context=embedded)
        if embedded is None:
            return generate(self._transform, noise)
        # One row of the context for each sample of it; a single one is not copied, so that layers
        # see that it is the same.
        alone = embedded.dim() == 2 and len(embedded) == 1
        rows = embedded.expand(num_samples, -1) if alone else repeat_rows(embedded, num_samples)
        samples = generate(self._transform, merge_leading_dims(noise, num_dims=2), rows)
        return cast(Tensor, split_leading_dim(samples, shape=[-1, num_samples]))


def generate(transform: Any, inputs: Tensor, context: Any = None) -> Tensor:
    """Invert a transform of nflows; log-determinants only where they come along.

    Args:
        transform: any transform of nflows' interface. One that has a method
            ``made_flows_generate`` is asked by that.
        inputs: (rows, D).
        context: (rows, C) or None.
    """
    if type(transform).inverse is CompositeTransform.inverse and "inverse" not in vars(transform):
        for part in reversed(transform._transforms):
            inputs = generate(part, inputs, context)
        return inputs
    if hasattr(transform, "made_flows_generate"):
        return cast(Tensor, transform.made_flows_generate(inputs, context))
    return cast(Tensor, transform.inverse(inputs, context)[0])


def conditioner_of(net: Any, parameters: int) -> ForeignConditioner:
    """Return a MADE of nflows, of either of its two versions, as a conditioner.

    Raises:
        NotUnderstoodError: for another network, or one that computes something else.
    """
    if isinstance(net, made.MADE):
        version, library = _TRANSFORMS, made.MADE
    elif isinstance(net, nde.MADE):
        # A MixtureOfGaussiansMADE defines forward anew, as a call of what it inherits.
        mixture = nde.MixtureOfGaussiansMADE
        version, library = _NDE, mixture if isinstance(net, mixture) else nde.MADE
    else:
        raise NotUnderstoodError(f"the masks of a {type(net).__name__} are not known")
    expect_network(net, library)
    return mades.made_conditioner(net, version, parameters)


def _conditioner(net: Any, parameters: int) -> ForeignConditioner | MADE:
    return own_conditioner(net, parameters) or conditioner_of(net, parameters)


_MAPS: dict[Any, Callable[[Any], Bijection]] = {
    theirs.MaskedAffineAutoregressiveTransform: lambda layer: maps.ScaleFirst(
        ScaleRule("softplus", offset=0.0, floor=layer._epsilon)
    ),
    theirs.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: maps.rational_quadratic,
    theirs.MaskedPiecewiseQuadraticAutoregressiveTransform: maps.spline,
    theirs.MaskedPiecewiseCubicAutoregressiveTransform: maps.spline,
    theirs.MaskedPiecewiseLinearAutoregressiveTransform: maps.spline,
}
"""The classes of transforms, and the elementwise map of an object of each."""
