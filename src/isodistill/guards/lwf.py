"""Learning without forgetting (arXiv 1606.09282)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isodistill.guards.base import Guard
from isodistill.objectives import ForwardKL, StudentOutput, TrainedTokens

__all__ = ["LwF"]


@dataclass
class LwF(Guard):
    """On the new rows the student should still say what the student of the last stage says.

        L_t + alpha T^2 KL(p_old,t || p_t),    p = softmax(z / T), at the trained positions only

    The old student is frozen; it costs one more forward per step. The divergence belongs to the loss of its domain, so
    an alignment sees it in the gradients that it compares.

    Args:
        alpha: default 1. 0 is no guard.
        T: temperature; default 2.

    Raises:
        ValueError: an option is out of range.
    """

    needs_old_student: ClassVar[bool] = True

    alpha: float = 1.0
    T: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be 0 or more, and finite")
        if not 0 < self.T < math.inf:
            raise ValueError(f"T is {self.T}; it must be above 0, and finite")
        self._kl = ForwardKL(temperature=self.T, lam_ce=0.0, lam_kd=self.alpha or 1.0)

    def token_losses(self, student: StudentOutput, tokens: TrainedTokens, old: StudentOutput) -> Tensor:
        """alpha T^2 KL (N,)."""
        losses, _ = self._kl.token_losses(student, tokens, old)
        return losses if self.alpha else 0 * losses

    def take_metrics(self) -> dict[str, float]:
        """The mean divergence."""
        found = self._kl.take_metrics()
        return {"guard/kl": found["objective/kd"]} if found else {}
