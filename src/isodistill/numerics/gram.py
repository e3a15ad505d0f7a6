"""Weights of K gradients from their Gram matrix Q_ij = g_i . g_j alone: PCGrad, CAGrad, UPGrad.

Every direction here is sum_k w_k g_k, so K x K numbers decide it and P is never looked at again. Weights do not change
when all gradients are multiplied by a constant: what has to be compared with a small number is compared relative to the
trace of Q. (An absolute eps makes UPGrad the mean, and CAGrad zero, for gradients of the size that LoRA has.) All fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import nnls
from torch import Tensor

from isodistill.numerics.moments import chunk_slices

__all__ = ["cagrad_weights", "gram", "pcgrad_weights", "simplex_projection", "upgrad_weights"]

_ITERATIONS = 300
_SHORTEST = 1e-12
_VANISHED = 1e-12  # of the trace of Q: below this share, the square of a norm is rounding


@torch.no_grad()
def gram(g: Tensor) -> Tensor:
    """Q (K, K) in fp64 on the CPU, of gradients (K, P), summed in chunks."""
    Q = torch.zeros(len(g), len(g), dtype=torch.float64, device=g.device)
    for part in chunk_slices(g.shape[1], g.device):
        rows = g[:, part].double()
        Q.addmm_(rows, rows.T)
    return Q.cpu()


def pcgrad_weights(Q: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """PCGrad (arXiv 2001.06782): each g_i gives up, one after another, what it has against the others; their mean.

        p = g_i ;  for j in orders[i]:  if p . g_j < 0:  p <- p - (p . g_j / Q_jj) g_j

    Done in coefficients: p = sum_l c_l g_l, so p . g_j = sum_l c_l Q_lj. A zero g_j is never against anything.

    Args:
        Q: (K, K).
        orders: for every i, the other indices in the order in which they are met.

    Returns:
        (K,) weights of the mean over i.
    """
    total = torch.zeros(len(Q), dtype=torch.float64)
    for i, order in enumerate(orders):
        c = torch.zeros(len(Q), dtype=torch.float64)
        c[i] = 1.0
        for j in order:
            inner = float(c @ Q[:, j])
            if inner < 0 and Q[j, j] > 0:
                c[j] -= inner / Q[j, j]
        total += c
    return total / len(Q)


def upgrad_weights(Q: Tensor) -> Tensor:
    """UPGrad (arXiv 2406.16232): the mean of the projections of every g_i onto the dual cone {x: g_k . x >= 0}.

        v_i = argmin v'Qv  subject to  v >= e_i ;    w = (1/K) sum_i v_i

    With C the matrix of cosines and R'R = C this is a least-squares problem with u >= 0, min norm(R (u + e_i)), which
    scipy's active-set solver ends exactly. A zero gradient is left out of the others' problems.

    Args:
        Q: (K, K).

    Returns:
        (K,) weights, 1/K each where no pair conflicts.
    """
    norms = Q.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    C = Q * inverse[:, None] * inverse
    values, vectors = torch.linalg.eigh(C)
    R = (values.clamp(min=0).sqrt()[:, None] * vectors.T).numpy()
    total = torch.zeros(len(Q), dtype=torch.float64)
    for i in range(len(Q)):
        u, _ = nnls(R, -R[:, i])
        total += torch.from_numpy(u) * norms[i] * inverse
        total[i] += 1
    return total / len(Q)


def cagrad_weights(Q: Tensor, c: float) -> Tensor:
    """CAGrad (arXiv 2110.14048): the direction near gbar that serves the worst-served domain best.

        w* = argmin over the simplex of  g_w . gbar + c norm(gbar) norm(g_w) ,   g_w = sum_k w_k g_k
        d  = gbar + (c norm(gbar) / norm(g_w*)) g_w*

    Solved by projected gradient with backtracking. Where g_w* or gbar vanishes, d = gbar.

    Args:
        Q: (K, K).
        c: radius around gbar, in [0, 1).

    Returns:
        (K,) weights of d; for one domain, or c = 0, those of gbar.
    """
    K = len(Q)
    mean = torch.full((K,), 1 / K, dtype=torch.float64)
    trace = float(Q.trace())
    if K == 1 or c == 0 or trace == 0:
        return mean
    Q = Q / trace
    b = Q @ mean
    radius = c * math.sqrt(max(float(mean @ b), 0.0))
    w = _least_over_simplex(Q, b, radius)
    squared = float(w @ Q @ w)
    if squared <= _VANISHED or radius == 0:
        return mean
    return mean + w * (radius / math.sqrt(squared))


def _least_over_simplex(Q: Tensor, b: Tensor, radius: float) -> Tensor:
    """argmin over the simplex of w.b + radius sqrt(w'Qw), for Q of trace 1."""

    def value(w: Tensor) -> float:
        return float(w @ b) + radius * math.sqrt(max(float(w @ Q @ w), 0.0))

    w, step = torch.full_like(b, 1 / len(b)), 1.0
    best = value(w)
    for _ in range(_ITERATIONS):
        squared = max(float(w @ Q @ w), _VANISHED)
        slope = b + Q @ w * (radius / math.sqrt(squared))
        step *= 2
        moved = simplex_projection(w - step * slope)
        while value(moved) > best - 0.1 / step * float((moved - w).square().sum()) and step > _SHORTEST:
            step /= 2
            moved = simplex_projection(w - step * slope)
        if value(moved) >= best:  # fp64 sees no descent any more
            break
        w, best = moved, value(moved)
    return w


def simplex_projection(v: Tensor) -> Tensor:
    """The nearest point to ``v`` (K,) with entries >= 0 that sum to 1 (sort and threshold, arXiv 1309.1541)."""
    ordered = v.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(v) + 1, dtype=v.dtype)
    count = int((ordered > excess).sum())
    return (v - excess[count - 1]).clamp(min=0)
