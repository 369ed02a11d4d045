"""The inner loop of the compiled inverse, written in vector instructions of LLVM.

The sums of a block of hidden units, for a tile of rows, are kept in registers while a loop runs
over the inputs that the units read. The rows of a tile are the lanes of the vectors, so that a
weight is one number, broadcast to all lanes. A plain Numba loop, which LLVM vectorises but does
not keep in registers, ran at 40 % of the speed on the sizes of the benchmark
(``python -m benchmarks.inverse``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

inner = njit(
    nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""Decorate a part of a kernel: it is called by compiled code alone, and allocates nothing. Told so,
the compiler takes a third less time."""


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


def block_product(units: int, vectors: int) -> Any:
    """Make an intrinsic that adds, for a block of units, products of weights and inputs.

    The intrinsic's arguments are pointers a and w, places c0, a0, w0, and stride, lanes, count: for
    unit u, lane j (of ``vectors`` vectors), a[c0 + u * lanes + j] grows by the sum over k < count
    of w[w0 + k * stride + u] * a[a0 + k * lanes + j].

    Args:
        units: units in the block; their sums and one row of inputs must fit in the registers.
        vectors: vectors of lanes.
    """

    @intrinsic
    def product(
        typingctx: Any,
        a: Any,
        c0: Any,
        a0: Any,
        w: Any,
        w0: Any,
        stride: Any,
        lanes: Any,
        count: Any,
    ) -> Any:
        signature = types.void(a, c0, a0, w, w0, stride, lanes, count)

        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            work, c0_, a0_, weights, w0_, stride_, lane_count, count_ = arguments
            element = context.get_data_type(sig.args[0].dtype)
            size = sig.args[0].dtype.bitwidth // 8
            width = VECTOR_BYTES // size
            vector = ir.VectorType(element, width)
            word = count_.type
            fast = ("contract",)  # a product and a sum may become one fused instruction

            def at(base: Any, offset: Any, kind: Any) -> Any:
                place = builder.gep(base, [offset], inbounds=True)
                return builder.bitcast(place, kind.as_pointer())

            c_start = builder.gep(work, [c0_], inbounds=True)
            a_start = builder.gep(work, [a0_], inbounds=True)
            w_start = builder.gep(weights, [w0_], inbounds=True)
            places = []
            for unit in range(units):
                row = builder.mul(lane_count, ir.Constant(word, unit))
                for part in range(vectors):
                    offset = builder.add(row, ir.Constant(word, part * width))
                    places.append(at(c_start, offset, vector))
            # Rows begin where a tile's do, not where a vector would like them to: loads and
            # stores ask for the alignment of one number only, which costs nothing here.
            starts = [builder.load(place, align=size) for place in places]

            before = builder.block
            loop = builder.append_basic_block("inputs")
            after = builder.append_basic_block("done")
            zero = ir.Constant(word, 0)
            builder.cbranch(builder.icmp_signed(">", count_, zero), loop, after)

            builder.position_at_end(loop)
            k = builder.phi(word)
            k.add_incoming(zero, before)
            # The sums are values that go round the loop, not places in memory: registers.
            sums = []
            for start in starts:
                total = builder.phi(vector)
                total.add_incoming(start, before)
                sums.append(total)
            a_row = builder.gep(a_start, [builder.mul(k, lane_count)], inbounds=True)
            w_row = builder.gep(w_start, [builder.mul(k, stride_)], inbounds=True)
            inputs = [
                builder.load(at(a_row, ir.Constant(word, part * width), vector), align=size)
                for part in range(vectors)
            ]
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            new = []
            # Input-major weights: those of the block's units for one input are neighbours.
            for unit in range(units):
                weight = builder.load(builder.gep(w_row, [ir.Constant(word, unit)], inbounds=True))
                single = builder.insert_element(
                    ir.Constant(vector, ir.Undefined), weight, ir.Constant(ir.IntType(32), 0)
                )
                spread = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)
                for part in range(vectors):
                    old = sums[unit * vectors + part]
                    scaled = builder.fmul(spread, inputs[part], flags=fast)
                    new.append(builder.fadd(old, scaled, flags=fast))
            following = builder.add(k, ir.Constant(word, 1))
            k.add_incoming(following, loop)
            for total, value in zip(sums, new, strict=True):
                total.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, count_), loop, after)

            builder.position_at_end(after)
            for start, value in zip(starts, new, strict=True):
                result = builder.phi(vector)
                result.add_incoming(start, before)
                result.add_incoming(value, loop)
            results = list(builder.block.instructions)
            for place, result in zip(places, results, strict=True):
                builder.store(result, place, align=size)
            return context.get_dummy_value()

        return signature, codegen

    return product


