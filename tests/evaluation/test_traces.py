"""Verdicts on traces, and the sums inside them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

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
        ("6 x 4 = 24. 24 - 5 = 19. The answer is 1", "length", "truncated", "its answer 1"),
        ("6 x 4 = 24. 24 - 5 = 19. The answer is 19", "length", "truncated", "its answer 19"),
        ("6 x 4 = 24. 24 - 5 = 19. The answer is 19.", "length", "truncated", "its answer 19"),
        ("The answer is 24. No, the answer is 19", "length", "truncated", "its answer 19"),
        ("24 - 5 = 19. The answer is 19 briefs", "length", "correct", "hold"),
        ("24 - 5 = 19. The answer is 19. They are", "length", "correct", "hold"),
        (r"24 - 5 = 19, so \boxed{19}", "length", "correct", "hold"),
        ("24 - 5 = 19. The answer is 19\n", "length", "correct", "hold"),
        ("24 - 5 = 19. The answer is 19", "stop", "correct", "hold"),
        ("Nineteen briefs, I think.", "stop", "unparsed", "no final answer"),
        ("", "content_filter", "unparsed", "is empty"),
        ("6 x 4 = 25. 25 - 5 = 20. The answer is 19.", "stop", "bad_step", "6 x 4 = 25"),
        ("Шесть раз по четыре минус пять. The answer is 19.", "stop", "other_language", "letters"),
        ("六乘四得二十四再减去五得十九就是十九份文件这样就行了 The answer is 19.", "stop", "other_language", "letters"),
    ],
)
def test_each_verdict_has_its_reason(text: str, finish: str, verdict: str, reason: str) -> None:
    judged = judge(ROW, text, finish, check_steps=True)
    assert (judged.verdict, reason in judged.reason) == (verdict, True)


def test_another_language_in_the_same_letters_is_noticed_where_it_is_clear() -> None:
    prompt = "The clerk files the briefs of the day and takes four of them to the court. How many are left?"
    row = Row(id="r", prompt=prompt, answer="19", answer_type="number")
    german = "Der Beamte legt die Akten ab, und die vier sind nicht mit den anderen zu dem Gericht. The answer is 19."
    judged = judge(row, german, "stop", check_steps=True)
    assert (judged.verdict, judged.reason) == ("other_language", "is told in de, and the problem in en")
    assert judge(row, "Vier weniger: 19. The answer is 19.", "stop", check_steps=True).verdict == "correct"  # not clear


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
        "9 * 1 + 7 * 25 = 9 + 175 = 184", "7.5 / 1/2 = 15", "1 + 1 = " + "9" * 9000,
        "3.6666666666666665 - 2.3333333333333335 = 1.3333333333333334",
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
        ("9 * 1 + 7 * 25 = 9 + 174", ["9 * 1 + 7 * 25 = 9"]),
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


def test_a_model_that_repeats_itself_takes_no_time() -> None:
    for text in ("1 + " * 20_000, "12" * 20_000, "1 x 2 = 2 " * 5_000, "3 - 1" * 10_000 + " =", "1,000" * 9_000):
        assert wrong_steps(text) == []


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "n_right", "n_wrong"), [("gpt35_arithmetic", 1532, 540), ("palm_commonsenseqa", 7479, 2258)]
)
def test_verdicts_are_the_marks_of_published_traces(real_data: Path, name: str, n_right: int, n_wrong: int) -> None:
    found: Counter[tuple[bool, str]] = Counter()
    wrong_sums: Counter[bool] = Counter()
    with gzip.open(real_data / "traces" / name / "all.jsonl.gz", "rt", encoding="utf-8") as file:
        for item in map(json.loads, file):
            if item["meta"]["model_answer"] is None:
                continue
            row = Row(
                id=item["id"], prompt=item["question"], answer=item["answer"], answer_type=item["answer_type"],
                choices=tuple(item["choices"]) if item["choices"] else None,
            )  # fmt: skip
            trace = f"{item['rationale']} The answer is {item['meta']['model_answer']}."
            found[item["meta"]["correct"], judge(row, trace, "stop", check_steps=False).verdict] += 1
            wrong_sums[item["meta"]["correct"]] += bool(wrong_steps(item["rationale"]))
    assert found == {(True, "correct"): n_right, (False, "wrong"): n_wrong}
    assert wrong_sums[True] / n_right < 0.01  # sums that do not hold are rare in right traces
    assert name != "gpt35_arithmetic" or wrong_sums[False] / n_wrong > 0.1
