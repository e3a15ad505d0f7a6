"""Solvers for H q = g: from products with H (dense Cholesky, conjugate gradients, LiSSA), or from fitted factors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from isodistill.influence.fisher import Factors
from isodistill.numerics import require_finite

__all__ = ["SOLVERS", "Solution", "Solutions", "solve", "solve_by_factors", "solve_many"]

Product = Callable[[Tensor], Tensor]

_MAX_DENSE = 2000
_WARN_ABOVE = 1e-2
_POWER_STEPS = 20


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        q: (P,).
        residual: norm(H q - g) / norm(g); 0 for g = 0.
        steps: products with H that were taken.
        converged: False if iterations ended at their largest number, for whoever counts these.
    """

    q: Tensor
    residual: float
    steps: int
    converged: bool


@dataclass(frozen=True)
class Solutions:
    """What was found for many right-hand sides at once.

    Attributes:
        Q: (k, P).
        residual: the largest norm(H q - g) / norm(g) among the rows.
        steps: products with H that were taken, for all rows together.
        n_open: rows whose iterations ended at their largest number.
    """

    Q: Tensor
    residual: float
    steps: int
    n_open: int


Found = tuple[Tensor, int, bool]
"""q, steps, whether the iterations converged."""


def _exact(product: Product, g: Tensor, tol: float, max_steps: int) -> Found:
    """Dense H by columns, symmetrised, Cholesky in fp64."""
    if len(g) > _MAX_DENSE:
        raise ValueError(
            f"The exact solver takes up to {_MAX_DENSE} parameters, got {len(g)}: use solver cg or ggn_cg."
        )
    H = torch.stack([product(e) for e in torch.eye(len(g), dtype=g.dtype, device=g.device)]).double()
    require_finite({"H": H}, where="influence, dense Hessian")
    factor, failed = torch.linalg.cholesky_ex((H + H.T) / 2)
    if failed:
        raise ValueError(
            "The Hessian is not positive definite: raise delta (the weight decay of the fit) or damping, or use ggn_cg."
        )
    return torch.cholesky_solve(g.double()[:, None], factor)[:, 0].to(g.dtype), len(g), True


def _cg(product: Product, g: Tensor, tol: float, max_steps: int, precondition: Product | None = None) -> Found:
    """Conjugate gradients from 0 until norm(r) <= tol norm(g), in the metric of ``precondition``.

    Raises:
        ValueError: if H has a direction of curvature <= 0.
    """
    x, r = torch.zeros_like(g), g.clone()
    z = precondition(r) if precondition else r
    d, rz = z.clone(), r @ z
    goal = tol * r.norm()
    for step in range(max_steps):
        if r.norm() <= goal:
            return x, step, True
        Hd = product(d)
        curvature = d @ Hd
        if curvature <= 0:
            raise ValueError(
                f"Curvature {float(curvature):.3g} <= 0 at step {step} of CG: use ggn_cg, or raise delta or damping."
            )
        alpha = rz / curvature
        x, r = x + alpha * d, r - alpha * Hd
        z = precondition(r) if precondition else r
        new = r @ z
        d, rz = z + (new / rz) * d, new
    return x, max_steps, bool(r.norm() <= goal)


def _lissa(product: Product, g: Tensor, tol: float, max_steps: int) -> Found:
    """Neumann series x <- g/s + (I - H/s) x, with s = 1.1 * top eigenvalue from 20 power iterations.

    Raises:
        ValueError: if H = 0, or if the moves grow, as they do along negative curvature.
    """
    v = torch.randn(g.shape, generator=torch.Generator().manual_seed(0)).to(g)
    for _ in range(_POWER_STEPS):
        v = product(v / v.norm())
        if not v.any():
            raise ValueError("LiSSA found no curvature at all: the Hessian is 0; raise delta or damping.")
    scale = 1.1 * v.norm()
    x = g / scale
    first = x.norm()
    for step in range(max_steps):
        move = (g - product(x)) / scale
        if move.norm() > 2 * first:
            raise ValueError(f"LiSSA diverges at step {step}: use ggn_cg, or raise delta or damping.")
        x = x + move
        if move.norm() <= tol * x.norm() * 1e-2:
            return x, _POWER_STEPS + 1 + step, True
    return x, _POWER_STEPS + max_steps, False


SOLVERS: dict[str, Callable[..., Found]] = {"exact": _exact, "cg": _cg, "ggn_cg": _cg, "lissa": _lissa}


