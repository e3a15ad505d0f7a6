"""The verdict on one generated answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from isodistill.data.rows import AnswerType
from isodistill.errors import UserError
from isodistill.evaluation import symbolic
from isodistill.evaluation.instructions import broken_instructions, read_instructions
from isodistill.evaluation.parse import canon, number_value, parse_answer, read_answer
from isodistill.evaluation.programs import setup_and_tests, try_program

__all__ = ["OUTCOMES", "Finish", "Outcome", "verify", "why_unreadable", "with_reason"]

Outcome: TypeAlias = Literal["correct", "truncated", "unparsed", "wrong"]
OUTCOMES: tuple[Outcome, ...] = ("correct", "truncated", "unparsed", "wrong")
Finish: TypeAlias = Literal["eos", "length"]

_TOLERANCE = Fraction(1, 10**6)  # relative
_MATHEMATICS = re.compile(r"[\\^√π]")


def verify(
    output: str, answer: str, answer_type: AnswerType, choices: Sequence[str] | None = None, finish: Finish = "eos"
) -> Outcome:
    """Does an output answer its problem?

    Numbers, choices, yes/no and strings: does the last marked answer match the gold ``answer``? Compared exactly, then
    as numbers (1e-6 relative; fractions exactly), and only where one side is a longer expression by math-verify in a
    worker process with a limit of 5 s. Code: does the program in the output pass the tests (``programs``), in a
    sandbox? Instructions: does the output follow all of them (``instructions``)?

    Args:
        output: the generated text, without the prompt.
        answer: the gold answer, in the rows' convention for ``answer_type``.
        answer_type: number, choice, yesno, string, code or instructions.
        choices: option texts without letters.
        finish: "eos" when the student ended by itself, "length" when it was cut off.

    Returns:
        "correct"; "wrong": an answer was parsed and does not match; "truncated": cut off before an answer; "unparsed":
        ended without a marked answer, or the symbolic check gave no verdict.

    Raises:
        UserError: the gold answer cannot be read as ``answer_type``, or programs cannot be run on this machine.
    """
    return with_reason(output, answer, answer_type, choices, finish)[0]


def with_reason(
    output: str, answer: str, answer_type: AnswerType, choices: Sequence[str] | None = None, finish: Finish = "eos"
) -> tuple[Outcome, str | None]:
    """The outcome of ``verify``, and why it is not "correct": what a program did, or the instructions not followed.

    The reason is None for a correct output, and for the other types of answer.
    """
    gold, unreadable = read_answer(answer, answer_type, choices), why_unreadable(answer, answer_type)
    if gold is None or unreadable is not None:
        raise UserError(
            f"The gold answer {answer!r} cannot be read as answer_type {answer_type!r} (choices: {choices})"
            f"{'' if unreadable is None else f': it {unreadable}'}. Mend the column 'answer' (number: a plain decimal; "
            "choice: the letter; yesno: yes or no; code: a program of tests; instructions: a JSON list) or "
            "'answer_type'."
        )
    if answer_type == "code":
        return _program(output, answer, finish)
    if answer_type == "instructions":
        return _instructions(output, answer, finish)
    parsed = parse_answer(output, answer_type, choices)
    if parsed is None:
        return ("truncated" if finish == "length" else "unparsed"), None
    equal = _equal(parsed, gold, answer_type, choices)
    return ("unparsed" if equal is None else "correct" if equal else "wrong"), None


def why_unreadable(answer: str, answer_type: AnswerType) -> str | None:
    """Why a gold answer of type code or instructions cannot verify anything; None where it can, and for other types."""
    try:
        if answer_type == "code":
            setup_and_tests(answer)
        elif answer_type == "instructions":
            read_instructions(answer)
    except ValueError as error:
        return str(error)
    return None


def _program(output: str, answer: str, finish: Finish) -> tuple[Outcome, str | None]:
    trial = try_program(output, answer)
    if trial is None:
        return ("truncated" if finish == "length" else "unparsed"), "holds no program"
    if trial.ok:
        return "correct", None
    cut_off = finish == "length" and trial.reason == "raises SyntaxError"
    return ("truncated" if cut_off else "wrong"), trial.reason


def _instructions(output: str, answer: str, finish: Finish) -> tuple[Outcome, str | None]:
    """Outputs that were cut off are judged as they are, too: what they say may be all that was asked for."""
    broken = broken_instructions(output, read_instructions(answer))
    if not broken:
        return "correct", None
    return ("truncated" if finish == "length" else "wrong" if output.strip() else "unparsed"), "; ".join(broken)


def _equal(parsed: str, gold: str, answer_type: AnswerType, choices: Sequence[str] | None) -> bool | None:
    """None when the symbolic check gave no verdict."""
    if parsed.casefold() == gold.casefold():
        return True
    if answer_type in ("choice", "yesno"):
        return False
    if answer_type == "string" and choices:
        letter = canon(parsed, answer_type, choices)
        return letter is not None and letter == canon(gold, answer_type, choices)
    a, b = number_value(parsed), number_value(gold)
    if a is not None and b is not None:
        return abs(a - b) <= _TOLERANCE * abs(b)
    if answer_type == "string" and not _MATHEMATICS.search(gold):
        return False  # words, dates, codes: math-verify would multiply letters and divide dates
    return symbolic.symbolic_equal(parsed, gold)
