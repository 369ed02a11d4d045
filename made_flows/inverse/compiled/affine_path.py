"""Affine transforms that read noise, forward with the score of the sample, and backward: compiled.

For few rows of small networks, where a call of torch takes as long as the work. A row goes through
all transforms by itself; products are sums along the rows of the weights, as they lie in memory.
The transposed system of a transform's Jacobian, by which the score passes it, is solved as the
adjoint sweep does: from the last rank to the first, each hidden unit as soon as all that reads it
is known.

The table of a chain is a list of integers: transforms, saved numbers of a row, features D; of the
triangular map at the end, where its matrix and location begin among the weights, where its noise is
saved, and whether it has units; the place of each transform's own entries; and of a transform:
hidden layers, where the weights of the direct connection begin (or -1) and where the ranges of its
rows stand, begin and end of its program, where its noise is saved; and of each of its layers:
units, inputs, where weights and biases begin (or -1), where the ranges of its rows stand, where
what it passes on is saved. A range, begin and end, has all inputs that a row of a masked matrix
reads. A program lists pairs, (hidden layer, unit) or (-1, feature), in the order of the sweep.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.elementwise import exp, tanh
from made_flows.inverse.compiled.layout import Written, numbers_of
from made_flows.inverse.compiled.simd import like, plus_product
from made_flows.inverse.compiled.threads import next_tile


class Chain(NamedTuple):
    """Transforms, but for their weights.

    Args:
        table, program: see above.
        numbers: gain and bound of every transform, then the logarithm of the determinant of units.
        fixed: origin and units, zero without.
    """

    table: Any
    program: Any
    numbers: Any
    fixed: Any


class Rows(NamedTuple):
    """Noise of rows, and the places for what is saved, samples, log-determinants and scores."""

    noise: Any
    saved: Any
    x: Any
    log_det: Any
    score: Any


class RowGradients(NamedTuple):
    """What was saved of rows; gradients of samples, log-determinants and weights."""

    saved: Any
    of_x: Any
    of_log_det: Any
    of_w: Any


def _dot(w: Any, a: Any) -> Any:
    total = like(w[0], 0.0)
    for k in range(len(w)):
        total = plus_product(total, w[k], a[k])
    return total


def _add(sums: Any, factor: Any, terms: Any) -> None:
    for k in range(len(terms)):
        sums[k] = plus_product(sums[k], factor, terms[k])


def _row(w: Any, first: int, u: int, inputs: int, read: Any) -> Any:
    """Return the weights of a unit that it reads by, in a matrix that begins at ``first``."""
    return w[first + u * inputs + read[0] : first + u * inputs + read[1]]


def _range(table: Any, ranges: int, u: int) -> Any:
    """Return begin and end of what a unit reads."""
    return table[ranges + 2 * u], table[ranges + 2 * u + 1]


def _part(values: Any, first: int, read: Any) -> Any:
    """Return those of a layer's values, which begin at ``first``, that a unit reads."""
    return values[first + read[0] : first + read[1]]


def _layer(table: Any, t: int, layer: int) -> Any:
    """Return a layer's units, inputs, weights, biases, ranges, results, and what it reads."""
    q = t + 6 + 6 * layer
    return (
        table[q], table[q + 1], table[q + 2], table[q + 3], table[q + 4], table[q + 5],
        table[q - 1],
    )  # fmt: skip


def _before(matrix: Any, i: int, d: int) -> Any:
    """Return the part of a row of a matrix (d, d) that is before the diagonal."""
    return matrix[i * d : i * d + i]


