"""What the alignments share that see the gradient of every domain."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from isodistill.alignment.base import Alignment
from isodistill.models.lora import DomainGradients

__all__ = ["PerDomain", "leave"]


class PerDomain(Alignment):
    """An alignment that gets g_k = dL_k of the K domain means and makes one direction of them."""

    needs_domains: ClassVar[bool] = True
    needs_domain_gradients: ClassVar[bool] = True

    def domain_weights(self, counts: Tensor) -> Tensor:
        """1 / n_k: the rows of the buffers are the gradients of the domain means L_k."""
        return torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)


def leave(direction: Tensor, gradients: DomainGradients) -> None:
    """``.grad`` of every trainable tensor from a flat direction (P,)."""
    start = 0
    for p in gradients.parameters.values():
        p.grad = direction[start : start + p.numel()].view(p.shape).to(p.dtype)
        start += p.numel()
