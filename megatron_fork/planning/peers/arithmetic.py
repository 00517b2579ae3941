"""Arithmetic with whole numbers as a shell writes it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

_OPERATIONS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: int(left / right) if abs(left) < 1 << 52 else left // right,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
}
_LARGEST, _LONGEST = 1 << 63, 200


def whole_number(expression: str, value_of: Callable[[str], str | None]) -> int | None:
    """The value of an expression such as `(prompt + 8 * 1024) * 2`, or None where it cannot be known."""
    if len(expression) > _LONGEST:
        return None
    try:
        return _evaluated(ast.parse(expression.replace("$", "").strip(), mode="eval").body, value_of)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _evaluated(node: ast.expr, value_of: Callable[[str], str | None]) -> int:
    """Raises ValueError for anything but whole numbers, their names and the operations above."""
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            found = value
        case ast.Name(id=name):
            found = int(value_of(name) or "")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            found = -_evaluated(operand, value_of)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            first, second = _evaluated(left, value_of), _evaluated(right, value_of)
            if isinstance(operation, ast.LShift) and not 0 <= second < 64:
                raise ValueError("shifted too far")
            found = _OPERATIONS[type(operation)](first, second)
        case _:
            raise ValueError("not arithmetic with whole numbers")
    if abs(found) >= _LARGEST:
        raise ValueError("too large")
    return found
