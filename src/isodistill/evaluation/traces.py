"""The verdict on a teacher's trace, with its reason in words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

from isodistill.data.rows import Row
from isodistill.evaluation.arithmetic import wrong_steps
from isodistill.evaluation.languages import other_language
from isodistill.evaluation.parse import canon, parse_answer
from isodistill.evaluation.verify import with_reason

__all__ = ["VERDICTS", "Judged", "Verdict", "judge"]

Verdict: TypeAlias = Literal["correct", "wrong", "truncated", "unparsed", "bad_step", "other_language", "unverified"]
VERDICTS: tuple[Verdict, ...] = (
    "correct",
    "wrong",
    "truncated",
    "unparsed",
    "bad_step",
    "other_language",
    "unverified",
)

_LAST_WORD = re.compile(r"\w+$")
_MOST_FOREIGN = 0.3
"""Share of letters in a script that the problem does not use, from which a trace is in another language."""


@dataclass(frozen=True)
class Judged:
    """A verdict.

    Attributes:
        verdict: correct; wrong, truncated or unparsed as in ``verify``; bad_step: right, by a sum that does not hold;
            other_language: not in the language of the problem; unverified: the row has no gold answer.
        reason: in words.
        answer: what the trace answered, at the level of the structure where there is one (``canon``).
    """

    verdict: Verdict
    reason: str
    answer: str | None


def judge(row: Row, text: str, finish_reason: str, *, check_steps: bool) -> Judged:
    """The verdict on one trace of a problem.

    Args:
        row: the problem, with its gold answer.
        text: the trace.
        finish_reason: why it ended; ``length`` where it was cut off.
        check_steps: whether a wrong sum spoils a right answer.
    """
    if row.answer is None or row.answer_type is None:
        return Judged("unverified", "the problem has no answer that could be verified", None)
    parsed = parse_answer(text, row.answer_type, row.choices)
    answer = canon(parsed, row.answer_type, row.choices) or parsed
    finish: Literal["eos", "length"] = "length" if finish_reason == "length" else "eos"
    outcome, why = with_reason(text, row.answer, row.answer_type, row.choices, finish=finish)
    if row.answer_type in ("code", "instructions"):
        return Judged(outcome, why or "all that was asked for holds", None)
    if finish == "length" and parsed is not None and _may_be_cut(text, parsed, row):
        return Judged("truncated", f"was cut off in, or right behind, its answer {parsed}", None)
    if outcome == "wrong":
        return Judged("wrong", f"answers {parsed} instead of {row.answer}", answer)
    if outcome == "truncated":
        return Judged("truncated", "was cut off before its answer", answer)
    if outcome == "unparsed":
        why = "is empty" if not text.strip() else f"gives no final answer (ended by {finish_reason})"
        return Judged("unparsed", why, answer)
    if _foreign(text, str(row.prompt)) > _MOST_FOREIGN:
        return Judged("other_language", "is written in letters that the problem does not use", answer)
    if languages := other_language(text, str(row.prompt)):
        told, asked = languages
        return Judged("other_language", f"is told in {told}, and the problem in {asked}", answer)
    if check_steps and (wrong := wrong_steps(text)):
        return Judged("bad_step", f"the step {wrong[0]} does not hold", answer)
    return Judged("correct", "answer and sums hold" if check_steps else "the answer holds", answer)


def _may_be_cut(text: str, answer: str, row: Row) -> bool:
    """Whether a text that was cut off ends in its answer, so that 1 may be the beginning of 19, and "1." that of 1.5.

    It does where the last word belongs to the answer: without it another answer is read, or none. A closing bracket or
    another sign behind the answer, and a new line, end it.
    """
    text = text.rstrip(" .,")
    if row.answer_type is None or not text[-1:].isalnum():
        return False
    return parse_answer(_LAST_WORD.sub("", text), row.answer_type, row.choices) != answer


def _foreign(text: str, prompt: str) -> float:
    """Share of the letters of ``text`` whose script does not occur in ``prompt``; 0 for a prompt without letters."""
    scripts, known = _scripts(text), _scripts(prompt)
    if not known:
        return 0.0
    return sum(count for script, count in scripts.items() if script not in known) / max(1, scripts.total())


def _scripts(text: str) -> Counter[str]:
    """LATIN, CYRILLIC, CJK, ... -> letters of it."""
    return Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha())
