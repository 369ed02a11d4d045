"""nflows' networks, with masks that lose no dependency: the same signatures and state dicts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from nflows.nn.nde import made as nde
from nflows.transforms import made as theirs
from torch import Tensor

from made_flows._checks import (
    boolean,
    check_context,
    check_event,
    expect,
    expect_type,
    non_negative_integer,
    positive_integer,
    real_number,
)
from made_flows._registry import own_arguments
from made_flows._torch import modes_kept
from made_flows.distributions.base import TrainingModeWarning
from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.libraries.nflows import conditioner_of, head_order
from made_flows.inverse.d_pass import d_pass_inverse, warn_of_passes
from made_flows.inverse.steps import HeadStep
from made_flows.nflows.connectivity import assign_degrees
from made_flows.nn.activations import is_elementwise
from made_flows.nn.validation import NotUnderstoodError
from made_flows.univariate.heads import GaussianMixture
from made_flows.univariate.scales import ScaleRule

Activation = Callable[[Tensor], Tensor]

_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "num_blocks": non_negative_integer,
    **dict.fromkeys(("features", "hidden_features"), positive_integer),
    **dict.fromkeys(("output_multiplier", "num_mixture_components"), positive_integer),
    **dict.fromkeys(("use_residual_blocks", "random_mask", "use_batch_norm"), boolean),
}
"""What the networks' arguments are checked by."""


class _Network:
    """What the two versions of nflows' network have in common here."""

    initial_layer: Any
    final_layer: Any
    training: bool

    def _construct(self, library: Any, arguments: dict[str, Any]) -> None:
        """Construct nflows' network after a look at its arguments, and give it masks of ours."""
        for name, value in arguments.items():
            if name in _CHECKS:
                _CHECKS[name](value, name)
        features, context = arguments["features"], arguments["context_features"]
        if context is not None:
            positive_integer(context, "context_features")
        activation = arguments["activation"]
        expect_type(callable(activation), "activation", "to be a function or module", activation)
        name = getattr(activation, "__name__", type(activation).__name__)
        expect(is_elementwise(activation), "activation", "to be elementwise", name)
        dropout = real_number(arguments["dropout_probability"], "dropout_probability")
        expect(0 <= dropout < 1, "dropout_probability", "to be in [0, 1)", dropout)
        # nflows refuses random masks in residual blocks.
        library.__init__(self, **arguments | {"random_mask": False})
        self._features, self._context = features, context or 0
        self._use_batch_norm = arguments["use_batch_norm"]
        residual, random = arguments["use_residual_blocks"], arguments["random_mask"]
        assign_degrees(self, features, self._context, residual=residual, random=random)

    def _check(self, inputs: Any, context: Any) -> None:
        dtype = self.final_layer.weight.dtype
        check_event(inputs, "inputs", self._features, dtype)
        check_context(context, self._context, "network", argument="context_features", dtype=dtype)
        if self._use_batch_norm and self.training and not torch.is_grad_enabled():
            warnings.warn(
                "a network with batch normalisation is in training mode and computes without "
                "gradients: its numbers depend on the rows of the batch, and its running "
                "statistics change. Call eval() before scoring or sampling",
                TrainingModeWarning,
                stacklevel=4,
            )


