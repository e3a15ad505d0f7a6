"""Comparison with a condition: two totals side by side, or one total that a rule may change."""

from __future__ import annotations

import random

from isodistill.data.rows import AnswerType
from isodistill.isomers.families.numeric import Step, either, limit_for, numbers, sound, step
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.comparison import STORIES, Story

__all__ = ["Comparison"]

SHAPES: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (
        ("mul", "num", "diff"),
        ("mul", "mul", "larger"),
        ("mul", "mul", "smaller"),
        ("mul", "over", "add"),
        ("mul", "over", "sub"),
        ("mul", "under", "add"),
        ("mul", "under", "sub"),
    ),
    2: (
        ("mul", "mul", "diff"),
        ("muladd", "num", "diff"),
        ("mulsub", "num", "diff"),
        ("muladd", "over", "sub"),
        ("muladd", "under", "add"),
        ("mulsub", "over", "add"),
        ("mulsub", "under", "sub"),
    ),
    3: (
        ("muladd", "mul", "diff"),
        ("muladd", "mul", "larger"),
        ("muladd", "mul", "smaller"),
        ("mulsub", "mul", "diff"),
        ("mulsub", "mul", "larger"),
        ("mulsub", "mul", "smaller"),
    ),
}
SIGNS = {"add": "+", "sub": "-"}


class Comparison:
    """Two totals, or a total and a threshold; implements `Family`.

    A shape is (one side, other side, what is asked) or (a total, "over" or "under" a threshold, what the rule does).
    A side is a plain number ("num"), a product ("mul"), or a product with something added or taken away ("muladd",
    "mulsub"). Asked are the difference, the larger, the smaller, or the total after the rule. Values: ``numbers``, all
    at least 2, in the order of the text (the threshold before the change). In half of the problems the first side is
    the larger one or the rule's condition holds.
    """

    name = "comparison"
    answer_type: AnswerType = "number"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """All structures at a difficulty (1 to 3)."""
        return list(SHAPES[difficulty])

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Numbers for a structure; both outcomes of the comparison are equally likely."""
        limit = limit_for(shape, SHAPES)
        above = rng.random() < 0.5
        while True:
            drawn = _draw(shape, rng)
            problem = Problem(self.name, shape, {"numbers": tuple(drawn)})
            left, right, steps, answer = _totals(problem)
            fair = left != right and (left > right) == above
            if fair and sound(steps, limit) and answer not in drawn:
                return problem

    def solve(self, problem: Problem) -> str:
        """The answer as a decimal."""
        return str(_totals(problem)[3])

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """The problem in one of the domain's phrasings."""
        story = rng.choice(STORIES[domain])
        told = list(numbers(problem))
        side, other, asked = problem.shape
        parts = [story.mul.format(a=told.pop(0), b=told.pop(0))]
        if side != "mul":
            parts.append(either(story.change, second=side == "mulsub").format(c=told.pop(0)))
        if other in ("over", "under"):
            parts += _told_rule(story, other == "under", asked == "sub", *told)
        else:
            parts.append(story.num.format(d=told[0]) if other == "num" else story.other.format(d=told[0], e=told[1]))
            parts.append(story.diff if asked == "diff" else either(story.extreme, second=asked == "smaller"))
        return Telling(" ".join(parts), _rationale(problem), self.solve(problem))


def _draw(shape: tuple[str | int, ...], rng: random.Random) -> list[int]:
    """Some numbers for a shape, sound or not."""
    side, other, _ = shape
    a, b = rng.randint(2, 9), rng.randint(2, 12)
    change = [] if side == "mul" else [rng.randint(2, 20)]
    if other == "mul":
        return [a, b, *change, rng.randint(2, 9), rng.randint(2, 12)]
    near = a * b + sum(change) * (1 if side == "muladd" else -1) + rng.randint(-25, 25)
    reference = max(5, near)
    return [a, b, *change, reference] if other == "num" else [a, b, *change, reference, rng.randint(2, 15)]


def _totals(problem: Problem) -> tuple[int, int, list[Step], int]:
    """Both totals (the second may be a threshold), the equations in order, and the answer."""
    side, other, asked = problem.shape
    given = list(numbers(problem))
    steps = [step(given.pop(0), "x", given.pop(0))]
    if side != "mul":
        steps.append(step(steps[-1].result, "+" if side == "muladd" else "-", given.pop(0)))
    left, right = steps[-1].result, given.pop(0)
    if other == "mul":
        steps.append(step(right, "x", given.pop(0)))
        right = steps[-1].result
    if asked == "diff":
        steps.append(step(max(left, right), "-", min(left, right)))
        return left, right, steps, steps[-1].result
    if asked in ("larger", "smaller"):
        return left, right, steps, max(left, right) if asked == "larger" else min(left, right)
    if (left > right) == (other == "over"):
        steps.append(step(left, SIGNS[str(asked)], given.pop(0)))
    return left, right, steps, steps[-1].result


def _told_rule(story: Story, under: bool, shrinks: bool, threshold: int, change: int) -> list[str]:
    """The rule and the question that follows it."""
    words = ("fewer than", "less than", "below") if under else ("more than", "more than", "above")
    slots = dict(zip(("over", "than", "above"), words, strict=True))
    return [either(story.rule, second=shrinks).format(t=threshold, p=change, **slots), story.ask]


def _rationale(problem: Problem) -> str:
    """The equations, with the comparison said before it is used."""
    left, right, steps, answer = _totals(problem)
    _, other, asked = problem.shape
    told = [str(s) for s in steps]
    if asked in ("larger", "smaller"):
        told.append(f"Compare: {max(left, right)} is more than {min(left, right)}.")
        return " ".join([*told, f"Take the {asked}: {answer}."])
    verdict = f"Compare: {left} is {'more' if left > right else 'less'} than {right}."
    if asked == "diff":
        return " ".join([*told[:-1], verdict, told[-1]])
    if (left > right) == (other == "over"):
        return " ".join([*told[:-1], verdict, told[-1]])
    return " ".join([*told, verdict, f"The rule does not apply: {answer}."])
