"""Adam whose second moment sees the gradient without mask: second_moment="unmasked".

    m <- beta1 m + (1 - beta1) M * g ;   v <- beta2 v + (1 - beta2) g^2

The optimizer steps on g. What the mask removes, d = (1 - M) * g, is then taken out of m and out of the step:

    m <- m - (1 - beta1) d ;   p <- p + lr (1 - beta1) d / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

which is the same step, and no change at all where M = 1. Adam with v of the masked gradient undoes the mask; this one
cannot, because its step size does not know it (ours).
"""

from __future__ import annotations

import torch
from torch import Tensor

from isodistill.alignment.masking import Removed
from isodistill.errors import UserError

__all__ = ["UnmaskedSecondMoment"]


class UnmaskedSecondMoment:
    """Holds what the mask removes between the backward and the end of the optimizer's step."""

    def __init__(self) -> None:
        self._removed: Removed = []
        self._length = torch.zeros(())

    def hold(self, removed: Removed) -> None:
        """Keep the removals."""
        self._removed = removed

    def before_clipping(self) -> None:
        """Keep the length of the whole gradient, which clipping may shorten."""
        self._length = self._measure()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Shorten the removals as clipping shortened the gradient.

        Raises:
            UserError: the optimizer is not Adam or AdamW, or is AMSGrad.
        """
        plain = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        if not plain or any(group.get("amsgrad") for group in optimizer.param_groups):
            raise UserError(
                "alignment.second_moment unmasked is about Adam's second moment; train with optim: adamw_torch."
            )
        clipped = torch.where(self._length > 0, self._measure() / self._length, 1.0)
        self._removed = [(p, part * clipped) for p, part in self._removed]

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the removals out of the first moment and of the step."""
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for p, d in self._removed:
            group, state = groups[p], optimizer.state[p]
            beta1, beta2 = group["betas"]
            t = float(state["step"])
            state["exp_avg"].sub_(d, alpha=1 - beta1)
            root: Tensor = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt_().add_(group["eps"])
            p.add_(d / root, alpha=group["lr"] * (1 - beta1) / (1 - beta1**t))

    def _measure(self) -> Tensor:
        squares = [p.grad.square().sum() for p, _ in self._removed if p.grad is not None]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
