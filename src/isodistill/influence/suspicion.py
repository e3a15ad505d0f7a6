"""How suspicious each pair is, for queries that are trusted, beside the two plain baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.influence.ecif import Influence, Items
from isodistill.influence.solvers import Solution, Solutions
from isodistill.numerics.contrastive import pair_losses

__all__ = ["TOLERANCE", "Norms", "Suspicion", "change_norms", "suspect"]

TOLERANCE = 1e-2
"""Relative residual of the solves behind a ranking: on 700 and 2,048 pairs a smaller one did not change it."""


@dataclass(frozen=True)
class Norms:
    """How far leaving a pair out would move theta.

    Attributes:
        values: (N,), norm(dtheta(n)) + 1e-12 norm(theta), estimated.
        solved: how the probes were solved.
    """

    values: Tensor
    solved: Solutions


@dataclass(frozen=True)
class Suspicion:
    """What is known of each pair, (N,) each.

    Attributes:
        relative: relIS = IS / norm(dtheta); the lowest is the most suspicious.
        influence: IS, the change of the loss on the queries when the pair is removed; < 0 is harmful.
        similarity: cosine of the pair's embeddings.
        loss: the pair's own loss, the mean over its batches.
        norms: norm(dtheta).
        solution: of the solve for the queries.
    """

    relative: Tensor
    influence: Tensor
    similarity: Tensor
    loss: Tensor
    norms: Norms
    solution: Solution


def suspect(influence: Influence, query_a: Items, query_b: Items, n_probes: int = 16, seed: int = 0) -> Suspicion:
    """ECIF scores of all pairs for clean queries, with the similarity and the loss of each.

    Raises:
        ValueError: for fewer than two queries.
    """
    solution = influence.inverse_product(influence.query_gradient(query_a, query_b), tol=TOLERANCE)
    scores, norms = influence.score_all(solution.q), change_norms(influence, n_probes, seed)
    found = torch.zeros(3, len(influence.a), dtype=torch.float64, device=influence.theta.device)
    similarity, loss, seen = found.unbind()
    with torch.no_grad():
        for batch in influence.segments:
            S = influence.batch_logits(influence.theta, batch).double()
            similarity[batch] = S.diagonal() * influence.temperature_at(influence.theta)
            loss[batch] += pair_losses(S, influence.sides)
            seen[batch] += 1
    return Suspicion(scores / norms.values, scores, similarity, loss / seen, norms, solution)


def change_norms(influence: Influence, n_probes: int, seed: int) -> Norms:
    """norm(dtheta(n)) of every pair, without a solve per pair (ours).

    norm(H^-1 g)^2 = E <z, H^-1 g>^2 = E <H^-1 z, g>^2 for z ~ N(0, I): a probe z costs one solve and one ``score_all``;
    all probes are solved together. The relative error of a norm is about 1 / sqrt(2 n_probes), and it is the same
    probes for all pairs.
    """
    z = torch.randn(n_probes, len(influence.theta), generator=torch.Generator().manual_seed(seed))
    solved = influence.inverse_products(z.to(influence.theta), TOLERANCE)
    total = torch.zeros(len(influence.a), dtype=torch.float64, device=influence.theta.device)
    for q in solved.Q:
        total += influence.score_all(q).square()
    return Norms((total / n_probes).sqrt() + 1e-12 * float(influence.theta.norm()), solved)
