"""A digest of what lies in memory, of every bit of it, at the speed of memory.

It is compiled by LLVM itself, in some hundredths of a second, in every process that starts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

from made_flows._llvm import LONG, Numbers, machine

_LANES = 64
"""32-bit words that are taken in at once, each into a state of its own: four registers of 512 bits,
eight of 256. Fewer would wait for the multiplications."""

_BYTE = ir.IntType(8)
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
    bits = kind.width if kind == LONG else kind.element.width

    def constant(value: int) -> Any:
        return ir.Constant(kind, value if kind == LONG else [value] * _LANES)

    outer, inner = _ODD[bits]
    state = builder.add(state, builder.mul(word, constant(inner)))
    high = builder.shl(state, constant(_TURN[bits]))
    low = builder.lshr(state, constant(bits - _TURN[bits]))
    return builder.mul(builder.or_(high, low), constant(outer))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1  # views may begin anywhere
    return value


def _write(module: Any) -> None:
    """Write the function that takes spans of memory into one state, piece by piece."""
    function = ir.Function(module, ir.FunctionType(LONG, [LONG, LONG]), "digest")
    b = ir.IRBuilder(function.append_basic_block())
    w, (spans, count) = Numbers(b), function.args
    state, lanes = b.alloca(LONG), b.alloca(_WORDS)
    b.store(LONG(0), state)

    def take(address: Any, kind: Any, words: Any) -> None:
        """Take so many words or bytes from an address on into the one state."""

        def take_one(i: Any) -> None:
            word = _load(b, b.add(address, b.mul(i, LONG(kind.width // 8))), kind)
            word = word if kind == LONG else b.zext(word, LONG)
            b.store(_mix(b, b.load(state), word), state)

        w.each(words, take_one)

    def take_piece(address: Any, size: Any) -> None:
        blocks = b.sdiv(size, LONG(_BLOCK))
        with b.if_then(b.icmp_signed(">", blocks, LONG(0))):
            b.store(_blocks(b, address, blocks), lanes)
            take(b.ptrtoint(lanes, LONG), LONG, LONG(_BLOCK // 8))
        rest = b.srem(size, LONG(_BLOCK))
        left = b.srem(rest, LONG(8))
        end = b.add(address, size)
        take(b.sub(end, rest), LONG, b.sdiv(rest, LONG(8)))
        take(b.sub(end, left), _BYTE, left)

    def take_span(span: Any) -> None:
        row = b.add(spans, b.mul(span, LONG(32)))
        first, pieces, size, step = (_load(b, b.add(row, LONG(8 * i)), LONG) for i in range(4))
        w.each(pieces, lambda piece: take_piece(b.add(first, b.mul(piece, step)), size))

    w.each(count, take_span)
    b.ret(b.load(state))


def _blocks(b: Any, address: Any, blocks: Any) -> Any:
    """Take blocks (at least one) into lanes, which stay in registers: this loop is to be fast."""
    before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(inside)
    b.position_at_end(inside)
    index, kept = b.phi(LONG), b.phi(_WORDS)
    words = _load(b, b.add(address, b.mul(index, LONG(_BLOCK))), _WORDS)
    taken = _mix(b, kept, words)
    following = b.add(index, LONG(1))
    # Each lane starts elsewhere, so that words that change lanes are noticed as well.
    seeds = [(lane + 1) * _ODD[32][0] % 2**32 for lane in range(_LANES)]
    starts = LONG(0), ir.Constant(_WORDS, seeds)
    for variable, start, later in zip((index, kept), starts, (following, taken), strict=True):
        variable.add_incoming(start, before)
        variable.add_incoming(later, inside)
    b.cbranch(b.icmp_signed("<", following, blocks), inside, after)
    b.position_at_end(after)
    return taken


def _compile() -> tuple[Any, Callable[[int, int], int]]:
    target, module = machine(), ir.Module()
    _write(module)
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
