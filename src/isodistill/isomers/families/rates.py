"""Rates and quantities in several steps: a stock or a product grows, shrinks, is weighed or shared."""

from __future__ import annotations

import random

from isodistill.data.rows import AnswerType
from isodistill.isomers.families.numeric import Step, limit_for, numbers, sound, step
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.rates import STORIES

__all__ = ["Rates"]

SHAPES: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (
        ("mul", "add"),
        ("mul", "sub"),
        ("mul", "div"),
        ("add", "mul"),
        ("sub", "mul"),
        ("add", "div"),
        ("sub", "div"),
    ),
    2: (
        ("mul", "add", "sub"),
        ("mul", "sub", "add"),
        ("mul", "add", "mul"),
        ("mul", "sub", "mul"),
        ("mul", "add", "div"),
        ("mul", "sub", "div"),
        ("mul", "addmul"),
        ("mul", "submul"),
    ),
    3: (
        ("mul", "addmul", "sub"),
        ("mul", "submul", "add"),
        ("mul", "addmul", "mul"),
        ("mul", "submul", "mul"),
        ("mul", "addmul", "div"),
        ("mul", "submul", "div"),
        ("mul", "add", "sub", "div"),
        ("mul", "sub", "add", "mul"),
    ),
}
SIGNS = {"mul": "x", "div": "/", "add": "+", "sub": "-", "addmul": "+", "submul": "-"}


class Rates:
    """Several operations on one quantity; implements `Family`.

    A shape lists the operations in order. "mul" in front opens with groups of equal size, any other first operation
    with a plain quantity; "addmul" and "submul" add and take away a product; "mul" and "div" at the end count what
    every one weighs and share all. Values: ``numbers``, all at least 2, in the order of the shape.
    """

    name = "rates"
    answer_type: AnswerType = "number"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """All structures at a difficulty (1 to 3)."""
        return list(SHAPES[difficulty])

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Numbers for a structure; all results are whole, within the limit, and the answer is not among the numbers."""
        limit = limit_for(shape, SHAPES)
        while True:
            drawn = [n for position, op in enumerate(shape) for n in _operands(op, position == 0, rng)]
            problem = Problem(self.name, shape, {"numbers": tuple(drawn)})
            steps = _steps(problem)
            if sound(steps, limit) and steps[-1].result not in drawn:
                return problem

    def solve(self, problem: Problem) -> str:
        """The last result as a decimal."""
        return str(_steps(problem)[-1].result)

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """The problem in one of the domain's phrasings."""
        story = rng.choice(STORIES[domain])
        told = iter(numbers(problem))
        shape = problem.shape
        if shape[0] == "mul":
            parts = [story.groups.format(a=next(told), b=next(told))]
            shape = shape[1:]
        else:
            parts = [story.stock.format(a=next(told))]
        for op in shape:
            if op == "mul" or op == "div":
                parts.append((story.mul if op == "mul" else story.div).format(k=next(told)))
            elif op == "add" or op == "sub":
                parts.append((story.add if op == "add" else story.sub).format(c=next(told)))
            else:
                parts.append((story.addmul if op == "addmul" else story.submul).format(c=next(told), d=next(told)))
        if shape[-1] not in ("mul", "div"):
            parts.append(story.ask)
        return Telling(" ".join(parts), " ".join(map(str, _steps(problem))), self.solve(problem))


def _operands(op: str | int, opens: bool, rng: random.Random) -> list[int]:
    """The numbers that one operation adds to a problem; the first brings the opening quantity along."""
    if opens and op == "mul":
        return [rng.randint(2, 9), rng.randint(2, 12)]
    if op in ("addmul", "submul"):
        return [rng.randint(2, 9), rng.randint(2, 9)]
    opening = [rng.randint(8, 90)] if opens else []
    return [*opening, rng.randint(2, 30) if op in ("add", "sub") else rng.randint(2, 6)]


def _steps(problem: Problem) -> list[Step]:
    """The equations of the solution, in order."""
    given = iter(numbers(problem))
    steps: list[Step] = []
    value = next(given)
    for op in problem.shape:
        right = next(given)
        if op in ("addmul", "submul"):
            steps.append(step(right, "x", next(given)))
            right = steps[-1].result
        steps.append(step(value, SIGNS[str(op)], right))
        value = steps[-1].result
    return steps
