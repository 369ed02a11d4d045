"""Pyro's autoregressive transforms, with and without a context, fast in both directions."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor

from made_flows._checks import (
    boolean,
    check_event,
    expect,
    expect_word,
    positive_integer,
    real_number,
)
from made_flows._registry import own_arguments
from made_flows._torch import has_concrete_values
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.libraries.pyro import PyroSpline, conditioner_of
from made_flows.nn.validation import NotUnderstoodError
from made_flows.pyro.base import VectorTransform
from made_flows.pyro.conditioners import (
    ConditionedNetwork,
    network_of,
    parameters_of,
    pass_by_pass,
    without_context,
)
from made_flows.univariate.bijections import Affine, Bijection, GatedAffine
from made_flows.univariate.scales import ScaleRule, make_scale_rule, valued_as_named


class _Autoregressive(FastLayer, VectorTransform):
    """y = g(x; parameters of a network at x): the common part of Pyro's two kinds."""

    autoregressive = True
    bijection: Bijection

    def __init__(self, autoregressive_nn: Any) -> None:
        super().__init__(cache_size=1)
        self.arn = network_of(autoregressive_nn)

    @property
    def features(self) -> int:  # type: ignore[override]
        """Number of features D."""
        return len(self.arn.permutation)

    def to_data(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, each = self.bijection.forward(x, self._theta(x))
        return y, each.sum(dim=-1)

    def to_noise(self, y: Tensor) -> tuple[Tensor, None]:
        network, context = without_context(self.arn)
        check_event(y, "y", self.features, getattr(network, "dtype", None))
        fast = self.made_flows_ready(y, context)
        if fast is None:
            return self._by_passes(y), None
        return fast.solve(y, context), None

    def _by_passes(self, y: Tensor) -> Tensor:
        return pass_by_pass(self.arn, self.bijection, y)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bijection.forward(x, self._theta(x))[1].sum(dim=-1)

    def made_flows_read(self) -> Fast:
        network = without_context(self.arn)[0]
        sizes = list(getattr(network, "param_dims", ()))
        if sum(sizes) != self.bijection.outputs:
            raise NotUnderstoodError(f"its network gives {sizes} parameters")
        return Fast(conditioner_of(network, sizes), self.bijection, network)

    def made_flows_settings(self) -> tuple[Any, ...]:
        network = without_context(self.arn)[0]
        return network, getattr(network, "f", None), self.bijection

    def _theta(self, x: Tensor) -> Tensor:
        parameters = parameters_of(self.arn, x)
        self._check_parameters(parameters.shape[-1])
        return parameters

    def _check_parameters(self, got: int) -> None:
        wanted = f"to give {self.bijection.outputs} parameters for each feature"
        expect(got == self.bijection.outputs, "autoregressive_nn", wanted, got)

    def _check_network(self) -> None:
        """Complain of a network that says how many parameters it gives, where these do not fit."""
        sizes = getattr(without_context(self.arn)[0], "param_dims", None)
        if sizes is not None:
            self._check_parameters(sum(sizes))


class AffineAutoregressive(_Autoregressive):
    r"""Pyro's inverse autoregressive flow, fast in both directions.

    .. math:: y_i = \mu_i(x_{<i}) + \sigma_i(x_{<i})\, x_i, \qquad
        \text{stable: } y_i = \sigma_i x_i + (1 - \sigma_i)\, \mu_i

    Calling it maps noise to data in one pass of the network; ``.inv`` takes about one as well,
    with gradients. Values are those of :class:`pyro.distributions.transforms.AffineAutoregressive`
    for the same weights. Where Pyro's clipped log-scale passes the gradient on, so that it may
    run away without bound, here it passes only what leads back into the range.

    Args:
        autoregressive_nn: the network: one of this package or of Pyro, a
            :class:`~made_flows.MADE` with two parameters, or any function that returns mean and
            log-scale and has a ``permutation`` (then the inverse takes one pass per feature).
        log_scale_min_clip, log_scale_max_clip: range of the log-scale.
        sigmoid_bias: added to the logit of the scale in the stable variant.
        stable: whether to take the stable variant.
        scale: another scale rule instead of clipping, a name or :class:`~made_flows.ScaleRule`:
            ``"bounded"`` is smooth.

    Raises:
        TypeError: for something that is no network.
        ValueError: for a range that is empty, and a network of another number of parameters.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*,
        equations 10, 13 and 14.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from made_flows.pyro import AutoRegressiveNN
        >>> transform = AffineAutoregressive(AutoRegressiveNN(10, [40]))
        >>> flow = dist.TransformedDistribution(dist.Normal(torch.zeros(10), 1), [transform])
        >>> flow.log_prob(flow.rsample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self,
        autoregressive_nn: Any,
        log_scale_min_clip: float = -5.0,
        log_scale_max_clip: float = 3.0,
        sigmoid_bias: float = 2.0,
        stable: bool = False,
        *,
        scale: str | ScaleRule | None = None,
    ) -> None:
        super().__init__(autoregressive_nn)
        self.log_scale_min_clip = real_number(log_scale_min_clip, "log_scale_min_clip")
        self.log_scale_max_clip = real_number(log_scale_max_clip, "log_scale_max_clip")
        self.sigmoid_bias = real_number(sigmoid_bias, "sigmoid_bias")
        self.stable = boolean(stable, "stable")
        if self.stable:
            expect(scale is None, "scale", "to be left out for the stable variant", scale)
            # Pyro has no floor under the scale.
            rule = ScaleRule("sigmoid", offset=self.sigmoid_bias, floor=0.0)
            self.bijection = GatedAffine(rule)
        elif scale is None:
            low, high = self.log_scale_min_clip, self.log_scale_max_clip
            words = "to be below log_scale_max_clip"
            expect(
                low < high, "log_scale_min_clip", words, (log_scale_min_clip, log_scale_max_clip)
            )
            self.bijection = Affine(ClippedScale(low, high))
        else:
            self.bijection = Affine(make_scale_rule(scale))
        self._check_network()


class ClippedScale(ScaleRule):
    """A log-scale clipped to a range, whose gradient never leads further out of it.

    Values are those of the scale rule ``"clamp"``, and so is the gradient inside the range.

    Args:
        low, high: the range.

    Example:
        >>> import torch
        >>> raw = torch.tensor([5.0, 5.0], requires_grad=True)
        >>> log_scale = ClippedScale(-5.0, 3.0)(raw)
        >>> (log_scale * torch.tensor([-1.0, 1.0])).sum().backward()
        >>> log_scale.detach(), raw.grad
        (tensor([3., 3.]), tensor([0., 1.]))
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__("clamp", low=low, high=high)

    @valued_as_named
    def forward(self, a: Tensor) -> Tensor:
        clipped = super().forward(a)
        if clipped.requires_grad and has_concrete_values(a):
            clipped.register_hook(functools.partial(_inward, a.detach(), self.low, self.high))
        return clipped


def _inward(a: Tensor, low: float, high: float, gradient: Tensor | None) -> Tensor | None:
    """Return the gradient where it does not lead further out: descent moves against it."""
    if gradient is None:  # autograd's zero
        return None
    outward = ((a > high) & (gradient < 0)) | ((a < low) & (gradient > 0))
    return gradient.masked_fill(outward, 0.0)


class SplineAutoregressive(_Autoregressive):
    r"""Pyro's autoregressive rational spline, fast in both directions.

    .. math:: y_i = g(x_i; \theta_i(x_{<i}))

    Args:
        input_dim: number of features D.
        autoregressive_nn: the network, with ``param_dims`` [K, K, K-1, K] for
            ``order="linear"`` and [K, K, K-1] for ``"quadratic"`` (K bins).
        count_bins: number of bins K.
        bound: the spline is the identity outside [-bound, bound].
        order: ``"linear"`` or ``"quadratic"``, of the rational functions.

    Raises:
        ValueError: for an unknown order and sizes that do not fit.

    References:
        Durkan et al. 2019, *Neural Spline Flows*; Dolatabadi et al. 2020, *Invertible Generative
        Modeling using Linear Rational Splines*.

    Example:
        >>> import torch
        >>> from made_flows.pyro import AutoRegressiveNN
        >>> network = AutoRegressiveNN(3, [30], param_dims=[8, 8, 7, 8])
        >>> transform = SplineAutoregressive(3, network)
        >>> transform(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        input_dim: int,
        autoregressive_nn: Any,
        count_bins: int = 8,
        bound: float = 3.0,
        order: str = "linear",
    ) -> None:
        super().__init__(autoregressive_nn)
        input_dim = positive_integer(input_dim, "input_dim")
        expect(input_dim == self.features, "input_dim", f"to be {self.features}", input_dim)
        expect_word(order, ("linear", "quadratic"), "order", "to be 'linear' or 'quadratic'")
        bins = positive_integer(count_bins, "count_bins")
        expect(bins > 1, "count_bins", "to be at least 2", bins)
        self.bijection = PyroSpline(bins, real_number(bound, "bound", above=0), order)
        self.order = order
        self._check_network()
        self._register_load_state_dict_pre_hook(_leave_out_copies)

    @property
    def spline(self) -> Bijection:
        """The one-dimensional spline."""
        return self.bijection

    def _by_passes(self, y: Tensor) -> Tensor:
        # All values in every pass, as in Pyro: so that NaN spreads as far as there.
        x = torch.zeros_like(y)
        for _ in range(self.features):
            x = self.bijection.inverse(y, self._theta(x))[0]
        return x

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        # By Pyro's inverse, as there: its other direction cannot be mapped over.
        return -self.bijection.inverse(y, self._theta(x))[1].sum(dim=-1)


def _leave_out_copies(state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Leave out the second copy of every weight in state dicts of Pyro's splines."""
    for name in [name for name in state if name.startswith(f"{prefix}spline.nn.")]:
        del state[name]


# ---------------------------------------------------------------------- under a context


class _Conditional(FastLayer, ConditionalTransformModule):
    """A network, and the transform that it makes under a context.

    Args:
        autoregressive_nn: the network.
        kwargs: further arguments of the transform.
    """

    def __init__(self, autoregressive_nn: Any, **kwargs: Any) -> None:
        super().__init__()
        self.nn = network_of(autoregressive_nn)
        self.kwargs = kwargs
        self._transform(self.nn)  # complains now rather than when it is called

    def _transform(self, network: Any) -> _Autoregressive:
        raise NotImplementedError

    def condition(self, context: Tensor) -> _Autoregressive:
        """Return the transform under a context (..., C), with the network among its parameters."""
        transform = self._transform(ConditionedNetwork(self.nn, context))
        fast = None if torch.compiler.is_compiling() else self.made_flows_current()
        if fast is not None:  # what is known of the network
            transform.made_flows_keep(Fast(fast.conditioner, transform.bijection, fast.net))
        return transform

    def made_flows_read(self) -> Fast:
        return self._transform(self.nn).made_flows_read()

    def made_flows_settings(self) -> tuple[Any, ...]:
        return self.nn, getattr(self.nn, "f", None), tuple(sorted(self.kwargs.items()))


class ConditionalAffineAutoregressive(_Conditional):
    r"""Pyro's inverse autoregressive flow with a context, fast in both directions.

    .. math:: y_i = \mu_i(x_{<i}, c) + \sigma_i(x_{<i}, c)\, x_i

    Args:
        autoregressive_nn: the network, called as ``network(x, context=c)``.
        log_scale_min_clip, log_scale_max_clip, sigmoid_bias, stable, scale: as for
            :class:`AffineAutoregressive`.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from made_flows.pyro import ConditionalAutoRegressiveNN
        >>> network = ConditionalAutoRegressiveNN(10, 4, [40])
        >>> transform = ConditionalAffineAutoregressive(network)
        >>> base = dist.Normal(torch.zeros(10), torch.ones(10))
        >>> flow = dist.ConditionalTransformedDistribution(base, [transform])
        >>> flow.condition(torch.zeros(3, 4)).sample((3,)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        autoregressive_nn: Any,
        log_scale_min_clip: float = -5.0,
        log_scale_max_clip: float = 3.0,
        sigmoid_bias: float = 2.0,
        stable: bool = False,
        *,
        scale: str | ScaleRule | None = None,
    ) -> None:
        super().__init__(**own_arguments(locals()))

    def _transform(self, network: Any) -> AffineAutoregressive:
        return AffineAutoregressive(network, **self.kwargs)


class ConditionalSplineAutoregressive(_Conditional):
    r"""Pyro's autoregressive rational spline with a context, fast in both directions.

    .. math:: y_i = g(x_i; \theta_i(x_{<i}, c))

    Args:
        input_dim: number of features D.
        autoregressive_nn: the network, called as ``network(x, context=c)``.
        count_bins, bound, order: as for :class:`SplineAutoregressive`.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> import torch
        >>> from made_flows.pyro import ConditionalAutoRegressiveNN
        >>> network = ConditionalAutoRegressiveNN(3, 2, [30], param_dims=[8, 8, 7, 8])
        >>> transform = ConditionalSplineAutoregressive(3, network).condition(torch.zeros(5, 2))
        >>> transform(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        input_dim: int,
        autoregressive_nn: Any,
        count_bins: int = 8,
        bound: float = 3.0,
        order: str = "linear",
    ) -> None:
        self.input_dim = input_dim  # before the module is set up, for its checks
        super().__init__(autoregressive_nn, count_bins=count_bins, bound=bound, order=order)

    def _transform(self, network: Any) -> SplineAutoregressive:
        return SplineAutoregressive(self.input_dim, network, **self.kwargs)
