"""Affine transforms that read noise, forward with the score of the sample, and backward: compiled.

For few rows of small networks, where a call of torch takes as long as the work. A row goes through
all transforms by itself; products are sums along the rows of the weights, as they lie in memory.
The transposed system of a transform's Jacobian, by which the score passes it, is solved as the
adjoint sweep does: from the last rank to the first, each hidden unit as soon as all that reads it
is known.

The table of a chain is a list of integers: transforms, saved numbers of a row, features D, the
place of each transform's own entries; and of a transform: hidden layers, where the weights of the
direct connection begin (or -1), begin and end of its program, where its noise is saved; and of each
of its layers: units, inputs, where weights and biases begin (or -1), where what it passes on is
saved. A program lists pairs, (hidden layer, unit) or (-1, feature), in the order of the sweep.
"""

from __future__ import annotations

from typing import Any

from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.elementwise import exp, tanh
from made_flows.inverse.compiled.simd import like, plus_product
from made_flows.inverse.compiled.threads import next_tile


def _dot(w: Any, a: Any) -> Any:
    total = like(w[0], 0.0)
    for k in range(len(w)):
        total = plus_product(total, w[k], a[k])
    return total


def _add(sums: Any, factor: Any, terms: Any) -> None:
    for k in range(len(terms)):
        sums[k] = plus_product(sums[k], factor, terms[k])


def _row(w: Any, first: int, u: int, inputs: int) -> Any:
    """Return the weights of a unit, in a matrix that begins at ``first``."""
    return w[first + u * inputs : first + u * inputs + inputs]


def _layer(table: Any, t: int, layer: int) -> Any:
    """Return a layer's units, inputs, places of weights, biases and results, and what it reads."""
    q = t + 5 + 5 * layer
    return table[q], table[q + 1], table[q + 2], table[q + 3], table[q + 4], table[q - 1]


def _sample(
    slot: int, tiles: Any, spaces: Any, w: Any, table: Any, program: Any, numbers: Any, noise: Any,
    saved: Any, x: Any, log_det: Any, score: Any,
) -> None:  # fmt: skip
    delta = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    width, d = table[1], table[2]
    zero, one = like(w[0], 0.0), like(w[0], 1.0)
    first, here, _ = next_tile(tiles, spaces)  # all rows are one tile's
    for j in range(first, first + here):
        row, at, total = j * width, j * d, zero
        for i in range(d):
            x[at + i], score[at + i] = noise[at + i], -noise[at + i]
        for step in range(table[0]):
            t, gain, bound = table[3 + step], numbers[2 * step], numbers[2 * step + 1]
            depth, direct, z = table[t], table[t + 1], table[t + 4]
            for i in range(d):
                saved[row + z + i] = x[at + i]
            for layer in range(depth + 1):
                units, inputs, w0, b0, to, source = _layer(table, t, layer)
                read = saved[row + source : row + source + inputs]
                for u in range(units):
                    value = _dot(_row(w, w0, u, inputs), read)
                    if b0 >= 0:
                        value += w[b0 + u]
                    if layer == depth and direct >= 0:
                        value += _dot(_row(w, direct, u, d), saved[row + z : row + z + d])
                    saved[row + to + u] = value
                if layer < depth:
                    hidden = saved[row + to : row + to + units]
                    for u in range(units):
                        hidden[u] = tanh(hidden[u])
            last = table[t + 9 + 5 * depth]  # where the outputs are saved
            out = row + last
            for i in range(d):
                bounded = tanh(gain * saved[out + 2 * i + 1] / bound)
                scale = exp(bound * bounded)
                x[at + i] = gain * saved[out + 2 * i] + scale * saved[row + z + i]
                saved[out + 2 * i], saved[out + 2 * i + 1] = scale, gain * (one - bounded * bounded)
                total += bound * bounded
            # The score.
            for k in range(z, last):
                delta[k] = zero
            for p in range(table[t + 2], table[t + 3], 2):
                layer, u = program[p], program[p + 1]
                if layer >= 0:
                    _, inputs, w0, _, to, below = _layer(table, t, layer)
                    h = saved[row + to + u]
                    of_unit = delta[to + u] * (one - h * h)
                    _add(delta[below : below + inputs], of_unit, _row(w, w0, u, inputs))
                else:
                    scale, slope = saved[out + 2 * u], saved[out + 2 * u + 1]
                    v = (score[at + u] - delta[z + u]) / scale
                    score[at + u] = v
                    of_raw = (v * scale * saved[row + z + u] + one) * slope
                    _, inputs, w0, _, _, below = _layer(table, t, depth)
                    sums = delta[below : below + inputs]
                    _add(sums, v * gain, _row(w, w0, 2 * u, inputs))
                    _add(sums, of_raw, _row(w, w0, 2 * u + 1, inputs))
                    if direct >= 0:
                        _add(delta[z : z + d], v * gain, _row(w, direct, 2 * u, d))
                        _add(delta[z : z + d], of_raw, _row(w, direct, 2 * u + 1, d))
        log_det[j] = total


