"""Verdicts on traces, and the sums inside them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.data.rows import Row
from isodistill.evaluation.arithmetic import wrong_steps
from isodistill.evaluation.traces import judge

ROW = Row(id="r", prompt="A clerk files 6 x 4 briefs, less 5. How many?", answer="19", answer_type="number")


@pytest.mark.parametrize(
    ("text", "finish", "verdict", "reason"),
    [
        ("6 x 4 = 24. 24 - 5 = 19. The answer is 19.", "stop", "correct", "hold"),
        ("6 x 4 = 24. The answer is 24.", "stop", "wrong", "answers 24 instead of 19"),
        ("6 x 4 = 24, and then", "length", "truncated", "cut off"),
        ("Nineteen briefs, I think.", "stop", "unparsed", "no final answer"),
        ("", "content_filter", "unparsed", "is empty"),
        ("6 x 4 = 25. 25 - 5 = 20. The answer is 19.", "stop", "bad_step", "6 x 4 = 25"),
        ("Шесть раз по четыре минус пять. The answer is 19.", "stop", "other_script", "letters"),
        ("六乘四得二十四再减去五得十九就是十九份文件这样就行了 The answer is 19.", "stop", "other_script", "letters"),
    ],
)
def test_each_verdict_has_its_reason(text: str, finish: str, verdict: str, reason: str) -> None:
    judged = judge(ROW, text, finish, check_steps=True)
    assert (judged.verdict, reason in judged.reason) == (verdict, True)


def test_steps_are_left_alone_when_not_asked_for() -> None:
    assert judge(ROW, "6 x 4 = 25. The answer is 19.", "stop", check_steps=False).verdict == "correct"


def test_a_problem_without_an_answer_is_not_judged() -> None:
    assert judge(Row(id="r", prompt="Why?"), "Because.", "stop", check_steps=True).verdict == "unverified"


@pytest.mark.parametrize(
    "text",
    [
        "16 - 3 - 4 = 9 * 2 = 18", "1,200 / 7 = 171.43", "$26 x 2 = $52", "10 / 3 = 3.33", "12 / 5 = 2", "2x = 10",
        "(3 + 4) * 2 = 14", "20% x 50 = 10", "2^3 + 1 = 9", "3 - -2 = 5", "5 + 3*2 = 11", "100 - 20 = 80%", "3x5=15",
        "2 * (3 + 4) = 14", "x + 3 = 10", "8 ÷ 0 = 0", "5 × 6 = 30.", "84 / 2 = 42 points", "x = 5 + 3 - y = 2",
    ],
)  # fmt: skip
def test_sums_that_hold_or_say_something_else(text: str) -> None:
    assert wrong_steps(text) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("7 * 36 = 250", ["7 * 36 = 250"]),
        ("16 - 3 - 4 = 9 * 2 = 19", ["9 * 2 = 19"]),
        ("10 / 3 = 3.4 and 5 + 3*2 = 16", ["10 / 3 = 3.4", "5 + 3*2 = 16"]),
        ("3 + 4 = 8.", ["3 + 4 = 8"]),
        ("3 + 4 = 7\n1,000 + 1 = 1,002", ["1,000 + 1 = 1,002"]),
    ],
)
def test_sums_that_do_not_hold(text: str, wrong: list[str]) -> None:
    assert wrong_steps(text) == wrong


numbers = st.integers(0, 9999)


@given(st.lists(st.tuples(st.sampled_from("+-*"), numbers), min_size=1, max_size=4), numbers, st.integers(-2, 2))
def test_sums_of_whole_numbers_against_python(chain: list[tuple[str, int]], first: int, slip: int) -> None:
    written = str(first) + "".join(f" {operator} {number}" for operator, number in chain)
    right = eval(written)
    assert bool(wrong_steps(f"So {written} = {right + slip}.")) == (slip != 0)
