"""Reachability: one-way links or requirements among places, things or people; does one lead to another?

Shape ``(layout, depth, side)``: the layout of the two chains as in ``graphs``, and how many links the main and the side
chain have. All links are told, so what is not reachable from them is not reachable at all.
"""

from __future__ import annotations

import random
from typing import cast

from isodistill.data.rows import AnswerType
from isodistill.isomers.families.graphs import LAYOUTS, Edge, path, reachable, two_chains
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.reachability import SCENES, Scene
from isodistill.isomers.stories.sentences import capitalise

__all__ = ["Reachability"]

POOL = 8


class Reachability:
    """Does a chain of links lead from one thing to another? The answer is yes or no."""

    name = "reachability"
    answer_type: AnswerType = "yesno"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """Six structures at every difficulty, with difficulty + 1 links between the things asked for."""
        return [(layout, difficulty + 1, side) for layout in LAYOUTS for side in (1, 2)]

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Links in random order, and with even chance a pair that they connect or one that they do not."""
        layout, depth, side = str(shape[0]), int(shape[1]), int(shape[2])
        edges, (start, goal) = two_chains(layout, depth, side, rng.random() < 0.5, rng)
        rng.shuffle(edges)
        nodes = rng.sample(range(POOL), POOL)
        renamed = tuple((nodes[a], nodes[b]) for a, b in edges)
        return Problem(self.name, shape, {"edges": renamed, "asked": (nodes[start], nodes[goal])})

    def solve(self, problem: Problem) -> str:
        """Yes if a path leads from the first thing asked for to the second, else no."""
        start, goal = _asked(problem)
        return "no" if path(_edges(problem), start, {goal}) is None else "yes"

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """One scene of the domain: all links, then the question."""
        scene = rng.choice(SCENES[domain])
        nodes = rng.sample(scene.nodes, POOL)
        links = [_say(rng.choice(scene.edge), edge, nodes) for edge in _edges(problem)]
        question = " ".join([scene.intro, *links, _say(scene.ask, _asked(problem), nodes)])
        return Telling(question, _rationale(problem, scene, nodes), self.solve(problem))


def _edges(problem: Problem) -> tuple[Edge, ...]:
    return cast("tuple[Edge, ...]", problem.values["edges"])


def _asked(problem: Problem) -> Edge:
    return cast("Edge", problem.values["asked"])


def _say(template: str, edge: Edge, nodes: list[str]) -> str:
    return capitalise(template.format(a=nodes[edge[0]], b=nodes[edge[1]]))


def _rationale(problem: Problem, scene: Scene, nodes: list[str]) -> str:
    """The links of the path one after the other; without a path, all that can be reached from the start."""
    start, goal = _asked(problem)
    steps = path(_edges(problem), start, {goal})
    told = [_say(scene.edge[0], edge, nodes) for edge in steps or reachable(_edges(problem), start)]
    clause = scene.so[steps is None].format(a=nodes[start], b=nodes[goal])
    return " ".join([*told, f"So {clause}." if steps else f"That is all, so {clause}."])
