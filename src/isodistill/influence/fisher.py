"""Inverses of a Gauss-Newton H that is known by gradients drawn from it: EK-FAC and a projected Fisher.

The outer products of draws s (P,) sum to H in expectation. The part of s for one parameter is a matrix S (m, n), (m, 1)
for a vector. Both methods take H as block diagonal over the parameters, with the axes of the Kronecker factors
E[S S'] and E[S' S]. As S is drawn for a batch and not for an example, what its pairs have to do with each other is kept
(ours; K-FAC, arXiv 1503.05671, takes one example at a time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isodistill.numerics import require_finite

__all__ = ["FACTORS", "Draws", "EigenFactors", "Factors", "ProjectedFisher", "fit_ekfac", "fit_projected"]

Draws = Callable[[int], Iterable[Tensor]]
"""A seed -> draws whose outer products sum to H in expectation."""

_MAX_SIDE = 8192
_RANK = 16


class Factors(Protocol):
    """An approximate H that can be inverted, once fitted for any number of right-hand sides."""

    def inverse(self, g: Tensor, shift: float) -> Tensor:
        """(H + shift I)^-1 g, (P,).

        Raises:
            ValueError: if H + shift I is singular.
        """
        ...


@dataclass(frozen=True)
class EigenFactors:
    """H as kron(U, V) diag(values) kron(U, V)' for each parameter (EK-FAC, arXiv 1806.03884).

    Attributes:
        left: U, orthogonal (m, m), for each parameter.
        right: V, orthogonal (n, n).
        values: (m, n), the second moments of the draws along these axes.
    """

    left: list[Tensor]
    right: list[Tensor]
    values: list[Tensor]

    def inverse(self, g: Tensor, shift: float) -> Tensor:
        """See ``Factors``."""
        parts = []
        blocks = g.split([values.numel() for values in self.values])
        for U, V, values, block in zip(self.left, self.right, self.values, blocks, strict=True):
            if float(values.min()) + shift <= 0:
                raise ValueError("EK-FAC found directions without curvature: raise delta or damping.")
            parts.append((U @ (U.T @ block.view_as(values) @ V / (values + shift)) @ V.T).reshape(-1))
        return torch.cat(parts)


@dataclass(frozen=True)
class ProjectedFisher:
    """H within the span of kron(U, V), dense there; what g has outside of it is dropped (as LoGra, arXiv 2405.13954).

    Attributes:
        left: U, orthonormal (m, k_o), for each parameter.
        right: V, orthonormal (n, k_i).
        fisher: (k_o k_i, k_o k_i), fp64.
    """

    left: list[Tensor]
    right: list[Tensor]
    fisher: list[Tensor]

    def inverse(self, g: Tensor, shift: float) -> Tensor:
        """See ``Factors``."""
        parts = []
        blocks = g.split([len(U) * len(V) for U, V in zip(self.left, self.right, strict=True)])
        for U, V, fisher, block in zip(self.left, self.right, self.fisher, blocks, strict=True):
            inside = U.T @ block.view(len(U), len(V)) @ V
            factor, failed = torch.linalg.cholesky_ex(fisher + shift * torch.eye(len(fisher)).to(fisher))
            if failed:
                raise ValueError("The projected Fisher is singular: raise delta, damping or the number of draws.")
            solved = torch.cholesky_solve(inside.reshape(-1, 1).to(fisher), factor).to(g).view_as(inside)
            parts.append((U @ solved @ V.T).reshape(-1))
        return torch.cat(parts)


def fit_ekfac(draws: Draws, parameters: Sequence[Tensor], seed: int) -> EigenFactors:
    """Axes from one set of draws, second moments along them from another, so that these do not fit the axes' noise.

    Args:
        draws: see ``Draws``.
        parameters: those of theta, in its order; only their shapes and type are read.
        seed: of the draws.

    Raises:
        ValueError: if a parameter is longer than 8,192 on a side.
        FloatingPointError: if draws hold NaN or an infinity.
    """
    matrices = _as_matrices(parameters)
    left, right = _axes(draws(seed), matrices)
    values = [torch.zeros_like(matrix) for matrix in matrices]
    for s in draws(seed + 1):
        for U, V, total, S in zip(left, right, values, _blocks(s, matrices), strict=True):
            total += (U.T @ S @ V).square()
    return EigenFactors(left, right, values)


def fit_projected(draws: Draws, parameters: Sequence[Tensor], seed: int) -> ProjectedFisher:
    """The 16 first axes of each side (fewer where a side is shorter), and the dense second moment of the draws there.

    Args and errors: those of ``fit_ekfac``.
    """
    matrices = _as_matrices(parameters)
    left, right = ([U[:, -_RANK:] for U in side] for side in _axes(draws(seed), matrices))
    sides = [U.shape[1] * V.shape[1] for U, V in zip(left, right, strict=True)]
    fisher = [torch.zeros(k, k, dtype=torch.float64, device=matrices[0].device) for k in sides]
    for s in draws(seed + 1):
        for U, V, total, S in zip(left, right, fisher, _blocks(s, matrices), strict=True):
            inside = (U.T @ S @ V).reshape(-1).double()
            total.addr_(inside, inside)
    return ProjectedFisher(left, right, fisher)


FACTORS: dict[str, Callable[[Draws, Sequence[Tensor], int], Factors]] = {"ekfac": fit_ekfac, "projected": fit_projected}


def _as_matrices(parameters: Sequence[Tensor]) -> list[Tensor]:
    matrices = [x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1) for x in parameters]
    longest = max(max(x.shape) for x in matrices)
    if longest > _MAX_SIDE:
        raise ValueError(
            f"ekfac and projected take parameters of up to {_MAX_SIDE} on a side, one has {longest}: use ggn_cg."
        )
    return matrices


def _blocks(s: Tensor, matrices: list[Tensor]) -> list[Tensor]:
    """The parts of a flat (P,) as the matrices of the parameters."""
    parts = s.split([x.numel() for x in matrices])
    return [part.view_as(x) for part, x in zip(parts, matrices, strict=True)]


def _axes(draws: Iterable[Tensor], matrices: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Eigenvectors of E[S S'] and E[S' S] of each parameter, by rising eigenvalue; found in fp64."""
    left = [torch.zeros(len(x), len(x)).to(x) for x in matrices]
    right = [torch.zeros(x.shape[1], x.shape[1]).to(x) for x in matrices]
    for s in draws:
        for L, R, S in zip(left, right, _blocks(s, matrices), strict=True):
            L.addmm_(S, S.T)
            R.addmm_(S.T, S)
    factors = [*left, *right]
    require_finite({f"factor {i}": x for i, x in enumerate(factors)}, where="influence, Kronecker factors")
    axes = [torch.linalg.eigh((x + x.T).double() / 2)[1].to(x) for x in factors]
    return axes[: len(left)], axes[len(left) :]
