"""Ordering: the solver against all permutations, the worked solution, and tampered texts."""

from __future__ import annotations

import random
import re
from itertools import permutations

import pytest

from isodistill.isomers.check.ordering import parse
from isodistill.isomers.families.ordering import Ordering
from isodistill.isomers.family import DOMAINS, Problem, Telling

FAMILY = Ordering()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in FAMILY.shapes(difficulty)]


def lines(problem: Problem) -> list[tuple[int, ...]]:
    """All orders, low to high, that the clues allow."""
    keep = []
    for line in permutations(problem.values["choices"]):
        ok = True
        for kind, a, b in problem.values["clues"]:
            if kind == "first":
                ok &= line[0] == a
            elif kind == "last":
                ok &= line[-1] == a
            else:
                ok &= line.index(a) < line.index(b)
        if ok:
            keep.append(line)
    return keep


def told(seed: int) -> list[Telling]:
    rng = random.Random(seed)
    return [FAMILY.tell(FAMILY.draw(shape, rng), domain, rng) for shape in SHAPES for domain in DOMAINS]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_solver_equals_all_permutations(shape: tuple[str | int, ...]) -> None:
    rng = random.Random(4)
    for _ in range(40):
        problem = FAMILY.draw(shape, rng)
        (line,) = lines(problem)
        assert "ABCDE"[problem.values["choices"].index(line[shape[2]])] == FAMILY.solve(problem)


def test_clue_that_names_an_end_never_names_the_answer() -> None:
    for pattern, n, asked in SHAPES:
        assert not (pattern in ("first", "ends") and asked == 0)
        assert not (pattern in ("last", "ends") and asked == n - 1)


def test_options_are_the_things_of_the_text() -> None:
    for telling in told(1):
        assert len(set(telling.choices)) == len(telling.choices)
        assert all(re.search(rf"\b{re.escape(choice)}\b", telling.question, re.I) for choice in telling.choices)
        assert "ABCDE".index(telling.answer) < len(telling.choices)


def test_worked_solution_ends_with_the_option_asked_for() -> None:
    for telling in told(2):
        answer = telling.choices["ABCDE".index(telling.answer)]
        assert re.search(rf"\b{re.escape(answer)}, option {telling.answer}\.$", telling.rationale)
        order = re.search(r"In order: (.+?)\.", telling.rationale)
        assert sorted(order.group(1).split(", ")) == sorted(telling.choices)


def swap(text: str, one: str, other: str) -> str:
    """The text with the two names exchanged."""
    return re.sub(
        rf"\b(?:{one}|{other})\b", lambda m: other if m.group().lower() == one.lower() else one, text, flags=re.I
    )


def test_reversed_comparison_is_noticed() -> None:
    for telling in told(3):
        parsed = parse(telling.question, telling.choices)
        for sentence in re.split(r"(?<=[.?]) ", telling.question)[1:]:
            named = [c for c in telling.choices if re.search(rf"\b{c}\b", sentence, re.I)]
            if len(named) == 2:
                tampered = telling.question.replace(sentence, swap(sentence, *named))
                assert tampered.lower() != telling.question.lower()
                assert parse(tampered, telling.choices) != parsed, tampered


def test_other_options_other_place_and_dropped_clues_are_noticed() -> None:
    for telling in told(4):
        parsed = parse(telling.question, telling.choices)
        *start, clue, asked = re.split(r"(?<=[.?]) ", telling.question)
        assert parse(telling.question, telling.choices[::-1]) != parsed
        assert parse(" ".join([*start, asked]), telling.choices) != parsed
        assert parse(" ".join([*start, clue]), telling.choices) is None
        for one, other in (("second", "third"), ("first", "last"), ("shortest", "longest"), ("lowest", "highest")):
            # The middle place is the same from both ends.
            if re.search(rf"\b{one}\b", asked) and (one == "second" or not re.search("second|third", asked)):
                assert parse(" ".join([*start, clue, asked.replace(one, other)]), telling.choices) != parsed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("After Kim came Lou. Before Kim came Max. Who came last?", "B"),
        ("Lou arrived sooner than Kim. Max arrived sooner than Lou. Who arrived second?", "B"),
        ("Kim is bigger than Lou. Lou is bigger than Max. Who is the second biggest?", "B"),
        ("Kim is the tallest. Max is shorter than Lou. Which one is the shortest?", "C"),
        ("Kim is not taller than Lou. Max is shorter than Kim. Who is the tallest?", None),
        ("Kim is taller than Lou. Kim is taller than Max. Who is the shortest?", None),
        ("Kim is nicer than Lou. Lou is nicer than Max. Who is the nicest?", None),
        ("Kim is taller than Lou. Max is near Lou. Who is the tallest?", None),
    ],
)
def test_reader_on_sentences_of_no_template(text: str, answer: str | None) -> None:
    parsed = parse(text, ("Kim", "Lou", "Max"))
    assert (parsed.answer if parsed else None) == answer
