"""Values of LLVM that kernels are made of: numbers, arrays and tuples, and arithmetic of these.

The one place, too, that says for which processor LLVM compiles.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir

LONG, SHORT, BIT = ir.IntType(64), ir.IntType(32), ir.IntType(1)
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
FLOATS = (SINGLE, DOUBLE)


def machine() -> Any:
    """Return what LLVM compiles for: this processor, with all that it can do."""
    if binding.llvm_version_info[0] < 20:  # later ones do so themselves, and refuse to be asked
        binding.initialize()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )


@dataclass(frozen=True)
class Array:
    """An array in one piece: where it starts, and its shape."""

    start: Any
    shape: tuple[Any, ...]

    @property
    def element(self) -> Any:
        """The type of its numbers."""
        return self.start.type.pointee

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return {SINGLE: 4, DOUBLE: 8, LONG: 8}[self.element]


def emits(function: Any) -> Any:
    """Mark a function that writes instructions: it is given the writer, and values of LLVM."""
    function.emits = True
    return function


def leaves(value: Any) -> list[Any]:
    """Return the numbers and pointers that a value is made of."""
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in leaves(part)]
    if isinstance(value, Array):
        return [value.start, *value.shape]
    return [constant(value)]


def rebuild(model: Any, given: Iterator[Any]) -> Any:
    """Return a value made as another is, of other numbers and pointers."""
    if isinstance(model, tuple):
        parts = [rebuild(part, given) for part in model]
        return type(model)(*parts) if hasattr(model, "_fields") else tuple(parts)
    if isinstance(model, Array):
        return Array(next(given), tuple(next(given) for _ in model.shape))
    return next(given)


def constant(value: Any, kind: Any = None) -> Any:
    """Return a value of LLVM for a number of Python, of its own type or another."""
    if isinstance(value, ir.Value):
        return value
    if kind is None:
        kinds = {bool: BIT, int: LONG, float: DOUBLE, np.float32: SINGLE}
        kind = kinds[type(value)]
    return ir.Constant(kind, float(value) if kind in FLOATS else int(value))


class _Distinct(ir.MDValue):  # type: ignore[misc]
    """Metadata that are equal to no others, and may name themselves."""

    def descr(self, buf: list[str]) -> None:
        """Write them to a module's text."""
        operands = ", ".join(operand.get_reference() for operand in self.operands)
        buf += (f"distinct !{{ {operands} }}", "\n")


def distinct_metadata(module: Any, *, of: Any = None) -> Any:
    """Return metadata of a module that are equal to no others: of nothing, or themselves and one.

    The former name a group of loads and stores, the latter a loop.
    """
    found = _Distinct(module, (), str(len(module.metadata)))
    found.operands = () if of is None else (found, of)
    return found


def begin_loop(
    b: Any, first: Any, last: Any, step: int, *, told: Any = None
) -> tuple[Any, Any, Any]:
    """Begin a loop over a range: return the number, where to go on, and what comes after.

    What LLVM is told of the loop are metadata.
    """
    before = b.block
    head, inside, again, after = (b.append_basic_block() for _ in range(4))
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(LONG)
    i.add_incoming(constant(first), before)
    b.cbranch(b.icmp_signed("<" if step > 0 else ">", i, constant(last)), inside, after)
    with b.goto_block(again):
        i.add_incoming(b.add(i, LONG(step), flags=("nsw",)), again)
        back = b.branch(head)
        if told is not None:
            back.set_metadata("llvm.loop", told)
    b.position_at_end(inside)
    return i, again, after


