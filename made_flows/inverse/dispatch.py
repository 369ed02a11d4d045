"""Which implementation of the sweeps a call takes: compiled where it can, torch elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from made_flows._checks import expect, expect_word
from made_flows._torch import has_concrete_values, own_precision
from made_flows.inverse import eager
from made_flows.inverse.compiled.layout import DTYPES
from made_flows.inverse.compiled.placement import activations_of, knows
from made_flows.inverse.gpu import graphs
from made_flows.inverse.problem import Problem, TransposedProblem
from made_flows.inverse.steps import BijectionStep, HeadStep, Step, fits
from made_flows.nn.spec import NetworkSpec, Structure
from made_flows.univariate.step_kernel import SplineForm, StepKernel

_CHOICES = ("auto", "eager", "compiled", "triton")
_VARIABLE = "MADE_FLOWS_INVERSE"
_LOG = logging.getLogger("made_flows")
_chosen: str | None = None


@contextmanager
def backend(choice: str) -> Iterator[None]:
    """Choose how sequential inverses are computed, for benchmarks and tests.

    Args:
        choice: ``"auto"``, compiled wherever the compiled sweep can; ``"eager"``, always in
            torch operations; ``"compiled"``, always compiled, or an error that says why not;
            ``"triton"``, the same by the kernels for GPUs, on a CPU in Triton's interpreter. The
            environment variable ``MADE_FLOWS_INVERSE`` sets the default, which is ``"auto"``.

    Raises:
        ValueError: for another choice, here or in the environment variable.

    Example:
        >>> import made_flows as mf
        >>> with backend("eager"):
        ...     x = mf.GaussianMADE(3)().sample((2,))
    """
    global _chosen  # noqa: PLW0603
    expect_word(choice, _CHOICES, "choice", f"to be one of {', '.join(_CHOICES)}")
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
    expect_word(choice, _CHOICES, _VARIABLE, f"to be one of {', '.join(_CHOICES)}")
    return choice


_LEAST_LAUNCHED, _LEAST_FEATURES, _LEAST_WORK, _ROWS = 24, 6, 40_000_000, 40
"""From where on the sweep in torch operations is faster than D passes of the network. On a GPU:
features, by what is launched. On a CPU: features, and multiplications in all passes, as if there
were some more rows; measured with 2 to 63 features, 64 and 256 units, 1 to 4096 rows."""


def pays(step: Step, structure: Structure, weights: int, x: Tensor) -> bool:
    """Tell whether the inverse of values (..., D) is the faster one of it and D passes.

    With a kernel, or recorded, it is; in torch operations from a size on.

    Args:
        step, structure: the elementwise map, and the network's structure.
        weights: how many weights the network has, masked ones included.
        x: the values.
    """
    kernel = step.kernel()
    known = kernel is not None and kernel.gives_values and activations_of(structure) is not None
    if _choice() != "auto" or (known and x.is_cuda):
        return True
    if known and x.dtype in DTYPES and x.is_cpu and _engine("llvmlite") is not None:
        return True
    features = structure.features
    if not x.is_cpu:
        return features >= _LEAST_LAUNCHED
    work = weights * (x.numel() + _ROWS * features)
    return features >= _LEAST_FEATURES and work >= _LEAST_WORK


_WITHOUT = {
    "llvmlite": "llvmlite is not installed: sequential inverses on the CPU run in torch "
    "operations, several times slower. pip install 'made-flows[fast]' for the compiled kernel",
    "sources": "made_flows came without its sources, of which kernels are compiled: sequential "
    "inverses on the CPU run in torch operations, several times slower",
    "triton": "Triton is not installed: sequential inverses on a GPU run in torch operations, "
    "hundreds of launches in place of one. pip install 'made-flows[gpu]' for the kernel",
}


@lru_cache(maxsize=2)
def _engine(compiler: str) -> ModuleType | None:
    """Return the module of sweeps that a compiler compiles; says once that there is none."""
    if importlib.util.find_spec(compiler) is None:
        _LOG.warning(_WITHOUT[compiler])
        return None
    if compiler == "llvmlite":
        from made_flows.inverse.compiled import backend as cpu
        from made_flows.inverse.compiled.compilation import has_sources

        if not has_sources():
            _LOG.warning(_WITHOUT["sources"])
            return None
        return cpu
    from made_flows.inverse.gpu import backend as gpu

    return gpu


def _backend_for(tensor: Tensor) -> ModuleType | None:
    """Return the module of compiled sweeps, where rows such as these may take it."""
    choice, device = _choice(), tensor.device
    if choice == "eager":
        return None
    if device.type == "cuda" or (choice == "triton" and device.type == "cpu"):
        gpu = _engine("triton")
        if gpu is None:
            _refuse("without Triton. pip install 'made-flows[gpu]'")
        elif gpu.runs_on(device):
            return gpu
        else:
            _refuse(
                f"on the device {device}, where Triton's kernels run neither compiled (Triton 3.6, "
                "CUDA's compute capability 8.0 and above) nor interpreted (TRITON_INTERPRET=1)"
            )
        return None
    if device.type == "cpu":
        cpu = _engine("llvmlite")
        if cpu is None:
            _refuse("without llvmlite. pip install 'made-flows[fast]'")
        return cpu
    _refuse(f"on the device {device}: there are kernels for CPUs and CUDA")
    return None


def _refuse(why: str) -> None:
    """Raise if nothing but the compiled sweep will do."""
    if _choice() in ("compiled", "triton"):
        raise RuntimeError(
            f"Expected a sequential inverse that can be compiled, as {_VARIABLE} or backend("
            f'"{_choice()}") asks; got one {why}. "auto" falls back to torch operations'
        )


def solve(problem: Problem) -> Tensor:
    """Solve a :class:`~made_flows.inverse.problem.Problem` for its values."""
    weights = problem.network.tensors[1].device
    if weights != problem.noise.device:  # a kernel would read memory that is not its device's
        expect(False, "noise", f"on the device of the weights, {weights}", problem.noise.device)
    structure, owner = problem.network.structure, problem.step.owner
    if not fits(problem.step, structure.inputs, structure.parameters):
        needed = f"a network of the inputs and parameters that {type(owner).__name__} needs"
        inputs, parameters = ({*each} for each in (structure.inputs, structure.parameters))
        got = f"{inputs} and {parameters} of a feature"
        raise ValueError(f"Expected {needed}; got {got}")
    engine = _backend_for(problem.noise)
    if engine is not None:
        kernel = engine.kernel_of(problem.step)
        try:
            ready = None if kernel is None else engine.ready_for(problem.network)
            if ready is not None:
                values: Tensor = engine.solve(ready, kernel, problem)
                return values.to(problem.dtype)
        except engine.FAILURES as failure:
            _report(failure)
        _refuse(
            f"whose step ({problem.step.name}) has no kernel"
            if kernel is None
            else _unknown(problem.network)
        )
    with own_precision(problem.noise.device.type):
        values = _in_torch(problem.noise).solve(problem)
    return values.to(problem.dtype)


def for_plans(x: Tensor) -> ModuleType | None:
    """Return the module of compiled passes without gradients for values such as these."""
    wanted = x.is_cpu and _choice() in ("auto", "compiled")
    return _engine("llvmlite") if wanted else None


def gradients_of(
    step: HeadStep | BijectionStep, network: NetworkSpec
) -> tuple[StepKernel, ModuleType] | None:
    """Return a step's kernel and the module that trains a network with it; None for none."""
    if for_plans(network.tensors[1]) is None or not knows(network):
        return None
    from made_flows.inverse.compiled import gradients

    kernel = gradients.kernel_of(step)
    return None if kernel is None else (kernel, gradients)


