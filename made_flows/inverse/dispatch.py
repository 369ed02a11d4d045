"""Which implementation of the sweeps a call takes: compiled where it can, torch elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

from torch import Tensor

from made_flows._checks import expect
from made_flows.inverse import eager
from made_flows.inverse.numeric import make_numeric, symbolic_for
from made_flows.inverse.steps import Step

__all__ = ["adjoint", "backend", "solve"]

_CHOICES = ("auto", "eager")
_chosen = os.environ.get("MADE_FLOWS_INVERSE", "auto")


@contextmanager
def backend(choice: str) -> Iterator[None]:
    """Choose how sequential inverses are computed, for benchmarks and tests.

    Args:
        choice: ``"auto"``, compiled wherever the compiled kernel can; ``"eager"``, always in
            torch operations. The environment variable ``MADE_FLOWS_INVERSE`` sets the default.

    Example:
        >>> import made_flows as mf
        >>> with backend("eager"):
        ...     x = mf.GaussianMADE(3)().sample((2,))
    """
    global _chosen  # noqa: PLW0603
    expect(choice in _CHOICES, "choice", f"to be one of {', '.join(_CHOICES)}", repr(choice))
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    """The module of compiled sweeps, None without Numba; says so once."""
    if importlib.util.find_spec("numba") is None:
        logging.getLogger("made_flows").warning(
            "Numba is not installed: sequential inverses on the CPU run in torch operations, "
            "several times slower. pip install 'made-flows[fast]' for the compiled kernel"
        )
        return None
    from made_flows.inverse.compiled import backend as cpu

    return cpu


def solve(
    text: str,
    step: Step,
    noise: Tensor,
    tensors: Sequence[Tensor],
    bases: Sequence[Tensor],
    known: Tensor | None,
    prefix: int,
) -> Tensor:
    """The values of a sequential inverse; see :func:`made_flows.inverse.eager.solve`."""
    cpu = _compiled() if noise.device.type == "cpu" and _chosen == "auto" else None
    kernel = None if cpu is None else cpu.kernel_of(step)
    ready = None if cpu is None or kernel is None else cpu.ready_for(text, tensors)
    if cpu is not None and ready is not None:
        values: Tensor = cpu.solve(ready, kernel, noise, tensors, bases, known, prefix)
        dtype = step.value_dtype(noise.dtype)
        return values if dtype == noise.dtype else values.to(dtype)
    numeric = make_numeric(symbolic_for(text, tensors), tensors)
    return eager.solve(numeric, step, noise, tensors, bases, known, prefix)


def adjoint(
    text: str,
    gradient: Tensor,
    slopes: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    bases: Sequence[Tensor],
) -> Tensor:
    """The solution of the transposed system; see :func:`made_flows.inverse.eager.adjoint`."""
    cpu = _compiled() if gradient.device.type == "cpu" and _chosen == "auto" else None
    ready = cpu.ready_for(text, tensors) if cpu is not None else None
    if cpu is not None and ready is not None:
        solution: Tensor = cpu.adjoint(ready, gradient, slopes, x, tensors, bases)
        return solution
    numeric = make_numeric(symbolic_for(text, tensors), tensors)
    return eager.adjoint(numeric, gradient, slopes, x, tensors, bases)
