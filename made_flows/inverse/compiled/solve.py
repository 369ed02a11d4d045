"""The compiled sweep: all steps of the sequential inverse for tiles of rows.

Activations of a tile stand feature by feature, the rows of the tile side by side, so that rows
are the lanes of vectors. Ranks are taken in panels: before a panel one product per layer brings
in everything earlier; inside it small products do the rest. The arrays are laid out by
:mod:`made_flows.inverse.compiled.packing`.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from made_flows.inverse.compiled.layout import SOURCE, Z
from made_flows.inverse.compiled.products import add_product
from made_flows.inverse.compiled.steps import put_inputs, take_step
from made_flows.inverse.compiled.units import finish_units, gather, start_units

__all__ = ["solve_tiles"]


@njit(nogil=True, error_model="numpy")
def solve_tiles(
    first_row: int,
    last_row: int,
    lanes: int,
    noise: Any,
    known: Any,
    prefix: int,
    values: Any,
    work: Any,
    weights: Any,
    vectors: Any,
    constants: Any,
    bases: Any,
    base_rows: int,
    table: Any,
    starts: Any,
    streams: Any,
    features: Any,
    feature_starts: Any,
    column_starts: Any,
    output_starts: Any,
    input_starts: Any,
    panels: Any,
    blocks: Any,
    direct_blocks: Any,
    step: Any,
    step_constants: Any,
    scratch: int,
) -> None:
    """Solve rows [first_row, last_row), a tile of ``lanes`` rows after the other.

    Args: noise (N, P * D), known and values (N, D); the rest as packed.
    """
    depth = len(table) - 1
    out = table[depth, Z]
    kind, rule, swapped, parts = step[0], step[1], step[2] == 1, step[3]
    direct = len(direct_blocks) > 0
    for row in range(first_row, last_row, lanes):
        here = min(lanes, last_row - row)
        for p in range(len(panels) - 1):
            r0, r1 = panels[p], panels[p + 1]
            given = r1 <= prefix  # all ranks of the panel are known
            o0, o1 = starts[depth, r0], starts[depth, r1]
            for layer in range(depth + 1):
                u0, u1 = starts[layer, r0], starts[layer, r1]
                if layer == depth:
                    if given:
                        continue
                    start_units(
                        work, out - o0, layer, o0, o1, row, lanes, table, vectors, bases, base_rows
                    )
                    place = out
                else:
                    start_units(
                        work,
                        table[layer, Z],
                        layer,
                        u0,
                        u1,
                        row,
                        lanes,
                        table,
                        vectors,
                        bases,
                        base_rows,
                    )
                    place = table[layer, Z] + u0
                if given:
                    continue
                done = starts[layer - 1, r0] if layer > 0 else column_starts[r0]
                add_product(
                    work,
                    place * lanes,
                    work,
                    table[layer, SOURCE] * lanes,
                    weights,
                    blocks[layer, p],
                    u1 - u0,
                    lanes,
                    done,
                    u1 - u0,
                )
            if direct and not given:
                add_product(
                    work,
                    out * lanes,
                    work,
                    0,
                    weights,
                    direct_blocks[p],
                    o1 - o0,
                    lanes,
                    column_starts[r0],
                    o1 - o0,
                )
            if given:
                for r in range(r0, r1):
                    for i in range(feature_starts[r], feature_starts[r + 1]):
                        f = features[i]
                        x = work[scratch * lanes : (scratch + 1) * lanes]
                        gather(known, f, row, lanes, x)
                        for j in range(here):
                            values[row + j, f] = x[j]
                        put_inputs(work, input_starts[i], input_starts[i + 1], lanes, x, step[4])
                for layer in range(depth):
                    u0, u1 = starts[layer, r0], starts[layer, r1]
                    read = starts[layer - 1, r1] if layer > 0 else column_starts[r1 - 1]
                    add_product(
                        work,
                        (table[layer, Z] + u0) * lanes,
                        work,
                        table[layer, SOURCE] * lanes,
                        weights,
                        blocks[layer, p],
                        u1 - u0,
                        lanes,
                        read,
                        u1 - u0,
                    )
                    finish_units(
                        work,
                        layer,
                        u0,
                        u1,
                        row,
                        lanes,
                        table,
                        constants,
                        vectors,
                        streams,
                        bases,
                        base_rows,
                    )
                continue
            for r in range(r0, r1):
                for layer in range(depth + 1):
                    u0, u1 = starts[layer, r0], starts[layer, r1]
                    v0, v1 = starts[layer, r], starts[layer, r + 1]
                    if layer > 0:
                        done, read = starts[layer - 1, r0], starts[layer - 1, r + 1]
                    else:
                        done, read = column_starts[r0], column_starts[r]
                    place = out + v0 - o0 if layer == depth else table[layer, Z] + v0
                    add_product(
                        work,
                        place * lanes,
                        work,
                        (table[layer, SOURCE] + done) * lanes,
                        weights,
                        blocks[layer, p] + done * (u1 - u0) + v0 - u0,
                        u1 - u0,
                        lanes,
                        read - done,
                        v1 - v0,
                    )
                    if layer < depth:
                        finish_units(
                            work,
                            layer,
                            v0,
                            v1,
                            row,
                            lanes,
                            table,
                            constants,
                            vectors,
                            streams,
                            bases,
                            base_rows,
                        )
                v0, v1 = starts[depth, r], starts[depth, r + 1]
                if direct:
                    done = column_starts[r0]
                    add_product(
                        work,
                        (out + v0 - o0) * lanes,
                        work,
                        done * lanes,
                        weights,
                        direct_blocks[p] + done * (o1 - o0) + v0 - o0,
                        o1 - o0,
                        lanes,
                        column_starts[r] - done,
                        v1 - v0,
                    )
                for i in range(feature_starts[r], feature_starts[r + 1]):
                    f = features[i]
                    x = work[(scratch + 3) * lanes : (scratch + 4) * lanes]
                    if r < prefix:
                        gather(known, f, row, lanes, x)
                    else:
                        u = work[(scratch + 4) * lanes : (scratch + 6) * lanes]
                        for part in range(parts):
                            gather(
                                noise,
                                f * parts + part,
                                row,
                                lanes,
                                u[part * lanes : (part + 1) * lanes],
                            )
                        take_step(
                            kind,
                            rule,
                            step_constants[0],
                            step_constants[1],
                            swapped,
                            work,
                            out + output_starts[i] - o0,
                            output_starts[i + 1] - output_starts[i],
                            u,
                            scratch,
                            lanes,
                            x,
                        )
                    for j in range(here):
                        values[row + j, f] = x[j]
                    put_inputs(work, input_starts[i], input_starts[i + 1], lanes, x, step[4])
