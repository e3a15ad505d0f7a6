"""Propositional chains: the solver against a truth table, the worked solution, and tampered texts."""

from __future__ import annotations

import random
import re
from itertools import pairwise, product

import pytest

from isodistill.isomers.check.propositional import parse
from isodistill.isomers.families.propositional import Propositional
from isodistill.isomers.family import DOMAINS, Problem, Telling
from isodistill.isomers.stories.sentences import Event

FAMILY = Propositional()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in FAMILY.shapes(difficulty)]


def verdicts(problem: Problem) -> set[bool]:
    """The truth values of the event asked for in all worlds that fit the clues."""
    clues = problem.values["clues"]
    events = sorted({event for _, *literals in clues for event, _ in literals})
    found = set()
    for values in product([True, False], repeat=len(events)):
        world = dict(zip(events, values, strict=True))
        holds = [(kind, world[p] is ps, world[q] is qs) for kind, (p, ps), (q, qs) in clues]
        if all({"if": q or not p, "or": p or q, "fact": p}[kind] for kind, p, q in holds):
            found.add(world[problem.values["asked"]])
    return found


def told(seed: int) -> list[Telling]:
    rng = random.Random(seed)
    return [FAMILY.tell(FAMILY.draw(shape, rng), domain, rng) for shape in SHAPES for domain in DOMAINS]


@pytest.mark.parametrize("shape", SHAPES, ids="-".join)
def test_solver_equals_truth_table(shape: tuple[str, ...]) -> None:
    rng = random.Random(4)
    for _ in range(30):
        problem = FAMILY.draw(shape, rng)
        assert verdicts(problem) == {FAMILY.solve(problem) == "yes"}


def test_event_asked_for_is_told_once_affirmed_and_once_negated() -> None:
    rng = random.Random(5)
    for shape in SHAPES:
        problem = FAMILY.draw(shape, rng)
        asked = problem.values["asked"]
        signs = [sign for kind, *pair in problem.values["clues"] for event, sign in pair if event == asked]
        assert sorted(signs) == [False, True], shape


def test_worked_solution_ends_as_the_answer() -> None:
    for telling in told(1):
        steps = telling.rationale.rstrip(".").split(". ")
        assert ("not" in steps[-1].split(", so ")[1].split()) == (telling.answer == "no")
        for one, next_one in pairwise(steps):
            assert one.split(", so ")[1].lower() == next_one.split(", so ")[0].lower()


def test_every_clue_changes_the_reading() -> None:
    for telling in told(2):
        parsed = parse(telling.question)
        *clues, asked = re.split(r"(?<=[.?]) ", telling.question)
        for i, clue in enumerate(clues[1:], start=1):
            changes = [
                "",
                re.sub(r" (is|does) not ", r" \1 ", clue, count=1),
                re.sub(r" is (?!not)", " is not ", clue, count=1),
                re.sub(r"^If (.+), (.+)\.", r"If \2, \1.", clue),
                re.sub(r"^(.+) if (.+)\.", r"\2 if \1.", clue),
                re.sub(r"^(.+) unless ", r"\1 if ", clue),
                clue.replace("Either", "If").replace(" or ", ", "),
            ]
            for changed in changes:
                if changed != clue:
                    tampered = " ".join([*clues[:i], *([changed] if changed else []), *clues[i + 1 :], asked])
                    assert parse(tampered) != parsed, tampered


def test_no_negation_of_unclear_reach() -> None:
    for telling in told(7):
        assert not re.search(r"\bnot\b[^.,]* (?:only if|whenever)\b|\b[Uu]nless [^.,]*\bnot\b", telling.question)


def test_another_question_is_noticed() -> None:
    rng = random.Random(6)
    for shape in SHAPES:
        problem = FAMILY.draw(shape, rng)
        known = next(p[0] for kind, p, _ in problem.values["clues"] if kind == "fact")
        other = Problem(problem.family, problem.shape, {**problem.values, "asked": known})
        assert parse(FAMILY.tell(problem, "law", rng).question) != parse(FAMILY.tell(other, "law", rng).question)


@pytest.mark.parametrize(
    ("event", "positive", "negative", "question"),
    [
        (Event("the gate", "be open"), "the gate is open", "the gate is not open", "is the gate open"),
        (Event("Ann", "carry sand"), "Ann carries sand", "Ann does not carry sand", "does Ann carry sand"),
        (Event("Bob", "play"), "Bob plays", "Bob does not play", "does Bob play"),
        (Event("she", "watch"), "she watches", "she does not watch", "does she watch"),
    ],
)
def test_clauses_of_an_event(event: Event, positive: str, negative: str, question: str) -> None:
    assert (event.clause(True), event.clause(False), event.question) == (positive, negative, question)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("If it is so, fine. The bell rings. Does the bell ring?", None),
        ("If the bell rings, the dog barks. Now the bell rings. Does the dog bark?", "yes"),
        ("The dog barks only if the bell rings. Now the bell does not ring. Does the dog bark?", "no"),
        ("Unless the bell rings, the dog barks. Now the bell does not ring. Does the dog bark?", "yes"),
        ("The bell rings, or the dog barks. Now the bell does not ring. Does the dog bark?", "yes"),
        ("If the bell rings, the dog barks. Now the dog barks. Does the bell ring?", None),
        ("If the bell rings, the dog barks. Now the bell rings. Does the cat purr?", None),
        ("If the bell rings and the sun is up, the dog barks. Now the bell rings. Does the dog bark?", None),
        ("If the bell rings, the dog never barks. Now the bell rings. Does the dog bark?", None),
    ],
)
def test_reader_on_sentences_of_no_template(text: str, answer: str | None) -> None:
    parsed = parse(text)
    assert (parsed.answer if parsed else None) == answer
