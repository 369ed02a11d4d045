"""A flow whose weights are one parameter: what Pyro and its optimisers do per parameter, once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from made_flows._cache import Stamp
from made_flows._checks import expect
from made_flows.models.affine_path import sample_plain
from made_flows.models.affine_steps import ScoredSample
from made_flows.models.flows import Flow
from made_flows.models.path_gradient import sample_with_score
from made_flows.pyro.cache import global_modes
from made_flows.pyro.flow_transforms import FlowTransform


class FlatFlow(FlowTransform):
    r"""A flow as a transform, all of whose weights are one vector.

    In a step of ``SVI`` a parameter costs a tenth of a millisecond, whatever its size: of a small
    guide with a weight and a bias per layer, a quarter of all. The weights of the flow itself lie
    in the memory of the vector, so that whatever changes either changes both. The vector is what is
    trained. Once the flow is ``shared()``, gradients lie in one memory likewise: an optimiser may
    have either, and zeroing or clipping the gradients of either is that of both. State dicts have
    the flow's own weights, by their names.

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
        self._given: nn.Parameter | None = None  # the vector when the flow was given away
        self._stamp: Stamp | None = None

    def shared(self) -> Flow:
        """Return the flow for use outside: its weights have gradients from now on."""
        if type(self.weights) is not nn.Parameter:  # what ``pyro.module`` took from the store
            self.weights = nn.Parameter(cast(Tensor, self.weights).detach())
        own = self._tie()
        if self.weights.requires_grad and self._given is not self.weights:
            if self._given is None:
                for number, weight in enumerate(own):
                    weight.requires_grad_()
                    weight.register_post_accumulate_grad_hook(partial(self._gather, number))
            self._given = self.weights
            self.weights.register_hook(self._zeroed)
            self.weights.register_post_accumulate_grad_hook(self._scatter)
        return cast(Flow, self.flow)

    def _zeroed(self, _: Tensor) -> None:
        if all(
            weight.grad is None for weight in self._tie()
        ):  # as an optimiser of theirs leaves them
            self.weights.grad = None

    def _scatter(self, weights: Tensor) -> None:
        pieces = cast(Tensor, weights.grad).split(self._sizes)
        for weight, piece in zip(self._tie(), pieces, strict=True):
            weight.grad = piece.view(weight.shape)

    def _gather(self, number: int, weight: Tensor) -> None:
        if self.weights.grad is None:
            self.weights.grad = torch.zeros_like(self.weights)
        piece = self.weights.grad.split(self._sizes)[number].view(weight.shape)
        found, weight.grad = cast(Tensor, weight.grad), piece
        if found.data_ptr() != piece.data_ptr():
            piece.copy_(found)

    def _trained(self) -> Tensor:
        """Return the vector: without gradients, if the flow was given away and frozen.

        Raises:
            ValueError: if a part of it was.
        """
        if self._given is not None and type(self.weights) is nn.Parameter:
            trained = [weight.requires_grad for weight in self._tie()]
            if not any(trained):
                return self.weights.detach()
            wanted = "with all weights trained or none, as they are one parameter of the guide"
            got = f"{trained.count(False)} of {len(trained)} frozen"
            expect(all(trained), "guide.flow", wanted, got)
        return self.weights

    def _tie(self) -> list[Tensor]:
        """Let the flow's weights lie in the vector again, if they do not, and return them.

        Weights that were put into the flow are copied to the vector, but not where the vector
        itself has moved: as to another device, or in a copy.

        Raises:
            ValueError: for a weight in two places, which can not lie in two pieces of the vector.
        """
        own = [cast(nn.Parameter, table[name]) for table, name in self._slots]
        place, step = self.weights.data_ptr(), self.weights.element_size()
        at, moved = place, place != self._place
        for weight, size in zip(own, self._sizes, strict=True):
            if moved or weight.data_ptr() != at:
                once = len(set(map(id, own))) == len(own)
                expect(once, "guide.flow", "to have each weight in one place", "one in two")
                first = (at - place) // step
                piece = self.weights.data[first : first + size].view(weight.shape)
                if not moved:
                    piece.copy_(weight.data)
                weight.data = piece
            at += size * step
        self._place = place
        return cast(list[Tensor], own)

    def state(self) -> tuple[Tensor, tuple[list[Tensor], list[Any]]]:
        """Return what samples depend on: the vector; all buffers and modes."""
        if type(self.weights) is nn.Parameter:
            self._tie()
        buffers = [t for table in self._buffer_tables for t in table.values() if t is not None]
        modes: list[Any] = [module.training for module in self._parts]
        return self.weights, (buffers, [*modes, *global_modes()])

    def stamp(self) -> Stamp | None:
        """Return the stamp of buffers and modes, which training leaves as it is."""
        others = self.state()[1]
        if self._stamp is None or not self._stamp.holds(*others):
            self._stamp = Stamp.of(*others)
        return self._stamp

    @contextmanager
    def _with_gradients(self) -> Iterator[None]:
        """Let the flow compute with pieces of the vector, whose gradients are the vector's."""
        if type(self.weights) is nn.Parameter:  # and not what ``functional_call`` puts there
            self._tie()
            if not torch.is_grad_enabled():
                yield
                return
        kept = [cast(Tensor, table[name]) for table, name in self._slots]
        pieces = self._trained().split(self._sizes)
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
            plain = sample_plain(self.flow, noise, self._tie(), self._trained())
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

    def extra_repr(self) -> str:
        transforms, weights = len(self._chain()), self.weights.numel()
        return f"features={self.features}, transforms={transforms}, weights={weights}"

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
        self._tie()  # or what is loaded would count as older than a vector put in its place
        for name, module in self.flow.named_modules(prefix=f"{prefix}flow"):
            module._load_from_state_dict(state_dict, f"{name}.", *args, **kwargs)
        self._tie()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the flow, since a weight that lies in the vector is pickled with all of it.
        made_anew = (
            "flow", "held_modules", "_parts", "_buffer_tables", "_slots", "_sizes", "_place",
            "_given", "_stamp",
        )  # fmt: skip
        state = {k: v for k, v in super().__getstate__().items() if k not in made_anew}
        return {**state, "flow": copy.deepcopy(self.flow)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hold(state["flow"].requires_grad_(False))
        self._tie()
