"""What the families about numbers share: their values, the equations of a solution, and alternatives in a template."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from isodistill.isomers.family import Problem

__all__ = ["LIMIT", "Step", "either", "limit_for", "numbers", "sound", "step"]

LIMIT = {1: 120, 2: 240, 3: 400}
"""Largest number on the way to an answer, by difficulty: the student reads numbers digit by digit (our choice)."""

_OPERATIONS = {"x": operator.mul, "/": operator.floordiv, "+": operator.add, "-": operator.sub}
_VERBS = {"x": "Multiply", "/": "Divide", "+": "Add", "-": "Subtract"}


class Step(NamedTuple):
    """One equation of a solution: left (op) right = result; its text is one sentence of the rationale."""

    left: int
    op: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{_VERBS[self.op]}: {self.left} {self.op} {self.right} = {self.result}."


def step(left: int, op: str, right: int) -> Step:
    """The equation of one operation: x, /, + or -; a division is rounded down (`sound` refuses those with a rest)."""
    return Step(left, op, right, _OPERATIONS[op](left, right))


def limit_for(shape: tuple[str | int, ...], shapes: Mapping[int, Sequence[tuple[str | int, ...]]]) -> int:
    """The largest number that a problem of this shape may need; ValueError for a shape that no difficulty has."""
    for difficulty, known in shapes.items():
        if shape in known:
            return LIMIT[difficulty]
    raise ValueError(f"no shape {shape}; the family has {[known for level in shapes.values() for known in level]}")


def sound(steps: Iterable[Step], limit: int) -> bool:
    """Whether every result lies between 2 (so that the plural is right) and the limit, and every division is exact."""
    return all(2 <= s.result <= limit and (s.op != "/" or s.left % s.right == 0) for s in steps)


def numbers(problem: Problem) -> tuple[int, ...]:
    """The numbers of a problem, in the order of its shape."""
    values = problem.values["numbers"]
    return tuple(n for n in values if isinstance(n, int)) if isinstance(values, tuple) else ()


def either(template: str, second: bool) -> str:
    """The template with each "[x|y]" settled: x, or y for the second case."""
    return re.sub(r"\[([^|\]]*)\|([^|\]]*)\]", r"\2" if second else r"\1", template)
