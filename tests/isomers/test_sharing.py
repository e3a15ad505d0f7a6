"""Sharing: the solver against handing out round by round, and the reader on new words."""

from __future__ import annotations

import random

import pytest

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.sharing import parse
from isodistill.isomers.families.sharing import Sharing
from isodistill.isomers.family import Problem

SHARING = Sharing()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in SHARING.shapes(difficulty)]
PLACES = ["first", "second", "third"]


def amount(parts: list[int], what: str | int) -> int:
    if what in PLACES:
        return parts[PLACES.index(str(what))]
    return {
        "total": sum(parts),
        "larger": max(parts),
        "smaller": min(parts),
        "difference": max(parts) - min(parts),
    }[str(what)]


def handed_out(problem: Problem) -> int:
    """The answer by handing out round after round until what is known has come about."""
    n_parts, given, asked = problem.shape
    values = problem.values["numbers"]
    assert isinstance(values, tuple)
    numbers = [n for n in values if isinstance(n, int)]
    ratio, known = numbers[: int(n_parts)], numbers[int(n_parts) :]
    parts = [0] * len(ratio)
    while amount(parts, "total" if given == "rest" else given) < known[0] - sum(known[1:]):
        parts = [part + share for part, share in zip(parts, ratio, strict=True)]
    assert amount(parts, "total" if given == "rest" else given) + sum(known[1:]) == known[0]
    return amount(parts, asked)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_solver_agrees_with_handing_out(shape: tuple[str | int, ...]) -> None:
    for seed in range(15):
        problem = SHARING.draw(shape, random.Random(seed))
        assert SHARING.solve(problem) == str(handed_out(problem))


def test_the_first_part_is_the_larger_one_half_of_the_time() -> None:
    drawn = [SHARING.draw((2, "total", "first"), random.Random(seed)).values["numbers"] for seed in range(300)]
    larger = sum(numbers[0] > numbers[1] for numbers in drawn if isinstance(numbers, tuple))  # type: ignore[operator]
    assert 110 <= larger <= 190


def test_rationale_has_one_sentence_per_step() -> None:
    problem = Problem("sharing", (3, "rest", "larger"), {"numbers": (3, 5, 2, 46, 6)})
    steps = "Subtract: 46 - 6 = 40. Add: 3 + 5 = 8. Add: 8 + 2 = 10. Divide: 40 / 10 = 4. Multiply: 4 x 5 = 20."
    assert SHARING.tell(problem, "law", random.Random(0)).rationale == steps


@pytest.mark.parametrize(
    ("text", "structure", "values", "answer"),
    [
        (
            "A king divides coins between the knight and the poet in the ratio 3 to 5. There are 40 coins in all. "
            "How many coins does the poet get?",
            (2, "total", "second"),
            (3, 5, 40),
            "25",
        ),
        (
            "A monkey throws nuts, sending 4 to the river, 2 to the rock and 3 to the tree each time. "
            "At night, 12 nuts lie by the rock. How many nuts does the monkey throw?",
            (3, "second", "total"),
            (4, 2, 3, 12),
            "54",
        ),
    ],
)
def test_reader_understands_other_words(
    text: str, structure: tuple[str | int, ...], values: tuple[int, ...], answer: str
) -> None:
    assert parse(text) == Parsed("sharing", structure, values, answer)


@pytest.mark.parametrize(
    "text",
    [
        "A king divides coins between a knight and a poet. There are 40 coins in all. How many does the poet get?",
        "A king divides coins between a knight and a poet in the ratio 3 to 5. There are 41 coins. What is the total?",
        "Coins are split between a knight and a poet in the ratio 3 to 5. There are 41 coins. How many has the poet?",
        "Coins are split between a poet and a poet in the ratio 3 to 5. There are 40 coins. How many are for the poet?",
        "",
    ],
)
def test_reader_refuses_what_is_unclear(text: str) -> None:
    assert parse(text) is None
