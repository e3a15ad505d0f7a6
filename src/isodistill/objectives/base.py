"""What an objective gets and owes: hidden states and targets in, one loss and one weight per trained token out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from isodistill.teachers.logits import TopK

__all__ = ["Objective", "StudentOutput", "TeacherOutput", "TopK", "TrainedTokens"]


@dataclass(frozen=True)
class TrainedTokens:
    """The N positions of a micro-batch that predict a trained token; prompts and padding are never among them.

    Attributes:
        targets: (N,) token to predict.
        rows: (N,) row of the micro-batch.
        domains: (N,) domain index of that row.
        weights: (N,) the row's weight, fp32.
        deltas: (N,) relative validity of the teacher's step, in [-1, 1], where it was measured outside the training
            step; None elsewhere.
        strengths: (N,) w_t of VCRD where it was made from all tokens of the optimizer step; None elsewhere.
        sampled: (N,) bool, the student wrote the token itself, so that there is no trace to imitate; None: nowhere.
    """

    targets: Tensor
    rows: Tensor
    domains: Tensor
    weights: Tensor
    deltas: Tensor | None = None
    strengths: Tensor | None = None
    sampled: Tensor | None = None

    def tenths(self) -> Tensor:
        """(N,) which tenth of its row's trained tokens each one lies in, 0 to 9."""
        n = torch.bincount(self.rows)
        first = n.cumsum(0) - n
        order = self.rows.argsort(stable=True)
        place = torch.empty_like(self.rows)
        place[order] = torch.arange(len(self.rows), device=self.rows.device) - first[self.rows[order]]
        return 10 * place // n[self.rows]


@dataclass(frozen=True)
class StudentOutput:
    """Student side of the trained positions: ``hidden`` (N, d) after the final norm; ``head`` maps (n, d) to logits.

    ``layers`` holds the states (N, d) after earlier layers, 1 to L - 1, that a term has asked for.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    layers: Mapping[int, Tensor] = field(default_factory=dict)


TeacherOutput = StudentOutput | TopK
"""Hidden states and head of a teacher at the same N positions, or its stored top k."""


class Objective(Protocol):
    """One way to teach the student on each token.

    ``needs_teacher``: ``token_losses`` gets the teacher at the same positions; without it, None.
    """

    @property
    def needs_teacher(self) -> bool: ...

    def token_losses(
        self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses (N,) in fp32 with gradient, and weights (N,) without."""
        ...

    def take_metrics(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """What was measured since the last call, for ``metrics.jsonl``.

        ``over_processes`` adds a tensor up over all of them, which then call this together; None: this one alone.
        """
        ...
