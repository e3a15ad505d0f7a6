"""Validity by arithmetic: every sum in a step is computed again."""

from __future__ import annotations

from collections.abc import Sequence

from isodistill.evaluation.arithmetic import sums, wrong_steps
from isodistill.validity.base import Action

__all__ = ["RuleScorer"]


class RuleScorer:
    """v = 1 where the step has a sum and all of them hold, 0 where one does not, 0.5 where there is none.

    Sums are read as in ``evaluation.arithmetic``. A step whose numbers are right but taken from nowhere is valid here.
    """

    name = "rule"

    def score(self, actions: Sequence[Action]) -> list[float]:
        """See ``Scorer``."""
        return [_checked(action.step) for action in actions]


def _checked(step: str) -> float:
    if wrong_steps(step):
        return 0.0
    return 1.0 if sums(step) else 0.5
