"""Solvers for H q = g from products with a symmetric H: dense Cholesky, conjugate gradients, LiSSA."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.numerics import require_finite

__all__ = ["SOLVERS", "Solution", "solve"]

Product = Callable[[Tensor], Tensor]

_MAX_DENSE = 2000
_WARN_ABOVE = 1e-2


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        q: (P,).
        residual: norm(H q - g) / norm(g); 0 for g = 0.
        steps: products with H that were taken.
    """

    q: Tensor
    residual: float
    steps: int


def _exact(product: Product, g: Tensor, tol: float, max_steps: int) -> tuple[Tensor, int]:
    """Dense H by columns, symmetrised, Cholesky in fp64."""
    if len(g) > _MAX_DENSE:
        raise ValueError(
            f"The exact solver takes up to {_MAX_DENSE} parameters, got {len(g)}: use solver cg or ggn_cg."
        )
    H = torch.stack([product(e) for e in torch.eye(len(g), dtype=g.dtype, device=g.device)]).double()
    factor, failed = torch.linalg.cholesky_ex((H + H.T) / 2)
    if failed:
        raise ValueError(
            "The Hessian is not positive definite: raise delta (the weight decay of the fit), or use ggn_cg."
        )
    return torch.cholesky_solve(g.double()[:, None], factor)[:, 0].to(g.dtype), len(g)


def _cg(product: Product, g: Tensor, tol: float, max_steps: int) -> tuple[Tensor, int]:
    """Conjugate gradients from 0 until norm(r) <= tol norm(g).

    Raises:
        ValueError: if H has a direction of curvature <= 0.
    """
    x, r = torch.zeros_like(g), g.clone()
    d, rr = r.clone(), r @ r
    goal = tol**2 * rr
    for step in range(max_steps):
        if rr <= goal:
            return x, step
        Hd = product(d)
        curvature = d @ Hd
        if curvature <= 0:
            raise ValueError(f"Curvature {float(curvature):.3g} <= 0 at step {step} of CG: use ggn_cg, or raise delta.")
        alpha = rr / curvature
        x, r = x + alpha * d, r - alpha * Hd
        new = r @ r
        d, rr = r + (new / rr) * d, new
    return x, max_steps


def _lissa(product: Product, g: Tensor, tol: float, max_steps: int) -> tuple[Tensor, int]:
    """Neumann series x <- g/s + (I - H/s) x, with s = 1.1 * top eigenvalue from 20 power iterations."""
    v = torch.randn(g.shape, generator=torch.Generator().manual_seed(0)).to(g)
    for _ in range(20):
        v = product(v / v.norm())
    scale = 1.1 * v.norm()
    x = g / scale
    for step in range(max_steps):
        move = (g - product(x)) / scale
        x = x + move
        if move.norm() <= tol * x.norm() * 1e-2:
            return x, 21 + step
    return x, 20 + max_steps


SOLVERS = {"exact": _exact, "cg": _cg, "ggn_cg": _cg, "lissa": _lissa}


def solve(product: Product, g: Tensor, solver: str = "ggn_cg", tol: float = 1e-4, max_steps: int = 100) -> Solution:
    """q with H q = g, and how far it is from solving it; warns above a residual of 1e-2.

    Args:
        product: x (P,) -> H x (P,), H symmetric positive definite (``ggn_cg``: the Gauss-Newton product).
        g: (P,).
        solver: "exact" (P <= 2,000), "cg", "ggn_cg" or "lissa".
        tol: relative residual at which the iterations end.
        max_steps: their largest number.

    Raises:
        ValueError: for an unknown solver, too many parameters, or an H that is not positive definite.
        FloatingPointError: if g or q holds NaN or an infinity.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}.")
    require_finite({"g": g}, where="influence, right-hand side")
    size = g.norm()
    if size == 0:
        return Solution(torch.zeros_like(g), 0.0, 0)
    q, steps = SOLVERS[solver](product, g, tol, max_steps)
    require_finite({"q": q}, where=f"influence, {solver}")
    residual = float((product(q) - g).norm() / size)
    if residual > _WARN_ABOVE:
        warnings.warn(
            f"{solver} left a residual of {residual:.2g} after {steps} products: influences are rough. "
            "Raise max_steps, or delta.",
            stacklevel=2,
        )
    return Solution(q, residual, steps)
