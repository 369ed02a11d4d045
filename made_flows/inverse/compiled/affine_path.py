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

from numba import njit

from made_flows.inverse.compiled.compilation import Kernel
from made_flows.inverse.compiled.elementwise import exp, tanh
from made_flows.inverse.compiled.simd import inner, like, lines


@njit(
    nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True,
    fastmath={"reassoc", "contract"},
)  # fmt: skip
def _dot(w: Any, w0: Any, a: Any, a0: Any, count: Any) -> Any:
    # Not by places of the whole, whose signs Numba would check one by one.
    left, right = lines(w, w0, w0 + count, 1), lines(a, a0, a0 + count, 1)
    total = like(w[0], 0.0)
    for k in range(count):
        total += left[k] * right[k]
    return total


@inner
def _add(target: Any, t0: Any, factor: Any, w: Any, w0: Any, count: Any) -> None:
    sums, terms = lines(target, t0, t0 + count, 1), lines(w, w0, w0 + count, 1)
    for k in range(count):
        sums[k] += factor * terms[k]


def _sample(
    w: Any, table: Any, program: Any, numbers: Any, noise: Any, saved: Any, delta: Any, x: Any,
    log_det: Any, score: Any,
) -> None:  # fmt: skip
    width, d = table[1], table[2]
    zero, one = like(w[0], 0.0), like(w[0], 1.0)
    for j in range(len(log_det)):
        row, at, total = j * width, j * d, zero
        for i in range(d):
            x[at + i], score[at + i] = noise[at + i], -noise[at + i]
        for step in range(table[0]):
            t, gain, bound = table[3 + step], numbers[2 * step], numbers[2 * step + 1]
            depth, direct, z = table[t], table[t + 1], table[t + 4]
            for i in range(d):
                saved[row + z + i] = x[at + i]
            source = z
            for layer in range(depth + 1):
                q = t + 5 + 5 * layer
                units, inputs, w0, b0, to = (
                    table[q], table[q + 1], table[q + 2], table[q + 3], table[q + 4],
                )  # fmt: skip
                for u in range(units):
                    value = _dot(w, w0 + u * inputs, saved, row + source, inputs)
                    if b0 >= 0:
                        value += w[b0 + u]
                    if layer == depth and direct >= 0:
                        value += _dot(w, direct + u * d, saved, row + z, d)
                    saved[row + to + u] = value
                if layer < depth:
                    hidden = lines(saved, row + to, row + to + units, 1)
                    for u in range(units):
                        hidden[u] = tanh(hidden[u])
                source = to
            out = row + source
            for i in range(d):
                bounded = tanh(gain * saved[out + 2 * i + 1] / bound)
                scale = exp(bound * bounded)
                x[at + i] = gain * saved[out + 2 * i] + scale * saved[row + z + i]
                saved[out + 2 * i], saved[out + 2 * i + 1] = scale, gain * (one - bounded * bounded)
                total += bound * bounded
            # The score.
            for k in range(z, source):
                delta[k] = zero
            q = t + 5 + 5 * depth
            inputs, w0, below = table[q + 1], table[q + 2], table[q - 1]
            for p in range(table[t + 2], table[t + 3], 2):
                layer, u = program[p], program[p + 1]
                if layer >= 0:
                    q = t + 5 + 5 * layer
                    h = saved[row + table[q + 4] + u]
                    of_unit = delta[table[q + 4] + u] * (one - h * h)
                    _add(
                        delta,
                        table[q - 1],
                        of_unit,
                        w,
                        table[q + 2] + u * table[q + 1],
                        table[q + 1],
                    )
                else:
                    scale, slope = saved[out + 2 * u], saved[out + 2 * u + 1]
                    v = (score[at + u] - delta[z + u]) / scale
                    score[at + u] = v
                    of_raw = (v * scale * saved[row + z + u] + one) * slope
                    _add(delta, below, v * gain, w, w0 + 2 * u * inputs, inputs)
                    _add(delta, below, of_raw, w, w0 + (2 * u + 1) * inputs, inputs)
                    if direct >= 0:
                        _add(delta, z, v * gain, w, direct + 2 * u * d, d)
                        _add(delta, z, of_raw, w, direct + (2 * u + 1) * d, d)
        log_det[j] = total


def _pull(
    w: Any, table: Any, numbers: Any, saved: Any, delta: Any, of_x: Any, of_log_det: Any, of_w: Any
) -> None:
    width, d = table[1], table[2]
    zero, one = like(w[0], 0.0), like(w[0], 1.0)
    for j in range(len(of_log_det)):
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
                q = t + 5 + 5 * layer
                units, inputs, w0, b0, to = (
                    table[q], table[q + 1], table[q + 2], table[q + 3], table[q + 4],
                )  # fmt: skip
                below = table[q - 1]
                for u in range(units):
                    of_unit = delta[to + u]
                    if layer < depth:
                        h = saved[row + to + u]
                        of_unit *= one - h * h
                    elif direct >= 0:
                        _add(delta, z, of_unit, w, direct + u * d, d)
                        _add(of_w, direct + u * d, of_unit, saved, row + z, d)
                    _add(delta, below, of_unit, w, w0 + u * inputs, inputs)
                    _add(of_w, w0 + u * inputs, of_unit, saved, row + below, inputs)
                    if b0 >= 0:
                        of_w[b0 + u] += of_unit
            out = row + table[t + 5 + 5 * depth + 4]
            for i in range(d):
                of_x[at + i] = of_x[at + i] * saved[out + 2 * i] + delta[z + i]


sample = Kernel(_sample)
"""Take noise (N, D), flat, to samples, log-determinants (N,) and scores, and save what goes back.

Of masked weights, table, program, gain and bound of each transform, noise, a place for what is
saved (N * saved numbers), one for the sweep (saved numbers), and those for the results."""
pull = Kernel(_pull)
"""Take the gradient of samples (N, D), flat, which becomes that of noise, and of log-determinants
(N,) to that of weights, to which it is added."""
