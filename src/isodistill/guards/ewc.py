"""Elastic weight consolidation (arXiv 1612.00796)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from isodistill.guards.base import QuadraticGuard, StageEnd
from isodistill.guards.ranks import summed

__all__ = ["EWC"]

Labels = Literal["empirical", "sampled"]
Merge = Literal["separate", "online"]


@dataclass
class EWC(QuadraticGuard):
    """Entries that the old task needs are held firmly.

        (lam/2) sum_i F_i (theta_i - theta*_i)^2,    F = mean over rows of (d log p(y | x) / d theta)^2

    A row is one sample and log p(y | x) the sum over its completion. Squaring the gradient of a batch instead would
    give another, smaller quantity. Several earlier stages: ``separate`` adds up their penalties, which is again one
    quadratic with F = sum F_k around the mean of the theta*_k weighted by F_k; ``online`` (arXiv 1805.06370) keeps
    gamma F + F_k around the latest weights.

    Args:
        lam: default 100; search 10^U(0, 5). 0 is no guard.
        fisher: ``empirical``: y from the row; ``sampled``: y drawn from the student. They are different numbers. The
            exact sum over the vocabulary would need one backward per token of it, and is not offered.
        n_samples: rows for F, one backward each; default 64.
        merge: see above.
        gamma: of ``online``; default 0.9.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    lam: float = 100.0
    fisher: Labels = "empirical"
    n_samples: int = 64
    merge: Merge = "separate"
    gamma: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"lam is {self.lam}; it must be 0 or more, and finite")
        for name, allowed in (("fisher", get_args(Labels)), ("merge", get_args(Merge))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.n_samples < 1:
            raise ValueError(f"n_samples is {self.n_samples}; it must be at least 1")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it is a share, 0 to 1")

    @property
    def strength(self) -> float:
        return self.lam

    def begin(self, model: nn.Module, past: Mapping[str, Tensor] | None, seed: int) -> None:
        """F and theta* of the stages so far."""
        super().begin(model, past, seed)
        past = past or {}
        self.F = {n: past.get(f"F/{n}", torch.zeros_like(p)).to(p.device) for n, p in self.parameters.items()}
        self.theta = {n: past.get(f"theta/{n}", self.reference[n]).to(p.device) for n, p in self.parameters.items()}

    def weights(self) -> Mapping[str, Tensor]:
        """F."""
        return self.F

    def anchors(self) -> Mapping[str, Tensor]:
        """The mean of the theta* weighted by F, or the latest."""
        return self.theta

    @torch.no_grad()
    def end(self, stage: StageEnd) -> dict[str, Any]:
        """Measure F of this stage and join it to that of the earlier ones."""
        fresh = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        n = 0
        for gradient in stage.gradients(self.n_samples, sampled=self.fisher == "sampled"):
            n += 1
            for name, g in gradient.items():
                fresh[name].addcmul_(g, g)
        device = next(iter(self.parameters.values())).device  # NCCL sums nothing that lies elsewhere
        n = int(summed(torch.tensor(n, device=device)))
        fresh = {name: summed(F) for name, F in fresh.items()}
        for name, p in self.parameters.items():
            F, F_k = self.F[name], fresh[name] / max(n, 1)
            if self.merge == "online":
                self.F[name], self.theta[name] = self.gamma * F + F_k, p.detach().clone()
            else:
                share = torch.where(F + F_k > 0, F_k / (F + F_k), 1.0)
                self.F[name], self.theta[name] = F + F_k, torch.lerp(self.theta[name], p.detach(), share)
        total = sum(float(F.sum()) for F in fresh.values()) / max(n, 1)
        return {"fisher_rows": n, "fisher_trace": total}

    def carried(self) -> dict[str, Tensor]:
        """F and theta*."""
        return {f"F/{n}": F for n, F in self.F.items()} | {f"theta/{n}": t for n, t in self.theta.items()}
