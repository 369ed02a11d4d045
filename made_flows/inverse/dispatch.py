"""Which implementation of the sweeps a call takes: compiled where it can, torch elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

from torch import Tensor

from made_flows._checks import expect
from made_flows._torch import own_precision
from made_flows.inverse import eager
from made_flows.inverse.numeric import Numeric, make_numeric, symbolic_for
from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.nn.spec import NetworkSpec

_CHOICES = ("auto", "eager", "compiled")
_VARIABLE = "MADE_FLOWS_INVERSE"
_chosen: str | None = None


@contextmanager
def backend(choice: str) -> Iterator[None]:
    """Choose how sequential inverses are computed, for benchmarks and tests.

    Args:
        choice: ``"auto"``, compiled wherever the compiled sweep can; ``"eager"``, always in
            torch operations; ``"compiled"``, always compiled, or an error that says why not. The
            environment variable ``MADE_FLOWS_INVERSE`` sets the default, which is ``"auto"``.

    Raises:
        ValueError: for another choice, here or in the environment variable.

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


def _choice() -> str:
    """Return the choice in force."""
    return _default() if _chosen is None else _chosen


@lru_cache(maxsize=1)
def _default() -> str:
    # Read at the first inverse and not at import: an import should not fail for it.
    choice = os.environ.get(_VARIABLE, "auto")
    expect(choice in _CHOICES, _VARIABLE, f"to be one of {', '.join(_CHOICES)}", repr(choice))
    return choice


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    """Return the module of compiled sweeps, None without Numba; says so once."""
    if importlib.util.find_spec("numba") is None:
        logging.getLogger("made_flows").warning(
            "Numba is not installed: sequential inverses on the CPU run in torch operations, "
            "several times slower. pip install 'made-flows[fast]' for the compiled kernel"
        )
        return None
    from made_flows.inverse.compiled import backend as cpu

    return cpu


def _backend_for(tensor: Tensor) -> ModuleType | None:
    """Return the module of compiled sweeps, where rows such as these may take it."""
    choice = _choice()
    if choice == "eager":
        return None
    if tensor.device.type == "cpu":
        cpu = _compiled()
        if cpu is None:
            _refuse("without Numba. pip install 'made-flows[fast]'")
        return cpu
    _refuse(f"on the device {tensor.device}: it is for the CPU")
    return None


def _refuse(why: str) -> None:
    """Raise if nothing but the compiled sweep will do."""
    if _choice() == "compiled":
        raise RuntimeError(
            f"Expected a sequential inverse that can be compiled, as {_VARIABLE} or backend("
            f'"compiled") asks; got one {why}. "auto" falls back to torch operations'
        )


def solve(problem: Problem) -> Tensor:
    """Solve a :class:`~made_flows.inverse.problem.Problem` for its values."""
    cpu = _backend_for(problem.noise)
    if cpu is not None:
        kernel = cpu.kernel_of(problem.step)
        ready = None if kernel is None else cpu.ready_for(problem.network)
        if ready is not None:
            values: Tensor = cpu.solve(ready, kernel, problem)
            dtype = problem.step.value_dtype(problem.noise.dtype)
            return values if dtype == values.dtype else values.to(dtype)
        _refuse(
            f"whose step ({problem.step.name}) has no kernel"
            if kernel is None
            else _unknown(problem.network)
        )
    with own_precision(problem.noise.device.type):
        return eager.solve(_numeric(problem.network), problem)


def adjoint(problem: TransposedProblem) -> Tensor:
    """Solve a :class:`~made_flows.inverse.problem.TransposedProblem`."""
    cpu = _backend_for(problem.gradient)
    if cpu is not None:
        ready = cpu.ready_for(problem.network)
        if ready is not None:
            solution: Tensor = cpu.adjoint(ready, problem)
            return solution
        _refuse(_unknown(problem.network))
    with own_precision(problem.gradient.device.type):
        return eager.adjoint(_numeric(problem.network), problem)


def _unknown(network: NetworkSpec) -> str:
    activations = ", ".join(sorted(set(network.structure.activations)))
    return f"of a network of {network.tensors[1].dtype} with the activations {activations}"


def _numeric(network: NetworkSpec) -> Numeric:
    return make_numeric(symbolic_for(network), network.tensors)
