"""Schedules and intervals: activities one after another, with gaps, overlaps and a pair that runs side by side."""

from __future__ import annotations

import random
from collections.abc import Iterator

from isodistill.data.rows import AnswerType
from isodistill.isomers.families.numeric import Step, limit_for, numbers, sound, step
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.schedule import STORIES, UNITS, Story

__all__ = ["Schedule"]

_ALL = ("end", "begin", "left")
SHAPES: dict[int, list[tuple[str, ...]]] = {
    1: [("run", "then", asked) for asked in _ALL] + [("both", asked) for asked in _ALL],
    2: [(*chain, asked) for chain in (("run", "gap"), ("run", "lap"), ("both", "then")) for asked in _ALL],
    3: [(*chain, asked) for chain in (("both", "gap"), ("both", "lap")) for asked in _ALL]
    + [("run", "then", "gap", "end"), ("run", "lap", "gap", "end")],
}
POINT = {"minute": "at minute", "hour": "at hour", "day": "on day", "unit": "at"}


class Schedule:
    """A chain of activities with plain numbers as times; implements `Family`.

    A shape lists how the chain begins ("run": one activity, "both": two side by side), how each further activity joins
    the one before ("then": at once, "gap": some time after its end, "lap": some time before its end), and what is
    asked: the "end" of the chain, its "begin" from the end, or the time "left" until a deadline. Values: ``numbers`` in
    the order of the text: the start (unless asked), the durations, each after the gap or overlap before it, and the
    end or the deadline.
    """

    name = "schedule"
    answer_type: AnswerType = "number"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """All structures at a difficulty (1 to 3)."""
        return list(SHAPES[difficulty])

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Numbers for a structure; all results are within the limit, and the answer is not among the numbers."""
        limit = limit_for(shape, SHAPES)
        asked = shape[-1]
        while True:
            chain = [n for link in shape[:-1] for n in _durations(link, rng)]
            start = [] if asked == "begin" else [rng.randint(2, 50)]
            known = [] if asked == "end" else [rng.randint(20, min(limit, 180))]
            drawn = (*start, *chain, *known)
            problem = Problem(self.name, shape, {"numbers": drawn})
            steps = _steps(problem)
            even = shape[0] == "both" and chain[0] == chain[1]
            if not even and sound(steps, limit) and steps[-1].result not in drawn:
                return problem

    def solve(self, problem: Problem) -> str:
        """The last result as a decimal."""
        return str(_steps(problem)[-1].result)

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """The problem in one of the domain's phrasings."""
        story, unit = rng.choice(STORIES[domain]), UNITS[domain]
        given = iter(numbers(problem))
        asked = problem.shape[-1]
        point = "" if asked == "begin" else f"{POINT[unit]} {next(given)}"
        parts = [story.start.format(at=point and f" {point}", starting=point and f", starting {point}")]
        parts += _told_chain(story, unit, problem.shape[:-1], given)
        closing = {"end": story.end, "begin": story.begin, "left": story.left}[str(asked)]
        parts.append(closing if asked == "end" else closing.format(x=next(given)))
        return Telling(" ".join(parts), _rationale(problem), self.solve(problem))


def _durations(link: str | int, rng: random.Random) -> list[int]:
    """The numbers that one link of the chain brings along; an overlap is shorter than any activity."""
    if link == "both":
        return [rng.randint(8, 40), rng.randint(8, 40)]
    between = {"gap": [rng.randint(2, 20)], "lap": [rng.randint(2, 7)]}.get(str(link), [])
    return [*between, rng.randint(8, 40)]


def _told_chain(story: Story, unit: str, chain: tuple[str | int, ...], given: Iterator[int]) -> list[str]:
    """One sentence for each link of the chain."""
    first, *joins = chain
    if first == "both":
        parts, done = [story.both.format(d=next(given), e=next(given))], (story.done[1], story.done[2])
    else:
        parts, done = [story.run.format(d=next(given))], (story.done[0], story.done[2])
    for template, join, before in zip((story.second, story.third), joins, done, strict=False):
        if join == "then":
            when = f"right at the end of {before}"
        else:
            when = f"{next(given)} {unit}s {'after' if join == 'gap' else 'before'} the end of {before}"
        parts.append(template.format(when=when, d=next(given)))
    return parts


def _steps(problem: Problem) -> list[Step]:
    """The equations: the clock along the chain, or the length of the chain where the start is asked."""
    *chain, asked = problem.shape
    given = iter(numbers(problem))
    start = None if asked == "begin" else next(given)
    first = max(next(given), next(given)) if chain[0] == "both" else next(given)
    steps = [] if start is None else [step(start, "+", first)]
    clock = steps[-1].result if steps else first
    for join in chain[1:]:
        if join != "then":
            steps.append(step(clock, "+" if join == "gap" else "-", next(given)))
            clock = steps[-1].result
        steps.append(step(clock, "+", next(given)))
        clock = steps[-1].result
    return steps if asked == "end" else [*steps, step(next(given), "-", clock)]


def _rationale(problem: Problem) -> str:
    """The equations, after saying which of two activities side by side is the longer one."""
    told = [str(s) for s in _steps(problem)]
    if problem.shape[0] == "both":
        given = numbers(problem)
        pair = given[:2] if problem.shape[-1] == "begin" else given[1:3]
        told.insert(0, f"Compare: {max(pair)} is longer than {min(pair)}.")
    return " ".join(told)
