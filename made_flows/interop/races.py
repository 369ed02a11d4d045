"""Categories as torch draws them, with all random numbers known beforehand.

``torch.multinomial`` lets categories race: it draws an exponential number e_k for every category,
and the largest of p_k / e_k wins. How many numbers that takes does not depend on p, so that those
of a library's loop over features can be drawn first, in the loop's order, and its samples are then
one sequential inverse away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import constraints

from made_flows.univariate.heads import Categorical, GaussianMixture, Head
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.step_kernel import StepKernel

T = TypeVar("T")


class RacedCategory(Head):
    r"""The category k of the largest :math:`\ell_k - \log e_k`, by noise :math:`\log e`.

    The network reads it as a number.

    Args:
        categories: number of categories K.
    """

    has_rsample = False
    log_prob = Categorical.log_prob

    def __init__(self, categories: int) -> None:
        super().__init__()
        self.outputs = self.noise_parts = categories
        self.support = constraints.integer_interval(0, categories - 1)

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return log_waits(like.new_empty((*shape, self.noise_parts)))

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        value = _winner(noise, parameters).to(parameters.dtype)
        return value.where(_drawable(parameters), torch.nan)

    def kernel(self) -> StepKernel:
        return StepKernel("race", None, (0.0,))


class RacedMixture(GaussianMixture):
    """A mixture of normals whose component is a :class:`RacedCategory`; the last noise is normal.

    Args:
        components, scale: as for :class:`~made_flows.heads.GaussianMixture`.
    """

    def __init__(self, components: int, scale: str | ScaleRule) -> None:
        super().__init__(components, scale)
        self.noise_parts = components + 1

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        waits = log_waits(like.new_empty((*shape, self.components)))
        return torch.cat([waits, torch.randn_like(waits[..., :1])], dim=-1)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        logits, means, raw = parameters.chunk(3, dim=-1)
        chosen = _winner(noise[..., :-1], logits).unsqueeze(-1)
        scale = torch.exp(self.scale(raw.gather(-1, chosen)))
        value = (means.gather(-1, chosen) + scale * noise[..., -1:]).squeeze(-1)
        return value.where(_drawable(logits), torch.nan)

    def kernel(self) -> StepKernel:
        return StepKernel("race", self.scale, (1.0,))


def log_waits(empty: Tensor) -> Tensor:
    """Fill a tensor with logarithms of exponential numbers, the noise of a race."""
    return empty.exponential_().log()


def _winner(waits: Tensor, logits: Tensor) -> Tensor:
    return (logits - waits).argmax(dim=-1)


def _drawable(logits: Tensor) -> Tensor:
    return logits.sum(dim=-1).isfinite()


def drawn_or_looped(
    fast: T | None, draw: Callable[[T], Tensor], loop: Callable[[], Tensor]
) -> Tensor:
    """Return what a fast inverse draws; where that is not finite, what a loop does."""
    if fast is not None:
        state = torch.get_rng_state()
        drawn = draw(fast)
        if bool(drawn.sum().isfinite()):
            return drawn
        torch.set_rng_state(state)
    return loop()
