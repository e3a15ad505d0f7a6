"""CORAL (arXiv 1607.01719): the features of all domains shall have one mean and one covariance.

    loss = Lbar + lam * mean over pairs i < j of [ mean_d (mu_i - mu_j)^2 + mean_dd (C_i - C_j)^2 ]

with features phi (N_k, d), mu_k their mean and C_k their covariance, divided by N_k - 1. The covariance term is the
paper's; the mean term, and means over entries instead of a factor 1/(4 d^2), are DomainBed's. The feature of a sequence
is ours: the mean of the hidden states after the final norm over the *question*, since the presence and length of the
answer would tell the domain. A domain with one sequence in the step has no covariance term. d x d matrices are never
made: sum_dd C_i C_j = norm(X_i X_j')^2 / ((N_i - 1)(N_j - 1)) for centred X. Cost: a second forward.
Neutral setting: lam = 0 is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isodistill.alignment.penalised import AnnealedPenalty, SeenTokens

__all__ = ["CORAL", "question_features"]


def question_features(seen: SeenTokens) -> Tensor:
    """phi (R, d): the mean hidden state over the question of each sequence."""
    counts = seen.summed(torch.ones_like(seen.hidden[:, :1], dtype=torch.float32))
    return seen.summed(seen.hidden.float()) / counts


@dataclass
class CORAL(AnnealedPenalty):
    """CORAL, arXiv 1607.01719; see the module for the equations.

    Args:
        lam: strength; 0 is ERM. Default 1, search 0.1 to 10 (DomainBed's gamma, chosen for image classifiers).
        anneal: share of the steps during which the strength is min(1, lam). Default 0.

    Raises:
        ValueError: an option is out of range.
    """

    lam: float = 1.0
    anneal: float = 0.0

    looks_at: ClassVar[Literal["completion", "question"]] = "question"

    def statistics(self, seen: SeenTokens) -> Tensor:
        """The features."""
        return question_features(seen)

    def penalty(self, s: Tensor, domains: Tensor, tokens: Tensor) -> Tensor:
        """The mean over the pairs of domains of the step; 0 where there is one domain."""
        groups = [s[domains == k] for k in domains.unique()]
        means = [phi.mean(0) for phi in groups]
        scaled = [
            (phi - mu) / max(len(phi) - 1, 1) ** 0.5 for phi, mu in zip(groups, means, strict=True)
        ]  # X' X = C, and 0 for one sequence
        inner = {
            (i, j): (scaled[i] @ scaled[j].T).square().sum() for i in range(len(groups)) for j in range(i, len(groups))
        }
        pairs = []
        for i, j in combinations(range(len(groups)), 2):
            apart = (means[i] - means[j]).square().mean()
            if min(len(groups[i]), len(groups[j])) > 1:
                apart = apart + (inner[i, i] + inner[j, j] - 2 * inner[i, j]) / s.shape[1] ** 2
            pairs.append(apart)
        return torch.stack(pairs).mean() if pairs else s.new_zeros(())
