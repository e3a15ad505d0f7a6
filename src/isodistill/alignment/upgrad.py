"""UPGrad (arXiv 2406.16232, TorchJD): the mean of the domain gradients, each made harmless to all the others.

    direction = (1/K) sum_i projection of g_i onto {x: g_k . x >= 0 for all k}

so that to first order no domain's loss rises: direction . g_k >= 0. The method is the paper's; nothing is to be tuned.
Cost: the Gram matrix, K^2 P products, one more pass, and K least-squares problems in K variables. Neutral: where no
pair conflicts the direction is ERM's. There is no strength to set to 0.
"""

from __future__ import annotations

from torch import Tensor

from isodistill.alignment.weighted_sum import WeightedSum
from isodistill.numerics.gram import gram, upgrad_weights

__all__ = ["UPGrad"]


class UPGrad(WeightedSum):
    """UPGrad, arXiv 2406.16232; see the module for the equation."""

    def weights(self, g: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """From the Gram matrix."""
        return upgrad_weights(gram(g))
