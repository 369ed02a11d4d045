"""Several processes that train one model: what they tell each other, and what they agree on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from made_flows._checks import expect
from made_flows.training.data import Share
from made_flows.training.optimization import named_tensors, restore_weights
from made_flows.transforms.normalization import ActNorm, BatchNorm


class Processes:
    """The processes of ``torch.distributed``, where it is initialised; else this one alone."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1
        started = os.environ.get("WORLD_SIZE", "1")
        if not together and started not in ("", "1") and "TORCHELASTIC_RUN_ID" in os.environ:
            warnings.warn(
                f"torchrun started {started} processes, and torch.distributed is not initialised: "
                f"each trains a model of its own. Call torch.distributed.init_process_group()",
                stacklevel=3,
            )

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def share(self) -> Share:
        """The part of every batch that is this process's."""
        return Share(self.rank, self.count)

    def same(self, value: Any) -> Any:
        """Return the first process's value."""
        if self.alone:
            return value
        values = [value]
        with self._listening():
            dist.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        with self._listening():
            dist.all_gather_object(values, value)
        return values

    def added(self, numbers: list[Any], device: torch.device) -> list[float]:
        """Add up numbers of all processes, in double precision."""
        if self.alone:
            return numbers
        total = torch.stack(
            [torch.as_tensor(n, dtype=torch.float64, device=device) for n in numbers]
        )
        with self._listening():
            dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def add_gradients(
        self, parameters: list[nn.Parameter], rows: int, present: list[float]
    ) -> None:
        """Add up gradients of sums over rows, and divide by the rows of all.

        Args:
            parameters: whose gradients.
            rows: the number of rows of all processes.
            present: how many processes have a gradient of each parameter; of none stays None.
        """
        known = [p for p, count in zip(parameters, present, strict=True) if count]
        for dtype in {p.dtype for p in known}:
            of_kind = [p for p in known if p.dtype == dtype]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in of_kind]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            with self._listening():
                dist.all_reduce(flat)
            flat /= rows
            parts = flat.split([p.numel() for p in of_kind])
            for parameter, part in zip(of_kind, parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()

    @torch.no_grad()
    def align(self, model: nn.Module) -> None:
        """Give all processes the first one's weights and buffers."""
        if self.alone:
            return
        values = {name: tensor.contiguous() for name, tensor in named_tensors(model)}
        with self._listening():
            for value in values.values():
                dist.broadcast(value, 0)
        restore_weights(model, values)

    def check_trainable(self, model: nn.Module) -> None:
        """Refuse a model that looks at the rows beside each other, of which each has a part."""
        kinds = (BatchNorm, nn.modules.batchnorm._BatchNorm)
        wanted = (
            "without batch normalisation, whose batches would be parts of those of one process "
            "(actnorm, group and layer normalisation are as in one)"
        )
        for name, module in model.named_modules() if not self.alone else ():
            found = isinstance(module, kinds) and not isinstance(module, nn.SyncBatchNorm)
            expect(not found, "model", wanted, f"a {type(module).__name__}, {name!r}")

    def check_alike(self, model: nn.Module) -> None:
        """Raise a RuntimeError where weights or buffers are not the first process's."""
        if self.alone:
            return
        sums = {  # as text, so that NaN is as NaN
            name: float(tensor.detach().double().sum()).hex()
            for name, tensor in named_tensors(model)
        }
        by_tensor = zip(sums, *self.gathered([*sums.values()]), strict=True)
        if differ := [name for name, *values in by_tensor if len(set(values)) > 1]:
            raise RuntimeError(
                f"Expected all {self.count} processes to have one model after an epoch; got "
                f"different values of {', '.join(differ[:3])}. A module that changes its buffers "
                f"by the rows that it sees cannot be trained by several processes"
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Say what it means that another process does not answer."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise RuntimeError(
                f"Expected all {self.count} processes to go on training; process {self.rank} lost "
                f"another, which failed or was killed (its own output says why). A checkpoint is "
                f"whole: start all of them again with the same call ({error})"
            ) from error


def starts_from_data(model: nn.Module) -> bool:
    """Tell whether a first batch is to set weights: those of actnorm."""
    return any(isinstance(m, ActNorm) and not bool(m.initialized) for m in model.modules())
