"""A module of two tensors, gradients made by hand, and any alignment stepped on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isodistill.alignment import ALIGNMENTS
from isodistill.models.lora import DomainGradients

K, P, LEARNING_RATE = 3, 17, 0.5
BOUNDS = (0, 12, 17)


class Two(nn.Module):
    """Two tensors of different sizes, so that normalisers per tensor show."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.first = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.second = nn.Parameter(torch.randn(5, generator=generator))


def drawn(step: int, scale: float = 1.0, domains: int = K) -> Tensor:
    """Domain gradients (K, 17): some entries agree, some conflict, tensors of different size."""
    generator = torch.Generator().manual_seed(step)
    shared, own = torch.randn(P, generator=generator), torch.randn(domains, P, generator=generator)
    tensor_scale = torch.cat([torch.ones(12), torch.full((5,), 7.0)])
    return scale * tensor_scale * (shared + torch.linspace(0, 2, P) * own)


class Bench:
    """Steps an alignment with plain SGD on domain gradients that the test hands in."""

    def __init__(self, name: str, domains: int = K, seed: int = 4, **options: Any) -> None:
        self.module = Two()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=LEARNING_RATE)
        self.gradients = DomainGradients.allocate(self.module, domains)
        self.alignment = ALIGNMENTS[name](**options)
        self.alignment.setup(layers=[], total_steps=10, adaptive=False, seed=seed)

    def _hand_in(self, gradients: Tensor, present: list[bool] | None, losses: list[float] | None) -> Tensor:
        rows = torch.tensor(present or [True] * len(gradients))
        self.gradients.flat.copy_(gradients * rows[:, None])
        # Losses go with their gradients, so that a permutation of the domains permutes both.
        given = 1 + gradients.double()[:, 0].sin() if losses is None else torch.tensor(losses, dtype=torch.float64)
        self.gradients.losses.copy_(given * rows)
        return rows

    def step(
        self, gradients: Tensor, present: list[bool] | None = None, losses: list[float] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """One step; returns what was subtracted per unit of learning rate (17,), and the metrics."""
        rows = self._hand_in(gradients, present, losses)
        before = self.parameters()
        metrics = self.alignment.update(self.gradients, rows)
        self.alignment.before_step(self.optimizer)
        self.optimizer.step()
        metrics |= self.alignment.after_step(self.optimizer)
        return (before - self.parameters()) / LEARNING_RATE, metrics

    def direction(
        self, gradients: Tensor, present: list[bool] | None = None, losses: list[float] | None = None
    ) -> Tensor:
        """What ``update`` leaves in ``.grad`` (17,)."""
        rows = self._hand_in(gradients, present, losses)
        self.alignment.update(self.gradients, rows)
        return torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])

    def parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.parameters()]).double()
