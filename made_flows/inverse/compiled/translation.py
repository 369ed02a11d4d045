"""Kernels as LLVM code: functions of plain Python, translated statement by statement.

A compiler of Python at large, such as Numba, has to infer types, and optimises every function for
itself and again in each caller: eight seconds for a first sample. Here a function is walked once,
with the values of LLVM that it is given, so that types are known; LLVM optimises a kernel and what
it calls together, once: one second.

What is understood: integers, numbers of both precisions, arrays, tuples and named tuples of these;
assignments, arithmetic, comparisons, ``if``, ``while``, ``return``; ``for`` over tuples and ranges,
:func:`independent` ones too; calls of functions that are understood, and of those marked by
``emits``, which write instructions themselves. Integers are of 64 bits; a name keeps its type; an
index lies within its array; ``and`` and ``or`` compute both sides, and so does a choice between
names, or items by name. A function that returns a value does so in its last statement. Anything
else is a ``TypeError`` that names the line.
"""

from __future__ import annotations

import ast
import builtins
import linecache
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

from llvmlite import ir

from made_flows._llvm import (
    BIT,
    BUILTINS,
    FLOATS,
    Array,
    Numbers,
    begin_loop,
    constant,
    distinct_metadata,
    leaves,
    rebuild,
)


def _made_of(value: Any) -> Any:
    """Return a key of how a value is made."""
    if isinstance(value, tuple):
        return (type(value), *map(_made_of, value))
    if isinstance(value, Array):
        return (str(value.start.type), len(value.shape))
    return str(constant(value).type)


@lru_cache(maxsize=64)
def _functions(file: str, lines: tuple[str, ...]) -> dict[tuple[str, int], ast.FunctionDef]:
    tree = ast.parse("".join(lines), file)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        (node.name, line): node
        for node in found
        for line in (node.lineno, *(decorator.lineno for decorator in node.decorator_list))
    }


def _tree_of(function: Any) -> ast.FunctionDef:
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        raise OSError(f"Expected the source of {function.__qualname__}; got none")
    return _functions(code.co_filename, tuple(lines))[code.co_name, code.co_firstlineno]


def _is_plain(node: ast.AST) -> bool:
    """Tell whether something can be computed in vain: a name, or a number at a place by name."""
    plain = (ast.Name, ast.Constant, ast.Subscript, ast.Load)
    return all(isinstance(part, plain) for part in ast.walk(node))


def independent(count: int) -> range:
    """Return the range of a loop of whose iterations none reads what another one writes.

    LLVM need then not ask, each time that it comes by, whether any two of its arrays overlap: for
    a tile of few lanes and many rows that would take longer than the loop.
    """
    return range(count)


class Program:
    """A module of LLVM, and the functions that are in it already.

    Attributes:
        group: metadata of what independent loops load and store.
    """

    def __init__(self) -> None:
        self.module = ir.Module()
        self.group = distinct_metadata(self.module)
        self._told = self.module.add_metadata(["llvm.loop.parallel_accesses", self.group])
        self._functions: dict[Any, Any] = {}

    def independent_loop(self) -> Any:
        """Return what LLVM is told of a loop whose loads and stores are of the group."""
        return distinct_metadata(self.module, of=self._told)

    def function(self, function: Any, arguments: Sequence[Any]) -> Any:
        """Return a function that returns nothing, translated for arguments such as these."""
        key = (function, _made_of(tuple(arguments)))
        found = self._functions.get(key)
        if found is None:
            kinds = [leaf.type for leaf in leaves(tuple(arguments))]
            name = self.module.get_unique_name(function.__name__)
            found = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
            found.linkage = "internal"
            self._functions[key] = found
            builder = ir.IRBuilder(found.append_basic_block())
            Writer(self, builder, function, rebuild(tuple(arguments), iter(found.args))).write()
        return found


