"""Validity by a teacher who is asked for a mark."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from isodistill.teachers.base import Sampling, Teacher
from isodistill.validity.base import Action

__all__ = ["JudgeScorer"]

_ASKED = """Problem:
{problem}

Solution so far:
{prefix}

Proposed next step:
{step}

Is the proposed step correct and useful at this point? Answer with one whole number from 0 (wrong) to 10 (right)."""
_OUT_OF_TEN = re.compile(r"(?<![\d.-])(10|\d(?:\.\d+)?)\s*(?:/|out of)\s*10(?![\d.]*\d)")
_WHOLE = re.compile(r"(?<![\d.-])(10|\d)(?![\d.]*\d)")


class JudgeScorer:
    """v = mark / 10; a reply without a mark is no number, so it counts as a failure.

    Args:
        teacher: who marks; any teacher that answers chat messages.
        workers: requests in flight at once.
        max_tokens: longest reply.
    """

    def __init__(self, teacher: Teacher, workers: int = 8, max_tokens: int = 8) -> None:
        self._teacher, self._workers = teacher, workers
        self._sampling = Sampling(max_tokens=max_tokens)
        self.name = f"judge/{teacher.name}/{max_tokens}"

    def score(self, actions: Sequence[Action]) -> list[float]:
        """See ``Scorer``."""
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._mark, actions))

    def _mark(self, action: Action) -> float:
        prompt = action.row.prompt
        problem = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        asked = _ASKED.format(
            problem=problem, prefix=action.prefix.strip() or "(nothing yet)", step=action.step.strip()
        )
        reply = self._teacher.answer([{"role": "user", "content": asked}], self._sampling).texts[0]
        marks = _OUT_OF_TEN.findall(reply) or _WHOLE.findall(reply)
        # Several numbers, one of which may be that of the step: nobody knows which is the mark.
        return float(marks[0]) / 10 if len(set(marks)) == 1 else math.nan
