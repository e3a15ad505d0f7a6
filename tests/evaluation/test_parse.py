from __future__ import annotations

import gzip
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.evaluation import canon, parse_answer

BALLS = ["green ball", "red ball", "blue ball"]


@pytest.mark.parametrize(
    ("output", "parsed"),
    [
        ("6 x 4 = 24. The answer is 19.", "19"),
        ("Answer: 19", "19"),
        ("**Answer:** 19", "19"),
        ("**The answer is 19.** Done.", "19"),
        ("The answer is **19** apples.", "19"),
        ("so it is\n#### 1,200", "1200"),
        ("$\\boxed{19}$ as said", "19"),
        ("The answer is $\\boxed{\\frac{6}{8}}$.", "3/4"),
        ("<answer>\n19\n</answer>", "19"),
        ("The answer is $5.50.", "5.5"),
        ("The answer is Rs. 480.", "480"),
        ("The answer is -$5", "-5"),
        ("The answer is 3/4", "3/4"),
        ("The answer is 1 1/2 cups.", "3/2"),
        ("The answer is 1e3", "1000"),
        ("The answer is 0.00.", "0"),
        ("The answer is .5", "0.5"),
        ("The answer is 50%.", "50"),
        ("The answer is 25 cm^2.", "25"),
        ("The answer is 3 + 4 = 7 eggs.", "7"),
        ("The answer is Janet makes $18 a day.", "18"),
        ("The answer is 2\\sqrt{3}.", "2\\sqrt{3}"),
        ("The answer is 3 x 4", "3 * 4"),
        ("The answer to the question is 1{,}200\\text{ dollars}", "1200"),
    ],
)
def test_reads_a_marked_number(output: str, parsed: str) -> None:
    assert parse_answer(output, "number") == parsed


@pytest.mark.parametrize(
    "output",
    [
        "",
        "6 x 4 = 24, so 19.",
        "The answer is",
        "The answer is the sum of 3 and 4",
        "The answer is not 19.",
        "The answer is 5/0",
        "The answer is 3,4",
        "The answer is 1.2.3",
        "The answer is 1e99999",
        "The answer is " + "1" * 6000,
        "#### Step 2",
        "\\boxed{19",
        "The answer is \\boxed{19",
    ],
)
def test_does_not_guess_a_number(output: str) -> None:
    assert parse_answer(output, "number") is None


@pytest.mark.parametrize(
    "output",
    [
        "The answer is 5. No: the answer is 19.",
        "#### 5\nAnswer: 19",
        "\\boxed{5} \\boxed{19}",
        "<answer>5</answer> <answer>19</answer>",
        "The answer is 19. I hope this answer is clear.",
        "The answer is 19. The answer is not 5.",
    ],
)
def test_the_last_marked_answer_counts(output: str) -> None:
    assert parse_answer(output, "number") == "19"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B)", "B"),
        ("B)", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("option B", "B"),
        ("B) red ball", "B"),
        ("B because it was swapped", "B"),
        ("\\text{B}", "B"),
        ("Red  ball.", "B"),
        ("the red ball", "B"),
        ("D", None),
        ("a ball", None),
        ("the red ball or the blue ball", None),
        ("not the red ball", None),
    ],
)
def test_reads_a_choice(text: str, letter: str | None) -> None:
    assert parse_answer(f"The answer is {text}", "choice", BALLS) == letter


def test_an_option_inside_a_longer_option_is_not_named() -> None:
    assert parse_answer("The answer is non-entailment", "choice", ["entailment", "non-entailment"]) == "B"
    assert parse_answer("It is clear. The answer is surely very hot", "choice", ["hot", "very hot"]) == "B"
    assert parse_answer("The answer is -5", "choice", ["5", "-5"]) == "B"
    assert parse_answer("The answer is $3.5$", "choice", ["5", "3.5"]) == "B"
    assert parse_answer("The answer is surely -5", "choice", ["5", "7"]) is None
    assert parse_answer("The answer is about 3.5 km", "choice", ["5", "7"]) is None
    assert parse_answer("The answer is about 5.3 km", "choice", ["5", "7"]) is None


def test_an_option_may_begin_with_not() -> None:
    assert parse_answer("The answer is not hungry.", "choice", ["hungry", "not hungry"]) == "B"
    assert parse_answer("The answer is not hungry.", "choice", ["hungry", "thirsty"]) is None


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("yes", "yes"), ("True.", "yes"), ("No, since it is shut", "no"), ("false", "no"), ("nothing", None)],
)
def test_reads_yes_and_no(text: str, parsed: str | None) -> None:
    assert parse_answer(f"The answer is {text}", "yesno") == parsed


def test_reads_a_string_without_its_quotes() -> None:
    assert parse_answer('The answer is "new  adds".', "string") == "new adds"


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_every_way_to_write_a_number_has_one_form(number: Decimal) -> None:
    parsed = {parse_answer(f"The answer is {text}.", "number") for text in (f"{number}", f"{number:,}", f"{number}000")}
    assert len(parsed) == 1
    assert Decimal(parsed.pop()) == number


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_equal_numbers_have_one_canonical_form(n: int, d: int) -> None:
    forms = {canon(f"{n}/{d}", "number"), canon(f"{3 * n}/{3 * d}", "number")}
    assert len(forms) == 1
    assert Fraction(forms.pop()) == Fraction(n, d)


@given(st.text(max_size=200), st.sampled_from(["number", "choice", "yesno", "string"]))
def test_any_text_can_be_parsed(text: str, answer_type: str) -> None:
    parsed = parse_answer(f"The answer is {text}", answer_type, BALLS)
    assert parsed is None or isinstance(canon(parsed, answer_type, BALLS), str | None)


def test_canonical_forms() -> None:
    assert canon("3/4", "number") == canon("0.75", "number") == "0.75"
    assert canon("1/3", "number") == "1/3"
    assert canon("2\\sqrt{3}", "number") is None
    assert canon("yes", "yesno") == "yes"
    assert canon("B", "choice", BALLS) == "B"
    assert canon("Red ball", "string", BALLS) == "B"
    assert canon("mauve", "string") is None
    assert canon("print(1)", "code") is None
    assert canon(None, "number") is None


@pytest.mark.real_data
def test_every_real_gold_answer_is_read_back(real_data: Path) -> None:
    n = 0
    for path in sorted(real_data.glob("*/*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row.get("answer_type") not in ("number", "choice", "yesno"):
                    continue
                parsed = parse_answer(f"So it goes. The answer is {row['answer']}.", row["answer_type"], row["choices"])
                same = Decimal(parsed) == Decimal(row["answer"]) if row["answer_type"] == "number" else None
                assert parsed == row["answer"] or same, row["id"]
                n += 1
    assert n > 10_000
