"""What a model gains when the pairs that a ranking calls the worst are left out: it is fitted anew without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.influence.heads import Fit, fit_heads
from isodistill.influence.trace import retrieve

__all__ = ["SHARES", "Curve", "removal_curve"]

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Curve:
    """At each of ``SHARES``: the mean loss of the queries, and the share of them that finds its own second item."""

    loss: list[float]
    accuracy: list[float]


def removal_curve(
    a: Tensor,
    b: Tensor,
    orders: Mapping[str, Sequence[Tensor]],
    query_a: Tensor,
    query_b: Tensor,
    same: Tensor,
    how: Fit,
) -> dict[str, Curve]:
    """Leave the first pairs of each order out, fit the heads anew from the same start, and look the queries up.

    Args:
        a: (N, d) features of the first items of the pairs.
        b: (N, d), of the second.
        orders: name -> orders of all pairs, the worst first; the curve is the mean over them.
        query_a: (n, d), of pairs that had no say in the orders.
        query_b: (n, d).
        same: (n,), equal numbers for equal second items, any of which is a right answer.
        how: the settings of the heads.
    """
    whole = _judge(a, b, query_a, query_b, same, how)
    curves = {}
    for name, given in orders.items():
        points = [whole]
        for share in SHARES[1:]:
            kept = [order[round(share * len(a)) :].sort()[0] for order in given]
            judged = torch.tensor([_judge(a[rows], b[rows], query_a, query_b, same, how) for rows in kept])
            points.append((float(judged[:, 0].mean()), float(judged[:, 1].mean())))
        curves[name] = Curve([loss for loss, _ in points], [accuracy for _, accuracy in points])
    return curves


def _judge(a: Tensor, b: Tensor, query_a: Tensor, query_b: Tensor, same: Tensor, how: Fit) -> tuple[float, float]:
    found = retrieve(fit_heads(a, b, how), query_a, query_b)
    return float(found.loss.mean()), float((same[found.chosen] == same).double().mean())
