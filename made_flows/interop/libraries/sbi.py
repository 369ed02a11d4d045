"""The one network of sbi's own that is sampled in a loop: its MADE of categories."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from nflows.nn.nde import made as nde
from sbi.neural_nets.estimators.categorical_net import CategoricalMADE
from torch import Tensor

from made_flows.interop.fast_layer import Fast, FastLayer
from made_flows.interop.libraries import _resmade as mades
from made_flows.interop.races import RacedCategory, drawn_or_looped, log_waits
from made_flows.nn.validation import expect_own


def find(module: Any) -> type | None:
    """Find the class that makes an object of sbi fast; None for all that only holds networks."""
    return FastCategorical if isinstance(module, CategoricalMADE) else None


class FastCategorical(FastLayer):
    """Sampling of categories, in about one pass."""

    embedding_net: Any
    num_variables: int
    max_num_categories: int
    mask: Tensor

    def made_flows_read(self) -> Fast:
        layer: Any = self
        methods = ("forward", "_map_indices_to_values", "sample")
        expect_own(layer, CategoricalMADE, methods, FastCategorical)
        made, classes = mades.MadeVersion(nde), self.max_num_categories
        conditioner = mades.made_conditioner(layer, made, classes, nde.MADE.forward)
        return Fast(conditioner, RacedCategory(classes), differentiable=False)

    def made_flows_settings(self) -> tuple[Any, ...]:
        return self.num_variables, self.max_num_categories, self.mask

    @torch.no_grad()
    def sample(self, sample_shape: Any, context: Any = None) -> Tensor:
        """Draw categories (*sample_shape, rows, variables), given contexts (rows, C)."""
        fast = embedded = None
        if isinstance(context, Tensor) and context.dim() == 2:
            embedded = self.embedding_net.forward(context[None])
            own = torch.zeros(self.num_variables + 1, device=context.device)
            fast = self.made_flows_ready(own, embedded)
        draw = partial(self._made_flows_sample, sample_shape, embedded)
        return drawn_or_looped(fast, draw, partial(super().sample, sample_shape, context))  # type: ignore[misc]

    def _made_flows_sample(self, sample_shape: Any, embedded: Any, fast: Fast) -> Tensor:
        layer: Any = self
        variables, classes = self.num_variables, self.max_num_categories
        shape = (math.prod(sample_shape), embedded.shape[1])
        waits = log_waits(embedded.new_empty(variables, *shape, classes)).movedim(0, -2)
        waits = waits.where(self.mask.bool(), torch.inf)
        # The network's first input is a dummy, zero: its first category arrives before the start.
        first = torch.where(torch.arange(classes, device=waits.device) == 0, -torch.inf, 0.0)
        noise = torch.cat([first.expand(*shape, 1, classes), waits], dim=-2)
        drawn = fast.draw(noise, embedded)[..., 1:]
        if layer._needs_mapping and bool(drawn.isfinite().all()):
            drawn = layer._map_indices_to_values(drawn)
        return drawn.reshape(*sample_shape, embedded.shape[1], variables)
