"""PCGrad (arXiv 2001.06782), "gradient surgery": conflicting domain gradients are projected on each other's normal.

    p = g_i ;  for j != i in random order:  if p . g_j < 0:  p <- p - (p . g_j / norm(g_j)^2) g_j
    direction = mean over i of p

The projection and the random order are the paper's. The mean is ours: the paper and its ports sum over i, a step about
K times as long as ERM's (``reduction: sum``). Cost: the Gram matrix, K^2 P products, and one more pass. Neutral: where
no pair conflicts the direction is ERM's. There is no strength to set to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isodistill.alignment.weighted_sum import WeightedSum
from isodistill.models.lora import LoraLayer
from isodistill.numerics.gram import gram, pcgrad_weights

__all__ = ["PCGrad"]


@dataclass
class PCGrad(WeightedSum):
    """PCGrad, arXiv 2001.06782; see the module for the equations.

    Args:
        reduction: ``mean`` (ours) or ``sum`` (the paper's) over the projected gradients.

    Raises:
        ValueError: an option is unknown.
    """

    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"alignment.reduction is {self.reduction!r}; choose one of mean, sum")

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Seed the order of the projections, alike on all processes."""
        self._generator = torch.Generator().manual_seed(seed)

    def weights(self, g: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """From the Gram matrix and one random order per domain."""
        K = len(g)
        orders = [[j for j in torch.randperm(K, generator=self._generator).tolist() if j != i] for i in range(K)]
        return pcgrad_weights(gram(g), orders) * (K if self.reduction == "sum" else 1)

    def state_dict(self) -> dict[str, Tensor]:
        """The generator of the orders."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._generator.set_state(state["generator"])
