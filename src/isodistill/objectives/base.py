"""What an objective gets and owes: hidden states and targets in, one loss and one weight per trained token out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Objective", "StudentOutput", "TrainedTokens"]


@dataclass(frozen=True)
class TrainedTokens:
    """The N positions of a micro-batch that predict a trained token; prompts and padding are never among them.

    Attributes:
        targets: (N,) token to predict.
        rows: (N,) row of the micro-batch.
        domains: (N,) domain index of that row.
        weights: (N,) the row's weight, fp32.
    """

    targets: Tensor
    rows: Tensor
    domains: Tensor
    weights: Tensor


@dataclass(frozen=True)
class StudentOutput:
    """Student side of the trained positions: ``hidden`` (N, d) after the final norm; ``head`` maps (n, d) to logits."""

    hidden: Tensor
    head: Callable[[Tensor], Tensor]


class Objective(Protocol):
    """One way to teach the student on each token."""

    def token_losses(self, student: StudentOutput, tokens: TrainedTokens) -> tuple[Tensor, Tensor]:
        """Losses (N,) in fp32 with gradient, and weights (N,) without."""
        ...
