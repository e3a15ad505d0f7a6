"""Reachability: the solver against matrix powers, the worked solution, and tampered texts."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from isodistill.isomers.check.reachability import parse
from isodistill.isomers.families.graphs import path, reachable
from isodistill.isomers.families.reachability import Reachability
from isodistill.isomers.family import DOMAINS, Problem, Telling
from isodistill.isomers.stories.reachability import SCENES

FAMILY = Reachability()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in FAMILY.shapes(difficulty)]


def steps_between(problem: Problem) -> int | None:
    """The smallest power of the adjacency matrix that joins the two things asked for."""
    adjacency = np.zeros((8, 8), dtype=int)
    for a, b in problem.values["edges"]:
        adjacency[a, b] = 1
    start, goal = problem.values["asked"]
    power = np.eye(8, dtype=int)
    for n in range(9):
        if power[start, goal]:
            return n
        power = power @ adjacency
    return None


def told(seed: int) -> list[tuple[Problem, str, Telling]]:
    rng = random.Random(seed)
    problems = [FAMILY.draw(shape, rng) for shape in SHAPES]
    return [(problem, d, FAMILY.tell(problem, d, rng)) for problem in problems for d in DOMAINS]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_solver_equals_matrix_powers(shape: tuple[str | int, ...]) -> None:
    rng = random.Random(4)
    for _ in range(40):
        problem = FAMILY.draw(shape, rng)
        steps = steps_between(problem)
        assert FAMILY.solve(problem) == ("no" if steps is None else "yes")
        assert steps in (None, shape[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_things_asked_for_are_mentioned_once_whatever_the_answer(shape: tuple[str | int, ...]) -> None:
    rng = random.Random(8)
    for _ in range(40):
        problem = FAMILY.draw(shape, rng)
        edges, (start, goal) = problem.values["edges"], problem.values["asked"]
        assert [sum(node in edge for edge in edges) for node in (start, goal)] == [1, 1]
        assert any(edge[0] == start for edge in edges)
        assert any(edge[1] == goal for edge in edges)


def test_path_and_reachable_on_a_small_graph() -> None:
    edges = [(3, 4), (0, 1), (1, 2), (0, 2), (2, 0)]
    assert path(edges, 0, {2}) == [(0, 2)]
    assert path(edges, 1, {0}) == [(1, 2), (2, 0)]
    assert path(edges, 1, {1}) == []
    assert path(edges, 0, {4}) is None
    assert reachable(edges, 0) == [(0, 1), (0, 2)]


def test_worked_solution_ends_as_the_answer() -> None:
    for problem, _, telling in told(1):
        *steps, last = re.split(r"(?<=\.) ", telling.rationale)
        assert last.startswith("So " if telling.answer == "yes" else "That is all, so ")
        assert len(steps) == (steps_between(problem) or len(steps)) >= 1


def nodes_in(sentence: str, domain: str) -> list[str]:
    nodes = {node.removeprefix("the ") for scene in SCENES[domain] for node in scene.nodes}
    return [word for word in re.findall(r"\w+", sentence) if word in nodes or word.lower() in nodes]


def test_reversed_links_are_noticed() -> None:
    for _, domain, telling in told(2):
        parsed = parse(telling.question)
        *links, asked = re.split(r"(?<=[.?]) ", telling.question)
        goals = {node.lower() for node in nodes_in(asked, domain)}
        for i, link in enumerate(links[1:], start=1):
            one, other = nodes_in(link, domain)
            # A link that has nothing to do with the question can be turned round by renaming, which is no change.
            if {one.lower(), other.lower()} & goals:
                turned = link.replace(one, "#").replace(other, one).replace("#", other)
                tampered = " ".join([*links[:i], turned, *links[i + 1 :], asked])
                assert parse(tampered) != parsed, tampered


def test_dropped_links_and_turned_questions_are_noticed() -> None:
    for _, domain, telling in told(3):
        parsed = parse(telling.question)
        intro, *links, asked = re.split(r"(?<=[.?]) ", telling.question)
        one, other = nodes_in(asked, domain)
        turned = asked.replace(one, "#").replace(other, one).replace("#", other)
        assert parse(" ".join([intro, *links, turned])) != parsed
        assert parse(" ".join([*links, asked])) is None
        for i in range(len(links)):
            assert parse(" ".join([intro, *links[:i], *links[i + 1 :], asked])) != parsed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("These are all the roads. From Oz a road leads to Ur. Ur leads to Ys. Can one get from Oz to Ys?", "yes"),
        ("There are only these roads. Oz leads to Ur. Ys leads to Ur. Can one get from Oz to Ys?", "no"),
        ("There are only these rules. Tar needs wax. Wax depends on oil. Does tar depend on oil?", "yes"),
        ("There are only these rules. Tar is needed for wax. Oil requires wax. Does tar require oil?", "no"),
        ("There are only these rules. Tar feeds wax. Wax is fed by oil. Can wax be reached from oil?", "yes"),
        ("Oz leads to Ur. Ur leads to Ys. Can one get from Oz to Ys?", None),
        ("There are only these roads. Oz does not lead to Ur. Ur leads to Ys. Can one get from Ur to Ys?", None),
        ("There are only these roads. Oz likes Ur. Ur leads to Ys. Can one get from Oz to Ys?", None),
        ("There are only these roads. Oz leads to Ur. Ur leads to Ys. Can one get from Oz to Uz?", None),
    ],
)
def test_reader_on_sentences_of_no_template(text: str, answer: str | None) -> None:
    parsed = parse(text)
    assert (parsed.answer if parsed else None) == answer
