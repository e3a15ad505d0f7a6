"""Which training pairs stand behind one mistake, and what leaving them out does to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from isodistill.influence.ecif import Influence, Items
from isodistill.influence.solvers import Solution
from isodistill.influence.suspicion import TOLERANCE
from isodistill.numerics.contrastive import pair_losses

__all__ = ["Retrieval", "Trace", "retrieve", "trace_back"]


@dataclass(frozen=True)
class Retrieval:
    """What the model makes of pairs, each first item looking for its second among all of them.

    Attributes:
        chosen: (n,), the second item that is nearest.
        loss: (n,), the own terms of each pair among the others.
    """

    chosen: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Trace:
    """The pairs behind the loss of one query.

    Attributes:
        influence: (N,), IS, by how much the loss of this query rises when the pair is left out; < 0 caused it.
        relative: (N,), IS / norm(dtheta), by which the pairs are ranked, so that a few that weigh much do not lead
            every list.
        solution: of the solve for this query.
    """

    influence: Tensor
    relative: Tensor
    solution: Solution


@torch.no_grad()
def retrieve(influence: Influence, a: Items, b: Items, theta: Tensor | None = None) -> Retrieval:
    """Look every first item's second up, at ``theta``, or at the fitted one."""
    S = influence.logits(influence.theta if theta is None else theta, a, b)
    return Retrieval(S[:, : len(S)].argmax(1), pair_losses(S, influence.sides))


def trace_back(influence: Influence, a: Items, b: Items, index: int, norms: Tensor) -> Trace:
    """Influences of all training pairs on the own terms of query ``index`` among the queries.

    Args:
        influence: the fitted model.
        a: first items of the queries; the others are the negatives of the one.
        b: second items.
        index: of the query.
        norms: (N,), the values of ``change_norms``.

    Raises:
        ValueError: for fewer than two queries: one alone has no loss.
    """
    if len(a) < 2:
        raise ValueError(f"A query is traced among others, got {len(a)} in all.")
    g: Tensor = grad(lambda theta: pair_losses(influence.logits(theta, a, b), influence.sides)[index])(influence.theta)
    solution = influence.inverse_product(g, tol=TOLERANCE)
    scores = influence.score_all(solution.q)
    return Trace(scores, scores / norms, solution)
