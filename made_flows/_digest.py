"""A digest of what lies in memory, of every bit of it, at the speed of memory.

It is compiled by LLVM itself, in some hundredths of a second, in every process that starts.
"""

from __future__ import annotations

import ctypes
from array import array
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
    """Write the function that takes spans of memory, each into a state, until none are left."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [LONG]), "read")
    b = ir.IRBuilder(function.append_basic_block())
    w, [words] = Numbers(b), function.args
    state, lanes = b.alloca(LONG), b.alloca(_WORDS)
    counter = b.inttoptr(words, LONG.as_pointer())
    count, spans = (_load(b, b.add(words, LONG(8 * i)), LONG) for i in (1, 2))

    def take(address: Any, kind: Any, count: Any) -> None:
        """Take so many words or bytes from an address on into the one state."""

        def take_one(i: Any) -> None:
            word = _load(b, b.add(address, b.mul(i, LONG(kind.width // 8))), kind)
            word = word if kind == LONG else b.zext(word, LONG)
            b.store(_mix(b, b.load(state), word), state)

        w.each(count, take_one)

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

    fetch, found, done = (b.append_basic_block() for _ in range(3))
    b.branch(fetch)
    b.position_at_end(fetch)
    span = b.atomic_rmw("add", counter, LONG(1), "monotonic")
    b.cbranch(b.icmp_signed("<", span, count), found, done)
    b.position_at_end(found)
    row = b.add(spans, b.mul(span, LONG(32)))
    first, pieces, size, step = (_load(b, b.add(row, LONG(8 * i)), LONG) for i in range(4))
    b.store(LONG(0), state)
    w.each(pieces, lambda piece: take_piece(b.add(first, b.mul(piece, step)), size))
    b.store(b.load(state), b.gep(counter, [b.add(span, LONG(3))]))
    b.branch(fetch)
    b.position_at_end(done)
    b.ret_void()


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


def _compile() -> tuple[Any, int]:
    target, module = machine(), ir.Module()
    _write(module)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), target)
    engine.finalize_object()
    return engine, engine.get_function_address("read")


_ENGINE, _READ = _compile()  # the code lives as long as the engine
# A call that keeps the interpreter's lock: no other thread can free the memory meanwhile.
_read: Callable[[int], None] = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(_READ)


class Reading:
    """Hashes of all bits of some spans of memory, read by whichever threads have time for it.

    Practically any change gives other hashes. A change of one word does for certain; one of several
    words goes unnoticed only by chance, in less than one case in 2^32.

    Args:
        spans: address, number of pieces, bytes of a piece, bytes from one piece to the next, of
            each span, one after the other. Addresses need not be aligned.
    """

    __slots__ = ("_spans", "_words")

    function = _READ
    """The address of a function that reads; see :meth:`begin`."""

    def __init__(self, spans: array[int]) -> None:
        count = len(spans) // 4
        self._spans = spans
        # The first span that nobody has fetched, how many there are and where; then the hashes.
        self._words = array("q", (0, count, spans.buffer_info()[0], *(0,) * count))

    def begin(self) -> tuple[int, array[int]]:
        """Return the address of the function's argument, and what is to be kept as long.

        Any number of threads may call the function at once. All must have returned before
        :meth:`finish` is called.
        """
        words = self._words[:]
        return words.buffer_info()[0], words

    def finish(self, words: array[int] | None = None) -> array[int]:
        """Read what is left, if this was begun, and return the hash of every span."""
        words = self._words[:] if words is None else words
        _read(words.buffer_info()[0])
        return words[3:]
