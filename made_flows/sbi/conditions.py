"""What builders learn of the first simulations: z-scores, and the size of an embedding."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from sbi.utils.sbiutils import Standardize, z_standardization
from torch import Tensor, nn

from made_flows._checks import expect, expect_type, listed
from made_flows._torch import modes_kept
from made_flows.training.moments import resolution_of


def check_rows(rows: Any, name: str) -> Tensor:
    """Check rows (N, ...) of parameters or simulations."""
    expect_type(isinstance(rows, Tensor), name, "to be a torch.Tensor", rows)
    expect(rows.dim() > 1 and len(rows) > 0, name, "of shape (N, ...)", tuple(rows.shape))
    expect_type(rows.is_floating_point(), name, "to be of a floating-point dtype", rows.dtype)
    tensor: Tensor = rows
    return tensor


def check_varies(rows: Tensor, name: str) -> None:
    """Refuse columns of rows (N, D) to model that are constant: their density is infinite."""
    constant = _constant(rows)
    columns = constant.nonzero().flatten().tolist()
    expect(
        not columns,
        name,
        "to vary in every column, as a density is infinite where it does not (leave such columns "
        "out, or add noise to them)",
        f"a constant in columns {listed(columns)}",
    )


def moments(rows: Tensor, structured: bool, name: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of rows, as sbi has them; one of all columns if structured.

    In double precision, and of any size: sbi takes deviations below 1e-7 (of simulations; 1e-14 of
    parameters) for as much, so that a network hardly sees columns in units that are too large.
    """
    few = f"{len(rows)} row: make such an estimator with z-scores of 'none'"
    expect(len(rows) > 1, name, "to be two rows or more, to z-score by", few)
    if structured and rows.shape[1] == 1:  # sbi's are those within a row, along its first dimension
        rows = rows.flatten(1)
        structured = rows.shape[1] > 1
    mean, std = z_standardization(rows.double(), structured, min_std=0.0)
    return mean.to(rows.dtype), std.to(rows.dtype)


def scoring(given: Tensor, structured: bool, name: str) -> nn.Module:
    """Make sbi's layer that z-scores what an estimator is given.

    What is constant in all simulations is zero behind it, whatever it is at use. (sbi divides it by
    1e-7: an observation that is other there would be all that a network sees.)
    """
    mean, std = moments(given, structured, name)
    constant = std == 0 if structured else _constant(given)
    if bool(constant.any()):
        std = std.where(~constant, torch.inf)
        warnings.warn(
            f"What the estimator is given is constant in all simulations in columns "
            f"{listed(constant.flatten().nonzero().flatten().tolist())}. Nothing can be learnt of "
            f"them: densities and samples will be the same for other values",
            stacklevel=3,
        )
    layer: nn.Module = Standardize(mean, std)
    return layer


def _constant(rows: Tensor) -> Tensor:
    """Tell which columns (...) of rows (N, ...) are constant, or vary by rounding alone."""
    finite = rows[rows.flatten(1).isfinite().all(dim=1)].double()
    if len(finite) < 2:
        return torch.zeros(rows.shape[1:], dtype=torch.bool, device=rows.device)
    std, mean = torch.std_mean(finite, dim=0)
    return std <= 0.5 * resolution_of(rows) * mean.abs()


def embedded_size(net: nn.Module, given: Tensor) -> int:
    """Return how many numbers a network makes of one row of what an estimator is given.

    It looks at one row alone, in evaluation: batch normalisation has no variance of one, and is to
    take its running averages from training rows, z-scored.
    """
    shape, modules = tuple(given.shape[1:]), list(net.modules())
    try:
        with torch.no_grad(), modes_kept(modules):
            for module in modules:
                module.training = False
            embedding = net.to(given.device)(given[:1])
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ValueError(
            f"Expected embedding_net to take rows of shape {shape}; got {error}"
        ) from error
    expect_type(isinstance(embedding, Tensor), "embedding_net", "to give a torch.Tensor", embedding)
    got = tuple(embedding.shape)
    rows = len(got) > 0 and got[0] == 1
    expect(rows, "embedding_net", "to give one row for each of its rows, here (1, ...)", got)
    return int(embedding.numel())