def _sample(slot: int, tiles: Any, spaces: Any, w: Any, chain: Any, rows: Any) -> None:
    table, program, numbers, fixed = chain
    noise, saved, x, log_det, score = rows
    delta = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    width, d = table[1], table[2]
    zero, one = like(w[0], 0.0), like(w[0], 1.0)
    first, here, _ = next_tile(tiles, spaces)  # all rows are one tile's
    for j in range(first, first + here):
        row, at, total = j * width, j * d, zero
        for i in range(d):
            x[at + i], score[at + i] = noise[at + i], -noise[at + i]
        for step in range(table[0]):
            t, gain, bound = table[7 + step], numbers[2 * step], numbers[2 * step + 1]
            depth, direct, of_direct, z = table[t], table[t + 1], table[t + 2], table[t + 5]
            for i in range(d):
                saved[row + z + i] = x[at + i]
            for layer in range(depth + 1):
                units, inputs, w0, b0, ranges, to, source = _layer(table, t, layer)
                for u in range(units):
                    read = _range(table, ranges, u)
                    value = _dot(_row(w, w0, u, inputs, read), _part(saved, row + source, read))
                    if b0 >= 0:
                        value += w[b0 + u]
                    if layer == depth and direct >= 0:
                        own = _range(table, of_direct, u)
                        value += _dot(_row(w, direct, u, d, own), _part(saved, row + z, own))
                    saved[row + to + u] = value
                if layer < depth:
                    hidden = saved[row + to : row + to + units]
                    for u in range(units):
                        hidden[u] = tanh(hidden[u])
            last = table[t + 11 + 6 * depth]  # where the outputs are saved
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
            for p in range(table[t + 3], table[t + 4], 2):
                layer, u = program[p], program[p + 1]
                if layer >= 0:
                    _, inputs, w0, _, ranges, to, below = _layer(table, t, layer)
                    h, read = saved[row + to + u], _range(table, ranges, u)
                    of_unit = delta[to + u] * (one - h * h)
                    _add(_part(delta, below, read), of_unit, _row(w, w0, u, inputs, read))
                else:
                    scale, slope = saved[out + 2 * u], saved[out + 2 * u + 1]
                    v = (score[at + u] - delta[z + u]) / scale
                    score[at + u] = v
                    of_raw = (v * scale * saved[row + z + u] + one) * slope
                    _, inputs, w0, _, ranges, _, below = _layer(table, t, depth)
                    for q in range(2):
                        read, factor = _range(table, ranges, 2 * u + q), v * gain
                        if q == 1:
                            factor = of_raw
                        _add(
                            _part(delta, below, read), factor, _row(w, w0, 2 * u + q, inputs, read)
                        )
                        if direct >= 0:
                            own = _range(table, of_direct, 2 * u + q)
                            _add(_part(delta, z, own), factor, _row(w, direct, 2 * u + q, d, own))
        # The triangular map.
        matrix, location, kept = w[table[3] : table[3] + d * d], table[4], row + table[5]
        for i in range(d):
            saved[kept + i] = x[at + i]
        for i in range(d):
            value = saved[kept + i] + _dot(_before(matrix, i, d), saved[kept : kept + i])
            x[at + i] = w[location + i] + exp(matrix[i * d + i]) * value
            total += matrix[i * d + i]
        for i in range(d - 1, -1, -1):
            _add(score[at : at + i], -score[at + i], _before(matrix, i, d))
            score[at + i] = score[at + i] * exp(-matrix[i * d + i])
        if table[6] != 0:
            given = fixed[d : d + d * d]
            for i in range(d):
                delta[i] = x[at + i]
            for i in range(d):
                x[at + i] = fixed[i] + given[i * d + i] * delta[i]
                x[at + i] += _dot(_before(given, i, d), delta[0:i])
            for i in range(d - 1, -1, -1):
                score[at + i] = score[at + i] / given[i * d + i]
                _add(score[at : at + i], -score[at + i], _before(given, i, d))
            total += numbers[2 * table[0]]
        log_det[j] = total


