"""Set inclusion: kinds lie inside other kinds or outside them, and a claim follows from what is said or does not.

Shape ``(query, layout, depth)``. Queries: ``all`` asks whether every x is a y, ``member`` whether an individual is a y,
``no`` whether no x is a y, and ``barred`` whether an individual is a y when one clue keeps two kinds apart. Layouts are
those of ``graphs``; for ``no`` a further chain of kinds stands apart or is linked to the first. ``depth`` is the number
of clues from the kind asked about upwards. The answer is yes when the claim follows and no when it does not.
"""

from __future__ import annotations

import random
from typing import TypeAlias, cast

from isodistill.data.rows import AnswerType
from isodistill.isomers.families.graphs import LAYOUTS, Edge, path, reachable, two_chains
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.inclusion import SCENES, Scene
from isodistill.isomers.stories.sentences import article, capitalise

__all__ = ["Inclusion"]

Clue: TypeAlias = tuple[str, int, int]
"""``("all", x, y)`` every x is a y; ``("no", x, y)`` no x is a y; ``("is", INDIVIDUAL, x)`` the individual is an x."""

POOL = 8
INDIVIDUAL = POOL


class Inclusion:
    """Every x is a y, no x is a y; does a claim follow? The answer is yes or no."""

    name = "inclusion"
    answer_type: AnswerType = "yesno"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """Nine structures at every difficulty, with a proof depth of difficulty + 1."""
        depth = difficulty + 1
        pairs = [(query, layout) for query in ("all", "member") for layout in LAYOUTS]
        return [(*pair, depth) for pair in [*pairs, ("no", "apart"), ("no", "linked"), ("barred", "apart")]]

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Clues in random order, and with even chance a claim that follows from them or one that does not."""
        query, layout, depth = str(shape[0]), str(shape[1]), int(shape[2])
        follows = rng.random() < 0.5
        if query == "no":
            clues, asked = _kept_apart(layout, depth, follows, rng)
        elif query == "barred":
            clues, asked = _barred(depth, follows, rng)
        else:
            edges, (start, goal) = two_chains(layout, depth, 1, follows, rng)
            clues, asked = [("all", x, y) for x, y in edges], ("all", start, goal)
            if query == "member":
                clues.append(("is", INDIVIDUAL, start))
                asked = ("is", INDIVIDUAL, goal)
        rng.shuffle(clues)
        kinds = [*rng.sample(range(POOL), POOL), INDIVIDUAL]
        renamed = tuple((kind, kinds[x], kinds[y]) for kind, x, y in clues)
        return Problem(self.name, shape, {"clues": renamed, "asked": (asked[0], kinds[asked[1]], kinds[asked[2]])})

    def solve(self, problem: Problem) -> str:
        """Yes if the claim follows from the clues, else no."""
        return "yes" if _proof(problem) is not None else "no"

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """One scene of the domain: what it sorts, the clues, and the claim."""
        scene = rng.choice(SCENES[domain])
        told = _Told(scene, rng)
        clues = [told.clue(clue) for clue in _clues(problem)]
        question = " ".join([scene.intro, *clues, scene.ask.format(claim=told.claim(_asked(problem)))])
        return Telling(question, _rationale(problem, told), self.solve(problem))


def _kept_apart(layout: str, depth: int, follows: bool, rng: random.Random) -> tuple[list[Clue], Clue]:
    """A chain of depth - 1 edges from 0 whose end is no ``b_top``, an edge below ``b_top``, and an unbarred edge c."""
    end = depth - 1
    b, b_top, c, c_top = range(depth, depth + 4)
    clues: list[Clue] = [("all", x, x + 1) for x in range(end)]
    clues += [("all", b, b_top), ("all", c, c_top), ("no", *_either_way(end, b_top, rng))]
    if layout == "linked":
        clues.append(("all", rng.randint(1, end), c_top))
    x, y = (0, b) if follows else rng.choice(((0, c), (b, c)))
    return clues, ("no", *_either_way(x, y, rng))


def _barred(depth: int, follows: bool, rng: random.Random) -> tuple[list[Clue], Clue]:
    """The individual climbs a chain of depth - 1 edges; its end is no ``b``, and another kind lies inside ``b``."""
    end, b, inside = depth - 1, depth, depth + 1
    clues: list[Clue] = [("is", INDIVIDUAL, 0), *(("all", x, x + 1) for x in range(end)), ("all", inside, b)]
    clues.append(("no", *_either_way(end, b, rng)))
    return clues, ("is", INDIVIDUAL, end if follows else b)


def _either_way(x: int, y: int, rng: random.Random) -> Edge:
    return (x, y) if rng.random() < 0.5 else (y, x)


def _clues(problem: Problem) -> tuple[Clue, ...]:
    return cast("tuple[Clue, ...]", problem.values["clues"])


def _asked(problem: Problem) -> Clue:
    return cast("Clue", problem.values["asked"])


def _inside(problem: Problem) -> list[Edge]:
    """The edges x -> y for "x lies inside y"."""
    return [(x, y) for kind, x, y in _clues(problem) if kind != "no"]


def _exclusion(problem: Problem, x: int, y: int) -> list[Clue] | None:
    """The clues that keep x and y apart: up from x, up from y, and the "no" between; None if nothing does."""
    edges = _inside(problem)
    for kind, a, b in _clues(problem):
        for left, right in ((a, b), (b, a)):
            up_x, up_y = path(edges, x, {left}), path(edges, y, {right})
            if kind == "no" and up_x is not None and up_y is not None:
                return [*_as_clues(up_x), *_as_clues(up_y), ("no", a, b)]
    return None


def _as_clues(edges: list[Edge]) -> list[Clue]:
    return [("is" if x == INDIVIDUAL else "all", x, y) for x, y in edges]


def _proof(problem: Problem) -> list[Clue] | None:
    """The clues that prove the claim, in the order of the argument; None if it does not follow."""
    kind, x, y = _asked(problem)
    if kind == "no":
        return _exclusion(problem, x, y)
    steps = path(_inside(problem), x, {y})
    return None if steps is None else _as_clues(steps)


class _Told:
    """One telling: the scene, which word stands for which kind, and the individual's name."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene = scene
        self.rng = rng
        self.kinds = rng.sample(scene.kinds, POOL)
        self.member = rng.choice(scene.members)

    def clue(self, clue: Clue) -> str:
        """The clue as a sentence, in any of the scene's ways."""
        templates = {"all": self.scene.every, "no": self.scene.none, "is": self.scene.member}[clue[0]]
        return capitalise(self._fill(self.rng.choice(templates), clue))

    def claim(self, clue: Clue) -> str:
        """The clue as a plain clause without a capital or a full stop."""
        templates = {"all": "every {x.name} is {y.one}", "no": "no {x.name} is {y.one}", "is": "{m} is {y.one}"}
        return self._fill(templates[clue[0]], clue)

    def _fill(self, template: str, clue: Clue) -> str:
        _, x, y = clue
        if x == INDIVIDUAL:
            return template.format(m=self.member, y=self.kinds[y])
        return template.format(x=self.kinds[x], y=self.kinds[y])


def _rationale(problem: Problem, told: _Told) -> str:
    """The proof step by step; without one, what is known of x and that it stops short of y."""
    asked = _asked(problem)
    kind, x, y = asked
    proof = _proof(problem)
    if proof is not None:
        return _steps(told, proof) + f" So {told.claim(asked)}."
    if kind == "is" and (barrier := _exclusion(problem, x, y)) is not None:
        return _steps(told, barrier) + f" So {told.member} is not {told.kinds[y].one}."
    if kind == "no":
        known = _as_clues([*reachable(_inside(problem), x), *reachable(_inside(problem), y)])
        return _steps(told, known) + " Nothing keeps the two apart, so it does not follow."
    known = _as_clues(reachable(_inside(problem), x))
    last = article(told.kinds[known[-1][2]].name)
    return _steps(told, known) + f" But {last} need not be {told.kinds[y].one}, so it does not follow."


def _steps(told: _Told, clues: list[Clue]) -> str:
    return " ".join(capitalise(told.claim(clue)) + "." for clue in clues)