@intrinsic
def fill_rows(
    typingctx: Any, c: Any, c0: Any, values: Any, first: Any, count: Any, lanes: Any
) -> Any:
    """Fill row u of c, from c0 on and ``lanes`` long, with values[first + u], for u < count."""
    signature = types.void(c, c0, values, first, count, lanes)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        target = context.make_array(sig.args[0])(context, builder, arguments[0]).data
        source = context.make_array(sig.args[2])(context, builder, arguments[2]).data
        _, c0_, _, first_, count_, lanes_ = arguments
        size = sig.args[0].dtype.bitwidth // 8
        width = VECTOR_BYTES // size
        vector = ir.VectorType(context.get_data_type(sig.args[0].dtype), width)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        with cgutils.for_range(builder, count_) as loop:
            value = builder.load(
                builder.gep(source, [builder.add(first_, loop.index)], inbounds=True)
            )
            single = builder.insert_element(
                ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
            )
            spread = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)
            row = builder.add(c0_, builder.mul(loop.index, lanes_))
            step = ir.Constant(lanes_.type, width)
            with cgutils.for_range(builder, builder.sdiv(lanes_, step)) as part:
                place = builder.add(row, builder.mul(part.index, step))
                pointer = builder.gep(target, [place], inbounds=True)
                builder.store(spread, builder.bitcast(pointer, vector.as_pointer()), align=size)
        return context.get_dummy_value()

    return signature, codegen


def polynomial(*coefficients: float) -> Any:
    """Make an intrinsic that evaluates a polynomial by Horner's scheme, highest power first."""

    @intrinsic
    def evaluate(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            [value] = arguments
            total = ir.Constant(value.type, coefficients[0])
            for coefficient in coefficients[1:]:
                scaled = builder.fmul(total, value)
                total = builder.fadd(scaled, ir.Constant(value.type, coefficient))
            return total

        return x(x), codegen

    return evaluate


@intrinsic
def keep_apart(typingctx: Any) -> Any:
    """Keep LLVM from copying the function that calls this into its own callers.

    The sweeps call the same long functions from many places; copies of them take longer to
    compile and run no faster.
    """

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def split_power(typingctx: Any, shifted: Any) -> Any:
    """Split 2^n into two powers of two, for shifted = n + 1.5 * 2^(bits of the mantissa).

    Two, since n may lie a little outside the exponents that one number can have.
    """
    single = shifted == types.float32
    bits, mantissa, bias = (32, 23, 127) if single else (64, 52, 1023)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        word = ir.IntType(bits)
        real = arguments[0].type
        # The sum's low bits hold n; those of the constant itself are taken off again.
        offset = ((bias + mantissa) << mantissa) | (1 << (mantissa - 1))
        n = builder.sub(builder.bitcast(arguments[0], word), ir.Constant(word, offset))
        half = builder.ashr(n, ir.Constant(word, 1))

        def power(exponent: Any) -> Any:
            biased = builder.add(exponent, ir.Constant(word, bias))
            return builder.bitcast(builder.shl(biased, ir.Constant(word, mantissa)), real)

        pair = (power(half), power(builder.sub(n, half)))
        return context.make_tuple(builder, sig.return_type, pair)

    return types.UniTuple(shifted, 2)(shifted), codegen


@intrinsic
def split_mantissa(typingctx: Any, x: Any) -> Any:
    """Split a positive number of full precision into m * 2^n, m from sqrt(1/2) to sqrt(2)."""
    single = x == types.float32
    bits, mantissa, root = (32, 23, 0x3F3504F3) if single else (64, 52, 0x3FE6A09E667F3BCD)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        word, real = ir.IntType(bits), arguments[0].type
        pattern = builder.bitcast(arguments[0], word)
        shift = ir.Constant(word, mantissa)
        n = builder.ashr(builder.sub(pattern, ir.Constant(word, root)), shift)
        m = builder.bitcast(builder.sub(pattern, builder.shl(n, shift)), real)
        return context.make_tuple(builder, sig.return_type, (m, builder.sitofp(n, real)))

    return types.UniTuple(x, 2)(x), codegen


@intrinsic
def like(typingctx: Any, value: Any, number: Any) -> Any:
    """Return a number in the type of a value, so that one function serves both precisions."""

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[1], sig.args[1], sig.args[0])

    return value(value, number), codegen