class Writer(Numbers):
    """Writes what one function computes."""

    def __init__(
        self,
        program: Program,
        builder: Any,
        function: Any,
        arguments: Sequence[Any],
        *,
        independent: bool = False,
    ) -> None:
        super().__init__(builder)
        self.program, self._function = program, function
        self._independent = independent  # whether this is within a loop that is
        self._tree = _tree_of(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._known = {**function.__globals__, **{name: c.cell_contents for name, c in cells}}
        names = [argument.arg for argument in self._tree.args.args]
        stored = Counter(
            node.id
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        )
        stored.update(names)
        # The others are bound once, and are values; loops bind theirs again and again.
        targets = [node.target for node in ast.walk(self._tree) if isinstance(node, ast.For)]
        looped = {target.id for target in targets if isinstance(target, ast.Name)}
        self._changing = {name for name, count in stored.items() if count > 1} - looped
        self._values: dict[str, Any] = {}
        self._slots: dict[str, tuple[Any, list[Any]]] = {}
        self._loops: list[tuple[Any, Any]] = []
        self._result: Any = None
        for name, value in zip(names, arguments, strict=True):
            self._bind(name, value)

    def write(self) -> Any:
        """Write the function, and return what it returns."""
        self._run(self._tree.body)
        if self._result is None and not self.builder.block.is_terminated:
            self.builder.ret_void()
        return self._result

    # ------------------------------------------------------------------ names and places

    def _bind(self, name: str, value: Any) -> None:
        if name not in self._changing:
            self._values[name] = value
            return
        parts = leaves(value)
        if name not in self._slots:
            with self.builder.goto_entry_block():
                self._slots[name] = (value, [self.builder.alloca(part.type) for part in parts])
        for slot, part in zip(self._slots[name][1], parts, strict=True):
            if part.type != slot.type.pointee:
                raise TypeError(f"Expected {name} to keep its type; got {part.type}")
            self.builder.store(part, slot)

    def _assign(self, target: Any, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            for part, own in zip(target.elts, value, strict=True):
                self._assign(part, own)
        elif isinstance(target, ast.Name):
            self._bind(target.id, value)
        else:
            place = self._place(self._value(target.value), target.slice)
            if isinstance(place, Array):
                self.each(place.shape[0], lambda i: self._store(value, self._at(place.start, i)))
            else:
                self._store(value, place)

    def _store(self, value: Any, place: Any) -> None:
        self._group(self.builder.store(self.cast(value, place.type.pointee), place))

    def _load(self, place: Any) -> Any:
        """Return the number at a place.

        It is "frozen", which changes no number. Of a choice between one as it was loaded and
        another, stored where the one stands, LLVM makes a store of some lanes alone, which takes
        AMD's processors twenty times as long as a whole one.
        """
        value = self._group(self.builder.load(place))
        if value.type not in FLOATS:
            return value
        frozen = ir.Instruction(self.builder.block, value.type, "freeze", [value])
        self.builder._insert(frozen)
        return frozen

    def _group(self, access: Any) -> Any:
        if self._independent:
            access.set_metadata("llvm.access.group", self.program.group)
        return access

    def _at(self, start: Any, offset: Any) -> Any:
        return self.builder.gep(start, [constant(offset)], inbounds=True)

    def _place(self, array: Array, index: ast.expr) -> Any:
        """Return where a number of an array is, or the part of it that is meant."""
        if isinstance(index, ast.Slice):
            first = 0 if index.lower is None else self._value(index.lower)
            last = array.shape[0] if index.upper is None else self._value(index.upper)
            shape = (constant(self.arithmetic("-", last, first)),)
            return Array(self._at(array.start, first), shape)
        indices = index.elts if isinstance(index, ast.Tuple) else [index]
        offset: Any = 0
        for axis, size in enumerate(array.shape):
            at = self._value(indices[axis]) if axis < len(indices) else 0
            offset = self.arithmetic("+", self.arithmetic("*", offset, size), at)
        place = self._at(array.start, offset)
        rest = array.shape[len(indices) :]
        return Array(place, rest) if rest else place

    # ------------------------------------------------------------------ statements

    def _run(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            if self.builder.block.is_terminated:
                return
            self._visit("_do_", node)

    def _visit(self, prefix: str, node: ast.AST) -> Any:
        visit = getattr(self, prefix + type(node).__name__.lower(), None)
        try:
            if visit is None:
                raise TypeError(f"Expected what kernels are made of; got {type(node).__name__}")
            return visit(node)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            if getattr(error, "located", False):
                raise
            line: Any = getattr(node, "lineno", 0)
            told = TypeError(f"{self._function.__code__.co_filename}:{line}: {error}")
            told.located = True  # type: ignore[attr-defined]
            raise told from error

    def _value(self, node: ast.AST) -> Any:
        return self._visit("_of_", node)

    def _test(self, node: ast.AST) -> Any:
        """Return whether a condition holds: a bit, or a constant."""
        value = self._value(node)
        known = not isinstance(value, ir.Value) or value.type == BIT
        return value if known else self.compare("!=", value, 0)

    def _do_expr(self, node: ast.Expr) -> None:
        self._value(node.value)

    def _do_assign(self, node: ast.Assign) -> None:
        self._assign(node.targets[0], self._value(node.value))

    def _do_augassign(self, node: ast.AugAssign) -> None:
        sign = _SIGNS[type(node.op)]
        if isinstance(node.target, ast.Name):
            before = self._of_name(node.target)
            self._bind(node.target.id, self.arithmetic(sign, before, self._value(node.value)))
            return
        target: Any = node.target
        place = self._place(self._value(target.value), target.slice)
        before = self._load(place)
        self._store(self.arithmetic(sign, before, self._value(node.value)), place)

    def _do_return(self, node: ast.Return) -> None:
        if node.value is None:
            self.builder.ret_void()
            return
        if node is not self._tree.body[-1]:
            raise TypeError("Expected a value to be returned by the last statement; got an earlier")
        self._result = self._value(node.value)

    def _do_if(self, node: ast.If) -> None:
        test = self._test(node.test)
        if not isinstance(test, ir.Value):
            self._run(node.body if test else node.orelse)
        elif node.orelse:
            with self.builder.if_else(test) as (then, otherwise):
                with then:
                    self._run(node.body)
                with otherwise:
                    self._run(node.orelse)
        else:
            with self.builder.if_then(test):
                self._run(node.body)

    def _do_while(self, node: ast.While) -> None:
        b = self.builder
        head, inside, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(constant(self._test(node.test)), inside, after)
        b.position_at_end(inside)
        self._loop(node.body, head, after)

    def _loop(self, body: Sequence[ast.stmt], again: Any, after: Any) -> None:
        self._loops.append((again, after))
        self._run(body)
        self._loops.pop()
        if not self.builder.block.is_terminated:
            self.builder.branch(again)
        self.builder.position_at_end(after)

    def _do_continue(self, _: ast.Continue) -> None:
        self.builder.branch(self._loops[-1][0])

    def _do_for(self, node: ast.For) -> None:
        call, target = node.iter, node.target
        if not isinstance(target, ast.Name):
            raise TypeError("Expected a loop over one name; got several")
        called = self._value(call.func) if isinstance(call, ast.Call) else None
        if not isinstance(call, ast.Call) or called not in (range, independent):
            for value in self._value(call):
                self._values[target.id] = value
                self._run(node.body)
            return
        limits = [self._value(limit) for limit in call.args]
        first, last = limits[:2] if len(limits) > 1 else (0, limits[0])
        step = limits[2] if len(limits) > 2 else 1
        outer, told = self._independent, None
        if called is independent:
            self._independent, told = True, self.program.independent_loop()
        i, again, after = begin_loop(self.builder, first, last, step, told=told)
        self._values[target.id] = i
        self._loop(node.body, again, after)
        self._independent = outer

    # ------------------------------------------------------------------ expressions

    def _of_constant(self, node: ast.Constant) -> Any:
        return node.value

    def _of_name(self, node: ast.Name) -> Any:
        name = node.id
        if name in self._slots:
            model, slots = self._slots[name]
            return rebuild(model, iter([self.builder.load(slot) for slot in slots]))
        if name in self._values:
            return self._values[name]
        known = self._known
        return known[name] if name in known else getattr(builtins, name)

    def _of_attribute(self, node: ast.Attribute) -> Any:
        return getattr(self._value(node.value), node.attr)

    def _of_tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._value(part) for part in node.elts)

    def _of_subscript(self, node: ast.Subscript) -> Any:
        whole = self._value(node.value)
        if isinstance(whole, tuple):
            return whole[self._value(node.slice)]
        place = self._place(whole, node.slice)
        return place if isinstance(place, Array) else self._load(place)

    def _of_binop(self, node: ast.BinOp) -> Any:
        left, right = self._value(node.left), self._value(node.right)
        return self.arithmetic(_SIGNS[type(node.op)], left, right)

    def _of_unaryop(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            truth = self._test(node.operand)
            return self.builder.not_(truth) if isinstance(truth, ir.Value) else not truth
        value = self._value(node.operand)
        if not isinstance(value, ir.Value):
            return -value
        return self.builder.fneg(value) if value.type in FLOATS else self.builder.neg(value)

    def _of_compare(self, node: ast.Compare) -> Any:
        [comparison], [right] = node.ops, node.comparators
        return self.compare(_COMPARED[type(comparison)], self._value(node.left), self._value(right))

    def _of_boolop(self, node: ast.BoolOp) -> Any:
        values = [constant(self._test(value)) for value in node.values]
        join = self.builder.and_ if isinstance(node.op, ast.And) else self.builder.or_
        total = values[0]
        for value in values[1:]:
            total = join(total, value)
        return total

    def _of_ifexp(self, node: ast.IfExp) -> Any:
        test = self._test(node.test)
        if not isinstance(test, ir.Value):
            return self._value(node.body if test else node.orelse)
        if _is_plain(node.body) and _is_plain(node.orelse):
            one, other = self._value(node.body), self._value(node.orelse)
            pairs = zip(leaves(one), leaves(other), strict=True)
            return rebuild(one, iter([self.builder.select(test, a, b) for a, b in pairs]))
        with self.builder.if_else(test) as (then, otherwise):
            with then:
                one, first = self._value(node.body), self.builder.block
            with otherwise:
                other, second = self._value(node.orelse), self.builder.block
        joined = []
        for a, b in zip(leaves(one), leaves(other), strict=True):
            found = self.builder.phi(a.type)
            found.add_incoming(a, first)
            found.add_incoming(b, second)
            joined.append(found)
        return rebuild(one, iter(joined))

    def _of_call(self, node: ast.Call) -> Any:
        function = self._value(node.func)
        arguments = [self._value(argument) for argument in node.args]
        if not all(isinstance(argument, (int, float)) for argument in arguments):
            function = BUILTINS.get(function, function)
        if getattr(function, "emits", False):
            return function(self, *arguments)
        if not isinstance(function, FunctionType):  # a named tuple, or a number's type
            return function(*arguments)
        return self.call(function, arguments)

    def call(self, function: Any, arguments: Sequence[Any]) -> Any:
        """Call a function: one that returns a value is written in place."""
        body = _tree_of(function).body
        if isinstance(body[-1], ast.Return) and body[-1].value is not None:
            own = {"independent": self._independent}
            return Writer(self.program, self.builder, function, arguments, **own).write()
        called = self.program.function(function, arguments)
        self.builder.call(called, leaves(tuple(arguments)))
        return None


_SIGNS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Pow: "**",
}  # fmt: skip
_COMPARED: dict[type, str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
