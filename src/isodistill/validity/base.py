"""What a scorer gets and owes: proposed steps in, their validities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isodistill.data.rows import Row

__all__ = ["Action", "Scorer"]


@dataclass(frozen=True)
class Action:
    """A step proposed after a prefix of a trace.

    Attributes:
        row: the problem.
        prefix: the trace so far; empty before the first step.
        step: what is proposed to come next, as text.
        reference: what the teacher proposes after the same prefix.
        ends: the step ends the trace.
    """

    row: Row
    prefix: str
    step: str
    reference: str
    ends: bool


class Scorer(Protocol):
    """Says how valid proposed steps are.

    ``name`` identifies the scorer with all that its scores depend on: it is part of the key under which they are kept
    on disk. A scorer may raise, hang or return what is no number: such a step counts as failed and gets weight 1.
    """

    @property
    def name(self) -> str: ...

    def score(self, actions: Sequence[Action]) -> list[float]:
        """v in [0, 1] of every step, in order; the more valid, the higher."""
        ...