class Numbers:
    """Writes instructions that compute numbers, where a builder stands."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def cast(self, value: Any, kind: Any) -> Any:
        """Return a number as one of another type."""
        if not isinstance(value, ir.Value):
            return constant(value, kind)
        if value.type == kind:
            return value
        before, b = value.type, self.builder
        if before == BIT:
            return b.zext(value, kind) if kind == LONG else b.uitofp(value, kind)
        if before == LONG and kind in FLOATS:
            return b.sitofp(value, kind)
        if before in FLOATS and kind in FLOATS:
            return b.fptrunc(value, kind) if kind == SINGLE else b.fpext(value, kind)
        raise TypeError(f"Expected a number that can be {kind}; got {before}")

    def arithmetic(self, sign: str, left: Any, right: Any) -> Any:
        """Return the sum (+), difference, product, quotient (/, //) or remainder of numbers."""
        if not isinstance(left, ir.Value) and not isinstance(right, ir.Value):
            return _FOLD[sign](left, right)
        kind = self.common(left, right)
        if sign == "/" and kind == LONG:
            kind = DOUBLE
        a, b = self.cast(left, kind), self.cast(right, kind)
        if kind in FLOATS:
            return getattr(
                self.builder, {"+": "fadd", "-": "fsub", "*": "fmul", "/": "fdiv"}[sign]
            )(a, b)
        if sign in "+-*":
            name = {"+": "add", "-": "sub", "*": "mul"}[sign]
            return getattr(self.builder, name)(a, b, flags=("nsw",))
        # As in Python, quotients are rounded down, and remainders have the divisor's sign.
        rest, zero = self.builder.srem(a, b), ir.Constant(LONG, 0)
        apart = self.builder.icmp_signed("<", self.builder.xor(rest, b), zero)
        apart = self.builder.and_(apart, self.builder.icmp_signed("!=", rest, zero))
        if sign == "%":
            return self.builder.select(apart, self.builder.add(rest, b), rest)
        return self.builder.sub(self.builder.sdiv(a, b), self.builder.zext(apart, LONG))

    def common(self, left: Any, right: Any) -> Any:
        """Return the type in which two numbers meet."""
        kinds = {constant(value).type for value in (left, right)}
        kinds = {LONG if kind == BIT else kind for kind in kinds}
        return kinds.pop() if len(kinds) == 1 else DOUBLE

    def compare(self, sign: str, left: Any, right: Any) -> Any:
        """Return whether a comparison of two numbers holds."""
        kind = self.common(left, right)
        a, b = self.cast(left, kind), self.cast(right, kind)
        if kind == LONG:
            return self.builder.icmp_signed(sign, a, b)
        compared = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
        return compared(sign, a, b)

    def intrinsic(self, name: str, *values: Any) -> Any:
        """Call a function of LLVM's, or of C's, to a number of the first value's type."""
        kind = ir.FunctionType(values[0].type, [value.type for value in values])
        module = self.builder.module
        known = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(known, values)

    def each(self, count: Any, body: Callable[[Any], None]) -> None:
        """Write a loop over the numbers below a count."""
        i, again, after = begin_loop(self.builder, 0, count, 1)
        body(i)
        self.builder.branch(again)
        self.builder.position_at_end(after)


_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod, "**": operator.pow,
}  # fmt: skip


@emits
def _len(_: Numbers, array: Array) -> Any:
    return array.shape[0]


@emits
def _abs(w: Numbers, value: Any) -> Any:
    return w.intrinsic(f"llvm.fabs.{'f32' if value.type == SINGLE else 'f64'}", value)


@emits
def _sqrt(w: Numbers, value: Any) -> Any:
    return w.intrinsic(f"llvm.sqrt.{'f32' if value.type == SINGLE else 'f64'}", value)


@emits
def _erf(w: Numbers, value: Any) -> Any:
    return w.intrinsic("erff" if value.type == SINGLE else "erf", value)


@emits
def _int(w: Numbers, value: Any) -> Any:
    return w.builder.fptosi(value, LONG) if value.type in FLOATS else w.cast(value, LONG)


def _best(sign: str) -> Any:
    @emits
    def best(w: Numbers, first: Any, second: Any) -> Any:
        kind = w.common(first, second)
        a, b = w.cast(first, kind), w.cast(second, kind)
        return w.builder.select(w.compare(sign, b, a), b, a)

    return best


BUILTINS: dict[Any, Any] = {
    len: _len, abs: _abs, int: _int, min: _best("<"), max: _best(">"), math.sqrt: _sqrt,
    math.erf: _erf,
}  # fmt: skip
