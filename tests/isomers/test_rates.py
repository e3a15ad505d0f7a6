"""Rates: the solver against counting things one by one, and the reader on sentences that no template knows."""

from __future__ import annotations

import random

import pytest

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.rates import parse
from isodistill.isomers.families.rates import Rates
from isodistill.isomers.family import Problem

RATES = Rates()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in RATES.shapes(difficulty)]


def counted(shape: tuple[str | int, ...], numbers: tuple[int, ...]) -> int:
    """The answer by laying out every single thing."""
    given = list(numbers)
    heap = ["thing"] * given.pop(0)
    for operation in shape:
        amount = given.pop(0)
        if operation == "mul":
            heap = [part for thing in heap for part in [thing] * amount]
        elif operation == "div":
            piles = [heap[i::amount] for i in range(amount)]
            assert len({len(pile) for pile in piles}) == 1, "unequal piles"
            heap = piles[0]
        else:
            things = ["thing"] * amount
            if operation in ("addmul", "submul"):
                things = things * given.pop(0)
            if operation in ("add", "addmul"):
                heap += things
            else:
                assert len(heap) > len(things), "more taken away than there is"
                del heap[: len(things)]
    assert given == []
    return len(heap)


@pytest.mark.parametrize("shape", SHAPES, ids="-".join)
def test_solver_counts_right(shape: tuple[str, ...]) -> None:
    for seed in range(15):
        problem = RATES.draw(shape, random.Random(seed))
        numbers = problem.values["numbers"]
        assert isinstance(numbers, tuple)
        assert all(isinstance(n, int) and n >= 2 for n in numbers)
        assert RATES.solve(problem) == str(counted(shape, numbers))


def test_structure_id_names_the_operations() -> None:
    assert RATES.draw(("mul", "sub"), random.Random(0)).structure_id == "rates/mul-sub"


def test_rationale_has_one_sentence_per_step() -> None:
    problem = Problem("rates", ("mul", "submul", "div"), {"numbers": (6, 7, 3, 4, 5)})
    telling = RATES.tell(problem, "mathematics", random.Random(0))
    steps = "Multiply: 6 x 7 = 42. Multiply: 3 x 4 = 12. Subtract: 42 - 12 = 30. Divide: 30 / 5 = 6."
    assert (telling.rationale, telling.answer) == (steps, "6")


@pytest.mark.parametrize(
    ("text", "structure", "values", "answer"),
    [
        (
            "Mia picks 7 shells per hour for 3 hours. Later she throws 4 shells back. How many shells does Mia have?",
            ("mul", "sub"),
            (3, 7, 4),
            "17",
        ),
        (
            "There are 30 toys. A child receives 6 additional toys. The toys are divided equally into 4 bags. "
            "How many toys are in each bag?",
            ("add", "div"),
            (30, 6, 4),
            "9",
        ),
        (
            "Each of 5 ponds has 8 frogs. Then 9 more frogs appear. Every frog has 2 eyes. How many eyes are there?",
            ("mul", "add", "mul"),
            (5, 8, 9, 2),
            "98",
        ),
    ],
)
def test_reader_understands_other_words(
    text: str, structure: tuple[str, ...], values: tuple[int, ...], answer: str
) -> None:
    assert parse(text) == Parsed("rates", structure, values, answer)


@pytest.mark.parametrize(
    "text",
    [
        "There are 30 toys. Then there are 6 toys. How many toys are there?",
        "There are 31 toys. A child receives 6 toys. They are divided equally into 4 bags. How many are in each bag?",
        "There are 36 toys. They are divided equally into 4 bags. How many toys are there?",
        "A shed has 6 rows of 4 bikes each. A thief takes away 5 bikes. By how many bikes do the sheds differ?",
        "There are 5 toys. A child loses 9 toys. How many toys are there?",
        "There are 5 bags and 6 toys. A child loses 9 toys. How many toys are there?",
        "There are 30 toys. If there are more than 20 toys, a child receives 6 toys. How many toys are there?",
        "",
    ],
)
def test_reader_refuses_what_is_unclear(text: str) -> None:
    assert parse(text) is None
