"""CAGrad (arXiv 2110.14048), conflict-averse gradient: near the mean, kindest to the domain that it serves worst.

    d = argmax over norm(d - gbar) <= c norm(gbar)  of  min_k g_k . d
      = gbar + (c norm(gbar) / norm(g_w)) g_w ,  w = argmin over the simplex of g_w . gbar + c norm(gbar) norm(g_w)

The form is the paper's. For one domain we leave g_1 alone, where the formula would lengthen it by 1 + c. Cost: the Gram
matrix, K^2 P products, one more pass, and a problem in K variables. Neutral setting: c = 0 is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isodistill.alignment.weighted_sum import WeightedSum
from isodistill.numerics.gram import cagrad_weights, gram

__all__ = ["CAGrad"]


@dataclass
class CAGrad(WeightedSum):
    """CAGrad, arXiv 2110.14048; see the module for the equations.

    Args:
        c: how far the direction may leave gbar, in [0, 1); 0 is ERM. Default 0.5, search 0.1 to 0.9.
        rescale: divide by 1 + c^2, as LibMTL does, since the direction is longer than gbar where domains agree.

    Raises:
        ValueError: an option is out of range.
    """

    c: float = 0.5
    rescale: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise ValueError(f"alignment.c is {self.c}; it must be at least 0 (ERM) and below 1")

    def weights(self, g: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """From the Gram matrix."""
        w = cagrad_weights(gram(g), self.c)
        return w / (1 + self.c**2) if self.rescale else w
