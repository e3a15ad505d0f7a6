"""Empirical risk minimisation: the baseline that every alignment reduces to in its neutral setting."""

from __future__ import annotations

import torch
from torch import Tensor

from isodistill.alignment.base import Alignment

__all__ = ["ERM", "PooledERM"]


class ERM(Alignment):
    """Loss = (1/K) sum_k L_k, each L_k the mean token loss of domain k: every domain counts alike."""

    def domain_weights(self, counts: Tensor) -> Tensor:
        """1 / (K n_k) for the K domains present, 0 for a domain without trained tokens."""
        present = counts > 0
        return torch.where(present, 1 / (counts.clamp(min=1) * present.sum()), 0.0)


class PooledERM(Alignment):
    """Loss = sum of all token losses / number of tokens: every token counts alike, plain SFT."""

    def domain_weights(self, counts: Tensor) -> Tensor:
        """1 / n for every domain, n the trained tokens of all domains together."""
        return (1 / counts.sum()).expand_as(counts)
