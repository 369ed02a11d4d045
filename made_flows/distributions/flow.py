"""The distribution of transformed noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from made_flows._checks import check_broadcast, check_event, check_finite, check_sample_shape
from made_flows.distributions._protocols import Invertible
from made_flows.distributions.base import VectorDistribution


class FlowDistribution(VectorDistribution):
    r"""The distribution of the data that an invertible map makes of noise.

    .. math:: \log p(x \mid c) = \log p_0(z \mid c) + \log |\det \partial z / \partial x|, \qquad
        z = f(x; c)

    Its event shape is (D,), its batch shape that of context and base broadcast together. Which of
    scoring and sampling is sequential, ``flow.summary()`` says.

    Args:
        transform: the map f, with its inverse.
        base: the distribution of the noise, of event shape (D,).
        context: c, (..., C), if the map takes one.
        validate_args: whether values are checked before they are scored (torch's default: yes).

    Raises:
        ValueError: for values that are not finite, naming the first row and column.

    Example:
        >>> import made_flows as mf
        >>> from torch.distributions import Independent, Normal
        >>> noise = Independent(Normal(torch.zeros(2), 1), 1)
        >>> FlowDistribution(mf.Standardize([3.0, 4.0], [2.0, 2.0]), noise).sample((5,)).shape
        torch.Size([5, 2])
    """

    _batched = ("context", "base")

    def __init__(
        self,
        transform: Invertible,
        base: Distribution,
        context: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.transform, self.context = transform, context
        batch_shape = base.batch_shape
        if context is not None:
            batch_shape = check_broadcast(base=batch_shape, context=context.shape[:-1])
        self.base = base if batch_shape == base.batch_shape else base.expand(batch_shape)
        super().__init__(batch_shape, base.event_shape[0], validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Where values live."""
        return self.transform.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return bool(self.base.has_rsample) and self.transform.differentiable

    def _validate_sample(self, value: Tensor) -> None:
        super()._validate_sample(value)
        check_finite(value, "value")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log-densities (...) of values (..., D), broadcast with the batch shape.

        It is -inf for a value so far out that its noise overflows, and NaN where weights are.
        """
        self._warn_of_training_mode()
        if self._validate_args:
            self._validate_sample(value)
        else:  # torch.compile turns checks of values off, for the whole process
            check_event(value, "value", self.event_shape[0])
        z, log_det = self.transform.to_noise(value, self.context)
        return self._defined(self._over_batch(self._score_noise(z) + log_det), value)

    def _score_noise(self, z: Tensor) -> Tensor:
        if not isinstance(self.base, VectorDistribution):
            # torch's Independent cannot sum over the features of no rows.
            return self.base.log_prob(z) if z.numel() else z.sum(dim=-1)
        # A model refuses values that are not finite, or takes NaN for missing ones.
        lost = ~torch.isfinite(z).all(dim=-1)
        scores = self.base.log_prob(torch.where(lost.unsqueeze(-1), 0.0, z))
        return torch.where(lost, torch.nan, scores)

    def _random_part(self) -> str:
        return self.transform.random_part

    def _modules(self) -> Iterator[nn.Module]:
        yield from self.transform.modules()
        if isinstance(self.base, VectorDistribution):
            yield from self.base._modules()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw samples of shape (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            z = self.base.sample(check_sample_shape(sample_shape))
            return self.transform.generate(z, self.context)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        return self.transform.generate(self.base.rsample(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw samples with gradients, and their log-density, in one way through the flow.

        In evaluation mode the log-density equals ``log_prob`` of the samples, up to rounding.
        """
        self._check_rsample()
        shape = check_sample_shape(sample_shape)
        if isinstance(self.base, FlowDistribution):
            z, base_log_prob = self.base.rsample_and_log_prob(shape)
        else:
            z = self.base.rsample(shape)
            base_log_prob = self._score_noise(z)
        x, log_det = self.transform.to_data(z, self.context)
        return x, base_log_prob - log_det

    def _check_rsample(self) -> None:
        if not self.has_rsample:
            raise NotImplementedError(
                "Samples of this flow carry no gradients, as its base or one of its transforms "
                "(such as Dequantize) passes none; use sample()"
            )

    def _summary(self) -> str:
        return f"base={type(self.base).__name__}"
