"""The likelihood of rows under a model: of a batch, to train by, and the mean over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from made_flows._checks import expect, expect_type, positive_integer
from made_flows._torch import modes_kept
from made_flows.training.data import Source, open_data
from made_flows.training.processes import Processes
from made_flows.training.target import Batch, Target
from made_flows.transforms.units import Units

_BATCH = 8192


def score(
    model: nn.Module, data: Any, context: Any = None, *, batch_size: int | None = None
) -> float:
    r"""Return the mean log-likelihood of rows, in nats, in memory that does not grow with them.

    .. math:: \frac{1}{N} \sum_n \log p_\theta(x_n \mid c_n)

    The model scores in evaluation mode, whichever it is in. The sum is in double precision. Where
    ``torch.distributed`` is initialised, every process scores its part of each batch, and all
    return the mean of all.

    Args:
        model: as for :func:`fit`.
        data: rows, files of rows mapped to memory (``numpy.memmap``), datasets, loaders or other
            iterables of batches, as for :func:`fit`.
        context: (N, ...), the contexts of rows.
        batch_size: rows scored at a time, by default 8192; a stream of batches has its own.

    Raises:
        ValueError, TypeError: as :func:`fit` does, for rows that do not fit the model or are not
            finite (named by row and column).

    Example:
        >>> import torch, made_flows as mf
        >>> model = mf.GaussianMADE(2)
        >>> x = torch.zeros(100, 2)
        >>> abs(score(model, x) - model().log_prob(x).mean().item()) < 1e-6
        True
    """
    expect_type(isinstance(model, nn.Module), "model", "to be a torch.nn.Module", model)
    size = _BATCH if batch_size is None else positive_integer(batch_size, "batch_size")
    processes, target = Processes(), Target.of(model, takes_double(model))
    source = open_data(data, context, target, "data", size, None, once=True)
    with modes_kept(model.modules()):
        return -mean_nll(model, source, size, processes, target.device)


@torch.no_grad()
def mean_nll(
    model: nn.Module, source: Source, size: int, processes: Processes, device: torch.device
) -> float:
    """Return the mean negative log-likelihood of all processes' rows, in evaluation mode."""
    model.eval()
    total, rows = 0.0, 0
    for batch in source.batches(size, share=processes.share):
        if len(batch[0]):
            total += float(negative_log_likelihood(model, batch).sum(dtype=torch.float64))
            rows += len(batch[0])
    total_of_all, count = processes.added([total, rows], device)
    return total_of_all / count


def training_loss(
    model: nn.Module, autocast: bool, compiled: bool | str
) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the function by which rows are trained: their negative log-likelihoods.

    Raises:
        ValueError: for a model that bfloat16 would not do for.
    """
    wanted = "to be True, False or a backend of torch.compile"
    expect_type(isinstance(compiled, (bool, str)), "compile", wanted, compiled)
    loss: Callable[[nn.Module, Batch], Tensor] = negative_log_likelihood
    if compiled:
        backend = compiled if isinstance(compiled, str) else "inductor"
        known = torch.compiler.list_backends(exclude_tags=())
        expect(backend in known, "compile", f"to name one of {known}", backend)
        loss = torch.compile(loss, backend=backend)
    if not autocast:
        return loss
    parameter = next(model.parameters())
    single = parameter.dtype == torch.float32 and parameter.device.type in ("cpu", "cuda")
    got = f"{parameter.dtype} on {parameter.device}"
    expect(single, "autocast", "to be False but for models in float32 on CPU or CUDA", got)

    def coarse_loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(parameter.device.type, torch.bfloat16):
            return loss(model, batch)

    return coarse_loss


def units_of(model: nn.Module) -> list[Units]:
    """Return the units in which a model, or every part of a mixture, takes its data; often none."""
    standardizable: Any = getattr(model, "standardizable", None)
    return list(standardizable()) if callable(standardizable) else []


def takes_double(model: nn.Module, found: Sequence[Units] = ()) -> tuple[bool, bool]:
    """Tell whether a model takes its data, and its contexts, in double precision.

    They are in units of their own, or are to be soon: those found.
    """
    known = units_of(model)
    throughout: Any = getattr(model, "standardizable_throughout", lambda: bool(known))
    active = throughout() and all(units.active or units in found for units in known)
    of_data = all(units.of_data and not units.before for units in known)
    return active and of_data, active


def negative_log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of every row of a batch."""
    x, context = batch
    try:
        distribution = model() if context is None else model(context)
    except (NotImplementedError, RuntimeError) as error:
        if not callable(getattr(model, "log_prob", None)):
            raise
        raise TypeError(
            f"Expected model to give a distribution, whose log_prob scores rows, when it is "
            f"called; got a {type(model).__name__}, which has a log_prob of its own, and of a call "
            f"{type(error).__name__}: {error} Train it by that, or from a module that calls it"
        ) from error
    score: Any = getattr(distribution, "log_prob", None)
    wanted = "to give a distribution, whose log_prob scores rows, when it is called"
    expect_type(callable(score), "model", wanted, distribution)
    log_prob: Tensor = score(x)
    if log_prob.shape != x.shape[:1]:
        # A (rows, features) log-density would be averaged over its features without a sound.
        raise ValueError(
            f"Expected model(context).log_prob(x) to be of shape ({len(x)},), one number per row; "
            f"got {tuple(log_prob.shape)} for x of shape {tuple(x.shape)}"
        )
    return -log_prob
