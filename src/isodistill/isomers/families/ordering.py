"""Ordering: several things stand in one line, clues compare them, and one place in the line is asked for.

Shape ``(pattern, n, asked)``: the pattern of clues, the number of things (3 to 5), and the place asked for, counted
from the low end (first, lightest, nearest, ...) beginning with 0. Patterns: ``chain`` compares all neighbours;
``first`` and ``last`` name one end and compare the neighbours among the rest; ``ends`` names both ends; ``extra`` is a
chain with one more clue that follows from the others.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TypeAlias, cast

from isodistill.data.rows import AnswerType
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.ordering import SCENES, Scene
from isodistill.isomers.stories.sentences import NUMBER_WORDS, capitalise, listing

__all__ = ["Ordering"]

Clue: TypeAlias = tuple[str, int, int]
"""``("before" | "after", low, high)``, told from the low or from the high side; ``("first" | "last", x, x)``."""

PATTERNS = {1: ("chain", "first", "last"), 2: ("chain", "first", "last", "ends"), 3: ("chain", "extra", "ends")}
POOL = 8
LETTERS = "ABCDE"
ORDINALS = ("first", "second", "third", "fourth", "fifth")


class Ordering:
    """Who is first, last, or k-th; the answer is the letter of an option."""

    name = "ordering"
    answer_type: AnswerType = "choice"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """All structures at a difficulty: n = difficulty + 2 things; no place is asked for that a clue names."""
        n = difficulty + 2
        named = {"first": {0}, "last": {n - 1}, "ends": {0, n - 1}}
        return [
            (pattern, n, asked)
            for pattern in PATTERNS[difficulty]
            for asked in range(n)
            if asked not in named.get(pattern, set())
        ]

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """A random order of things, the clues to it in random order, and the options in random order."""
        pattern, n = str(shape[0]), int(shape[1])
        line = rng.sample(range(POOL), n)
        clues: list[Clue] = [(rng.choice(("before", "after")), *pair) for pair in _pairs(pattern, line, rng)]
        if pattern in ("first", "ends"):
            clues.append(("first", line[0], line[0]))
        if pattern in ("last", "ends"):
            clues.append(("last", line[-1], line[-1]))
        rng.shuffle(clues)
        return Problem(self.name, shape, {"clues": tuple(clues), "choices": tuple(rng.sample(line, n))})

    def solve(self, problem: Problem) -> str:
        """The letter of the thing that has exactly ``asked`` others before it."""
        return LETTERS[_choices(problem).index(_line(problem)[int(problem.shape[2])])]

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """One scene of the domain: who takes part, the clues, the question; the options are left to ``choices``."""
        scene = rng.choice(SCENES[domain])
        names = rng.sample(scene.names, POOL)
        told = [names[c] for c in _choices(problem)]
        rank = _rank(scene, int(problem.shape[2]), len(told))
        intro = capitalise(scene.intro.format(count=NUMBER_WORDS[len(told)], names=listing(told)))
        clues = [_say(scene, clue, names) for clue in _clues(problem)]
        question = " ".join([intro, *clues, scene.ask.format(rank=rank)])
        letter = self.solve(problem)
        conclusion = f"The {rank} is {told[LETTERS.index(letter)]}, option {letter}."
        choices = tuple(name.removeprefix("the ") for name in told)
        return Telling(question, f"{_rationale(problem, scene, names)} {conclusion}", letter, choices)


def _pairs(pattern: str, line: list[int], rng: random.Random) -> list[tuple[int, int]]:
    """The comparisons (low, high) that the pattern needs to fix the whole line."""
    inner = line[pattern in ("first", "ends") : len(line) - (pattern in ("last", "ends"))]
    pairs = list(pairwise(inner))
    if pattern == "extra":
        low, high = sorted(rng.choice([(i, j) for i in range(len(line)) for j in range(i + 2, len(line))]))
        pairs.append((line[low], line[high]))
    return pairs


def _clues(problem: Problem) -> tuple[Clue, ...]:
    return cast("tuple[Clue, ...]", problem.values["clues"])


def _choices(problem: Problem) -> tuple[int, ...]:
    return cast("tuple[int, ...]", problem.values["choices"])


def _line(problem: Problem) -> list[int]:
    """The things from low to high, by repeatedly taking the one that no open clue puts after another."""
    clues, left = _clues(problem), list(_choices(problem))
    ends = {kind: low for kind, low, _ in clues if kind in ("first", "last")}
    line: list[int] = []
    while left:
        later = {high for _, low, high in clues if low in left and low != high}
        free = [x for x in left if x not in later and (x != ends.get("last") or len(left) == 1)]
        line.append(ends["first"] if not line and "first" in ends else free[0])
        left.remove(line[-1])
    return line


def _rank(scene: Scene, asked: int, n: int) -> str:
    """The name of a place: "first" ... "last", or "lightest", "second lightest", ..., "heaviest"."""
    low, high = scene.ends
    from_high = n - 1 - asked
    if from_high == 0:
        return high
    if low == "first":
        return ORDINALS[asked]
    near, word = (asked, low) if asked <= from_high else (from_high, high)
    return word if near == 0 else f"{ORDINALS[near]} {word}"


def _say(scene: Scene, clue: Clue, names: list[str]) -> str:
    kind, low, high = clue
    template = {"before": scene.before, "after": scene.after, "first": scene.first, "last": scene.last}[kind]
    return capitalise(template.format(a=names[low], b=names[high]))


def _rationale(problem: Problem, scene: Scene, names: list[str]) -> str:
    """The clues again from low to high, without those that follow from others, and the whole line."""
    line = _line(problem)
    neighbours = set(pairwise(line))
    steps = [("before" if a != b else kind, a, b) for kind, a, b in _clues(problem) if a == b or (a, b) in neighbours]
    steps.sort(key=lambda clue: line.index(clue[1]))
    order = ", ".join(names[x].removeprefix("the ") for x in line)
    return " ".join([*(_say(scene, clue, names) for clue in steps), f"In order: {order}."])
