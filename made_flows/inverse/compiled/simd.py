"""What kernels do by instructions of LLVM's own choosing: block products, rows, numbers' bits.

The inner loop of the kernels is written in vector instructions. The sums of a block of hidden
units, for a tile of rows, are kept in registers while a loop runs over the inputs that the units
read. The rows of a tile are the lanes of the vectors, so that a weight is one number, broadcast to
all lanes. A plain loop, which LLVM vectorises but does not keep in registers, ran at 40 % of the
speed on the sizes of the benchmark (``python -m benchmarks.inverse``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from made_flows._llvm import (
    LONG,
    SINGLE,
    Array,
    Numbers,
    constant,
    emits,
    leaves,
)


def _host() -> tuple[int, int]:
    """Return bytes in a vector register of this machine, and sums that fit in its registers.

    Of 32 registers (16 with AVX2 and SSE) some are needed for the inputs and the broadcast weight:
    24 (12) may hold sums.
    """
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 24
    if features.get("avx2"):
        return 32, 12
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        return 16, 24
    return 16, 12


VECTOR_BYTES, ACCUMULATORS = _host()

VECTORS = 4 if ACCUMULATORS >= 24 else 3
"""Vectors of lanes in a tile at most. The weight of a unit is used once for each, but sums, a row
of inputs and the weight must fit in the registers: of 16, three times four sums, not four times
three, which with AVX2 takes 1.3 times as long."""


def _spread(b: Any, number: Any, vector: Any) -> Any:
    """Return a vector all of whose lanes are one number."""
    nothing, places = ir.Constant(vector, ir.Undefined), ir.VectorType(ir.IntType(32), vector.count)
    single = b.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return b.shuffle_vector(single, nothing, ir.Constant(places, [0] * vector.count))


def _vector_at(b: Any, base: Any, offset: Any, vector: Any) -> Any:
    """Return the place of a vector, so many numbers after another place."""
    return b.bitcast(b.gep(base, [constant(offset)], inbounds=True), vector.as_pointer())


def _registers(b: Any, starts: list[Any]) -> list[Any]:
    """Begin sums with these vectors: LLVM keeps those of a loop of nothing else in registers."""
    with b.goto_entry_block():
        sums = [b.alloca(start.type) for start in starts]
    for start, total in zip(starts, sums, strict=True):
        b.store(start, total)
    return sums


def _add_products(b: Any, sums: list[Any], pairs: list[Any]) -> None:
    """Add to every sum the product of a pair, which may become one instruction with the sum."""
    fast = ("contract",)
    for total, pair in zip(sums, pairs, strict=True):
        b.store(b.fadd(b.load(total), b.fmul(*pair, flags=fast), flags=fast), total)


def _accumulate(
    w: Numbers, places: list[Any], size: int, count: Any, terms: Callable[[Any], list[Any]]
) -> None:
    """Add to vectors in memory, in turn, as many terms as there are inputs.

    Args:
        w: writes it.
        places: of the vectors.
        size: bytes of a number.
        count: number of inputs k.
        terms: returns for k what is added to each vector, a weight and a value to multiply.
    """
    b = w.builder
    # Rows begin where a tile's do, not where a vector would like them to: loads and stores ask for
    # the alignment of one number only, which costs nothing here.
    sums = _registers(b, [b.load(place, align=size) for place in places])
    w.each(count, lambda k: _add_products(b, sums, terms(k)))
    for place, total in zip(places, sums, strict=True):
        b.store(b.load(total), place, align=size)


def block_product(units: int, vectors: int, *, transposed: bool = False) -> Any:
    """Make an intrinsic that adds, for a block of units, products of weights and inputs.

    The intrinsic's arguments are pointers a and w, places c0, a0, w0, and stride, lanes, count: for
    unit u, lane j (of ``vectors`` vectors), a[c0 + u * lanes + j] grows by the sum over k < count
    of w[w0 + k * stride + u] * a[a0 + k * lanes + j].

    Args:
        units: units in the block; their sums and one row of inputs must fit in the registers.
        vectors: vectors of lanes.
        transposed: whether the weights are those of w[w0 + u * stride + k].
    """

    @emits
    def product(
        w: Numbers, a: Any, c0: Any, a0: Any, weights: Any, w0: Any, stride: Any, lanes: Any,
        count: Any,
    ) -> None:  # fmt: skip
        b, size = w.builder, a.itemsize
        width = VECTOR_BYTES // size
        vector = ir.VectorType(a.element, width)
        c_start = b.gep(a.start, [c0], inbounds=True)
        a_start = b.gep(a.start, [a0], inbounds=True)
        w_start = b.gep(weights.start, [w0], inbounds=True)
        rows = [b.gep(c_start, [b.mul(lanes, constant(unit))]) for unit in range(units)]
        parts = [part * width for part in range(vectors)]
        places = [_vector_at(b, row, part, vector) for row in rows for part in parts]

        def terms(k: Any) -> list[Any]:
            a_row = b.gep(a_start, [b.mul(k, lanes)], inbounds=True)
            w_row = b.gep(w_start, [k if transposed else b.mul(k, stride)], inbounds=True)
            inputs = [b.load(_vector_at(b, a_row, part, vector), align=size) for part in parts]
            # Input-major weights: those of the block's units for one input are neighbours.
            apart = [constant(u) for u in range(units)]
            if transposed:
                apart = [b.mul(stride, place) for place in apart]
            own = [b.load(b.gep(w_row, [place], inbounds=True)) for place in apart]
            every = [_spread(b, weight, vector) for weight in own]
            return [(weight, value) for weight in every for value in inputs]

        _accumulate(w, places, size, count, terms)

    return product


def unit_product(size: int) -> Any:
    """Make an intrinsic that adds products for units whose weights of one input take some bytes.

    The intrinsic's arguments are those of :func:`block_product`'s but for the lanes, of which there
    is one; last, how many units there are, which may be fewer: what is read after them is thrown
    away. An addition waits for the one before it, so that several sums, of every fourth input say,
    grow side by side: eight registers of them, if that is four at most.

    Args:
        size: bytes of the units' weights of one input.
    """
    chains = max(1, min(4, 8 * VECTOR_BYTES // size))

    @emits
    def product(
        w: Numbers, a: Any, c0: Any, a0: Any, weights: Any, w0: Any, stride: Any, count: Any,
        units: Any,
    ) -> None:  # fmt: skip
        b, vector = w.builder, ir.VectorType(a.element, size // a.itemsize)
        target = _vector_at(b, a.start, c0, vector)
        zero = ir.Constant(vector, [0.0] * vector.count)
        before = b.load(target, align=a.itemsize)
        sums = _registers(b, [before] + [zero] * (chains - 1))

        def term(k: Any) -> Any:
            place = _vector_at(b, weights.start, b.add(w0, b.mul(k, stride)), vector)
            value = b.load(b.gep(a.start, [b.add(a0, k)], inbounds=True))
            return b.load(place, align=a.itemsize), _spread(b, value, vector)

        def add_terms(i: Any) -> None:
            first = b.mul(i, constant(chains))
            _add_products(b, sums, [term(b.add(first, constant(j))) for j in range(chains)])

        rounds = b.sdiv(count, constant(chains))
        w.each(rounds, add_terms)
        done = b.mul(rounds, constant(chains))
        w.each(b.sub(count, done), lambda i: _add_products(b, sums[:1], [term(b.add(done, i))]))
        first, *others = (b.load(total) for total in sums)
        places = ir.VectorType(LONG, vector.count)
        own = b.icmp_signed(
            "<", ir.Constant(places, [*range(vector.count)]), _spread(b, constant(units), places)
        )
        total = b.select(own, functools.reduce(b.fadd, others, first), before)
        b.store(total, target, align=a.itemsize)

    return product


def row_products(units: int, vectors: int, most: int) -> Any:
    """Make an intrinsic that sums products of two rows over the rows of a batch.

    The intrinsic's arguments are an array, places c0 and a0 in the first tile, inputs, lanes, rows,
    size and count, and an array of sums. Each of ``count`` tiles has ``size`` numbers, and as many
    of its lanes as there are ``rows`` count. For unit u the row begins at c0 + u * lanes, as units'
    rows do; what it is multiplied with was turned: the inputs of one row of the batch begin at a0,
    those of the next after so many ``inputs``. The sum of unit u and input k grows by that of all
    products, at u * (numbers in ``most`` vectors) + k; what is read after the inputs makes sums
    that mean nothing.

    Args:
        units: units in the block; their sums and one row of inputs must fit in the registers.
        vectors: vectors of inputs.
        most: vectors that there may be.
    """

    @emits
    def product(
        w: Numbers, a: Any, c0: Any, a0: Any, inputs: Any, lanes: Any, rows: Any, size: Any,
        count: Any, found: Any,
    ) -> None:  # fmt: skip
        b, width = w.builder, VECTOR_BYTES // a.itemsize
        vector = ir.VectorType(a.element, width)
        zero = ir.Constant(vector, [0.0] * width)
        sums = _registers(b, [zero] * (units * vectors))

        def add(tile: Any) -> None:
            start = b.gep(a.start, [b.mul(tile, size)], inbounds=True)
            left = [b.gep(start, [b.add(c0, b.mul(lanes, constant(u)))]) for u in range(units)]
            right = b.gep(start, [constant(a0)], inbounds=True)

            def add_row(j: Any) -> None:
                row = b.gep(right, [b.mul(j, inputs)], inbounds=True)
                places = [_vector_at(b, row, part * width, vector) for part in range(vectors)]
                values = [b.load(place, align=a.itemsize) for place in places]
                deltas = [b.load(b.gep(unit, [j], inbounds=True)) for unit in left]
                spread = [_spread(b, delta, vector) for delta in deltas]
                _add_products(b, sums, [(each, value) for each in spread for value in values])

            w.each(rows, add_row)

        w.each(count, add)
        for number, total in enumerate(sums):
            unit, part = divmod(number, vectors)
            place = _vector_at(b, found.start, (unit * most + part) * width, vector)
            before = b.load(place, align=a.itemsize)
            b.store(b.fadd(before, b.load(total)), place, align=a.itemsize)

    return product


@emits
def room(w: Numbers, work: Array, count: int) -> Array:
    """Return so many numbers of a workspace's type, which the calling function has for itself."""
    with w.builder.goto_entry_block():
        start = w.builder.alloca(work.element, constant(count))
    return Array(start, (constant(count),))


