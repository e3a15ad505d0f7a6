"""Between the weight space of a LoRA layer and its factors: tangent gradient, way back, truncated SVD.

Notation: W = W0 + s B A with A (r, n), B (m, r) and s = ``scale`` = lora_alpha / r; G = dL/dW (m, n); hence
dL/dA = s B'G and dL/dB = s G A'. P_B and P_A project orthogonally on the columns of B and the rows of A, and

    P_T(G) = P_B G + G P_A - P_B G P_A

is the part of G that a small change of A and B can follow. P_T(G) does not depend on which (R^-1 A, B R) stands for the
same W. At B = 0, where LoRA starts, there is no column space: P_B = 0 (our choice) and (B'B)^-1 is read as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.numerics.checks import require_finite

__all__ = [
    "SubspaceState",
    "TangentBasis",
    "lora_pro",
    "pull_back",
    "retract",
    "sylvester_gauge",
    "tangent_gradient",
    "truncated_svd",
]

_DAMPING = 1e-6
_OVERSAMPLING = 8


def _inverse_gram(factor: Tensor) -> Tensor:
    """(factor' factor)^-1, (r, r), for an fp64 ``factor`` (p, r) of full column rank; damped where it is not; 0 at 0.

    Cholesky with damping 1e-6 trace / r. Two Newton steps X <- 2 X - X gram X then raise the relative error that the
    damping leaves in a direction to its fourth power: used directions come out exact, empty ones stay bounded.

    Raises:
        torch.linalg.LinAlgError: if the factorisation fails.
    """
    gram = factor.T @ factor
    trace = gram.diagonal().sum()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    damping = torch.where(trace > 0, _DAMPING * trace / len(gram), 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + damping * identity))
    for _ in range(2):
        inverse = 2 * inverse - inverse @ gram @ inverse
    return inverse * (trace > 0)


class TangentBasis:
    """Factors with their inverse Grams, in fp64: what every projection on the tangent space at (A, B) needs.

    Args:
        A: (r, n).
        B: (m, r).

    Raises:
        torch.linalg.LinAlgError: if B'B or AA' cannot be factorised.
    """

    @torch.no_grad()
    def __init__(self, A: Tensor, B: Tensor) -> None:
        self.A, self.B = A.detach().double(), B.detach().double()
        self.inverse_A, self.inverse_B = _inverse_gram(self.A.T), _inverse_gram(self.B)

    @torch.no_grad()
    def coordinates(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """F (..., r, n) and E (..., m, r) in fp64 with B F + E A = P_T(G).

        Args:
            left: (..., r, n), B'G.
            right: (..., m, r), G A'.
        """
        F = self.inverse_B @ left.double()
        E = (right.double() - self.B @ (F @ self.A.T)) @ self.inverse_A
        return F, E

    @torch.no_grad()
    def energy(self, left: Tensor, right: Tensor) -> Tensor:
        """norm(P_T(G))^2, 0-dim fp64, from B'G and G A': norm(P_B G)^2 + norm(G P_A)^2 - norm(P_B G P_A)^2."""
        left, right = left.double(), right.double()
        both = left @ self.A.T
        in_B, in_A = (left * (self.inverse_B @ left)).sum(), (right * (right @ self.inverse_A)).sum()
        return in_B + in_A - (both * (self.inverse_B @ both @ self.inverse_A)).sum()


@torch.no_grad()
def tangent_gradient(grad_A: Tensor, grad_B: Tensor, A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The tangent part of dL/dW from the factors' gradients alone, as a product of thin matrices.

        F = (1/s) (B'B)^-1 grad_A;   E = (1/s) (grad_B - B (B'B)^-1 grad_A A') (AA')^-1
        P_T(dL/dW) = B F + E A = [B, E] [F; A]

    An algebraic identity (ours): no hook, no dense dL/dW. Cost O((m + n) r^2), in fp64.

    Args:
        grad_A: (r, n), dL/dA.
        grad_B: (m, r), dL/dB.
        A: (r, n).
        B: (m, r); at B = 0 the result is G P_A.
        scale: s.

    Returns:
        left (m, 2r) = [B, E] and right (2r, n) = [F; A], in the dtype of ``grad_A``: left @ right = P_T(dL/dW).

    Raises:
        torch.linalg.LinAlgError: if B'B or AA' cannot be factorised.
    """
    F, E = TangentBasis(A, B).coordinates(grad_A / scale, grad_B / scale)
    dtype = grad_A.dtype
    return torch.cat([B.to(dtype), E.to(dtype)], dim=1), torch.cat([F.to(dtype), A.to(dtype)], dim=0)


@torch.no_grad()
def pull_back(G: Tensor, A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The chain rule of W = W0 + s B A: grad_A = s B'G (r, n) and grad_B = s G A' (m, r).

    Works on a block of rows too: with rows of ``G`` and the same rows of ``B``, grad_A is the block's summand and
    grad_B its rows. Projecting G with P_T first changes nothing.

    Args:
        G: (m, n), a gradient in the space of W.
        A: (r, n).
        B: (m, r).
        scale: s.
    """
    return scale * (B.T @ G), scale * (G @ A.T)


@torch.no_grad()
def lora_pro(
    L: Tensor, R: Tensor, A: Tensor, B: Tensor, scale: float, X: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Factor directions whose step in W is the tangent projection of a gradient (LoRA-Pro, arXiv 2407.18242).

        gA = (1/s) (B'B)^-1 L + X A;   gB = (1/s) (R - B (B'B)^-1 L A') (AA')^-1 - B X
        s (B gA + gB A) = P_T(G) for any X

    Args:
        L: (r, n), B'G.
        R: (m, r), G A'.
        A: (r, n).
        B: (m, r).
        scale: s.
        X: (r, r), free; None is 0. The paper's is ``sylvester_gauge``.

    Returns:
        gA (r, n) and gB (m, r), in the dtype of ``L``. L = 0 and R = 0 give zeros, exactly.

    Raises:
        torch.linalg.LinAlgError: if B'B or AA' cannot be factorised.
    """
    F, E = TangentBasis(A, B).coordinates(L, R)
    gA, gB = F / scale, E / scale
    if X is not None:
        gA, gB = gA + X.double() @ A.double(), gB - B.double() @ X.double()
    return gA.to(L.dtype), gB.to(L.dtype)


@torch.no_grad()
def sylvester_gauge(L: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The X of LoRA-Pro (arXiv 2407.18242), which keeps (gA, gB) nearest to the plain factor gradients.

        B'B X + X AA' = -(1/s) (B'B)^-1 L A'

    Args:
        L: (r, n), B'G.
        A: (r, n).
        B: (m, r).
        scale: s.

    Returns:
        X (r, r), in the dtype of ``L``; 0 if B = 0.
    """
    left, A, B = L.double(), A.double(), B.double()
    b, P = torch.linalg.eigh(B.T @ B)
    a, Q = torch.linalg.eigh(A @ A.T)
    right_side = -(_inverse_gram(B) @ left @ A.T) / scale
    sums = b[:, None] + a
    solved = torch.where(sums > 0, (P.T @ right_side @ Q) / sums, 0.0)
    X: Tensor = P @ solved @ Q.T
    return X.to(L.dtype)


@torch.no_grad()
def retract(left: Tensor, right: Tensor, scale: float, rank: int) -> tuple[Tensor, Tensor]:
    """New factors for the effective weight ``left @ right`` cut to ``rank``: the literal "back onto the manifold".

        U S Vt = SVD_rank(left @ right);   A = sqrt(S) Vt / sqrt(s);   B = U sqrt(S) / sqrt(s)

    For a step Z of W with P_T(Z) = B F + E A, give left = [B, E] and right = [s A + F; A]. Two thin QR and one small
    SVD, exact, O((m + n) p^2). A direction of singular value 0 keeps a unit row in A, so that training can still reach
    it (ours). Moments that an optimizer keeps in the old basis become meaningless.

    Args:
        left: (m, p).
        right: (p, n).
        scale: s.
        rank: r <= p.

    Returns:
        A (r, n) and B (m, r), in the dtype of ``left``.
    """
    Q, R = torch.linalg.qr(left.double())
    P, T = torch.linalg.qr(right.double().T)
    U, S, Vh = torch.linalg.svd(R @ T.T)
    root = (S[:rank] / scale).sqrt()
    A = torch.where(root > 0, root, 1.0)[:, None] * (Vh[:rank] @ P.T)
    B = (Q @ U[:, :rank]) * root
    return A.to(left.dtype), B.to(left.dtype)


@dataclass(frozen=True)
class SubspaceState:
    """What ``truncated_svd`` carries from one step to the next.

    Attributes:
        basis: (n, block) right singular vectors of the last matrix; None while fresh.
    """

    basis: Tensor | None = None


@torch.no_grad()
def truncated_svd(
    G: Tensor, rank: int, state: SubspaceState | None = None
) -> tuple[Tensor, Tensor, Tensor, SubspaceState]:
    """The leading singular triplets: exact, or by subspace iteration that starts where the last step ended.

    Without a state the SVD is exact. With one it is a block subspace iteration with block = rank + 8: Q = qr(G V_prev),
    then the small SVD of Q'G. A fresh state starts from a fixed Gaussian block and iterates twice more.
    The truncation is the paper's (arXiv 2606.05025); the warm start is ours.

    Args:
        G: (m, n).
        rank: p >= 1; k = min(p, m, n) triplets come back.
        state: None for the exact SVD, ``SubspaceState()`` for a cold start, else the state of the last call.

    Returns:
        U (m, k), S (k,) descending, Vh (k, n), in fp32, or fp64 for fp64 input, and the state for the next call
        (an exact SVD gives one too).

    Raises:
        ValueError: for a rank below 1, or a state of another shape.
        FloatingPointError: if G holds NaN or an infinity.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    require_finite({"G": G}, where="truncated_svd")
    G = G.to(torch.float64 if G.dtype == torch.float64 else torch.float32)
    block = min(rank + _OVERSAMPLING, *G.shape)
    if state is None:
        U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    else:
        Q = _range_basis(G, block, state)
        U, S, Vh = torch.linalg.svd(Q.T @ G, full_matrices=False)
        U = Q @ U
    return U[:, :rank], S[:rank], Vh[:rank], SubspaceState(Vh[:block].T.contiguous())


def _range_basis(G: Tensor, block: int, state: SubspaceState) -> Tensor:
    """Orthonormal (m, block) whose span is close to that of the leading left singular vectors."""
    if state.basis is not None:
        if state.basis.shape != (G.shape[1], block):
            raise ValueError(
                f"The state has shape {tuple(state.basis.shape)}, this matrix and rank need {(G.shape[1], block)}: "
                "keep one state per matrix and rank."
            )
        start, extra = state.basis, 0
    else:
        start, extra = torch.randn(G.shape[1], block, generator=torch.Generator().manual_seed(0)), 2
    Q: Tensor = torch.linalg.qr(G @ start.to(G)).Q
    for _ in range(extra):
        Q = torch.linalg.qr(G @ (G.T @ Q)).Q
    return Q
