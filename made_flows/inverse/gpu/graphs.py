"""Sweeps in torch operations as CUDA graphs, where there is no kernel: one launch for a thousand.

From two dozen ranks on a sweep launches less than D passes of the network do (15 operations a rank
for two hidden layers, where a pass takes 17), and for fewer ranks at most forty more, for which its
units are sorted; it multiplies D times less. So it is always the sweep that is recorded: the rule
is counted, and not measured. A recording is replayed for the same shapes and the same weights,
which it reads where they lie, as they then are; it belongs to the symbolic phase of its masks.

Only what is known to be the library's own arithmetic is recorded: what other code decides on the
host a replay would not see. A first call is made as it is, and the second one recorded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from made_flows._torch import is_recorded
from made_flows.inverse import eager
from made_flows.inverse.compiled.placement import activations_of
from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.inverse.symbolic import symbolic_for
from made_flows.nn.spec import NetworkSpec

_LOG = logging.getLogger("made_flows")

_MOST = 4
"""Recordings for the masks of a network, for good: to record takes longer than many sweeps, so that
none makes room for another."""

_MOST_SEEN = 64
"""Kinds of calls that are remembered, of which the next one is recorded."""

_LARGEST = 2**23
"""Units times rows up to which a sweep is recorded: larger ones keep a device busy anyway, and a
recording keeps its memory."""

_TURN = threading.Lock()
"""Recordings share the memory of what they compute, and are replayed one after the other."""


class Recording:
    """What some operations on a device do, to be done again.

    Args:
        run: the operations, whose result depends on the given tensors and on nothing that changes.
        given: the tensors, for which there is memory of the recording's own.
    """

    def __init__(self, run: Callable[[Sequence[Tensor]], Tensor], given: Sequence[Tensor]) -> None:
        with _TURN, torch.inference_mode(False), torch.no_grad():
            self.given = [tensor.detach().clone() for tensor in given]
            self.replay, self.result, self.turn = recorded(lambda: run(self.given), given[0])

    def __call__(self, given: Sequence[Tensor]) -> Tensor:
        with _TURN, self.turn(), torch.no_grad():
            for own, other in zip(self.given, given, strict=True):
                own.copy_(other)
                if own.is_cuda:  # should the recording be dropped before this replay is done
                    own.record_stream(torch.cuda.current_stream(own.device))
            self.replay()
            return self.result.clone()


def recorded(
    run: Callable[[], Tensor], like: Tensor
) -> tuple[Callable[[], None], Tensor, Callable[[], AbstractContextManager[None]]]:
    """Record operations; return what replays them, their result, and a context for one replay.

    In the context a stream waits for those that replayed before.
    """
    graph, device = torch.cuda.CUDAGraph(), like.device
    pool, own, done = _shared_on(device)
    # Other threads go on as they are.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=pool, stream=own, capture_error_mode="thread_local"),
    ):
        result = run()

    @contextmanager
    def turn() -> Iterator[None]:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(done)
        try:
            yield
        finally:
            done.record(stream)

    return graph.replay, result, turn


@lru_cache(maxsize=64)
def _shared_on(device: torch.device) -> tuple[Any, torch.cuda.Stream, torch.cuda.Event]:
    """Make a device's memory and stream for recordings, and the event after the last replay."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream(), torch.cuda.Event()


def solve(problem: Problem) -> Tensor:
    """Solve as :func:`made_flows.inverse.eager.solve` does."""
    network, step, noise, known, prefix = problem
    kernel = step.kernel()
    if kernel is None or not kernel.follows_rule:
        return eager.solve(problem)

    def run(given: Sequence[Tensor]) -> Tensor:
        own, *bases = given
        own_known = None if known is None else bases.pop(0)
        return eager.solve(Problem(replace(network, bases=bases), step, own, own_known, prefix))

    given = [noise, *([] if known is None else [known]), *network.bases]
    key = ("solve", step.name, kernel.kind, kernel.numbers, known is None, prefix)
    return _by_recording(network, key, given, run)


def adjoint(problem: TransposedProblem) -> Tensor:
    """Solve the transposed system as ``made_flows.inverse.eager.adjoint`` does."""
    network, gradient, slopes, x = problem

    def run(given: Sequence[Tensor]) -> Tensor:
        again = replace(network, bases=list(given[3:]))
        return eager.adjoint(TransposedProblem(again, *given[:3]))

    return _by_recording(network, ("adjoint",), [gradient, slopes, x, *network.bases], run)


def _by_recording(
    network: NetworkSpec,
    key: tuple[Any, ...],
    given: Sequence[Tensor],
    run: Callable[[Sequence[Tensor]], Tensor],
) -> Tensor:
    """Do what a recording does, or what is to be recorded at the next call."""
    symbolic = symbolic_for(network)
    units = sum(len(layer.units) for layer in symbolic.layers)
    if (
        not 0 < len(given[0]) * units <= _LARGEST
        or is_recorded(given[0])  # by somebody else's graph
        or activations_of(network.structure) is None
    ):
        return run(given)
    precision = torch.backends.cuda.matmul.fp32_precision
    places = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in network.tensors)
    shapes = tuple((t.shape, t.dtype) for t in given)
    key = (*key, precision, places, shapes)
    kept: dict[Any, Recording | None] = symbolic.prepared.setdefault("graphs", {})
    seen: set[Any] = symbolic.prepared.setdefault("graphs seen", set())
    if key in seen and key not in kept and len(kept) < _MOST:
        kept[key] = _recording_of(run, given)
    elif len(seen) < _MOST_SEEN:
        seen.add(key)
    recording = kept.get(key)
    return run(given) if recording is None else recording(given)


def _recording_of(
    run: Callable[[Sequence[Tensor]], Tensor], given: Sequence[Tensor]
) -> Recording | None:
    try:
        return Recording(run, given)
    except RuntimeError as failure:
        _LOG.warning("A sweep cannot be recorded, and runs as it is. %s", str(failure))
        return None
