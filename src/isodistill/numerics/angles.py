"""How far nodes drift: angles between weight vectors, exact where arccos is blind, and without dense LoRA products.

    theta(a, b) = 2 atan2(|u - v|, |u + v|) ,   u = a / |a| ,  v = b / |b|          in [0, pi]

arccos of the cosine gives 0 in fp32 for a true angle of 1e-4. From the products aa = a.a, ad = a.d and dd = d.d of a
vector and its change d = b - a alone, with t = ad / |a| and n = (dd - t^2) the square of the part across a,

    theta = atan2(sqrt(n), |a| + t)

which adds up over the pieces of a node (rows of up and gate, column of down). In W = W0 + s B A the change is low rank,
d_i = s ((B'_i - B_i) A' + B_i (A' - A)), so that the products cost O(m n r) and the change is never formed.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["METRICS", "Metric", "angle_of_products", "angles", "component_angles", "drifts", "lora_products"]

Metric = Literal["angular", "cosine", "l2", "l1"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def angles(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """theta (...) between vectors along the last axis of two equal shapes (..., n), fp64 inside.

    Two zero vectors are at angle 0, a zero vector and another at pi/2.

    Returns:
        The angles in the dtype of ``new``, and where a vector was zero, bool (...).
    """
    a, b = old.double(), new.double()
    norm_a, norm_b = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (a, b))
    u, v = (x / norm.clamp(min=torch.finfo(torch.float64).tiny) for x, norm in ((a, norm_a), (b, norm_b)))
    # A zero vector has u = 0, so that both norms are 1 and the angle comes out as pi/2.
    theta = 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))
    degenerate = ((norm_a == 0) | (norm_b == 0)).squeeze(-1)
    return theta.to(new.dtype), degenerate


def drifts(old: Tensor, new: Tensor, metric: Metric = "angular") -> tuple[Tensor, Tensor]:
    """How far each row of ``new`` (U, n) lies from that of ``old``, and which rows are or were zero, bool (U,).

    Args:
        old: (U, n).
        new: (U, n).
        metric: ``angular`` (theta in radians), ``cosine`` (1 - cos theta), ``l2`` or ``l1`` (norm of the change).

    Raises:
        ValueError: an unknown metric.
    """
    theta, degenerate = angles(old, new)
    if metric == "angular":
        return theta, degenerate
    if metric == "cosine":
        return 2 * torch.sin(theta / 2) ** 2, degenerate
    if metric in ("l2", "l1"):
        return torch.linalg.vector_norm(new - old, ord=int(metric[1]), dim=-1), degenerate
    raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")


def lora_products(W0: Tensor, reference: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """aa, ad and dd (3, m) of every row of W0 + s B A, from its reference to now, in fp64.

    The columns of a layer are the rows of its transpose: pass W0.T, (B.T, A.T) and (B.T, A.T).

    Args:
        W0: (m, n), frozen.
        reference: A (r, n) and B (m, r) at the start.
        now: A and B as they stand.
        scale: s.
    """
    (A, B), (A1, B1) = ((x.double() for x in pair) for pair in (reference, now))
    W0, s = W0.double(), scale
    # a = w0 + s B A and d = D F = s ((B1 - B) A1 + B (A1 - A)): differences first, so that small ones stay exact.
    F = torch.cat([A1, A1 - A])
    D = s * torch.cat([B1 - B, B], dim=1)
    aF = W0 @ F.T + s * B @ (A @ F.T)
    aa = W0.square().sum(1) + 2 * s * (B * (W0 @ A.T)).sum(1) + s**2 * (B @ (A @ A.T) * B).sum(1)
    return torch.stack([aa, (aF * D).sum(1), (D @ (F @ F.T) * D).sum(1).clamp(min=0)])


def angle_of_products(products: Tensor) -> tuple[Tensor, Tensor]:
    """theta (U,) in fp64 from aa, ad and dd (3, U), and where a vector is or was zero, bool (U,).

    Two zero vectors are at angle 0, a zero vector and another at pi/2.
    """
    aa, ad, dd = products
    norm = aa.clamp(min=0).sqrt()
    along = ad / norm.clamp(min=torch.finfo(torch.float64).tiny)
    across = (dd - along**2).clamp(min=0).sqrt()
    theta = torch.atan2(across, norm + along)
    appeared, died = (aa <= 0) & (dd > 0), (aa > 0) & (aa + 2 * ad + dd <= 0)
    theta = torch.where(appeared | died, math.pi / 2, theta)
    return torch.where((aa <= 0) & (dd <= 0), 0.0, theta), (aa <= 0) | died


def component_angles(reference: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """theta (r,) between the rank components [B_:j ; A_j:] of two moments, their two halves balanced to one norm.

    Gauge dependent: B R^-1 and R A are the same student and have other components. To look at, not to decide by.

    Returns:
        The angles, and where a component is or was zero, bool (r,).
    """
    return angles(*(_balanced(*pair) for pair in (reference, now)))


def _balanced(A: Tensor, B: Tensor) -> Tensor:
    a, b = torch.linalg.vector_norm(A, dim=1, keepdim=True), torch.linalg.vector_norm(B.T, dim=1, keepdim=True)
    tiny = torch.finfo(A.dtype).tiny
    return torch.cat([B.T * (a / b.clamp(min=tiny)).sqrt(), A * (b / a.clamp(min=tiny)).sqrt()], dim=1)