@emits
def fill_rows(w: Numbers, c: Any, c0: Any, values: Any, first: Any, count: Any, lanes: Any) -> None:
    """Fill row u of c, from c0 on and ``lanes`` long, with values[first + u], for u < count."""
    b, width = w.builder, VECTOR_BYTES // c.itemsize
    vector = ir.VectorType(c.element, width)

    def fill(u: Any) -> None:
        spread = _spread(b, b.load(b.gep(values.start, [b.add(first, u)], inbounds=True)), vector)
        row = b.gep(c.start, [b.add(c0, b.mul(u, lanes))], inbounds=True)

        def store(part: Any) -> None:
            place = _vector_at(b, row, b.mul(part, constant(width)), vector)
            b.store(spread, place, align=c.itemsize)

        w.each(b.sdiv(lanes, constant(width)), store)

    w.each(count, fill)


def polynomial(*coefficients: float) -> Any:
    """Make a function that evaluates a polynomial by Horner's scheme, highest power first."""

    @emits
    def evaluate(w: Numbers, x: Any) -> Any:
        total = ir.Constant(x.type, coefficients[0])
        for coefficient in coefficients[1:]:
            scaled = w.builder.fmul(total, x)
            total = w.builder.fadd(scaled, ir.Constant(x.type, coefficient))
        return total

    return evaluate


