"""Compiled steps: how a feature's noise becomes its value, one module for each kind.

A module is found by its name, the ``kind`` of a
:class:`~made_flows.univariate.step_kernel.StepKernel`. It defines a function ``step`` of plain
Python that Numba compiles, by itself and at its first use: the sweep calls it by its address and
does not know it. Its arguments are

* ``work``: the workspace of a tile, rows of ``lanes`` numbers, one for each row of the batch that
  the tile holds. ``line(work, row, lanes)`` is one of them, an array;
* ``numbers``: what :attr:`StepKernel.numbers` has, in double precision: whether to invert, the
  scale rule's code and two constants, then constants of its own;
* ``lanes``: numbers in a row;
* ``parameters``, ``count``: the row where the feature's parameters begin, and how many there are.
  They may be overwritten;
* ``noise``: the row of the first part of its noise; further parts follow;
* ``scratch``: the first of ``SCRATCH`` rows that it may use;
* ``x``: the row for its values.

Everything is a loop over lanes without branches, where that can be, since LLVM makes vector
instructions of such loops. Numbers take the type of the workspace by ``like``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from numba import carray, njit


@lru_cache(maxsize=64)
def has_step(kind: str) -> bool:
    """Tell whether there is a step of a kind."""
    return find_spec(f"{__name__}.{kind}") is not None


def find_step(kind: str) -> Callable[..., None]:
    """Return the step of a kind, not compiled yet."""
    step: Callable[..., None] = importlib.import_module(f"{__name__}.{kind}").step
    return step


@njit(nogil=True, error_model="numpy")
def line(work: Any, row: int, lanes: int) -> Any:
    """Return a row of the workspace."""
    return carray(work, (row + 1) * lanes)[row * lanes :]
