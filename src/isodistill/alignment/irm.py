"""IRMv1 (arXiv 1907.02893), invariant risk minimisation: one scale of the logits shall be best for every domain.

    loss = Lbar + lam (1/K) sum_k D_k ,    d_k = dL_k(w z)/dw at w = 1

For cross-entropy d_k has a closed form, so that no double backward is needed (ours, checked against it):

    d_t = sum_v p_tv z_tv - z_t,y(t) ,  p = softmax(z) ;    d_k = mean of d_t over the trained tokens of domain k

    estimator "split"     D_k = d_k(even sequences) d_k(odd sequences)     unbiased, may be negative; DomainBed's
    estimator "squared"   D_k = d_k^2                                      as defined; biased upward by noise

The penalty is the paper's. A domain with one sequence in the step gets its square. During the share ``anneal`` of the
steps the strength is min(1, lam), afterwards lam (DomainBed: 1, for 500 of 5000 steps); no optimizer is made anew at
that step. The penalty looks at the student's own cross-entropy on the trace, whatever the objective is. Cost: a second
forward, and the logits once more. Neutral setting: lam = 0 is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from isodistill.alignment.penalised import AnnealedPenalty, SeenTokens

__all__ = ["IRM", "scale_derivatives"]

_CHUNK = 512  # positions whose logits exist at one time


def scale_derivatives(z: Tensor, targets: Tensor) -> Tensor:
    """d_t (N,): derivative of the cross-entropy of w z (N, n_vocab) with respect to w, at w = 1."""
    return (z.softmax(-1) * z).sum(-1) - z.gather(1, targets[:, None]).squeeze(1)


@dataclass
class IRM(AnnealedPenalty):
    """IRMv1, arXiv 1907.02893; see the module for the equations.

    Args:
        lam: strength; 0 is ERM. Default 100, search 0.1 to 1e5 (DomainBed's, chosen for image classifiers).
        anneal: share of the steps before lam takes effect. Default 0.1.
        estimator: ``split`` or ``squared``.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    lam: float = 100.0
    anneal: float = 0.1
    estimator: Literal["split", "squared"] = "split"

    looks_at: ClassVar[Literal["completion", "question"]] = "completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ("split", "squared"):
            raise ValueError(f"alignment.estimator is {self.estimator!r}; choose one of split, squared")

    def statistics(self, seen: SeenTokens) -> Tensor:
        """The weighted sum of d_t over each sequence, (R, 1)."""

        def d(hidden: Tensor, targets: Tensor) -> Tensor:
            return scale_derivatives(seen.head(hidden).float(), targets)

        chunks = zip(seen.hidden.split(_CHUNK), seen.targets.split(_CHUNK), strict=True)
        d_t = torch.cat([checkpoint(d, hidden, targets, use_reentrant=False) for hidden, targets in chunks])
        return seen.summed((d_t * seen.weights[seen.rows])[:, None])

    def penalty(self, s: Tensor, domains: Tensor, tokens: Tensor) -> Tensor:
        """(1/K) sum_k D_k over the domains of the step."""
        D = []
        for k in domains.unique():
            mine, n = s[domains == k, 0], tokens[domains == k]
            if self.estimator == "squared" or len(mine) == 1:
                D.append((mine.sum() / n.sum()) ** 2)
            else:
                D.append(mine[::2].sum() / n[::2].sum() * mine[1::2].sum() / n[1::2].sum())
        return torch.stack(D).mean()
