"""V-REx (arXiv 2003.00688), variance risk extrapolation: the domains' losses shall be equal.

    loss = Lbar + lam (1/K) sum_k (L_k - Lbar)^2 ;   its gradient is  sum_k (1/K)(1 + 2 lam (L_k - Lbar)) g_k

The penalty is the paper's. The gradient is exact and comes from the K gradients and the K losses of the whole optimizer
step, with no second pass. Weights sum to 1 and may be negative: that domain is then *unlearned*; ``weight_min`` is
logged. During the share ``anneal`` of the steps the strength is min(1, lam), afterwards lam, as in DomainBed (there 1,
for 500 of 5000 steps); no optimizer is made anew at that step. Cost: one pass over K P floats. Neutral setting: lam = 0
is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.alignment.weighted_sum import WeightedSum
from isodistill.models.lora import LoraLayer

__all__ = ["VREx"]


@dataclass
class VREx(WeightedSum):
    """V-REx, arXiv 2003.00688; see the module for the equations.

    Args:
        lam: strength; 0 is ERM. Default 10, search 0.1 to 1e5 (DomainBed's, chosen for image classifiers).
        anneal: share of the steps before lam takes effect. Default 0.1.

    Raises:
        ValueError: an option is out of range.
    """

    lam: float = 10.0
    anneal: float = 0.1

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"alignment.lam is {self.lam}; it must be 0 (ERM) or more")
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"alignment.anneal is {self.anneal}; it is a share of the steps, 0 to 1")
        self._step = 0

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Where lam takes effect."""
        self._anneal_steps = int(self.anneal * total_steps)

    def weights(self, g: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """(1/K)(1 + 2 lam (L_k - Lbar)) over the domains of the step."""
        lam = self.lam if self._step >= self._anneal_steps else min(1.0, self.lam)
        self._step += 1
        return (1 + 2 * lam * (losses - losses.mean())) / len(losses)

    def state_dict(self) -> dict[str, Tensor]:
        """The step of the schedule."""
        return {"step": torch.tensor(self._step)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._step = int(state["step"])
