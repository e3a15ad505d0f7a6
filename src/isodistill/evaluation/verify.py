"""The verdict on one generated answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from isodistill.data.rows import AnswerType
from isodistill.errors import UserError
from isodistill.evaluation import symbolic
from isodistill.evaluation.parse import canon, number_value, parse_answer, read_answer

__all__ = ["OUTCOMES", "Finish", "Outcome", "verify"]

Outcome: TypeAlias = Literal["correct", "truncated", "unparsed", "wrong"]
OUTCOMES: tuple[Outcome, ...] = ("correct", "truncated", "unparsed", "wrong")
Finish: TypeAlias = Literal["eos", "length"]

_TOLERANCE = Fraction(1, 10**6)  # relative
_MATHEMATICS = re.compile(r"[\\^√π]")


def verify(
    output: str, answer: str, answer_type: AnswerType, choices: Sequence[str] | None = None, finish: Finish = "eos"
) -> Outcome:
    """Does the last marked answer of ``output`` match the gold ``answer``?

    Compared exactly, then as numbers (1e-6 relative; fractions exactly), and only where one side is a longer expression
    by math-verify in a worker process with a limit of 5 s.

    Args:
        output: the generated text, without the prompt.
        answer: the gold answer, in the rows' convention for ``answer_type``.
        answer_type: number, choice, yesno or string.
        choices: option texts without letters.
        finish: "eos" when the student ended by itself, "length" when it was cut off.

    Returns:
        "correct"; "wrong": an answer was parsed and does not match; "truncated": cut off before an answer; "unparsed":
        ended without a marked answer, or the symbolic check gave no verdict.

    Raises:
        UserError: the gold answer cannot be read as ``answer_type``, or the type is code, which is not run.
    """
    if answer_type == "code":
        raise UserError(
            "answer_type 'code' cannot be verified: isodistill does not run generated programs. "
            "Leave these rows out of the evaluation."
        )
    gold = read_answer(answer, answer_type, choices)
    if gold is None:
        raise UserError(
            f"The gold answer {answer!r} cannot be read as answer_type {answer_type!r} (choices: {choices}). Mend the "
            "column 'answer' (number: a plain decimal; choice: the letter; yesno: yes or no) or 'answer_type'."
        )
    parsed = parse_answer(output, answer_type, choices)
    if parsed is None:
        return "truncated" if finish == "length" else "unparsed"
    equal = _equal(parsed, gold, answer_type, choices)
    return "unparsed" if equal is None else "correct" if equal else "wrong"


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
