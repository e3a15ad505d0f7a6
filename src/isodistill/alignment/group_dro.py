"""GroupDRO (arXiv 1911.08731), group distributionally robust optimisation: domains with a high loss gain weight.

    q_k  <- q_k exp(eta L_k) / sum_j q_j exp(eta L_j) ;    loss = sum_k q_k L_k ,  q without gradient

The method is the paper's. Ours: log q is kept; q moves once per optimizer step, on the losses of the whole step; a
domain that is absent from a step keeps its log q, and q is renormalised over the others for that step. Traces with many
easy tokens have a low mean token loss, so q favours domains of short answers. Cost: one pass over K P floats.
Neutral setting: eta = 0 is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.alignment.weighted_sum import WeightedSum

__all__ = ["GroupDRO"]


@dataclass
class GroupDRO(WeightedSum):
    """GroupDRO, arXiv 1911.08731; see the module for the equations.

    Args:
        eta: how fast the weights move; 0 is ERM. Default 0.01, DomainBed's; search 1e-3 to 1.

    Raises:
        ValueError: ``eta`` is negative.
    """

    eta: float = 0.01

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"alignment.eta is {self.eta}; it must be 0 (ERM) or more")
        self._log_q: Tensor | None = None  # (K,), known with the first step

    def weights(self, g: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """q over the domains of the step, after it moved."""
        present = present.cpu()
        if self._log_q is None:
            self._log_q = torch.zeros(len(present), dtype=torch.float64)
        self._log_q[present] += self.eta * losses.cpu()
        # Only differences matter; without this the numbers would grow with the steps.
        self._log_q -= self._log_q.logsumexp(0)
        return self._log_q[present].softmax(0)

    def state_dict(self) -> dict[str, Tensor]:
        """log q (K,), the domains in the order of training; nothing before the first step."""
        return {} if self._log_q is None else {"log_q": self._log_q}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        if state:
            self._log_q = state["log_q"].clone()
