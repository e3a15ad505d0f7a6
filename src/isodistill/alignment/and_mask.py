"""AND-mask (arXiv 2009.00329): an entry moves only where enough domains push it the same way.

    c    = abs((1/K) sum_k sign e_k)
    m    = 1 where c >= t, else 0
    step = m * (what ERM would do)

The mask and its threshold are the paper's. Averaged gradients e_k, masking the update and ``renorm`` off are ours: the
reference codes divide by mean(m), which explodes where few entries survive. The reference is ``grad_ema: 0,
apply_to: gradient, renorm: true``. Cost: a few passes over K P floats, and K P floats of running means.

Noise passes too: with t = 1, a share 2^(1 - K) of entries whose signs are random. Neutral setting: with t = 0 every
mask is 1 and the step that of the plain mean of the K gradients, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isodistill.alignment.masked_mean import MaskedMean, agreement

__all__ = ["ANDMask"]


@dataclass
class ANDMask(MaskedMean):
    """AND-mask, arXiv 2009.00329; see the module for the equations and ``MaskedMean`` for the other options.

    Args:
        t: agreement that an entry needs, in [0, 1]; 0 is ERM, 1 asks that all signs are equal. Default 1, the paper's
            and DomainBed's; search 0.5 to 1, in steps of 2/K since c takes no other values.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    t: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ValueError(f"alignment.t is {self.t}; it is an agreement between 0 (ERM) and 1 (all signs equal)")
        super().__post_init__()

    def mask(self, averages: Tensor) -> Tensor:
        """1[c >= t]."""
        return (agreement(averages) >= self.t).to(averages.dtype)
