"""Domains with quadratic losses, L_k = (theta - c_k)' D_k (theta - c_k) / 2, whose gradients can be had anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from .bench import Bench, K, P


class QuadraticBench(Bench):
    """Steps an alignment that asks for gradients at moved parameters."""

    def __init__(self, name: str, domains: int = K, scale: float = 1.0, **options: object) -> None:
        super().__init__(name, domains=domains, **options)
        generator = torch.Generator().manual_seed(2)
        self.c = torch.randn(domains, P, generator=generator)
        self.D = scale * (0.2 + torch.rand(domains, P, generator=generator))
        self.asked: list[int] = []
        self.gradients.recompute = self._recompute

    def _recompute(self, k: int) -> Tensor:
        self.asked.append(k)
        self.gradients.flat.zero_()  # as the trainer does: what was there is gone
        return self.gradient(k)

    def gradient(self, k: int) -> Tensor:
        """dL_k (17,) at the parameters as they stand."""
        return self.D[k] * (self.parameters().float() - self.c[k])

    def run(self, steps: int, present: list[bool] | None = None) -> Tensor:
        """Several steps; returns the parameters."""
        for _ in range(steps):
            self.step(torch.stack([self.gradient(k) for k in range(len(self.c))]), present)
        return self.parameters()
