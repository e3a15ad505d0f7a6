"""SAND-mask (arXiv 2106.02266): AND-mask made smooth, stricter where the domains' gradients spread more.

    c    = abs((1/K) sum_k sign e_k) ;    V = (1/K) sum_k (e_k - mean e)^2 , divided by its mean over the tensor
    m    = max(0, tanh((k / V) (c - t)))
    step = m * (what ERM would do)

The form is the paper's. Dividing V by its mean (``norm: tensor_mean``) is ours: with gradients of an LLM the plain 1/V
is so large that m is 0 or 1 everywhere. Ours too: the population variance (one domain gives V = 0 and not NaN),
averaged gradients, masking the update, ``renorm`` off, and t = 0.5: DomainBed's default t = 1 masks every entry, since
c <= 1, and trains nothing. Where V = 0 the mask is its limit, 1 where c > t. Cost: AND-mask's and one more pass for V.

There is no neutral setting: no k and t give m = 1 everywhere. Where all domains agree (V = 0) the step is ERM's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isodistill.alignment.masked_mean import MaskedMean, agreement
from isodistill.numerics import domain_statistics

__all__ = ["SANDMask"]


@dataclass
class SANDMask(MaskedMean):
    """SAND-mask, arXiv 2106.02266; see the module for the equations and ``MaskedMean`` for the other options.

    Args:
        t: agreement that an entry needs, in [0, 1); default 0.5 (ours), search 0 to 0.9.
        k: sharpness, above 0; default 10, search 1e-3 to 1e5 (DomainBed's).
        norm: divide V by its ``tensor_mean`` (ours) or not at all (``none``, the paper's).

    Raises:
        ValueError: an option is unknown or out of range.
    """

    t: float = 0.5
    k: float = 10.0
    norm: Literal["tensor_mean", "none"] = "tensor_mean"

    def __post_init__(self) -> None:
        if not 0 <= self.t < 1:
            raise ValueError(f"alignment.t is {self.t}; it must be at least 0 and below 1, where nothing would train")
        if not (self.k > 0 and math.isfinite(self.k)):
            raise ValueError(f"alignment.k is {self.k}; it is a sharpness above 0")
        if self.norm not in ("tensor_mean", "none"):
            raise ValueError(f"alignment.norm is {self.norm!r}; choose one of tensor_mean, none")
        super().__post_init__()

    def mask(self, averages: Tensor) -> Tensor:
        """max(0, tanh((k / V) (c - t)))."""
        _, V = domain_statistics(averages)
        unit = V.mean() if self.norm == "tensor_mean" else V.new_ones(())
        margin = agreement(averages) - self.t
        inverse = (unit / V).clamp(max=torch.finfo(V.dtype).max)  # infinite would make 0 * inf of a margin of 0
        sharp = torch.where(V > 0, torch.tanh(self.k * margin * inverse), (margin > 0).to(V.dtype))
        return sharp.clamp_(min=0)