@emits
def keep_apart(w: Numbers) -> None:
    """Keep LLVM from copying the function that calls this into its own callers.

    The sweeps call the same long functions from many places; copies of them take longer to
    compile and run no faster.
    """
    w.builder.function.attributes.add("noinline")


@emits
def split_power(w: Numbers, shifted: Any) -> Any:
    """Split 2^n into two powers of two, for shifted = n + 1.5 * 2^(bits of the mantissa).

    Two, since n may lie a little outside the exponents that one number can have.
    """
    b, real = w.builder, shifted.type
    bits, mantissa, bias = (32, 23, 127) if real == SINGLE else (64, 52, 1023)
    word = ir.IntType(bits)
    # The sum's low bits hold n; those of the constant itself are taken off again.
    offset = ((bias + mantissa) << mantissa) | (1 << (mantissa - 1))
    n = b.sub(b.bitcast(shifted, word), ir.Constant(word, offset))
    half = b.ashr(n, ir.Constant(word, 1))

    def power(exponent: Any) -> Any:
        biased = b.add(exponent, ir.Constant(word, bias))
        return b.bitcast(b.shl(biased, ir.Constant(word, mantissa)), real)

    return power(half), power(b.sub(n, half))


@emits
def split_mantissa(w: Numbers, x: Any) -> Any:
    """Split a positive number of full precision into m * 2^n, m from sqrt(1/2) to sqrt(2)."""
    b, real = w.builder, x.type
    single = real == SINGLE
    bits, mantissa, root = (32, 23, 0x3F3504F3) if single else (64, 52, 0x3FE6A09E667F3BCD)
    word = ir.IntType(bits)
    pattern, shift = b.bitcast(x, word), ir.Constant(word, mantissa)
    n = b.ashr(b.sub(pattern, ir.Constant(word, root)), shift)
    m = b.bitcast(b.sub(pattern, b.shl(n, shift)), real)
    return m, b.sitofp(n, real)


