"""Schedule: the solver against a clock that ticks, and the reader on new words."""

from __future__ import annotations

import random

import pytest

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.schedule import parse
from isodistill.isomers.families.schedule import Schedule
from isodistill.isomers.family import Problem

SCHEDULE = Schedule()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in SCHEDULE.shapes(difficulty)]


def busy_from(start: int, chain: list[str], durations: list[int]) -> list[set[int]]:
    """The busy ticks of every activity when the chain begins at a time."""
    left = list(durations)
    activities = [set(range(start, start + left.pop(0)))]
    if chain[0] == "both":
        activities.append(set(range(start, start + left.pop(0))))
    for join in chain[1:]:
        begin = max(set().union(*activities)) + 1
        if join == "gap":
            begin += left.pop(0)
        if join == "lap":
            begin -= left.pop(0)
        activities.append(set(range(begin, begin + left.pop(0))))
    assert left == []
    return activities


def ticked(problem: Problem) -> int:
    """The answer by looking at every tick; the start is searched for where it is asked."""
    *chain, asked = (str(link) for link in problem.shape)
    values = problem.values["numbers"]
    assert isinstance(values, tuple)
    given = [n for n in values if isinstance(n, int)]
    if asked == "begin":
        *durations, end = given
        starts = [s for s in range(end) if max(set().union(*busy_from(s, chain, durations))) + 1 == end]
        assert len(starts) == 1
        return starts[0]
    start, durations = given[0], given[1:] if asked == "end" else given[1:-1]
    end = max(set().union(*busy_from(start, chain, durations))) + 1
    return end if asked == "end" else len(range(end, given[-1]))


@pytest.mark.parametrize("shape", SHAPES, ids="-".join)
def test_solver_agrees_with_the_clock(shape: tuple[str, ...]) -> None:
    for seed in range(15):
        problem = SCHEDULE.draw(shape, random.Random(seed))
        assert SCHEDULE.solve(problem) == str(ticked(problem))


def test_an_overlap_is_shorter_than_both_activities() -> None:
    for seed in range(60):
        problem = SCHEDULE.draw(("both", "lap", "end"), random.Random(seed))
        values = problem.values["numbers"]
        assert isinstance(values, tuple)
        start, first, second, _, third = (n for n in values if isinstance(n, int))
        one, other, last = busy_from(start, ["both", "lap"], [first, second, *values[3:]])  # type: ignore[list-item]
        assert len(last) == third
        assert max(last) > max(one | other) >= min(last) > start


def test_either_of_two_side_by_side_may_be_longer() -> None:
    drawn = [SCHEDULE.draw(("both", "end"), random.Random(seed)).values["numbers"] for seed in range(200)]
    assert all(numbers[1] != numbers[2] for numbers in drawn if isinstance(numbers, tuple))
    longer = sum(numbers[1] > numbers[2] for numbers in drawn if isinstance(numbers, tuple))  # type: ignore[operator]
    assert 70 <= longer <= 130


def test_rationale_names_the_longer_of_two() -> None:
    problem = Problem("schedule", ("both", "lap", "begin"), {"numbers": (15, 20, 4, 30, 90)})
    steps = "Compare: 20 is longer than 15. Subtract: 20 - 4 = 16. Add: 16 + 30 = 46. Subtract: 90 - 46 = 44."
    assert SCHEDULE.tell(problem, "law", random.Random(0)).rationale == steps


@pytest.mark.parametrize(
    ("text", "structure", "values", "answer"),
    [
        (
            "A parade begins at minute 12. The march takes 30 minutes. Fireworks start 5 minutes after the end of the "
            "march and last 20 minutes. At which minute is the parade over?",
            ("run", "gap", "end"),
            (12, 30, 5, 20),
            "67",
        ),
        (
            "A parade is held. Drums and flutes play together, 14 minutes and 25 minutes. A song of 10 minutes starts "
            "4 minutes before the end of the longer piece. It is over at minute 50. At which minute does it begin?",
            ("both", "lap", "begin"),
            (14, 25, 4, 10, 50),
            "19",
        ),
    ],
)
def test_reader_understands_other_words(
    text: str, structure: tuple[str, ...], values: tuple[int, ...], answer: str
) -> None:
    assert parse(text) == Parsed("schedule", structure, values, answer)


@pytest.mark.parametrize(
    "text",
    [
        "A parade begins. The march takes 30 minutes. At which minute is the parade over?",
        "A parade begins at minute 12. The march takes 30 minutes. Songs take 20 minutes. At which minute is it over?",
        "A parade begins at minute 12. The march takes 30 minutes. It rains at minute 20. How many minutes are left?",
        "A parade begins at minute 12. Marches take 30 minutes and 20 minutes. At which minute is the parade over?",
        "",
    ],
)
def test_reader_refuses_what_is_unclear(text: str) -> None:
    assert parse(text) is None
