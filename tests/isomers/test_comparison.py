"""Comparison: the solver against counted totals, both outcomes equally often, and the reader on new words."""

from __future__ import annotations

import random

import pytest

from isodistill.isomers.check.comparison import parse
from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.families.comparison import Comparison
from isodistill.isomers.family import Problem

COMPARISON = Comparison()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in COMPARISON.shapes(difficulty)]


def numbers_of(problem: Problem) -> list[int]:
    values = problem.values["numbers"]
    assert isinstance(values, tuple)
    return [n for n in values if isinstance(n, int)]


def counted(problem: Problem) -> tuple[int, int, int]:
    """The first total, the second total or the threshold, and the answer."""
    side, other, asked = problem.shape
    given = numbers_of(problem)
    rows, width = given.pop(0), given.pop(0)
    first = sum(1 for _ in range(rows) for _ in range(width))
    if side == "muladd":
        first += given.pop(0)
    if side == "mulsub":
        first -= given.pop(0)
    if other in ("over", "under"):
        threshold, change = given
        holds = first in range(threshold + 1, 10_000) if other == "over" else first in range(threshold)
        return first, threshold, first + holds * (change if asked == "add" else -change)
    second = given[0] if other == "num" else sum(given[0] for _ in range(given[1]))
    ordered = sorted((first, second))
    return first, second, {"larger": ordered[1], "smaller": ordered[0], "diff": ordered[1] - ordered[0]}[str(asked)]


@pytest.mark.parametrize("shape", SHAPES, ids="-".join)
def test_solver_counts_right(shape: tuple[str, ...]) -> None:
    for seed in range(15):
        problem = COMPARISON.draw(shape, random.Random(seed))
        first, second, answer = counted(problem)
        assert first != second
        assert min(first, second, answer, *numbers_of(problem)) >= 2
        assert COMPARISON.solve(problem) == str(answer)


@pytest.mark.parametrize("shape", SHAPES, ids="-".join)
def test_both_outcomes_are_equally_likely(shape: tuple[str, ...]) -> None:
    first_is_larger = 0
    for seed in range(200):
        first, second, _ = counted(COMPARISON.draw(shape, random.Random(seed)))
        first_is_larger += first > second
    assert 70 <= first_is_larger <= 130


@pytest.mark.parametrize(
    ("shape", "numbers", "rationale"),
    [
        (
            ("mul", "num", "diff"),
            (6, 4, 30),
            "Multiply: 6 x 4 = 24. Compare: 24 is less than 30. Subtract: 30 - 24 = 6.",
        ),
        (
            ("mul", "mul", "smaller"),
            (6, 4, 5, 7),
            "Multiply: 6 x 4 = 24. Multiply: 5 x 7 = 35. Compare: 35 is more than 24. Take the smaller: 24.",
        ),
        (
            ("mul", "over", "sub"),
            (6, 4, 20, 3),
            "Multiply: 6 x 4 = 24. Compare: 24 is more than 20. Subtract: 24 - 3 = 21.",
        ),
        (
            ("mul", "under", "sub"),
            (6, 4, 20, 3),
            "Multiply: 6 x 4 = 24. Compare: 24 is more than 20. The rule does not apply: 24.",
        ),
    ],
)
def test_rationale_says_the_comparison(shape: tuple[str, ...], numbers: tuple[int, ...], rationale: str) -> None:
    problem = Problem("comparison", shape, {"numbers": numbers})
    assert COMPARISON.tell(problem, "law", random.Random(0)).rationale == rationale


@pytest.mark.parametrize(
    ("text", "structure", "values", "answer"),
    [
        (
            "A farm has 6 stables with 4 horses each. It gains 5 horses. Another farm has 20 horses. "
            "By how many horses do the farms differ?",
            ("muladd", "num", "diff"),
            (6, 4, 5, 20),
            "9",
        ),
        (
            "Each of 3 boats carries 8 people. If there are fewer than 30 people, another 7 people arrive. "
            "How many people are there?",
            ("mul", "under", "add"),
            (3, 8, 30, 7),
            "31",
        ),
    ],
)
def test_reader_understands_other_words(
    text: str, structure: tuple[str, ...], values: tuple[int, ...], answer: str
) -> None:
    assert parse(text) == Parsed("comparison", structure, values, answer)


@pytest.mark.parametrize(
    "text",
    [
        "A farm has 6 stables and 4 horses. A second farm has 20 horses. By how many horses do the farms differ?",
        "A farm has 6 stables with 4 horses each. A second farm has 20 horses. How many horses are there?",
        "A farm has 6 stables with 4 horses each. If there are 30 horses, it gains 5. How many horses are there?",
        "A farm has 6 stables with 4 horses each. It paints 5 horses. A second farm has 20 horses. Which has more?",
        "",
    ],
)
def test_reader_refuses_what_is_unclear(text: str) -> None:
    assert parse(text) is None
