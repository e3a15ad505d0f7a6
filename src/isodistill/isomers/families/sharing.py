"""Proportional sharing: a whole is divided into two or three parts in a ratio."""

from __future__ import annotations

import math
import random

from isodistill.data.rows import AnswerType
from isodistill.isomers.families.numeric import Step, either, limit_for, numbers, sound, step
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.sharing import STORIES, Story

__all__ = ["Sharing"]

SHAPES: dict[int, tuple[tuple[str | int, ...], ...]] = {
    1: (
        (2, "total", "first"),
        (2, "total", "second"),
        (2, "total", "larger"),
        (2, "total", "smaller"),
        (2, "first", "second"),
        (2, "second", "first"),
        (2, "first", "total"),
        (2, "second", "total"),
    ),
    2: (
        (2, "total", "difference"),
        (2, "rest", "first"),
        (2, "rest", "larger"),
        (2, "difference", "total"),
        (2, "difference", "second"),
        (3, "total", "first"),
        (3, "total", "third"),
        (3, "first", "total"),
    ),
    3: (
        (2, "rest", "difference"),
        (3, "rest", "second"),
        (3, "rest", "larger"),
        (3, "rest", "smaller"),
        (3, "total", "difference"),
        (3, "difference", "total"),
        (3, "first", "difference"),
    ),
}
PLACES = ("first", "second", "third")


class Sharing:
    """A whole in proportional parts; implements `Family`.

    A shape is (number of parts, what is given, what is asked). Given: the "total", the total with a "rest" that is not
    divided, one part by its place, or the "difference" between the largest and the smallest part. Asked: a part by its
    place, the "larger" (largest) or "smaller" (smallest) part, the difference, or the total. Values: ``numbers``, the
    ratio (distinct, without a common factor) followed by what is given; for a rest, the total and then the rest.
    """

    name = "sharing"
    answer_type: AnswerType = "number"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """All structures at a difficulty (1 to 3)."""
        return list(SHAPES[difficulty])

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Numbers for a structure; all results are whole, within the limit, and the answer is not among the numbers."""
        limit = limit_for(shape, SHAPES)
        parts, given, _ = shape
        while True:
            ratio = rng.sample(range(2, 10), int(parts))
            unit = rng.randint(2, 15)
            if math.gcd(*ratio) > 1 or sum(ratio) * unit > limit:
                continue
            rest = [rng.randint(2, 20)] if given == "rest" else []
            known = _amount(ratio, given) * unit + sum(rest)
            problem = Problem(self.name, shape, {"numbers": (*ratio, known, *rest)})
            steps = _steps(problem)
            if sound(steps, limit) and steps[-1].result not in (*ratio, known, *rest):
                return problem

    def solve(self, problem: Problem) -> str:
        """The last result as a decimal."""
        return str(_steps(problem)[-1].result)

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """The problem in one of the domain's phrasings."""
        story = rng.choice(STORIES[domain])
        parts = int(problem.shape[0])
        told = [_told_split(story, numbers(problem)[:parts]), _told_given(story, problem), _asked(story, problem)]
        return Telling(" ".join(told), " ".join(map(str, _steps(problem))), self.solve(problem))


def _amount(ratio: list[int], what: str | int) -> int:
    """How many units of the ratio something makes up."""
    if what in PLACES:
        return ratio[PLACES.index(str(what))]
    whole = sum(ratio)
    return {
        "total": whole,
        "rest": whole,
        "larger": max(ratio),
        "smaller": min(ratio),
        "difference": max(ratio) - min(ratio),
    }[str(what)]


def _steps(problem: Problem) -> list[Step]:
    """The equations: what is known in units, the size of a unit, what is asked in units."""
    parts, given, asked = problem.shape
    values = list(numbers(problem))
    ratio, known = values[: int(parts)], values[int(parts)]
    steps: list[Step] = []
    if given == "rest":
        steps.append(step(known, "-", values[-1]))
        known = steps[-1].result
    steps += _unit_steps(ratio, given)
    steps.append(step(known, "/", _amount(ratio, given)))
    unit = steps[-1].result
    steps += _unit_steps(ratio, asked)
    return [*steps, step(unit, "x", _amount(ratio, asked))]


def _unit_steps(ratio: list[int], what: str | int) -> list[Step]:
    """The equations that count units: a sum for the total, a difference, or none."""
    if what == "difference":
        return [step(max(ratio), "-", min(ratio))]
    if what not in ("total", "rest"):
        return []
    steps = [step(ratio[0], "+", ratio[1])]
    return [*steps, *(step(steps[0].result, "+", share) for share in ratio[2:])]


def _listed(items: list[str]) -> str:
    """The items as an English list."""
    return ", ".join(items[:-1]) + " and " + items[-1]


def _told_split(story: Story, ratio: tuple[int, ...]) -> str:
    """The sentence with the parts and their ratio."""
    names = story.names[: len(ratio)]
    return story.split.format(
        who=_listed(list(names)),
        ratio=" to ".join(map(str, ratio)),
        among="between" if len(ratio) == 2 else "among",
        pairs=_listed([f"{share} to {name}" for share, name in zip(ratio, names, strict=True)]),
    )


def _told_given(story: Story, problem: Problem) -> str:
    """The sentence with what is known."""
    parts, given, _ = problem.shape
    known, *rest = numbers(problem)[int(parts) :]
    if given == "difference":
        return f"The {either(story.gap, second=parts == 3)} is {known}."
    if given == "rest":
        return story.rest.format(t=known, r=rest[0])
    if given == "total":
        return story.total.format(t=known)
    return story.part.format(name=story.names[PLACES.index(str(given))], v=known)


def _asked(story: Story, problem: Problem) -> str:
    """The question."""
    parts, _, asked = problem.shape
    if asked == "difference":
        return f"What is the {either(story.gap, second=parts == 3)}?"
    if asked == "total":
        return story.ask_total
    if asked in ("larger", "smaller"):
        return story.ask_size.format(size=asked if parts == 2 else f"{str(asked).removesuffix('r')}st")
    return story.ask_part.format(name=story.names[PLACES.index(str(asked))])
