"""What ECIF is measured against: plain looks at the fitted model, and influences of the pair's own loss terms alone.

All return (N,) fp64 in the direction of ECIF: the lowest scores are the most suspicious pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp

from isodistill.influence.ecif import Influence, Items

__all__ = ["PlainScores", "plain_scores", "positive_part", "tracin", "trak"]


@dataclass(frozen=True)
class PlainScores:
    """What the fitted model thinks of each pair, means over its batches.

    Attributes:
        similarity: S_nn.
        loss: minus the pair's own two loss terms.
        confidence: the sum of its two softmax probabilities.
    """

    similarity: Tensor
    loss: Tensor
    confidence: Tensor


@torch.no_grad()
def plain_scores(influence: Influence) -> PlainScores:
    """Similarity, loss and self-confidence, no influence among them."""
    found = torch.zeros(3, len(influence.a), dtype=torch.float64, device=influence.theta.device)
    seen = torch.zeros_like(found[0])
    for batch in influence.segments:
        S = influence.batch_logits(influence.theta, batch).double()
        confidence = S.softmax(0).diagonal() + S.softmax(1).diagonal()
        found[:, batch] += torch.stack([S.diagonal(), -_own_loss(S), confidence])
        seen[batch] += 1
    return PlainScores(*(found / seen.clamp_min(1)))


def positive_part(influence: Influence, q: Tensor, theta: Tensor | None = None) -> Tensor:
    """<grad Pos(n), q>: ECIF without what the pair does as a negative; with q by "ekfac" the usual EK-FAC influence.

    Args:
        influence: the fitted model with its batches.
        q: (P,), H^-1 grad L(D').
        theta: (P,), where the gradients are taken; the fit if None.
    """
    theta = influence.theta if theta is None else theta
    scores = torch.zeros(len(influence.a), dtype=torch.float64, device=theta.device)
    for batch in influence.segments:
        own = jvp(lambda t, batch=batch: _own_loss(influence.batch_logits(t, batch)), (theta,), (q,))[1]
        scores[batch] += own
    return scores


def tracin(influence: Influence, checkpoints: Sequence[Tensor], a: Items, b: Items) -> Tensor:
    """sum over checkpoints of <grad Pos(n), grad L(D')> (arXiv 2002.08484), equal learning rates.

    Args:
        influence: the fitted model with its batches.
        checkpoints: thetas (P,) of the training.
        a: first items of the queries.
        b: second items.
    """
    scores = torch.zeros(len(influence.a), dtype=torch.float64, device=influence.theta.device)
    for theta in checkpoints:
        g = grad(lambda t: influence.query_loss(t, a, b))(theta)
        scores += positive_part(influence, g, theta)
    return scores


def trak(influence: Influence, a: Items, b: Items, rank: int = 256, seed: int = 0) -> Tensor:
    """TRAK-like (arXiv 2303.14186) with one model: (1 - p_n) phi_n' (Phi' Phi + lam I)^-1 sum over queries of phi_q.

    phi = R' grad f in fp64, R (P, rank) Gaussian; f = sum over sides of log p - log(1 - p), the margin of the pair in
    its batch; p_n the mean of its probabilities. lam = mean diagonal of Phi' Phi, ours: of .01, .1, 1 and 10 the best
    on a seed of each data set of the study, as was the rank among 16 to 512.

    Args:
        influence: the fitted model with its batches.
        a: first items of the queries.
        b: second items.
        rank: of the projection.
        seed: of R.
    """
    theta = influence.theta
    R = torch.randn(len(theta), rank, generator=torch.Generator().manual_seed(seed)).to(theta)
    phi = torch.zeros(len(influence.a), rank, dtype=torch.float64, device=theta.device)
    for batch in influence.segments:
        J = jacrev(lambda t, batch=batch: _margins(influence.batch_logits(t, batch)))(theta)
        phi[batch] += (J @ R).double()
    target = (grad(lambda t: _margins(influence.logits(t, a, b)).sum())(theta) @ R).double()
    K = phi.T @ phi
    K += K.diagonal().mean() * torch.eye(rank).to(K)
    agreement: Tensor = phi @ torch.linalg.solve(K, target)
    return (1 - plain_scores(influence).confidence / 2) * agreement


def _own_loss(S: Tensor) -> Tensor:
    """Pos of each pair alone: lse_j S_nj + lse_j S_jn - 2 S_nn, (N,)."""
    return S.logsumexp(0) + S.logsumexp(1) - 2 * S.diagonal()


def _margins(S: Tensor) -> Tensor:
    """sum over sides of S_nn - lse_(j != n) S_nj, (N,); a pair alone has no margin, 0."""
    own = torch.eye(*S.shape, dtype=torch.bool, device=S.device)
    others = S.masked_fill(own, -torch.inf)
    sides = [others.logsumexp(1)] if S.shape[1] > 1 else []
    sides += [others.logsumexp(0)[: len(S)]] if len(S) > 1 else []
    return torch.stack([S.diagonal() - side for side in sides]).sum(0) if sides else 0 * S.diagonal()