def solve(
    product: Product,
    g: Tensor,
    solver: str = "ggn_cg",
    tol: float = 1e-4,
    max_steps: int = 100,
    precondition: Product | None = None,
) -> Solution:
    """q with H q = g, and how far it is from solving it; warns above a residual of 1e-2.

    Args:
        product: x (P,) -> H x (P,), H symmetric positive definite (``ggn_cg``: the Gauss-Newton product).
        g: (P,).
        solver: "exact" (P <= 2,000), "cg", "ggn_cg" or "lissa".
        tol: relative residual at which the iterations end.
        max_steps: their largest number.
        precondition: x -> an approximate H^-1 x, symmetric positive definite, for "cg" and "ggn_cg": fewer steps.

    Raises:
        ValueError: for an unknown solver, too many parameters, a preconditioner of another solver, or an H that is not
            positive definite.
        FloatingPointError: if g, a dense H or q holds NaN or an infinity.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}.")
    if precondition and SOLVERS[solver] is not _cg:
        raise ValueError(f"Only cg and ggn_cg take a preconditioner, not {solver}.")
    how = {"precondition": precondition} if precondition else {}
    advice = "Raise max_steps, delta or damping, or precondition."
    return _solved(product, g, lambda: SOLVERS[solver](product, g, tol, max_steps, **how), solver, advice)


def solve_many(product: Product, G: Tensor, tol: float = 1e-2, max_steps: int = 100) -> Solutions:
    """Conjugate gradients for the rows of G at once, until every norm(r) <= tol norm(g); warns of rows that stay open.

    Products for many rows together take far less time than one after the other.

    Args:
        product: as in ``solve``, of a positive definite H; it is mapped over the rows by ``torch.func.vmap``.
        G: (k, P); a row of 0 has the solution 0.
        tol: relative residual at which the iterations of a row end.
        max_steps: their largest number.

    Raises:
        FloatingPointError: if G or Q holds NaN or an infinity.
    """
    require_finite({"G": G}, where="influence, right-hand sides")
    many = vmap(product)
    X, R, D = torch.zeros_like(G), G.clone(), G.clone()
    sizes = G.square().sum(1)
    rr, goal, steps = sizes, tol**2 * sizes, 0
    while steps < max_steps and (is_open := rr > goal).any():
        HD = many(D)
        alpha = torch.where(is_open, rr / (D * HD).sum(1), 0.0)  # a row that has converged stays where it is
        X, R = X + alpha[:, None] * D, R - alpha[:, None] * HD
        new = R.square().sum(1)
        D = R + torch.where(is_open, new / rr, 0.0)[:, None] * D
        rr, steps = new, steps + 1
    require_finite({"Q": X}, where="influence, conjugate gradients of many right-hand sides")
    n_open = int((rr > goal).sum())
    residuals = (many(X) - G).norm(dim=1) / sizes.sqrt().clamp_min(torch.finfo(G.dtype).tiny)
    if n_open:
        warnings.warn(
            f"{n_open} of {len(G)} solves stopped after {steps} products, the worst with a residual of "
            f"{float(residuals.max()):.2g}: raise delta or damping.",
            stacklevel=2,
        )
    return Solutions(X, float(residuals.max()), steps, n_open)


def solve_by_factors(product: Product, g: Tensor, factors: Factors, shift: float) -> Solution:
    """q = (approximate H)^-1 g, with its residual in the true H; warns above 1e-2, where most approximations end.

    Args:
        product: x (P,) -> (H + shift I) x (P,).
        g: (P,).
        factors: of H without the shift.
        shift: delta and damping, >= 0.

    Raises:
        ValueError: if the approximation is singular.
        FloatingPointError: if g or q holds NaN or an infinity.
    """
    advice = "Factors only approximate the Hessian: compare with ggn_cg."
    return _solved(product, g, lambda: (factors.inverse(g, shift), 1, True), type(factors).__name__, advice)


def _solved(product: Product, g: Tensor, find: Callable[[], Found], name: str, advice: str) -> Solution:
    require_finite({"g": g}, where="influence, right-hand side")
    size = g.norm()
    if size == 0:
        return Solution(torch.zeros_like(g), 0.0, 0, True)
    q, steps, converged = find()
    require_finite({"q": q}, where=f"influence, {name}")
    residual = float((product(q) - g).norm() / size)
    if residual > _WARN_ABOVE:
        warnings.warn(
            f"{name} left a residual of {residual:.2g} after {steps} products: influences are rough. {advice}",
            stacklevel=3,
        )
    return Solution(q, residual, steps, converged)
