"""Cross-entropy on the trace: supervised fine-tuning, or sequence distillation when a teacher wrote it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from isodistill.objectives.base import StudentOutput, TrainedTokens

__all__ = ["CrossEntropy"]


@dataclass
class CrossEntropy:
    """D_t = -log q(y_t), in fp32, the logits made for ``chunk`` positions at a time.

    Sequence-level distillation is this loss on teacher traces (arXiv 1606.07947). Beyond one chunk the logits are made
    again in the backward, so memory is O(chunk * n_vocab) instead of O(N * n_vocab).

    Args:
        chunk: positions whose logits exist at one time; default 1024.
    """

    chunk: int = 1024

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; it counts positions and must be at least 1")

    def token_losses(self, student: StudentOutput, tokens: TrainedTokens) -> tuple[Tensor, Tensor]:
        """Losses (N,) and the rows' weights (N,)."""

        def losses(hidden: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(student.head(hidden).float(), targets, reduction="none")

        if len(tokens.targets) <= self.chunk:
            return losses(student.hidden, tokens.targets), tokens.weights
        parts = [
            checkpoint(losses, hidden, targets, use_reentrant=False)
            for hidden, targets in zip(student.hidden.split(self.chunk), tokens.targets.split(self.chunk), strict=True)
        ]
        return torch.cat(parts), tokens.weights
