"""A flow whose weights are one parameter: what Pyro and its optimisers do per parameter, once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows.models.affine_path import ScoredSample, sample_plain
from made_flows.models.flows import Flow
from made_flows.models.path_gradient import sample_with_score
from made_flows.pyro.cache import global_modes
from made_flows.pyro.flow_transforms import FlowTransform


class FlatFlow(FlowTransform):
    r"""A flow as a transform, all of whose weights are one vector.

    In a step of ``SVI`` a parameter costs a tenth of a millisecond, whatever its size: of a small
    guide with a weight and a bias per layer, a quarter of all. The weights of the flow itself lie
    in the memory of the vector, so that whatever changes either changes both. The vector has the
    gradients and is trained; the flow's own weights are constants. State dicts have these, by their
    names.

    Args:
        flow: the flow, which takes no context.

    Example:
        >>> import made_flows as mf
        >>> transform = FlatFlow(mf.IAF(2, transforms=1, hidden_features=(4,)))
        >>> [(name, weight.shape) for name, weight in transform.named_parameters()]
        [('weights', torch.Size([32]))]
        >>> transform(torch.zeros(3, 2)).sum().backward()
        >>> bool(transform.weights.grad.any())
        True
    """

    weights: nn.Parameter

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        del self._modules["flow"]
        self._hold(flow.requires_grad_(False))
        self.weights = nn.Parameter(torch.cat([w.detach().flatten() for w in flow.parameters()]))
        self._tie()

    def _hold(self, flow: Flow) -> None:
        # Not as a submodule, whose weights would be parameters beside the vector.
        self.__dict__["flow"], self.__dict__["held_modules"] = flow, (flow,)
        self._parts = list(flow.modules())
        self._buffer_tables = [module._buffers for module in self._parts]
        self._slots: list[tuple[dict[str, Any], str]] = [
            (cast(dict[str, Any], module._parameters), name)
            for module in self._parts
            for name, weight in module._parameters.items()
            if weight is not None
        ]
        self._sizes = [cast(Tensor, table[name]).numel() for table, name in self._slots]
        self._place = 0

    def _tie(self) -> list[Tensor]:
        """Let the flow's weights lie in the vector again, if they do not, and return them.

        Weights that were put into the flow are copied to the vector, but not where the vector
        itself has moved: as to another device, or in a copy.
        """
        own = [cast(nn.Parameter, table[name]) for table, name in self._slots]
        place, step = self.weights.data_ptr(), self.weights.element_size()
        at, moved = place, place != self._place
        for weight, size in zip(own, self._sizes, strict=True):
            if moved or weight.data_ptr() != at:
                first = (at - place) // step
                piece = self.weights.data[first : first + size].view(weight.shape)
                if not moved:
                    piece.copy_(weight.data)
                weight.data = piece
            at += size * step
        self._place = place
        return cast(list[Tensor], own)

    def state(self) -> tuple[list[Tensor], list[Any]]:
        """Return what samples depend on: the vector, all buffers, and modes."""
        if type(self.weights) is nn.Parameter:
            self._tie()
        buffers = [t for table in self._buffer_tables for t in table.values() if t is not None]
        modes: list[Any] = [module.training for module in self._parts]
        return [self.weights, *buffers], [*modes, *global_modes()]

    @contextmanager
    def _with_gradients(self) -> Iterator[None]:
        """Let the flow compute with pieces of the vector, whose gradients are the vector's."""
        if type(self.weights) is nn.Parameter:  # and not what ``functional_call`` puts there
            self._tie()
            if not (torch.is_grad_enabled() and self.weights.requires_grad):
                yield
                return
        kept = [cast(Tensor, table[name]) for table, name in self._slots]
        pieces = self.weights.split(self._sizes)
        for (table, name), piece, own in zip(self._slots, pieces, kept, strict=True):
            table[name] = piece.view(own.shape)
        try:
            yield
        finally:
            for (table, name), own in zip(self._slots, kept, strict=True):
                table[name] = own

    def sample_with_score(self, noise: Tensor) -> ScoredSample:
        """Draw samples with the gradient of their log-density, of noise (..., D)."""
        if type(self.weights) is nn.Parameter:
            plain = sample_plain(self.flow, noise, self._tie(), [self.weights])
            if plain is not None:
                return plain
        with self._with_gradients():
            return sample_with_score(self.flow, noise)

    def to_data(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        with self._with_gradients():
            return super().to_data(x)

    def to_noise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with self._with_gradients():
            return super().to_noise(y)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        with self._with_gradients():
            return super().log_det(x, y)

    # ------------------------------------------------------------------ as if it had the flow's

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FlatFlow:
        self.flow._apply(fn)
        super()._apply(fn, recurse)
        self._place = 0
        self._tie()
        return self

    def train(self, mode: bool = True) -> FlatFlow:
        self.flow.train(mode)
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._tie()
        self.flow.state_dict(destination=destination, prefix=f"{prefix}flow.", keep_vars=keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, module in self.flow.named_modules(prefix=f"{prefix}flow"):
            module._load_from_state_dict(state_dict, f"{name}.", *args, **kwargs)
        self._tie()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the flow, since a weight that lies in the vector is pickled with all of it.
        made_anew = (
            "flow", "held_modules", "_parts", "_buffer_tables", "_slots", "_sizes", "_place",
        )  # fmt: skip
        state = {k: v for k, v in super().__getstate__().items() if k not in made_anew}
        return {**state, "flow": copy.deepcopy(self.flow)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hold(state["flow"])
        self._tie()
