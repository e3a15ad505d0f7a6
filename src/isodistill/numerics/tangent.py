"""Masks on matrices that are only known as products of thin ones, X Y with X (m, 2r) and Y (2r, n), tile by tile.

Everything in the tangent space of a LoRA layer is such a product: B F + E A = [B, E] [F; A]. So are the contrasts
c_k between domains whose squares sum to K V, their mean, and the matrix x that is masked. Nothing of shape (m, n) is
ever kept: a tile of each lives in cache, and of what the mask takes out, D = (1 - M) * x, only B'D and D A' remain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from isodistill.numerics.masks import Form, MaskRule, Norm, quantile_of
from isodistill.numerics.moments import chunk_slices

__all__ = [
    "DenseMask",
    "Halves",
    "Removal",
    "SeparableMask",
    "Thin",
    "TileMask",
    "TiledMask",
    "axis_means",
    "row_tiles",
    "sampled_rows",
    "separable_mask",
]

_LEAST_EXPONENT = -87.0


@dataclass(frozen=True)
class Thin:
    """J matrices (m, n), each a product of thin ones.

    Attributes:
        X: (J, m, p).
        Y: (J, p, n).
    """

    X: Tensor
    Y: Tensor

    def dense(self) -> Tensor:
        """(J, m, n)."""
        return self.X @ self.Y

    def energy(self) -> Tensor:
        """Squared Frobenius norms, (J,): tr(X'X YY')."""
        return ((self.X.mT @ self.X) * (self.Y @ self.Y.mT)).sum((1, 2)).clamp(min=0)

    def take(self, rows: Tensor, columns: Tensor) -> Thin:
        """The rows and columns of the given indices."""
        return Thin(self.X[:, rows], self.Y[:, :, columns])


@dataclass(frozen=True)
class Halves:
    """A step of W by the factor that takes it: x = of_A + of_B with of_A = s B dA and of_B = s dB A."""

    of_A: Thin
    of_B: Thin

    @property
    def whole(self) -> Thin:
        """x as one product."""
        return Thin(torch.cat([self.of_A.X, self.of_B.X], 2), torch.cat([self.of_A.Y, self.of_B.Y], 1))


@dataclass(frozen=True)
class Removal:
    """What a mask takes out of x, D = (1 - M) * x, seen through the factors, and what the mask was like.

    Of ``Halves`` L is of what leaves ``of_A`` and R of what leaves ``of_B``: each factor answers for its own half.

    Attributes:
        L: (r, n), B'D.
        R: (m, r), D A'.
        sums: (5,) as in ``MaskStats.add``.
        count: entries of M.
    """

    L: Tensor
    R: Tensor
    sums: Tensor
    count: int


def axis_means(squared: Thin) -> tuple[Tensor, Tensor]:
    """Row means (m,) and column means (n,) of sum_j (X_j Y_j)^2, entrywise squares, without forming the matrices."""
    X, Y = squared.X, squared.Y
    rows = ((X @ (Y @ Y.mT)) * X).sum((0, 2)).clamp(min=0) / Y.shape[2]
    columns = ((Y.mT @ (X.mT @ X)) * Y.mT).sum((0, 2)).clamp(min=0) / X.shape[1]
    return rows, columns


def row_tiles(m: int, n: int, device: torch.device) -> Iterator[slice]:
    """Row blocks of an (m, n) matrix whose entries fit a CPU core's cache; 256 rows on an accelerator."""
    chunk = next(chunk_slices(m * n, device))
    rows = max(1, (chunk.stop - chunk.start) // n) if device.type == "cpu" else 256
    for start in range(0, m, rows):
        yield slice(start, min(start + rows, m))


class TiledMask(ABC):
    """A mask (m, n) whose rows can be asked for block by block."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @abstractmethod
    def rows(self, rows: slice) -> Tensor:
        """M of some rows, fp32, a new tensor."""

    @torch.no_grad()
    def remove(self, x: Thin | Halves | Tensor, A: Tensor, B: Tensor) -> Removal:
        """One pass over the tiles.

        Args:
            x: the matrix that is masked: one thin product, two halves, or dense (m, n).
            A: (r, n).
            B: (m, r).
        """
        m, n = self.shape
        L, R, sums = torch.zeros_like(A), torch.zeros_like(B), A.new_zeros(5)
        for rows in row_tiles(m, n, A.device):
            M, parts = self.rows(rows), _parts(x, rows)
            total, kept = M.sum(), (M >= 0.5).sum()
            masked = [*(M * part for part in parts[:-1]), M.mul_(parts[-1])]
            flat, before = (reduce(torch.add, both).view(-1) for both in (masked, parts))
            sums += torch.stack([total, kept.to(total), flat @ before, flat @ flat, before @ before])
            removed = [part.sub_(kept_part) for part, kept_part in zip(parts, masked, strict=True)]
            L.addmm_(B[rows].T, removed[0])
            torch.mm(removed[-1], A.T, out=R[rows])
        return Removal(L, R, sums, m * n)

    @torch.no_grad()
    def masked(self, x: Thin | Tensor) -> Tensor:
        """M * x, dense."""
        return self.dense() * (x.dense()[0] if isinstance(x, Thin) else x)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """M itself, (m, n)."""
        return self.rows(slice(0, self.shape[0]))


def _parts(x: Thin | Halves | Tensor, rows: slice) -> list[Tensor]:
    """Some rows of x, new tensors: one for A and B together, or one for each."""
    if isinstance(x, Tensor):
        return [x[rows].clone()]
    return [thin.X[0, rows] @ thin.Y[0] for thin in ([x.of_A, x.of_B] if isinstance(x, Halves) else [x])]


@dataclass(frozen=True)
class DenseMask(TiledMask):
    """M kept whole: tier W, and tier T between two refreshes.

    Attributes:
        M: (m, n), any float dtype.
    """

    M: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.M.shape[0], self.M.shape[1]

    def rows(self, rows: slice) -> Tensor:
        """A copy of some rows."""
        return self.M[rows].to(torch.float32, copy=True)

    def permuted(self, rows: Tensor, columns: Tensor) -> DenseMask:
        """Whole rows and columns in another order."""
        return DenseMask(self.M[rows][:, columns])

    def scaled(self, factor: Tensor) -> DenseMask:
        """Times a scalar."""
        return DenseMask(self.M.float() * factor)


@dataclass(frozen=True)
class TileMask(TiledMask):
    """M of tier T: every entry from its own mean and variance, formed in row tiles and thrown away.

    Cost: 2 p (K - 1 + 2) m n operations a pass for thin products of inner size p = 2 r.

    Attributes:
        mean: one matrix, the mean over domains.
        contrasts: K - 1 matrices whose squares sum to K V (``domain_contrasts``).
        rule: how M follows from mean and V.
        noise: matrices whose squares, times ``noise_weight``, are subtracted from V; None for no correction.
        noise_weight: see ``noise``.
        factor: 0-dim, M is multiplied by it (the random control's scalar); None for 1.
    """

    mean: Thin
    contrasts: Thin
    rule: MaskRule
    noise: Thin | None = None
    noise_weight: float = 0.0
    factor: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.mean.X.shape[1], self.mean.Y.shape[2]

    def rows(self, rows: slice) -> Tensor:
        """M of some rows, formed anew."""
        mean = self.mean.X[0, rows] @ self.mean.Y[0]
        V = self.variance(rows)
        M = self.rule.write(torch.empty_like(V), mean, V)
        return M if self.factor is None else M.mul_(self.factor)

    def variance(self, rows: slice | Tensor) -> Tensor:
        """V of some rows, corrected for noise."""
        V = _sum_of_squares(self.contrasts, rows, 1 / (len(self.contrasts.X) + 1))
        if self.noise is not None:
            V.sub_(_sum_of_squares(self.noise, rows, self.noise_weight)).clamp_(min=0)
        return V

    def permuted(self, rows: Tensor, columns: Tensor) -> TileMask:
        """Whole rows and columns in another order."""
        noise = None if self.noise is None else self.noise.take(rows, columns)
        mean, contrasts = self.mean.take(rows, columns), self.contrasts.take(rows, columns)
        return replace(self, mean=mean, contrasts=contrasts, noise=noise)

    def scaled(self, factor: Tensor) -> TileMask:
        """Times a scalar."""
        return replace(self, factor=factor)


def _sum_of_squares(matrices: Thin, rows: slice | Tensor, weight: float) -> Tensor:
    X = matrices.X[:, rows]
    total = X.new_zeros(X.shape[1], matrices.Y.shape[2])
    product = torch.empty_like(total)
    for X_k, Y_k in zip(X, matrices.Y, strict=True):
        torch.mm(X_k, Y_k, out=product)
        total.addcmul_(product, product, value=weight)
    return total


@dataclass(frozen=True)
class SeparableMask:
    """M = u v' of tier TS: M * (X Y) = (u X) (Y v) stays thin, so no tile is needed. O((m + n) r^2).

    Attributes:
        u: (m,).
        v: (n,).
    """

    u: Tensor
    v: Tensor

    @torch.no_grad()
    def remove(self, x: Thin | Halves | Tensor, A: Tensor, B: Tensor) -> Removal:
        """As ``TiledMask.remove``; a dense ``x`` is masked densely."""
        if isinstance(x, Tensor):
            return DenseMask(self.dense()).remove(x, A, B)
        u, v = self.u, self.v
        of_A, of_B = (x.of_A, x.of_B) if isinstance(x, Halves) else (x, x)
        X, Y = of_A.X[0], of_A.Y[0]
        L = (B.T @ X) @ Y - (B.T @ (u[:, None] * X)) @ Y * v
        X, Y = of_B.X[0], of_B.Y[0]
        R = X @ (Y @ A.T) - (u[:, None] * X) @ ((Y * v) @ A.T)
        x = x.whole if isinstance(x, Halves) else x
        X, Y = x.X[0], x.Y[0]
        uX, Yv = u[:, None] * X, Y * v
        ascending = v.sort().values
        # u v >= 1/2, counted row by row; a quotient may round where the product would not, by one entry of many.
        kept = len(v) * len(u) - torch.searchsorted(ascending, 0.5 / u).sum()
        inner = ((X.T @ uX) * (Y @ Yv.T)).sum()
        after, before = ((uX.T @ uX) * (Yv @ Yv.T)).sum(), x.energy()[0]
        sums = torch.stack([u.sum() * v.sum(), kept.to(inner), inner, after, before])
        return Removal(L, R, sums, len(u) * len(v))

    @torch.no_grad()
    def masked(self, x: Thin | Tensor) -> Tensor:
        """M * x, dense."""
        if isinstance(x, Tensor):
            return self.dense() * x
        return (self.u[:, None] * x.X[0]) @ (x.Y[0] * self.v)

    def dense(self) -> Tensor:
        """M itself, (m, n)."""
        return torch.outer(self.u, self.v)

    def permuted(self, rows: Tensor, columns: Tensor) -> SeparableMask:
        """Whole rows and columns in another order."""
        return SeparableMask(self.u[rows], self.v[columns])

    def scaled(self, factor: Tensor) -> SeparableMask:
        """Times a scalar."""
        return SeparableMask(self.u * factor, self.v)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return len(self.u), len(self.v)


@torch.no_grad()
def separable_mask(
    mean_square: tuple[Tensor, Tensor],
    variance: tuple[Tensor, Tensor],
    tau: float,
    form: Form,
    norm: Norm,
    *,
    keep_rate: float = 0.7,
    global_mean: Tensor | None = None,
) -> SeparableMask:
    """The mask of tier TS from row and column means alone (ours).

        exp    V_ij read as rho_i + gamma_j - mean(V), lifted to be >= 0; M = exp(-tau * norm(V)) = u_i v_j
        ratio  M_ij = sqrt(g_i h_j), g_i and h_j the ratio form of row i's and column j's mean of mean^2 and of V

    Args:
        mean_square: row means (m,) and column means (n,) of mean^2.
        variance: rho (m,) and gamma (n,), the row and column means of V.
        tau: strength, >= 0.
        form: `exp` or `ratio`.
        norm: for `exp`: `none`, `tensor_mean`, `global_mean` or `keep_rate`; the others are not separable.
        keep_rate: for norm `keep_rate`.
        global_mean: for norm `global_mean`, 0-dim.
    """
    rho, gamma = variance
    if tau == 0:
        return SeparableMask(torch.ones_like(rho), torch.ones_like(gamma))
    if form == "ratio":
        halves = []
        for signal, noise in zip(mean_square, variance, strict=True):
            rule = MaskRule.of_moments(tau, form, norm, signal.mean(), noise.mean())
            halves.append(rule.write(torch.empty_like(signal), signal.sqrt(), noise).sqrt_())
        return SeparableMask(*halves)
    least = rho.min() + gamma.min()
    a, b = rho - rho.min() + (least - rho.mean()).clamp(min=0), gamma - gamma.min()
    quantile = quantile_of(a[sampled_rows(len(a))][:, None] + b, keep_rate) if norm == "keep_rate" else None
    unit = rho.mean() if global_mean is None else global_mean
    scale = MaskRule.of_moments(tau, form, norm, mean_square[0].mean(), unit, quantile).scalar / -tau
    # Half of the least exponent for each factor, so that the product does not underflow.
    u, v = ((z / scale).clamp_(min=_LEAST_EXPONENT / 2) for z in (a, b))
    return SeparableMask(u.exp2_(), v.exp2_()) if norm == "keep_rate" else SeparableMask(u.exp_(), v.exp_())


def sampled_rows(m: int) -> Tensor:
    """At most 256 evenly spaced row indices: enough for a quantile of all entries."""
    return torch.linspace(0, m - 1, min(m, 256)).long()