def _pull(
    slot: int, tiles: Any, spaces: Any, w: Any, table: Any, numbers: Any, saved: Any, of_x: Any,
    of_log_det: Any, of_w: Any,
) -> None:  # fmt: skip
    delta = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    width, d = table[1], table[2]
    zero, one = like(w[0], 0.0), like(w[0], 1.0)
    first, here, _ = next_tile(tiles, spaces)
    for j in range(first, first + here):
        row, at = j * width, j * d
        for step in range(table[0] - 1, -1, -1):
            t, gain = table[3 + step], numbers[2 * step]
            depth, direct, z = table[t], table[t + 1], table[t + 4]
            to = table[t + 5 + 5 * depth + 4]
            for k in range(z, to):
                delta[k] = zero
            for i in range(d):
                scale, slope = saved[row + to + 2 * i], saved[row + to + 2 * i + 1]
                v = of_x[at + i]
                delta[to + 2 * i] = v * gain
                delta[to + 2 * i + 1] = (v * scale * saved[row + z + i] + of_log_det[j]) * slope
            for layer in range(depth, -1, -1):
                units, inputs, w0, b0, to, below = _layer(table, t, layer)
                read = saved[row + below : row + below + inputs]
                for u in range(units):
                    of_unit = delta[to + u]
                    if layer < depth:
                        h = saved[row + to + u]
                        of_unit *= one - h * h
                    elif direct >= 0:
                        _add(delta[z : z + d], of_unit, _row(w, direct, u, d))
                        _add(_row(of_w, direct, u, d), of_unit, saved[row + z : row + z + d])
                    _add(delta[below : below + inputs], of_unit, _row(w, w0, u, inputs))
                    _add(_row(of_w, w0, u, inputs), of_unit, read)
                    if b0 >= 0:
                        of_w[b0 + u] += of_unit
            out = row + table[t + 5 + 5 * depth + 4]
            for i in range(d):
                of_x[at + i] = of_x[at + i] * saved[out + 2 * i] + delta[z + i]


_SAMPLE, _PULL = Kernel(_sample), Kernel(_pull)


def sample(rows: int, space: Any, *arguments: Any) -> None:
    """Take noise (N, D), flat, to samples, log-determinants (N,) and scores.

    Args:
        rows: N.
        space: a workspace of as many numbers as a row saves.
        arguments: masked weights, table, program, gain and bound of each transform, noise, a place
            for what is saved (N * saved numbers), and those for the results.
    """
    _SAMPLE(rows, rows, len(space.value), 1, space, *arguments)


def pull(rows: int, space: Any, *arguments: Any) -> None:
    """Take gradients of samples (N, D), flat, and of log-determinants (N,) back.

    Args:
        rows: N.
        space: as for :func:`sample`.
        arguments: masked weights, table, gains and bounds, what was saved, the gradient of samples,
            which becomes that of noise, that of log-determinants, and that of weights, to which
            theirs is added.
    """
    _PULL(rows, rows, len(space.value), 1, space, *arguments)
