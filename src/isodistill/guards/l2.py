"""L2 towards the weights of the last stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.guards.base import QuadraticGuard

__all__ = ["L2"]


@dataclass
class L2(QuadraticGuard):
    """(lam/2) |theta - theta*|^2: every entry is held alike.

    Args:
        lam: default 1; search 0.1 to 100. 0 is no guard.

    Raises:
        ValueError: ``lam`` is negative.
    """

    lam: float = 1.0

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"lam is {self.lam}; it must be 0 or more")

    @property
    def strength(self) -> float:
        return self.lam

    def weights(self) -> Mapping[str, Tensor]:
        """Ones."""
        return {name: torch.ones((), device=p.device) for name, p in self.parameters.items()}
