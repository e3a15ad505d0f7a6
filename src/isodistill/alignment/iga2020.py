"""Inter-environmental Gradient Alignment (arXiv 2008.01883): a penalty on the spread of the domains' gradients.

    loss = Lbar + lam sum_k norm(g_k - gbar)^2
    its gradient: gbar + 2 lam sum_k H_k u_k ,   u_k = g_k - gbar ,   H_k the Hessian of L_k

Not the conflict mask of the same initials, arXiv 2606.05025, which is ``iga`` here. The penalty is the paper's; the sum
over k, with which lam grows with K, is DomainBed's. The u_k sum to 0, so gbar may be held fixed in them. Ours: no graph
of a gradient is kept (three times the memory, and no fused kernels); the products with the Hessian are

    H_k u_k = (g_k(theta + h u_k) - g_k(theta - h u_k)) / (2 h) ,    norm(h u_k) = 1e-3 norm(theta)

central differences, exact for quadratic losses. They subtract gradients that agree in three digits, so the model must
compute in fp32. Cost: two more passes over every domain, together three times ERM. Neutral setting: lam = 0 is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isodistill.alignment.per_domain import PerDomain, leave
from isodistill.models.lora import DomainGradients
from isodistill.numerics import require_finite

__all__ = ["IGA2020"]

_REACH = 1e-3  # norm of the shift over the norm of the parameters


@dataclass
class IGA2020(PerDomain):
    """Inter-environmental Gradient Alignment, arXiv 2008.01883; see the module for the equations.

    Args:
        lam: strength; 0 is ERM. Default 1000, search 10 to 1e5 (DomainBed's, chosen for image classifiers).

    Raises:
        ValueError: ``lam`` is negative.
    """

    lam: float = 1000.0

    needs_recompute: ClassVar[bool] = True
    needs_fp32: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"alignment.lam is {self.lam}; it must be 0 (ERM) or more")

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """Gradient of loss and penalty; theta is put back bit for bit."""
        domains = present.nonzero().squeeze(1).tolist()
        g = gradients.flat[domains].clone()  # the buffers are filled anew below
        direction = g.mean(0)
        u = g - direction
        penalty = float(u.double().square().sum())
        parameters = list(gradients.parameters.values())
        theta = torch.cat([p.detach().flatten() for p in parameters]).to(g)
        for u_k, k in zip(u, domains, strict=True):
            length = float(u_k.norm())
            if self.lam == 0 or length == 0:
                continue
            h = _REACH * max(float(theta.norm()), 1e-6) / length
            ends = []
            for sign in (1, -1):
                _move_to(theta + sign * h * u_k, parameters)
                ends.append(gradients.recompute(k))
            H_u = (ends[0] - ends[1]).div_(2 * h)
            require_finite({f"Hessian product of domain {k}": H_u}, "IGA-2020")
            direction = direction + 2 * self.lam * H_u
        _move_to(theta, parameters)
        leave(direction, gradients)
        return {"penalty": penalty}


@torch.no_grad()
def _move_to(theta: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    """Write flat values (P,) into the parameters."""
    start = 0
    for p in parameters:
        p.copy_(theta[start : start + p.numel()].view(p.shape))
        start += p.numel()
