"""MLDG (arXiv 1710.03463), meta-learning domain generalisation, first order: a step on one domain shall help another.

    a random order splits the domains into train domains i and n_test test domains j, which are cycled
    theta'_i  = theta - inner_lr g_i / (abs(g_i) + eps)        one step of a fresh Adam on L_i
    direction = sum over pairs (1/K) (dL_i(theta) + beta dL_j(theta'_i))

The method is the paper's. First order (no second derivatives through theta'), the pairs and the fresh Adam are
DomainBed's; the closed form of its first step and eps relative to the gradient (1e-8 of its root mean square) are ours,
so that adapters are moved in place and nothing is copied per pair. Cost: one more pass over one domain for each of the
K - n_test pairs. There is no neutral setting; where a step has one domain, it is ERM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isodistill.alignment.per_domain import PerDomain, leave
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import require_finite

__all__ = ["MLDG"]


@dataclass
class MLDG(PerDomain):
    """MLDG, arXiv 1710.03463; see the module for the equations.

    Args:
        beta: weight of the test domains. Default 1, search 0.1 to 10 (DomainBed's).
        n_test: test domains of a step, where there are more domains; default 2, search 1 and 2 (DomainBed's).
        inner_lr: learning rate of the inner step. Default 2e-4, that of ``DistillConfig``.

    Raises:
        ValueError: an option is out of range.
    """

    beta: float = 1.0
    n_test: int = 2
    inner_lr: float = 2e-4

    needs_recompute: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"alignment.beta is {self.beta}; it must be 0 or more")
        if self.n_test < 1:
            raise ValueError(f"alignment.n_test is {self.n_test}; it must be at least 1")
        if self.inner_lr <= 0:
            raise ValueError(f"alignment.inner_lr is {self.inner_lr}; it must be above 0")

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Seed the splits, alike on all processes."""
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """The sum over pairs."""
        K = int(present.sum())
        order = present.nonzero().squeeze(1)[torch.randperm(K, generator=self._generator)].tolist()
        if K == 1:
            leave(gradients.flat[order[0]].clone(), gradients)
            return {}
        n_test = min(self.n_test, K - 1)
        train, test = order[n_test:], order[:n_test]
        g = {i: gradients.flat[i].clone() for i in train}  # the buffers are filled anew below
        direction = torch.stack(list(g.values())).sum(0)
        for pair, i in enumerate(train):
            j = test[pair % n_test]
            there = self._gradient_after_a_step(g[i], j, gradients)
            require_finite({f"gradient of domain {j}": there}, "test domain of MLDG")
            direction.add_(there, alpha=self.beta)
        leave(direction.div_(K), gradients)
        return {}

    def _gradient_after_a_step(self, g: Tensor, j: int, gradients: DomainGradients) -> Tensor:
        """dL_j(theta'), with theta' reached along ``g``; theta is put back bit for bit."""
        eps = 1e-8 * g.square().mean().sqrt() + torch.finfo(g.dtype).tiny
        step = g / (g.abs() + eps)
        kept, start = [], 0
        with torch.no_grad():
            for p in gradients.parameters.values():
                kept.append(p.detach().clone())
                p.sub_(step[start : start + p.numel()].view(p.shape), alpha=self.inner_lr)
                start += p.numel()
        there = gradients.recompute(j)
        with torch.no_grad():
            for p, theta in zip(gradients.parameters.values(), kept, strict=True):
                p.copy_(theta)
        return there

    def state_dict(self) -> dict[str, Tensor]:
        """The generator of the splits."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._generator.set_state(state["generator"])
