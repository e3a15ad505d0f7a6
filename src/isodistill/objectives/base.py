"""What an objective gets and owes: hidden states and targets in, one loss and one weight per trained token out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

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
    """

    targets: Tensor
    rows: Tensor
    domains: Tensor
    weights: Tensor
    deltas: Tensor | None = None


@dataclass(frozen=True)
class StudentOutput:
    """Student side of the trained positions: ``hidden`` (N, d) after the final norm; ``head`` maps (n, d) to logits.

    ``layers`` holds the states (N, d) after earlier layers, 1 to L - 1, that a term has asked for.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    layers: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TopK:
    """Teacher side as stored: the k likeliest tokens of each trained position, after the full softmax.

    Attributes:
        ids: (N, k) tokens, the likeliest first.
        log_probs: (N, k) theirs.
        log_tail: (N,) log of the mass of all other tokens.
        temperature: of that softmax.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor
    temperature: float = 1.0


TeacherOutput = StudentOutput | TopK
"""Hidden states and head of a teacher at the same positions, or its stored top k."""


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

    def take_metrics(self) -> dict[str, float]:
        """What was measured since the last call, for ``metrics.jsonl``."""
        ...
