"""How suspicious each pair is, for queries that are trusted, beside the two plain baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from isodistill.influence.ecif import Influence, Items
from isodistill.numerics.contrastive import pair_losses

__all__ = ["Suspicion", "change_norms", "suspect"]


@dataclass(frozen=True)
class Suspicion:
    """What is known of each pair, (N,) each.

    Attributes:
        relative: relIS = IS / norm(dtheta); the lowest is the most suspicious.
        influence: IS, the change of the loss on the queries when the pair is removed; < 0 is harmful.
        norms: norm(dtheta), as estimated by ``change_norms``.
        similarity: cosine of the pair's embeddings.
        loss: the pair's own loss, the mean over its batches.
        residual: of the solve for the queries.
    """

    relative: Tensor
    influence: Tensor
    norms: Tensor
    similarity: Tensor
    loss: Tensor
    residual: float


def suspect(influence: Influence, query_a: Items, query_b: Items, n_probes: int = 16, seed: int = 0) -> Suspicion:
    """ECIF scores of all pairs for clean queries, with the similarity and the loss of each.

    Raises:
        ValueError: for fewer than two queries.
    """
    solution = influence.inverse_product(influence.query_gradient(query_a, query_b))
    scores, norms = influence.score_all(solution.q), change_norms(influence, n_probes, seed)
    similarity, loss, seen = (torch.zeros(len(influence.a), dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for batch in influence.segments:
            S = influence.batch_logits(influence.theta, batch).double()
            similarity[batch] = S.diagonal() * influence.temperature_at(influence.theta)
            loss[batch] += pair_losses(S, influence.sides)
            seen[batch] += 1
    return Suspicion(scores / norms, scores, norms, similarity, loss / seen, solution.residual)


def change_norms(influence: Influence, n_probes: int, seed: int) -> Tensor:
    """norm(dtheta(n)) + 1e-12 norm(theta) of every pair, (N,) fp64, without a solve per pair (ours).

    norm(H^-1 g)^2 = E <z, H^-1 g>^2 = E <H^-1 z, g>^2 for z ~ N(0, I): a probe z costs one solve and one ``score_all``;
    all probes are solved together. The relative error of a norm is about 1 / sqrt(2 n_probes), and it is the same
    probes for all pairs.
    """
    z = torch.randn(n_probes, len(influence.theta), generator=torch.Generator().manual_seed(seed))
    total = torch.zeros(len(influence.a), dtype=torch.float64)
    for q in _inverse_products(influence, z.to(influence.theta), tol=1e-2, max_steps=100):
        total += influence.score_all(q).square()
    return (total / n_probes).sqrt() + 1e-12 * float(influence.theta.norm())


def _inverse_products(influence: Influence, G: Tensor, tol: float, max_steps: int) -> Tensor:
    """Conjugate gradients on the Gauss-Newton for the rows of G (k, P) at once, until every norm(r) <= tol norm(g)."""
    product = vmap(influence.gauss_newton_product)
    X, R, D = torch.zeros_like(G), G.clone(), G.clone()
    rr = R.square().sum(1)
    goal = tol**2 * rr
    for _ in range(max_steps):
        open_ = rr > goal  # a row that has converged stays where it is
        if not open_.any():
            break
        HD = product(D)
        alpha = torch.where(open_, rr / (D * HD).sum(1), 0.0)
        X, R = X + alpha[:, None] * D, R - alpha[:, None] * HD
        new = R.square().sum(1)
        D = R + torch.where(open_, new / rr, 0.0)[:, None] * D
        rr = new
    return X