def path_kernels(z: Tensor) -> ModuleType | None:
    """Return the module of kernels for path gradients of few rows; None where there are none."""
    if for_plans(z) is None:
        return None
    from made_flows.inverse.compiled import affine_path

    return affine_path


def invert_spline(
    spline: SplineForm, y: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Find x with f(x) = y (...), and log dx/dy, without gradients; None where torch is to."""
    if torch.is_grad_enabled() or not has_concrete_values(y) or for_plans(y) is None:
        return None
    from made_flows.inverse.compiled.spline_inverse import invert

    return invert(spline, y, parameters)


def adjoint(problem: TransposedProblem) -> Tensor:
    """Solve a :class:`~made_flows.inverse.problem.TransposedProblem`."""
    engine = _backend_for(problem.gradient)
    if engine is not None:
        try:
            ready = engine.ready_for(problem.network)
            if ready is not None:
                solution: Tensor = engine.adjoint(ready, problem)
                return solution
        except engine.FAILURES as failure:
            _report(failure)
        _refuse(_unknown(problem.network))
    with own_precision(problem.gradient.device.type):
        return _in_torch(problem.gradient).adjoint(problem)  # type: ignore[no-any-return]


def _in_torch(tensor: Tensor) -> ModuleType:
    """Return the module of sweeps in torch operations, recorded where launches count most."""
    return graphs if tensor.is_cuda and _choice() == "auto" else eager


def _report(failure: Exception) -> None:
    """Say once for a failure that a kernel could not be built; raise where it was asked for."""
    if _choice() != "auto":
        raise failure
    _log_once(str(failure))


@lru_cache(maxsize=16)
def _log_once(failure: str) -> None:
    _LOG.warning(
        "The kernel of a sequential inverse could not be built: it runs in torch operations, "
        "exactly and more slowly. %s", failure
    )  # fmt: skip


def _unknown(network: NetworkSpec) -> str:
    activations = ", ".join(sorted(set(network.structure.activations)))
    return f"of a network of {network.tensors[1].dtype} with the activations {activations}"
