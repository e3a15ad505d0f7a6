"""What the alignments share whose direction is sum_k w_k g_k: only the K weights differ."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from isodistill.alignment.per_domain import PerDomain, leave
from isodistill.models.lora import DomainGradients

__all__ = ["WeightedSum"]


class WeightedSum(PerDomain):
    """Leaves sum_k w_k g_k over the domains of the step; cost beside the weights: one pass over K P floats."""

    @abstractmethod
    def weights(self, g: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The weights w (K',) of the K' domains in the step.

        Args:
            g: (K', P) gradients of their mean losses.
            losses: (K',) those losses, fp64.
            present: (K,) bool, which of all domains they are.
        """

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """The weighted sum, and how far its weights lie apart: a weight of 1/K is ERM's."""
        g = gradients.flat if bool(present.all()) else gradients.flat[present]
        w = self.weights(g, gradients.losses[present], present)
        leave(w.to(g) @ g, gradients)
        return {"weight_min": float(w.min()), "weight_max": float(w.max())}
