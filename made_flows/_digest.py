"""A digest of what lies in memory, of every bit of it, at the speed of memory.

It is compiled by LLVM itself, in some hundredths of a second, in every process that starts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

_LANES = 64
"""32-bit words that are taken in at once, each into a state of its own: four registers of 512 bits,
eight of 256. Fewer would wait for the multiplications."""

_LONG, _BYTE = ir.IntType(64), ir.IntType(8)
_WORDS = ir.VectorType(ir.IntType(32), _LANES)
_BLOCK = 4 * _LANES  # bytes

# Odd numbers without a pattern: a product with one can be undone.
_ODD = {32: (2654435761, 2246822519), 64: (11400714785074694791, 14029467366897019727)}
_TURN = {32: 13, 64: 31}


def _mix(builder: Any, state: Any, word: Any) -> Any:
    """Take words into states: state <- rotate(state + a * word) * b, with odd a and b.

    Of two different words, or of two different states, never the same state is made, so that a
    change of one word alone cannot be missed. The product before the rotation is what keeps
    natural changes (a sign, a factor of two) of two words from undoing each other.
    """
    kind = state.type
    bits = kind.width if kind == _LONG else kind.element.width

    def constant(value: int) -> Any:
        return ir.Constant(kind, value if kind == _LONG else [value] * _LANES)

    outer, inner = _ODD[bits]
    state = builder.add(state, builder.mul(word, constant(inner)))
    high = builder.shl(state, constant(_TURN[bits]))
    low = builder.lshr(state, constant(bits - _TURN[bits]))
    return builder.mul(builder.or_(high, low), constant(outer))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1  # views may begin anywhere
    return value


class _Writer:
    """Writes the function: variables on the stack, loops, and the one loop that has to be fast."""

    def __init__(self, module: Any) -> None:
        function = ir.Function(module, ir.FunctionType(_LONG, [_LONG, _LONG]), "digest")
        self.builder = ir.IRBuilder(function.append_basic_block())
        spans, count = function.args
        self.state, self.span, self.at = self.variable(), self.variable(), self.variable()
        self.lanes = self.builder.alloca(_WORDS)
        self.piece, self.lane = self.variable(), self.variable()
        self.set(self.state, self.number(0))
        self.each(self.span, count, lambda span: self.write_span(spans, span))
        self.builder.ret(self.get(self.state))

    def number(self, value: int) -> Any:
        return ir.Constant(_LONG, value)

    def variable(self) -> Any:
        return self.builder.alloca(_LONG)

    def get(self, variable: Any) -> Any:
        return self.builder.load(variable)

    def set(self, variable: Any, value: Any) -> None:
        self.builder.store(value, variable)

    def loop(self, condition: Callable[[], Any], body: Callable[[], None]) -> None:
        head, inside, after = (self.builder.append_basic_block() for _ in range(3))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(condition(), inside, after)
        self.builder.position_at_end(inside)
        body()
        self.builder.branch(head)
        self.builder.position_at_end(after)

    def each(self, index: Any, count: Any, body: Callable[[Any], None]) -> None:
        def once() -> None:
            body(self.get(index))
            self.set(index, self.builder.add(self.get(index), self.number(1)))

        self.set(index, self.number(0))
        self.loop(lambda: self.builder.icmp_signed("<", self.get(index), count), once)

    def write_span(self, spans: Any, span: Any) -> None:
        b = self.builder
        row = b.add(spans, b.mul(span, self.number(32)))
        first, pieces, size, step = (
            _load(b, b.add(row, self.number(8 * column)), _LONG) for column in range(4)
        )

        def write(piece: Any) -> None:
            self.write_piece(b.add(first, b.mul(piece, step)), size)

        self.each(self.piece, pieces, write)

    def write_piece(self, address: Any, size: Any) -> None:
        b = self.builder
        end = b.add(address, size)
        blocks = b.sdiv(size, self.number(_BLOCK))
        self.set(self.at, address)
        with b.if_then(b.icmp_signed(">", blocks, self.number(0))):
            self.write_blocks(address, blocks)
            self.set(self.at, b.add(address, b.mul(blocks, self.number(_BLOCK))))
            first = b.ptrtoint(self.lanes, _LONG)

            def take_lane(lane: Any) -> None:
                self.take(b.add(first, b.mul(lane, self.number(8))), _LONG)

            self.each(self.lane, self.number(_BLOCK // 8), take_lane)
        for kind in (_LONG, _BYTE):
            width = self.number(kind.width // 8)

            def fits(width: Any = width) -> Any:
                return b.icmp_signed("<=", b.add(self.get(self.at), width), end)

            def take(kind: Any = kind, width: Any = width) -> None:
                self.take(self.get(self.at), kind)
                self.set(self.at, b.add(self.get(self.at), width))

            self.loop(fits, take)

    def take(self, address: Any, kind: Any) -> None:
        """Take a word or byte at an address into the one state."""
        word = _load(self.builder, address, kind)
        word = word if kind == _LONG else self.builder.zext(word, _LONG)
        self.set(self.state, _mix(self.builder, self.get(self.state), word))

    def write_blocks(self, address: Any, blocks: Any) -> None:
        """Take blocks (at least one) into the lanes, which stay in registers."""
        b = self.builder
        before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.branch(inside)
        b.position_at_end(inside)
        index, kept = b.phi(_LONG), b.phi(_WORDS)
        words = _load(b, b.add(address, b.mul(index, self.number(_BLOCK))), _WORDS)
        taken = _mix(b, kept, words)
        following = b.add(index, self.number(1))
        # Each lane starts elsewhere, so that words that change lanes are noticed as well.
        seeds = [(lane + 1) * _ODD[32][0] % 2**32 for lane in range(_LANES)]
        for variable, start, later in (
            (index, self.number(0), following),
            (kept, ir.Constant(_WORDS, seeds), taken),
        ):
            variable.add_incoming(start, before)
            variable.add_incoming(later, inside)
        b.cbranch(b.icmp_signed("<", following, blocks), inside, after)
        b.position_at_end(after)
        b.store(taken, self.lanes)


def _compile() -> tuple[Any, Callable[[int, int], int]]:
    if binding.llvm_version_info[0] < 20:  # later ones do so themselves, and refuse to be asked
        binding.initialize()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = ir.Module()
    _Writer(module)
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), target)
    engine.finalize_object()
    # A call that keeps the interpreter's lock: no other thread can free the memory meanwhile.
    kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_int64, ctypes.c_int64)
    return engine, kind(engine.get_function_address("digest"))


_ENGINE, _RUN = _compile()  # the code lives as long as the engine


def digest(spans: ctypes.Array[ctypes.c_int64]) -> int:
    """Hash all bits of some spans of memory: practically any change gives another number.

    A change of one word changes it for certain. One of several words goes unnoticed only by
    chance, in less than one case in 2^32.

    Args:
        spans: address, number of pieces, bytes of a piece, bytes from one piece to the next, of
            each span, one after the other. Addresses need not be aligned.
    """
    return _RUN(ctypes.addressof(spans), len(spans) // 4)
