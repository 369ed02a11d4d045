"""How a network lies in memory for the compiled sweeps: the arguments of the kernels.

Kernels take a few named tuples of arrays. A function is handed the parts of a tuple one by one, so
that each tuple holds what one group of functions needs, and no more.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]

# Columns of the table of layers. Z, A, SLOPE, DELTA, SUM: the rows of the tile's workspace where a
# layer's weighted sums, activations, derivatives of activations, deltas, and deltas sent back to a
# residual stream begin. SOURCE: where what it reads begins. STREAM, STREAM_SUM: where z, and the
# sum of deltas, of the layer it adds to begin; STREAM_INDEX: where its units' places in that layer
# begin. BIAS, NORM: places in the vectors. BASE, GATE: units of the context's contributions before
# the layer's own. UNITS: how many it has. ACTIVATION: a code. -1 stands for none.
Z, A, SLOPE, SOURCE, BIAS, ACTIVATION, STREAM, STREAM_INDEX = range(8)
BASE, GATE, NORM, DELTA, SUM, UNITS, STREAM_SUM = range(8, 15)
COLUMNS = 15

ACTIVATION_CODES = {
    "identity": 0,
    "relu": 1,
    "leaky_relu": 2,
    "elu": 3,
    "tanh": 4,
    "sigmoid": 5,
    "silu": 6,
    "softplus": 7,
    "gelu": 8,
}

DTYPES = (torch.float32, torch.float64)
"""What the kernels compute in."""

SCRATCH = 12
"""Rows of the workspace that a step may use for itself."""


def words_of(value: Any) -> array[int]:
    """Write an argument down as the integers that kernels read: of arrays, addresses and shapes."""
    words = array("q")
    put(value, words)
    return words


def put(value: Any, words: array[int]) -> None:
    """Add an argument to what is written down."""
    if isinstance(value, Written):
        words.extend(value.words)
    elif isinstance(value, tuple):
        try:
            words.extend(array("q", value))  # of integers alone: at once
        except TypeError:
            for part in value:
                put(part, words)
    elif isinstance(value, np.ndarray):
        words.append(value.ctypes.data)
        words.extend(array("q", value.shape))
    else:
        words.append(value)


class Written:
    """An argument that is used again and again: written down once, which takes microseconds.

    Args:
        value: the argument, or one of its kind.
        words: what is written down, if that is of another.
    """

    def __init__(self, value: Any, words: array[int] | None = None) -> None:
        self.value, self.words = value, words_of(value) if words is None else words


_NUMBERS = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}


def numbers_of(tensor: Tensor) -> Written:
    """Return the numbers of a tensor in one piece, which the caller keeps, as an argument."""
    return Written(_NUMBERS[tensor.dtype], array("q", (tensor.data_ptr(), tensor.numel())))


class Tile(NamedTuple):
    """Some rows of the batch, which advance together.

    Args:
        work: the workspace, rows of ``lanes`` numbers, one for each row of the batch.
        row: the first row of the batch.
        lanes: rows of the batch in a tile, a multiple of what a vector register holds.
    """

    work: NDArray[Any]
    row: int
    lanes: int


class Units(NamedTuple):
    """What units are made of, besides their weights.

    Args:
        context: the context's contributions, unit by unit, which every call brings.
        context_rows: how many there are of each; row n of the batch has row n modulo these.
        vectors: biases and norms.
        table: a row for each layer, see the columns above.
        streams: places of the units that units add to.
        constants: of the activations.
        functions: addresses of what applies the activations, and of what gives their slopes,
            (2, layers).
    """

    context: NDArray[Any]
    context_rows: int
    vectors: NDArray[Any]
    table: Integers
    streams: Integers
    constants: NDArray[np.float64]
    functions: Integers


class Ranks(NamedTuple):
    """Which features, columns and units come when.

    Args:
        panels: ranks at which panels start, and the number of ranks.
        starts: (layers, ranks + 1), units of lower degree (outputs: rank).
        features, feature_starts, column_starts: as the symbolic phase has them.
        output_starts, input_starts: places of a feature's outputs and columns, by sorted feature.
    """

    panels: Integers
    starts: Integers
    features: Integers
    feature_starts: Integers
    column_starts: Integers
    output_starts: Integers
    input_starts: Integers


class Blocks(NamedTuple):
    """Weights in blocks, one for each layer and panel of ranks.

    Args:
        weights: all blocks, one after the other.
        places: where the block of each layer and panel begins, (layers, panels).
        direct: the same for the direct connection, (panels,), or empty.
        product: the address of ``add_product``.
    """

    weights: NDArray[Any]
    places: Integers
    direct: Integers
    product: int


class StepRows(NamedTuple):
    """Where a step finds what it works on: rows of the workspace, each of ``lanes`` numbers.

    Args:
        lanes: numbers in a row.
        parameters, outputs: where the feature's parameters begin, and how many there are. They may
            be overwritten.
        noise: the first part of its noise; further parts follow.
        scratch: the first of ``SCRATCH`` rows that it may use.
        x: the row for its values.
    """

    lanes: int
    parameters: int
    outputs: int
    noise: int
    scratch: int
    x: int


class StepCall(NamedTuple):
    """How the sweep calls a step, see :mod:`made_flows.inverse.compiled.steps`.

    Args:
        address: where its machine code begins.
        numbers: what it is told.
        parts: parts of noise.
        one_hot: whether the network reads values as one-hot columns.
    """

    address: int
    numbers: NDArray[np.float64]
    parts: int
    one_hot: bool


class Sweep(NamedTuple):
    """All that a kernel is told besides the rows: the same in every call with these weights.

    Args:
        units, ranks, blocks, step: the tuples above.
        scratch: where the step's own rows of the workspace begin.
    """

    units: Units
    ranks: Ranks
    blocks: Blocks
    step: StepCall
    scratch: int
