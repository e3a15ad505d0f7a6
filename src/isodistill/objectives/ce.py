"""Cross-entropy on the trace: supervised fine-tuning, or sequence distillation when a teacher wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from isodistill.models.frozen import FrozenLinear
from isodistill.objectives.base import StudentOutput, TeacherOutput, TrainedTokens

__all__ = ["CrossEntropy"]

_ROWS = 16  # softmax rows at a time, so that they stay in the processor's cache


@dataclass
class CrossEntropy:
    """D_t = -log q(y_t), in fp32, the logits made for ``chunk`` positions at a time.

    Sequence-level distillation is this loss on teacher traces (arXiv 1606.07947). Memory is O(chunk * n_vocab) instead
    of O(N * n_vocab). Under a frozen head the gradient of the hidden states is made with the losses,

        dD_t/dh_t = (softmax(z_t) - onehot(y_t)) W,        z_t = W h_t

    because what the backward brings is one factor per token; under another head the logits are made again.

    Args:
        chunk: positions whose logits exist at one time; default 1024.
    """

    needs_teacher = False
    chunk: int = 1024

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; it counts positions and must be at least 1")

    def take_metrics(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """None beyond the loss."""
        return {}

    def token_losses(
        self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses (N,) and the rows' weights (N,)."""
        if isinstance(student.head, FrozenLinear):
            inputs = (student.hidden, tokens.targets, student.head, self.chunk)
            return _FrozenHeadLosses.apply(*inputs), tokens.weights  # type: ignore[no-untyped-call]

        def losses(hidden: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(student.head(hidden).float(), targets, reduction="none")

        if len(tokens.targets) <= self.chunk:
            return losses(student.hidden, tokens.targets), tokens.weights
        parts = [
            checkpoint(losses, hidden, targets, use_reentrant=False)
            for hidden, targets in zip(student.hidden.split(self.chunk), tokens.targets.split(self.chunk), strict=True)
        ]
        return torch.cat(parts), tokens.weights


class _FrozenHeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: FrozenLinear, chunk: int) -> Tensor:
        losses, gradients = [], []
        for h, y in zip(hidden.to(head.dtype).split(chunk), targets.split(chunk), strict=True):
            logits = head.forward(h)
            losses.append(
                torch.cat(
                    [_softmax_minus_onehot_(*pair) for pair in zip(logits.split(_ROWS), y.split(_ROWS), strict=True)]
                )
            )
            if ctx.needs_input_grad[0]:
                gradients.append(head.backward(logits))
        ctx.gradient = torch.cat(gradients) if gradients else None
        ctx.dtype = hidden.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        return (factors[:, None] * ctx.gradient).to(ctx.dtype), None, None, None


def _softmax_minus_onehot_(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (n,) in fp32 of logits (n, n_vocab), which are overwritten by softmax - onehot."""
    z = logits.float()
    chosen, top = z.gather(1, targets[:, None]), z.amax(1, keepdim=True)
    p = torch.softmax(z, 1)
    # softmax at the largest logit is 1 / sum exp(z - top): never too small for its logarithm.
    losses = top - chosen - p.amax(1, keepdim=True).log()
    p.scatter_add_(1, targets[:, None], p.new_full((len(targets), 1), -1.0))
    logits.copy_(p)
    return losses.squeeze(1)
