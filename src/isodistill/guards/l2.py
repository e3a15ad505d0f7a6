"""L2 towards the weights of the last stage."""

from __future__ import annotations

import math
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
        ValueError: ``lam`` is negative or not finite.
    """

    lam: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"lam is {self.lam}; it must be 0 or more, and finite")

    @property
    def strength(self) -> float:
        return self.lam

    def weights(self) -> Mapping[str, Tensor]:
        """Ones."""
        return {name: torch.ones((), device=p.device) for name, p in self.parameters.items()}
