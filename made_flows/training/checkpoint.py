"""Where a run of training stands, in a file: what a killed process needs to go on as if it had not.

The file has a line that names its kind, a SHA-256, and what ``torch.save`` makes of numbers, text
and tensors; nothing in it is executed when it is read.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property

from made_flows._checks import expect, expect_type, holds_integers
from made_flows._files import expect_place, replacing
from made_flows.training.convert import checksum
from made_flows.training.optimization import named_tensors
from made_flows.training.processes import Processes
from made_flows.transforms.units import Units

_KIND = b"made_flows checkpoint 1\n"
_SHARE = 0.05
"""Part of the time that may be spent on writing."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object in memory, which is elsewhere in the next process."""


class Checkpoint:
    """The file of a run. The first process reads and writes it, for all of them.

    Args:
        path: the file; None for none.
        processes: who trains.

    Attributes:
        saved: what the file says; None where there is no file yet.
    """

    def __init__(self, path: Any, processes: Processes) -> None:
        known = path is None or isinstance(path, (str, os.PathLike))
        expect_type(known, "checkpoint", "to be None or the path of a file", path)
        self.place = None if path is None else Path(path).resolve()
        self.processes = processes
        self.saved: dict[str, Any] | None = None
        self._request: Mapping[str, Any] = {}
        self._written, self._cost = -float("inf"), 0.0
        if self.place is None:
            return
        expect_place(self.place)
        first = processes.rank == 0
        content = self.place.read_bytes() if first and self.place.exists() else None
        content = processes.same(content)
        if content is not None:
            self.saved = _unpacked(content, self.place)
        if first:
            for left in self.place.parent.glob(f".{self.place.name}.*.tmp"):
                left.unlink(missing_ok=True)  # of a process that was killed as it wrote

    def check(self, request: Mapping[str, Any]) -> None:
        """Refuse a file of another model, of other data or of other arguments; note these.

        Raises:
            ValueError: with the first thing that is not the same.
        """
        self._request = request
        if self.saved is None:
            return
        before = self.saved["request"]
        for name in (*request, *(set(before) - set(request))):
            if before.get(name) != request.get(name):
                raise ValueError(
                    f"Expected checkpoint to be of this call; got {self.place}, which is of one "
                    f"with {name} {before.get(name)}, where it is {request.get(name)} now. Repeat "
                    f"the call as it was, or give another path to start anew"
                )

    @property
    def is_due(self) -> bool:
        """Whether the time since the last writing is long enough for another."""
        due = self.place is not None and self.processes.rank == 0
        return due and (time.perf_counter() - self._written) * _SHARE >= self._cost

    def write(self, state: Mapping[str, Any]) -> None:
        """Put a state in the place of the file."""
        if self.place is None or self.processes.rank > 0:
            return
        start = time.perf_counter()
        buffer = io.BytesIO()
        torch.save({"request": self._request, **state}, buffer)
        payload = buffer.getvalue()
        content = _KIND + hashlib.sha256(payload).digest() + payload
        if not self._cost:  # the first time: whether it can be read again
            _unpacked(content, self.place)
        with replacing(self.place) as temporary:
            temporary.write_bytes(content)
        self._written = time.perf_counter()
        self._cost = self._written - start


def _unpacked(content: bytes, place: Path) -> dict[str, Any]:
    start = len(_KIND)
    if not content.startswith(_KIND):
        raise ValueError(f"Expected checkpoint to be a file that fit wrote; got another, {place}")
    payload = content[start + 32 :]
    whole = hashlib.sha256(payload).digest() == content[start : start + 32]
    got = f"{place}, which was damaged or cut short. Delete it to start anew"
    expect(whole, "checkpoint", "to be as it was written", got)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), "cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Expected a state of training that can be read again from {place}, such as those of "
            f"torch's optimizers; got one that holds other objects: {error}"
        ) from error
    return state


def describe_model(model: nn.Module) -> str:
    """Say what a model is, whatever its weights: class, sizes, layers, settings, constants."""
    modules = [each for each in model.modules() if not isinstance(each, Units)]
    units = {id(b) for m in model.modules() if isinstance(m, Units) for b in m.buffers()}
    tensors = [
        (name, tensor)
        for name, tensor in named_tensors(model)
        if id(tensor) not in units  # which are only known in training
    ]
    shapes = [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in tensors]
    kinds: list[Any] = [type(module).__name__ for module in modules]
    fixed = 0
    for module in modules:
        for name, value in _constants(module):
            if isinstance(value, Tensor):
                kinds.append((name, tuple(value.shape), str(value.dtype)))
                fixed = checksum(value, fixed)
            else:
                kinds.append((name, _ADDRESS.sub("", repr(value))))
    layout = zlib.crc32(repr(kinds).encode(), zlib.crc32(repr(shapes).encode()))
    numbers = sum(tensor.numel() for _, tensor in tensors)
    kind = type(model).__name__
    return f"{kind} of {numbers} numbers (layers {layout:08x}, constants {fixed:08x})"


def _constants(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module was given and training leaves as it is, by name.

    Beside what a module says of itself, such as a scale rule, that is all that one of the library's
    holds in public, or one of a class made of its classes, but for what it calls ``changing``. Of
    others it is integers: other numbers may have been drawn, and come from the file as weights do.
    """
    if not any(isinstance(value, Distribution) for value in vars(module).values()):
        yield "extra_repr", module.extra_repr()  # a distribution says what was asked of it before
    if not any(cls.__module__.startswith("made_flows.") for cls in type(module).__mro__):
        for name, tensor in module.named_buffers(recurse=False):
            if tensor.dim() and holds_integers(tensor):
                yield name, tensor
        return
    every = {**vars(module), **module._buffers}
    changing = {"training", "key", *getattr(module, "changing", ())}
    for name in sorted(name for name in every if name[0] != "_" and name not in changing):
        yield from ((name, each) for each in _given(every[name], set()))


def _given(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the tensors and plain values that a value holds; of other objects nothing."""
    if isinstance(value, Tensor):
        if value.dim() or value.is_floating_point():  # other single numbers count something
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _given(item, seen)
    elif isinstance(value, (Distribution, Transform)):
        if id(value) not in seen:  # a transform and its inverse hold each other
            seen.add(id(value))
            yield type(value).__name__
            for name, item in sorted(vars(value).items()):
                # What is made when it is asked for, or kept of a call, may be there or not.
                inverse = name == "_inv" and not isinstance(value, _InverseTransform)
                lazy = isinstance(getattr(type(value), name, None), lazy_property)
                if not (inverse or lazy or name == "_cached_x_y"):
                    yield from _given(item, seen)
    elif isinstance(value, (str, int, float, FunctionType, BuiltinFunctionType)):
        yield value


def random_state(generators: list[torch.Generator], device: torch.device) -> list[Tensor]:
    """Return the states of the global generators and of some others."""
    states = [torch.get_rng_state(), *(generator.get_state() for generator in generators)]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(
    states: list[Tensor], generators: list[torch.Generator], device: torch.device
) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(states[0])
    for generator, state in zip(generators, states[1:], strict=False):
        generator.set_state(state)
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[-1], device)