def _pull(slot: int, tiles: Any, spaces: Any, w: Any, chain: Any, rows: Any) -> None:
    table, numbers, fixed = chain.table, chain.numbers, chain.fixed
    saved, of_x, of_log_det, of_w = rows
    delta = spaces[slot * tiles.size : (slot + 1) * tiles.size]
    width, d = table[1], table[2]
    zero, one = like(w[0], 0.0), like(w[0], 1.0)
    first, here, _ = next_tile(tiles, spaces)
    for j in range(first, first + here):
        row, at = j * width, j * d
        if table[6] != 0:
            given = fixed[d : d + d * d]
            for i in range(d):  # rows below are done with when theirs comes
                _add(of_x[at : at + i], of_x[at + i], _before(given, i, d))
                of_x[at + i] = of_x[at + i] * given[i * d + i]
        matrix, location, kept = w[table[3] : table[3] + d * d], table[4], row + table[5]
        of_matrix = of_w[table[3] : table[3] + d * d]
        for i in range(d):
            before, noise = _before(matrix, i, d), saved[kept : kept + i]
            of_w[location + i] += of_x[at + i]
            of_u = of_x[at + i] * exp(matrix[i * d + i])
            of_scale = of_u * (saved[kept + i] + _dot(before, noise))
            of_matrix[i * d + i] += of_scale + of_log_det[j]
            _add(_before(of_matrix, i, d), of_u, noise)
            _add(of_x[at : at + i], of_u, before)
            of_x[at + i] = of_u
        for step in range(table[0] - 1, -1, -1):
            t, gain = table[7 + step], numbers[2 * step]
            depth, direct, of_direct, z = table[t], table[t + 1], table[t + 2], table[t + 5]
            to = table[t + 11 + 6 * depth]
            out = row + to
            for k in range(z, to):
                delta[k] = zero
            for i in range(d):
                scale, slope = saved[out + 2 * i], saved[out + 2 * i + 1]
                v = of_x[at + i]
                delta[to + 2 * i] = v * gain
                delta[to + 2 * i + 1] = (v * scale * saved[row + z + i] + of_log_det[j]) * slope
            for layer in range(depth, -1, -1):
                units, inputs, w0, b0, ranges, to, below = _layer(table, t, layer)
                for u in range(units):
                    of_unit, read = delta[to + u], _range(table, ranges, u)
                    if layer < depth:
                        h = saved[row + to + u]
                        of_unit *= one - h * h
                    elif direct >= 0:
                        own = _range(table, of_direct, u)
                        _add(_part(delta, z, own), of_unit, _row(w, direct, u, d, own))
                        _add(_row(of_w, direct, u, d, own), of_unit, _part(saved, row + z, own))
                    _add(_part(delta, below, read), of_unit, _row(w, w0, u, inputs, read))
                    _add(_row(of_w, w0, u, inputs, read), of_unit, _part(saved, row + below, read))
                    if b0 >= 0:
                        of_w[b0 + u] += of_unit
            for i in range(d):
                of_x[at + i] = of_x[at + i] * saved[out + 2 * i] + delta[z + i]


_SAMPLE, _PULL = Kernel(_sample), Kernel(_pull)


def sample(
    rows: int, space: Tensor, chain: Written, w: Tensor, noise: Tensor, *results: Tensor
) -> None:
    """Take noise (N, D) to samples, log-determinants (N,) and scores.

    Args:
        rows: N.
        space: a workspace of as many numbers as a row saves.
        chain: a :class:`Chain`.
        w: masked weights.
        noise: z.
        results: places for what is saved (N * saved numbers), samples, log-determinants, scores.
    """
    given = Rows(*map(numbers_of, (noise, *results)))
    _SAMPLE(rows, rows, len(space), 1, numbers_of(space), numbers_of(w), chain, given)


def pull(rows: int, space: Tensor, chain: Written, w: Tensor, *others: Tensor) -> None:
    """Take gradients of samples (N, D) and of log-determinants (N,) back.

    Args:
        rows: N.
        space, chain, w: as for :func:`sample`.
        others: what was saved, the gradient of samples, which becomes that of noise, that of
            log-determinants, and that of weights, to which theirs is added.
    """
    given = RowGradients(*map(numbers_of, others))
    _PULL(rows, rows, len(space), 1, numbers_of(space), numbers_of(w), chain, given)