@emits
def like(w: Numbers, value: Any, number: Any) -> Any:
    """Return a number in the type of a value, so that one function serves both precisions."""
    return w.cast(number, value.type)


@emits
def plus_product(w: Numbers, total: Any, a: Any, b: Any) -> Any:
    """Add a product, in whatever order sums are fastest."""
    product = w.builder.fmul(a, b, flags=("contract",))
    return w.builder.fadd(total, product, flags=("reassoc", "contract"))


@emits
def long(w: Numbers, number: Any) -> Any:
    """Return a short integer as one of the kind that places are."""
    return w.builder.sext(number, LONG)


@emits
def lines(w: Numbers, work: Array, first: Any, last: Any, lanes: Any) -> Array:
    """Return rows [first, last) of a workspace as one array."""
    start = w.builder.gep(work.start, [constant(w.arithmetic("*", first, lanes))], inbounds=True)
    count = w.arithmetic("*", w.arithmetic("-", last, first), lanes)
    return Array(start, (constant(count),))


@emits
def line(w: Numbers, work: Array, row: Any, lanes: Any) -> Array:
    """Return a row of a workspace as an array."""
    start = w.builder.gep(work.start, [constant(w.arithmetic("*", row, lanes))], inbounds=True)
    return Array(start, (constant(lanes),))


@emits
def adjacent_lines(
    w: Numbers, work: Array, first: Any, lanes: Any, count: int
) -> tuple[Array, ...]:
    """Return so many rows of a workspace, from one on, as arrays."""
    return tuple(line(w, work, w.arithmetic("+", first, i), lanes) for i in range(count))


@emits
def matrix(w: Numbers, address: Any, work: Array, rows: Any, columns: Any) -> Array:
    """Return the matrix at an address, of numbers of the type that a workspace has.

    A tensor crosses into the kernels by its address: NumPy's view of it would take longer to
    make, and would pin its storage to its size for good.
    """
    start = w.builder.inttoptr(address, work.element.as_pointer())
    return Array(start, (constant(rows), constant(columns)))


@emits
def fetch(w: Numbers, counter: Any, count: Any) -> Any:
    """Add to the number at an address, which other threads may do too; what it was is returned."""
    place = w.builder.inttoptr(counter, LONG.as_pointer())
    return w.builder.atomic_rmw("add", place, constant(count), "monotonic")


@emits
def call(w: Numbers, address: Any, work: Array, numbers: Array, places: Any) -> None:
    """Call what :func:`~made_flows.inverse.compiled.compilation.address_of` compiled.

    A call through a pointer, so that the sweeps are compiled once for all steps and activations,
    these without the sweeps, and what all sweeps share once for all of them.
    """
    given = [work.start, numbers.start, *leaves(tuple(places))]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
    w.builder.call(w.builder.inttoptr(address, kind.as_pointer()), given)
