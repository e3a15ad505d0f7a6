"""Arithmetic expressions over named quantities: read without running them, evaluated exactly."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

__all__ = ["evaluate", "parse_expression"]

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PARTS = (ast.BinOp, ast.UnaryOp, ast.Load, ast.USub, *_OPERATIONS)
_MOST_CHARACTERS = 300
_MOST_BITS = 4096  # of a number on the way; forty squarings in a row would fill the memory


def parse_expression(text: str, known: Collection[str]) -> ast.expr:
    """An expression of +, -, *, / and brackets over known names and numbers.

    Raises:
        ValueError: it is none, has anything else, or more than 300 characters.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"the relation {text:.40}... is too long")
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"the relation {text!r} is no expression") from None
    for node in ast.walk(expression):
        fine = isinstance(node, _PARTS)
        fine = fine or (isinstance(node, ast.Name) and node.id in known)
        fine = fine or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
        if not fine:
            raise ValueError(f"the relation {text!r} has more than +, -, *, /, numbers and known names")
    return expression


def evaluate(expression: ast.expr, known: Mapping[str, Fraction]) -> Fraction:
    """The exact value of an expression.

    Raises:
        ValueError: a division by zero, or a number beyond 4,096 bits.
    """
    match expression:
        case ast.Name(id=name):
            return known[name]
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(operand=operand):
            return -evaluate(operand, known)
        case ast.BinOp(left=left, op=op, right=right):
            try:
                value = _OPERATIONS[type(op)](evaluate(left, known), evaluate(right, known))
            except ZeroDivisionError:
                raise ValueError("a relation divides by zero") from None
            if value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
                raise ValueError("the numbers grow beyond all bounds")
            return value
    raise AssertionError(f"{ast.dump(expression)} passed the check of expressions")
