"""nflows' flows, of transforms that are fast in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from nflows.distributions import normal
from nflows.flows import autoregressive as theirs
from nflows.flows.base import Flow as NflowsFlow
from nflows.transforms import BatchNorm, CompositeTransform, RandomPermutation, ReversePermutation
from torch import Tensor

from made_flows._checks import expect_type, non_negative_integer, positive_integer, widths
from made_flows.interop.libraries.nflows import FastFlow
from made_flows.nflows.networks import Activation
from made_flows.nflows.transforms import MaskedAffineAutoregressiveTransform


class InBatches:
    """Samples drawn so many at a time; nflows joins them by the wrong dimension under a context."""

    def sample(
        self, num_samples: int, context: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Draw samples (num_samples, D), or (rows, num_samples, D) with a context of rows."""
        left = positive_integer(num_samples, "num_samples")
        most = left if batch_size is None else positive_integer(batch_size, "batch_size")
        if context is not None:
            context = torch.as_tensor(context)
        drawn = []
        while left > 0:
            drawn.append(cast(Any, self)._sample(min(most, left), context))
            left -= most
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=0 if context is None else 1)


class StandardNormal(InBatches, normal.StandardNormal):
    """nflows' standard normal base, whose samples follow the dtype it has been moved to.

    Args:
        shape: shape of an event.

    Example:
        >>> StandardNormal([3]).double().sample(5).dtype
        torch.float64
    """

    _like: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(torch.Size(widths(shape, "shape")))
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        rows = (num_samples,) if context is None else (len(context), num_samples)
        like = self._like
        return torch.randn(*rows, *self._shape, dtype=like.dtype, device=like.device)


class CheckedFlow(InBatches, FastFlow):
    """A flow of nflows that says what is wrong with what it is made of and given."""

    def __init__(self, transform: Any, distribution: Any, embedding_net: Any = None) -> None:
        inverse = callable(getattr(transform, "inverse", None))
        expect_type(inverse, "transform", "to be a transform of nflows", transform)
        known = isinstance(distribution, torch.nn.Module) and hasattr(distribution, "log_prob")
        expect_type(known, "distribution", "to be a distribution of nflows", distribution)
        _check_embedding(embedding_net)
        super().__init__(transform, distribution, embedding_net)  # type: ignore[call-arg]


class Flow(CheckedFlow, NflowsFlow):
    """nflows' flow, which computes no log-determinants for samples that nobody asked to score.

    It takes any transforms and bases of nflows' and of this module; with nflows' own flow they
    work as well, and their samples take a pass more per layer.

    Its arguments are those of nflows' flow: ``transform``, from data to noise; ``distribution``,
    the base, of nflows' or of this module; ``embedding_net``, what turns a context into what
    transform and base take, or None.

    Example:
        >>> transform = MaskedAffineAutoregressiveTransform(features=3, hidden_features=16)
        >>> Flow(transform, StandardNormal([3])).sample(5).shape
        torch.Size([5, 3])
    """


class MaskedAutoregressiveFlow(CheckedFlow, theirs.MaskedAutoregressiveFlow):
    r"""nflows' masked autoregressive flow: it scores and samples in about one pass per layer.

    .. math:: \log p(x \mid c) = \log \mathcal N(z; 0, I) + \sum_k \log |\det J_k|

    Args:
        features: number of features D.
        hidden_features: width of all hidden layers.
        num_layers: number of transforms, with a permutation before each.
        num_blocks_per_layer: blocks of every network.
        use_residual_blocks, activation, dropout_probability: of every network, see
            :class:`~made_flows.nflows.MADE`.
        use_random_masks: whether degrees of hidden units are drawn at random.
        use_random_permutations: random permutations, or reversals.
        batch_norm_within_layers: batch normalisation inside the networks.
        batch_norm_between_layers: batch normalisation after every transform.
        context_features: number of context variables C, or None (nflows' own has none).
        embedding_net: what turns a context into the context variables, or None.

    Shapes:
        log_prob of (rows, D) with context (rows, ...): (rows,). sample(n): (n, D), or (rows, n, D)
        with a context.

    Raises:
        ValueError, TypeError: as for the network.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow for Density Estimation*.

    Example:
        >>> flow = MaskedAutoregressiveFlow(3, 16, num_layers=2, num_blocks_per_layer=1)
        >>> flow.log_prob(flow.sample(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_layers: int,
        num_blocks_per_layer: int,
        use_residual_blocks: bool = True,
        use_random_masks: bool = False,
        use_random_permutations: bool = False,
        activation: Activation = F.relu,
        dropout_probability: float = 0.0,
        batch_norm_within_layers: bool = False,
        batch_norm_between_layers: bool = False,
        context_features: int | None = None,
        embedding_net: torch.nn.Module | None = None,
    ) -> None:
        positive_integer(features, "features")
        non_negative_integer(num_layers, "num_layers")
        permutation = RandomPermutation if use_random_permutations else ReversePermutation
        layers: list[Any] = []
        for _ in range(num_layers):
            layers += [permutation(features), MaskedAffineAutoregressiveTransform(
                features, hidden_features, context_features, num_blocks_per_layer,
                use_residual_blocks, use_random_masks, activation, dropout_probability,
                batch_norm_within_layers,
            )]  # fmt: skip
            if batch_norm_between_layers:
                layers.append(BatchNorm(features))
        _check_embedding(embedding_net)
        transform, base = CompositeTransform(layers), StandardNormal([features])
        NflowsFlow.__init__(self, transform, base, embedding_net)


def _check_embedding(net: Any) -> None:
    known = net is None or isinstance(net, torch.nn.Module)
    expect_type(known, "embedding_net", "to be a module or None", net)