class MADE(_Network, theirs.MADE):
    r"""nflows' network of an autoregressive transform (``nflows.transforms.made.MADE``).

    .. math:: \theta_i = f_i(x_{<i}, c) \in \mathbb{R}^m, \qquad i = 1, \dots, D

    Its parameters and buffers have nflows' names and shapes, and its forward pass is nflows'. What
    differs are masks: the first feature reads the context, narrow layers keep what they can, and
    residual blocks may have random masks. A loaded state dict brings its own masks with it.

    Args:
        features: number of features D.
        hidden_features: width of all hidden layers.
        context_features: number of context variables C, or None.
        num_blocks: number of blocks after the first hidden layer.
        output_multiplier: parameters of every feature m.
        use_residual_blocks: residual blocks of two layers each, or plain layers.
        random_mask: whether degrees of hidden units are drawn at random.
        activation: an elementwise function.
        dropout_probability: probability of dropping a hidden unit while training.
        use_batch_norm: whether blocks normalise what they read.

    Shapes:
        inputs: (rows, D), context: (rows, C); output: (rows, D m), feature by feature.

    Raises:
        ValueError: for sizes below one, and for a context that is missing or superfluous.
        TypeError: for arguments of a wrong type, and data of another dtype than the weights.

    Warns:
        DependencyWarning: if a feature does not read all features before it.
        TrainingModeWarning: if batch normalisation trains where there are no gradients.

    References:
        Germain et al. 2015, *MADE: Masked Autoencoder for Distribution Estimation*.

    Example:
        >>> made = MADE(features=3, hidden_features=16, context_features=2, output_multiplier=2)
        >>> made(torch.zeros(10, 3), torch.zeros(10, 2)).shape
        torch.Size([10, 6])
    """

    made_flows_network = ("forward",)

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        output_multiplier: int = 1,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        self._construct(theirs.MADE, own_arguments(locals()))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return parameters (rows, D m) of every feature."""
        self._check(inputs, context)
        return cast(Tensor, theirs.MADE.forward(self, inputs, context))


class MixtureOfGaussiansMADE(_Network, FastLayer, nde.MixtureOfGaussiansMADE):
    r"""nflows' density of Gaussian mixtures (``nflows.nn.nde.MixtureOfGaussiansMADE``).

    .. math:: p(x_i \mid x_{<i}, c) = \sum_k \pi_{ik}\, \mathcal N(x_i; \mu_{ik}, s_{ik}^2), \qquad
        s = \mathrm{softplus}(a) + \epsilon

    It samples in one sweep, with or without a context, in the dtype and on the device of its
    weights, and as in evaluation mode.

    Args:
        features: number of features D.
        hidden_features: width of all hidden layers.
        context_features: number of context variables C, or None.
        num_blocks: number of blocks after the first hidden layer.
        num_mixture_components: components of every mixture.
        use_residual_blocks, random_mask, activation, dropout_probability, use_batch_norm: as for
            :class:`MADE`.
        epsilon: smallest standard deviation.
        custom_initialization: whether to start near equal components of unit width.

    Raises:
        ValueError, TypeError: as for :class:`MADE`.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, section 4.1 (MADE MoG).

    Example:
        >>> made = MixtureOfGaussiansMADE(features=3, hidden_features=16, context_features=2)
        >>> context = torch.zeros(10, 2)
        >>> made.log_prob(torch.zeros(10, 3), context).shape, made.sample(5, context).shape
        (torch.Size([10]), torch.Size([10, 5, 3]))
    """

    made_flows_network = ("forward",)

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        num_mixture_components: int = 5,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
        epsilon: float = 1e-2,
        custom_initialization: bool = True,
    ) -> None:
        real_number(epsilon, "epsilon", above=0)
        self._construct(nde.MixtureOfGaussiansMADE, own_arguments(locals()))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return parameters (rows, D 3 components): logit, mean, raw width of every component."""
        self._check(inputs, context)
        return cast(Tensor, nde.MixtureOfGaussiansMADE.forward(self, inputs, context))

    @torch.no_grad()
    def sample(self, num_samples: int, context: Tensor | None = None) -> Tensor:
        """Draw samples by one sequential inverse.

        Args:
            num_samples: how many, for each row of the context.
            context: (rows, C).

        Returns:
            (rows, num_samples, D), or (num_samples, D) for a network without a context.
        """
        number = positive_integer(num_samples, "num_samples")
        given = context is None or isinstance(context, Tensor)
        expect_type(given, "context", "to be a tensor", context)
        self._check(self.final_layer.weight.new_empty(self._features), context)
        head = self._head()
        rows = () if context is None else (len(context),)
        like = self.final_layer.weight.new_empty(0)
        noise = head.noise((number, *rows, self._features), like)
        try:
            fast = self._made_flows_look()
            if fast is None:
                raise NotUnderstoodError("its masks cannot be read now")
            samples = fast.draw(noise, context)
        except NotUnderstoodError as reason:
            samples = self._sample_by_passes(HeadStep(head), noise, context, reason)
        return samples if context is None else samples.transpose(0, 1)

    def _sample_by_passes(
        self, step: HeadStep, noise: Tensor, context: Tensor | None, reason: NotUnderstoodError
    ) -> Tensor:
        """Sample by a pass for every feature, where the layers are not all there is."""
        warn_of_passes(self, self._features, reason)
        rows = None if context is None else context.repeat(len(noise), 1)

        def evaluate(x: Tensor) -> Tensor:
            outputs: Tensor = self(x.flatten(0, -2), rows)
            return outputs.reshape(*x.shape, -1)[..., head_order(self.num_mixture_components)]

        ranks = torch.arange(self._features, device=noise.device)
        with modes_kept(self.modules()):
            self.eval()
            return d_pass_inverse(evaluate, ranks, step, noise)

    def _head(self) -> GaussianMixture:
        rule = ScaleRule("softplus", offset=0.0, floor=self.epsilon)
        return GaussianMixture(self.num_mixture_components, rule)

    def made_flows_read(self) -> Fast:
        order = head_order(self.num_mixture_components)
        return Fast(conditioner_of(self, len(order)).reordered(order), self._head())

    def made_flows_settings(self) -> tuple[Any, ...]:
        return self.num_mixture_components, self.epsilon
