"""A memory of what was computed last, which is never believed for too long.

Scoring a sample right after it was drawn needs the noise that it came from. Pyro finds it by the
identity of the tensor alone, and so returns what is no longer true after a parameter changed, or
a graph that a backward pass has freed. Here a pair counts only while the tensors, the weights and
the modes are what they were, and while no backward pass has gone through it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from made_flows._cache import Stamp
from made_flows._torch import is_traced, is_transformed


class Memory:
    """The last result y of a module: what it was made of, and what was computed along with it.

    Of a transform that is a pair x and y, in either direction, and the logarithm of |dy/dx|; of a
    distribution a sample y, and its log-probability.

    Args:
        module: the module, all of whose tensors count.
        others: further tensors that count.
    """

    def __init__(self, module: nn.Module, others: tuple[Tensor, ...] = ()) -> None:
        self._module = weakref.ref(module)
        self._others = others
        self._pair: Pair | None = None

    def store(self, x: Tensor | None, y: Tensor, along: Tensor | None, *, made: Tensor) -> None:
        """Remember a result.

        Args:
            x: (..., D), None where it is not to be asked for.
            y: (..., D).
            along: (...), what was computed along with them, if anything was.
            made: the one of x and y that was computed.
        """
        module = self._module()
        self._pair = None
        if module is None or is_transformed():
            return
        self._pair = Pair(module, x, y, along, self._others)
        if not is_traced():
            for tensor in (made, along):
                if tensor is not None and tensor.grad_fn is not None:
                    # A backward pass frees the graph: before it does, the pair is forgotten.
                    tensor.grad_fn.register_prehook(_Forgetter(self._pair))

    def forget(self) -> None:
        """Forget the pair."""
        self._pair = None

    def recall(self, x: Tensor | None = None, y: Tensor | None = None) -> Pair | None:
        """Return the pair of an x, a y or both, None if it is not known."""
        pair, module = self._pair, self._module()
        if pair is None or module is None or is_transformed():
            return None
        asked = (x is None or pair.x is x) and (y is None or pair.y() is y)
        return pair if asked and pair.holds(module) else None


class Pair:
    """A pair and the state of everything that it was computed from."""

    def __init__(
        self,
        module: nn.Module,
        x: Tensor | None,
        y: Tensor,
        along: Tensor | None,
        others: tuple[Tensor, ...],
    ) -> None:
        # x is held and y only looked at: when a sample is gone, so is what it was made of.
        self.x, self.along, self._others = x, along, others
        self.y: weakref.ref[Tensor] = weakref.ref(y, _Forgetter(self))
        self._stamp = Stamp.of(*self._state(module, y))

    def _state(self, module: nn.Module, y: Tensor) -> tuple[list[Tensor], list[Any]]:
        tensors, modes = _state_of(module)
        return [*tensors, *([] if self.x is None else [self.x]), y, *self._others], modes

    def forget(self) -> None:
        """Let go of the tensors; it holds no more."""
        self.x = self.along = self._stamp = None

    def holds(self, module: nn.Module) -> bool:
        """Tell whether everything is as it was."""
        y = self.y()
        if self._stamp is None or y is None:
            return False
        return self._stamp.holds(*self._state(module, y))


class _Forgetter:
    """Called when something happens after which a pair is not to be believed."""

    def __init__(self, pair: Pair) -> None:
        self._pair = weakref.ref(pair)

    def __call__(self, *_: Any) -> None:
        pair = self._pair()
        if pair is not None:
            pair.forget()


def global_modes() -> list[Any]:
    """Return the modes of torch on which results depend."""
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(),
        is_traced(),
    ]


def _state_of(module: nn.Module) -> tuple[list[Tensor], list[Any]]:
    """Return all tensors that a module computes with, and what else a result depends on."""
    modes = global_modes()
    tensors: list[Tensor] = []
    parts = [module]
    while parts:
        part = parts.pop()
        own = part.__dict__  # looking attributes of modules up takes several times as long
        modes.append(own["training"])
        for table in (own["_parameters"], own["_buffers"]):
            if table:
                tensors += [tensor for tensor in table.values() if tensor is not None]
        if "_pyro_context" in own:
            tensors += _under_effects(part)
        if "held_tensors" in own:
            tensors += own["held_tensors"]
        if "held_modules" in own:
            parts += own["held_modules"]
        if own["_modules"]:
            parts += [child for child in own["_modules"].values() if child is not None]
    return tensors, modes


def _under_effects(part: Any) -> list[Tensor]:
    """List the weights of a PyroModule under a prior or constraint: made anew per trace."""
    if part._pyro_samples and not part._pyro_context.active:
        raise ValueError(
            "Expected weights under a prior to be read inside a call of the PyroModule that "
            "holds them; got none, so that every look would draw others. to_pyro(flow) gives "
            "distributions that keep the weights of their call"
        )
    return [getattr(part, name) for name in (*part._pyro_samples, *part._pyro_params)]
