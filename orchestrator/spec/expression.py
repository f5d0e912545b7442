"""Conditions of a spec, such as `learning_rate * width <= 1 or arm == "mup"`: data, parsed and worked out, never run.

Known are numbers, text, names, + - * / **, comparisons (also `in`), and, or, not, and min, max, log, log2, sqrt, abs.
All numbers are floats, so that nothing can grow without end.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
Term = Callable[[Values], Any]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "abs": abs,
}
MAX_LENGTH = 1000


@dataclass(frozen=True)
class Condition:
    """A parsed condition: its text, the names it uses, and what it says of values."""

    text: str
    names: frozenset[str]
    term: Term

    def holds(self, values: Values) -> bool:
        """Whether it is true of `values`.

        Raises:
            ValueError: it cannot be worked out (a division by zero, text compared with a number).
        """
        try:
            return bool(self.term(values))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(f"{self.text!r} cannot be worked out: {error}") from None


def parse(text: str) -> Condition:
    """Parse a condition.

    Raises:
        ValueError: it is not an expression of the small language above.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"has {len(text)} characters; wanted at most {MAX_LENGTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        detail = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"got {text!r}; wanted a condition such as 'learning_rate * width <= 1' ({detail})") from None
    names: set[str] = set()
    term = _term(tree, names)
    return Condition(text.strip(), frozenset(names), term)


def _term(node: ast.expr, names: set[str]) -> Term:
    """`node` as a function of the values; the names it uses are added to `names`."""

    def sub(child: ast.expr) -> Term:
        return _term(child, names)

    match node:
        case ast.Constant(value=bool() as value):
            return lambda _: value
        case ast.Constant(value=int() | float() as value):
            number = float(value)
            return lambda _: number
        case ast.Constant(value=str() as text):
            return lambda _: text
        case ast.Name(id=name):
            names.add(name)
            return lambda values: values[name]
        case ast.Tuple(elts=items) | ast.List(elts=items):
            group = [sub(item) for item in items]
            return lambda values: [item(values) for item in group]
        case ast.BoolOp(op=ast.And(), values=items):
            every = [sub(item) for item in items]
            return lambda values: all(item(values) for item in every)
        case ast.BoolOp(op=ast.Or(), values=items):
            some = [sub(item) for item in items]
            return lambda values: any(item(values) for item in some)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = sub(operand)
            return lambda values: not inner(values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = sub(operand)
            return lambda values: -inner(values)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            apply, one, two = _BINARY[type(op)], sub(left), sub(right)
            return lambda values: apply(one(values), two(values))
        case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(op) in _COMPARE for op in ops):
            terms, tests = [sub(left), *map(sub, rights)], [_COMPARE[type(op)] for op in ops]
            return lambda values: _chain(tests, [term(values) for term in terms])
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            function, terms = _FUNCTIONS[name], [sub(argument) for argument in arguments]
            return lambda values: function(*(term(values) for term in terms))
    known = "numbers, names, + - * / % **, comparisons, in, and, or, not, " + ", ".join(_FUNCTIONS)
    raise ValueError(f"{ast.unparse(node)!r} is not understood; wanted {known}")


def _chain(tests: list[Callable[[Any, Any], bool]], values: list[Any]) -> bool:
    return all(test(one, two) for test, one, two in zip(tests, values, values[1:], strict=False))
