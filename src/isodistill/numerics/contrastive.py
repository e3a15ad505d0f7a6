"""What a contrastive loss gives up when pairs leave its batch (ECIF, arXiv 2411.11667, with three corrections of ours).

S (N, M), M >= N: logits of the N texts a over the N images b and M - N further hard negatives; pair n is entry (n, n).
The further columns stay when pairs leave; with ``owned``, columns n + N, n + 2 N, ... belong to pair n and leave too.
P = row softmax of S; Q = column softmax of its first N columns. For the removed pairs R, both sides taken together:

    Pos(R)  = sum_{n in R} [ -2 S_nn + lse_j S_nj + lse_j S_jn ]
    Neg1(R) = sum_{k not in R} sum_{n in R} (P_kn + Q_kn)                                      mode "first_order"
    NegX(R) = -sum_{k not in R} [ log(1 - sum_{n in R} P_kn) + log(1 - sum_{n in R} Q_kn) ]     mode "exact"
    L - L_without_R = Pos(R) + NegX(R), an identity

A public reading note prints the inverse of the ratio P_kn; whether the paper does too is not known to us.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Mode",
    "Sides",
    "all_removal_derivatives",
    "contrastive_loss",
    "loss_curvature",
    "pair_losses",
    "removal_gain",
    "sampled_logit_gradient",
]

Mode = Literal["exact", "first_order"]
Sides = Literal["both", "a_to_b", "b_to_a"]

_FLOOR = 1e-6


def _views(S: Tensor, sides: Sides) -> list[Tensor]:
    """The matrices whose rows are softmax problems with answer n in row n: S, its transpose, or both.

    Raises:
        ValueError: for another shape, or unknown sides.
    """
    if S.ndim != 2 or S.shape[1] < S.shape[0]:
        raise ValueError(f"S must be (N, M) with M >= N, one positive per row; got shape {tuple(S.shape)}.")
    square = S[:, : len(S)].T
    views = {"both": [S, square], "a_to_b": [S], "b_to_a": [square]}
    if sides not in views:
        raise ValueError(f"sides must be one of {', '.join(views)}; got {sides!r}.")
    return views[sides]


def _require_mode(mode: Mode) -> None:
    if mode not in ("exact", "first_order"):
        raise ValueError(f"mode must be exact or first_order, got {mode!r}.")


def _require_owners(S: Tensor, owned: bool) -> None:
    if owned and S.shape[1] % max(len(S), 1):
        raise ValueError(f"With owned, S has as many further columns for every pair; got shape {tuple(S.shape)}.")


def contrastive_loss(S: Tensor, sides: Sides = "both") -> Tensor:
    """L = sum_n [ lse_j S_nj - S_nn ] per side, summed over the batch, 0-dim.

    Raises:
        ValueError: for a shape other than (N, M) with M >= N, or unknown sides.
    """
    return pair_losses(S, sides).sum()


def pair_losses(S: Tensor, sides: Sides = "both") -> Tensor:
    """The own terms of every pair of ``contrastive_loss``, (N,).

    Raises:
        ValueError: for a shape other than (N, M) with M >= N, or unknown sides.
    """
    return torch.stack([V.logsumexp(1) - V.diagonal() for V in _views(S, sides)]).sum(0)


def removal_gain(
    S: Tensor, removed: Tensor, mode: Mode = "exact", sides: Sides = "both", owned: bool = False
) -> Tensor:
    """Pos(R) + Neg(R), 0-dim, differentiable in S: by how much the batch loss falls when R leaves.

    Rows in R are not counted in Neg, for they leave too. The complement is summed in the log domain.

    Args:
        S: (N, M).
        removed: (N,) bool, R. The whole batch gives Pos = L and no Neg.
        mode: "exact" removes the columns of R, "first_order" takes the first Taylor term at their weight 1.
        sides: the sides of the loss.
        owned: whether further columns leave with their pair; M is then a multiple of N.

    Raises:
        ValueError: for a wrong shape, mode or sides.
    """
    _require_mode(mode)
    _require_owners(S, owned)
    if removed.shape != S.shape[:1] or removed.dtype != torch.bool:
        raise ValueError(f"removed must be bool of shape ({len(S)},), got {removed.dtype} {tuple(removed.shape)}.")
    parts = []
    for V in _views(S, sides):
        total = V.logsumexp(1)
        parts.append((total - V.diagonal())[removed].sum())
        stays = torch.ones(V.shape[1], dtype=torch.bool, device=V.device)
        stays[: len(removed)] = ~removed
        if owned:
            stays = (~removed).repeat(V.shape[1] // len(removed))
        if removed.all():
            continue
        if mode == "exact":
            parts.append((total[~removed] - V[~removed][:, stays].logsumexp(1)).sum())
        else:
            parts.append((V[~removed][:, ~stays] - total[~removed, None]).exp().sum())
    return torch.stack(parts).sum()


@torch.no_grad()
def all_removal_derivatives(
    S: Tensor, dS: Tensor, mode: Mode = "exact", sides: Sides = "both", owned: bool = False
) -> Tensor:
    """d[Pos({n}) + Neg({n})] along dS, for every pair n of the batch at once, (N,) fp64 (ours).

        m_k = sum_j P_kj dS_kj;   dPos(n) = m_n - dS_nn;   dP_kn = P_kn (dS_kn - m_k)
        exact: dPos(n) + sum_{k != n} dP_kn / (1 - P_kn);   first order: without the division; both summed over sides

    1 - P_kn is summed over the complement where P_kn is the largest of its row, and not below 1e-6. Cost O(N M).

    Args:
        S: (N, M).
        dS: (N, M), the change of S along a direction of the parameters.
        mode: as in ``removal_gain``.
        sides: the sides of the loss.
        owned: as in ``removal_gain``; P_kn and dP_kn are then summed over the columns of pair n.

    Raises:
        ValueError: for a wrong shape, mode or sides.
    """
    _require_mode(mode)
    _require_owners(S, owned)
    n = len(S)
    result = torch.zeros(n, dtype=torch.float64, device=S.device)
    for V, dV in zip(_views(S.double(), sides), _views(dS.double(), sides), strict=True):
        P = V.softmax(1)
        mean = (P * dV).sum(1, keepdim=True)
        change = P * (dV - mean)
        if owned:
            P, change = (X.unflatten(1, (-1, n)).sum(1) for X in (P, change))
        if mode == "exact":
            change = change / _complement(P)
        own = change.diagonal().clone()
        result += mean[:, 0] - dV.diagonal() + change[:, :n].sum(0) - own
    return result


def _complement(P: Tensor) -> Tensor:
    """1 - P without cancellation, (N, M): the largest of a row is the one for which 1 - P loses its digits."""
    top = P.argmax(1, keepdim=True)
    rest = P.scatter(1, top, 0.0).sum(1, keepdim=True)
    return (1 - P).scatter(1, top, rest).clamp_min(_FLOOR)


@torch.no_grad()
def loss_curvature(S: Tensor, dS: Tensor, sides: Sides = "both") -> Tensor:
    """The Hessian of ``contrastive_loss`` in S, times dS, (N, M): P * (dS - m) per side. Positive semidefinite.

    Raises:
        ValueError: for a wrong shape or sides.
    """
    result = torch.zeros_like(dS)  # not of S, which has no batch where many dS are mapped over
    targets = _views(result, sides)
    for V, dV, target in zip(_views(S, sides), _views(dS, sides), targets, strict=True):
        P = V.softmax(1)
        target += P * (dV - (P * dV).sum(1, keepdim=True))
    return result


@torch.no_grad()
def sampled_logit_gradient(S: Tensor, generator: torch.Generator, sides: Sides = "both") -> Tensor:
    """The gradient in S of the loss with answers drawn from the model, (N, M): P - onehot(j), j ~ P, summed over sides.

    Its mean is 0 and its covariance the Hessian of ``loss_curvature``: diag(P) - P P' for a row, rows are drawn apart.

    Args:
        S: (N, M).
        generator: of the draws, on the device of S.
        sides: the sides of the loss.

    Raises:
        ValueError: for a wrong shape or sides.
    """
    result = torch.zeros_like(S)
    for V, target in zip(_views(S, sides), _views(result, sides), strict=True):
        P = V.softmax(1)
        target += P.scatter_add(1, torch.multinomial(P, 1, generator=generator), -torch.ones_like(P[:, :1]))
    return result
