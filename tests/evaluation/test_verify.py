from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.errors import UserError
from isodistill.evaluation import symbolic, verify
from isodistill.evaluation.verify import OUTCOMES


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which the symbolic worker would start."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the cheap path started a worker")

    monkeypatch.setattr(symbolic.subprocess, "Popen", refuse)
    monkeypatch.setattr(symbolic, "default_checker", symbolic.SymbolicChecker())


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(
    ("output", "finish", "outcome"),
    [
        ("6 x 4 = 24. The answer is 19.", "eos", "correct"),
        ("The answer is 19. And then it went on and", "length", "correct"),
        ("6 x 4 = 24 and then", "length", "truncated"),
        ("I do not know.", "eos", "unparsed"),
        ("The answer is 18.", "eos", "wrong"),
        ("The answer is 18. And then it went on and", "length", "wrong"),
        ("19. The answer is 18.", "eos", "wrong"),
    ],
)
def test_the_four_outcomes(output: str, finish: str, outcome: str) -> None:
    assert verify(output, "19", "number", finish=finish) == outcome


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(
    ("given_answer", "gold", "answer_type", "equal"),
    [
        ("1,200", "1200", "number", True),
        ("19.0", "19", "number", True),
        ("0.333333", "1/3", "number", True),
        ("0.33", "1/3", "number", False),
        ("3/4", "0.75", "number", True),
        ("1000001", "1000000", "number", True),
        ("1000002", "1000000", "number", False),
        ("-1000001", "-1000000", "number", True),
        ("0.0000001", "0", "number", False),
        ("B", "B", "choice", True),
        ("cat", "B", "choice", True),
        ("A", "B", "choice", False),
        ("True", "yes", "yesno", True),
        ("no", "yes", "yesno", False),
        ("Adds", "adds", "string", True),
        ("3 apples", "adds", "string", False),
        ("04/10/2020", "02/05/2020", "string", False),
        ("1 1/2", "1.5", "string", True),
    ],
)
def test_exact_and_numeric_matches_need_no_worker(given_answer: str, gold: str, answer_type: str, equal: bool) -> None:
    choices = ["dog", "cat"] if answer_type == "choice" else None
    assert verify(f"The answer is {given_answer}.", gold, answer_type, choices) == ("correct" if equal else "wrong")


def test_a_string_with_options_is_compared_as_an_option() -> None:
    assert verify("The answer is the cat.", "cat", "string", ["dog", "cat"]) == "correct"
    assert verify("The answer is the dog.", "cat", "string", ["dog", "cat"]) == "wrong"


@pytest.mark.parametrize(("given_answer", "outcome"), [("2\\sqrt{3}", "correct"), ("3\\sqrt{2}", "wrong")])
def test_expressions_are_compared_symbolically(given_answer: str, outcome: str) -> None:
    assert verify(f"The answer is ${given_answer}$.", "\\sqrt{12}", "number") == outcome


@pytest.mark.parametrize(("given_answer", "gold"), [("2√3", "\\sqrt{12}"), ("2**3", "8"), ("3 × 10^5", "300000")])
def test_plain_signs_are_translated_for_the_symbolic_check(given_answer: str, gold: str) -> None:
    assert verify(f"The answer is {given_answer}", gold, "number") == "correct"


def test_a_check_without_a_verdict_is_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "symbolic_equal", lambda answer, gold: None)
    assert verify("The answer is 9^9.", "3", "number") == "unparsed"


@pytest.mark.parametrize(
    ("gold", "answer_type", "named"),
    [("nineteen", "number", "nineteen"), ("maybe", "yesno", "maybe"), ("x", "code", "code")],
)
def test_a_gold_answer_that_cannot_be_read_is_named(gold: str, answer_type: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        verify("The answer is 19.", gold, answer_type)


@given(st.text(max_size=80), st.sampled_from(["eos", "length"]), st.booleans())
def test_each_text_has_exactly_one_outcome(text: str, finish: str, marked: bool) -> None:
    output = f"The answer is {text}" if marked else text
    outcome = verify(output, "yes", "yesno", finish=finish)
    assert outcome in OUTCOMES
    assert (outcome == "truncated") <= (finish == "length")
    assert (outcome == "unparsed") <= (finish == "eos")
