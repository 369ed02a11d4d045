"""Gradients of weights, from the deltas of units and the activations that these read.

A weight's gradient is a sum over all rows of the batch, which are lanes: the sums of a few units
times a few inputs stay in registers while a loop runs over the lanes of all tiles. Only blocks that
the other kernels multiply by are gone through, and every sum goes where its weight was found.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.layout import BIAS, DELTA, SOURCE, Integers, Written, numbers_of
from made_flows.inverse.compiled.placement import Layout
from made_flows.inverse.compiled.simd import (
    ACCUMULATORS,
    keep_apart,
    lane_products,
    like,
    line,
    long,
    matrix,
    plus_product,
)
from made_flows.inverse.compiled.threads import next_tile

_INPUTS = 4 if ACCUMULATORS >= 24 else 2
_BLOCKS = tuple((k, tuple((u, lane_products(u, k)) for u in (4, 1))) for k in (_INPUTS, 1))
"""Inputs of a block, and for each number of units what multiplies them."""


class Recordings(NamedTuple):
    """The workspaces that the kernels of training have left behind.

    Args:
        tiles: how many there are.
        lanes: rows of a tile.
        size: numbers in the workspace of a tile.
    """

    tiles: int
    lanes: int
    size: int


class Targets(NamedTuple):
    """Where gradients go: addresses, 0 for none.

    Args:
        weights: of the gradients of layers' weights, (layers,).
        biases, direct: the same for biases, and for the direct connection.
    """

    weights: Integers
    biases: Integers
    direct: Integers


def _put(target: Any, place: int, total: Any) -> None:
    if place >= 0:
        target[0, place] = total


def _fill_block(
    spaces: Any, recorded: Any, delta: int, count: int, source: int, inputs: int, address: int,
    places: Any, block: int,
) -> None:  # fmt: skip
    """Write the gradients of the weights of a block, if there is an address for them."""
    keep_apart()
    if address == 0:
        return
    tiles, lanes, size = recorded
    target = matrix(address, spaces, 1, 1)
    k = 0
    # The rows of a few inputs stay in the nearest cache for all units, whose own fit the next.
    for part in _BLOCKS:
        while inputs - k >= part[0]:
            u, second = 0, (source + k) * lanes
            for inner in part[1]:
                while count - u >= inner[0]:
                    for found in inner[1](spaces, (delta + u) * lanes, second, lanes, size, tiles):
                        at = block + (k + found.input) * count + u + found.unit
                        _put(target, long(places[at]), found.total)
                    u += inner[0]
            k += part[0]


def _fill_biases(
    spaces: Any, recorded: Any, delta: int, count: int, address: int, places: Any, first: int
) -> None:
    """Write the gradients of the biases of some units, if there is an address for them."""
    keep_apart()
    if address == 0:
        return
    tiles, lanes, size = recorded
    target = matrix(address, spaces, 1, 1)
    for u in range(count):
        total = like(spaces[0], 0.0)
        for tile in range(tiles):
            deltas = line(spaces[tile * size : (tile + 1) * size], delta + u, lanes)
            for j in range(lanes):
                total = plus_product(total, deltas[j], like(total, 1.0))
        _put(target, long(places[first + u]), total)


def _fill_weights(
    slot: int, tiles: Any, spaces: Any, recorded: Any, ranks: Any, blocks: Any, found: Any,
    targets: Any,
) -> None:  # fmt: skip
    keep_apart()
    table, places = blocks.table, found.places
    panels, depth = len(ranks.panels) - 1, len(table) - 1
    while True:
        job, here, _ = next_tile(tiles, spaces)
        if here <= 0:
            return
        # The last panels of the last layers have the most to do, and come first.
        layer, p = depth - job // panels, panels - 1 - job % panels
        r0, r1 = ranks.panels[p], ranks.panels[p + 1]
        u0, count = ranks.starts[layer, r0], ranks.starts[layer, r1] - ranks.starts[layer, r0]
        delta, columns = table[layer, DELTA] + u0, ranks.column_starts[r1 - 1]
        inputs = ranks.starts[layer - 1, r1] if layer > 0 else columns
        _fill_block(
            spaces, recorded, delta, count, table[layer, SOURCE], inputs, targets.weights[layer],
            places, blocks.blocks[layer, p],
        )  # fmt: skip
        if layer == depth and len(blocks.direct) > 0:
            _fill_block(
                spaces, recorded, delta, count, 0, columns, targets.direct[0], places,
                blocks.direct[p],
            )  # fmt: skip
        first = blocks.vectors + table[layer, BIAS] + u0
        _fill_biases(spaces, recorded, delta, count, targets.biases[layer], places, first)


_FILL = Kernel(_fill_weights)


def fill_weights(
    spaces: Tensor, layout: Layout, found: Written, targets: Targets, threads: int
) -> None:
    """Write gradients from the workspaces (tiles, height, lanes) of all tiles.

    Args:
        spaces: what the kernels of training have left behind.
        layout: of the network.
        found: the :class:`~made_flows.inverse.compiled.gathering.Places` of blocks, and of biases.
        targets: addresses of the gradients.
        threads: how many.
    """
    tiles, height, lanes = spaces.shape
    recorded = Recordings(tiles, lanes, height * lanes)
    _FILL(
        layout.blocks.size, 1, 0, threads, numbers_of(spaces), recorded,
        layout.written("ranks"), layout.written_blocks, found, targets,
    )  # fmt: skip