def _array(context: Any, builder: Any, kind: Any, start: Any, shape: Sequence[Any]) -> Any:
    """Make an array of what lies from a pointer on."""
    size = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
    steps = [size] if kind.ndim == 1 else [builder.mul(shape[1], size), size]
    array = context.make_array(kind)(context, builder)
    arrayobj.populate_array(array, start, shape, steps, size, meminfo=None)
    return array._getvalue()


def _start(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Return where an array begins; a pointer is that itself."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return value


@intrinsic
def lines(typingctx: Any, work: Any, first: Any, last: Any, lanes: Any) -> Any:
    """Return rows [first, last) of a workspace, an array or a pointer, as one array.

    A slice would do the same, and take the compiler several times as long.
    """
    kind = types.Array(work.dtype, 1, "C")

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        work_, first_, last_, lanes_ = arguments
        start = _start(context, builder, sig.args[0], work_)
        start = builder.gep(start, [builder.mul(first_, lanes_)], inbounds=True)
        count = builder.mul(builder.sub(last_, first_), lanes_)
        return _array(context, builder, kind, start, [count])

    return kind(work, types.int64, types.int64, types.int64), codegen


@intrinsic
def line(typingctx: Any, work: Any, row: Any, lanes: Any) -> Any:
    """Return a row of a workspace, an array or a pointer, as an array."""
    kind = types.Array(work.dtype, 1, "C")

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        work_, row_, lanes_ = arguments
        start = _start(context, builder, sig.args[0], work_)
        start = builder.gep(start, [builder.mul(row_, lanes_)], inbounds=True)
        return _array(context, builder, kind, start, [lanes_])

    return kind(work, types.int64, types.int64), codegen


@intrinsic
def matrix(typingctx: Any, address: Any, work: Any, rows: Any, columns: Any) -> Any:
    """Return the matrix at an address, of numbers of the type that a workspace has.

    A tensor crosses into the kernels by its address: NumPy's view of it would take longer to
    make, and would pin its storage to its size for good.
    """
    kind = types.Array(work.dtype, 2, "C")

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        place, _, *shape = arguments
        start = builder.inttoptr(place, context.get_data_type(work.dtype).as_pointer())
        return _array(context, builder, kind, start, shape)

    return kind(address, work, types.int64, types.int64), codegen


@intrinsic
def call(typingctx: Any, address: Any, work: Any, numbers: Any, places: Any) -> Any:
    """Call what :func:`~made_flows.inverse.compiled.compilation.address_of` compiled.

    A call through a pointer, so that the sweeps are compiled once for all steps and activations,
    these without the sweeps, and what all sweeps share once for all of them.
    """
    signature = types.void(address, work, numbers, places)

    def codegen(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        data = [_start(context, builder, sig.args[i], arguments[i]) for i in (1, 2)]
        word = ir.IntType(64)
        rows = [
            builder.sext(value, word) if value.type.width < 64 else value
            for value in cgutils.unpack_tuple(builder, arguments[3])
        ]
        kinds = [data[0].type, data[1].type, *(word for _ in rows)]
        function = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [*data, *rows])
        return context.get_dummy_value()

    return signature, codegen
