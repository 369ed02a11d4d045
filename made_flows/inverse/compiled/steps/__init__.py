"""Compiled steps: how a feature's noise becomes its value, one module for each kind.

A module is found by its name, the ``kind`` of a
:class:`~made_flows.univariate.step_kernel.StepKernel`. It defines a function ``step`` of plain
Python (:mod:`~made_flows.inverse.compiled.translation` says what it may use) that is compiled by
itself and at its first use: the sweep calls it by its address and does not know it. Its arguments
are

* ``work``: the workspace of a tile, rows of ``lanes`` numbers, one for each row of the batch that
  the tile holds. ``simd.line(work, row, lanes)`` is one of them, an array;
* ``numbers``: what :attr:`StepKernel.numbers` has, in double precision: whether to invert, the
  scale rule's code and two constants, then constants of its own;
* ``rows``: a :class:`~made_flows.inverse.compiled.layout.StepRows`, which says where in the
  workspace its parameters, noise and value are.

A function ``score``, where there is one, is the parallel direction, in which the value is known. It
takes the same arguments: ``rows.noise`` is the row of the known value, ``rows.x`` that of its image
under the map, and the logarithm of the map's derivative is added to the row after it. For a head,
whose ``numbers[0]`` is ``HEAD``, the logarithm of the value's probability is.

A function ``pull``, where there is one, is the gradient of ``score``. The rows of the image and of
the density hold gradients with respect to these; that of the image becomes the gradient of the
value by the map alone, parameters become their gradients. Where it does not serve all constants of
the step, a function ``pulls`` of these says whether it does.

Everything is a loop over lanes without branches, where that can be, since LLVM makes vector
instructions of such loops. Numbers take the type of the workspace by ``like``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any


@lru_cache(maxsize=64)
def has_step(kind: str, function: str = "step") -> bool:
    """Tell whether there is a step of a kind, or another function of its module."""
    if find_spec(f"{__name__}.{kind}") is None:
        return False
    return hasattr(importlib.import_module(f"{__name__}.{kind}"), function)


def find_step(kind: str, function: str = "step") -> Callable[..., Any]:
    """Return the step of a kind, or another function of its module, not compiled yet."""
    module = importlib.import_module(f"{__name__}.{kind}")
    step: Callable[..., Any] = getattr(module, function)
    return step
